"""Three predictions of one scan -> a pseudo mask.   Thesis, "Volume combination procedure".

Class i where the transverse model says vertebra and the sagittal and coronal models both say i: their labels decide,
not their probabilities.  Smoothing uses the 3 x 3 x 3 cube (rank 3, connectivity 3): closing of each prediction,
fusion, opening, closing, erosion.
"""

import numpy as np
from scipy import ndimage

from pointseg.volume import BACKGROUND

CUBE = ndimage.generate_binary_structure(3, 3)
LOWEST_BIT = np.array([0, *((b & -b).bit_length() - 1 for b in range(1, 256))], np.uint8)  # of each byte


def fuse(transverse: np.ndarray, coronal: np.ndarray, sagittal: np.ndarray) -> np.ndarray:
    """Label volumes (z, y, x) uint8, transverse 0/1, the others 0..5 -> (z, y, x) uint8, 0..5."""
    agreed = (transverse != BACKGROUND) & (coronal == sagittal)
    return np.where(agreed, sagittal, BACKGROUND).astype(np.uint8)


def smooth(labels: np.ndarray, opening: int = 0, closing: int = 0, erosion: int = 0) -> np.ndarray:
    """Morphology on each class of a label volume: opening, closing and erosion, each that many times.

    The classes stay apart: where closings of two classes meet, the voxel keeps its own label, else the lower class's.
    Beyond the edge of the volume its outermost labels are repeated.   labels (z, y, x) uint8, 0..7 -> the same.

    A byte has room for a bit a class, so that one OR or AND of neighbours dilates or erodes all classes at once; and
    the cube is three rods, so three neighbours along each axis in turn do for its 27.
    """
    reach = 2 * opening + 2 * closing + erosion  # how far a voxel beyond the edge can matter
    found = ndimage.find_objects((labels != BACKGROUND).view(np.uint8))
    if not found:
        return np.zeros_like(labels)
    # Around all that is labelled as much room as a closing can fill, and one layer that is surely background.
    box = tuple(slice(max(0, s.start - closing - 1), s.stop + closing + 1) for s in found[0])
    own = labels[box]
    bits = np.left_shift(1, np.pad(own, reach, mode="edge"), dtype=np.uint8)
    bits &= ~np.uint8(1 << BACKGROUND)
    for operation, times in ((np.bitwise_and, opening), (np.bitwise_or, opening + closing),
                             (np.bitwise_and, closing + erosion)):
        bits = _join_neighbours(bits, operation, times)
    bits = bits[tuple(slice(reach, reach + n) for n in own.shape)]
    kept = np.where((bits >> own) & 1, own, BACKGROUND)  # a closing may not take another class's voxels
    out = np.zeros_like(labels)
    out[box] = np.where(own == BACKGROUND, LOWEST_BIT[bits], kept)
    return out


def _join_neighbours(bits: np.ndarray, operation: np.ufunc, times: int) -> np.ndarray:
    """Join each voxel with its 26 neighbours, so many times; beyond the edge there are none."""
    for axis in range(3):
        for _ in range(times):
            moved = np.moveaxis(bits, axis, 0)
            joined = moved.copy()
            operation(joined[1:], moved[:-1], out=joined[1:])
            operation(joined[:-1], moved[1:], out=joined[:-1])
            bits = np.moveaxis(joined, 0, axis)
    return bits


def pseudo_mask(transverse: np.ndarray, coronal: np.ndarray, sagittal: np.ndarray, denoise: int,
                erosion: int) -> np.ndarray:
    """Close each prediction, fuse, open, close, erode.   Label volumes (z, y, x) -> (z, y, x) uint8, 0..5.

    denoise: how often to open and to close; erosion: how often to erode.
    """
    closed = [smooth(p, closing=denoise) for p in (transverse, coronal, sagittal)]
    return smooth(fuse(*closed), opening=denoise, closing=denoise, erosion=erosion)
