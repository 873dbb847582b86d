"""Scores from a confusion matrix pooled over all voxels of all scans, and from centres.   Thesis, "Metrics"."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from pointseg.volume import BACKGROUND, CLASSES, plane_counts

IDENTIFIED_MM = 20.0


@dataclass(frozen=True)
class ClassScores:
    """Per class (K,); nan where a class is absent from truth and prediction."""

    precision: np.ndarray
    recall: np.ndarray
    dice: np.ndarray
    iou: np.ndarray
    voxels: np.ndarray  # of the true class


def per_class(confusion: np.ndarray) -> ClassScores:
    """Precision, recall, Dice and IoU of each class.   confusion (K, K), rows truth, columns prediction."""
    hits, truth, predicted = np.diag(confusion).astype(float), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ClassScores(precision=hits / predicted, recall=hits / truth, dice=2 * hits / (truth + predicted),
                           iou=hits / (truth + predicted - hits), voxels=truth)


def weighted_dice(confusion: np.ndarray) -> float:
    """Dice_wi: the mean of the classes' Dice, each weighted by 1 / A_m, A_m its true voxels.   Thesis eq. 5.

    A class that is absent from the truth has A_m = 0 and no weight: it is left out of both sums (see `absent_classes`).
    nan where no class is present.
    """
    scores = per_class(confusion)
    present = scores.voxels > 0
    weights = 1 / scores.voxels[present]
    return float((scores.dice[present] * weights).sum() / weights.sum()) if present.any() else float("nan")


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


def absent_classes(confusion: np.ndarray) -> list[int]:
    """Classes without a true voxel, which `weighted_dice` leaves out."""
    return np.flatnonzero(confusion.sum(1) == 0).tolist()
