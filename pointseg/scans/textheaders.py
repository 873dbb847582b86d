"""MHA/MHD and NRRD: SimpleITK reads them, and guesses where a header is odd; its guesses are held against the text.

What is checked is what makes a wrong mask: missing or misread spacing, other units than mm, data that are not all there
or not what was packed, lists and patterns of data files, spaces whose axes are not those of a patient.
"""

import gzip
import math
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

from pointseg.scans.files import Damaged

HEADER_MAX = 1 << 16  # bytes in which a header must end
TO_LPS = {"left-posterior-superior": (1, 1, 1), "right-anterior-superior": (-1, -1, 1),
          "left-anterior-superior": (1, -1, 1), "lps": (1, 1, 1), "ras": (-1, -1, 1), "las": (1, -1, 1)}
MHA_END = re.compile(rb"^ElementDataFile\s*=.*(\r?\n|\Z)", re.MULTILINE)
NRRD_END = re.compile(rb"^\r?\n", re.MULTILINE)
MM = ("mm", "millimeter", "millimeters", "millimetre", "millimetres", "")
LAST = -1


@dataclass(frozen=True)
class TextHeader:
    """What a header says, as far as it matters."""

    size: list[float]
    spacing: list[float]
    origin: list[float]  # in patient space (LPS); [] where the file does not say
    axes: list[list[float]]  # the direction of each, as the origin
    data: Path  # the file of the voxels
    start: int  # where in it they begin; LAST: they are its last bytes
    unpacked: Callable[[BinaryIO], Iterator[bytes]] | None


def read_header(path: Path, kind: str) -> TextHeader:
    """The header of an "MHA" or "NRRD" file.   Raises Damaged."""
    return _mha(path) if kind == "MHA" else _nrrd(path)


def check_read(header: TextHeader, image: sitk.Image) -> None:
    """Refuse (Damaged) what SimpleITK has read, in three axes, in another way than it is written."""
    axes = [x for axis in header.axes[:3] for x in axis[:3]]
    directions = np.reshape(image.GetDirection(), (3, 3)).T.ravel()  # axis by axis
    for name, said, read in (("size", header.size[:3], image.GetSize()), ("origin", header.origin, image.GetOrigin()),
                             ("spacing", header.spacing[:3], image.GetSpacing()), ("directions", axes, directions)):
        if said and not np.allclose(said, read, 1e-4, 1e-4 * (name in ("origin", "directions"))):
            raise Damaged(f"its {name} is {' '.join(f'{x:g}' for x in said)}, and read as "
                          f"{' '.join(f'{x:g}' for x in read)}")


def check_data(header: TextHeader, reader: sitk.ImageFileReader) -> None:
    """Refuse (Damaged) data that are not whole, or not what was packed."""
    bits = re.search(r"\d+", sitk.GetPixelIDValueAsString(reader.GetPixelID()))
    needed = math.prod(map(int, header.size)) * int(bits[0]) // 8 * reader.GetNumberOfComponents()
    size = header.data.stat().st_size
    start = max(0, size - needed) if header.start == LAST else header.start
    with open(header.data, "rb") as file:
        file.seek(start)
        found = 0
        for part in header.unpacked(file) if header.unpacked else [range(size - start)]:
            found += len(part)
            if found > needed:
                break
    if found != needed:
        raise Damaged(f"{found} of {needed} bytes of voxels")


def data_files(path: Path) -> list[Path]:
    """The files beside an MHD or NHDR header that hold its voxels."""
    with open(path, "rb") as file:
        start = file.read(HEADER_MAX)
    named = re.search(rb"^(?:ElementDataFile\s*=|data ?file:)[ \t]*([^\r\n]+?)\s*$", start, re.MULTILINE)
    data = path.parent / named[1].decode(errors="replace") if named else path
    return [data] if named and data.is_file() else []


def _mha(path: Path) -> TextHeader:
    fields, start = _fields(path, MHA_END, "=")
    if "ElementDataFile" not in fields:
        raise Damaged("no ElementDataFile in its header")
    size = _numbers(fields, "DimSize")
    if fields.get("NDims") != str(len(size)):
        raise Damaged(f"NDims {fields.get('NDims', 'missing')} and DimSize {fields.get('DimSize', 'missing')}")
    spacing = _first(fields, ("ElementSpacing", "ElementSize"), len(size))
    if not spacing:
        raise Damaged("no ElementSpacing in its header")
    if (unit := fields.get("DistanceUnits", "mm").lower()) not in (*MM, "?"):
        raise Damaged(f"lengths in {unit}, not mm")
    if fields.get("BinaryData", "True").lower() != "true":
        raise Damaged("its voxels are numbers as text")
    data = _data_file(path, fields["ElementDataFile"], "LOCAL")
    origin = _first(fields, ("Offset", "Position", "Origin"), len(size))
    matrix = _first(fields, ("TransformMatrix", "Rotation", "Orientation"), len(size) ** 2)
    packed = fields.get("CompressedData", "False").lower() == "true"
    axes = [matrix[i:i + len(size)] for i in range(0, len(matrix), len(size))]
    (skipped,) = _first(fields, ("HeaderSize",), 1) or [0]
    if skipped or data != path:
        start = LAST if skipped < 0 else int(skipped)
    return TextHeader(size, spacing, origin[:3], axes, data, start,
                      partial(_inflated, said=fields.get("CompressedDataSize", "missing")) if packed else None)


def _nrrd(path: Path) -> TextHeader:
    fields, start = _fields(path, NRRD_END, ":")
    size = _numbers(fields, "sizes")
    if fields.get("dimension") != str(len(size)):
        raise Damaged(f"dimension {fields.get('dimension', 'missing')} and sizes {fields.get('sizes', 'missing')}")
    for key in ("space units", "units"):
        units = [u.strip() for u in re.split(r'["\s]\s*', fields.get(key, "")) if u][:3]
        if any(u.lower() not in MM for u in units):
            raise Damaged(f"lengths in {' '.join(units)}, not mm")
    vectors = re.findall(r"\(([^)]*)\)", fields.get("space directions", ""))
    vectors = [_split(v, "space directions", ",") for v in vectors]
    spacing = _numbers(fields, "spacings") or [math.hypot(*v) for v in vectors]
    if len(spacing) < min(3, len(size)):
        raise Damaged("no spacing along each of its axes in its header")
    origin = _split(fields.get("space origin", "").strip("() "), "space origin", ",")
    space, encoding = fields.get("space", "").lower(), fields.get("encoding", "").lower()
    if space.endswith("time"):
        raise Damaged(f"space {space}, whose axes are not those of one scan")
    if encoding not in ("raw", "gz", "gzip"):  # numbers as text can crash the library
        raise Damaged(f"encoding {encoding or 'missing'}, neither raw nor gzip")
    if fields.get("line skip", fields.get("lineskip", "0")) != "0":
        raise Damaged("lines of its data are to be skipped")
    (skipped,) = _first(fields, ("byte skip", "byteskip"), 1) or [0]
    data = _data_file(path, fields.get("data file", fields.get("datafile", "")), "")
    if not (to_lps := TO_LPS.get(space)) or any(len(v) != 3 for v in (*vectors, origin or to_lps)):
        origin, vectors = [], []  # of another space, or none
    axes = [[x * sign / math.hypot(*v) for x, sign in zip(v, to_lps)] for v in vectors if any(v)]
    return TextHeader(size, spacing, [x * sign for x, sign in zip(origin, to_lps or ())], axes, data,
                      LAST if skipped < 0 else int(skipped) + (start if data == path else 0),
                      None if encoding == "raw" else _unzipped)


def _fields(path: Path, end: re.Pattern[bytes], separator: str) -> tuple[dict[str, str], int]:
    """The header's lines by name, and where it ends."""
    with open(path, "rb") as file:
        start = file.read(HEADER_MAX)
    found = end.search(start)
    stop = found.end() if found else len(start)  # an NHDR header may end with the file
    fields = {}
    for line in start[:stop].decode(errors="replace").splitlines():
        name, found_separator, value = line.partition(separator)
        if separator == ":" and (line.startswith("#") or value.startswith("=")):  # a comment, or key:=value: no field
            continue
        if found_separator:
            if name.strip() in fields:  # which of them SimpleITK takes differs
                raise Damaged(f"{name.strip()[:80]} twice in its header")
            fields[name.strip()] = value.strip()
        elif separator == "=" and line.strip():  # SimpleITK would take the next line for its value
            raise Damaged(f"a line without = in its header: {line[:80]!r}")
    return fields, stop


def _first(fields: dict[str, str], names: tuple[str, ...], count: int) -> list[float]:
    """The numbers of the first of these fields that there is."""
    return next((_numbers(fields, name, count) for name in names if name in fields), [])


def _numbers(fields: dict[str, str], name: str, count: int | None = None) -> list[float]:
    return _split(fields.get(name, ""), name, None, count)


def _split(text: str, name: str, separator: str | None, count: int | None = None) -> list[float]:
    """The finite numbers that a text consists of, so many where a count is given."""
    try:
        values = [float(word) for word in text.split(separator)] if text else []
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)) or len(values) != (len(values) if count is None else count):
        raise Damaged(f"{name} {text[:80]}, expected {count or ''} numbers".replace("  ", " "))
    return values


def _data_file(path: Path, named: str, here: str) -> Path:
    """The file that holds the voxels: `path` itself, or one beside it."""
    if named.upper() == here:
        return path
    data = path.parent / named
    if not named or Path(named).is_absolute() or re.search(r"%|^LIST\b", named) or not data.is_file():
        raise Damaged(f"its voxels are in {named[:80]!r}, expected one file beside it")
    return data


def _inflated(file: BinaryIO, said: str) -> Iterator[bytes]:
    """MHA's data: a zlib stream, which ends with a checksum, of as many bytes as the header says: SimpleITK takes them.
    """
    stream, start = zlib.decompressobj(), file.tell()
    try:
        while not stream.eof and (packed := stream.unconsumed_tail or file.read(1 << 20)):
            yield stream.decompress(packed, 1 << 24)
    except zlib.error as error:
        raise Damaged(f"its compressed data are damaged: {error}") from None
    if not stream.eof:
        raise Damaged("its compressed data end too early")
    if said != str(taken := file.tell() - start - len(stream.unused_data)):
        raise Damaged(f"its CompressedDataSize is {said}, and should be {taken}")


def _unzipped(file: BinaryIO) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=file) as unzipped:
            while part := unzipped.read(1 << 22):
                yield part
    except (OSError, EOFError, zlib.error) as error:
        raise Damaged(f"its compressed data are damaged: {error}") from None
