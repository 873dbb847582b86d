"""What three models agree on becomes a pseudo mask.   Thesis, "Volume combination procedure".

The thesis lets labels vote: class i where the transverse model says vertebra and the sagittal and coronal models both
say i.  Smoothing uses the 3 x 3 x 3 cube (rank 3, connectivity 3): closing of each prediction, fusion, opening,
closing, erosion.  The mean of the models' probabilities (`predict.ThreeAxes`) is the other way.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
from scipy import ndimage
from tqdm.auto import tqdm

from pointseg.estimate import estimated_confusion
from pointseg.metrics import weighted_dice
from pointseg.predict import Model, ThreeAxes
from pointseg.preprocess import Prepared
from pointseg.volume import BACKGROUND, CLASSES

T = TypeVar("T")
Keep = Callable[[str, Callable[..., T]], T]

SMOOTHINGS = [(denoise, erosion) for denoise in (0, 1, 2) for erosion in (0, 1, 2)]  # iterations to choose from
THRESHOLDS = (0.5, 0.3, 0.35, 0.4, 0.45, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)  # of equals the first
CUBE = ndimage.generate_binary_structure(3, 3)
LOWEST_BIT = np.array([0, *((b & -b).bit_length() - 1 for b in range(1, 256))], np.uint8)  # of each byte


def fuse(transverse: np.ndarray, coronal: np.ndarray, sagittal: np.ndarray) -> np.ndarray:
    """Label volumes (z, y, x) uint8, transverse 0/1, the others 0..5 -> (z, y, x) uint8, 0..5."""
    agreed = (transverse != BACKGROUND) & (coronal == sagittal)
    return np.where(agreed, sagittal, BACKGROUND).astype(np.uint8)


def smooth(labels: np.ndarray, opening: int = 0, closing: int = 0, erosion: int = 0) -> np.ndarray:
    """Morphology on each class of a label volume: opening, closing and erosion, each that many times.

    The classes stay apart: where closings of two classes meet, the voxel keeps its own label, else the lower class's.
    Beyond the edge of the volume its outermost labels are repeated.   labels (z, y, x) uint8, 0..7 -> the same.

    A byte has room for a bit a class, so that one OR or AND of neighbours dilates or erodes all classes at once; and
    the cube is three rods, so three neighbours along each axis in turn do for its 27.
    """
    reach = 2 * opening + 2 * closing + erosion  # how far a voxel beyond the edge can matter
    found = ndimage.find_objects((labels != BACKGROUND).view(np.uint8))
    if not found:
        return np.zeros_like(labels)
    # Around all that is labelled as much room as a closing can fill, and one layer that is surely background.
    box = tuple(slice(max(0, s.start - closing - 1), s.stop + closing + 1) for s in found[0])
    own = labels[box]
    bits = np.left_shift(1, np.pad(own, reach, mode="edge"), dtype=np.uint8)
    bits &= ~np.uint8(1 << BACKGROUND)
    for operation, times in ((np.bitwise_and, opening), (np.bitwise_or, opening + closing),
                             (np.bitwise_and, closing + erosion)):
        bits = _join_neighbours(bits, operation, times)
    bits = bits[tuple(slice(reach, reach + n) for n in own.shape)]
    kept = np.where((bits >> own) & 1, own, BACKGROUND)  # a closing may not take another class's voxels
    out = np.zeros_like(labels)
    out[box] = np.where(own == BACKGROUND, LOWEST_BIT[bits], kept)
    return out


def _join_neighbours(bits: np.ndarray, operation: np.ufunc, times: int) -> np.ndarray:
    """Join each voxel with its 26 neighbours, so many times; beyond the edge there are none."""
    for axis in range(3):
        for _ in range(times):
            moved = np.moveaxis(bits, axis, 0)
            joined = moved.copy()
            operation(joined[1:], moved[:-1], out=joined[1:])
            operation(joined[:-1], moved[1:], out=joined[:-1])
            bits = np.moveaxis(joined, 0, axis)
    return bits


def pseudo_mask(transverse: np.ndarray, coronal: np.ndarray, sagittal: np.ndarray, denoise: int,
                erosion: int) -> np.ndarray:
    """Close each prediction once, fuse, open, close, erode.   Label volumes (z, y, x) -> (z, y, x) uint8, 0..5.

    denoise: how often to open and to close what was fused; erosion: how often to erode it.
    """
    closed = [smooth(p, closing=1) for p in (transverse, coronal, sagittal)]
    return smooth(fuse(*closed), opening=denoise, closing=denoise, erosion=erosion)


def just_make(name: str, make: Callable[..., T]) -> T:
    """The `keep` that keeps nothing.   A kept `make` that trains may be handed a `watch`, to go on inside a model."""
    return make()


def hard_predictions(models: dict[str, Model], scan: Prepared) -> dict[str, np.ndarray]:
    """Each model's labels (z, y, x) uint8 of one scan, by the model's name."""
    return {name: model.labels(scan) for name, model in models.items()}


def choose_smoothing(weak: dict[str, Model], validation: Sequence[Prepared],
                     keep: Keep = just_make) -> tuple[tuple[int, int], float]:
    """The vote's denoise and erosion iterations of the best Dice_wi by the validation labels, the fewer of equals."""
    counts = np.sum([keep(f"smoothing/{scan.name}", partial(smoothing_counts, weak, scan))
                     for scan in tqdm(validation, "choosing smoothing", unit="scan")], axis=0)
    return max(zip(SMOOTHINGS, map(weighted_dice, counts), strict=True), key=lambda choice: choice[1])


def smoothing_counts(weak: dict[str, Model], scan: Prepared) -> np.ndarray:
    """Of one scan the confusion matrix of the pseudo mask for each of SMOOTHINGS.   -> (choices, K, K)"""
    predictions = hard_predictions(weak, scan)
    return np.stack([estimated_confusion(scan, pseudo_mask(**predictions, denoise=d, erosion=e), len(CLASSES))
                     for d, e in SMOOTHINGS])


def choose_threshold(three: ThreeAxes, validation: Sequence[Prepared], name: str = "",
                     keep: Keep = just_make) -> tuple[ThreeAxes, float]:
    """The same with the threshold of the best Dice_wi by the validation labels, and that."""
    counts = np.sum([keep(f"{name}-threshold/{scan.name}", partial(threshold_counts, three, scan))
                     for scan in tqdm(validation, f"choosing the threshold, {name}", unit="scan")], axis=0)
    threshold, score = max(zip(THRESHOLDS, map(weighted_dice, counts), strict=True), key=lambda choice: choice[1])
    return replace(three, threshold=threshold), score


def threshold_counts(three: ThreeAxes, scan: Prepared) -> np.ndarray:
    """Of one scan the confusion matrix of the answers for each of THRESHOLDS.   -> (choices, K, K)"""
    scores = replace(three, threshold=0.5).probabilities(scan)
    level, most = scores[1:].argmax(0).astype(np.uint8) + np.uint8(1), scores[1:].max(0)
    sure = most / (most + scores[0])
    return np.stack([estimated_confusion(scan, np.where(sure > t, level, np.uint8(0)), len(CLASSES))
                     for t in THRESHOLDS])


def fuse_all(weak: dict[str, Model], scans: Sequence[Prepared], smoothing: tuple[int, int],
             keep: Keep = just_make) -> dict[str, Prepared]:
    """The scans with pseudo masks in the place of their masks, by name.   smoothing: denoise and erosion iterations."""
    def vote(scan: Prepared) -> np.ndarray:
        return pseudo_mask(**hard_predictions(weak, scan), denoise=smoothing[0], erosion=smoothing[1])

    return {scan.name: keep(f"pseudo/{scan.name}", lambda scan=scan: scan.with_mask(vote(scan)))
            for scan in tqdm(scans, "fusing pseudo masks", unit="scan")}


def answers(model: Model | ThreeAxes, scans: Sequence[Prepared], name: str,
            keep: Keep = just_make) -> dict[str, Prepared]:
    """The scans with what a model says of them in the place of their masks, by name."""
    return {scan.name: keep(f"{name}-answers/{scan.name}", lambda scan=scan: scan.with_mask(model.labels(scan)))
            for scan in tqdm(scans, f"{name}, pseudo masks", unit="scan")}
