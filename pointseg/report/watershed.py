"""The baseline without learning: points that flood the scan."""

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from pointseg.points import Points
from pointseg.preprocess import Prepared
from pointseg.report.scores import one_hot
from pointseg.volume import CLASSES, UNLABELLED

GROW_SIGMA_MM = 1.5


def grow_points(image: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Points flood the scan up to its edges, by a watershed of the gradient.

    image and labels (z, y, x), labels as from `sample_points` -> (z, y, x) uint8, 0..5.
    """
    edges = ndimage.gaussian_gradient_magnitude(image.astype(np.float32), np.divide(GROW_SIGMA_MM, spacing_mm))
    markers = np.where(labels == UNLABELLED, 0, labels.astype(np.int32) + 1)  # to the watershed 0 is "not known"
    return (watershed(edges, markers) - 1).astype(np.uint8)


def grown(points: Points, scan: Prepared) -> np.ndarray:
    """The points of a scan without any learning, as class scores."""
    return one_hot(grow_points(scan.image, points.mask, scan.spacing_mm), len(CLASSES))
