"""Every Numba loop of the package: arrays in, arrays out.

Each kernel has a NumPy twin in `tests/test_kernels.py` that it must equal.  Loops are written out because the NumPy way
needs temporaries many times the size of the result.  Compiled code is kept.  Threads share the outermost axis where
there is a millisecond of work or more: to wake them takes a tenth of that.  `tests/bench_kernels.py` times all of it.
"""

from collections.abc import Iterable
from contextlib import suppress

import numba
import numpy as np
from numba import prange
from scipy.spatial import ConvexHull, QhullError

from pointseg.compiled import jit
from pointseg.volume import UNLABELLED

# Numba's OpenMP layer would share torch's threads and reset their number, and with it the order of torch's sums.
numba.config.THREADING_LAYER = "workqueue"
LARGE = 1 << 20  # voxels of a field from which threads, and a hull around its points, are worth their start
CHUNKS = 64  # of the voxels to count; each has its own table, so that no two threads write to the same one
CLAHE_LEVELS = 1 << 14  # grey levels that scikit-image's CLAHE works on


# --- the farthest point ---

def max_distance(points: np.ndarray, shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Distance in mm from every pixel to the *farthest* of the points: max over p of |q - p|.   Thesis eq. 3.

    points (N, D) in pixels, shape and spacing_mm of length D = 2 or 3 -> (*shape) float32; 0 where there is no point.

    Along a row, |q - p|^2 is x^2, the same for all points, plus a straight line in x.  The maximum of lines is made of
    pieces, one point each, and from left to right the points of the pieces go from right to left.  So a row costs a
    visit to each point and one to each pixel, not one to each pair of them.
    """
    field = np.empty((1,) * (3 - len(shape)) + tuple(shape), np.float32)
    points = _as_3d(_corners_of_hull(points, shape), len(shape))
    points = points[np.argsort(-points[:, 2], kind="stable")]
    fill = _max_distance_threaded if field.size > LARGE else _max_distance
    fill(points, _spacing_3d(spacing_mm), field)
    return field.reshape(shape)


def extent_mask(
    points: np.ndarray, shape: tuple[int, ...], spacing_mm: tuple[float, ...], radius_mm: float
) -> np.ndarray:
    """True where the farthest point is closer than radius_mm, an intersection of balls: max_distance(...) < radius_mm.

    points (N, D) in pixels -> (*shape) bool; all True where there is no point, since nothing is known there.
    """
    points = _corners_of_hull(points, shape)
    return extent_masks(points, np.zeros(len(points), np.int64), 1, shape, spacing_mm, radius_mm)[0]


def extent_masks(points: np.ndarray, classes: np.ndarray, num_classes: int, shape: tuple[int, ...],
                 spacing_mm: tuple[float, ...], radius_mm: float | tuple[float, ...]) -> np.ndarray:
    """`extent_mask` of the points of each class.   points (N, D) in pixels, classes (N,) 0..K-1 -> (K, *shape) bool.

    radius_mm: one, or one for each of the K classes.

    No distance is computed: a ball meets a row in an interval, and an intersection of intervals is an interval.  So a
    row costs a square root a point, and then only its True pixels are written: threads would not make that faster.
    """
    masks = np.zeros((num_classes,) + (1,) * (3 - len(shape)) + tuple(shape), np.bool_)
    _extent_masks(_as_3d(points, len(shape)), np.asarray(classes, np.int64), _spacing_3d(spacing_mm),
                  np.broadcast_to(np.asarray(radius_mm, float), num_classes).copy(), masks)
    return masks.reshape(num_classes, *shape)


def _corners_of_hull(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The points that can be farthest from anywhere: the corners of their convex hull.   (N, D) -> (M, D) float64.

    Qhull takes a fraction of a millisecond, so only where many points meet a large volume.
    """
    points = np.asarray(points, np.float64).reshape(-1, len(shape))
    if len(points) > 8 and len(shape) > 1 and np.prod(shape) > LARGE:
        with suppress(QhullError):  # all in one plane
            points = points[ConvexHull(points).vertices]
    return points


def _as_3d(points: np.ndarray, dimensions: int) -> np.ndarray:
    out = np.zeros((np.size(points) // dimensions, 3))
    out[:, 3 - dimensions :] = points
    return out


def _spacing_3d(spacing_mm: tuple[float, ...]) -> np.ndarray:
    return np.array((1.0,) * (3 - len(spacing_mm)) + tuple(spacing_mm), np.float64)


@jit()
def _max_distance(points, spacing, field):
    for row in range(field.shape[0] * field.shape[1]):
        _farthest_along(points, spacing, row // field.shape[1], row % field.shape[1], field)


@jit(parallel=True)
def _max_distance_threaded(points, spacing, field):
    for row in prange(field.shape[0] * field.shape[1]):
        _farthest_along(points, spacing, row // field.shape[1], row % field.shape[1], field)


@jit()
def _farthest_along(points, spacing, z, y, field):
    """One row of the field, from points in the order of falling x."""
    width = field.shape[2]
    at, away = np.empty(len(points)), np.empty(len(points))  # of each piece: its point's x, and that point's squared
    start, pieces = np.empty(len(points) + 1), 0  # distance from the row; where the piece begins
    for p in range(len(points)):
        x = points[p, 2]
        across = ((points[p, 0] - z) * spacing[0]) ** 2 + ((points[p, 1] - y) * spacing[1]) ** 2
        begin = 0.0
        while pieces > 0:
            last = pieces - 1
            if at[last] > x:  # where the two lines cross; further right, the point further left is farther
                begin = ((away[last] - across) / spacing[2] ** 2 + at[last] ** 2 - x**2) / (2 * (at[last] - x))
            else:  # the same x: one of the two is farther everywhere
                begin = np.inf if across <= away[last] else -np.inf
            if begin > start[last]:
                break
            pieces, begin = last, 0.0  # the last piece would begin behind its end: it is never the farthest
        if begin < width:
            at[pieces], away[pieces], start[pieces] = x, across, begin
            pieces += 1
    start[pieces] = width
    if pieces == 0:
        field[z, y] = 0
    for i in range(pieces):
        for q in range(np.uint64(np.ceil(start[i])), np.uint64(np.ceil(start[i + 1]))):
            field[z, y, q] = np.sqrt(np.float32(away[i] + ((q - at[i]) * spacing[2]) ** 2))


@jit(nogil=True)
def _extent_masks(points, classes, spacing, radii, masks):
    num_classes, depth, height, width = masks.shape
    per_mm = 1 / spacing
    for plane in range(num_classes * depth):
        k, z = plane // depth, plane % depth
        radius = radii[k]
        top, bottom = -1.0, float(height)  # between these two, exclusive, lie the rows that meet every ball
        for p in range(len(points)):
            if classes[p] == k:
                rest = max(radius**2 - ((points[p, 0] - z) * spacing[0]) ** 2, 0.0)
                half = np.sqrt(rest) * per_mm[1]
                top, bottom = max(top, points[p, 1] - half), min(bottom, points[p, 1] + half)
        first = int(np.floor(top)) + 1
        rows = max(0, int(np.ceil(bottom)) - first)
        left, right = np.full(rows, -1.0), np.full(rows, float(width))  # likewise along each row: an open interval,
        for p in range(len(points)):                                    # so a pixel at exactly the radius is out
            if classes[p] == k:
                rest = radius**2 - ((points[p, 0] - z) * spacing[0]) ** 2
                y0, x0 = points[p, 1] - first, points[p, 2]
                for y in range(rows):  # written so that the compiler takes eight rows at a time
                    half = np.sqrt(max(rest - ((y0 - y) * spacing[1]) ** 2, 0.0)) * per_mm[2]
                    left[y] = x0 - half if x0 - half > left[y] else left[y]
                    right[y] = x0 + half if x0 + half < right[y] else right[y]
        for y in range(rows):
            masks[k, z, first + y, int(np.floor(left[y])) + 1 : max(0, int(np.ceil(right[y])))] = True


# --- crops back into slices ---

def reassemble(crops: np.ndarray, corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Mean of overlapping crops of one slice, put back in their places.

    crops (N, K, h, w) float32, corners (N, 2) the row and column of each crop's first pixel in the slice, negative
    where the crop was padded -> (K, *shape) float32; 0 where no crop lies.
    """
    out = np.zeros((crops.shape[1], *shape), np.float32)
    _reassemble(np.ascontiguousarray(crops, np.float32), np.ascontiguousarray(corners, np.int64), out)
    return out


def reassemble_labels(crops: np.ndarray, corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The class of the highest mean where crops of slices overlap.   crops (S, N, K, h, w) -> (S, *shape) uint8.

    As `reassemble` and then argmax, 0 where no crop lies.  The sums of one row are all that is kept on the way; their
    argmax is that of the means.  The first of equal classes wins.
    """
    out = np.zeros((len(crops), *shape), np.uint8)
    _reassemble_labels(np.ascontiguousarray(crops, np.float32), np.ascontiguousarray(corners, np.int64), out)
    return out


@jit()
def _reassemble(crops, corners, out):
    classes, height, width = out.shape
    for y in range(height):
        hits = np.zeros(width, np.float32)
        for n in range(crops.shape[0]):
            row, first, last = _meets(y, corners[n], crops.shape[2:], width)
            hits[first:last] += 1
            for k in range(classes):
                _add(out[k, y, first:last], crops[n, k, row, first - corners[n, 1] :])
        for k in range(classes):
            for x in range(width):
                out[k, y, x] /= max(hits[x], np.float32(1))


@jit(parallel=True)
def _reassemble_labels(crops, corners, out):
    slices, height, width = out.shape
    for line in prange(slices * height):
        s, y = line // height, line % height
        sums, best = np.zeros((crops.shape[2], width), np.float32), np.empty(width, np.float32)
        for n in range(crops.shape[1]):
            row, first, last = _meets(y, corners[n], crops.shape[3:], width)
            for k in range(crops.shape[2]):
                _add(sums[k, first:last], crops[s, n, k, row, first - corners[n, 1] :])
        _argmax(sums, best, out[s, y])


@jit(inline="always")
def _meets(y, corner, size, width):
    """The crop's row that lies on row y of the slice, and the columns it covers: none where it misses that row."""
    row, first = y - corner[0], max(0, corner[1])
    last = min(width, corner[1] + size[1]) if 0 <= row < size[0] else first
    return row, first, max(first, last)


@jit(inline="always")
def _add(total, values):
    for i in range(len(total)):
        total[i] += values[i]


@jit(inline="always")
def _argmax(scores, best, out):
    """out[x] = argmax over k of scores[k, x], class by class, so that the compiler takes many pixels at a time."""
    best[:], out[:] = scores[0], 0
    for k in range(1, len(scores)):
        for x in range(len(out)):
            out[x] = k if scores[k, x] > best[x] else out[x]
            best[x] = max(scores[k, x], best[x])


# --- counting ---

def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts of (true class, predicted class).   uint8 arrays of one shape -> (K, K) int64, rows truth.

    Voxels whose truth is UNLABELLED are passed over; any other value outside 0..K-1 is a ValueError.

    Eight voxels are one 64-bit word, and most words of a label volume hold one label, so eight words that agree are
    counted at once.  Other voxels take turns in four tables: an addition need not wait for the one before.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
    if truth.dtype != np.uint8 or prediction.dtype != np.uint8:
        raise ValueError(f"uint8 labels expected, found {truth.dtype} and {prediction.dtype}")
    t, p = np.ascontiguousarray(truth).reshape(-1), np.ascontiguousarray(prediction).reshape(-1)
    whole = t.size // 64 * 64 if t.ctypes.data % 8 == p.ctypes.data % 8 == 0 else 0
    counts = np.zeros((256, 256), np.int64)
    tables, seen = np.zeros((CHUNKS, 4, 64), np.int64), np.zeros(CHUNKS, np.uint64)
    _count_words(t[:whole].view(np.uint64), p[:whole].view(np.uint64), tables, seen)
    if seen.view(np.uint8).max() < 8:
        counts[:8, :8] = tables.sum((0, 1)).reshape(8, 8)
    else:  # unlabelled voxels, or more than 8 classes
        whole = 0
    _count(t[whole:], p[whole:], counts)
    outside = counts[:UNLABELLED].sum() - counts[:num_classes, :num_classes].sum()
    if outside:
        raise ValueError(f"{outside} voxels hold a label outside 0..{num_classes - 1}")
    return counts[:num_classes, :num_classes].copy()


@jit()
def _count(truth, prediction, counts):
    for i in range(truth.size):
        counts[truth[i], prediction[i]] += 1


@jit(parallel=True)
def _count_words(truth, prediction, tables, seen):
    """Counts of labels 0..7 in a table for each chunk, and the bits that occur in any label: more make counts void."""
    each, three, seven = np.uint64(0x0101010101010101), np.uint64(3), np.uint64(7)
    size = (truth.size // 8 + CHUNKS - 1) // CHUNKS * 8
    for c in prange(CHUNKS):
        bits = np.uint64(0)
        for first in range(np.uint64(c * size), np.uint64(min((c + 1) * size, truth.size)), np.uint64(8)):
            t, p = (truth[first] & np.uint64(255)) * each, (prediction[first] & np.uint64(255)) * each
            differ = np.uint64(0)
            for i in range(first, first + np.uint64(8)):
                differ |= (truth[i] ^ t) | (prediction[i] ^ p)
            if differ == 0:
                tables[c, 0, (t & seven) << three | (p & seven)] += 64
                bits |= t | p
                continue
            for i in range(first, first + np.uint64(8)):
                pairs = truth[i] << three | prediction[i]
                bits |= truth[i] | prediction[i]
                for byte in range(8):
                    tables[c, byte % 4, pairs >> np.uint64(8 * byte) & np.uint64(63)] += 1
        seen[c] = bits


# --- scores onto another grid ---

def resample_argmax(scores: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The class of highest score on a grid of another shape over the same field of view.

    scores (K, z, y, x) float32, interpolated linearly between voxel centres -> (*shape) uint8.  The first of equal
    classes wins.
    """
    return argmax_of_planes(np.moveaxis(scores, 1, 0), scores.shape[1], shape)


def argmax_of_planes(planes: Iterable[np.ndarray], count: int, shape: tuple[int, int, int]) -> np.ndarray:
    """`resample_argmax` of `count` planes (K, h, w) that come one after the other.   -> (*shape) uint8.

    Each plane is interpolated to its new height and width, and meets the one before: two planes are all that is kept,
    where the scores of a large CT would be 6 GB.
    """
    out = np.empty(shape, np.uint8)
    at = np.clip((np.arange(shape[0]) + 0.5) * count / shape[0] - 0.5, 0, count - 1)
    before = None
    for i, plane in enumerate(planes):
        wide = np.empty((len(plane), *shape[1:]), np.float32)
        _resize(np.ascontiguousarray(plane, np.float32), wide)
        for j in np.flatnonzero((at >= i - 1) & (at < i)):
            _blend_argmax(before, wide, np.float32(at[j] - (i - 1)), out[j])
        before = wide
    for j in np.flatnonzero(at == count - 1):
        _blend_argmax(before, before, np.float32(0), out[j])
    return out


@jit(parallel=True)
def _resize(scores, out):
    classes, height, width = scores.shape
    x0, x1 = np.empty(out.shape[2], np.int64), np.empty(out.shape[2], np.int64)
    fx = np.empty(out.shape[2], np.float32)
    for x in range(out.shape[2]):
        x0[x], x1[x], fx[x] = _neighbours(x, out.shape[2], width)
    for y in prange(out.shape[1]):
        y0, y1, fy = _neighbours(y, out.shape[1], height)
        row = np.empty(width, np.float32)
        for k in range(classes):
            for x in range(width):
                row[x] = _between(scores[k, y0, x], scores[k, y1, x], fy)
            for x in range(out.shape[2]):
                out[k, y, x] = _between(row[x0[x]], row[x1[x]], fx[x])


@jit(parallel=True)
def _blend_argmax(low, high, weight, out):
    classes, height, width = low.shape
    for y in prange(height):
        scores, best = np.empty((classes, width), np.float32), np.empty(width, np.float32)
        for k in range(classes):
            for x in range(width):
                scores[k, x] = _between(low[k, y, x], high[k, y, x], weight)
        _argmax(scores, best, out[y])


@jit(inline="always")
def _neighbours(i, n_out, n_in):
    """The two input samples around output sample i, and the weight of the second; both grids cover the same length."""
    at = min(max((i + 0.5) * n_in / n_out - 0.5, 0.0), n_in - 1.0)
    low = int(at)
    return low, min(low + 1, n_in - 1), np.float32(at - low)


@jit(inline="always")
def _between(low, high, weight):
    return (np.float32(1) - weight) * low + weight * high


# --- slices for training ---

def sample_stack(stack: np.ndarray, matrix: np.ndarray, offset: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """A slice and its neighbours, moved by an affine map: pixel q of the result lies at matrix q + offset.

    stack (C, H, W) uint8; table (256,) float32: the intensity that each grey level becomes -> out (C, h, w) float32, in
    place, bilinear, 0 outside the slice.
    """
    _sample_stack(stack, matrix, offset, table, out)


def sample_labels(labels: np.ndarray, matrix: np.ndarray, offset: np.ndarray, out: np.ndarray) -> None:
    """Labels (H, W) uint8 moved likewise, by nearest neighbour -> out (h, w), in place; UNLABELLED outside."""
    _sample_labels(labels, matrix, offset, out)


@jit(nogil=True)
def _sample_stack(stack, matrix, offset, table, out):
    channels, height, width = stack.shape
    one, nothing = np.float32(1), np.float32(0)
    for row in range(out.shape[1]):
        for column in range(out.shape[2]):
            y = matrix[0, 0] * row + matrix[0, 1] * column + offset[0]
            x = matrix[1, 0] * row + matrix[1, 1] * column + offset[1]
            if not (-1 < y < height and -1 < x < width):
                out[:, row, column] = 0
                continue
            y0, x0 = int(np.floor(y)), int(np.floor(x))
            fy, fx = np.float32(y - y0), np.float32(x - x0)
            upper, lower = nothing if y0 < 0 else one - fy, nothing if y0 == height - 1 else fy
            left, right = nothing if x0 < 0 else one - fx, nothing if x0 == width - 1 else fx
            v0, v1 = np.uint64(max(0, y0)), np.uint64(min(height - 1, y0 + 1))
            u0, u1 = np.uint64(max(0, x0)), np.uint64(min(width - 1, x0 + 1))
            for channel in range(channels):
                above = left * table[stack[channel, v0, u0]] + right * table[stack[channel, v0, u1]]
                below = left * table[stack[channel, v1, u0]] + right * table[stack[channel, v1, u1]]
                out[channel, row, column] = upper * above + lower * below


@jit(nogil=True)
def _sample_labels(labels, matrix, offset, out):
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            y = int(np.rint(matrix[0, 0] * row + matrix[0, 1] * column + offset[0]))
            x = int(np.rint(matrix[1, 0] * row + matrix[1, 1] * column + offset[1]))
            inside = 0 <= y < labels.shape[0] and 0 <= x < labels.shape[1]
            out[row, column] = labels[y, x] if inside else UNLABELLED


# --- equalisation ---

def clahe(image: np.ndarray, kernel: tuple[int, int], clip: float, bins: int) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation of each slice along the last axis, stretched to its own range.

    image (z, y, x) in [0, 1], kernel (z, y) in pixels -> uint8.   Zuiderveld 1994, step by step as
    `skimage.exposure.equalize_adapthist` and equal to it; but a slice is read in place and its blocks are not copied.
    """
    out = np.zeros(image.shape, np.uint8)
    limit = max(1, int(clip * kernel[0] * kernel[1]))
    _clahe(image, np.array(kernel, np.int64), limit, bins, out)
    return out


@jit(parallel=True)
def _clahe(image, kernel, limit, bins, out):
    height, width, slices = image.shape
    (kh, kw), wide = kernel, 1 + CLAHE_LEVELS // bins  # grey levels a bin
    down, across = (height + kh - 1) // kh, (width + kw - 1) // kw  # blocks; the last ones are filled by reflection
    for s in prange(slices):
        plane = np.rint(image[:, :, s] * np.float32(65535))
        low, high = plane.min(), plane.max()
        if low == high:  # a constant slice has no contrast to equalise
            continue
        level = np.empty((height, width), np.uint8)
        for y in range(height):
            for x in range(width):
                level[y, x] = np.rint((plane[y, x] - low) / np.float64(high - low) * (CLAHE_LEVELS - 1)) // wide
        maps = np.zeros((down, across, bins), np.int64)
        for y in range(down * kh):
            for x in range(across * kw):
                maps[y // kh, x // kw, level[_reflect(y, height), _reflect(x, width)]] += 1
        for i in range(down):
            for j in range(across):
                _clip_histogram(maps[i, j], limit)
                total = 0
                for b in range(bins):
                    total += maps[i, j, b]
                    maps[i, j, b] = min(int(total * ((CLAHE_LEVELS - 1) / (kh * kw))), CLAHE_LEVELS - 1)
        for y in range(height):  # between the middles of four blocks, their maps are interpolated
            i, fy = (y + kh // 2) // kh, (y + kh // 2) % kh / kh
            i0, i1 = max(i - 1, 0), min(i, down - 1)
            for x in range(width):
                j, fx = (x + kw // 2) // kw, (x + kw // 2) % kw / kw
                j0, j1, b = max(j - 1, 0), min(j, across - 1), level[y, x]
                value = np.float32(maps[i0, j0, b] * ((1 - fx) * (1 - fy)))
                value += np.float32(maps[i0, j1, b] * (fx * (1 - fy)))
                value += np.float32(maps[i1, j0, b] * ((1 - fx) * fy))
                value += np.float32(maps[i1, j1, b] * (fx * fy))
                plane[y, x] = np.floor(value)
        low, high = plane.min(), plane.max()
        for y in range(height):
            for x in range(width):
                out[y, x, s] = np.rint(np.float32(255) * ((plane[y, x] - low) / (high - low)))


@jit(inline="always")
def _reflect(i, n):
    """Index i >= 0 beyond the end of n samples, mirrored at the last one and, if need be, at the first."""
    i %= max(1, 2 * n - 2)
    return min(i, 2 * n - 2 - i) if n > 1 else 0


@jit()
def _clip_histogram(counts, limit):
    """Cut every bin at the limit and hand the excess out again: evenly, then one by one to bins below the limit."""
    excess = 0
    for b in range(counts.size):
        excess += max(0, counts[b] - limit)
        counts[b] = min(counts[b], limit)
    share = excess // counts.size
    for b in range(counts.size):
        taken = share if counts[b] < limit - share else 0
        if limit - share <= counts[b] + taken:
            taken = limit - counts[b]
        counts[b] += taken
        excess -= taken
    while excess > 0:
        before = excess
        for start in range(counts.size):
            room = 0
            for b in range(counts.size):
                room += counts[b] < limit
            for b in range(start, counts.size, max(1, room // excess)):
                if counts[b] < limit:
                    counts[b] += 1
                    excess -= 1
            if excess <= 0:
                break
        if excess == before:
            break
