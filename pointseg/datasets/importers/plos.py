"""PLoS: T2 MR of the lower spine (Chu et al. 2015).   Zenodo 22304: Img_NN.nii, Img_NN_Labels.nii

The masks are binary, so vertebrae have no levels: they serve models of two classes alone.  The headers have the
craniocaudal axis the wrong way round.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pointseg.datasets.importers.base import BODIES, Found, LeftOut, Read, files_below, with_image
from pointseg.scans.reading import read_mask
from pointseg.scans.volumes import VERTEBRA, geometry_of, shown_values, stem
from pointseg.volume import ScanError

SOURCE, MODALITY, MASK_EXTENT = "plos", "MR", BODIES
LAYOUT = "Img_NN.nii and Img_NN_Labels.nii"
MASK = "_Labels"


def find(raw: Path) -> Iterator[Found | LeftOut]:
    files = files_below(raw, "[Ii]mg_*.nii*")
    masks = {stem(p).removesuffix(MASK): p for p in files if stem(p).endswith(MASK)}
    for image in (p for p in files if not stem(p).endswith(MASK)):
        number = stem(image)[len("Img_"):]
        if mask := masks.pop(stem(image), None):
            yield Found(number, f"{SOURCE}-{number}", image, (mask,))
        else:
            yield LeftOut(number, f"{image}: has no {stem(image)}{MASK}.nii")
    for name, mask in masks.items():
        yield LeftOut(name[len("Img_"):], f"{mask}: has no {name}.nii")


def read(found: Found) -> Read:
    mask = read_mask(found.masks[0])
    values = np.unique(sitk.GetArrayViewFromImage(mask.image)).tolist()
    if len(set(values) - {0}) > 1:
        raise ScanError(f"{found.masks[0]}: found mask values {shown_values(values)}, expected 0 and one other; "
                        "it is not the published file")
    pair = with_image(found, mask, {v: VERTEBRA if v else 0 for v in values})
    for image in (pair.image, pair.mask):
        turn_over(image)
    return replace(pair, as_stored=False)


def turn_over(image: sitk.Image) -> None:
    """Reverse the craniocaudal axis in the header, in place: the voxels stay, and so does the space they fill."""
    geometry = geometry_of(image)
    axis = 2 - geometry.axes[0][0]  # stored axis x, y or z that runs along the body
    last = np.zeros((1, 3))
    last[0, axis] = geometry.size[axis] - 1
    direction = np.reshape(geometry.direction, (3, 3)).copy()
    direction[:, axis] *= -1
    image.SetOrigin(geometry.to_mm(last)[0].tolist())
    image.SetDirection(direction.ravel().tolist())
