"""NIfTI headers: what SimpleITK does not check in them, and axes that are a little bent, which it refuses."""

import contextlib
import gzip
import math
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pointseg.scans.files import Damaged
from pointseg.volume import ScanError

LAYOUTS = {  # by the header's length: format and offset of each field that matters
    348: {"dim": ("8h", 40), "datatype": ("h", 70), "vox_offset": ("f", 108), "pixdim": ("8f", 76),
          "codes": ("2h", 252), "quaternion": ("6f", 256), "sform": ("12f", 280)},  # NIfTI-1
    540: {"dim": ("8q", 16), "datatype": ("h", 12), "vox_offset": ("q", 168), "pixdim": ("8d", 104),
          "codes": ("2i", 344), "quaternion": ("6d", 352), "sform": ("12d", 400)}}  # NIfTI-2
MAGIC = {348: 344, 540: 4}
BYTES = {2: 1, 4: 2, 8: 4, 16: 4, 32: 8, 64: 8, 128: 3, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8, 1792: 16, 2304: 4}
FLOATS = {16: "f4", 64: "f8"}
BENT_MAX = 0.02  # cosine between two axes, of 1.1 degrees: what rounding and careless resampling leave
SPACING_TOLERANCE = 0.02  # share by which a matrix's steps may differ from the spacing


@dataclass(frozen=True)
class Checked:
    """What is known of a whole file."""

    notes: tuple[str, ...]
    not_finite: tuple[np.ndarray, np.ndarray]  # flat index and value of NaN and infinite voxels, 0 to SimpleITK


def check(path: Path, no_orientation: str) -> Checked:
    """Refuse missing bytes (which SimpleITK reads as 0), a wrong spacing (as 1 mm), and contradictions.

    Raises Damaged, and ScanError for a wrong spacing.  no_orientation: the note where none is stored.
    """
    if path.suffix.lower() in (".hdr", ".img"):
        raise Damaged("half of a NIfTI or Analyze pair")
    try:
        with opened(path) as file:
            header = file.read(540).ljust(540, b"\0")
            order, length = _order_and_length(header)
            get = {name: struct.unpack_from(order + kind, header, at) for name, (kind, at) in LAYOUTS[length].items()}
            if header[MAGIC[length]:][:3] not in (b"n+1", b"n+2"):
                raise Damaged("its header is not that of a single NIfTI file")
            datatype, offset, dim = get["datatype"][0], get["vox_offset"][0], get["dim"]
            if datatype not in BYTES:
                raise Damaged(f"voxels of type {datatype}")
            if not length + 4 <= offset < 1 << 40:
                raise Damaged(f"voxels from byte {offset:g} on")
            if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
                raise Damaged(f"sizes {', '.join(map(str, dim[1 : dim[0] + 1]))}")
            needed = math.prod(dim[1 : dim[0] + 1]) * BYTES[datatype]
            file.seek(int(offset))
            found, not_finite = _read_through(file, needed, order + FLOATS[datatype] if datatype in FLOATS else "")
    except (OSError, EOFError, zlib.error) as error:
        raise Damaged(str(error)) from None
    if found < needed:
        raise Damaged(f"{found} of {needed} bytes of voxels")
    spacing = get["pixdim"][1:4]
    if not all(math.isfinite(s) and s > 0 for s in spacing):
        raise ScanError(f"{path}: found voxel spacing {' x '.join(f'{s:g}' for s in spacing)} mm, "
                        "expected positive numbers; export it again with its spacing")
    return Checked(tuple(_orientation_notes(path, get, no_orientation)), not_finite)


def _read_through(file: BinaryIO, needed: int, kind: str) -> tuple[int, tuple[np.ndarray, np.ndarray]]:
    """From the first voxel to the end, where gzip has its checksum; kind: of float voxels, "" of others.

    -> bytes found; index and value of voxels that are not finite.
    """
    size = np.dtype(kind).itemsize if kind else 1
    found, rest, indices, odd = 0, b"", [np.zeros(0, int)], [np.zeros(0)]
    while part := file.read(1 << 22):
        part = rest + part
        whole = part[: len(part) // size * size]
        rest = part[len(whole):]
        if kind and found < needed:
            values = np.frombuffer(whole[: needed - found], kind)
            where = np.flatnonzero(~np.isfinite(values))
            indices.append(where + found // size)
            odd.append(values[where].astype(float))
        found += len(whole)
    return found + len(rest), (np.concatenate(indices), np.concatenate(odd))


def _orientation_notes(path: Path, get: dict[str, tuple], no_orientation: str) -> Iterator[str]:
    """Whether the two ways in which a header tells the orientation make sense, and agree."""
    qform_code, sform_code = get["codes"]
    spacing = np.array(get["pixdim"][1:4])
    if qform_code <= 0 and sform_code <= 0:
        yield no_orientation
    sform = np.reshape(get["sform"], (3, 4))
    turn = np.array(get["quaternion"])
    if qform_code > 0 and not (np.isfinite(turn).all() and turn[:3] @ turn[:3] <= 1.01):
        raise Damaged("a quaternion that is no rotation")
    if sform_code > 0:
        steps = np.linalg.norm(sform[:, :3], axis=0)
        if not np.isfinite(sform).all() or (np.abs(steps / spacing - 1) > SPACING_TOLERANCE).any():
            raise ScanError(f"{path}: found voxel spacing {' x '.join(f'{s:g}' for s in spacing)} mm, but steps of "
                            f"{' x '.join(f'{s:g}' for s in steps)} mm in the matrix (sform), expected the same; "
                            "correct the header")
    if qform_code > 0 and sform_code > 0:
        qform = _qform(get)
        corners = np.array([[i * n for i, n in zip(c, get["dim"][1:4], strict=True)] for c in np.ndindex(2, 2, 2)])
        apart = np.linalg.norm(corners @ (sform[:, :3] - qform[:, :3]).T + sform[:, 3] - qform[:, 3], axis=1).max()
        if apart > spacing.max():
            yield f"its two orientations (qform and sform) are up to {apart:.0f} mm apart: other software may differ"


def _qform(get: dict[str, tuple]) -> np.ndarray:
    """The 3 x 4 matrix that the quaternion stands for (NIfTI-1 standard, method 2)."""
    b, c, d, *offset = get["quaternion"]
    a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    turn = np.array([[a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                     [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                     [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c]])
    handed = -1 if get["pixdim"][0] < 0 else 1
    return np.column_stack([turn * get["pixdim"][1:4] * (1, 1, handed), offset])


@contextlib.contextmanager
def straightened(path: Path) -> Iterator[Path | None]:
    """A copy of a NIfTI-1 file whose axes are a little bent, with the nearest ones at right angles; None for others.

    SimpleITK refuses axes that are not at right angles to five digits; a hundred scans of TotalSegmentator have such.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(opened(path))
        header = bytearray(file.read(348))
        order, length = _order_and_length(header.ljust(540, b"\0"))
        (rows_kind, rows_at), (codes_kind, codes_at) = LAYOUTS[348]["sform"], LAYOUTS[348]["codes"]
        rows = np.array(struct.unpack_from(order + rows_kind, header, rows_at)).reshape(3, 4)
        spacing = np.linalg.norm(rows[:, :3], axis=0)
        axes = rows[:, :3] / np.where(spacing > 0, spacing, 1)
        if length != 348 or not np.isfinite(rows).all() or not np.abs(axes.T @ axes - np.eye(3)).max() <= BENT_MAX:
            yield None
            return
        left, _, right = np.linalg.svd(axes)
        rows[:, :3] = left @ right * spacing
        struct.pack_into(order + rows_kind, header, rows_at, *rows.ravel())
        struct.pack_into(order + codes_kind, header, codes_at, 0, 1)
        copy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "straight.nii"
        with open(copy, "wb") as out:
            out.write(header)
            shutil.copyfileobj(file, out)
        yield copy


@contextlib.contextmanager
def alone(path: Path) -> Iterator[Path]:
    """The file under a plain name in a folder of its own: beside an x.nii the library would read that for x.nii.gz."""
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / ("scan.nii.gz" if _is_zipped(path) else "scan.nii")
        link.symlink_to(path.absolute())
        yield link


def opened(path: Path) -> BinaryIO:
    return (gzip.open if _is_zipped(path) else open)(path, "rb")


def is_nifti(path: Path) -> bool:
    """Whether it begins as NIfTI does, packed or not."""
    try:
        with opened(path) as file:
            _order_and_length(file.read(4).ljust(4, b"\0"))
    except (Damaged, OSError, EOFError, zlib.error):
        return False
    return True


def _is_zipped(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _order_and_length(header: bytes) -> tuple[str, int]:
    for order in "<>":
        if (length := struct.unpack_from(f"{order}i", header)[0]) in LAYOUTS:
            return order, length
    raise Damaged("its header is not that of NIfTI-1 or NIfTI-2")
