"""Volumes in files: prepared scans that are made once, and memory that holds only the slices in use.

A file holds volumes (z, y, x) uint8, each three times: with its transverse, its coronal and its sagittal slices one
after the other, so that a slice along any axis is one piece of the file.  It is named by a hash of all that its content
depends on, appears whole or not at all, and is checked against a checksum when it is opened, so any number of processes
can share a folder of them.
"""

import hashlib
import json
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from pointseg.datasets.manifest import Case
from pointseg.preprocess import Prepared, prepare
from pointseg.runs.identity import identity_of
from pointseg.scans.files import hash_of, whole_file
from pointseg.scans.reading import data_files
from pointseg.volume import ScanError

HEADER_BYTES = 4096  # one page, so that the volumes begin on another


@dataclass(frozen=True)
class SlicesFile:
    """The slices of a volume along one axis in a file, (slices, H, W) uint8.   np.asarray maps them into memory.

    They are mapped for as long as the array is used: what all scans together hold does not add up.
    """

    path: Path
    offset: int
    shape: tuple[int, int, int]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        try:
            with open(self.path, "rb") as file:
                whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # unmapped when its last array goes
            slices = np.frombuffer(whole, np.uint8, int(np.prod(self.shape)), self.offset).reshape(self.shape)
        except (OSError, ValueError) as error:
            raise ScanError(f"{self.path}: cannot be read any more ({error}), expected a file that was there when the "
                            "run began; start it again") from None
        return np.array(slices, dtype) if copy or dtype not in (None, np.uint8) else slices


@dataclass(frozen=True)
class VolumeFile:
    """A volume (z, y, x) uint8 in a file."""

    path: Path
    offset: int
    shape: tuple[int, int, int]

    def planes(self, axis: int) -> SlicesFile:
        """Its slices along an axis, (slices, H, W)."""
        shape = (self.shape[axis], *np.delete(self.shape, axis).tolist())
        return SlicesFile(self.path, self.offset + axis * int(np.prod(self.shape)), shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.planes(0).__array__(dtype, copy)


@dataclass(frozen=True)
class CachedScan:
    """What `Prepared` is in memory, in a file: `image` and `mask` are mapped anew each time they are asked for."""

    image_file: VolumeFile
    mask_file: VolumeFile
    spacing_mm: tuple[float, float, float]  # (z, y, x)
    name: str
    modality: str

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.image_file.shape

    @property
    def image(self) -> np.ndarray:
        return np.asarray(self.image_file)

    @property
    def mask(self) -> np.ndarray:
        return np.asarray(self.mask_file)

    @property
    def truth(self) -> VolumeFile:
        return self.mask_file

    def planes(self, axis: int) -> SlicesFile:
        return self.image_file.planes(axis)


def prepared_case(case: Case, grid_mm: float, folder: Path) -> CachedScan:
    """A case, prepared, from the folder; it is prepared and written there first where it is missing or damaged."""
    path = folder / f"{key_of(case, grid_mm)}.scan"

    def make() -> tuple[dict[str, np.ndarray], dict]:
        scan: Prepared = prepare(case.read(), grid_mm)
        return {"image": scan.image, "mask": scan.mask}, {"spacing_mm": scan.spacing_mm, "modality": scan.modality}

    volumes, about = kept_volumes(path, make)
    return CachedScan(volumes["image"], volumes["mask"], tuple(about["spacing_mm"]), case.name, about["modality"])


def key_of(case: Case, grid_mm: float) -> str:
    """A hash of all that a prepared case depends on: its files' bytes, how they are read, the grid, and the code."""
    digest = hashlib.sha256(repr((hash_of_case(case), case.modality, case.names_levels, grid_mm)).encode())
    digest.update(repr(identity_of("preprocess", "datasets.manifest")).encode())
    return digest.hexdigest()[:32]


def hash_of_case(case: Case) -> str:
    """Of the bytes of a case's image and mask, whatever the files are called."""
    digest = hashlib.sha256()
    for path in (case.image, case.mask):
        for part in data_files(path):
            now = part.stat()
            digest.update(_hash_while(part, now.st_size, now.st_mtime_ns).encode())
        digest.update(b"|")
    return digest.hexdigest()


@lru_cache(None)
def _hash_while(path: Path, size: int, changed_ns: int) -> str:
    """Read once, for as long as size and time of change stay what they are."""
    return hash_of(path)


def kept_volumes(path: Path, make: Callable[[], tuple[dict[str, np.ndarray], dict]]) -> tuple[dict[str, VolumeFile],
                                                                                            dict]:
    """Volumes by name, and what else is known about them, from a file.

    make: what to write first, where the file is missing or, which is said, damaged.
    """
    found = read_volumes(path) if path.is_file() else "nothing"
    if isinstance(found, str):
        if path.is_file():
            print(f"{path}: is damaged ({found}) and made again")
        write_volumes(path, *make())
        found = read_volumes(path)
        if isinstance(found, str):
            raise ScanError(f"{path}: reads back {found}, expected what was just written; check the disk")
    return found


def write_volumes(path: Path, volumes: dict[str, np.ndarray], about: dict) -> None:
    """Write volumes (z, y, x) uint8, and a few words about them, whole or not at all."""
    places, parts, offset = {}, [], HEADER_BYTES
    for name, volume in volumes.items():
        places[name] = {"offset": offset, "shape": volume.shape}
        parts += [np.ascontiguousarray(np.moveaxis(volume, axis, 0)) for axis in range(3)]
        offset += 3 * volume.size
    header = {"volumes": places, "about": about}
    digest = hashlib.sha256(json.dumps(header).encode())
    for part in parts:
        digest.update(part)
    line = json.dumps({"sha256": digest.hexdigest(), "bytes": offset} | header).encode()
    if len(line) > HEADER_BYTES:
        raise ValueError(f"{path}: {len(line)} bytes about the volumes, expected at most {HEADER_BYTES}")
    with whole_file(path) as whole, open(whole, "wb") as file:
        file.write(line.ljust(HEADER_BYTES))
        for part in parts:
            file.write(part)


def read_volumes(path: Path) -> tuple[dict[str, VolumeFile], dict] | str:
    """The volumes of a file and what is known about them; where it is damaged, in a few words how."""
    with open(path, "rb") as file:
        try:
            header = json.loads(file.read(HEADER_BYTES))
            said, size = header.pop("sha256"), header.pop("bytes")
            volumes = {name: VolumeFile(path, v["offset"], tuple(v["shape"])) for name, v in header["volumes"].items()}
            about = header["about"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return "no header"
        if path.stat().st_size != size:
            return f"{path.stat().st_size} bytes of {size}"
        digest = hashlib.sha256(json.dumps(header).encode())
        while piece := file.read(1 << 20):
            digest.update(piece)
    return (volumes, about) if digest.hexdigest() == said else "its checksum is wrong"
