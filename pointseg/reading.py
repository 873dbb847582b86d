"""Scan files in: SimpleITK reads them, and what it would accept in silence is refused here, or said.

Half a file, a spacing that is missing, not a number or in metres, a header that promises more than the file can hold:
SimpleITK alone returns a scan for each of these.
"""

import contextlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

from pointseg import nifti
from pointseg.dicom import COSINE_TOLERANCE, read_frames, read_series
from pointseg.files import ScanError, Stored, first_line, native_messages, reason

FORMATS = {"NiftiImageIO": "NIfTI", "MetaImageIO": "MHA", "NrrdImageIO": "NRRD", "GDCMImageIO": "DICOM"}
SCAN_ENDINGS = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr", ".dcm")
COMPRESSION_MAX = 1100  # deflate packs no more than 1032 bytes into one
SPACING_MM = (0.02, 50.0)  # outside, a header most likely holds metres, micrometres or nonsense
EXTENT_MM, EXTENT_LITRES = 2500.0, 1000.0  # a larger scan is not of a person, and its 1 mm grid fills the memory
TEXT_HEADER = 1 << 16  # bytes in which the header of MHA and NRRD must end
NO_ORIENTATION = ("its header does not say how it lies in the patient, so the axes are taken in the format's default "
                  "order: check left and right, head and feet")


def read_image(path: Path, series: str = "") -> Stored:
    """One 3-D image as stored: a real number per voxel, at least 2 voxels along each axis, positive spacing in mm.

    path: a NIfTI, MHA/MHD, NRRD or multi-frame DICOM file, or a folder with a DICOM series; `series` is the
    SeriesInstanceUID where there are several.  A fourth axis with a single frame is dropped.  NaN in NIfTI files is set
    to 0 by the format's library.
    """
    if not path.exists():
        raise ScanError(f"{path}: no such file or folder, expected a scan; check the path")
    try:
        stored = read_series(path, series) if path.is_dir() else _read_file(path)
    except ScanError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:  # pydicom's words for a bad header
        raise _unreadable(path, first_line(error)) from None
    _check_grid(path, stored.image)
    return stored


def _read_file(path: Path) -> Stored:
    with native_messages() as messages:
        kind = _format_of(path)
        if kind == "DICOM":
            return read_frames(path)
        if kind is None:
            raise _unreadable(path, "its content is none of these formats" if path.stat().st_size else "it is empty")
        try:
            notes = [] if HAS_ORIENTATION[kind](path) else [NO_ORIENTATION]
            try:
                image = _execute(path)
            except RuntimeError as error:
                if kind != "NIfTI" or "orthonormal" not in str(error):
                    raise
                with nifti.straightened(path) as copy:
                    if copy is None:
                        raise
                    image = _execute(copy)
                notes.append("its axes were not quite at right angles and are straightened")
        except nifti.Damaged as error:
            raise _unreadable(path, str(error)) from None
        except RuntimeError as error:
            raise _unreadable(path, _text(messages) or reason(error)) from None
        if "Uncompress failed" in _text(messages):  # MetaImage says so, and returns what it has
            raise _unreadable(path, "its compressed data are damaged")
    if image.GetDimension() == 4:
        image = image[:, :, :, 0]
        notes = [*notes, "dropped a fourth axis of one frame"]
    return Stored(image, "", tuple(notes))


def _execute(path: Path) -> sitk.Image:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    _check_kind(path, reader)
    _check_room(path, reader)
    return reader.Execute()


def _format_of(path: Path) -> str | None:
    with open(path, "rb") as file:
        if file.read(132)[128:] == b"DICM":  # asked first: the others take seconds over a damaged one
            return "DICOM"
    return FORMATS.get(sitk.ImageFileReader.GetImageIOFromFileName(str(path)))


def _check_kind(path: Path, reader: sitk.ImageFileReader) -> None:
    """Three axes of two voxels or more, one real number each: told by the header, before anything is read."""
    kind, size = sitk.GetPixelIDValueAsString(reader.GetPixelID()), reader.GetSize()
    if reader.GetNumberOfComponents() != 1 or "complex" in kind:
        raise ScanError(f"{path}: found {kind} voxels, expected one real number each; convert it to a greyscale scan")
    if len(size) == 4 and size[3] == 1:
        size = size[:3]
    if len(size) != 3 or min(size) < 2:
        hint = "take one of its frames" if len(size) > 3 else "for DICOM give the folder of the slices"
        raise ScanError(f"{path}: found an image of {' x '.join(map(str, size))} voxels, expected three axes of at "
                        f"least 2 voxels each; hand in one 3-D scan: {hint}")


def _check_room(path: Path, reader: sitk.ImageFileReader) -> None:
    """A header may promise more than any compression packs into its file, and more than the memory holds."""
    needed = math.prod(reader.GetSize()) * sitk.Image([1] * 3, reader.GetPixelID()).GetSizeOfPixelComponent()
    held = sum(p.stat().st_size for p in {path, *_data_files(path)})
    if needed > COMPRESSION_MAX * held:
        raise _unreadable(path, f"its {held} bytes cannot hold the {needed} that its header promises")


def _check_grid(path: Path, image: sitk.Image) -> None:
    size, spacing, direction = image.GetSize(), image.GetSpacing(), np.reshape(image.GetDirection(), (3, 3))
    straight = np.abs(direction.T @ direction - np.eye(3)).max() < COSINE_TOLERANCE  # not so with NaN
    if not straight or not np.isfinite(image.GetOrigin()).all():
        raise ScanError(f"{path}: found directions {_shown(direction.ravel())} and origin {_shown(image.GetOrigin())}, "
                        "expected three directions of length 1 at right angles, and numbers; export it again")
    shown = " x ".join(f"{s:g}" for s in spacing)
    if not all(SPACING_MM[0] <= s <= SPACING_MM[1] for s in spacing):
        raise ScanError(f"{path}: found voxel spacing {shown} mm, expected {SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm; "
                        "export it again with its spacing in mm")
    extent = [n * s for n, s in zip(size, spacing, strict=True)]
    if max(extent) > EXTENT_MM or math.prod(extent) > EXTENT_LITRES * 1e6:
        raise ScanError(f"{path}: found a scan of {' x '.join(f'{e:.0f}' for e in extent)} mm, with {shown} mm voxels, "
                        "expected one of a person; check its spacing")


def _check_mha(path: Path) -> bool:
    """Refuse a missing spacing, which is read as 1 mm.   -> is an orientation stored?"""
    header = _text_header(path, re.compile(rb"ElementDataFile\s*=.*"))
    spacing = re.search(rb"^(?:ElementSpacing|ElementSize)\s*=(.*)", header, re.MULTILINE)
    if not spacing:
        raise ScanError(f"{path}: found no ElementSpacing in its header, expected the voxel spacing in mm; "
                        "export it again with its spacing")
    numbers = _numbers(spacing[1].split())
    if len(numbers) < 3 or min(numbers) <= 0:
        raise ScanError(f"{path}: found voxel spacing {spacing[1].decode(errors='replace').strip()}, expected three "
                        "positive numbers; export it again with its spacing")
    return bool(re.search(rb"^(TransformMatrix|Rotation|Orientation)\s*=", header, re.MULTILINE))


def _check_nrrd(path: Path) -> bool:
    """Refuse what crashes the library, numbers as text, and a missing spacing.   -> is an orientation stored?"""
    header = _text_header(path, re.compile(rb"\r?\n\r?\n"))
    if not re.search(rb"^encoding: *(raw|gz|gzip)\s*$", header, re.MULTILINE):
        raise _unreadable(path, "its encoding is neither raw nor gzip")
    spacings = re.search(rb"^(?:spacings|space directions):(.*)", header, re.MULTILINE)
    if not spacings or len(_numbers(re.split(rb"[(),\s]+", spacings[1]))) not in (3, 4, 9, 16):
        raise ScanError(f"{path}: found no spacing along each of three axes in its header, expected the voxel spacing "
                        "in mm; export it again with its spacing")
    return bool(re.search(rb"^space:", header, re.MULTILINE))


HAS_ORIENTATION = {"NIfTI": nifti.check, "MHA": _check_mha, "NRRD": _check_nrrd}


def _numbers(words: Sequence[bytes]) -> list[float]:
    """The words that are numbers."""
    numbers = []
    for word in words:
        with contextlib.suppress(ValueError):
            numbers.append(float(word))
    return [n for n in numbers if math.isfinite(n)]


def _text_header(path: Path, end: re.Pattern[bytes]) -> bytes:
    with open(path, "rb") as file:
        start = file.read(TEXT_HEADER)
    found = end.search(start)
    return start[:found.end()] if found else start


def _data_files(path: Path) -> list[Path]:
    """The file beside it that an MHD or NHDR header names."""
    header = _text_header(path, re.compile(rb"ElementDataFile\s*=.*|\r?\n\r?\n"))
    named = re.search(rb"^(?:ElementDataFile\s*=|data file:)\s*(.+?)\s*$", header, re.MULTILINE)
    data = path.parent / named[1].decode(errors="replace") if named else path
    return [data] if data.is_file() else []


def _shown(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.4g}" for v in values)


def _unreadable(path: Path, why: str) -> ScanError:
    return ScanError(f"{path}: cannot be read ({why}), expected a complete NIfTI, MHA, NRRD or DICOM file; "
                     "copy or convert it again")


def _text(messages: BinaryIO) -> str:
    messages.seek(0)
    return " ".join(messages.read().decode(errors="replace").split())[:200]
