"""A trained model, and what it says of a scan: all slices of one axis, put together again.

Slices pass through the network a few at a time.  What is made of them decides what memory holds: all class
probabilities (`Model.probabilities`), labels alone (`Model.labels`), or labels on another grid (`Model.segment`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pointseg.estimate import estimated_confusion
from pointseg.kernels import argmax_of_planes, reassemble, reassemble_labels, resample_argmax
from pointseg.levels import in_order
from pointseg.metrics import weighted_dice
from pointseg.network import FCN8VGG16, for_inference
from pointseg.preprocess import Prepared, prepare
from pointseg.slices import AXES, cut_crops, input_size, tile_corners
from pointseg.volume import BACKGROUND, Volume

BATCH_PX = 8 * 192 * 192  # pixels that the network sees at once: what a laptop has room for


@dataclass(frozen=True)
class Model:
    """A network with the axis and the grid that it was trained for."""

    network: FCN8VGG16
    axis: str
    grid_mm: float
    input_px: int
    modalities: tuple[str, ...] = ()  # of its training scans, "CT" or "MR"; () where that is not known

    @property
    def num_classes(self) -> int:
        """6 (background, L1..L5), or 2 (background, vertebra)."""
        return self.network.config["num_classes"]

    def prepare(self, volume: Volume) -> Prepared:
        return prepare(volume, self.grid_mm)

    def probabilities(self, scan: Prepared) -> np.ndarray:
        """Class probabilities on the prepared grid.   -> (K, z, y, x) float32"""
        out = np.empty((self.num_classes, *scan.shape), np.float32)
        for i, plane in enumerate(self._probability_planes(scan)):
            np.moveaxis(out, AXES[self.axis] + 1, 0)[i] = plane
        return out

    def labels(self, scan: Prepared) -> np.ndarray:
        """The most probable class of each voxel: `probabilities`' argmax, without its memory.   -> (z, y, x) uint8"""
        shape, _ = self._tiles(scan)
        slices = [reassemble_labels(crops, corners, shape) for crops, corners in self.logits(scan)]
        return np.ascontiguousarray(np.moveaxis(np.concatenate(slices), 0, AXES[self.axis]))

    def segment(self, scan: Prepared, shape: tuple[int, int, int]) -> np.ndarray:
        """`probabilities`, resampled to the grid that a scan came from, and their argmax.   -> (*shape) uint8

        A slice at a time: beside the scan and the result memory holds a few slices, however many there are.
        """
        axis = AXES[self.axis]
        turned = (shape[axis], *np.delete(shape, axis))
        labels = argmax_of_planes(self._probability_planes(scan), scan.shape[axis], turned)
        return np.ascontiguousarray(np.moveaxis(labels, 0, axis))

    def score(self, labelled: Sequence[Prepared]) -> float:
        """Dice_wi pooled over scans on the prepared grid, in the model's classes: counted, or estimated from points."""
        k = self.num_classes
        return weighted_dice(sum((estimated_confusion(scan, self.labels(scan), k) for scan in labelled),
                                 np.zeros((k, k))))

    def logits(self, scan: Prepared, indices: range | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Logits of the crops that cover each slice, and where the crops lie in it, a few slices at a time.

        indices: of the slices, where not all.   -> logits (S, N, K, h, w) float32, corners (N, 2), as
        `reassemble_labels` takes them.
        """
        apply, axis = for_inference(self.network), AXES[self.axis]
        shape, size = self._tiles(scan)
        corners = tile_corners(shape, size)
        at_once = max(1, BATCH_PX // (len(corners) * size[0] * size[1]))
        indices = range(scan.shape[axis]) if indices is None else indices
        for chunk in (indices[i : i + at_once] for i in range(0, len(indices), at_once)):
            crops = np.concatenate([cut_crops(scan, axis, i, corners, size) for i in chunk])
            logits = apply(torch.from_numpy(crops)).cpu().contiguous().numpy()
            yield logits.reshape(len(chunk), len(corners), *logits.shape[1:]), np.array(corners)

    def _tiles(self, scan: Prepared) -> tuple[tuple[int, int], tuple[int, int]]:
        """The size of a slice, and of the crops that cover it."""
        shape = tuple(np.delete(scan.shape, AXES[self.axis]).tolist())
        return shape, input_size([shape], self.input_px)

    def _probability_planes(self, scan: Prepared) -> Iterator[np.ndarray]:
        """(K, H, W) float32 of one slice after the other."""
        shape, _ = self._tiles(scan)
        for crops, corners in self.logits(scan):
            for of_slice in crops:
                logits = reassemble(of_slice, corners, shape)
                logits -= logits.max(0)
                np.exp(logits, out=logits)
                logits /= logits.sum(0)
                yield logits


@dataclass(frozen=True)
class ThreeAxes:
    """Three models of one task, one an axis, that answer together; to all that uses a `Model` it is one.

    Whether a voxel is a vertebra: the mean of the three.  Which level: as the sagittal and coronal models divide it,
    but one level a body, from head to foot.
    """

    transverse: Model
    coronal: Model
    sagittal: Model
    threshold: float = 0.5  # how sure of a level an answer must be, against background: more makes vertebrae smaller
    ordered: bool = True  # see `levels`; else each voxel has its own level

    @property
    def grid_mm(self) -> float:
        return self.sagittal.grid_mm

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.sagittal.modalities

    @property
    def num_classes(self) -> int:
        return self.sagittal.num_classes

    prepare = Model.prepare

    def probabilities(self, scan: Prepared) -> np.ndarray:
        """Class probabilities on the prepared grid; at the threshold a level equals background.   -> (K, z, y, x)"""
        out = self.sagittal.probabilities(scan) + self.coronal.probabilities(scan)  # the level's two votes
        vertebra = self.transverse.probabilities(scan)[1] + 2 - out[BACKGROUND]
        vertebra *= (1 - self.threshold) / 3
        background = self.threshold - vertebra * (self.threshold / (1 - self.threshold))
        vertebra /= vertebra + background
        levels = out[BACKGROUND + 1 :]
        levels *= vertebra / np.maximum(levels.sum(0), 1e-6)
        np.subtract(1, vertebra, out=out[BACKGROUND])
        return in_order(out, scan.spacing_mm) if self.ordered else out

    def labels(self, scan: Prepared) -> np.ndarray:
        """The most probable class of each voxel.   -> (z, y, x) uint8"""
        return self.probabilities(scan).argmax(0).astype(np.uint8)

    def segment(self, scan: Prepared, shape: tuple[int, int, int]) -> np.ndarray:
        """`probabilities`, resampled to the grid that a scan came from, and their argmax.   -> (*shape) uint8"""
        return resample_argmax(self.probabilities(scan), shape)

    score = Model.score
