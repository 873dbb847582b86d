"""NIfTI headers: what SimpleITK does not check in them, and axes that are a little bent, which it refuses."""

import contextlib
import gzip
import math
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pointseg.files import ScanError

LAYOUTS = {  # by the header's length: format and offset of dim, bitpix, vox_offset, pixdim, two orientation codes
    348: (("8h", 40), ("h", 72), ("f", 108), ("8f", 76), ("2h", 252)),  # NIfTI-1
    540: (("8q", 16), ("h", 14), ("q", 168), ("8d", 104), ("2i", 344))}  # NIfTI-2
MAGIC = {348: 344, 540: 4}
SFORM_AT, CODES_AT = 280, 252  # in NIfTI-1
BENT_MAX = 0.02  # cosine between two axes, of 1.1 degrees: what rounding and careless resampling leave


class Damaged(Exception):
    """Why a file is no whole NIfTI file."""


def check(path: Path) -> bool:
    """Refuse missing bytes (which SimpleITK reads as 0) and spacing 0 or NaN (as 1 mm).   -> is an orientation stored?

    Raises Damaged, and ScanError for a wrong spacing.
    """
    if path.suffix.lower() in (".hdr", ".img"):
        raise Damaged("half of a NIfTI or Analyze pair")
    try:
        with _opened(path) as file:
            header = file.read(540).ljust(540, b"\0")
            found = file.tell() + sum(map(len, iter(lambda: file.read(1 << 20), b"")))  # gzip's checksum is at the end
    except (OSError, EOFError, zlib.error) as error:
        raise Damaged(str(error)) from None
    order, length = _order_and_length(header)
    if header[MAGIC[length]:][:3] not in (b"n+1", b"n+2"):
        raise Damaged("its header is not that of a single NIfTI file")
    dim, bitpix, offset, pixdim, codes = (struct.unpack_from(order + kind, header, at) for kind, at in LAYOUTS[length])
    expected = int(offset[0]) + math.prod(dim[1 : dim[0] + 1]) * bitpix[0] // 8
    if found < expected:
        raise Damaged(f"{found} of {expected} bytes")
    if not all(math.isfinite(s) and s > 0 for s in pixdim[1:4]):
        raise ScanError(f"{path}: found voxel spacing {' x '.join(f'{s:g}' for s in pixdim[1:4])} mm, "
                        "expected positive numbers; export it again with its spacing")
    return any(codes)


@contextlib.contextmanager
def straightened(path: Path) -> Iterator[Path | None]:
    """A copy of a NIfTI-1 file whose axes are a little bent, with the nearest ones at right angles; None for others.

    SimpleITK refuses axes that are not at right angles to five digits; a hundred scans of TotalSegmentator have such.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_opened(path))
        header = bytearray(file.read(348))
        order, length = _order_and_length(header.ljust(540, b"\0"))
        rows = np.array(struct.unpack_from(order + "12f", header, SFORM_AT)).reshape(3, 4)
        spacing = np.linalg.norm(rows[:, :3], axis=0)
        if length != 348 or not np.isfinite(rows).all() or not spacing.all():
            yield None
            return
        axes = rows[:, :3] / spacing
        if np.abs(axes.T @ axes - np.eye(3)).max() > BENT_MAX:
            yield None
            return
        left, _, right = np.linalg.svd(axes)
        rows[:, :3] = left @ right * spacing
        struct.pack_into(order + "12f", header, SFORM_AT, *rows.ravel())
        struct.pack_into(order + "2h", header, CODES_AT, 0, 1)
        copy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "straight.nii"
        with open(copy, "wb") as out:
            out.write(header)
            shutil.copyfileobj(file, out)
        yield copy


def _opened(path: Path) -> BinaryIO:
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return (gzip.open if zipped else open)(path, "rb")


def _order_and_length(header: bytes) -> tuple[str, int]:
    for order in "<>":
        if (length := struct.unpack_from(f"{order}i", header)[0]) in LAYOUTS:
            return order, length
    raise Damaged("its header is not that of NIfTI-1 or NIfTI-2")
