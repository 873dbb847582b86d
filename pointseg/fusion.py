"""Three predictions of one scan -> a pseudo mask.   Thesis section 3.5.

Class i where the transverse model says vertebra and the sagittal and coronal models both say i: hard unanimity.
Smoothing uses the 3 x 3 x 3 cube (rank 3, connectivity 3): closing of each prediction, fusion, opening, closing,
erosion.
"""

import numpy as np
from scipy import ndimage

from pointseg.volume import BACKGROUND

CUBE = ndimage.generate_binary_structure(3, 3)


def fuse(transverse: np.ndarray, coronal: np.ndarray, sagittal: np.ndarray) -> np.ndarray:
    """Label volumes (z, y, x) uint8, transverse 0/1, the others 0..5 -> (z, y, x) uint8, 0..5."""
    agreed = (transverse != BACKGROUND) & (coronal == sagittal)
    return np.where(agreed, sagittal, BACKGROUND).astype(np.uint8)


def smooth(labels: np.ndarray, opening: int = 0, closing: int = 0, erosion: int = 0) -> np.ndarray:
    """Morphology on each class of a label volume: opening, closing and erosion, each that many times.

    The classes stay apart: where closings of two classes meet, the voxel keeps its own label, else the lower class's.
    Each class is treated within its own bounding box, widened by the reach of the structuring element.
    """
    out = np.zeros_like(labels)
    reach = max(opening, closing + erosion) + 1
    for k, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        box = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
        pad = [(reach, reach)] * 3  # so that closing at the volume's edge does not erode what the edge cuts
        mask = np.pad(labels[box] == k, pad, mode="edge")
        if opening:
            mask = ndimage.binary_opening(mask, CUBE, opening)
        if closing:
            mask = ndimage.binary_closing(mask, CUBE, closing)
        if erosion:
            mask = ndimage.binary_erosion(mask, CUBE, erosion, border_value=1)
        mask = mask[tuple(slice(reach, -reach) for _ in range(3))]
        mask &= (labels[box] == k) | (labels[box] == BACKGROUND)  # a closing may not take another class's voxels
        target = out[box]
        target[mask & (target == BACKGROUND)] = k
    return out


def pseudo_mask(transverse: np.ndarray, coronal: np.ndarray, sagittal: np.ndarray, denoise: int,
                erosion: int) -> np.ndarray:
    """Close each prediction, fuse, open, close, erode.   Label volumes (z, y, x) -> (z, y, x) uint8, 0..5."""
    closed = [smooth(p, closing=denoise) for p in (transverse, coronal, sagittal)]
    return smooth(fuse(*closed), opening=denoise, closing=denoise, erosion=erosion)
