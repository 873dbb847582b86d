"""What the importers build on: a scan as found and as read, and masks in VerSe's numbers on their images' grids."""

import fnmatch
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pointseg.scans.dicom import NoPlace, read_pixels
from pointseg.scans.files import Stored, some_of
from pointseg.scans.reading import read_image, read_mask
from pointseg.scans.volumes import (
    OUTSIDE_MAX,
    VERSE_L1,
    geometry_of,
    on_grid_of,
    shown_values,
    span_of,
    to_canonical,
    turned,
)
from pointseg.volume import BACKGROUND, UNLABELLED, Clicks, ScanError

BODIES, WHOLE = "vertebral bodies", "whole vertebrae"
LEVELS = {**{v: f"C{v}" for v in range(1, 8)}, **{v: f"T{v - 7}" for v in range(8, 20)},
          **{v: f"L{v - 19}" for v in range(20, 26)}, 26: "S1", 27: "coccyx", 28: "T13"}  # VerSe's numbers
NUMBERS = {name: v for v, name in LEVELS.items()}
LUMBAR = [NUMBERS[f"L{k}"] for k in range(1, 6)]


@dataclass(frozen=True)
class Found:
    """A scan of a raw folder, not read yet."""

    case: str
    patient: str  # scans of one person share it, so that a split keeps them together
    image: Path
    masks: tuple[Path, ...]
    part: str = ""  # of the published split
    note: str = ""


@dataclass(frozen=True)
class LeftOut:
    """What a raw folder holds and a dataset folder does not get."""

    case: str
    why: str


@dataclass(frozen=True)
class Read:
    """A scan and its mask."""

    image: sitk.Image
    mask: sitk.Image  # uint8 on the image's grid, VerSe's numbers, UNLABELLED, or VERTEBRA
    flaw: str = ""
    note: str = ""
    as_stored: bool = True  # the image is what its file holds: that can be copied
    clicks: Clicks | None = None  # where a source knows a point in each vertebra, these are what trains


def relabel(path: Path, mask: sitk.Image, known: dict[int, int]) -> sitk.Image:
    """A mask's values -> VerSe's, uint8; a value that is not known is an error."""
    values = sitk.GetArrayViewFromImage(mask)
    found = np.unique(values).tolist()
    if unknown := [v for v in found if v not in known]:
        raise ScanError(f"{path}: found mask values {shown_values(unknown)}, expected {span_of(known)}")
    out = np.zeros(values.shape, np.uint8)
    for v in found:
        if known[v]:
            out[values == v] = known[v]
    return like(mask, out)


def like(image: sitk.Image, values: np.ndarray) -> sitk.Image:
    """Values (z, y, x) as stored, on the grid of an image."""
    out = sitk.GetImageFromArray(values)
    out.CopyInformation(image)
    return out


def read_frames_like(found: Found) -> sitk.Image:
    """A file of many frames; where its header does not say where they lie, its masks do, which have the same grid."""
    try:
        return read_image(found.image).image
    except NoPlace:
        image, mask = read_pixels(found.image), read_mask(found.masks[0]).image
        if image.GetSize() != mask.GetSize():
            raise _other_size(found, found.masks[0], image, mask) from None
        image.CopyInformation(mask)
        return image


def read_pair(found: Found, known: dict[int, int]) -> Read:
    """An image and its one mask, by position."""
    return with_image(found, read_mask(found.masks[0]), known)


def with_image(found: Found, mask: Stored, known: dict[int, int]) -> Read:
    """A mask, in VerSe's numbers from now on, and its image."""
    stored, path = read_image(found.image), found.masks[0]
    moved, flaw = placed(stored.image, relabel(path, mask.image, known), path, found.image)
    return Read(stored.image, moved, flaw, "; ".join(mask.notes), as_stored=not stored.notes)


def placed(image: sitk.Image, mask: sitk.Image, path: Path, image_path: Path) -> tuple[sitk.Image, str]:
    """A mask on an image's grid, and what is doubtful about it: of two grids of one size one has a wrong header."""
    moved = on_grid_of(image, mask, path, image_path)
    doubtful = moved is not mask and mask.GetSize() == image.GetSize()
    return moved, f"{path.name} has the image's size, but lies elsewhere or has another spacing" if doubtful else ""


def joined(found: Found, image: sitk.Image, value_of: dict[Path, int],
           by_position: bool) -> tuple[sitk.Image, str, str]:
    """One mask of a binary file for each vertebra; by_position, or voxel by voxel, which wants equal sizes.

    -> the mask, what is doubtful about it, and notes.
    """
    out, flaws, notes = np.zeros(image.GetSize()[::-1], np.uint8), [], []
    for path, value in value_of.items():
        stored = read_mask(path)
        mask = stored.image
        notes += [f"{path.name}: {note}" for note in stored.notes]
        if by_position:
            mask, flaw = placed(image, mask, path, found.image)
            flaws.append(flaw)
        elif mask.GetSize() != image.GetSize():
            raise _other_size(found, path, image, mask)
        where = sitk.GetArrayViewFromImage(mask) != 0
        if (twice := np.count_nonzero(where & (out != 0))) > OUTSIDE_MAX * np.count_nonzero(where):
            raise ScanError(f"{path}: labels {twice} voxels that another file labels too, expected each once")
        out[where & (out == 0)] = value
    return like(image, out), "; ".join(filter(None, flaws)), some_of(notes, "; ")


def _other_size(found: Found, path: Path, image: sitk.Image, mask: sitk.Image) -> ScanError:
    sizes = [" x ".join(map(str, i.GetSize())) for i in (mask, image)]
    return ScanError(f"{path}: has {sizes[0]} voxels, but {found.image} {sizes[1]}, expected the same grid")


def hide_ends(mask: sitk.Image) -> sitk.Image:
    """Make UNLABELLED what lies beyond a labelled vertebra where the next lumbar one may be seen in part, unlabelled.

    Where a source leaves out vertebrae that the scan's edge cuts, its background is none beyond the outermost labels.
    From the centre of the outermost vertebra on, since neighbours overlap in height.
    """
    values = sitk.GetArrayFromImage(mask)
    view = turned(values, geometry_of(mask))  # (z, y, x): what is written to it stands in `values`
    labelled = [int(v) for v in cranial_to_caudal(np.unique(values)) if v not in (BACKGROUND, UNLABELLED)]
    if labelled and labelled[-1] < NUMBERS["L5"]:
        beyond = view[round(_middle(view == labelled[-1])):]
        beyond[beyond == BACKGROUND] = UNLABELLED
    if labelled and labelled[0] > VERSE_L1 and labelled[0] <= NUMBERS["S1"]:
        beyond = view[:round(_middle(view == labelled[0])) + 1]
        beyond[beyond == BACKGROUND] = UNLABELLED
    return like(mask, values)


def heights_mm(mask: sitk.Image, values: Iterable[int]) -> dict[int, float]:
    """How far towards the head the centre of each value lies."""
    geometry = geometry_of(mask)
    view = to_canonical(mask, geometry)
    return {v: -geometry.spacing_mm[0] * _middle(view == v) for v in values}


def _middle(where: np.ndarray) -> float:
    """The mean of the slices (z) that show something."""
    return float(np.flatnonzero(where.any((1, 2))).mean())


def files_below(raw: Path, pattern: str) -> list[Path]:
    """Files whose names match, in order, without what a Mac's archives and hidden folders bring along.

    Folders that are links are followed, as large datasets are often laid out with them, each but once.
    """
    found, been = [], set()
    for folder, folders, files in os.walk(raw, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [f for f in folders if not f.startswith(".") and f != "__MACOSX" and real not in been]
        if real not in been:
            found += [Path(folder, f) for f in files if fnmatch.fnmatchcase(f, pattern) and not f.startswith(".")]
        been.add(real)
    return sorted(p for p in found if p.is_file())


def nifti_file(folder: Path, name: str) -> Path | None:
    """NAME.nii.gz or NAME.nii, whichever is there: published files are packed, but some have unpacked them."""
    return next((p for ending in (".nii.gz", ".nii") if (p := folder / f"{name}{ending}").is_file()), None)


def cranial_to_caudal(values: Iterable[int]) -> list[int]:
    """VerSe's numbers do so but for T13, which follows T12."""
    return sorted(values, key=lambda v: NUMBERS["T12"] + 0.5 if v == NUMBERS["T13"] else v)
