"""SPIDER: lumbar MR, T1 and T2 (van der Graaf et al. 2024).   images/ID_t1.mha .., masks/ID_t1.mha, overview.csv

1 = L5 and upwards, 100 spinal canal, 101..125 vertebrae seen in part, 201.. discs.  In another scheme in circulation
numbers run down the whole spine to L5 = 24.  Which one a mask has is told by which end lies lower.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pointseg.datasets.importers.base import (
    LEVELS,
    NUMBERS,
    WHOLE,
    Found,
    LeftOut,
    Read,
    files_below,
    heights_mm,
    with_image,
)
from pointseg.scans.files import rows_of
from pointseg.scans.reading import read_mask
from pointseg.volume import BACKGROUND, UNLABELLED, ScanError

SOURCE, MODALITY, MASK_EXTENT = "spider", "MR", WHOLE
LAYOUT = "images/ID_t1.mha .. and masks/ID_t1.mha .."
PARTS = {"training": "train", "validation": "validation", "test": "test"}
UPWARDS = {k: NUMBERS["L5"] + 1 - k for k in range(1, 25)}  # 1 = L5 .. 24 = C1
DOWNWARDS = {k: k for k in range(1, 25)}  # 24 = L5
OTHERS = {0: BACKGROUND, 100: BACKGROUND, **{v: UNLABELLED for v in range(101, 126)},
          **{v: BACKGROUND for v in range(201, 226)}}


def find(raw: Path) -> Iterator[Found | LeftOut]:
    files, parts = files_below(raw, "*.mha"), _parts(raw)
    masks = {p.name: p for p in files if p.parent.name == "masks"}  # wherever the two archives were unpacked to
    for image in files:
        if image.parent.name != "images":
            continue
        if image.name in masks:
            patient = image.stem.split("_")[0]
            yield Found(image.stem, f"{SOURCE}-{patient}", image, (masks[image.name],), parts.get(image.stem, ""))
        else:
            yield LeftOut(image.stem, f"{image}: has no masks/{image.name}")


def _parts(raw: Path) -> dict[str, str]:
    rows = []
    for path in files_below(raw, "overview.csv"):
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        names, *found = [cells for _, cells in rows_of(path, text)] or [[]]
        rows += [dict(zip(names, cells)) for cells in found]
    cells = [[row.get(column, "") for column in ("new_file_name", "subset")] for row in rows]
    return {name.removesuffix(".mha"): PARTS.get(subset, "") for name, subset in cells}


def read(found: Found) -> Read:
    path = found.masks[0]
    mask = read_mask(path)
    return with_image(found, mask, scheme_of(mask.image, path) | OTHERS)


def scheme_of(mask: sitk.Image, path: Path) -> dict[int, int]:
    """UPWARDS or DOWNWARDS, by the heights of the vertebrae; an error where they follow neither."""
    found = [v for v in np.unique(sitk.GetArrayViewFromImage(mask)).tolist() if 1 <= v <= 25]
    if len(found) < 2:
        raise ScanError(f"{path}: labels {len(found)} vertebrae, expected at least 2, to tell by their order which way "
                        "they are numbered")
    heights = list(heights_mm(mask, found).values())
    steps = np.diff(heights)
    if (steps > 0).all() and found[-1] in UPWARDS:
        return UPWARDS
    if (steps < 0).all() and found[-1] in DOWNWARDS:
        return DOWNWARDS
    raise ScanError(f"{path}: found vertebrae {found} from {LEVELS[NUMBERS['L5']]} neither upwards nor downwards "
                    f"(heights {', '.join(f'{h:.0f}' for h in heights)} mm), expected them in order")
