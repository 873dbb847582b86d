"""Which vertebra is which: five bodies in their order, where single voxels contradict each other.

A model tells the level of each voxel on its own, and is wrong about whole vertebrae where the count starts in the wrong
place.  But L2 lies between L1 and L3 in everyone, so all bodies of a scan decide together: the thesis leaves that open
("prior knowledge").
"""

import numpy as np
from scipy import ndimage
from skimage.segmentation import expand_labels

from pointseg.volume import BACKGROUND, CLASSES

DEPTH_MM = 6.0  # bodies that touch are joined by less than twice this, and none is as thin
FLOOR = 0.1  # a voxel's least probability of a level: its neighbours say nearly the same, so it is no proof of its own
BESIDE, BETWEEN = 0.1, 0.001  # how likely a body is none of the five: above or below them, and between them
MISSING = 2.0  # log-likelihood that a level costs which is not there: most scans show all five
LEVELS = [(first, last) for first in range(1, len(CLASSES)) for last in range(first, len(CLASSES))]
NONE = (0, 0)


def in_order(probabilities: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Class probabilities whose vertebrae follow each other from head to foot.   (6, z, y, x) -> the same, changed.

    Bodies are found where a level is the most probable class; disputed voxels keep them apart.  Each is given a level,
    or a few that follow each other where it is large enough to be several, or none.  A voxel's most probable level, if
    its body has another, changes places with that; in a body that is none of the five, with background.
    """
    found = probabilities.argmax(0) != BACKGROUND
    boxes = ndimage.find_objects(found.view(np.uint8))
    if not boxes:
        return probabilities
    box = tuple(slice(max(0, s.start - 2), s.stop + 2) for s in boxes[0])  # and what is mixed with it in resampling
    inside, found = probabilities[:, *box], found[box]
    bodies = find_bodies(found, spacing_mm)
    for body, (first, last) in enumerate(levels_of(inside, bodies * found), 1):
        where = bodies == body
        p = inside[:, where]  # (K, N), a copy
        voxel, most = np.arange(p.shape[1]), p[1:].argmax(0) + 1
        other = p[first : last + 1].argmax(0) + first
        if (first, last) == NONE:
            other = np.where(p[BACKGROUND] < p[most, voxel], BACKGROUND, most)
        p[most, voxel], p[other, voxel] = p[other, voxel], p[most, voxel]
        inside[:, where] = p
    return probabilities


def find_bodies(vertebra: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Each voxel's body, 1.., by the nearest core: a piece that lies deeper than DEPTH_MM.   0 where there is none."""
    cores, _ = ndimage.label(ndimage.distance_transform_edt(vertebra, spacing_mm) > DEPTH_MM)
    return expand_labels(cores, np.inf, spacing_mm)


def levels_of(probabilities: np.ndarray, bodies: np.ndarray) -> list[tuple[int, int]]:
    """The first and the last level of each body, or NONE: of all that are in order, the most likely.

    bodies (z, y, x), 1.. for each, else 0.  A dynamic program from head to foot: the best for the bodies so far that
    ends with a level, for each level.  Units are those of log-probabilities, summed over voxels.
    """
    count = int(bodies.max())
    known = bodies > 0
    of, levels = bodies[known], probabilities[BACKGROUND + 1 :, known]
    levels = levels / np.maximum(levels.sum(0), 1e-6)
    size = np.bincount(of, minlength=count + 1)[1:]
    typical = size.sum() / (len(CLASSES) - 1)
    height = np.bincount(of, np.nonzero(known)[0], count + 1)[1:] / np.maximum(size, 1)
    says = {}
    for first, last in LEVELS:
        said = np.log(levels[first - 1 : last].max(0) + FLOOR)
        too_small = np.maximum(0, (last - first + 1) * typical - size) * (last > first)  # to be so many vertebrae
        says[first, last] = np.bincount(of, said, count + 1)[1:] - too_small
    best, ways = {0: 0.0}, {0: []}  # by the last level given, 0 before the first: the likelihood, and how
    for body in np.argsort(height, kind="stable"):
        after, ways_after = {}, {}
        for end, so_far in best.items():
            none = BESIDE if end in (0, len(CLASSES) - 1) else BETWEEN
            options = {NONE: (end, size[body] * np.log(none))} | {
                (first, last): (last, said[body] - MISSING * typical * (first - end - 1))
                for (first, last), said in says.items() if first > end}
            for levels_given, (new_end, gain) in options.items():
                if so_far + gain > after.get(new_end, -np.inf):
                    after[new_end], ways_after[new_end] = so_far + gain, [*ways[end], (body, levels_given)]
        best, ways = after, ways_after
    end = max(best, key=lambda last: best[last] - MISSING * typical * (len(CLASSES) - 1 - last))
    return [levels_given for _, levels_given in sorted(ways[end])]
