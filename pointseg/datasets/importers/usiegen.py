"""USiegen: MR, T1, T2 and TIRM (Zukic et al. 2014).   SpineDatasets/CASE.dcm, SpineSegmented/CASE/L1.mha .. L5.mha

One file of many frames a scan, and one binary mask a vertebral body (T10..T12 and S1 too).  Several scans are of one
patient.  Stored axes run anteroposterior, craniocaudal and left-right: where a header does not say so, they are set.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from pointseg.datasets.importers.base import (
    BODIES,
    NUMBERS,
    Found,
    LeftOut,
    Read,
    files_below,
    joined,
    read_frames_like,
)
from pointseg.scans.volumes import geometry_of

SOURCE, MODALITY, MASK_EXTENT = "usiegen", "MR", BODIES
LAYOUT = "SpineDatasets/CASE.dcm and SpineSegmented/CASE/L1.mha .. L5.mha"
SAGITTAL = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)  # x to the back, y to the feet, z to the right
AXES = (1, 2, 0)  # of the stored array (left-right, craniocaudal, anteroposterior), in canonical order


def find(raw: Path) -> Iterator[Found | LeftOut]:
    masks: dict[str, list[Path]] = {}  # by case, in small letters: the archive does not always agree with itself
    for path in files_below(raw, "*.mha"):
        if path.parents[1].name.lower() == "spinesegmented" and path.stem in NUMBERS:
            masks.setdefault(path.parent.name.lower(), []).append(path)
    for image in files_below(raw, "*.dcm"):
        if mine := masks.get(image.stem.lower()):
            yield Found(image.stem, f"{SOURCE}-{patient_of(image.stem)}", image, tuple(mine))
        else:
            yield LeftOut(image.stem, f"{image}: has no masks in SpineSegmented/{image.stem}; RAW_DIR must hold both "
                                      "SpineDatasets and SpineSegmented")


def patient_of(case: str) -> str:
    """AKa2, AKa3, AKa4 are one patient, AKs3 .. AKs8 another, DzZ_T1 and DzZ_T2, Lan and LanII; all others differ."""
    return re.fullmatch(r"(AKa|AKs)\d|(.*?)_(?:T1|T2|TIRM)|(Lan)(?:II)?|(.*)", case).expand(r"\1\2\3\4")


def read(found: Found) -> Read:
    image = read_frames_like(found)
    if geometry_of(image).axes[0] != AXES:
        image.SetDirection(SAGITTAL)
    return Read(image, *joined(found, image, {p: NUMBERS[p.stem] for p in found.masks}, by_position=False),
                as_stored=False)
