"""MHA/MHD and NRRD headers, read strictly: the libraries guess where these are odd, and skip what they do not know.

What is checked here is what makes a wrong mask: missing or misread spacing, other units than mm, data that are not all
there or not what was packed, lists and patterns of data files, spaces whose axes are not those of a patient.
"""

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pointseg.scans.files import Damaged

HEADER_MAX = 1 << 16  # bytes in which a header must end
MHA_BYTES = {"MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_LONG": 4,
             "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8}
NRRD_BYTES = {1: "signed char, int8, int8_t, uchar, unsigned char, uint8, uint8_t",
              2: "short, short int, signed short, signed short int, int16, int16_t, ushort, unsigned short, "
                 "unsigned short int, uint16, uint16_t",
              4: "int, signed int, int32, int32_t, uint, unsigned int, uint32, uint32_t, float",
              8: "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t, "
                 "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t, double"}
PATIENT_SPACES = ("left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las")


@dataclass(frozen=True)
class TextHeader:
    """What a header says that the read image must agree with."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]  # of the first three axes, mm
    origin: tuple[float, ...] | None  # as stored, where it is; of NRRD only that it consists of numbers
    directed: bool  # says how its axes lie in the patient


def check_mha(path: Path) -> TextHeader:
    """Read and check the header of an MHA or MHD file and that its data are whole.   Raises Damaged."""
    fields, start = _fields(path, re.compile(rb"^ElementDataFile\s*=.*(\r?\n|\Z)", re.MULTILINE), "=")
    size = tuple(_whole(n, "DimSize") for n in fields.get("DimSize", "").split())
    dimensions = len(size)
    if dimensions < 2 or fields.get("NDims") != str(dimensions):
        raise Damaged(f"NDims {fields.get('NDims', 'missing')} and DimSize {fields.get('DimSize', 'missing')}")
    spacing = _numbers(fields, ("ElementSpacing", "ElementSize"), dimensions)
    if spacing is None:
        raise Damaged("no ElementSpacing in its header")
    origin = _numbers(fields, ("Offset", "Position", "Origin"), dimensions)
    matrix = _numbers(fields, ("TransformMatrix", "Rotation", "Orientation"), dimensions**2)
    if (unit := fields.get("DistanceUnits", "mm")) not in ("mm", "?"):
        raise Damaged(f"lengths in {unit}, not mm")
    kind = fields.get("ElementType", "")
    channels = _whole(fields.get("ElementNumberOfChannels", "1"), "ElementNumberOfChannels")
    if kind not in MHA_BYTES:
        raise Damaged(f"voxels of type {kind or 'missing'}")
    data = _data_file(path, fields["ElementDataFile"], "LOCAL")
    needed = math.prod(size) * MHA_BYTES[kind] * channels
    packed = fields.get("CompressedData", "False").lower() == "true"
    _check_data(data or path, 0 if data else start, needed, _inflated if packed else None)
    return TextHeader(size, spacing[:3], origin and origin[:3], matrix is not None)


def check_nrrd(path: Path) -> TextHeader:
    """Read and check the header of an NRRD or NHDR file and that its data are whole.   Raises Damaged."""
    fields, start = _fields(path, re.compile(rb"^\r?\n", re.MULTILINE), ":")
    size = tuple(_whole(n, "sizes") for n in fields.get("sizes", "").split())
    if len(size) < 2 or fields.get("dimension") != str(len(size)):
        raise Damaged(f"dimension {fields.get('dimension', 'missing')} and sizes {fields.get('sizes', 'missing')}")
    for key in ("space units", "units"):
        units = re.findall(r'"([^"]*)"', fields.get(key, ""))[:3]
        if any(u not in ("mm", "") for u in units):
            raise Damaged(f"lengths in {' '.join(units)}, not mm")
    vectors = [[float(n) for n in re.split(r"[,\s]+", v.strip()) if _is_number(n)] for v in
               re.findall(r"\(([^)]*)\)", fields.get("space directions", ""))]
    spacing = _numbers(fields, ("spacings",), len(size)) if "spacings" in fields else \
        tuple(math.hypot(*v) for v in vectors if len(v) in (3, 4))
    if spacing is None or len(spacing) < min(3, len(size)) or not all(map(math.isfinite, spacing)):
        raise Damaged("no spacing along each of its axes in its header")
    origin = fields.get("space origin")
    if origin and not all(_is_number(n) for n in origin.strip("() ").split(",")):
        raise Damaged(f"space origin {origin}")
    space = fields.get("space", "").lower()
    if space.endswith("time"):
        raise Damaged(f"space {space}, whose axes are not those of one scan")
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gz", "gzip"):  # numbers as text can crash the library
        raise Damaged(f"encoding {encoding or 'missing'}, neither raw nor gzip")
    data = _data_file(path, fields.get("data file", fields.get("datafile", "")), "")
    kind = " ".join(fields.get("type", "").lower().split())
    bytes_per_voxel = next((n for n, names in NRRD_BYTES.items() if kind in names.split(", ")), 0)
    if not bytes_per_voxel:
        raise Damaged(f"voxels of type {kind or 'missing'}")
    _check_data(data or path, 0 if data else start, math.prod(size) * bytes_per_voxel,
                None if encoding == "raw" else _unzipped)
    return TextHeader(size, spacing[:3], None, space in PATIENT_SPACES)


def data_files(path: Path) -> list[Path]:
    """The files beside an MHD or NHDR header that hold its voxels."""
    with open(path, "rb") as file:
        start = file.read(HEADER_MAX)
    named = re.search(rb"^(?:ElementDataFile\s*=|data ?file:)[ \t]*([^\r\n]+?)\s*$", start, re.MULTILINE)
    data = path.parent / named[1].decode(errors="replace") if named else path
    return [data] if named and data.is_file() else []


def _fields(path: Path, end: re.Pattern[bytes], separator: str) -> tuple[dict[str, str], int]:
    """The header's lines by name, and where it ends."""
    with open(path, "rb") as file:
        start = file.read(HEADER_MAX)
    found = end.search(start)
    if not found and separator == "=":
        raise Damaged("no ElementDataFile in its header")
    stop = found.end() if found else len(start)  # an NHDR header may end with the file
    fields = {}
    for line in start[:stop].decode(errors="replace").splitlines():
        name, found_separator, value = line.partition(separator)
        if found_separator and not line.startswith("#"):
            fields[name.strip()] = value.removeprefix("=").strip()
    return fields, stop


def _data_file(path: Path, named: str, here: str) -> Path | None:
    """The file that holds the voxels, None for `path` itself."""
    if named.upper() == here:
        return None
    data = path.parent / named
    if not named or Path(named).is_absolute() or re.search(r"%|^LIST\b", named) or not data.is_file():
        raise Damaged(f"its voxels are in {named[:80]!r}, expected one file beside it")
    return data


def _check_data(data: Path, start: int, needed: int, unpacked) -> None:
    """Whether so many bytes follow, and if packed, whether they are what was packed."""
    with open(data, "rb") as file:
        if unpacked is None:
            file.seek(0, 2)
            found = file.tell() - start
        else:
            file.seek(start)
            found = 0
            for part in unpacked(file):
                found += len(part)
                if found > needed:
                    break
    if found < needed or (unpacked and found > needed):
        raise Damaged(f"{found} of {needed} bytes of voxels")


def _inflated(file: BinaryIO) -> Iterator[bytes]:
    """MHA's data: a zlib stream, which ends with a checksum."""
    stream = zlib.decompressobj()
    try:
        while not stream.eof and (packed := stream.unconsumed_tail or file.read(1 << 20)):
            yield stream.decompress(packed, 1 << 24)
    except zlib.error as error:
        raise Damaged(f"its compressed data are damaged: {error}") from None
    if not stream.eof:
        raise Damaged("its compressed data end too early")


def _unzipped(file: BinaryIO) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=file) as unzipped:
            while part := unzipped.read(1 << 22):
                yield part
    except (OSError, EOFError, zlib.error) as error:
        raise Damaged(f"its compressed data are damaged: {error}") from None


def _numbers(fields: dict[str, str], names: tuple[str, ...], count: int) -> tuple[float, ...] | None:
    """The finite numbers of the first of these fields that there is."""
    for name in names:
        if name in fields:
            words = fields[name].split()
            if len(words) != count or not all(map(_is_number, words)):
                raise Damaged(f"{name} {fields[name][:80]}, expected {count} numbers")
            return tuple(map(float, words))
    return None


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _whole(word: str, name: str) -> int:
    if not re.fullmatch(r"\d{1,9}", word) or int(word) < 1:
        raise Damaged(f"{name} {word[:20]}, expected whole numbers above 0")
    return int(word)
