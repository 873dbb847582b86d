"""Masks of some slices only, as people paint them: in the file the others are zeros, as background is.

A manifest's column `labelled` says which slices were painted, as "sagittal painted" (those that hold a label) or
"sagittal 12 19 26" (their numbers in the file, from 0, as viewers show them).
"""

import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from pointseg.volume import BACKGROUND, CLASSES, UNLABELLED, ScanError, Volume

PLANES = ("transverse", "coronal", "sagittal")  # slices along z, y, x
PAINTED = "painted"


def outlined(volume: Volume, labelled: str, path: Path) -> Volume:
    """The volume with UNLABELLED in all slices that were not painted, and with notes of what may be forgotten."""
    plane, *which = labelled.split()
    if plane not in PLANES or not which or (which != [PAINTED] and not all(w.isdecimal() for w in which)):
        raise ScanError(f"{path}: found labelled slices {labelled!r}, expected {', '.join(PLANES[:2])} or {PLANES[2]} "
                        f"and then {PAINTED} or slice numbers, such as sagittal 12 19 26")
    axis = PLANES.index(plane)
    count = volume.mask.shape[axis]
    shown = (volume.mask != BACKGROUND).any(tuple({0, 1, 2} - {axis}))
    if which == [PAINTED]:
        kept = np.flatnonzero(shown)
    else:
        numbers = sorted({int(w) for w in which})
        if numbers[-1] >= count:
            raise ScanError(f"{path}: found labelled slice {numbers[-1]}, expected 0..{count - 1}, of {count} {plane} "
                            "slices")
        kept = np.array(numbered(volume, axis, numbers))
        if lost := sorted(set(np.flatnonzero(shown).tolist()) - set(kept.tolist())):
            at = ", ".join(map(str, numbered(volume, axis, lost)[:5]))
            raise ScanError(f"{path}: found labels on {plane} slices {at}, expected "
                            f"them on {', '.join(which)} alone; name these slices too")
    mask = np.full_like(volume.mask, UNLABELLED)
    chosen = tuple(kept if a == axis else slice(None) for a in range(3))
    mask[chosen] = volume.mask[chosen]
    return replace(volume, mask=mask, notes=(*volume.notes, *_forgotten(volume, kept, axis, path)))


def numbered(volume: Volume, axis: int, slices: Iterable[int]) -> list[int]:
    """Of slices of the canonical array their numbers in the file, and the other way round; rising."""
    _, flips = volume.geometry.axes
    count = volume.image.shape[axis]
    return sorted(count - 1 - i if axis in flips else i for i in slices)


def _forgotten(volume: Volume, kept: np.ndarray, axis: int, path: Path) -> list[str]:
    """Levels that two painted slices show and the painted one between them does not, though it lies next to one."""
    levels = [set(np.unique(volume.mask.take(i, axis)).tolist()) - {BACKGROUND, UNLABELLED} for i in sorted(kept)]
    doubts = []
    for (a, before), (i, here), (b, after) in zip(*(itertools.islice(zip(sorted(kept), levels, strict=True), n, None)
                                                    for n in range(3))):
        if (missing := (before & after) - here) and (i - a == 1 or b - i == 1):
            number, = numbered(volume, axis, [i])
            doubts.append(f"{path}: {PLANES[axis]} slice {number} shows no {CLASSES[min(missing)]}, which the painted "
                          "slices beside it do")
    return doubts
