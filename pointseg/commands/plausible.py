"""Does a mask look like a spine?  Volumes of the vertebrae, and what in them cannot be right."""

import itertools

import numpy as np
from scipy import ndimage

from pointseg.kernels import confusion_matrix
from pointseg.volume import BACKGROUND, CLASSES

COARSE_MM = 2.0  # shapes are judged on about this grid, so that a fine scan costs no more than a coarse one
PIECE_SHARE, GAP_MM = 0.1, 10.0  # a second piece of this share of its class, this far from the first
VOLUME_ML = (5.0, 150.0)  # of a lumbar vertebra, from a small body alone to a large one with its arch and processes
STEP_MM = (15.0, 60.0)  # between the centres of neighbouring vertebrae
FACES = (("upper", "lower"), ("front", "back"), ("right", "left"))  # of the canonical axes z, y, x


def volumes_ml(labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> dict[str, float]:
    """Volume of each of L1..L5.   labels (z, y, x) uint8 0..5, spacing_mm (z, y, x)."""
    counts = np.diag(confusion_matrix(labels, labels, len(CLASSES)))
    return {name: float(counts[k] * np.prod(spacing_mm) / 1000) for k, name in enumerate(CLASSES) if k != BACKGROUND}


def warnings(labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> list[str]:
    """Sentences on what a correct mask would not show; none where nothing is odd.

    labels (z, y, x) uint8 0..5 on canonical axes, z cranial to caudal; spacing_mm (z, y, x).
    """
    volume = {name: ml for name, ml in volumes_ml(labels, spacing_mm).items() if ml}
    if not volume:
        return ["found no lumbar vertebra"]
    step = [max(1, round(COARSE_MM / s)) for s in spacing_mm]
    coarse, coarse_mm = labels[tuple(slice(n // 2, None, n) for n in step)], np.multiply(step, spacing_mm)
    found, centre_mm = [], {}
    levels = [k for k, name in enumerate(CLASSES) if name in volume]
    if gaps := [CLASSES[k] for k in range(levels[0], levels[-1]) if k not in levels]:
        found.append(f"{' and '.join(gaps)} missing between {CLASSES[levels[0]]} and {CLASSES[levels[-1]]}")
    for k in levels:
        if faces := _touched(labels, k):
            found.append(f"{CLASSES[k]} touches the {' and '.join(faces)} edge of the scan, so it may be cut off")
        if not VOLUME_ML[0] <= volume[CLASSES[k]] <= VOLUME_ML[1]:
            found.append(f"{CLASSES[k]} has {volume[CLASSES[k]]:.1f} ml, expected {VOLUME_ML[0]:g} to {VOLUME_ML[1]:g}")
        pieces, count = ndimage.label(coarse == k, np.ones((3, 3, 3)))
        if not count:
            continue
        sizes = np.bincount(pieces.ravel())[1:]
        largest = int(sizes.argmax()) + 1
        centre_mm[k] = np.argwhere(pieces == largest).mean(0) * coarse_mm
        apart_mm = [_distance_mm(pieces, largest, p + 1, coarse_mm) for p, size in enumerate(sizes)
                    if p + 1 != largest and size >= PIECE_SHARE * sizes.sum()]
        if apart_mm and max(apart_mm) > GAP_MM:
            found.append(f"{CLASSES[k]} is in pieces {max(apart_mm):.0f} mm apart")
    for (a, first), (b, second) in itertools.pairwise(centre_mm.items()):
        if second[0] <= first[0]:
            found.append(f"{CLASSES[b]} lies above {CLASSES[a]}")
        elif b == a + 1 and not STEP_MM[0] <= (apart := np.linalg.norm(second - first)) <= STEP_MM[1]:
            found.append(f"the centres of {CLASSES[a]} and {CLASSES[b]} are {apart:.0f} mm apart, "
                         f"expected {STEP_MM[0]:g} to {STEP_MM[1]:g}")
    return found


def _touched(labels: np.ndarray, k: int) -> list[str]:
    """Names of the faces of the volume on which a class has a voxel."""
    return [names[side != 0] for axis, names in enumerate(FACES) for side in (0, -1)
            if (labels.take(side, axis) == k).any()]


def _distance_mm(pieces: np.ndarray, a: int, b: int, spacing_mm: np.ndarray) -> float:
    """Between the nearest voxels of two pieces."""
    box = ndimage.find_objects(np.isin(pieces, (a, b)).astype(np.uint8))[0]
    to_first = ndimage.distance_transform_edt(pieces[box] != a, spacing_mm)
    return float(to_first[pieces[box] == b].min())
