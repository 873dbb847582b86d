"""VerSe 2019 and 2020: CT (Sekuboyina et al. 2021).   rawdata/sub-*/*_ct.nii.gz and, in derivatives, the masks

20..24 = L1..L5, 25 = L6, 28 = T13.  Vertebrae that the scan's edge cuts are seen but not labelled.  The centroids
(*_seg-subreg_ctd.json) name their axes first; they are used to check that mask and scan belong together.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import SimpleITK as sitk

from pointseg.datasets.importers.base import (
    LEVELS,
    WHOLE,
    Found,
    LeftOut,
    Read,
    files_below,
    hide_ends,
    nifti_file,
    read_pair,
)
from pointseg.scans.volumes import stem

SOURCE, MODALITY, MASK_EXTENT = "verse", "CT", WHOLE
LAYOUT = "rawdata/sub-*/*_ct.nii.gz and derivatives/sub-*/*_seg-vert_msk.nii.gz"
VALUES, MASK = {v: v for v in (0, *LEVELS)}, "_seg-vert_msk"
ARCHIVE = re.compile(r"(?:dataset-)?(?:verse\d\d|\d\d)?_?(training|validation|test)$")  # a folder of each split
PARTS = {"training": "train", "validation": "validation", "test": "test"}


def find(raw: Path) -> Iterator[Found | LeftOut]:
    masks = {p for p in files_below(raw, f"*{MASK}.nii*") if p.parents[1].name == "derivatives"}
    for image in files_below(raw, "*_ct.nii*"):
        subject, rawdata = image.parent, image.parents[1]
        if rawdata.name != "rawdata":
            continue
        case = stem(image).removesuffix("_ct")
        mask = nifti_file(rawdata.parent / "derivatives" / subject.name, case + MASK)
        parts = [PARTS[m[1]] for f in (*rawdata.relative_to(raw).parts, raw.name) if (m := ARCHIVE.match(f))]
        if mask:
            masks.discard(mask)
            yield Found(case, f"{SOURCE}-{subject.name}", image, (mask,), parts[0] if parts else "")
        else:
            yield LeftOut(case, f"{image}: has no {case}{MASK}.nii.gz")
    for mask in sorted(masks):
        yield LeftOut(stem(mask).removesuffix(MASK), f"{mask}: has no image in rawdata")


def read(found: Found) -> Read:
    pair = read_pair(found, VALUES)
    path = found.masks[0].with_name(f"{found.case}_seg-subreg_ctd.json")
    flaw = check_centroids(pair.mask, path) if path.is_file() else ""
    return replace(pair, mask=hide_ends(pair.mask), flaw="; ".join(filter(None, (pair.flaw, flaw))))


def check_centroids(mask: sitk.Image, path: Path) -> str:
    """"" where most centroids lie in the vertebra they name, else what is wrong.

    Coordinates are voxels along the axes that the first entry names, such as P, I, R.
    """
    try:
        first, *entries = json.loads(path.read_text(encoding="utf-8"))
        if "direction" not in first:
            return ""  # an older edition, which counts millimetres from another corner
        turned = sitk.DICOMOrient(mask, "".join(first["direction"]))
        points = {int(e["label"]): [float(e[axis]) for axis in "XYZ"] for e in entries}
    except (ValueError, LookupError, TypeError, OSError, RuntimeError):
        return f"{path.name} cannot be read"
    points = {v: p for v, p in points.items() if all(map(math.isfinite, p))}
    hits = sum(_label_at(turned, p) == v for v, p in points.items())
    return "" if 2 * hits >= len(points) else (f"{len(points) - hits} of {len(points)} centroids lie outside their "
                                               "vertebrae: mask and centroids do not belong together")


def _label_at(mask: sitk.Image, index: list[float]) -> int:
    at = [round(i) for i in index]
    return mask[at] if all(0 <= i < n for i, n in zip(at, mask.GetSize(), strict=True)) else 0
