"""Every Numba loop of the package: arrays in, arrays out.

Each kernel has a NumPy twin in `tests/test_kernels.py` that it must equal.  Loops are written out because the NumPy way
needs temporaries many times the size of the result; threads share the outermost axis, and compiled code is cached.
"""

import numba
import numpy as np
from numba import njit, prange

# Numba's OpenMP layer would share torch's threads and reset their number, and with it the order of torch's sums.
numba.config.THREADING_LAYER = "workqueue"
UNLABELLED = 255


def max_distance(points: np.ndarray, shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Distance in mm from every pixel to the *farthest* of the points: max over p of |q - p|.   Thesis eq. 3.

    points (N, D) in pixels, shape and spacing_mm of length D = 2 or 3 -> (*shape) float32; 0 where there is no point.
    """
    field = np.zeros((1,) * (3 - len(shape)) + tuple(shape), np.float32)
    _max_distance(_as_3d(points, len(shape)), _spacing_3d(spacing_mm), field)
    return field.reshape(shape)


def extent_mask(
    points: np.ndarray, shape: tuple[int, ...], spacing_mm: tuple[float, ...], radius_mm: float
) -> np.ndarray:
    """True where the farthest point is closer than radius_mm, an intersection of balls: max_distance(...) < radius_mm.

    points (N, D) in pixels -> (*shape) bool; all True where there is no point, since nothing is known there.
    No distance is computed: a ball meets a row in an interval, and an intersection of intervals is an interval.
    """
    mask = np.zeros((1,) * (3 - len(shape)) + tuple(shape), np.bool_)
    _extent_mask(_as_3d(points, len(shape)), _spacing_3d(spacing_mm), float(radius_mm), mask)
    return mask.reshape(shape)


def reassemble(crops: np.ndarray, corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Mean of overlapping crops of one slice, put back in their places.

    crops (N, K, h, w) float32, corners (N, 2) the row and column of each crop's first pixel in the slice, negative
    where the crop was padded -> (K, *shape) float32; 0 where no crop lies.
    """
    out = np.zeros((crops.shape[1], *shape), np.float32)
    _reassemble(np.ascontiguousarray(crops, np.float32), np.ascontiguousarray(corners, np.int64), out)
    return out


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts of (true class, predicted class).   uint8 arrays of one shape -> (K, K) int64, rows truth.

    Voxels whose truth is UNLABELLED are passed over; any other value outside 0..K-1 is a ValueError.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
    if truth.dtype != np.uint8 or prediction.dtype != np.uint8:
        raise ValueError(f"uint8 labels expected, found {truth.dtype} and {prediction.dtype}")
    counts = _joint_histogram(truth.reshape(-1), prediction.reshape(-1), num_classes)
    outside = counts.sum() - counts[:-1, :-1].sum()
    if outside:
        raise ValueError(f"{outside} voxels hold a label outside 0..{num_classes - 1}")
    return counts[:-1, :-1].copy()


def resample_argmax(scores: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The class of highest score on a grid of another shape over the same field of view.

    scores (K, z, y, x) float32, interpolated linearly between voxel centres -> (*shape) uint8.  The first of equal
    classes wins.  Interpolating and deciding in one pass needs no (K, *shape) temporary: 6 GB for a large CT.
    """
    out = np.empty(shape, np.uint8)
    _resample_argmax(np.ascontiguousarray(np.moveaxis(scores, 0, -1), np.float32), out)
    return out


def _as_3d(points: np.ndarray, dimensions: int) -> np.ndarray:
    points = np.asarray(points, np.float64).reshape(-1, dimensions)
    return np.concatenate([np.zeros((len(points), 3 - dimensions)), points], 1)


def _spacing_3d(spacing_mm: tuple[float, ...]) -> np.ndarray:
    return np.array((1.0,) * (3 - len(spacing_mm)) + tuple(spacing_mm), np.float64)


@njit(parallel=True, cache=True)
def _max_distance(points, spacing, field):
    depth, height, width = field.shape
    for row in prange(depth * height):
        z, y = row // height, row % height
        for x in range(width):
            farthest = 0.0
            for p in range(points.shape[0]):
                dz = (points[p, 0] - z) * spacing[0]
                dy = (points[p, 1] - y) * spacing[1]
                dx = (points[p, 2] - x) * spacing[2]
                farthest = max(farthest, dz * dz + dy * dy + dx * dx)
            field[z, y, x] = np.sqrt(farthest)


@njit(parallel=True, cache=True)
def _extent_mask(points, spacing, radius, mask):
    depth, height, width = mask.shape
    for row in prange(depth * height):
        z, y = row // height, row % height
        first, last = 0, width - 1
        for p in range(points.shape[0]):
            dz = (points[p, 0] - z) * spacing[0]
            dy = (points[p, 1] - y) * spacing[1]
            rest = radius * radius - dz * dz - dy * dy
            if rest <= 0:
                last = -1
                break
            half = np.sqrt(rest) / spacing[2]  # strictly inside: the pixel at exactly the radius is out
            first = max(first, int(np.floor(points[p, 2] - half)) + 1)
            last = min(last, int(np.ceil(points[p, 2] + half)) - 1)
        for x in range(first, last + 1):
            mask[z, y, x] = True


@njit(parallel=True, cache=True)
def _reassemble(crops, corners, out):
    classes, height, width = out.shape
    for y in prange(height):
        hits = np.zeros(width, np.float32)
        for n in range(crops.shape[0]):
            row, column = y - corners[n, 0], corners[n, 1]
            if 0 <= row < crops.shape[2]:
                first, last = max(0, column), min(width, column + crops.shape[3])
                for x in range(first, last):
                    hits[x] += 1
                for k in range(classes):
                    for x in range(first, last):
                        out[k, y, x] += crops[n, k, row, x - column]
        for k in range(classes):
            for x in range(width):
                if hits[x] > 1:
                    out[k, y, x] /= hits[x]


@njit(parallel=True, cache=True)
def _joint_histogram(truth, prediction, num_classes):
    chunks = 64
    size = (truth.size + chunks - 1) // chunks
    # A table for each chunk, so that threads never write to the same one; its last row and column collect bad labels.
    counts = np.zeros((chunks, num_classes + 1, num_classes + 1), np.int64)
    for c in prange(chunks):
        for i in range(c * size, min((c + 1) * size, truth.size)):
            if truth[i] != UNLABELLED:
                counts[c, min(truth[i], num_classes), min(prediction[i], num_classes)] += 1
    return counts.sum(0)


@njit(parallel=True, cache=True)
def _resample_argmax(scores, out):
    classes = scores.shape[3]
    for z in prange(out.shape[0]):
        total = np.empty(classes, np.float32)
        z0, z1, fz = _neighbours(z, out.shape[0], scores.shape[0])
        for y in range(out.shape[1]):
            y0, y1, fy = _neighbours(y, out.shape[1], scores.shape[1])
            for x in range(out.shape[2]):
                x0, x1, fx = _neighbours(x, out.shape[2], scores.shape[2])
                for k in range(classes):
                    near = (1 - fy) * ((1 - fx) * scores[z0, y0, x0, k] + fx * scores[z0, y0, x1, k]) + fy * (
                        (1 - fx) * scores[z0, y1, x0, k] + fx * scores[z0, y1, x1, k])
                    far = (1 - fy) * ((1 - fx) * scores[z1, y0, x0, k] + fx * scores[z1, y0, x1, k]) + fy * (
                        (1 - fx) * scores[z1, y1, x0, k] + fx * scores[z1, y1, x1, k])
                    total[k] = (1 - fz) * near + fz * far
                out[z, y, x] = np.argmax(total)


@njit(cache=True, inline="always")
def _neighbours(i, n_out, n_in):
    """The two input samples around output sample i, and the weight of the second; both grids cover the same length."""
    at = min(max((i + 0.5) * n_in / n_out - 0.5, 0.0), n_in - 1.0)
    low = int(at)
    return low, min(low + 1, n_in - 1), np.float32(at - low)
