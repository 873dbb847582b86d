"""PLoS: T2 MR of the lower spine (Chu et al. 2015).   Zenodo 22304: Img_NN.nii, Img_NN_Labels.nii

The masks are binary, so vertebrae have no levels: they serve models of two classes alone.  The headers have the
craniocaudal axis the wrong way round.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pointseg.files import ScanError
from pointseg.importers.base import BODIES, Found, LeftOut, Read, files_below, read_pair
from pointseg.reading import read_image
from pointseg.volume import VERTEBRA, Geometry, shown_values

SOURCE, MODALITY, MASK_EXTENT = "plos", "MR", BODIES
LAYOUT = "Img_NN.nii and Img_NN_Labels.nii"


def find(raw: Path) -> Iterator[Found | LeftOut]:
    for image in files_below(raw, "Img_*.nii*"):
        stem, ending = image.name.split(".", 1)
        if stem.endswith("_Labels"):
            continue
        mask, number = image.with_name(f"{stem}_Labels.{ending}"), stem.removeprefix("Img_")
        if mask.is_file():
            yield Found(number, f"{SOURCE}-{number}", image, (mask,))
        else:
            yield LeftOut(number, f"{image}: has no {mask.name}")


def read(found: Found) -> Read:
    mask = read_image(found.masks[0]).image
    values = np.unique(sitk.GetArrayViewFromImage(mask)).tolist()
    if len(set(values) - {0}) > 1:
        raise ScanError(f"{found.masks[0]}: found mask values {shown_values(values)}, expected 0 and one other; "
                        "it is not the published file")
    pair = read_pair(found, {v: VERTEBRA if v else 0 for v in values})
    for image in (pair.image, pair.mask):
        turn_over(image)
    return Read(pair.image, pair.mask, as_stored=False)


def turn_over(image: sitk.Image) -> None:
    """Reverse the craniocaudal axis in the header, in place: the voxels stay, and so does the space they fill."""
    geometry = Geometry.of(image)
    axis = 2 - geometry.axes[0][0]  # stored axis x, y or z that runs along the body
    last = np.zeros((1, 3))
    last[0, axis] = geometry.size[axis] - 1
    direction = np.reshape(geometry.direction, (3, 3)).copy()
    direction[:, axis] *= -1
    image.SetOrigin(geometry.to_mm(last)[0].tolist())
    image.SetDirection(direction.ravel().tolist())
