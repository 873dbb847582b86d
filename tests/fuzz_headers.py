"""Headers changed at random, in six forms, each read in a process of its own: what becomes of it, by kind.

`python tests/fuzz_headers.py --count 1000 --keep DIR` prints, a line a form, how many files were read, were refused in
one line, took the process with them, took over ten seconds, or were read "wrong": into another place or other voxels
though what tells these is untouched, not the same twice, or (NIfTI) elsewhere than SimpleITK has them, without a note.
DIR gets the files of the last three kinds.
"""

import argparse
import json
import queue
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk

from pointseg.scans.files import quiet
from pointseg.scans.reading import read_image
from pointseg.scans.volumes import geometry_of
from pointseg.volume import ScanError

FORMS = {"nii": ("scan.nii", "scan.nii"), "pair": ("scan.hdr", "scan.hdr"), "nrrd": ("scan.nrrd", "scan.nrrd"),
         "mha": ("scan.mha", "scan.mha"), "frames": ("scan.dcm", "scan.dcm"), "slices": ("scan", "scan/90.dcm")}
SECONDS = 10
ENDS = {"nrrd": b"\n\n", "mha": b"ElementDataFile = LOCAL\n"}
NUMBERS = (b"0", b"-1", b"1e9", b"nan", b"inf", b"-0", b"1e-9", b"99999999999", b"x", b"", b"1,5", b"3", b"0.5")
NIFTI_PLACE, NIFTI_VOXELS = ((0, 4), (40, 56), (76, 92), (252, 328)), ((70, 74), (108, 120), (344, 348))
TEXT_PLACE = rb"(?m)^(?:dimension|sizes|space|NDims|DimSize|Element(?:Spacing|Size)|Offset|TransformMatrix).*$"
DICOM_PLACE = ("Rows", "Columns", "NumberOfFrames", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient",
               "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "SpacingBetweenSlices")
DICOM_VOXELS = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PhotometricInterpretation",
                "RescaleSlope", "RescaleIntercept", "PixelData", "SamplesPerPixel")


def write_good(folder: Path) -> None:
    """A good scan in all forms."""
    from odd_scans import save, values, write_frames, write_slices  # torch, which those who read do without

    for name in ("scan.nii", "scan.img", "scan.nrrd", "scan.mha"):
        save(folder / name, packed=name in ("scan.nrrd", "scan.mha"))
    write_frames(folder / "scan.dcm", (values() + 1000).astype(np.int16))
    write_slices(folder / "scan", values())


def header_length(data: bytes, form: str) -> int:
    if form in ENDS:
        return data.find(ENDS[form]) + len(ENDS[form])
    return 352 if form == "nii" else 348 if form == "pair" else data.rindex(struct.pack("<2H", 0x7FE0, 0x10))


def mutated(data: bytes, form: str, rng: np.random.Generator) -> bytes:
    """One to three changes of a header: bytes, bits, fields, and in text numbers and lines."""
    end = header_length(data, form)
    head = bytearray(data[:end])
    for _ in range(rng.integers(1, 4)):
        at, kind = int(rng.integers(len(head))), rng.integers(8 if form in (*ENDS, "frames", "slices") else 4)
        if kind == 0:
            head[at] = int(rng.integers(256))
        elif kind == 1:
            head[at] ^= 1 << int(rng.integers(8))
        elif kind in (2, 3):
            at = at // 4 * 4
            odd = [float("nan"), float("inf"), 0.0, -1.0, 1e9, 1e-9, float(rng.normal(0, 10))]
            field = struct.pack("<f", odd[rng.integers(len(odd))]) if kind == 2 else rng.bytes(4)
            head[at : at + 4] = field[: len(head) - at]
        elif kind < 7 and (found := list(re.finditer(rb"-?\d+(?:\.\d+)?", bytes(head)))):
            number = found[rng.integers(len(found))]
            new = NUMBERS[rng.integers(len(NUMBERS))]
            head[number.start() : number.end()] = new if form in ENDS else new.ljust(len(number[0]))[: len(number[0])]
        elif form in ENDS:
            lines = bytes(head).split(b"\n")
            i, j = rng.integers(len(lines), size=2)
            lines[i : i + 1] = [[], [lines[i], lines[i]], [lines[j]]][rng.integers(3)]
            head = bytearray(b"\n".join(lines) or b"\n")
    return bytes(head) + data[end:]


def tells(path: Path, data: bytes, form: str) -> tuple[object, object]:
    """What of a file tells the place, and what the voxels besides: the same where untouched."""
    if form in ("nii", "pair"):
        return tuple([data[a:b] for a, b in spans] for spans in (NIFTI_PLACE, NIFTI_VOXELS))
    if form in ENDS:
        head = data[: header_length(data, form)]
        return re.findall(TEXT_PLACE, head), head
    tags = pydicom.dcmread(path, force=True)
    return tuple([str(tags.get(name)) for name in names] for names in (DICOM_PLACE, DICOM_VOXELS))


def wrong(form: str, scan: Path, changed: Path, before: tuple, old: sitk.Image) -> str:
    """What is wrong with what is read; "" for nothing.   Raises ScanError where it is refused."""
    read = read_image(scan)
    new = read.image
    if not np.array_equal(sitk.GetArrayViewFromImage(new), sitk.GetArrayFromImage(read_image(scan).image), True):
        return "not the same twice"
    here, good = geometry_of(new), geometry_of(old)
    try:
        now = tells(changed, changed.read_bytes(), form)
    except Exception:  # beyond what pydicom reads alone
        return ""
    corners = np.array([(0, 0, 0), (good.size[0], 0, 0), (0, good.size[1], 0), (0, 0, good.size[2])])
    if now[0] == before[0]:
        if here.size != good.size or not np.allclose(here.to_mm(corners), good.to_mm(corners), atol=0.05):
            return f"is {here}, expected {good}"
        if now[1] == before[1] and not np.array_equal(*map(sitk.GetArrayViewFromImage, (new, old))):
            return "other voxels"
    elif form in ("nii", "pair") and not read.notes:
        try:
            with quiet():
                other = geometry_of(sitk.ReadImage(str(scan)))
        except (RuntimeError, ValueError):
            return ""
        if not np.allclose(here.to_mm(corners), other.to_mm(corners), rtol=0.03, atol=3):
            return f"is {here}, and SimpleITK has {other}"
    return ""


def work(form: str, folder: Path) -> None:
    """Answer each number that comes in with what becomes of the file that it seeds."""
    scan, changed = (folder / name for name in FORMS[form])
    data, old = changed.read_bytes(), read_image(scan).image
    before = tells(changed, data, form)
    for line in sys.stdin:
        changed.write_bytes(mutated(data, form, np.random.default_rng(int(line))))
        try:
            said = wrong(form, scan, changed, before, old)
            kind = "wrong" if said else "read"
        except ScanError as error:
            kind, said = "refused", str(error)
            if not said.startswith(str(folder)) or ", expected " not in said or len(said.splitlines()) > 1:
                kind = "crash"
        except Exception as error:
            kind, said = "crash", repr(error)
        print(json.dumps([kind, said]), flush=True)


def listen(process: subprocess.Popen, answers: queue.SimpleQueue) -> None:
    """All lines that it says, and "" when it ends."""
    with process.stdout as said:
        for line in said:
            answers.put(line)
    answers.put("")


def watched(form: str, good: Path, seeds: range, keep: Path | None) -> Counter:
    """Counts by kind; a process that dies or hangs is started anew."""
    counts, process, answers = Counter(), None, None
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(good, name, dirs_exist_ok=True)
        for seed in seeds:
            if process is None:
                process = subprocess.Popen([sys.executable, __file__, "--work", form, name], text=True,
                                           stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                answers = queue.SimpleQueue()
                threading.Thread(target=listen, args=(process, answers)).start()
                patience_s = 120  # it imports first
            process.stdin.write(f"{seed}\n")
            process.stdin.flush()
            try:
                answer = answers.get(timeout=patience_s)
                kind, said = json.loads(answer) if answer else ("crash", f"exit status {process.wait()}")
            except queue.Empty:
                kind, said = "hang", f"{patience_s} s"
            patience_s = SECONDS
            counts[kind] += 1
            if kind not in ("read", "refused"):
                print(f"{form} {seed}: {kind}: {said}", flush=True)
                if keep:
                    keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(Path(name) / FORMS[form][1], keep / f"{form}_{seed}{Path(FORMS[form][1]).suffix}")
            if kind == "hang" or process.poll() is not None:
                process.kill()
                process.wait()
                process.stdin.close()
                process = None
                shutil.copy(good / FORMS[form][1], Path(name) / FORMS[form][1])
        if process:
            process.stdin.close()
            process.wait()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="of the seeds")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work[0], Path(options.work[1]))
    with tempfile.TemporaryDirectory() as good:
        write_good(Path(good))
        for form in options.forms:
            counts = watched(form, Path(good), range(options.first, options.first + options.count), options.keep)
            kinds = "".join(f"{counts[kind]:>8} {kind}" for kind in ("read", "refused", "crash", "hang", "wrong"))
            print(f"{form:<8}{kinds}", flush=True)


if __name__ == "__main__":
    main()
