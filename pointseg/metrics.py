"""Scores from a confusion matrix pooled over all voxels of all scans.   Thesis, "Metrics"."""

from dataclasses import dataclass

import numpy as np


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

    A class that is absent from the truth has A_m = 0 and no weight: it is left out of both sums.
    nan where no class is present.
    """
    scores = per_class(confusion)
    present = scores.voxels > 0
    weights = 1 / scores.voxels[present]
    return float((scores.dice[present] * weights).sum() / weights.sum()) if present.any() else float("nan")
