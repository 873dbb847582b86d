"""From volumes to network inputs and back: slices with their neighbours, crops, augmentation, reassembly.

Thesis section 3.3.  A volume (z, y, x) is cut along one of three axes; the planes keep the order of the other two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from pointseg.kernels import extent_mask
from pointseg.network import STRIDE
from pointseg.preprocess import Prepared
from pointseg.volume import BACKGROUND, UNLABELLED

AXES = {"transverse": 0, "coronal": 1, "sagittal": 2}
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

    scan: Prepared
    labels: np.ndarray  # (z, y, x) uint8, UNLABELLED where nothing is known


def slice_stack(image: np.ndarray, axis: int, index: int, spacing_mm: float) -> np.ndarray:
    """The slice and its neighbours at -k and +k mm.   (z, y, x) -> (3, H, W); beyond the edge the slice itself."""
    step = max(1, round(CONTEXT_MM / spacing_mm))
    around = [i if 0 <= i < image.shape[axis] else index for i in (index - step, index, index + step)]
    return np.moveaxis(image.take(around, axis), axis, 0)


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


class SliceDataset(Dataset):
    """Training slices along one axis.   item -> image (3, h, w) in [0, 1], labels (h, w) uint8, extent (K, h, w) bool.

    num_classes 2 joins L1..L5 into one class.  Slices without any label are left out.  Items depend on (seed, epoch,
    index) alone, not on the number of workers or what was drawn before.  sparse: the labels are points, moved one by
    one, since resampling a map would lose them; radius_mm: the extent's radius, None for no extent.
    """

    def __init__(self, scans: Sequence[Labelled], axis: str, num_classes: int, input_px: int,
                 augmentation: Augmentation, seed: int, sparse: bool = False, radius_mm: float | None = None):
        self.scans, self.axis, self.num_classes = scans, AXES[axis], num_classes
        self.augmentation, self.seed, self.epoch = augmentation, seed, 0
        self.sparse, self.radius_mm = sparse, radius_mm
        self.index = [(s, i) for s, scan in enumerate(scans)
                      for i, plane in enumerate(np.moveaxis(scan.labels, self.axis, 0)) if (plane != UNLABELLED).any()]
        self.size = input_size([np.delete(s.labels.shape, self.axis) for s in scans], input_px)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, self.epoch, item))
        which, at = self.index[item]
        scan, labels = self.scans[which].scan, self.scans[which].labels.take(at, self.axis)
        labels = np.where((labels != UNLABELLED) & (labels > 1), 1, labels) if self.num_classes == 2 else labels
        stack = slice_stack(scan.image, self.axis, at, scan.spacing_mm[self.axis])  # (3, H, W)
        matrix, offset, scale = self._draw_affine(rng, labels.shape)
        grid = _sampling_grid(matrix, offset, self.size, labels.shape)  # (1, h, w, 2)
        image = F.grid_sample(torch.from_numpy(stack)[None].float() / 255, grid, align_corners=False)[0]
        image = self._change_intensity(image, rng)
        spacing_mm = tuple(s * scale for s in np.delete(scan.spacing_mm, self.axis))
        if self.sparse:
            moved, values = self._move_points(labels, matrix, offset)
            return image, *self._point_maps(moved, values, spacing_mm)
        # 0 means "outside" to grid_sample, and outside is unlabelled: shift the labels by one around the sampling.
        shifted = torch.from_numpy((labels + 1).astype(np.uint8))[None, None].float()
        sampled = F.grid_sample(shifted, grid, mode="nearest", align_corners=False)[0, 0]
        everywhere = torch.ones(self.num_classes, 1, 1, dtype=torch.bool)
        return image, (sampled - 1).to(torch.int16).to(torch.uint8), everywhere  # -1 becomes 255, UNLABELLED

    def _draw_affine(self, rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, float]:
        """matrix (2, 2) and offset (2,): output pixel (row, column) -> slice pixel; and the mean scale."""
        a = self.augmentation
        corner = np.array(crop_corners(shape, self.size)[rng.integers(5)])
        angle = np.deg2rad(a.rotation_deg * rng.standard_normal())
        scale, stretch = np.exp(a.log_scale * rng.standard_normal()), np.exp(a.log_stretch * rng.standard_normal())
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = turn @ np.diag((scale * stretch, scale / stretch))
        centre = (np.array(self.size) - 1) / 2
        offset = corner + centre - matrix @ centre + a.shift_px * rng.standard_normal(2)
        return matrix, offset, float(scale)

    def _change_intensity(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        a = self.augmentation
        gamma, gain = np.exp(a.log_gamma * rng.standard_normal()), 1 + a.contrast * rng.standard_normal()
        offset, sigma = a.contrast * rng.standard_normal() / 2, a.noise * rng.random()
        if gamma != 1:
            image = image.clamp(min=0) ** gamma
        if gain != 1 or offset:
            image = torch.where(image > 1e-5, image * gain + offset, image)  # padding and air stay black
        if sigma:
            image = image + sigma * torch.from_numpy(rng.standard_normal(image.shape, np.float32))
        return image.float()

    def _move_points(self, labels: np.ndarray, matrix: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        points = np.argwhere(labels != UNLABELLED)  # (N, 2)
        return np.linalg.solve(matrix, (points - offset).T).T, labels[tuple(points.T)]

    def _point_maps(self, points: np.ndarray, values: np.ndarray, spacing_mm) -> tuple[Tensor, Tensor]:
        labels = np.full(self.size, UNLABELLED, np.uint8)
        pixels = np.rint(points).astype(int)
        inside = ((pixels >= 0) & (pixels < self.size)).all(1)
        labels[tuple(pixels[inside].T)] = values[inside]
        extent = np.ones((self.num_classes, *self.size) if self.radius_mm else (self.num_classes, 1, 1), bool)
        if self.radius_mm:  # points that left the crop still bound their vertebra
            for k in range(BACKGROUND + 1, self.num_classes):
                extent[k] = extent_mask(points[values == k], self.size, spacing_mm, self.radius_mm)
        return torch.from_numpy(labels), torch.from_numpy(extent)


def _sampling_grid(matrix: np.ndarray, offset: np.ndarray, size: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """grid_sample's coordinates, x before y and -1..1 over the slice of `shape`, for an output of `size`."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    y = matrix[0, 0] * rows + matrix[0, 1] * columns + offset[0]
    x = matrix[1, 0] * rows + matrix[1, 1] * columns + offset[1]
    grid = np.stack([(2 * x + 1) / shape[1] - 1, (2 * y + 1) / shape[0] - 1], -1)
    return torch.from_numpy(grid[None].astype(np.float32))


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
