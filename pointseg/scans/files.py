"""What all that reads and writes files shares: errors of one line, and outputs that appear whole or not at all."""

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pointseg.volume import ScanError, shortened

WRITABLE = (".nii.gz", ".nii", ".mha", ".nrrd")  # one file each; .mhd names a second one and cannot be replaced at once

NIFTI_SIZE_MAX = 2**15 - 1


class WriteError(ScanError):
    """An output that cannot be written: where one fails, so will the next."""


class Damaged(Exception):
    """Why a file is not whole, for `reading` to say."""


@dataclass(frozen=True)
class Stored:
    """A scan or mask as its file holds it: 3-D, a real number a voxel."""

    image: sitk.Image
    modality: str  # "CT", "MR" or "" for unknown
    notes: tuple[str, ...]  # what was done to it, or assumed


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
            with open(Path(folder) / path.name, "rb+") as written:  # Windows syncs nothing that is open to read
                os.fsync(written.fileno())  # or a power cut could leave the new name with nothing in it
            os.replace(Path(folder) / path.name, path)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error}), expected a folder one may write to; "
                        "check the path, its permissions and the space left") from None


def write_image(path: Path, image: sitk.Image) -> None:
    """Write an image, whole or not at all."""
    check_format(path)
    if ".nii" in path.name and max(image.GetSize()) > NIFTI_SIZE_MAX:
        raise ScanError(f"{path}: cannot be written ({max(image.GetSize())} voxels along an axis), expected at most "
                        f"{NIFTI_SIZE_MAX} for NIfTI; write .mha or .nrrd")
    with whole_file(path) as part, quiet():
        # Under a plain name: the library takes some names, such as a.img.nii, for those of other formats.
        plain = part.with_name("image" + next(e for e in WRITABLE if path.name.endswith(e)))
        try:
            sitk.WriteImage(image, str(plain), useCompression=True)
        except RuntimeError as error:  # also where the disk is full
            raise OSError(reason(error)) from None
        plain.rename(part)


def check_format(path: Path) -> None:
    """Refuse a name whose ending names no format that `write_image` writes."""
    if not path.name.endswith(WRITABLE) or path.name in WRITABLE:
        raise ScanError(f"{path}: cannot be written in this format, expected a name that ends in "
                        f"{', '.join(WRITABLE)}; choose one of these")


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, whole or not at all."""
    with whole_file(path) as part:
        part.write_text(json.dumps(content, indent=2, default=np.ndarray.tolist) + "\n", encoding="utf-8")


def hash_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def found_at(path: str | Path, wanted: str = "folder") -> str:
    """What lies where something else was expected, for a message."""
    return "found a folder" if Path(path).is_dir() else "found a file" if Path(path).exists() else f"no such {wanted}"


def rows_of(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table that are not blank, each with the number of its line; values without spaces around them.

    What stands between values is told by the first line, since spreadsheets write what a country is used to; Excel may
    say it there, as in "sep=;".
    """
    said = re.match(r'"?sep=([,;\t|])', text, re.IGNORECASE)
    delimiter = said[1] if said else max(",;\t|", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells) and not (said and reader.line_num == 1):
                yield reader.line_num, cells
    except csv.Error as error:
        raise ScanError(f"{path}, line {reader.line_num}: found {error}, expected commas between values, and quotes in "
                        "pairs") from None


def check_folder(folder: str | Path) -> None:
    """Make a folder, and refuse one that cannot be written to: better before hours of work than after."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ScanError(f"{folder}: cannot be written to ({error}), expected a folder one may write to; "
                        "check the path, its permissions and the space left") from None


def check_file(path: str | Path) -> None:
    """Refuse a name for an output that cannot be one, in a folder that `check_folder` has seen to."""
    if Path(path).is_dir():
        raise ScanError(f"{path}: is a folder, expected a file to write or to replace; choose another name")


def first_line(error: Exception) -> str:
    """What an error says, for a message of one line."""
    return shortened((str(error).strip().splitlines() or [type(error).__name__])[0])


def some_of(names: Sequence[str], between: str = ", ", most: int = 5) -> str:
    """The first of these, and how many more there are."""
    more = f"{between}and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more


def reason(error: Exception) -> str:
    """The last line of an ITK error says what happened, those above where in its sources."""
    return re.sub(r"^\w+\(0x\w+\): ", "", str(error).strip().splitlines()[-1].split("ERROR: ")[-1].strip())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the C++ libraries print to stderr, which knows nothing of what we say in its place."""
    shown, stderr = sitk.ProcessObject.GetGlobalWarningDisplay(), os.dup(2)
    sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        try:
            yield
        finally:
            sitk.ProcessObject.SetGlobalWarningDisplay(shown)
            os.dup2(stderr, 2)
            os.close(stderr)


