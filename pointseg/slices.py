"""From volumes to network inputs and back: slices with their neighbours, crops, augmentation, reassembly.

Thesis section 3.3.  A volume (z, y, x) is cut along one of three axes; the planes keep the order of the other two.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pointseg.kernels import extent_masks, sample_labels, sample_stack
from pointseg.network import STRIDE
from pointseg.points import Points
from pointseg.preprocess import Prepared
from pointseg.runs.cache import CachedScan, SlicesFile, VolumeFile
from pointseg.volume import BACKGROUND, UNLABELLED

AXES = {"transverse": 0, "coronal": 1, "sagittal": 2}
GREY_LEVELS = np.arange(256) / 255
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


@dataclass(frozen=True)
class Labelled:
    """A prepared scan and the labels to learn from."""

    scan: Prepared | CachedScan
    known: np.ndarray | Points | VolumeFile  # what np.asarray makes labels (z, y, x) uint8 of

    @property
    def labels(self) -> np.ndarray:
        """(z, y, x) uint8, UNLABELLED where nothing is known"""
        return np.asarray(self.known)

    def planes(self, axis: int) -> np.ndarray | SlicesFile:
        """The labels' slices along an axis, (slices, H, W)."""
        return self.known.planes(axis) if isinstance(self.known, VolumeFile) else np.moveaxis(self.labels, axis, 0)

    @property
    def points(self) -> Points:
        return self.known if isinstance(self.known, Points) else Points.of(self.labels)


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

    matrix: np.ndarray  # (N, 2, 2) output pixel (row, column) -> slice pixel, together with
    offset: np.ndarray  # (N, 2)
    inverse: np.ndarray  # (N, 2, 2) of the matrix
    scale: np.ndarray  # (N,) of a pixel, the mean of both directions
    gamma: np.ndarray  # (N,) of the intensities
    gain: np.ndarray  # (N,) by which they are multiplied
    lift: np.ndarray  # (N,) which is added to them
    sigma: np.ndarray  # (N,) float32, of the noise
    start: np.ndarray  # (N,) where the noise begins in its store


class SliceDataset(Dataset):
    """Training slices along one axis.   item -> image (3, h, w) in [0, 1], labels (h, w) uint8, extent (K, h, w) bool.

    num_classes 2 joins L1..L5 into one class.  Slices without any label are left out.  Item i of epoch e has the number
    e * len + i; it depends on that and the seed alone, not on what was drawn before.  sparse: the labels are points,
    moved one by one, since resampling a map would lose them; radius_mm: the extent's radius, None for no extent.

    An item must cost little beside its training step, so all that can be is done once: slices lie one after the other,
    points are found, noise is a piece of a store, and an epoch's random numbers are drawn together.  What it holds does
    not grow with the scans where those and their labels lie in files (`cache`).
    """

    def __init__(self, scans: Sequence[Labelled], axis: str, num_classes: int, input_px: int,
                 augmentation: Augmentation, seed: int, sparse: bool = False, radius_mm: float | None = None):
        self.axis, self.num_classes, self.augmentation, self.seed = AXES[axis], num_classes, augmentation, seed
        self.sparse, self.radius_mm = sparse, radius_mm
        self.scans = [scan.scan for scan in scans]
        self.images = [scan.planes(self.axis) for scan in self.scans]  # (slices, H, W) each
        shapes = [tuple(np.delete(scan.shape, self.axis).tolist()) for scan in self.scans]
        self.index: list[tuple[int, int]] = []  # of each item its scan and the slice in it
        if sparse:
            self.points = [scan.points.along(self.axis) for scan in scans]
            for which, points in enumerate(self.points):
                self.index += [(which, int(i)) for i in np.unique(points.places[:, 0])]
        else:
            self.labels = [scan.planes(self.axis) for scan in scans]
            for which, planes in enumerate(self.labels):
                known = (np.asarray(planes) != UNLABELLED).any((1, 2))
                self.index += [(which, int(i)) for i in np.flatnonzero(known)]
        if not self.index:
            raise ValueError(f"{len(scans)} scans, but no slice with a label to learn from; expected at least one")
        self.size = input_size(shapes, input_px)
        self.places = np.array([crop_corners(shape, self.size) for shape in shapes])  # (scans, 5, 2)
        store = 8 * 3 * self.size[0] * self.size[1] if augmentation.noise else 0
        self.noise = self._rng(0).standard_normal(store, np.float32)
        self._epoch, self._draws = 0, self._draw(0)

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The first epoch, in order."""
        return (self[i] for i in range(len(self)))

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(x[0] for x in self.batch([number]))

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
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
            if self.sparse:
                self._fill_points(item, target, extent)
            else:
                which, at = self.index[item]
                labels = np.asarray(self.labels[which])[at]
                sample_labels(labels, self._draws.matrix[item], self._draws.offset[item], target)
            if self.num_classes == 2:
                target[(target != BACKGROUND) & (target != UNLABELLED)] = 1
        return torch.from_numpy(images), torch.from_numpy(labels_of_all), torch.from_numpy(extents)

    __getitems__ = batch  # what torch's DataLoader calls, where it is given the numbers of a batch

    def _fill_image(self, item: int, image: np.ndarray) -> None:
        (which, at), draws, planes = self.index[item], self._draws, np.asarray(self.images[self.index[item][0]])
        around = stack_indices(at, len(planes), self.scans[which].spacing_mm[self.axis])
        table = GREY_LEVELS**draws.gamma[item] * draws.gain[item] + draws.lift[item]
        table[0] = 0  # padding and air stay black
        sample_stack(planes, around, draws.matrix[item], draws.offset[item], table.astype(np.float32), image)
        if sigma := draws.sigma[item]:
            start = draws.start[item]
            image += sigma * self.noise[start : start + image.size].reshape(image.shape)

    def _fill_points(self, item: int, target: np.ndarray, extent: np.ndarray) -> None:
        (which, at), draws, points = self.index[item], self._draws, self.points[self.index[item][0]]
        here = slice(*np.searchsorted(points.places[:, 0], (at, at + 1)))
        values = points.values[here]
        moved = (points.places[here, 1:] - draws.offset[item]) @ draws.inverse[item].T
        pixels = np.rint(moved).astype(int)
        inside = ((pixels >= 0) & (pixels < self.size)).all(1)
        target[pixels[inside, 0], pixels[inside, 1]] = values[inside]
        if self.radius_mm:
            bounding = values != BACKGROUND  # which has no extent; points that left the crop still bound their vertebra
            classes = np.minimum(values[bounding], 1) if self.num_classes == 2 else values[bounding]
            spacing_mm = np.delete(self.scans[which].spacing_mm, self.axis) * draws.scale[item]
            extent[:] = extent_masks(moved[bounding], classes, self.num_classes, self.size, spacing_mm,
                                     self.radius_mm)

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(stream,)))

    def _draw(self, epoch: int) -> Draws:
        a, n, rng = self.augmentation, len(self), self._rng(epoch + 1)
        corner = self.places[[which for which, _ in self.index], rng.integers(5, size=n)]  # (N, 2)
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
