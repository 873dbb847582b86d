"""From a network to a labelled scan: all slices of one axis, put together again."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from pointseg.kernels import confusion_matrix, reassemble
from pointseg.metrics import weighted_dice
from pointseg.network import autocast
from pointseg.preprocess import Prepared
from pointseg.slices import AXES, cut_crops, input_size, tile_corners
from pointseg.volume import BACKGROUND


def predict(network: nn.Module, scan: Prepared, axis: str, input_px: int, batch: int = 16) -> np.ndarray:
    """Class probabilities of a whole scan, slice by slice along an axis.   -> (K, z, y, x) float32.

    Logits are averaged where crops overlap, then turned into probabilities.
    """
    where, number = next(network.parameters()).device, AXES[axis]
    count, shape = scan.image.shape[number], tuple(np.delete(scan.image.shape, number))
    size = input_size([shape], input_px)
    corners = tile_corners(shape, size)
    slices = None  # (slices, K, H, W), a view of the result
    network.eval()
    for first in range(0, count, batch):
        chunk = range(first, min(first + batch, count))
        crops = torch.from_numpy(np.concatenate([cut_crops(scan, number, i, corners, size) for i in chunk])).to(where)
        with torch.inference_mode(), autocast(where):
            logits = network(crops.to(memory_format=torch.channels_last)).float().cpu().numpy()
        if slices is None:
            out = np.empty((logits.shape[1], *scan.image.shape), np.float32)
            slices = np.moveaxis(out, number + 1, 0)
        for i, of_slice in zip(chunk, np.split(logits, len(chunk)), strict=True):
            slices[i] = reassemble(of_slice, np.array(corners), shape)
    return softmax_(out)


def softmax_(logits: np.ndarray) -> np.ndarray:
    """Softmax over the first axis, in place, a slab at a time."""
    for z in range(logits.shape[1]):
        slab = logits[:, z]
        slab -= slab.max(0)
        np.exp(slab, out=slab)
        slab /= slab.sum(0)
    return logits


def known_truth(mask: np.ndarray, num_classes: int) -> np.ndarray:
    """A mask 0..5 in the classes that a model has: for two of them L1..L5 become one."""
    return mask if num_classes > 2 else (mask != BACKGROUND).astype(np.uint8)


def validation_score(network: nn.Module, scans: Sequence[Prepared], axis: str, input_px: int) -> float:
    """Dice_wi pooled over scans on the prepared grid, in the classes that the network has."""
    total = 0
    for scan in scans:
        prediction = predict(network, scan, axis, input_px)
        truth = known_truth(scan.mask, len(prediction))
        total = total + confusion_matrix(truth, prediction.argmax(0).astype(np.uint8), len(prediction))
    return weighted_dice(total)
