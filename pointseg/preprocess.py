"""Preparation of a scan: isotropic grid, intensities to [0, 1], contrast-limited adaptive equalisation per slice.

Thesis section 3.1.  Labels are resampled by nearest neighbour, always: the published code interpolated some of them.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from pointseg.kernels import clahe
from pointseg.volume import Volume

CT_WINDOW_HU = (-200.0, 1000.0)  # fat to cortical bone; fixed, so that metal cannot compress the contrast of bone
MR_PERCENTILES = (0.5, 99.5)  # MR has no unit, and a few very bright voxels
CLAHE_BINS, CLAHE_KERNEL_MM, CLAHE_CLIP = 256, 50.0, 0.009


@dataclass(frozen=True)
class Prepared:
    """A scan as the network sees it."""

    image: np.ndarray  # (z, y, x) uint8, 0..255 for intensities 0..1
    mask: np.ndarray | None  # (z, y, x) uint8, 0..5
    spacing_mm: tuple[float, float, float]  # (z, y, x), as near to the grid as a whole number of voxels allows
    name: str


def prepare(volume: Volume, grid_mm: float) -> Prepared:
    """Resample to grid_mm (image linear, mask nearest), rescale intensity, CLAHE on each sagittal slice.

    The field of view stays as it is, so a scan and its prepared form differ only in their number of voxels.
    """
    shape = tuple(max(2, round(n * s / grid_mm)) for n, s in zip(volume.image.shape, volume.spacing_mm, strict=True))
    spacing_mm = tuple(n * s / m for n, s, m in zip(volume.image.shape, volume.spacing_mm, shape, strict=True))
    image = equalise(rescale(resample_linear(volume.image, shape), volume.modality), spacing_mm)
    mask = None if volume.mask is None else resample_nearest(volume.mask, shape)
    return Prepared(image, mask, spacing_mm, volume.name)


def resample_linear(image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """(z, y, x) -> (*shape) float32 over the same field of view; a coarser grid averages what it covers (antialias)."""
    x = torch.from_numpy(np.ascontiguousarray(image, np.float32))
    x = F.interpolate(x[:, None], shape[1:], mode="bilinear", antialias=True)[:, 0]  # rows and columns of each slice
    x = x.permute(1, 0, 2)  # (y, z, x): then along z, which one 3-D call would not smooth
    x = F.interpolate(x[:, None], (shape[0], shape[2]), mode="bilinear", antialias=True)[:, 0]
    return x.permute(1, 0, 2).contiguous().numpy()


def resample_nearest(labels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """(z, y, x) -> (*shape) of the same type over the same field of view; no value appears that was not there."""
    index = [((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(shape, labels.shape, strict=True)]
    return labels[np.ix_(*index)]


def rescale(image: np.ndarray, modality: str) -> np.ndarray:
    """Intensities to [0, 1]: a fixed window for CT, percentiles for MR.  An unknown modality is told by its air."""
    ct = (modality or told_modality(image)) == "CT"
    low, high = map(float, CT_WINDOW_HU if ct else np.percentile(image, MR_PERCENTILES))  # NumPy's would widen float32
    out = image - low
    out /= max(high - low, 1e-6)
    return out.clip(0, 1, out=out)


def told_modality(image: np.ndarray) -> str:
    """ "CT" or "MR", told by the air that a CT shows below -300 HU."""
    return "CT" if np.percentile(image, 2) < -300 else "MR"


def equalise(image: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """CLAHE on each sagittal slice, stretched to its own range: (z, y, x) in [0, 1] -> uint8."""
    kernel = tuple(max(2, round(CLAHE_KERNEL_MM / s)) for s in spacing_mm[:2])
    return clahe(image.astype(np.float32, copy=False), kernel, CLAHE_CLIP, CLAHE_BINS)
