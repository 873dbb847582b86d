"""From volumes to network inputs and back: slices with their neighbours, crops, augmentation, reassembly.

A volume (z, y, x) is cut along one of three axes; the planes keep the order of the other two.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pointseg.kernels import extent_masks, sample_labels, sample_stack
from pointseg.network import STRIDE
from pointseg.points import few_labels
from pointseg.preprocess import Prepared
from pointseg.volume import BACKGROUND, UNLABELLED

AXES = {"transverse": 0, "coronal": 1, "sagittal": 2}
GREY_LEVELS = np.arange(256) / 255
Batch = tuple[Tensor, Tensor, Tensor]  # images (B, 3, h, w), labels (B, h, w), extents (B, K, h, w)
CONTEXT_MM = 1.0  # distance k of the two neighbouring slices; on a coarser grid, the next slice


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training slice.  Each is drawn anew; 0 switches it off."""

    rotation_deg: float = 0.0  # standard deviation
    log_scale: float = 0.0  # standard deviation, for both directions together
    log_stretch: float = 0.0  # standard deviation, one direction against the other
    shift_px: float = 0.0  # standard deviation
    log_gamma: float = 0.0  # standard deviation
    contrast: float = 0.0  # standard deviation of gain and offset
    noise: float = 0.0  # largest standard deviation of the noise, for intensities 0..1


def slice_stack(image: np.ndarray, axis: int, index: int, spacing_mm: float) -> np.ndarray:
    """The slice and its neighbours at -k and +k mm.   (z, y, x) -> (3, H, W)"""
    return np.moveaxis(image.take(stack_indices(index, image.shape[axis], spacing_mm), axis), axis, 0)


def stack_indices(index: int, count: int, spacing_mm: float) -> list[int]:
    """Which of `count` slices make a network input's channels; beyond the edge the slice itself."""
    step = max(1, round(CONTEXT_MM / spacing_mm))
    return [i if 0 <= i < count else index for i in (index - step, index, index + step)]


def crop_corners(shape: tuple[int, int], size: tuple[int, int]) -> list[tuple[int, int]]:
    """First pixels of the crops of one size at the four corners and, last, the centre of a slice.

    Where the slice is smaller than the crop the corner is negative: the slice lies in its middle, padded on both sides.
    """
    middle = [(n - s) // 2 if n > s else -((s - n) // 2) for n, s in zip(shape, size, strict=True)]
    (top, bottom), (left, right) = ((0, n - s) if n > s else (m, m) for n, s, m in zip(shape, size, middle))
    return [(top, left), (top, right), (bottom, left), (bottom, right), tuple(middle)]


def tile_corners(shape: tuple[int, int], size: tuple[int, int]) -> list[tuple[int, int]]:
    """First pixels of the crops that cover a slice: one where it fits, four corners up to twice the size, then more."""
    rows, columns = ([(n - s) * i // max(1, -(-n // s) - 1) for i in range(-(-n // s))] if n > s else [-((s - n) // 2)]
                     for n, s in zip(shape, size, strict=True))
    return [(row, column) for row in rows for column in columns]


def input_size(shapes: Sequence[tuple[int, int]], input_px: int) -> tuple[int, int]:
    """The smallest network input that holds slices of these shapes, in multiples of the stride, at most input_px."""
    return tuple(min(input_px, STRIDE * -(-max(s[i] for s in shapes) // STRIDE)) for i in (0, 1))


@dataclass(frozen=True)
class Draws:
    """What chance decides about the items of one epoch; the first axis of each array is the item."""

    matrix: np.ndarray  # (N, 2, 2): slice pixel (row, column) = matrix @ output pixel + offset
    offset: np.ndarray  # (N, 2)
    inverse: np.ndarray  # (N, 2, 2) of the matrix
    scale: np.ndarray  # (N,) of a pixel, the mean of both directions
    gamma: np.ndarray  # (N,) of the intensities
    gain: np.ndarray  # (N,) by which they are multiplied
    lift: np.ndarray  # (N,) which is added to them
    sigma: np.ndarray  # (N,) float32, of the noise
    start: np.ndarray  # (N,) where the noise begins in its store


class SliceDataset(Dataset):
    """Training slices along one axis.   item -> image (3, h, w) about 0..1, labels (h, w) uint8, extent (K, h, w) bool.

    labelled: scans, whose masks may be UNLABELLED where nothing is known.  Where fewer than half of a scan's voxels
    have a label they are moved one by one, since resampling a map would lose points.  num_classes 2 joins L1..L5 into
    one class.  Slices without any label are left out.  radius_mm: the extent's, or each class's; None for no extent.
    Item i of epoch e has the number e * len + i; it depends on that and the seed alone, not on what was drawn before.

    An item must cost little beside its training step, so all that can be is done once: points are found, noise is a
    piece of a store, and an epoch's random numbers are drawn together.  A scan is asked for its arrays when a slice is
    cut, so it may lie in a file.
    """

    def __init__(self, labelled: Sequence[Prepared], axis: str, num_classes: int, input_px: int,
                 augmentation: Augmentation, seed: int, radius_mm: float | tuple[float, ...] | None = None):
        self.axis, self.num_classes, self.augmentation, self.seed = AXES[axis], num_classes, augmentation, seed
        self.scans, self.radius_mm = list(labelled), radius_mm
        self.points = [few and few.along(self.axis) for few in map(few_labels, self.scans)]  # None: it has a mask
        shapes = [tuple(np.delete(scan.shape, self.axis).tolist()) for scan in self.scans]
        self.index: list[tuple[int, int]] = []  # of each item its scan and the slice in it
        for which, (scan, points) in enumerate(zip(self.scans, self.points, strict=True)):
            if points:
                known = np.unique(points[0][:, 0])
            else:
                known = np.flatnonzero((scan.mask != UNLABELLED).any(tuple({0, 1, 2} - {self.axis})))
            self.index += [(which, int(i)) for i in known]
        if not self.index:
            raise ValueError(f"{len(labelled)} scans, but no slice with a label to learn from; expected at least one")
        self.size = input_size(shapes, input_px)
        self.corners = np.array([crop_corners(shape, self.size) for shape in shapes])  # (scans, 5, 2)
        store = 8 * 3 * self.size[0] * self.size[1] if augmentation.noise else 0
        self.noise = self._rng(0).standard_normal(store, np.float32)
        self._epoch, self._draws = 0, self._draw(0)

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Batch]:
        """The first epoch, in order."""
        return (self[i] for i in range(len(self)))

    def __getitem__(self, number: int) -> Batch:
        return tuple(x[0] for x in self.batch([number]))

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Items by number, one after the other.   -> images (B, 3, h, w), labels (B, h, w), extents (B, K, h, w).

        Without a radius an extent is True, (B, K, 1, 1).
        """
        images = np.empty((len(numbers), 3, *self.size), np.float32)
        labels_of_all = np.full((len(numbers), *self.size), UNLABELLED, np.uint8)
        extents = np.ones((len(numbers), self.num_classes, *(self.size if self.radius_mm else (1, 1))), bool)
        for number, image, target, extent in zip(numbers, images, labels_of_all, extents, strict=True):
            epoch, item = divmod(number, len(self))
            if epoch != self._epoch:
                self._epoch, self._draws = epoch, self._draw(epoch)
            self._fill_image(item, image)
            places, values = self._fill_labels(item, target)
            if self.radius_mm:
                self._fill_extent(item, places, values, extent)
            if self.num_classes == 2:
                target[(target != BACKGROUND) & (target != UNLABELLED)] = 1
        return torch.from_numpy(images), torch.from_numpy(labels_of_all), torch.from_numpy(extents)

    __getitems__ = batch  # what torch's DataLoader calls, where it is given the numbers of a batch

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """Whole epochs in random order, batch by batch from batch number `start` on, without an end."""
        return map(self.batch, batch_numbers(len(self), size, seed, start))

    def _fill_image(self, item: int, image: np.ndarray) -> None:
        (which, at), draws = self.index[item], self._draws
        scan = self.scans[which]
        stack = np.ascontiguousarray(slice_stack(scan.image, self.axis, at, scan.spacing_mm[self.axis]))
        table = GREY_LEVELS**draws.gamma[item] * draws.gain[item] + draws.lift[item]
        table[0] = 0  # padding and air stay black
        sample_stack(stack, draws.matrix[item], draws.offset[item], table.astype(np.float32), image)
        if sigma := draws.sigma[item]:
            start = draws.start[item]
            image += sigma * self.noise[start : start + image.size].reshape(image.shape)

    def _fill_labels(self, item: int, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """-> where in the target the labels of the vertebrae are (N, 2), not rounded, beyond it too; and which (N,)"""
        (which, at), matrix, offset = self.index[item], self._draws.matrix[item], self._draws.offset[item]
        if self.points[which]:
            places, values = self.points[which]
            here = slice(*np.searchsorted(places[:, 0], (at, at + 1)))
            places, values = places[here, 1:], values[here]
        else:
            labels = self.scans[which].mask.take(at, self.axis)
            sample_labels(labels, matrix, offset, target)
            if not self.radius_mm:
                return np.empty((0, 2)), np.empty(0, np.uint8)
            places = np.argwhere((labels != BACKGROUND) & (labels != UNLABELLED))
            values = labels[tuple(places.T)]
        moved = (places - offset) @ self._draws.inverse[item].T
        if self.points[which]:
            pixels = np.rint(moved).astype(int)
            inside = ((pixels >= 0) & (pixels < self.size)).all(1)
            target[pixels[inside, 0], pixels[inside, 1]] = values[inside]
        return moved[values != BACKGROUND], values[values != BACKGROUND]

    def _fill_extent(self, item: int, places: np.ndarray, values: np.ndarray, extent: np.ndarray) -> None:
        """Background has no extent; points that left the crop still bound their vertebra."""
        scan = self.scans[self.index[item][0]]
        classes = np.minimum(values, 1) if self.num_classes == 2 else values
        spacing_mm = np.delete(scan.spacing_mm, self.axis) * self._draws.scale[item]
        extent[:] = extent_masks(places, classes, self.num_classes, self.size, spacing_mm, self.radius_mm)

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(stream,)))

    def _draw(self, epoch: int) -> Draws:
        a, n, rng = self.augmentation, len(self), self._rng(epoch + 1)
        corner = self.corners[[which for which, _ in self.index], rng.integers(5, size=n)]  # (N, 2)
        angle = np.deg2rad(a.rotation_deg * rng.standard_normal(n))
        scale, stretch = np.exp(a.log_scale * rng.standard_normal(n)), np.exp(a.log_stretch * rng.standard_normal(n))
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)  # (N, 2, 2)
        matrix = turn * np.stack([scale * stretch, scale / stretch], -1)[:, None]
        centre = (np.array(self.size) - 1) / 2
        offset = corner + centre - matrix @ centre + a.shift_px * rng.standard_normal((n, 2))
        gamma, gain = np.exp(a.log_gamma * rng.standard_normal(n)), 1 + a.contrast * rng.standard_normal(n)
        lift = a.contrast / 2 * rng.standard_normal(n)
        return Draws(matrix, offset, np.linalg.inv(matrix), scale, gamma, gain, lift,
                     (a.noise * rng.random(n)).astype(np.float32), rng.integers(self.noise.size // 2 + 1, size=n))


def batch_numbers(count: int, size: int, seed: int, start: int = 0) -> Iterator[list[int]]:
    """The numbers of items in each batch of `SliceDataset.batches`.  The last batch of an epoch may be smaller."""
    generator = torch.Generator().manual_seed(seed)
    skipped_epochs, skipped = divmod(start, math.ceil(count / size))
    for epoch in itertools.count():
        order = torch.randperm(count, generator=generator)  # also of skipped epochs, for the generator's sake
        if epoch >= skipped_epochs:
            yield from (numbers.tolist() for numbers in (order + epoch * count).split(size)[skipped:])
            skipped = 0


def cut_crops(scan: Prepared, axis: int, index: int, corners: Sequence[tuple[int, int]],
              size: tuple[int, int]) -> np.ndarray:
    """Crops of one slice with its neighbours, in 0..1, black where they reach beyond it.   -> (N, 3, *size) float32."""
    stack = slice_stack(scan.image, axis, index, scan.spacing_mm[axis])
    crops = np.zeros((len(corners), 3, *size), np.float32)
    for crop, (row, column) in zip(crops, corners, strict=True):
        r0, c0 = max(row, 0), max(column, 0)
        r1, c1 = min(row + size[0], stack.shape[1]), min(column + size[1], stack.shape[2])
        crop[:, r0 - row : r1 - row, c0 - column : c1 - column] = stack[:, r0:r1, c0:c1] / np.float32(255)
    return crops
