"""Scan files in, whatever their format; what the libraries would accept in silence is refused here, or said.

A spacing that is missing, not a number or in metres, half a file, a header that promises more than the file can hold:
SimpleITK alone returns a scan for each of these.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pointseg.scans import nifti, textheaders
from pointseg.scans.dicom import COSINE_TOLERANCE, NoScan, is_dicom, read_frames, read_segmentation, read_series
from pointseg.scans.files import Damaged, Stored, first_line, quiet, reason
from pointseg.volume import ScanError

READERS = {"MHA": "MetaImageIO", "NRRD": "NrrdImageIO"}  # SimpleITK's
PACKED = (b"PK", b"7z", b"Rar!", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # zip .. gzip, bzip2, xz, zstd
SCAN_ENDINGS = (".nii", ".nii.gz", ".hdr", ".hdr.gz", ".mha", ".mhd", ".nrrd", ".nhdr", ".dcm")
WHOLE_TOLERANCE = 1e-3  # what scaling leaves of whole numbers
SPACING_MM = (0.02, 50.0)  # outside, a header most likely holds metres, micrometres or nonsense
ORIGIN_MM = 1e5  # from the patient's, farther than any table
EXTENT_MM, EXTENT_LITRES = 2500.0, 1000.0  # a larger scan is not of a person, and its 1 mm grid fills the memory
NO_ORIENTATION = ("its header does not say how it lies in the patient, so the axes are taken in the format's default "
                  "order: check left and right, head and feet")


def read_image(path: Path, series: str = "") -> Stored:
    """One 3-D image as stored: a real number per voxel, at least 2 voxels along each axis, positive spacing in mm.

    path: a NIfTI, MHA/MHD, NRRD or multi-frame DICOM file, or a folder with a DICOM series; `series` is the
    SeriesInstanceUID where there are several.  A fourth axis with a single frame is dropped.
    """
    with _in_one_line(path):
        if not path.exists():
            raise ScanError(f"{path}: no such file or folder, expected a scan; check the path")
        if not path.is_dir() and not path.is_file():  # a pipe, say, on which a reader would wait
            raise ScanError(f"{path}: found neither a file nor a folder, expected a scan; check the path")
        stored = read_series(path, series) if path.is_dir() else _read_file(path)
    _check_grid(path, stored.image)
    return stored


def read_mask(path: Path) -> Stored:
    """A mask as `read_image` reads it, or from a DICOM segmentation; labels that are nearly whole numbers are rounded.

    Such are those of writers that scale: 20.99995 is 21.
    """
    try:
        stored = read_image(path)
    except NoScan as error:
        files = error.files.get("Segmentation", [])
        if len(files) != 1:
            raise ScanError(f"{path}: found {', '.join(error.files)}, expected a mask as an image or one DICOM "
                            "segmentation; convert it to NIfTI, in 3D Slicer say") from None
        with _in_one_line(files[0]):
            stored = read_segmentation(files[0])
        _check_grid(files[0], stored.image)
    values = sitk.GetArrayViewFromImage(stored.image)
    if not np.issubdtype(values.dtype, np.floating):
        return stored
    with np.errstate(invalid="ignore"):  # infinite ones are not rounded
        whole = np.rint(values)
        off = np.abs(values - whole).max()
    if not 0 < off <= WHOLE_TOLERANCE:
        return stored
    image = sitk.GetImageFromArray(whole)
    image.CopyInformation(stored.image)
    return replace(stored, image=image, notes=(*stored.notes, f"its labels are up to {off:.1g} off whole numbers and "
                                               "are rounded"))


@contextlib.contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes of the readers, in a message of ours."""
    try:
        yield
    except ScanError:
        raise
    except Damaged as error:
        raise _unreadable(path, str(error)) from None
    except PermissionError as error:
        raise ScanError(f"{path}: cannot be read ({error.strerror}), expected a scan that one may read; "
                        "check its permissions") from None
    except MemoryError:
        raise
    except Exception as error:
        raise _unreadable(path, first_line(error)) from None


def data_files(path: Path) -> list[Path]:
    """All the files that a scan consists of."""
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.is_file())
    if path.suffix.lower() in (".mhd", ".nhdr", ".mha", ".nrrd"):
        return [path, *textheaders.data_files(path)]
    return nifti.data_files(path)


def _read_file(path: Path) -> Stored:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ScanError(f"{ascii(str(path))[1:-1]}: cannot be read (its name is not UTF-8), expected a plain name; "
                        "rename it") from None
    kind = _format_of(path)
    with quiet():
        if kind == "NIfTI":
            return nifti.read_nifti(path, NO_ORIENTATION)
        if kind == "DICOM":
            return read_frames(path)
        header = textheaders.read_header(path, kind)
        try:
            reader = sitk.ImageFileReader()
            reader.SetImageIO(READERS[kind])
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            _check_kind(path, reader)
            textheaders.check_data(header, reader)
            image = reader.Execute()
        except RuntimeError as error:
            raise _unreadable(path, reason(error)) from None
    notes = [] if header.axes else [NO_ORIENTATION]
    if image.GetDimension() == 4:
        image = image[:, :, :, 0]
        notes.append("dropped a fourth axis of one frame")
    textheaders.check_read(header, image)
    return Stored(image, "", tuple(notes))


def _format_of(path: Path) -> str:
    """Told by the content.  SimpleITK asks every format it knows, some of which take seconds over a damaged file."""
    with open(path, "rb") as file:
        start = file.read(1024)
    if start.startswith(b"NRRD"):
        return "NRRD"
    if nifti.is_nifti(path) or nifti.is_half_named(path):
        return "NIfTI"
    if re.search(rb"^\s*(ObjectType|NDims|DimSize)\s*=", start, re.MULTILINE):
        return "MHA"
    if is_dicom(path):
        return "DICOM"
    if start.startswith(PACKED) or start[257:262] == b"ustar":
        raise Damaged("it is packed or an archive, to be unpacked first")
    raise Damaged("its content is none of these formats" if start else "it is empty")


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


def _check_grid(path: Path, image: sitk.Image) -> None:
    size, spacing, direction = image.GetSize(), image.GetSpacing(), np.reshape(image.GetDirection(), (3, 3))
    straight = np.abs(direction.T @ direction - np.eye(3)).max() < COSINE_TOLERANCE  # not so with NaN
    if not straight or not np.abs(image.GetOrigin()).max() <= ORIGIN_MM:  # not so with NaN
        raise ScanError(f"{path}: found directions {_shown(direction.ravel())} and origin {_shown(image.GetOrigin())}, "
                        "expected three directions of length 1 at right angles, within 100 m; export it again")
    shown = " x ".join(f"{s:g}" for s in spacing)
    if not all(SPACING_MM[0] <= s <= SPACING_MM[1] for s in spacing):
        raise ScanError(f"{path}: found voxel spacing {shown} mm, expected {SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm; "
                        "export it again with its spacing in mm")
    extent = [n * s for n, s in zip(size, spacing, strict=True)]
    if max(extent) > EXTENT_MM or math.prod(extent) > EXTENT_LITRES * 1e6:
        raise ScanError(f"{path}: found a scan of {' x '.join(f'{e:.0f}' for e in extent)} mm, with {shown} mm voxels, "
                        "expected one of a person; check its spacing")


def _shown(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.4g}" for v in values)


def _unreadable(path: Path, why: str) -> ScanError:
    return ScanError(f"{path}: cannot be read ({why}), expected a complete NIfTI, MHA, NRRD or DICOM file; "
                     "copy or convert it again")
