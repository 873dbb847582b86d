"""MyoSegmenTUM spine: chemical shift MR (Burian et al. 2019).   NN/vertebrae/WATER.dcm .., L1_NN.mha .. L5_NN.mha

Archives unpack to NN/NN/ beside __MACOSX.  One contrast of each subject is taken: they share one grid and one set of
masks.  In 33, 53 and 54 image and mask differ in shape; 19, 33, 53 and 54 are copies; 36's L4 is 35's.
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

SOURCE, MODALITY, MASK_EXTENT = "myosegmentum", "MR", BODIES
LAYOUT = "NN/vertebrae/WATER.dcm (or T2star, FAT ..) beside L1_NN.mha .. L5_NN.mha"
CONTRASTS = ("WATER", "T2STAR", "FAT", "FATFRACTION")  # the first there is


def find(raw: Path) -> Iterator[Found | LeftOut]:
    for folder in sorted({p.parent for p in files_below(raw, "*") if p.parent.name == "vertebrae"}):
        number = folder.parent.name
        masks = tuple(p for f in (folder, folder.parent) for p in sorted(f.glob("*.mha"))
                      if re.fullmatch(r"L[1-5]_\d+", p.stem))
        contrasts = {p.stem.upper(): p for p in sorted(folder.glob("*.dcm"))}
        chosen = [contrasts[name] for name in CONTRASTS if name in contrasts]
        if not masks or not chosen:
            yield LeftOut(number, f"{folder}: has {len(masks)} masks and of {', '.join(CONTRASTS)} "
                                  f"{len(chosen)}, expected some of both")
        elif foreign := [p.name for p in masks if p.stem.split("_")[1] != number]:
            yield LeftOut(number, f"{folder}: has masks of another subject ({', '.join(foreign)})")
        else:
            yield Found(number, f"{SOURCE}-{number}", chosen[0], masks)


def read(found: Found) -> Read:
    image = read_frames_like(found)
    values = {p: NUMBERS[p.stem.split("_")[0]] for p in found.masks}
    return Read(image, *joined(found, image, values, by_position=False), as_stored=False)
