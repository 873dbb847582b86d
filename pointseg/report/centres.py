"""Scores from the centres of vertebrae."""

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from pointseg.volume import BACKGROUND, CLASSES

IDENTIFIED_MM = 20.0


def identified(truth_mm: Mapping[int, np.ndarray], found_mm: Mapping[int, np.ndarray]) -> dict[int, float]:
    """How far each vertebra was found from where it is, in mm; inf where it was not identified.

    By level, the centres (z, y, x) in mm of the truth and of the prediction.  A vertebra is identified if its predicted
    centre lies within 20 mm of the true one and no other vertebra's true centre is nearer.   Glocker et al. 2012.
    """
    distances = dict.fromkeys(truth_mm, np.inf)
    for level in truth_mm.keys() & found_mm.keys():
        to = {other: float(np.linalg.norm(found_mm[level] - place)) for other, place in truth_mm.items()}
        if to[level] <= IDENTIFIED_MM and to[level] == min(to.values()):
            distances[level] = to[level]
    return distances


def centres_mm(labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> dict[int, np.ndarray]:
    """The centre (z, y, x) in mm of each of L1..L5 that is there: medians, which stray voxels hardly move.

    labels (z, y, x) uint8, spacing_mm (z, y, x).
    """
    centres = {}
    for k, box in enumerate(ndimage.find_objects(labels, len(CLASSES) - 1), start=BACKGROUND + 1):
        if box:
            middle = [_median(counts) for counts in plane_counts(labels[box] == k)]
            centres[k] = (middle + np.array([s.start for s in box])) * spacing_mm
    return centres


def _median(counts: np.ndarray) -> float:
    """The median of indices, each as often as its count says."""
    upto, half = np.cumsum(counts), counts.sum() / 2
    return (np.searchsorted(upto, half) + np.searchsorted(upto, half, side="right")) / 2


def plane_counts(where: np.ndarray) -> list[np.ndarray]:
    """Voxels in each plane along each axis: what indices of all voxels would tell, which take 24 times the memory."""
    return [np.count_nonzero(where, axis=tuple(np.delete(range(3), axis))) for axis in range(3)]
