"""NIfTI: nibabel reads it; here is what it does not say, and axes that are a little bent, which SimpleITK refuses."""

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.fileholders import FileHolder

from pointseg.scans.files import Damaged, Stored, first_line
from pointseg.volume import ScanError

KINDS = {348: (nibabel.Nifti1Image, nibabel.Nifti1Pair),  # by the header's length: of one file, or a pair
         540: (nibabel.Nifti2Image, nibabel.Nifti2Pair)}
PAIR = {".hdr": ".img", ".img": ".hdr"}
SPACING_TOLERANCE = 0.02  # share by which a matrix's steps may differ from the spacing
BENT_MAX = 0.02  # cosine between two axes, of 1.1 degrees: what rounding and careless resampling leave
CODE_MAX = 5  # of the spaces that NIfTI knows
IN_MM = (0, 2)  # codes of the unit of length: not said, and mm
DEFLATE_MAX = 1032  # bytes that a packed one can hold
QUATERNION_TOLERANCE = 3e-7  # which nibabel allows for rounding
STRAIGHT = 1e-5  # what SimpleITK takes for a right angle
TO_LPS = np.diag([-1.0, -1.0, 1.0])  # NIfTI's patient space is RAS


def is_nifti(path: Path) -> bool:
    """Whether it begins as NIfTI does, packed or not."""
    try:
        with _opened(path) as file:
            return bool(_length(file.read(4)))
    except (OSError, EOFError, zlib.error):
        return False


def is_half_named(path: Path) -> bool:
    """Whether a name is that of half a pair, packed or not."""
    return _plain(path).suffix.lower() in PAIR


def data_files(path: Path) -> list[Path]:
    """Both files of a pair, header first; of others, or without its twin, the file itself."""
    plain = _plain(path)
    other = PAIR.get(plain.suffix.lower())
    twins = [p for p in path.parent.iterdir() if other and p.name.startswith(plain.stem) and
             p.name[len(plain.stem):].lower() in (other, f"{other}.gz")]
    twins.sort(key=lambda p: p.name.lower().endswith(".gz") != path.name.lower().endswith(".gz"))  # packed as this is
    return sorted([path, *twins[:1]], key=lambda p: _plain(p).suffix.lower())


def _plain(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


def read_nifti(path: Path, no_orientation: str) -> Stored:
    """A NIfTI-1 or NIfTI-2 file, packed or not, or a pair of .hdr and .img, with the voxels' own values.

    no_orientation: the note where none is stored.  Raises Damaged, and ScanError for a wrong spacing.
    """
    try:
        header_path, data_path = (data_files(path) * 2)[:2] if is_half_named(path) else (path, path)
        kind = _check(path, header_path, data_path)
        with _opened(header_path) as header, _opened(data_path) as data:
            stored = _stored(path, kind.from_file_map({"header": FileHolder(fileobj=header),
                                                       "image": FileHolder(fileobj=data)}), no_orientation)
            while data.read(1 << 22):  # to the end, where gzip has its checksum
                pass
            return stored
    except (Damaged, ScanError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes of the reader
        raise Damaged(first_line(error)) from None


def _check(path: Path, header_path: Path, data_path: Path) -> type[nibabel.Nifti1Pair]:
    """Refuse a header of which nibabel would mend too much, and one that promises more than its file can hold."""
    with _opened(header_path) as file:
        if not (length := _length(file.read(4))):
            raise Damaged("its header, a .hdr file of the same name, is not beside it")
        kind = KINDS[length][header_path != data_path]
        file.seek(0)
        header = kind.header_class(file.read(length), check=False)
    dtype, sizes, spacing = header.get_data_dtype(), header["dim"][1 : header["dim"][0] + 1], header["pixdim"][1:4]
    if (magic := header["magic"].item()[:2]) not in (b"n+", b"ni"):
        raise Damaged("its header is not that of NIfTI; that of Analyze 7.5 does not tell left from right")
    if magic == b"ni" and header_path == data_path:
        raise Damaged("its voxels, an .img file of the same name, are not beside it")
    if header_path == data_path and not header["vox_offset"] >= length + 4:
        raise Damaged(f"its voxels begin at byte {header['vox_offset']:g}, within its header")
    if dtype.kind not in "iuf" or header["dim"][0] == 5 and header["dim"][5] > 1:
        kind_of_voxels = header.get_value_label("datatype")
        kind_of_voxels = f"vector of {header['dim'][5]}" if dtype.kind in "iuf" else kind_of_voxels
        raise ScanError(f"{path}: found {kind_of_voxels} voxels, expected one real number each; convert it to a "
                        "greyscale scan")
    if not 1 <= header["dim"][0] <= 7 or min(sizes) < 1:
        raise Damaged(f"sizes {', '.join(map(str, header['dim']))}")
    if header["bitpix"] not in (0, 8 * dtype.itemsize):
        raise Damaged(f"{header['bitpix']} bits a voxel, but voxels of type {dtype}")
    if (unit := int(header["xyzt_units"]) & 7) not in IN_MM:
        raise Damaged(f"lengths in {nibabel.nifti1.unit_codes.label.get(unit, f'unit {unit}')}, not mm")
    kept = list(sizes)
    while len(kept) > 3 and kept[-1] == 1:
        kept.pop()
    if len(kept) != 3 or min(kept) < 2:
        raise ScanError(f"{path}: found an image of {' x '.join(map(str, sizes))} voxels, expected three axes of at "
                        "least 2 voxels each; hand in one 3-D scan" + ", one of its frames" * (len(kept) > 3))
    codes = [int(header[name]) for name in ("qform_code", "sform_code")]
    if min(codes) < 0 or max(codes) > CODE_MAX:  # which nibabel would take for none
        raise Damaged(f"orientation codes (qform, sform) {codes[0]} and {codes[1]}, not 0..{CODE_MAX}")
    if codes[0] and not sum(float(header[f"quatern_{c}"]) ** 2 for c in "bcd") <= 1 + QUATERNION_TOLERANCE:
        raise Damaged("its quaternion (qform) is no rotation")
    if not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ScanError(f"{path}: found voxel spacing {_shown(spacing)} mm, expected positive numbers; export it again "
                        "with its spacing")
    needed, room = math.prod(map(int, sizes)) * dtype.itemsize, data_path.stat().st_size
    if needed > room * (DEFLATE_MAX if _is_packed(data_path) else 1):
        raise Damaged(f"{room} bytes for {needed} bytes of voxels")
    return kind


def _stored(path: Path, image: nibabel.Nifti1Pair, no_orientation: str) -> Stored:
    if image.header["qform_code"] and not image.affine[:3, :3].any():  # an empty matrix, which nibabel prefers
        image.set_sform(None, code=0)
    spacing, steps = np.array(image.header.get_zooms()[:3], float), np.linalg.norm(image.affine[:3, :3], axis=0)
    if not (np.abs(steps / spacing - 1) <= SPACING_TOLERANCE).all():
        raise ScanError(f"{path}: found voxel spacing {_shown(spacing)} mm, but steps of {_shown(steps)} mm in the "
                        "matrix (sform), expected the same; correct the header")
    axes, notes = TO_LPS @ image.affine[:3, :3] / steps, list(_notes(image, spacing, no_orientation))
    if STRAIGHT < np.abs(axes.T @ axes - np.eye(3)).max() <= BENT_MAX:
        left, _, right = np.linalg.svd(axes)
        axes = left @ right
        notes.append("its axes were not quite at right angles and are straightened")
    voxels = _voxels(image.dataobj)
    if voxels.ndim > 3:
        voxels = voxels.reshape(voxels.shape[:3], order="F")
        notes.append("dropped a fourth axis of one frame")
    out = sitk.GetImageFromArray(voxels.T)
    out.SetSpacing(steps.tolist())
    out.SetOrigin((TO_LPS @ image.affine[:3, 3]).tolist())
    out.SetDirection(axes.ravel().tolist())
    return Stored(out, "", tuple(notes))


def _voxels(data: nibabel.arrayproxy.ArrayProxy) -> np.ndarray:
    """The values as they are stored, or scaled as the header says, then as float32 where that is enough."""
    values = data.get_unscaled()
    if (data.slope, data.inter) != (1, 0):
        wide = np.float64 if values.dtype.itemsize > 2 else np.float32
        values = values.astype(wide) * wide(data.slope) + wide(data.inter)
    native = values.dtype.newbyteorder("=")
    return values.astype(np.float64 if native.itemsize > 8 else native, copy=False)


def _notes(image: nibabel.Nifti1Pair, spacing: np.ndarray, no_orientation: str) -> Iterator[str]:
    """Whether a header tells the orientation, and the same by both of its ways."""
    (qform, qcode), (sform, scode) = image.get_qform(coded=True), image.get_sform(coded=True)
    if not qcode and not scode:
        yield no_orientation
    if qcode and scode:
        corners = np.array([(*np.multiply(c, image.shape[:3]), 1) for c in np.ndindex(2, 2, 2)])
        if (apart := np.linalg.norm(corners @ (sform - qform).T, axis=1).max()) > spacing.max():
            yield f"its two orientations (qform and sform) are up to {apart:.0f} mm apart: other software may differ"


def _opened(path: Path) -> BinaryIO:
    return (gzip.open if _is_packed(path) else open)(path, "rb")


def _is_packed(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _length(start: bytes) -> int:
    """Of the header, in either byte order; 0 where it is none of NIfTI's."""
    lengths = [struct.unpack(f"{order}i", start)[0] for order in "<>"] if len(start) == 4 else []
    return next((n for n in lengths if n in KINDS), 0)


def _shown(values: np.ndarray) -> str:
    return " x ".join(f"{v:g}" for v in values)

