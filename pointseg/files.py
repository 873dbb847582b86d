"""Scan files read and written with care: SimpleITK images in and out, every bad file a ScanError in one line.

SimpleITK alone reads half a NIfTI file, or a DICOM series with a slice missing, without an error: both are refused.
"""

import contextlib
import gzip
import itertools
import math
import os
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import SimpleITK as sitk

WRITABLE = (".nii.gz", ".nii", ".mha", ".nrrd")  # one file each; .mhd names a second one and cannot be replaced at once
UNEVEN_MAX = 0.1  # share by which the smallest step between DICOM slices may fall short of the largest
POSITION_TAG = "0020|0032"
MODALITY_TAG = "0008|0060"


class ScanError(ValueError):
    """Input that cannot be used.  The message names the file, what was found, what was expected and the next step."""


def read_image(path: Path) -> sitk.Image:
    """One 3-D image as stored: a real number per voxel, at least 2 voxels along each axis.

    A fourth axis with a single frame is dropped.  The format's library sets NaN in NIfTI files to 0.
    """
    if not path.exists():
        raise ScanError(f"{path}: no such file or folder, expected a scan; check the path")
    with _native_messages() as messages:
        try:
            image = _read_dicom_folder(path) if path.is_dir() else sitk.ReadImage(str(path))
        except RuntimeError as error:
            raise _unreadable(path, _text(messages) or _reason(error)) from None
        if "Uncompress failed" in _text(messages):  # MetaImage says so, and returns what it has
            raise _unreadable(path, "its compressed data are damaged")
    if image.HasMetaDataKey("vox_offset"):
        _check_nifti(path, image)
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    kind = image.GetPixelIDTypeAsString()
    if image.GetNumberOfComponentsPerPixel() != 1 or "complex" in kind:
        raise ScanError(f"{path}: found {kind} voxels, expected one real number each; convert it to a greyscale scan")
    if image.GetDimension() != 3 or min(image.GetSize()) < 2:
        raise ScanError(f"{path}: found an image of {' x '.join(map(str, image.GetSize()))} voxels, expected three "
                        "axes of at least 2 voxels each; hand in one 3-D scan, for DICOM the folder of its slices")
    return image


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path to write to; the file moves to `path` when the block ends well, and is gone when it does not.

    So a reader finds the old file, the new one, or none, never half of one.  Folders are made as needed.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder of its own beside the target: the same file system, and a failed writer's leftovers go with it.
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
            yield Path(folder) / path.name
            os.replace(Path(folder) / path.name, path)
    except OSError as error:
        raise ScanError(f"{path}: cannot be written ({error}), expected a folder one may write to; "
                        "check the path, its permissions and the space left") from None


def write_image(path: Path, image: sitk.Image) -> None:
    """Write an image, whole or not at all."""
    check_format(path)
    with whole_file(path) as part, _native_messages():
        try:
            sitk.WriteImage(image, str(part), useCompression=True)
        except RuntimeError as error:  # also where the disk is full
            raise OSError(_reason(error)) from None


def check_format(path: Path) -> None:
    """Refuse a name whose ending names no format that `write_image` writes."""
    if not path.name.endswith(WRITABLE) or path.name in WRITABLE:
        raise ScanError(f"{path}: cannot be written in this format, expected a name that ends in "
                        f"{', '.join(WRITABLE)}; choose one of these")


def check_folder(folder: str | Path) -> None:
    """Make a folder, and refuse one that cannot be written to: better before hours of work than after."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ScanError(f"{folder}: cannot be written to ({error}), expected a folder one may write to; "
                        "check the path, its permissions and the space left") from None


def modality_of(image: sitk.Image) -> str:
    """ "CT" or "MR" where the DICOM header says so, else "". """
    found = image.GetMetaData(MODALITY_TAG).strip() if image.HasMetaDataKey(MODALITY_TAG) else ""
    return found if found in ("CT", "MR") else ""


def _read_dicom_folder(folder: Path) -> sitk.Image:
    series = {uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
              for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))}
    if len(series) != 1:
        found = "; ".join(f"{uid} of {len(files)} files" for uid, files in series.items()) or "no DICOM file"
        raise ScanError(f"{folder}: found {len(series)} DICOM series ({found}), expected one; "
                        "give the folder of the one you want")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(*series.values())
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    slices = range(len(reader.GetFileNames()))
    if len(slices) > 1 and all(reader.HasMetaDataKey(i, POSITION_TAG) for i in slices):
        places_mm = [[float(p) for p in reader.GetMetaData(i, POSITION_TAG).split("\\")] for i in slices]
        steps_mm = [math.dist(a, b) for a, b in itertools.pairwise(places_mm)]
        if not min(steps_mm) > (1 - UNEVEN_MAX) * max(steps_mm):
            raise ScanError(f"{folder}: found {len(slices)} slices {min(steps_mm):.3g} to {max(steps_mm):.3g} mm "
                            "apart, expected even steps; look for missing, repeated or damaged files")
    if reader.HasMetaDataKey(0, MODALITY_TAG):
        image.SetMetaData(MODALITY_TAG, reader.GetMetaData(0, MODALITY_TAG))
    return image


def _check_nifti(path: Path, image: sitk.Image) -> None:
    """Refuse what the library accepts in silence: missing bytes (read as 0), spacing 0 or NaN (read as 1 mm)."""
    sizes = [int(image.GetMetaData(f"dim[{i}]")) for i in range(1, int(image.GetMetaData("dim[0]")) + 1)]
    expected = int(float(image.GetMetaData("vox_offset"))) + math.prod(sizes) * int(image.GetMetaData("bitpix")) // 8
    if path.suffix.lower() in (".hdr", ".img"):
        raise _unreadable(path, "half of a NIfTI or Analyze pair")
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with (gzip.open if zipped else open)(path, "rb") as file:
            header = file.read(348)
            found = len(header) + sum(map(len, iter(lambda: file.read(1 << 20), b"")))  # gzip's checksum is at the end
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, str(error)) from None
    if found < expected:
        raise _unreadable(path, f"{found} of {expected} bytes")
    for order in "<>":  # NIfTI-1 of either byte order: header length at byte 0, spacing at byte 80
        if struct.unpack_from(f"{order}i", header)[0] == 348:
            spacing = struct.unpack_from(f"{order}3f", header, 80)
            if not all(math.isfinite(s) and s > 0 for s in spacing):
                raise ScanError(f"{path}: found voxel spacing {' x '.join(f'{s:g}' for s in spacing)} mm, "
                                "expected positive numbers; export it again with its spacing")


def _unreadable(path: Path, reason: str) -> ScanError:
    return ScanError(f"{path}: cannot be read ({reason}), expected a complete NIfTI, MHA, NRRD or DICOM file; "
                     "copy or convert it again")


def first_line(error: Exception) -> str:
    """What an error says, for a message of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _reason(error: Exception) -> str:
    """The last line of an ITK error says what happened, those above where in its sources."""
    return str(error).strip().splitlines()[-1].split("ERROR: ")[-1].strip()


def _text(messages: BinaryIO) -> str:
    messages.seek(0)
    return " ".join(messages.read().decode(errors="replace").split())[:200]


@contextlib.contextmanager
def _native_messages() -> Iterator[BinaryIO]:
    """Collect what the C++ libraries print to stderr (they know no other way), and switch ITK's warnings off."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as messages:
        stderr = os.dup(2)
        os.dup2(messages.fileno(), 2)
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        try:
            yield messages
        finally:
            sitk.ProcessObject.SetGlobalWarningDisplay(shown)
            os.dup2(stderr, 2)
            os.close(stderr)
