"""Odd and malformed scans, made from good ones in seven forms, through `pointseg segment`.

Each is either handled right, so that its mask is the good scan's in the geometry that the file states, or refused in
one line that names it.  Never a traceback, a mask elsewhere, half an output, or ten seconds without an answer.
"""

import bz2
import gzip
import itertools
import lzma
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import fuzz_headers
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from odd_scans import (
    DIRECTION,
    FORMS,
    ORIGIN,
    SHAPE,
    SPACING,
    change,
    image_of,
    is_good,
    is_refused,
    only,
    save,
    segment,
    values,
    write_frames,
    write_slices,
)
from pydicom.uid import generate_uid

from pointseg.commands import batch
from pointseg.commands import main as cli
from pointseg.commands.scanlist import masks_in
from pointseg.scans.reading import read_image
from pointseg.scans.volumes import geometry_of, read_volume
from pointseg.volume import ScanError

# --- every form, damaged in the same ways ---

def cut(share: float):
    return lambda data: data[:int(len(data) * share)]


def fill(byte: bytes):
    return lambda data: byte * len(data)


def noise(data: bytes) -> bytes:
    return np.random.default_rng(0).integers(0, 256, len(data)).astype(np.uint8).tobytes()


DAMAGE = {"empty": cut(0), "ten bytes": lambda d: d[:10], "100 bytes": lambda d: d[:100],
          "300 bytes": lambda d: d[:300], "a tenth": cut(0.1), "half": cut(0.5), "most of it": cut(0.95),
          "all but a byte": lambda d: d[:-1],
          "zeros": fill(b"\0"), "ones": fill(b"\xff"), "noise": noise,
          "a web page": lambda d: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
          "a pickle": lambda d: b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR.", "its end twice": lambda d: d + d[-100:]}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("form", FORMS)
def test_damaged_files(form, damage, model, good, tmp_path, capsys):
    scan = FORMS[form](tmp_path)
    scan.write_bytes(DAMAGE[damage](scan.read_bytes()))
    answer = segment(scan, model, tmp_path, capsys)
    if answer.status == 0:  # all of the voxels are still there
        expected = values() if form != "frames" else sitk.GetArrayFromImage(sitk.ReadImage(str(scan)))
        is_good(answer, good(expected, "MR" if form == "frames" else "CT"))
    else:
        is_refused(answer, ";")  # and what to do next


@pytest.mark.parametrize("form", ["nii", "mha", "nrrd", "frames", "mhd"])
def test_damaged_headers(form, model, tmp_path, capsys):
    """Bytes of the header overwritten at random.  What is still read lies where SimpleITK says it does."""
    scan = FORMS[form](tmp_path)
    before, accepted = scan.read_bytes(), 0
    start, end = {"nii": (0, 348), "frames": (128, 1500)}.get(form, (0, 400))
    for seed in range(16):
        rng = np.random.default_rng(seed)
        data = bytearray(before)
        for at in rng.integers(start, min(end, len(data)), rng.integers(1, 4)):
            data[at] = rng.integers(256)
        scan.write_bytes(data)
        answer = segment(scan, model, tmp_path, capsys)
        if answer.status == 0:
            accepted += 1
            # Frames are sorted and placed by what the header says of each, which SimpleITK does not always follow.
            oracle = geometry_of(read_volume(scan).geometry and sitk.ReadImage(str(scan)))
            found = geometry_of(answer.mask)
            assert found.size == oracle.size
            if form != "frames":  # where a NIfTI's two orientations hardly differ, nibabel takes the matrix
                loose = 0.02 if form.startswith("nii") else 1e-4
                for name in ("spacing", "direction", "origin"):
                    np.testing.assert_allclose(getattr(found, name), getattr(oracle, name), loose, loose)
    assert accepted < 16


# --- NIfTI ---

def nifti(path: Path, *changes: tuple[int, str, object], packed: bool = False) -> Path:
    """The good scan with some header fields replaced: (offset, struct format, value)."""
    save(path)
    data = bytearray(path.read_bytes())
    for offset, kind, value in changes:
        struct.pack_into("<" + kind, data, offset, *(value if isinstance(value, tuple) else (value,)))
    path.write_bytes(gzip.compress(bytes(data)) if packed else data)
    return path


NIFTI_FAULTS = {
    "a huge grid": ([(42, "3h", (30000, 30000, 30000))], "bytes"), "one axis huge": ([(42, "h", 32767)], "bytes"),
    "a negative size": ([(42, "h", -24)], ""), "no axes": ([(40, "h", 0)], ""), "eight axes": ([(40, "h", 8)], ""),
    "a plane": ([(40, "h", 2)], "24 x 20 voxels"), "one slice": ([(46, "h", 1)], "24 x 20 x 1 voxels"),
    "two frames": ([(40, "h", 4), (46, "2h", (8, 2))], "24 x 20 x 8 x 2 voxels"),
    "spacing 0": ([(80, "f", 0.0)], "0 x 2 x 2.5 mm"), "spacing below 0": ([(84, "f", -2.0)], "1.5 x -2 x 2.5 mm"),
    "spacing NaN": ([(88, "f", float("nan"))], "1.5 x 2 x nan mm"),
    "spacing infinite": ([(88, "f", float("inf"))], "1.5 x 2 x inf mm"),
    "metres": ([(80, "3f", (0.0015, 0.002, 0.0025))], "0.0015 x 0.002 x 0.0025 mm"),
    "kilometres": ([(80, "3f", (5000, 5000, 5000))], "5000 mm"), "another type": ([(70, "h", 9999)], ""),
    "colour": ([(70, "2h", (128, 24))], "found RGB voxels"), "complex numbers": ([(70, "2h", (32, 64))], ""),
    "a wider type": ([(70, "2h", (64, 64))], "bytes"), "the data elsewhere": ([(108, "f", 1e6)], "bytes"),
    "the data in the header": ([(108, "f", 348.0)], "begin at byte 348, within its header"),
    "the data at its start": ([(108, "f", 0.0)], "begin at byte 0, within its header"),
    "metres, said": ([(123, "B", 1)], "lengths in meter, not mm"),
    "micrometres, said": ([(123, "B", 3), (80, "3f", (30.0, 30.0, 30.0)), (252, "2h", (0, 0))], "lengths in micron, "),
    "bits of another type": ([(72, "h", 8)], "8 bits a voxel, but voxels of type int16"),
    "a narrower type": ([(70, "h", 2)], "16 bits a voxel, but voxels of type uint8"),
    "a further axis of two": ([(40, "h", 5), (48, "3h", (1, 2, 1))], "vector of 2"),
    "the data nowhere": ([(108, "f", float("inf"))], ""),
    "no bits, and short": ([(72, "h", 0), (46, "h", 17)], "bytes"),
    "no frame": ([(40, "h", 4), (48, "h", 0)], "sizes"),
    "no rotation": ([(252, "2h", (1, 0)), (256, "f", 3.0)], "quaternion (qform) is no rotation"),
    "no rotation beside a matrix": ([(256, "f", float("nan"))], "quaternion (qform) is no rotation"),
    "two spacings": ([(280, "f", 4.5)], "in the matrix"),
    "sheared": ([(252, "2h", (0, 1)), (280, "4f", (1.5, 1.0, 0, 0)), (296, "4f", (0, 2, 0, 0)),
                 (312, "4f", (0, 0, 2.5, 0))], "in the matrix (sform)"),
    "skewed": ([(252, "2h", (0, 1)), (280, "4f", (1.5, 1.0, 0, 0)), (296, "4f", (0, 3**0.5, 0, 0)),
                (312, "4f", (0, 0, 2.5, 0))], "right angles"),
    "a flat matrix": ([(252, "2h", (0, 1)), (280, "12f", (0.0,) * 12)], ""),
    "a matrix of NaN": ([(252, "2h", (0, 1)), (280, "12f", (float("nan"),) * 12)], ""),
    "orientation codes": ([(252, "2h", (12388, -17440))], "orientation codes (qform, sform) 12388 and -17440"),
    "an origin beyond all rooms": ([(288 + 4, "f", 1e9)], "within 100 m"),
    "no magic": ([(344, "4s", b"xxxx")], ""),
}


@pytest.mark.parametrize("packed", [False, True], ids=["nii", "nii.gz"])
@pytest.mark.parametrize("fault", NIFTI_FAULTS)
def test_nifti_faults(fault, packed, model, tmp_path, capsys):
    changes, said = NIFTI_FAULTS[fault]
    scan = nifti(tmp_path / f"scan.nii{'.gz' if packed else ''}" if not packed else tmp_path / "scan.nii", *changes)
    if packed:
        scan.with_suffix(".nii.gz").write_bytes(gzip.compress(scan.read_bytes()))
        scan = scan.with_suffix(".nii.gz")
    is_refused(segment(scan, model, tmp_path, capsys), said)


def test_nifti_big_endian(model, good, tmp_path, capsys):
    scan = save(tmp_path / "scan.nii")
    data = bytearray(scan.read_bytes())
    header = struct.unpack_from("<i10s18sihcB8h3f4h8f3fhcB4f2i80s24s2h6f4f4f4f16s4s", data)
    struct.pack_into(">i10s18sihcB8h3f4h8f3fhcB4f2i80s24s2h6f4f4f4f16s4s", data, 0, *header)
    data[352:] = np.frombuffer(bytes(data[352:]), "<i2").astype(">i2").tobytes()
    scan.write_bytes(data)
    is_good(segment(scan, model, tmp_path, capsys), good())


def test_nifti_scaled(model, good, tmp_path, capsys):
    """Values stored as twice what they mean, and 10 less."""
    scan = nifti(tmp_path / "scan.nii", (112, "2f", (0.5, 10.0)))
    is_good(segment(scan, model, tmp_path, capsys), good(values().astype(np.float32) / 2 + 10))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("extensions", [0, 1, 3])
def test_nifti_extensions(extensions, packed, tmp_path):
    """What other programs keep between header and voxels; and the mark that there is some, without any."""
    data = save(tmp_path / "scan.nii").read_bytes()
    more = struct.pack("<2i24s", 32, 6, b"comment") * extensions
    data = data[:108] + struct.pack("<f", 352 + len(more)) + data[112:348] + b"\1\0\0\0" + more + data[352:]
    scan = tmp_path / f"scan.nii{'.gz' * packed}"
    scan.write_bytes(gzip.compress(data) if packed else data)
    assert np.array_equal(sitk.GetArrayViewFromImage(read_image(scan).image), values())


def test_the_library_does_not_speak_between(tmp_path, capfd, monkeypatch):
    """nibabel tells its logger what it mends; a line of ours has what matters."""
    scan = nifti(tmp_path / "scan.nii", (108, "f", 353.0))
    data = scan.read_bytes()
    scan.write_bytes(data[:352] + b"\0" + data[352:])
    with open(2, "w", closefd=False) as stderr:
        monkeypatch.setattr(nibabel.imageglobals.logger.handlers[0], "stream", stderr)
        stored = read_image(scan)
    assert np.array_equal(sitk.GetArrayViewFromImage(stored.image), values()) and capfd.readouterr().err == ""


@pytest.mark.parametrize("slope", [0, float("nan"), float("inf"), float("-inf")])
def test_nifti_without_a_slope_is_not_scaled(slope, model, good, tmp_path, capsys):
    """Nor is what scl_inter says then added."""
    scan = nifti(tmp_path / "scan.nii", (112, "2f", (slope, 100.0)))
    is_good(segment(scan, model, tmp_path, capsys), good())


@pytest.mark.parametrize("intercept", [float("nan"), float("inf"), float("-inf")])
def test_nifti_with_an_intercept_that_is_no_number(intercept, model, tmp_path, capsys):
    scan = nifti(tmp_path / "scan.nii", (112, "2f", (1.0, intercept)))
    is_refused(segment(scan, model, tmp_path, capsys), "invalid intercept")


@pytest.mark.parametrize("endings", [(".hdr", ".img"), (".HDR", ".IMG"), (".hdr.gz", ".img.gz"), (".hdr", ".img.gz")])
def test_nifti_pairs(endings, model, good, tmp_path, capsys):
    """By either file; half of one is refused by the name of what is missing."""
    save(tmp_path / "pair.img")
    for old, new in zip((".hdr", ".img"), endings):
        data = (tmp_path / f"pair{old}").read_bytes()
        (tmp_path / f"scan{new}").write_bytes(gzip.compress(data) if new.endswith(".gz") else data)
    header, voxels = (tmp_path / f"scan{ending}" for ending in endings)
    for path in (header, voxels):
        is_good(segment(path, model, tmp_path, capsys), good())
    data = voxels.read_bytes()
    voxels.write_bytes(data[:-20])
    is_refused(segment(header, model, tmp_path, capsys), "cannot be read")
    voxels.unlink()
    is_refused(segment(header, model, tmp_path, capsys), "an .img file of the same name, are not beside it")
    header.unlink()
    voxels.write_bytes(data)
    is_refused(segment(voxels, model, tmp_path, capsys), "a .hdr file of the same name, is not beside it")


def test_nifti_axes_that_rounding_has_bent(model, good, tmp_path, capsys):
    """SimpleITK refuses them, and some hundred scans of TotalSegmentator with them."""
    step = DIRECTION * SPACING * np.array([[-1], [-1], [1]])  # LPS to RAS
    bent = step + step[:, [1, 2, 0]] * 0.004
    rows = np.column_stack([bent, np.array(ORIGIN) * (-1, -1, 1)]).astype(np.float32)
    scan = nifti(tmp_path / "scan.nii", (252, "2h", (0, 1)), (280, "12f", tuple(rows.ravel().tolist())))
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(scan))
    packed = scan.with_suffix(".nii.gz")
    packed.write_bytes(gzip.compress(scan.read_bytes()))
    for path in (scan, packed):
        answer = segment(path, model, tmp_path, capsys)
        assert answer.status == 0 and "straightened" in answer.notes
        assert np.array_equal(sitk.GetArrayFromImage(answer.mask), good())
        np.testing.assert_allclose(answer.mask.GetDirection(), DIRECTION.ravel(), atol=0.01)
        np.testing.assert_allclose(answer.mask.GetOrigin(), ORIGIN, atol=1e-4)


def test_nifti_2(model, good, tmp_path, capsys):
    nib_header = bytearray(544)
    scan = save(tmp_path / "scan.nii")
    old = scan.read_bytes()
    struct.pack_into("<i8s2h8q", nib_header, 0, 540, b"n+2\0\r\n\x1a\n", 4, 16, 3, 24, 20, 16, 1, 1, 1, 1)
    struct.pack_into("<8d", nib_header, 104, *struct.unpack_from("<8f", old, 76))
    struct.pack_into("<q2d", nib_header, 168, 544, 1.0, 0.0)
    struct.pack_into("<2i", nib_header, 344, *struct.unpack_from("<2h", old, 252))
    struct.pack_into("<6d12d", nib_header, 352, *struct.unpack_from("<18f", old, 256))
    struct.pack_into("<i", nib_header, 500, 10)  # mm and s
    scan.write_bytes(nib_header + old[352:])
    answer = segment(scan, model, tmp_path, capsys)
    if answer.status == 0:
        is_good(answer, good())
    else:
        is_refused(answer, "cannot be read")


def test_nifti_without_orientation_is_said(model, tmp_path, capsys):
    answer = segment(nifti(tmp_path / "scan.nii", (252, "2h", (0, 0))), model, tmp_path, capsys)
    assert answer.status == 0 and "does not say how it lies" in answer.notes


@pytest.mark.parametrize("axes", [4, 5, 7])
def test_one_frame_is_a_scan(axes, tmp_path):
    stored = read_image(nifti(tmp_path / "scan.nii", (40, "h", axes), (48, "4h", (1, 1, 1, 1))))
    assert np.array_equal(sitk.GetArrayViewFromImage(stored.image), values())
    assert stored.notes == ("dropped a fourth axis of one frame",)


# --- what voxels may be ---

KINDS = {"int32": np.int32, "float32": np.float32, "float64": np.float64, "int64": np.int64}


@pytest.mark.parametrize("ending", ["nii.gz", "mha", "nrrd"])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_numbers(kind, ending, model, good, tmp_path, capsys):
    scan = save(tmp_path / f"scan.{ending}", values().astype(KINDS[kind]))
    is_good(segment(scan, model, tmp_path, capsys), good())


@pytest.mark.parametrize("ending", ["nii", "mha", "nrrd"])
@pytest.mark.parametrize("padding", [-2000, -3024, -32768])
def test_padding(padding, ending, model, good, tmp_path, capsys):
    """What the scanner's round field of view leaves is no tissue, and as good as air."""
    array = values()
    array[:, :2] = padding
    answer = segment(save(tmp_path / f"scan.{ending}", array), model, tmp_path, capsys)
    array[:, :2] = -1000
    is_good(answer, good(array))
    assert f"padding of {padding}" in answer.notes


@pytest.mark.parametrize("ending", ["mha", "nrrd"])
def test_not_a_number(ending, model, good, tmp_path, capsys):
    array = values().astype(np.float32)
    array[0, 0, :3] = np.nan, -np.inf, np.nan
    array[7, 8, 6] = np.inf
    answer = segment(save(tmp_path / f"scan.{ending}", array), model, tmp_path, capsys)
    array[0, 0, :3], array[7, 8, 6] = -1000, values().max()
    is_good(answer, good(array))
    assert "4 voxels that are not finite" in answer.notes


@pytest.mark.parametrize("ending", ["nii", "mha", "nrrd"])
@pytest.mark.parametrize("spacing", [(0.3, 0.3, 8.0), (8.0, 0.9, 0.3), (3.0, 3.0, 3.0), (0.3, 0.3, 0.3)])
def test_spacings(spacing, ending, model, tmp_path, capsys):
    answer = segment(save(tmp_path / f"scan.{ending}", spacing=spacing), model, tmp_path, capsys)
    assert answer.status == 0 and answer.mask.GetSize() == SHAPE[::-1]
    np.testing.assert_allclose(answer.mask.GetSpacing(), spacing, atol=1e-6)


@pytest.mark.parametrize("ending", ["nii", "mha", "nrrd"])
@pytest.mark.parametrize(("array", "said"), [
    (np.zeros((4, 5, 6, 3), np.uint8), "one real number each"), (np.zeros((4, 5, 6), np.complex64), "one real number"),
    (np.zeros((1, 5, 6), np.int16), "6 x 5 x 1 voxels"), (np.zeros((2, 4, 5, 6), np.int16), "6 x 5 x 4 x 2 voxels")])
def test_not_one_scan(array, said, ending, model, tmp_path, capsys):
    vector = array.shape[-1] == 3
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=vector), str(tmp_path / f"scan.{ending}"))
    is_refused(segment(tmp_path / f"scan.{ending}", model, tmp_path, capsys), said)


@pytest.mark.parametrize("ending", ["tif", "png", "vtk", "hdf5", "mnc"])
def test_other_formats(ending, model, tmp_path, capsys):
    """Most of them keep no place in the patient."""
    image = sitk.Cast(image_of(values()), sitk.sitkUInt8)
    scan = tmp_path / f"scan.{ending}"
    sitk.WriteImage(image[:, :, 3] if ending == "png" else image, str(scan))
    is_refused(segment(scan, model, tmp_path, capsys), "cannot be read", "NIfTI, MHA, NRRD or DICOM")


def test_another_ending(model, good, tmp_path, capsys):
    """Content under the ending of another format: told by the content, or refused."""
    for true, named in (("nii.gz", "mha"), ("mha", "nii.gz"), ("nrrd", "nii"), ("nii.gz", "nii"), ("nii", "nii.gz"),
                        ("nii", "dcm"), ("mha", "txt")):
        scan = save(tmp_path / f"true.{true}").rename(tmp_path / f"scan.{named}")
        answer = segment(scan, model, tmp_path, capsys)
        if answer.status == 0:
            is_good(answer, good())
        scan.unlink()


def test_no_spine_at_all(model, tmp_path, capsys):
    """A constant image, and the smallest there can be: a mask in its geometry, whatever is in it."""
    for array in (np.full((5, 6, 7), 40, np.int16), np.arange(8, dtype=np.int16).reshape(2, 2, 2)):
        answer = segment(save(tmp_path / "scan.mha", array), model, tmp_path, capsys)
        assert answer.status == 0 and answer.mask.GetSize() == array.shape[::-1]


def test_nifti_not_a_number(model, good, tmp_path, capsys):
    """The library makes 0 of it, which in a CT is water."""
    array = values().astype(np.float32)
    array[:, :2], array[7, 8, 6] = np.nan, np.inf
    for ending in ("nii", "nii.gz"):
        answer = segment(save(tmp_path / f"scan.{ending}", array), model, tmp_path, capsys)
        clean = array.copy()
        clean[:, :2], clean[7, 8, 6] = -1000, values().max()
        is_good(answer, good(clean))
        assert f"{16 * 2 * 24 + 1} voxels that are not finite" in answer.notes
    is_refused(segment(save(tmp_path / "scan.nii", np.full(SHAPE, np.nan)), model, tmp_path, capsys), "no finite voxel")


def test_nifti_beside_its_unpacked_twin(model, good, tmp_path, capsys):
    """The library would read x.nii for x.nii.gz."""
    scan = save(tmp_path / "scan.nii.gz")
    (tmp_path / "scan.nii").write_bytes(b"other")
    is_good(segment(scan, model, tmp_path, capsys), good())


def test_nifti_of_two_minds(model, good, tmp_path, capsys):
    """qform and sform may both be there; where they put the scan 30 mm apart, that is said."""
    scan = save(tmp_path / "scan.nii")
    (x,) = struct.unpack_from("<f", scan.read_bytes(), 268)
    answer = segment(nifti(scan, (268, "f", x + 30)), model, tmp_path, capsys)
    assert answer.status == 0 and "30 mm apart" in answer.notes
    is_good(segment(save(scan), model, tmp_path, capsys), good())


def test_nifti_with_an_empty_matrix(model, good, tmp_path, capsys):
    """Its quaternion tells the orientation; without that one nothing does."""
    empty = (280, "12f", (0,) * 12)
    is_good(segment(nifti(tmp_path / "scan.nii", empty), model, tmp_path, capsys), good())
    nowhere = nifti(tmp_path / "scan.nii", empty, (252, "h", 0))
    is_refused(segment(nowhere, model, tmp_path, capsys), "steps of 0 x 0 x 0")


def test_names(model, good, tmp_path, capsys):
    """Endings in capitals, dots, spaces, other letters; a name that no library takes is refused, in one line."""
    for name in ("SCAN.NII.GZ", "a.img.nii", "a b.nii", "größe.nii.gz", "-x.nii", "a.nii.nii.gz"):
        save(tmp_path / "plain.nii" if name.lower().endswith(".nii") else tmp_path / "plain.nii.gz").rename(
            tmp_path / name)
        is_good(segment(tmp_path / name, model, tmp_path, capsys), good())
    for name in ("new\nline.nii", b"latin-\xe9.nii".decode(errors="surrogateescape")):
        save(tmp_path / "plain.nii").rename(tmp_path / name)
        status = cli.main(["segment", str(tmp_path / name), "--model", str(model), "-o", str(tmp_path / "m.nii")])
        said = capsys.readouterr().err.strip().splitlines()
        assert status == 0 and not said or status == 1 and len(said) == 1


@pytest.mark.posix
def test_neither_file_nor_folder(model, tmp_path, capsys):
    """A pipe, on which a reader would wait for ever; a device; a link to itself."""
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    for scan in (tmp_path / "pipe.nii", Path("/dev/zero"), tmp_path / "loop.nii"):
        is_refused(segment(scan, model, tmp_path, capsys), "expected a scan")
    scan = save(tmp_path / "scan.mhd")
    scan.with_suffix(".raw").unlink()
    os.mkfifo(scan.with_suffix(".raw"))
    is_refused(segment(scan, model, tmp_path, capsys), "expected one file beside it")


@pytest.mark.parametrize("ending", ["mha", "nrrd", "nii.gz"])
def test_one_bit_of_packed_data(ending, model, tmp_path, capsys):
    """Each packing has a checksum, which the libraries of MHA and NRRD do not look at."""
    scan = save(tmp_path / f"scan.{ending}", packed=True)
    data = bytearray(scan.read_bytes())
    for at in np.random.default_rng(0).integers(len(data) // 2, len(data) - 20, 12):
        changed = data.copy()
        changed[at] ^= 16
        scan.write_bytes(changed)
        is_refused(segment(scan, model, tmp_path, capsys), "cannot be read")


# --- MHA and NRRD ---

TEXT_FAULTS = {
    "mha": {
        "no spacing": (rb"ElementSpacing = [^\n]*\n", b"", "no ElementSpacing"),
        "spacing 0": (rb"ElementSpacing = 1.5", b"ElementSpacing = 0", ""),
        "spacing NaN": (rb"ElementSpacing = 1.5", b"ElementSpacing = nan", ""),
        "spacing below 0": (rb"ElementSpacing = 1.5", b"ElementSpacing = -1.5", ""),
        "two spacings": (rb"ElementSpacing = 1.5 2", b"ElementSpacing = 1.5", ""),
        "spacing in words": (rb"ElementSpacing = 1.5 2 2.5", b"ElementSpacing = a few mm", ""),
        "a huge grid": (rb"DimSize = 24 20 16", b"DimSize = 30000 30000 30000", "bytes of voxels"),
        "a negative size": (rb"DimSize = 24", b"DimSize = -24", ""),
        "two sizes": (rb"DimSize = 24 20 16", b"DimSize = 24 20", ""),
        "more than there is": (rb"DimSize = 24 20 16", b"DimSize = 24 20 17", "cannot be read"),
        "another type": (rb"MET_SHORT", b"MET_SHIRT", ""), "colour": (rb"NDims = 3", b"NDims = 3\n"
                                                                      b"ElementNumberOfChannels = 3", ""),
        "data elsewhere": (rb"ElementDataFile = LOCAL", b"ElementDataFile = gone.raw", ""),
        "data in a list": (rb"ElementDataFile = LOCAL", b"ElementDataFile = LIST", "one file beside it"),
        "data by pattern": (rb"ElementDataFile = LOCAL", b"ElementDataFile = s%s.raw 1 16 1", "one file beside it"),
        "data anywhere": (rb"ElementDataFile = LOCAL", b"ElementDataFile = /etc/passwd", "one file beside it"),
        "an origin of two numbers": (rb"Offset = [^\n]*", b"Offset = 1 2", "expected 3 numbers"),
        "an origin with commas": (rb"Offset = [^\n]*", b"Offset = 1,5 2,5 3,5", "expected 3 numbers"),
        "centimetres": (rb"NDims = 3", b"NDims = 3\nDistanceUnits = cm", "in cm, not mm"),
        "a hundred axes": (rb"NDims = 3", b"NDims = 100", "NDims 100"),
        "a flat matrix": (rb"TransformMatrix = [^\n]*", b"TransformMatrix = 0 0 0 0 0 0 0 0 0", ""),
        "a matrix of NaN": (rb"TransformMatrix = [^\n]*", b"TransformMatrix = nan nan nan nan nan nan nan nan nan", ""),
        "not packed": (rb"CompressedData = False", b"CompressedData = True", "cannot be read"),
        "a line without =": (rb"CompressedData = False", b"CompressedDataSi\xf7 4743\nCompressedData = False",
                             "a line without ="),
        "a field twice": (rb"NDims = 3", b"NDims = 3\nOffset = 0 0 0", "Offset twice"),
        "as text": (rb"BinaryData = True", b"BinaryData = False", "numbers as text"),
        "a narrower type": (rb"MET_SHORT", b"MET_UCHAR", "of 7680 bytes of voxels"),
        "one slice less": (rb"DimSize = 24 20 16", b"DimSize = 24 20 15", "of 14400 bytes of voxels"),
        "its header is to be skipped": (rb"NDims = 3", b"NDims = 3\nHeaderSize = 8", "of 15360 bytes of voxels"),
    },
    "nrrd": {
        "no spacing": (rb"space directions: [^\n]*\n", b"", "no spacing along"),
        "a huge grid": (rb"sizes: 24 20 16", b"sizes: 30000 30000 30000", "bytes of voxels"),
        "a negative size": (rb"sizes: 24", b"sizes: -24", ""), "two sizes": (rb"sizes: 24 20 16", b"sizes: 24 20", ""),
        "more than there is": (rb"sizes: 24 20 16", b"sizes: 24 20 17", "cannot be read"),
        "another type": (rb"type: short", b"type: shirt", ""),
        "another packing": (rb"encoding: raw", b"encoding: zip", "cannot be read"),
        "as text": (rb"encoding: raw", b"encoding: ascii", ""),
        "data elsewhere": (rb"encoding: raw", b"encoding: raw\ndata file: gone.raw", ""),
        "centimetres": (rb"type: short", b'type: short\nspace units: "cm" "cm" "cm"', "not mm"),
        "time": (rb"space: left-posterior-superior", b"space: right-anterior-superior-time", ""),
        "an origin of NaN": (rb"space origin: [^\n]*", b"space origin: (nan,0,0)", "space origin"),
        "not packed": (rb"encoding: raw", b"encoding: gzip", "damaged"),
        "flat directions": (rb"space directions: [^\n]*", b"space directions: (0,0,0) (0,0,0) (0,0,0)", ""),
        "directions of NaN": (rb"space directions: [^\n]*", b"space directions: (nan,0,0) (0,nan,0) (0,0,nan)", ""),
        "parallel directions": (rb"space directions: [^\n]*", b"space directions: (1,0,0) (1,0,0) (0,0,1)", ""),
        "a narrower type": (rb"type: short", b"type: uchar", "of 7680 bytes of voxels"),
        "centimetres, bare": (rb"sizes: ", b"space units: cm cm cm\nsizes: ", "in cm cm cm, not mm"),
        "lines to be skipped": (rb"encoding: raw", b"encoding: raw\nline skip: 2", "are to be skipped"),
        "bytes to be skipped": (rb"encoding: raw", b"encoding: raw\nbyte skip: 2", "of 15360 bytes of voxels"),
        "no directions": (rb"space directions: [^\n]*", b"space directions: none none none", ""),
        "a field twice": (rb"type: short", b"type: short\nspace origin: (0,0,0)", "space origin twice"),
    },
}


@pytest.mark.parametrize(("ending", "fault"), [(e, f) for e, faults in TEXT_FAULTS.items() for f in faults])
def test_text_header_faults(ending, fault, model, tmp_path, capsys):
    pattern, replacement, said = TEXT_FAULTS[ending][fault]
    scan = save(tmp_path / f"scan.{ending}")
    changed, count = re.subn(pattern, replacement, scan.read_bytes(), count=1)
    assert count == 1
    scan.write_bytes(changed)
    is_refused(segment(scan, model, tmp_path, capsys), said)


NAMESAKES = b"# sizes: 9 9 9\nsizes:=9 9 9\nspacings:=1 1 1\nspace units:=cm\n"


@pytest.mark.parametrize(("ending", "old", "new", "before"), [
    ("nhdr", b"encoding: raw", b"encoding: raw\nbyte skip: 100", 100),
    ("nhdr", b"encoding: raw", b"encoding: raw\nbyte skip: -1", 77), ("nhdr", b"type: ", NAMESAKES + b"type: ", 0),
    ("nhdr", b"sizes: ", b'space units: "millimeters" "mm" "MM"\nsizes: ', 0),
    ("mhd", b"NDims = 3", b"NDims = 3\nHeaderSize = 100", 100),
    ("mhd", b"NDims = 3", b"NDims = 3\nHeaderSize = -1", 77),
    ("mhd", b"NDims = 3", b"NDims = 3\nDistanceUnits = MM\nComment = DimSize = 1 2 3", 0)])
def test_what_a_text_header_may_say(ending, old, new, before, tmp_path):
    """Of voxels in a file beside it: all that it holds, but for so many bytes before them."""
    scan = save(tmp_path / f"scan.{ending}")
    assert old in scan.read_bytes()
    scan.write_bytes(scan.read_bytes().replace(old, new, 1))
    data = scan.with_suffix(".raw")
    voxels = data.read_bytes()
    data.write_bytes(b"x" * before + voxels)
    assert np.array_equal(sitk.GetArrayViewFromImage(read_image(scan).image), values())
    longer = [b"x" * before + 2 * voxels] * (b"-1" not in new)  # which says to take the last bytes
    for content in (voxels[1:], *longer):
        data.write_bytes(content)
        with pytest.raises(ScanError, match="of 15360 bytes of voxels|failed to fseek"):
            read_image(scan)


@pytest.mark.parametrize(("packed", "ending"), [(gzip.compress, "mha.gz"), (bz2.compress, "nii.bz2"),
                                               (lzma.compress, "nii.xz")])
def test_packed_otherwise(packed, ending, tmp_path):
    scan = tmp_path / f"scan.{ending}"
    scan.write_bytes(packed(save(tmp_path / f"plain.{ending.partition('.')[0]}").read_bytes()))
    with pytest.raises(ScanError, match="to be unpacked first"):
        read_image(scan)


@pytest.mark.parametrize("said", [b"CompressedDataSize = %d\n" % n for n in (0, 1, -1)] + [
    b"", b"CompressedDataSize = half\n", b"CompressedDataSize = twice\n"])
def test_the_size_of_what_is_packed(said, model, tmp_path, capsys):
    """SimpleITK unpacks that many bytes and leaves the rest of the voxels to chance."""
    scan = save(tmp_path / "scan.mha", packed=True)
    (true,) = re.findall(rb"CompressedDataSize = (\d+)", scan.read_bytes())
    said = said.replace(b"half", b"%d" % (int(true) // 2)).replace(b"twice", b"%d" % (2 * int(true)))
    scan.write_bytes(re.sub(rb"CompressedDataSize = \d+\n", said, scan.read_bytes()))
    is_refused(segment(scan, model, tmp_path, capsys), "CompressedDataSize is", f"should be {int(true)}")


@pytest.mark.parametrize(("space", "signs"), [("left-posterior-superior", (1, 1, 1)), ("LAS", (1, -1, 1)),
                                              ("left-anterior-superior", (1, -1, 1)), ("RAS", (-1, -1, 1)),
                                              ("right-anterior-superior", (-1, -1, 1))])
def test_nrrd_spaces(space, signs, model, good, tmp_path, capsys, monkeypatch):
    """A reader that turns one, as SimpleITK did before 2.5.3, is found out."""
    scan = save(tmp_path / "scan.nrrd")
    head, data = scan.read_bytes().split(b"\n\n", 1)
    lines = [re.sub(rb"\(([^)]*)\)", lambda m: b"(%s)" % b",".join(
        b"%r" % (float(x) * sign) for x, sign in zip(m[1].split(b","), signs)), line)
        if line.startswith(b"space ") else line for line in head.split(b"\n")]
    head = re.sub(rb"space: [^\n]*", b"space: " + space.encode(), b"\n".join(lines))
    scan.write_bytes(head + b"\n\n" + data)
    is_good(segment(scan, model, tmp_path, capsys), good())
    execute = sitk.ImageFileReader.Execute

    def turned(reader):
        image = execute(reader)
        image.SetDirection((np.diag([-1.0, -1.0, 1.0]) @ np.reshape(image.GetDirection(), (3, 3))).ravel().tolist())
        return image
    monkeypatch.setattr(sitk.ImageFileReader, "Execute", turned)
    is_refused(segment(scan, model, tmp_path, capsys), "its directions is", "and read as")


def test_big_endian_text_headers(model, good, tmp_path, capsys):
    for ending, old, new in (("mha", b"OrderMSB = False", b"OrderMSB = True"),
                             ("nrrd", b"endian: little", b"endian: big")):
        scan = save(tmp_path / f"scan.{ending}")
        data = scan.read_bytes()
        size = values().nbytes
        assert old in data
        swapped = np.frombuffer(data[-size:], "<i2").astype(">i2").tobytes()
        scan.write_bytes(data[:-size].replace(old, new) + swapped)
        is_good(segment(scan, model, tmp_path, capsys), good())


def test_text_headers_without_orientation_are_said(model, tmp_path, capsys):
    for ending, line in (("mha", b"TransformMatrix = "), ("nrrd", b"space: ")):
        scan = save(tmp_path / f"scan.{ending}", direction=np.eye(3))
        data = scan.read_bytes()
        if ending == "nrrd":
            data = data.replace(b"space directions: (1.5,0,0) (0,2,0) (0,0,2.5)", b"spacings: 1.5 2 2.5")
            data = b"\n".join(x for x in data.split(b"\n") if not x.startswith(b"space origin"))
        start, end = data.index(line), data.index(b"\n", data.index(line)) + 1
        scan.write_bytes(data[:start] + data[end:])
        answer = segment(scan, model, tmp_path, capsys)
        assert answer.status == 0 and "does not say how it lies" in answer.notes
        assert answer.mask.GetSpacing() == SPACING


# --- DICOM ---

def moved(number: int, by_mm) -> Callable:
    def apply(d, k):
        if k == number:
            d.ImagePositionPatient = [f"{float(a) + b:.9f}" for a, b in zip(d.ImagePositionPatient, by_mm, strict=True)]
    return apply


def tilted(d, k):
    d.ImagePositionPatient = [f"{float(a) + b:.9f}" for a, b in zip(d.ImagePositionPatient, DIRECTION[:, 0] * 0.8 * k,
                                                                   strict=True)]


def colour(d, k):
    d.SamplesPerPixel, d.PhotometricInterpretation, d.PlanarConfiguration, d.BitsAllocated = 3, "RGB", 0, 8
    d.BitsStored, d.HighBit, d.PixelRepresentation = 8, 7, 0
    d.PixelData = bytes(3 * d.Rows * d.Columns)


DICOM_FAULTS = {
    "a slice missing": (only(7, gone=True), "2.5 to 5 mm apart", "missing"),
    "a slice twice": (moved(7, -DIRECTION[:, 2] * SPACING[2]), "0 to 5 mm apart", "twice"),
    "a slice off": (moved(7, DIRECTION[:, 2] * 0.6), "expected even steps"),
    "a tilted gantry": (tilted, "sideways", "tilted gantry"),
    "no places": (change(ImagePositionPatient=None), "no ImagePositionPatient"),
    "no orientation": (change(ImageOrientationPatient=None), "no ImageOrientationPatient"),
    "no pixel spacing": (change(PixelSpacing=None), "no PixelSpacing"),
    "spacing 0": (change(PixelSpacing=[0, 1.5]), "0\\1.5 PixelSpacing"),
    "two spacings": (only(3, PixelSpacing=[1, 1]), "different PixelSpacing"),
    "two orientations": (only(3, ImageOrientationPatient=[1, 0, 0, 0, 1, 0]), "different ImageOrientationPatient"),
    "orientations not at right angles": (change(ImageOrientationPatient=[1, 0, 0, 0.5, 0.5, 0]), "perpendicular"),
    "two sizes": (only(3, Columns=12, PixelData=bytes(2 * 12 * 20)), "different Columns"),
    "two patients": (only(3, PatientID="p2", PatientName="Two^Patient"), "2 patients", "One^Patient", "Two^Patient"),
    "inverted CT": (change(PhotometricInterpretation="MONOCHROME1"), "MONOCHROME1", "expected MONOCHROME2"),
    "one slice inverted": (only(3, PhotometricInterpretation="MONOCHROME1"), "MONOCHROME1"),
    "colour": (colour, "found colour"), "one slice": (lambda d, k: setattr(d, "gone", k > 0), "single slice"),
    "pixels missing": (only(3, PixelData=bytes(100)), "100 of 960 bytes"),
    "no pixels": (only(3, PixelData=None), "cannot be read"),
    "one row": (lambda d, k: change(Rows=1, PixelData=bytes(2 * d.Columns))(d, k), "24 x 1 pixels"),
    "different grey values": (only(3, RescaleSlope=0.5), "different RescaleSlope"),
    "grey values that are no numbers": (lambda d, k: d.add_new("RescaleIntercept", "LO", "x"), "x RescaleIntercept"),
    "some of 8 bits": (only(3, BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=bytes(480)), "BitsAllocated"),
    "no slice": (change(gone=True), "no scan in this folder"),
}


@pytest.mark.parametrize("fault", DICOM_FAULTS)
def test_dicom_faults(fault, model, tmp_path, capsys):
    changed, *said = DICOM_FAULTS[fault]
    is_refused(segment(write_slices(tmp_path / "scan", values(), changed), model, tmp_path, capsys), *said)


def test_dicom_slices(model, good, tmp_path, capsys):
    """The good scan, with a stranger beside its slices, and in files without a preamble."""
    folder = write_slices(tmp_path / "scan", values())
    (folder / "README.txt").write_text("not DICOM")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    is_good(segment(folder, model, tmp_path, capsys), good())
    for path in folder.glob("*.dcm"):
        tags = pydicom.dcmread(path)
        path.unlink()
        del tags.file_meta
        tags.save_as(path.with_suffix(""), implicit_vr=True, little_endian=True, enforce_file_format=False)
    answer = segment(folder, model, tmp_path, capsys)
    if answer.status == 0:
        is_good(answer, good())


def test_dicom_localisers(model, good, tmp_path, capsys):
    """As a series of its own, and as an image of the same series."""
    folder = write_slices(tmp_path / "scan", values())
    write_slices(tmp_path / "other", values()[:1], change(
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID=generate_uid(), Rows=10, PixelData=bytes(480),
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0]))
    (tmp_path / "other" / "99.dcm").rename(folder / "localiser.dcm")
    answer = segment(folder, model, tmp_path, capsys)
    is_good(answer, good())
    assert "1 localiser series" in answer.notes
    tags = pydicom.dcmread(folder / "localiser.dcm")
    tags.SeriesInstanceUID = pydicom.dcmread(folder / "99.dcm").SeriesInstanceUID
    tags.save_as(folder / "localiser.dcm")
    answer = segment(folder, model, tmp_path, capsys)
    is_good(answer, good())
    assert "1 localiser images of the same series" in answer.notes


def test_dicom_two_series(model, good, tmp_path, capsys):
    folder = write_slices(tmp_path / "scan", values(), change(SeriesDescription="lumbar"))
    write_slices(tmp_path / "other", values()[:9], change(SeriesInstanceUID="1.2.3"))
    for path in (tmp_path / "other").iterdir():
        path.rename(folder / f"other {path.name}")
    is_refused(segment(folder, model, tmp_path, capsys), "2 DICOM series", "(lumbar) of 16 files", "1.2.3 of 9 files",
               "--series")
    wanted = pydicom.dcmread(folder / "99.dcm").SeriesInstanceUID
    is_good(segment(folder, model, tmp_path, capsys, "--series", wanted), good())
    is_refused(segment(folder, model, tmp_path, capsys, "--series", "1.9"), "no series 1.9")


def test_dicom_inverted_mr(model, good, tmp_path, capsys):
    array = values() + 1000
    turned = (-1 - array).astype(np.int16)  # of all the values that 16 bits with a sign can hold
    tags = change(PhotometricInterpretation="MONOCHROME1", RescaleIntercept=0)

    def store(d, k):
        tags(d, k)
        d.PixelData = turned[k].tobytes()
    answer = segment(write_slices(tmp_path / "scan", array, store, "MR"), model, tmp_path, capsys)
    is_good(answer, good(array, "MR"))
    assert "MONOCHROME1" in answer.notes


def test_dicom_frames(model, good, tmp_path, capsys):
    """One file for all slices; then with its frames in another order, and with their places lost."""
    array = (values() + 1000).astype(np.int16)
    scan = write_frames(tmp_path / "scan.dcm", array)
    is_good(segment(scan, model, tmp_path, capsys), good(array, "MR"))
    tags = pydicom.dcmread(scan)
    order = np.random.default_rng(0).permutation(len(array))
    places = list(tags.PerFrameFunctionalGroupsSequence)
    tags.PixelData = array[order].tobytes()
    tags.PerFrameFunctionalGroupsSequence = [places[i] for i in order]
    tags.save_as(scan)
    is_good(segment(scan, model, tmp_path, capsys), good(array, "MR"))
    tags.PerFrameFunctionalGroupsSequence = places[:9]
    tags.save_as(scan)
    is_refused(segment(scan, model, tmp_path, capsys), "16 frames and the places of 9")
    del tags.PerFrameFunctionalGroupsSequence
    tags.save_as(scan)
    is_refused(segment(scan, model, tmp_path, capsys), "16 frames and the places of 0")
    tags.PerFrameFunctionalGroupsSequence = [*places[:-1], places[0]]
    tags.save_as(scan)
    is_refused(segment(scan, model, tmp_path, capsys), "expected even steps")


def test_dicom_one_file_of_many_is_refused(model, tmp_path, capsys):
    folder = write_slices(tmp_path / "scan", values())
    is_refused(segment(folder / "99.dcm", model, tmp_path, capsys), "single slice", "folder of its slices")


# --- orientation ---

def test_all_48_axis_orders_give_the_same_mask(model, good, tmp_path, capsys):
    """The scan stored along all axis orders and flips, anisotropic and oblique: its mask, turned back, is the same."""
    image = image_of(values())
    expected, count = good(), 0
    for number, (order, *flips) in enumerate(itertools.product(itertools.permutations(range(3)), *[(False, True)] * 3)):
        turned = sitk.Flip(sitk.PermuteAxes(image, order), flips)  # origin and direction move along
        scan = tmp_path / f"scan.{('mha', 'nii.gz', 'nrrd')[number % 3]}"
        sitk.WriteImage(turned, str(scan))
        answer = segment(scan, model, tmp_path, capsys)
        assert answer.status == 0, answer.error
        back = sitk.PermuteAxes(sitk.Flip(answer.mask, flips), np.argsort(order).tolist())
        assert np.array_equal(sitk.GetArrayFromImage(back), expected)
        np.testing.assert_allclose(back.GetOrigin() + back.GetSpacing() + back.GetDirection(),
                                   image.GetOrigin() + image.GetSpacing() + image.GetDirection(), atol=1e-4)
        scan.unlink()
        count += 1
    assert count == 48


# --- every real scan ---

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not DATA.is_dir(), reason="the real scans (../shared/data) are not here")
def test_every_real_scan(model, tmp_path):
    """Read, prepared, segmented; each mask on the very grid of its scan."""
    scans = sorted(DATA.rglob("*_img.nii.gz"))
    masks = masks_in(tmp_path, scans)
    outcomes = list(batch.segment_many(scans, masks, batch.Options(model), jobs=2))
    assert {o.scan for o in outcomes} == set(scans) and len(scans) == 61
    assert not [o.message for o in outcomes if o.status != "done"]
    for scan, mask in zip(scans, masks, strict=True):
        found, stored = sitk.ReadImage(str(mask)), sitk.ReadImage(str(scan))
        assert found.GetSize() == stored.GetSize()
        np.testing.assert_allclose(found.GetOrigin() + found.GetSpacing() + found.GetDirection(),
                                   stored.GetOrigin() + stored.GetSpacing() + stored.GetDirection(), atol=1e-5)


@pytest.mark.parametrize("form", fuzz_headers.FORMS)
def test_headers_changed_at_random(form, tmp_path):
    """A short run of what `python tests/fuzz_headers.py` does at length."""
    fuzz_headers.write_good(tmp_path)
    counts = fuzz_headers.watched(form, tmp_path, range(40), None)
    assert counts.keys() <= {"read", "refused"} and counts.total() == 40
