"""CTSpine1K: CT from four other public sets (Deng et al. 2021).   NAME.nii.gz and NAME_seg.nii.gz, data_split.txt

20..24 = L1..L5, 25 = L6.  Images and labels lie in different folders, in some copies one for each of the four sets
(CT colonography, HNSCC, liver, COVID-19), whose names tell the patients apart.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pointseg.datasets.importers.base import LEVELS, WHOLE, Found, LeftOut, Read, files_below, hide_ends, read_pair
from pointseg.scans.volumes import stem

SOURCE, MODALITY, MASK_EXTENT = "ctspine1k", "CT", WHOLE
LAYOUT = "NAME.nii.gz and NAME_seg.nii.gz, in any folders"
VALUES = {v: v for v in (0, *LEVELS)}
MASK = "_seg"
PARTS = {"trainset": "train", "test_public": "validation", "test_private": "test"}
SETS = {"colonography": r"1\.3\.6\.1\.4\.1\.9328\.50\.4\.(\d+)|(CTC-\d+)", "hnscc": r"HN_(P\d+)",
        "liver": r"liver_(\d+)", "covid19": r"volume-covid19-(A-\d+)"}


def find(raw: Path) -> Iterator[Found | LeftOut]:
    files, parts = files_below(raw, "*.nii*"), _parts(raw)
    masks: dict[str, list[Path]] = {}
    for path in files:
        if stem(path).endswith(MASK):
            masks.setdefault(stem(path).removesuffix(MASK), []).append(path)
    images = [p for p in files if not stem(p).endswith(MASK)]
    for image in images:
        case = stem(image)
        if len(mine := masks.get(case, [])) == 1:
            yield Found(case, f"{SOURCE}-{patient_of(case)}", image, tuple(mine), parts.get(case, ""))
        else:
            yield LeftOut(case, f"{image}: has {len(mine) or 'no'} {case}{MASK}.nii.gz, expected one")
    for case in sorted(set(masks) - {stem(p) for p in images}):
        yield LeftOut(case, f"{masks[case][0]}: has no {case}.nii.gz")


def patient_of(case: str) -> str:
    """Several scans of a patient differ in what follows the number that the original set gave him."""
    for name, pattern in SETS.items():
        if found := re.match(pattern, case):
            return f"{name}-{next(filter(None, found.groups()))}"
    return case


def _parts(raw: Path) -> dict[str, str]:
    """Sections of file names; in the published file two names stand on one line."""
    parts, part = {}, ""
    for path in files_below(raw, "data_split.txt"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if (section := line.strip().rstrip(":")) in PARTS:
                part = PARTS[section]
            for name in re.findall(r"(\S.*?)\.nii\.gz", line):
                parts[name] = part
    return parts


def read(found: Found) -> Read:
    pair = read_pair(found, VALUES)
    return replace(pair, mask=hide_ends(pair.mask))
