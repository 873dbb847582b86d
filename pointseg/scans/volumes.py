"""Scans and masks on disk <-> arrays on the canonical axes, which `volume` describes.

Here and in the modules that read files SimpleITK's order (x, y, z) is met, and nowhere else.
"""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pointseg.scans.clicks import VERSE_L1, read_clicks
from pointseg.scans.files import write_image
from pointseg.scans.reading import read_image, read_mask
from pointseg.volume import (
    AIR_BELOW_HU,
    BACKGROUND,
    CLASSES,
    UNLABELLED,
    Geometry,
    ScanError,
    Volume,
    in_hounsfield_units,
    sample_of,
)

VERSE_TO_CLASS = {v: v - VERSE_L1 + 1 if VERSE_L1 <= v < VERSE_L1 + 5 else BACKGROUND for v in range(29)}
VERTEBRA = 99  # in the masks of dataset folders beside VerSe's numbers: a vertebra of unknown level
SCHEMES = {  # mask value -> class
    "verse": VERSE_TO_CLASS,
    "classes": {c: c for c in (*range(len(CLASSES)), UNLABELLED)},
    "dataset": VERSE_TO_CLASS | {UNLABELLED: UNLABELLED},
    "vertebra": {BACKGROUND: BACKGROUND, VERTEBRA: 1, UNLABELLED: UNLABELLED},
}
GRID_TOLERANCE_VOXELS = 0.1  # headers hold rounded numbers; below half a voxel the nearest neighbour is the same
OUTSIDE_MAX = 0.01  # share of a mask's labelled voxels that may lie outside its scan
PADDING_MAX, PADDING_SHARE = -1500, 0.9  # air is -1000 HU: lower values, nearly all of them one, mark what has no scan


def geometry_of(image: sitk.Image) -> Geometry:
    """The grid of an image."""
    return Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def read_volume(image_path: str | Path, mask_path: str | Path | None = None, *, name: str | None = None,
                modality: str = "", scheme: str = "verse", series: str = "",
                clicks_path: str | Path | None = None) -> Volume:
    """Read a scan (NIfTI, MHA/MHD, NRRD, multi-frame DICOM, or a DICOM folder) and its mask onto the canonical axes.

    scheme: what the mask's values mean, "verse" (0..28, L1..L5 = 20..24) or "classes" (0..5 and 255, unlabelled); those
    of dataset folders are "dataset" (VerSe's and 255) and "vertebra" (0, 255 and 99, a vertebra of unknown level, which
    becomes 1).
    It is not guessed, because a VerSe mask of the neck holds 1..5 too.  A mask on another grid is resampled (nearest
    neighbour) by physical position, provided that it lies within the scan.  series: see `reading.read_image`.
    clicks_path: an expert's clicks, see `clicks.read_clicks`.
    """
    image_path = Path(image_path)
    stored = read_image(image_path, series)
    geometry = geometry_of(stored.image)
    mask, of_mask = None, ()
    if mask_path is not None:
        mask_path = Path(mask_path)
        stored_mask = read_mask(mask_path)
        of_mask = [f"{mask_path}: {note}" for note in stored_mask.notes]
        on_grid = on_grid_of(stored.image, stored_mask.image, mask_path, image_path)
        if on_grid is not stored_mask.image:
            doubt = ", though of the same size: one of the two headers may be wrong"
            alike = stored_mask.image.GetSize() == stored.image.GetSize()
            of_mask.append(f"{mask_path}: its grid is not the scan's{doubt * alike}; nearest labels were taken")
        mask = _to_classes(to_canonical(on_grid, geometry), scheme, mask_path)
    image, notes = _intensities(to_canonical(stored.image, geometry), image_path)
    modality = modality or stored.modality
    if modality == "CT" and not in_hounsfield_units(image):
        notes.append(f"CT, but not in Hounsfield units: its values run from {image.min():g} to {image.max():g}, "
                     "expected fat and air below 0; its contrast is set by percentiles, as that of MR")
    if not modality and _like_shifted_ct(image):
        notes.append(f"neither its header nor an option says CT or MR, and with no air below {AIR_BELOW_HU} it is "
                     "taken for MR, but its values lie as a CT's do with 1024 added: if it is one, subtract 1024")
    if name is None:
        name = stem(image_path) if image_path.is_file() else image_path.resolve().name
    clicks, doubts = read_clicks(clicks_path, geometry) if clicks_path else (None, ())
    return Volume(image, mask, geometry.spacing_mm, name, modality, geometry,
                  (*stored.notes, *notes, *of_mask, *doubts), clicks)


def stem(path: Path) -> str:
    """A file's name without its ending, .nii.gz being one."""
    return Path(path.name.removesuffix(path.suffix) if path.suffix.lower() == ".gz" else path.name).stem


def to_own_geometry(labels: np.ndarray, geometry: Geometry) -> sitk.Image:
    """A canonical array (z, y, x) on the scan's stored grid, with the header's very numbers."""
    if labels.shape != geometry.shape_zyx:
        raise ValueError(f"an array of shape {labels.shape} does not fit the scan's canonical {geometry.shape_zyx}")
    order, flips = geometry.axes
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.flip(labels, flips).transpose(np.argsort(order))))
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    return image


def write_mask(path: str | Path, labels: np.ndarray, geometry: Geometry, *, verse: bool = False) -> None:
    """Write labels (z, y, x), 0..5, as uint8 in the scan's own geometry; `verse` writes L1..L5 as 20..24."""
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        raise ValueError(f"labels {labels.min()}..{labels.max()}, expected 0..{len(CLASSES) - 1}")
    if verse:
        labels = np.where(labels == BACKGROUND, 0, labels + VERSE_L1 - 1)
    write_image(Path(path), to_own_geometry(labels.astype(np.uint8), geometry))


def write_volume(image_path: str | Path, volume: Volume, mask_path: str | Path | None = None) -> None:
    """Write a case of a dataset folder: the scan in its own geometry and, where both are given, its mask (VerSe)."""
    image = volume.image
    if image.min() >= -(2**15) and image.max() < 2**15 and np.array_equal(image, np.rint(image)):  # as scanners do
        image = image.astype(np.int16)
    write_image(Path(image_path), to_own_geometry(image, volume.geometry))
    if mask_path is not None and volume.mask is not None:
        write_mask(mask_path, volume.mask, volume.geometry, verse=True)


def to_canonical(stored: sitk.Image, geometry: Geometry) -> np.ndarray:
    """The voxels (z, y, x) of an image on its geometry's canonical axes: a view, without a copy."""
    return turned(sitk.GetArrayViewFromImage(stored), geometry)


def turned(values: np.ndarray, geometry: Geometry) -> np.ndarray:
    """An array as stored -> a view of it on the canonical axes (z, y, x)."""
    order, flips = geometry.axes
    return np.flip(values.transpose(order), flips)


def _intensities(values: np.ndarray, path: Path) -> tuple[np.ndarray, list[str]]:
    """Intensities as int16, if these are what they are, else float32; finite, without padding; and what was done.

    NaN and -inf become the smallest finite value, +inf the largest, padding the smallest value above it: all of them
    mark what lies outside the scanned body.
    """
    low, high, limits = values.min(), values.max(), np.iinfo(np.int16)  # of floats with NaN they are NaN
    whole = np.issubdtype(values.dtype, np.integer) and limits.min <= low and high <= limits.max
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, and is then dealt with as such
        image = np.array(values, np.int16 if whole else np.float32, order="C")  # a copy: `values` belongs to SimpleITK
    notes = []
    if not whole and not (finite := np.isfinite(image)).all():
        if not finite.any():
            raise ScanError(f"{path}: found no finite voxel value, expected intensities; export the scan again")
        low, high = image[finite].min(), image[finite].max()
        notes.append(f"replaced {np.count_nonzero(~finite)} voxels that are not finite")
        np.nan_to_num(image, copy=False, nan=low, neginf=low, posinf=high)
    if low <= PADDING_MAX:
        padding = image <= PADDING_MAX
        count = np.count_nonzero(padding)
        if count < padding.size and np.count_nonzero(image == low) >= PADDING_SHARE * count:
            image[padding] = image[~padding].min()
            notes.append(f"replaced padding of {low:g} in {count / padding.size:.1%} of the voxels")
    return image, notes


def _like_shifted_ct(image: np.ndarray) -> bool:
    """Whether most of what is no air has values from fat to soft tissue, -100 to 250 HU, were 1024 subtracted.

    MR, whose tissues differ by more, has not.
    """
    some = sample_of(image) - 1024.0
    tissue = some[some > AIR_BELOW_HU]
    return tissue.size > 0.2 * some.size and np.count_nonzero(abs(tissue - 75) < 175) > 0.6 * tissue.size


def on_grid_of(image: sitk.Image, mask: sitk.Image, mask_path: Path, image_path: Path) -> sitk.Image:
    """The mask on the image's grid: as it is where the grids agree, else nearest neighbours by physical position."""
    own, target = geometry_of(mask), geometry_of(image)
    corners = np.array(list(itertools.product(*((0, n - 1) for n in target.size))))
    apart_voxels = np.abs(target.to_index(own.to_mm(corners)) - corners).max()
    if own.size == target.size and apart_voxels <= GRID_TOLERANCE_VOXELS:
        return mask
    labelled = target.to_index(own.to_mm(np.argwhere(sitk.GetArrayViewFromImage(mask))[:, ::-1]))  # (voxel, x y z)
    inside = ((labelled >= -0.5) & (labelled <= np.array(target.size) - 0.5)).all(axis=1)
    if (outside := np.count_nonzero(~inside)) > OUTSIDE_MAX * len(labelled):
        raise ScanError(f"{mask_path}: found a grid ({own}) other than that of {image_path} ({target}), with {outside} "
                        f"of {len(labelled)} labelled voxels outside it, expected a mask of this scan; "
                        "check that the two belong together")
    return sitk.Resample(mask, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0)


def _to_classes(values: np.ndarray, scheme: str, path: Path) -> np.ndarray:
    known = SCHEMES[scheme]
    unknown = [v for v in np.unique(values).tolist() if v not in known]
    if unknown:
        raise ScanError(f"{path}: found mask values {shown_values(unknown)}, expected whole numbers {span_of(known)} "
                        f"(scheme \"{scheme}\"); check that it is a mask, or import its dataset")
    table = np.zeros(256, np.uint8)
    table[list(known)] = list(known.values())
    return table[values.astype(np.uint8)]


def shown_values(values: Sequence[float]) -> str:
    """Some of them, for a message."""
    shown = [f"{v:g}" if float(f"{v:g}") == v else repr(v) for v in values[:8]]
    return ", ".join(shown) + (", ..." if len(values) > 8 else "")


def span_of(known: Iterable[int]) -> str:
    """ "0..28, 255" of these whole numbers."""
    runs: list[list[int]] = []
    for v in sorted(known):
        if runs and runs[-1][-1] == v - 1:
            runs[-1].append(v)
        else:
            runs.append([v])
    return ", ".join(f"{r[0]}..{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)
