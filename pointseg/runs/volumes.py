"""Prepared scans in files: made once, and read slice by slice, so that memory holds what is in use.

A scan is a NAME.npy with image and, where it has one, mask, (1 or 2, z, y, x) uint8, and a NAME.json that says what
else is known and has the checksum of the first; it is written last, so a scan is there as a whole or not at all, and
any number of processes can share a folder of them.  To all that uses a scan it is a `Prepared` like any other.
"""

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from pointseg.datasets.manifest import Case
from pointseg.datasets.split import read_and_prepare
from pointseg.preprocess import Prepared
from pointseg.runs.identity import identity_of
from pointseg.scans.files import Damaged, hash_of, whole_file, write_json
from pointseg.scans.reading import data_files
from pointseg.volume import Clicks, ScanError

CLICKS = {"places": np.int32, "values": np.uint8, "seconds": float, "stands_for_mm3": float}
OPEN_MAX = 16  # files that are mapped at a time: each takes a file descriptor, of which macOS gives a process 256


class ScanInFile(Prepared):
    """A prepared scan whose arrays, read-only, are mapped from its file when they are asked for."""

    def __init__(self, path: Path, spacing_mm: tuple[float, float, float], name: str, modality: str,
                 clicks: Clicks | None):
        vars(self).update(path=path, spacing_mm=spacing_mm, name=name, modality=modality, clicks=clicks)

    @property
    def image(self) -> np.ndarray:
        return self._arrays()[0]

    @property
    def mask(self) -> np.ndarray | None:
        return self._arrays()[1] if len(self._arrays()) > 1 else None

    def _arrays(self) -> np.ndarray:
        try:
            return _mapped(self.path, self.path.stat().st_mtime_ns)
        except (OSError, ValueError) as error:
            raise ScanError(f"{self.path}: cannot be read any more ({error}), expected a file that was there when the "
                            "run began; start it again") from None


@lru_cache(OPEN_MAX)
def _mapped(path: Path, changed_ns: int) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r"))


def kept_scan(path: Path, make: Callable[[], Prepared], name: str = "") -> ScanInFile:
    """The scan of `path`, a .npy file; it is made and written first where it is missing or, which is said, damaged.

    name: where it is not the one that the file knows.
    """
    if path.with_suffix(".json").is_file():
        try:
            return _read(path, name)
        except Damaged as error:
            print(f"{path}: is damaged ({error}) and made again")
    scan = make()
    with whole_file(path) as part:
        np.save(part, np.stack([scan.image] if scan.mask is None else [scan.image, scan.mask]))
    write_json(path.with_suffix(".json"), {
        "spacing_mm": scan.spacing_mm, "name": scan.name, "modality": scan.modality, "sha256": hash_of(path),
        "clicks": scan.clicks and vars(scan.clicks)})
    return ScanInFile(path, scan.spacing_mm, name or scan.name, scan.modality, scan.clicks)


def _read(path: Path, name: str) -> ScanInFile:
    try:
        about = json.loads(path.with_suffix(".json").read_bytes())
        clicks = about["clicks"] and Clicks(*(np.array(about["clicks"][name], dtype) for name, dtype in CLICKS.items()))
        scan = ScanInFile(path, tuple(about["spacing_mm"]), name or about["name"], about["modality"], clicks)
        if hash_of(path) != about["sha256"]:
            raise Damaged("its checksum is wrong")
        return scan
    except OSError:
        raise Damaged("its arrays are missing") from None
    except (ValueError, LookupError, TypeError):
        raise Damaged("its description is none of ours") from None


def prepare_into(folder: Path) -> Callable[[Case, float], Prepared]:
    """A `prepare_case` of `datasets.split.prepare_split` that keeps prepared scans in a folder."""
    return partial(_prepared_case, folder=folder)


def _prepared_case(case: Case, grid_mm: float, folder: Path) -> ScanInFile:
    return kept_scan(folder / f"{key_of(case, grid_mm)}.npy", partial(read_and_prepare, case, grid_mm), case.name)


def key_of(case: Case, grid_mm: float) -> str:
    """A hash of all that a prepared case depends on: its files' bytes, how they are read, the grid, and the code."""
    digest = hashlib.sha256(repr((
        hash_of_case(case), case.modality, case.names_levels, case.labelled, case.scheme, grid_mm)).encode())
    digest.update(repr(identity_of("preprocess", "datasets.manifest")).encode())
    return digest.hexdigest()[:32]


def hash_of_case(case: Case) -> str:
    """Of the bytes of a case's image, mask and clicks, whatever the files are called."""
    digest = hashlib.sha256()
    for path in (case.image, case.mask, case.points):
        for part in data_files(path) if path else ():
            now = part.stat()
            digest.update(_hash_while(part, now.st_size, now.st_mtime_ns).encode())
        digest.update(b"|")
    return digest.hexdigest()


@lru_cache(None)
def _hash_while(path: Path, size: int, changed_ns: int) -> str:
    """Read once, for as long as size and time of change stay what they are."""
    return hash_of(path)
