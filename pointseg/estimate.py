"""What the labels of a few voxels tell of all: how large the classes are, and how good a prediction is.

Where a slice has a mask its voxels are counted.  Where it has points, three of them span a triangle, whose area is on
average a known share of their section's, whatever its size and nearly whatever its convex shape: 0.074 of an ellipse,
0.076 of a rectangle, 0.083 of a triangle (Blaschke 1917).  So points alone tell areas, without any prediction.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pointseg.kernels import confusion_matrix
from pointseg.points import SAGITTAL, Points, few_labels, is_whole
from pointseg.preprocess import Prepared
from pointseg.volume import BACKGROUND, CLASSES, UNLABELLED

TRIANGLE_SHARE = 0.08  # sections of vertebrae are a little hollow, which spreads points further apart


def stands_for(points: Points) -> np.ndarray:
    """How many voxels of its class each vertebra's point stands for, on its slice; 0 for the background's.   -> (N,)

    Places that chance has chosen have weights of their own, also in the background.

    A triangle tells the area of all three, and how to share it out: a point gets the more, the farther the *other two*
    lie apart.  Its own distance must not count, since a point far out is more often taken for background, and would
    then make that mistake look larger than it is.
    """
    if points.weights is not None:
        return points.weights
    whole, weights = in_whole_slices(points), np.zeros(len(points.values))
    weights[whole & (points.values != BACKGROUND)] = 1
    for k in range(BACKGROUND + 1, len(CLASSES)):
        of_class = np.flatnonzero((points.values == k) & ~whole)
        weights[of_class] = 1
        if len(of_class) < 3:
            continue  # too few to tell more
        area = 0.0
        for three in triples(points.places, of_class):
            a, b, c = points.places[three, :SAGITTAL].astype(float)  # (z, y) each
            weights[three] = [((b - c) ** 2).sum(), ((c - a) ** 2).sum(), ((a - b) ** 2).sum()]
            triangle = abs((b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0]) / 2
            slices = len(np.unique(points.places[three, SAGITTAL]))
            area += max(3, slices * triangle / TRIANGLE_SHARE)  # of as many voxels as points, at least
        weights[of_class] *= area / weights[of_class].sum()
    return weights


def triples(places: np.ndarray, chosen: np.ndarray) -> Iterator[np.ndarray]:
    """Chosen points of one class in groups of three of the same section.   places (N, 3) -> indices (3,) each.

    A slice may show two sections of a vertebra, so the point farthest out goes with the two nearest to it.  What a
    slice has beyond threes goes with what the next ones have: their sections are nearly the same.
    """
    rest: list[int] = []
    for x in np.unique(places[chosen, SAGITTAL]):
        here = chosen[places[chosen, SAGITTAL] == x].tolist()
        while len(here) >= 3:
            at = places[here, :SAGITTAL].astype(float)
            far = ((at - at.mean(0)) ** 2).sum(1).argmax()
            three = np.argsort(((at - at[far]) ** 2).sum(1), kind="stable")[:3]
            yield np.array(here)[three]
            here = np.delete(here, three).tolist()
        rest += here
        if len(rest) >= 3:
            yield np.array(rest[:3])
            rest = rest[3:]


def in_whole_slices(points: Points) -> np.ndarray:
    """Of each point whether its sagittal slice has a mask.   -> (N,) bool"""
    x = points.places[:, SAGITTAL]
    return is_whole(np.bincount(x, minlength=1), points.shape[0] * points.shape[1])[x]


def estimated_confusion(labelled: Prepared, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Voxels of each (true class, predicted class) on the labelled slices of a scan.   -> (K, K), rows truth.

    prediction (z, y, x) uint8 in the K classes that a model has; for two of them L1..L5 are one.  Counted where there
    is a mask.  From points: the vertebrae's rows are what their points stand for.  How much is predicted of each class
    is known, so what the vertebrae do not account for is the background's row: its own few points tell less.  Where
    chance has chosen the places, their weights tell all (Horvitz and Thompson 1952).
    """
    points = few_labels(labelled)
    if points is None:
        return confusion_matrix(known_truth(labelled.mask, num_classes), prediction, num_classes)
    truth, said = known_truth(points.values, num_classes), prediction[tuple(points.places.T)]
    confusion, whole = np.zeros((num_classes, num_classes)), in_whole_slices(points)
    np.add.at(confusion, (truth, said), stands_for(points))
    if points.weights is not None:  # each stands for its part of the scan, whatever it shows
        return confusion
    pointed = prediction[:, :, np.unique(points.places[~whole, SAGITTAL])]
    predicted = np.bincount(said[whole], minlength=num_classes) + np.bincount(pointed.ravel(), minlength=num_classes)
    confusion[BACKGROUND] = np.maximum(0, predicted - confusion.sum(0))
    return confusion


def class_voxels(labelled: Prepared) -> np.ndarray:
    """Voxels of each class on the labelled slices of a scan, counted or estimated.   -> (6,)"""
    return estimated_confusion(labelled, np.zeros(labelled.shape, np.uint8), len(CLASSES)).sum(1)


def known_truth(mask: np.ndarray, num_classes: int) -> np.ndarray:
    """Labels 0..5 or UNLABELLED in the classes that a model has: for two of them L1..L5 become one."""
    return mask if num_classes > 2 else np.where(mask == UNLABELLED, mask, mask != BACKGROUND).astype(np.uint8)


def tells_sizes(labelled: Prepared) -> bool:
    """Whether the labels of a scan's vertebrae are enough for their sizes, not one or two clicks in each."""
    points = few_labels(labelled)
    if points is None or points.weights is not None or in_whole_slices(points).any():
        return True
    counts = np.bincount(points.values, minlength=len(CLASSES))[1:]
    return counts.max() >= 3 or not counts.any()


def class_weights(labelled: Sequence[Prepared], num_classes: int, power: float) -> Tensor:
    """Weights that undo how labels are drawn: (share of voxels / share of labels) ** power.   -> (K,), mean 1.

    Five background points stand for far more pixels than three points in a vertebra.  Weighted by what each point
    stands for (power 1), the point loss estimates the full mask's cross-entropy; unweighted (power 0, the thesis's
    text) it lets vertebrae grow.  With masks all weights are 1, and where no scan tells the sizes of its classes.
    """
    def shares(counts: np.ndarray) -> np.ndarray:
        counts = np.array([counts[0], counts[1:].sum()]) if num_classes == 2 else counts
        return counts / counts.sum()

    labelled = [scan for scan in labelled if tells_sizes(scan)]
    if not labelled:
        return torch.ones(num_classes)
    voxels = shares(sum(class_voxels(scan) for scan in labelled))
    labels = shares(sum(np.bincount(few.values if (few := few_labels(scan)) else scan.mask.ravel(),
                                    minlength=UNLABELLED + 1)[:len(CLASSES)] for scan in labelled))
    ratio = np.divide(voxels, labels, out=np.zeros(num_classes), where=labels > 0)
    ratio[ratio == 0] = ratio[1:].max(initial=0) or 1.0  # a class that is missing there: as the other vertebrae
    weights = ratio**power
    return torch.tensor(weights / weights.mean(), dtype=torch.float32)
