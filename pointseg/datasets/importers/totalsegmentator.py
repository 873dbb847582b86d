"""TotalSegmentator: CT (Wasserthal et al. 2023).   sNNNN/ct.nii.gz, sNNNN/segmentations/vertebrae_L1.nii.gz ..

A binary file a class.  Combined files are not read: versions 1 and 2 give the vertebrae other numbers, and nothing in a
file tells which it is.  Much of these masks was made by models and corrected; T13 and L6 are not told apart.
"""

import csv
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from pointseg.datasets.importers.base import NUMBERS, WHOLE, Found, LeftOut, Read, files_below, joined
from pointseg.scans.reading import read_image
from pointseg.scans.volumes import stem

SOURCE, MODALITY, MASK_EXTENT = "totalsegmentator", "CT", WHOLE
LAYOUT = "sNNNN/ct.nii.gz and sNNNN/segmentations/vertebrae_L1.nii.gz .."
PREFIX = "vertebrae_"
PARTS = {"train": "train", "val": "validation", "test": "test"}


def find(raw: Path) -> Iterator[Found | LeftOut]:
    parts_of = lru_cache(_parts)  # of the folder that its scans share
    for image in files_below(raw, "ct.nii*"):
        case, folder = image.parent.name, image.parent / "segmentations"
        names = {stem(p).removeprefix(PREFIX): p for p in folder.glob(f"{PREFIX}*.nii*")}
        masks = tuple(names[level] for level in NUMBERS if level in names)
        if masks:
            yield Found(case, f"{SOURCE}-{case}", image, masks, parts_of(image.parents[1]).get(case, ""))
        else:
            combined = [p.name for p in sorted(image.parent.glob("*.nii*")) if p != image]
            why = (f"; {', '.join(combined)} is not read, since versions 1 and 2 number its vertebrae differently"
                   if combined else "")
            yield LeftOut(case, f"{image}: has no segmentations/{PREFIX}*.nii.gz beside it{why}")


def _parts(folder: Path) -> dict[str, str]:
    path = folder / "meta.csv"
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        return {row.get("image_id") or "": PARTS.get(row.get("split") or "", "")
                for row in csv.DictReader(file, delimiter=";")}


def read(found: Found) -> Read:
    stored = read_image(found.image)
    values = {p: NUMBERS[stem(p).removeprefix(PREFIX)] for p in found.masks}
    return Read(stored.image, *joined(found, stored.image, values, by_position=True), as_stored=not stored.notes)
