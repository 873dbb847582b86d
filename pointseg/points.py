"""Point annotations, drawn from a mask as an expert would set them, and what they cost.

Thesis, "Annotation points".
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from pointseg.preprocess import Prepared
from pointseg.volume import BACKGROUND, UNLABELLED

POINTS_PER_INSTANCE, BACKGROUND_POINTS = 3, 5
FULL_MASK_S, POINTS_S, FURTHER_POINT_S = 239.7, 22.1, 0.9  # seconds an image; Bearman et al. 2016
FURTHER_POINTS = 6  # on an average slice of the thesis; at the sides it shows few vertebrae
GROW_SIGMA_MM = 1.5
SAGITTAL = 2


@dataclass(frozen=True)
class Points:
    """A scan and its labelled voxels: a thousandth of all, so only these are kept."""

    scan: Prepared
    places: np.ndarray  # (N, 3) int32, z y x
    values: np.ndarray  # (N,) uint8, 0..5

    @classmethod
    def of(cls, scan: Prepared, labels: np.ndarray) -> "Points":
        """labels (z, y, x) uint8, UNLABELLED but for the points"""
        known = labels != UNLABELLED
        return cls(scan, np.argwhere(known).astype(np.int32), labels[known])

    @property
    def labels(self) -> np.ndarray:
        """(z, y, x) uint8, UNLABELLED but for the points"""
        labels = np.full(self.scan.shape, UNLABELLED, np.uint8)
        labels[tuple(self.places.T)] = self.values
        return labels

    def along(self, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """Places (N, 3) with the axis first, slice by slice and row by row in each, and their values (N,)."""
        places = self.places[:, [axis, *(a for a in range(3) if a != axis)]]
        order = np.lexsort(places.T[::-1])
        return places[order], self.values[order]


def sample_points(mask: np.ndarray, rng: np.random.Generator, per_instance: int = POINTS_PER_INSTANCE,
                  background: int = BACKGROUND_POINTS) -> np.ndarray:
    """Random points on every sagittal slice: per_instance in each connected component of a class, and background.

    mask (z, y, x) uint8 0..5 or UNLABELLED -> labels (z, y, x) uint8, UNLABELLED but for the points.  The same points,
    seen along the other axes, label the transverse and coronal slices.  A component smaller than its points is labelled
    whole.
    """
    labels = np.full(mask.shape, UNLABELLED, np.uint8)
    for x in range(mask.shape[SAGITTAL]):
        plane = mask[:, :, x]
        _draw(labels[:, :, x], plane == BACKGROUND, BACKGROUND, background, rng)
        for k in np.unique(plane[(plane != BACKGROUND) & (plane != UNLABELLED)]):
            components, count = ndimage.label(plane == k)
            for c in range(1, count + 1):
                _draw(labels[:, :, x], components == c, k, per_instance, rng)
    return labels


def _draw(labels: np.ndarray, where: np.ndarray, value: int, count: int, rng: np.random.Generator) -> None:
    candidates = np.flatnonzero(where)
    chosen = rng.choice(candidates, min(count, len(candidates)), replace=False)
    labels[np.unravel_index(chosen, labels.shape)] = value


def grow_points(image: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """The baseline without learning: points flood the scan up to its edges, by a watershed of the gradient.

    image and labels (z, y, x), labels as from `sample_points` -> (z, y, x) uint8, 0..5.
    """
    edges = ndimage.gaussian_gradient_magnitude(image.astype(np.float32), np.divide(GROW_SIGMA_MM, spacing_mm))
    markers = np.where(labels == UNLABELLED, 0, labels.astype(np.int32) + 1)  # to the watershed 0 is "not known"
    return (watershed(edges, markers) - 1).astype(np.uint8)


def labelling_cost(further_points: float = FURTHER_POINTS) -> float:
    """Time to label an image with points as a share of the time for its full mask.   Bearman et al. 2016.

    22.1 s for an image with one point a class, and 0.9 s for each further point, against 239.7 s.
    """
    return (POINTS_S + FURTHER_POINT_S * further_points) / FULL_MASK_S


def mean_further_points(labels: np.ndarray) -> float:
    """Points beyond the first of each class on a sagittal slice: the mean over slices that show a vertebra.

    labels (z, y, x) as from `sample_points`.
    """
    counts = []
    for plane in np.moveaxis(labels, SAGITTAL, 0):
        points = plane[plane != UNLABELLED]
        if (points != BACKGROUND).any():
            counts.append(len(points) - len(np.unique(points)))
    return float(np.mean(counts)) if counts else 0.0
