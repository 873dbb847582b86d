"""Preparation of a scan: isotropic grid, intensities to [0, 1], contrast-limited adaptive equalisation per slice.

Labels are resampled by nearest neighbour, always: the published code interpolated some of them.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from pointseg.kernels import clahe
from pointseg.volume import AIR_BELOW_HU, UNLABELLED, Clicks, Volume, in_hounsfield_units

CT_WINDOW_HU = (-200.0, 1000.0)  # fat to cortical bone; fixed, so that metal cannot compress the contrast of bone
MR_PERCENTILES = (0.5, 99.5)  # MR has no unit, and a few very bright voxels
CLAHE_BINS, CLAHE_KERNEL_MM, CLAHE_CLIP = 256, 50.0, 0.009
CHUNK_VOXELS = 1 << 22  # resampled at once: 16 MB of float32


@dataclass(frozen=True)
class Prepared:
    """A scan as the network sees it."""

    image: np.ndarray  # (z, y, x) uint8, 0..255 for intensities 0..1
    mask: np.ndarray | None  # (z, y, x) uint8, 0..5 or UNLABELLED
    spacing_mm: tuple[float, float, float]  # (z, y, x), as near to the grid as a whole number of voxels allows
    name: str
    modality: str = ""  # "CT" or "MR", told by the intensities where the scan does not say
    clicks: Clicks | None = None  # of an expert, where there are any

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.image.shape

    def with_mask(self, mask: np.ndarray) -> "Prepared":
        """The same scan with another mask: pseudo labels instead of true ones."""
        return Prepared(self.image, mask, self.spacing_mm, self.name, self.modality)


@dataclass(frozen=True)
class Scans:
    """The prepared scans of a split.   Their masks are what is known of them: true masks, or an expert's labels."""

    train: list[Prepared]
    validation: list[Prepared]
    test: list[Prepared] = field(default_factory=list)


def prepare(volume: Volume, grid_mm: float) -> Prepared:
    """Resample to grid_mm (image linear, mask nearest), rescale intensity, CLAHE on each sagittal slice.

    The field of view stays as it is, so a scan and its prepared form differ only in their number of voxels.
    """
    shape = tuple(max(2, round(n * s / grid_mm)) for n, s in zip(volume.image.shape, volume.spacing_mm, strict=True))
    spacing_mm = tuple(n * s / m for n, s, m in zip(volume.image.shape, volume.spacing_mm, shape, strict=True))
    image = resample_linear(volume.image, shape)
    modality = volume.modality or modality_from_intensities(image)
    image = equalise(rescale(image, modality), spacing_mm)
    mask = None if volume.mask is None else resample_nearest(volume.mask, shape)
    clicks = volume.clicks and moved(volume.clicks, volume.image.shape, shape)
    return Prepared(image, mask, spacing_mm, volume.name, modality, clicks)


def moved(clicks: Clicks, old: tuple[int, int, int], new: tuple[int, int, int]) -> Clicks:
    """Clicks on another grid over the same field of view.

    Where clicks of two classes come to lie on one voxel nothing is known of it; of equal ones the first is kept.
    Places that chance has chosen stay as many as they are, since each stands for its part of the scan.
    """
    places = ((clicks.places + 0.5) * new / old).astype(np.int32)
    flat = np.ravel_multi_index(tuple(places.T), new)
    _, first, which = np.unique(flat, return_index=True, return_inverse=True)
    disputed = np.zeros(len(first), bool)
    disputed[which[clicks.values != clicks.values[first][which]]] = True
    kept = np.zeros(len(flat), bool)
    kept[first[~disputed]] = True
    kept |= np.isfinite(clicks.stands_for_mm3)
    return Clicks(places[kept], clicks.values[kept], clicks.seconds[kept], clicks.stands_for_mm3[kept])


def resample_linear(image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """(z, y, x) -> (*shape) float32 over the same field of view; a coarser grid averages what it covers (antialias).

    A few slices at a time, so that a large int16 scan never stands in memory as float32.
    """
    rows = np.empty((len(image), *shape[1:]), np.float32)  # rows and columns of each slice first
    for part in _chunks(image.shape):
        rows[part] = _resize(np.ascontiguousarray(image[part], np.float32), shape[1:])
    out = np.empty(shape, np.float32)
    for part in _chunks((shape[1], len(image), shape[2])):  # then along z, which one 3-D call would not smooth
        turned = np.ascontiguousarray(rows[:, part].transpose(1, 0, 2))  # (y, z, x)
        out[:, part] = _resize(turned, (shape[0], shape[2])).transpose(1, 0, 2)
    return out


def _resize(planes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(n, H, W) float32 -> (n, *shape)."""
    return F.interpolate(torch.from_numpy(planes)[:, None], shape, mode="bilinear", antialias=True)[:, 0].numpy()


def _chunks(shape: tuple[int, int, int]) -> list[slice]:
    """The first axis in parts of about CHUNK_VOXELS."""
    count = max(1, CHUNK_VOXELS // (shape[1] * shape[2]))
    return [slice(i, i + count) for i in range(0, shape[0], count)]


def resample_nearest(labels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """(z, y, x) -> (*shape) of the same type over the same field of view; no value appears that was not there.

    On a coarser grid, of the slices that one covers, one that is labelled goes before one that is not.
    """
    index = []
    for axis, (n, m) in enumerate(zip(shape, labels.shape, strict=True)):
        index.append(((np.arange(n) + 0.5) * m / n).astype(int))
        known = (labels != UNLABELLED).any(tuple({0, 1, 2} - {axis}))
        for i in np.flatnonzero(known) if m > n and not known.all() else ():
            covers = int((i + 0.5) * n / m)
            if not known[index[-1][covers]]:
                index[-1][covers] = i
    return labels[np.ix_(*index)]


def rescale(image: np.ndarray, modality: str) -> np.ndarray:
    """Intensities to [0, 1]: a fixed window for CT, percentiles for MR.  An unknown modality is told by its air.

    A CT that is not in HU is treated like MR.
    """
    ct = (modality or modality_from_intensities(image)) == "CT" and in_hounsfield_units(image)
    low, high = map(float, CT_WINDOW_HU if ct else np.percentile(image, MR_PERCENTILES))  # NumPy's would widen float32
    out = image - low
    out /= max(high - low, 1e-6)
    return out.clip(0, 1, out=out)


def modality_from_intensities(image: np.ndarray) -> str:
    """ "CT" or "MR", told by the air that a CT shows below -300 HU."""
    return "CT" if np.count_nonzero(image < AIR_BELOW_HU) > 0.02 * image.size else "MR"


def equalise(image: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """CLAHE on each sagittal slice, stretched to its own range: (z, y, x) in [0, 1] -> uint8."""
    kernel = tuple(max(2, round(CLAHE_KERNEL_MM / s)) for s in spacing_mm[:2])
    return clahe(image.astype(np.float32, copy=False), kernel, CLAHE_CLIP, CLAHE_BINS)
