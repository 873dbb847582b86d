"""From a network to a labelled scan: all slices of one axis, put together again.

Slices come from `logits_of_slices`, a few at a time.  What is made of them decides what memory holds: all class
probabilities (`predict`), labels alone (`predict_labels`), or labels on another grid (`segment`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pointseg.kernels import argmax_of_planes, confusion_matrix, reassemble, reassemble_labels
from pointseg.metrics import weighted_dice
from pointseg.network import FCN8VGG16, for_inference
from pointseg.preprocess import Prepared, prepare
from pointseg.runs.parallel import all_sum, share
from pointseg.slices import AXES, cut_crops, input_size, tile_corners
from pointseg.volume import BACKGROUND, CLASSES, UNLABELLED, Volume

BATCH_PX = 8 * 192 * 192  # pixels that the network sees at once: what a laptop has room for


def logits_of_slices(network: nn.Module, scan: Prepared, axis: str,
                     input_px: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits of the crops that cover each slice along an axis, and the crops' places.

    -> a few slices at a time: crops (S, N, K, h, w) float32, corners (N, 2), as `reassemble_labels` takes them.
    """
    apply, number = for_inference(network), AXES[axis]
    shape = tuple(np.delete(scan.image.shape, number))
    size = input_size([shape], input_px)
    corners = tile_corners(shape, size)
    slices = max(1, BATCH_PX // (len(corners) * size[0] * size[1]))
    for first in range(0, scan.image.shape[number], slices):
        chunk = range(first, min(first + slices, scan.image.shape[number]))
        crops = np.concatenate([cut_crops(scan, number, i, corners, size) for i in chunk])
        logits = apply(torch.from_numpy(crops)).cpu().contiguous().numpy()
        yield logits.reshape(len(chunk), len(corners), *logits.shape[1:]), np.array(corners)


def predict(network: nn.Module, scan: Prepared, axis: str, input_px: int) -> np.ndarray:
    """Class probabilities of a whole scan, slice by slice along an axis.   -> (K, z, y, x) float32.

    Logits are averaged where crops overlap, then turned into probabilities.
    """
    for i, plane in enumerate(_probability_planes(network, scan, axis, input_px)):
        if i == 0:
            out = np.empty((len(plane), *scan.image.shape), np.float32)
        np.moveaxis(out, AXES[axis] + 1, 0)[i] = plane
    return out


def predict_labels(network: nn.Module, scan: Prepared, axis: str, input_px: int) -> np.ndarray:
    """The most probable class of each voxel: the argmax of `predict`, without its memory.   -> (z, y, x) uint8."""
    return _labels_of_classes(network, scan, axis, input_px)[0]


def _labels_of_classes(network: nn.Module, scan: Prepared, axis: str, input_px: int) -> tuple[np.ndarray, int]:
    """`predict_labels`, and the number of classes that it chose among."""
    shape, slices = tuple(np.delete(scan.image.shape, AXES[axis])), []
    for crops, corners in logits_of_slices(network, scan, axis, input_px):
        slices.append(reassemble_labels(crops, corners, shape))
    return np.ascontiguousarray(np.moveaxis(np.concatenate(slices), 0, AXES[axis])), crops.shape[2]


def segment(network: nn.Module, scan: Prepared, axis: str, input_px: int, shape: tuple[int, int, int]) -> np.ndarray:
    """`predict`, resampled to a grid of another shape, and its argmax, a slice at a time.   -> (*shape) uint8.

    Beside the scan and the result memory holds a few slices, however many there are.
    """
    number = AXES[axis]
    planes = _probability_planes(network, scan, axis, input_px)
    turned = (shape[number], *np.delete(shape, number))
    return np.ascontiguousarray(np.moveaxis(argmax_of_planes(planes, scan.image.shape[number], turned), 0, number))


def _probability_planes(network: nn.Module, scan: Prepared, axis: str, input_px: int) -> Iterator[np.ndarray]:
    """(K, H, W) float32 of one slice after the other."""
    shape = tuple(np.delete(scan.image.shape, AXES[axis]))
    for crops, corners in logits_of_slices(network, scan, axis, input_px):
        for of_slice in crops:
            logits = reassemble(of_slice, corners, shape)
            logits -= logits.max(0)
            np.exp(logits, out=logits)
            logits /= logits.sum(0)
            yield logits


def known_truth(mask: np.ndarray, num_classes: int) -> np.ndarray:
    """A mask 0..5 or UNLABELLED in the classes that a model has: for two of them L1..L5 become one."""
    return mask if num_classes > 2 else np.where(mask == UNLABELLED, mask, mask != BACKGROUND).astype(np.uint8)


def validation_score(network: nn.Module, scans: Sequence[Prepared], axis: str, input_px: int) -> float:
    """Dice_wi pooled over scans on the prepared grid, in the classes that the network has."""
    total = np.zeros((len(CLASSES), len(CLASSES)), np.int64)  # classes that a network does not have count for nothing
    for scan in share(scans):  # of several processes each takes some, and all get the score of all
        labels, k = _labels_of_classes(network, scan, axis, input_px)
        total[:k, :k] += confusion_matrix(known_truth(scan.mask, k), labels, k)
    return weighted_dice(all_sum(torch.from_numpy(total)).numpy())


def predict_slice(network: nn.Module, scan: Prepared, axis: str, index: int, input_px: int) -> np.ndarray:
    """The labels of a single slice, to look at.   -> (H, W) uint8"""
    number = AXES[axis]
    shape = tuple(np.delete(scan.image.shape, number))
    size = input_size([shape], input_px)
    corners = tile_corners(shape, size)
    crops = cut_crops(scan, number, index, corners, size)
    logits = for_inference(network)(torch.from_numpy(crops)).cpu().contiguous().numpy()
    return reassemble_labels(logits[None], np.array(corners), shape)[0]


@dataclass(frozen=True)
class Model:
    """A network with the axis and the grid it was trained for, and the cases of its split."""

    network: FCN8VGG16
    axis: str
    grid_mm: float
    input_px: int
    profile: str
    seed: int
    split: dict[str, list[str]]  # "train", "validation", "test" -> case names
    modalities: tuple[str, ...] = ()  # of its training scans, "CT" or "MR"; () where that is not known

    @property
    def num_classes(self) -> int:
        """6 (background, L1..L5), or 2 (background, vertebra)."""
        return self.network.config["num_classes"]

    def prepare(self, volume: Volume) -> Prepared:
        return prepare(volume, self.grid_mm)

    def probabilities(self, scan: Prepared) -> np.ndarray:
        """(K, z, y, x) float32 on the prepared grid."""
        return predict(self.network, scan, self.axis, self.input_px)

    def labels(self, scan: Prepared) -> np.ndarray:
        """(z, y, x) uint8 on the prepared grid."""
        return predict_labels(self.network, scan, self.axis, self.input_px)

    def segment(self, scan: Prepared, shape: tuple[int, int, int]) -> np.ndarray:
        """(*shape) uint8 on the grid that a scan came from."""
        return segment(self.network, scan, self.axis, self.input_px, shape)
