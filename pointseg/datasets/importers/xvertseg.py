"""xVertSeg: CT, fractured vertebrae among them.   http://lit.fe.uni-lj.si/xVertSeg

Data1/images/imageNNN.mhd, Data1/masks/maskNNN.mhd, Data1/scores/scores.csv; L1..L5 = 200, 210 .. 240.  Data2 has images
alone.  The grades of scores.csv (0 healthy to 3) are not labels; fractures are noted.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from pointseg.datasets.importers.base import LUMBAR, WHOLE, Found, LeftOut, Read, files_below, read_pair

SOURCE, MODALITY, MASK_EXTENT = "xvertseg", "CT", WHOLE
LAYOUT = "Data1/images/imageNNN.mhd and Data1/masks/maskNNN.mhd"
VALUES = {0: 0, **{200 + 10 * k: v for k, v in enumerate(LUMBAR)}}


def find(raw: Path) -> Iterator[Found | LeftOut]:
    for image in files_below(raw, "image*.mhd"):
        if not (number := image.stem.removeprefix("image")).isdigit():
            continue
        masks = sorted(image.parents[1].glob(f"[Mm]asks/mask{number}.mhd"))
        if masks:
            yield Found(number, f"{SOURCE}-{number}", image, (masks[0],), note=_grades(image, number))
        else:
            yield LeftOut(number, f"{image}: has no mask")


def read(found: Found) -> Read:
    return read_pair(found, VALUES)


def _grades(image: Path, number: str) -> str:
    """The grades that scores.csv gives this scan, where it is there and names it."""
    for path in image.parents[1].glob("[Ss]cores/*.csv"):
        for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
            name, *grades = (cell.strip() for cell in re.split("[,;\t]", line))
            if re.fullmatch(rf"image0*{int(number)}(\.mhd)?", name, re.IGNORECASE) and any(grades):
                return f"{path.name}: {' '.join(filter(None, grades))}"
    return ""
