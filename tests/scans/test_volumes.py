"""Scans in, masks out: any grid comes back as it was, and every bad file is refused in one line that names it."""

import itertools
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from pointseg.scans import files
from pointseg.scans.volumes import VERSE_TO_CLASS, geometry_of, read_volume, to_own_geometry, write_mask, write_volume
from pointseg.volume import CLASSES, Geometry, ScanError, Volume

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real scans (../shared/data) are not here")

LPI = np.diag([1.0, 1.0, -1.0])
EXTENSIONS = (".nii.gz", ".nii", ".mha", ".nrrd")
AXIS_ORDERS = [(order, signs) for order in itertools.permutations(range(3))
               for signs in itertools.product((1, -1), repeat=3)]  # 48, half of them left-handed


def rotation(a: float, b: float, c: float) -> np.ndarray:
    """Angles in radians about x, y, z."""
    def about(axis: int, angle: float) -> np.ndarray:
        m, (i, j) = np.eye(3), [k for k in range(3) if k != axis]
        m[i, i] = m[j, j] = np.cos(angle)
        m[i, j], m[j, i] = -np.sin(angle), np.sin(angle)
        return m
    return about(0, a) @ about(1, b) @ about(2, c)


def stored_image(array_zyx: np.ndarray, direction: np.ndarray = LPI, spacing=(0.7, 1.1, 3.3),
                 origin=(-12.5, 40.25, 7.125)) -> sitk.Image:
    image = sitk.GetImageFromArray(array_zyx)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(np.ravel(direction).tolist())
    return image


def save(path: Path, image: sitk.Image) -> Path:
    sitk.WriteImage(image, str(path))
    return path


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def refused(*expected: str):
    """The call raises a ScanError of one line that holds all of these."""
    return pytest.raises(ScanError, match="(?s)" + "".join(f"(?=.*{e})" for e in expected) + r"\A[^\n]*\Z")


# --- axes ---

def test_known_grid_by_hand(tmp_path):
    """An RAS file: its x index grows to the right, y to the front, z to the head; all three flip."""
    path = save(tmp_path / "ras.nii.gz", stored_image(ramp(2, 3, 4), np.diag([-1.0, -1.0, 1.0])))
    volume = read_volume(path)
    assert volume.geometry.orientation == "RAS"
    assert volume.image.dtype == np.int16
    assert volume.image.tolist() == ramp(2, 3, 4)[::-1, ::-1, ::-1].tolist()
    assert volume.spacing_mm == pytest.approx((3.3, 1.1, 0.7))
    assert (volume.name, volume.modality, volume.mask) == ("ras", "", None)


def test_sagittal_scan_by_hand(tmp_path):
    """Sagittal MR as stored: x index to the back (P), y to the feet (I), slices (z) to the left (L)."""
    direction = np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]])
    volume = read_volume(save(tmp_path / "sag.mha", stored_image(ramp(5, 4, 3), direction)))
    assert volume.geometry.orientation == "PIL"
    assert volume.image.shape == (4, 3, 5)  # I, P, L
    assert volume.spacing_mm == pytest.approx((1.1, 0.7, 3.3))
    assert volume.image[1, 2, 3] == ramp(5, 4, 3)[3, 1, 2]


@pytest.mark.parametrize("tilt", [(0, 0, 0), (0.2, -0.3, 0.1)], ids=["straight", "oblique"])
def test_all_48_axis_orders(tmp_path, tilt):
    """Canonical array = SimpleITK's own reorientation, and writing gives back the stored grid, in every format."""
    array = ramp(2, 3, 4)
    for number, (order, signs) in enumerate(AXIS_ORDERS):
        direction = rotation(*tilt) @ (np.eye(3)[:, order] * signs)
        image = stored_image(array, direction)
        extension = EXTENSIONS[number % 2 * 3 if number % 5 else number % 4]
        volume = read_volume(save(tmp_path / f"{number}{extension}", image))
        oracle = sitk.DICOMOrient(image, "LPI")
        assert volume.image.tolist() == sitk.GetArrayFromImage(oracle).tolist(), (order, signs)
        assert volume.spacing_mm == pytest.approx(oracle.GetSpacing()[::-1])
        assert volume.geometry.orientation == sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(
            image.GetDirection())

        labels = (volume.image % 6).astype(np.uint8)
        for extension in EXTENSIONS:
            write_mask(tmp_path / f"mask{extension}", labels, volume.geometry)
            written = sitk.ReadImage(str(tmp_path / f"mask{extension}"))
            assert sitk.GetArrayFromImage(written).tolist() == (array % 6).tolist()
            assert written.GetSize() == image.GetSize()
            tolerance = dict(rel=1e-6, abs=1e-5)  # a NIfTI header holds float32
            assert written.GetSpacing() == pytest.approx(image.GetSpacing(), **tolerance)
            assert written.GetOrigin() == pytest.approx(image.GetOrigin(), **tolerance)
            assert written.GetDirection() == pytest.approx(image.GetDirection(), abs=1e-6)


def test_exact_header_where_the_format_allows(tmp_path):
    """In memory, and in MHA, which holds 17 digits, the grid comes back to the last bit."""
    image = stored_image(ramp(3, 4, 5), rotation(0.1, 0.2, 0.3), (1 / 3, 0.1, 2 / 3), (1e3 / 7, -1 / 9, 1 / 11))
    volume = read_volume(save(tmp_path / "a.mha", image))
    stored = geometry_of(sitk.ReadImage(str(tmp_path / "a.mha")))
    labels = np.zeros(volume.image.shape, np.uint8)
    assert geometry_of(to_own_geometry(labels, volume.geometry)) == stored
    write_mask(tmp_path / "m.mha", labels, volume.geometry)
    assert geometry_of(sitk.ReadImage(str(tmp_path / "m.mha"))) == stored


@pytest.mark.parametrize("angle", np.radians([44.999, 45, 45.001, 135, 225]))
def test_diagonal_axes_round_trip(tmp_path, angle):
    """At 45 degrees two axes are equally close: any choice will do, if it is the same before and after a file."""
    for axis in range(3):
        image = stored_image(ramp(2, 3, 4), rotation(*np.roll([angle, 0, 0], axis)))
        volume = read_volume(save(tmp_path / "a.nii", image))
        write_mask(tmp_path / "m.nii", (volume.image % 6).astype(np.uint8), volume.geometry)
        again = read_volume(tmp_path / "a.nii", tmp_path / "m.nii", scheme="classes")
        assert again.mask.tolist() == (volume.image % 6).tolist()


def test_ties_survive_float32():
    """The same axes with and without the noise of a header's float32, or a mask would land turned by 90 degrees."""
    rng = np.random.default_rng(0)
    for axis, _ in itertools.product(range(3), range(20)):
        exact = rotation(*np.roll([np.pi / 4, 0, 0], axis)) @ LPI
        noisy = exact + rng.uniform(-1e-7, 1e-7, (3, 3))
        first, second = (Geometry((4, 3, 2), (1, 1, 1), (0, 0, 0), tuple(d.ravel())) for d in (exact, noisy))
        assert first.axes == second.axes


def test_canonical_geometry():
    geometry = Geometry.canonical((2, 3, 4), (3.0, 2.0, 1.0))
    assert (geometry.size, geometry.spacing, geometry.orientation) == ((4, 3, 2), (1.0, 2.0, 3.0), "LPI")
    assert (geometry.shape_zyx, geometry.spacing_mm) == ((2, 3, 4), (3.0, 2.0, 1.0))
    assert sitk.GetArrayFromImage(to_own_geometry(ramp(2, 3, 4), geometry)).tolist() == ramp(2, 3, 4).tolist()


def test_positions_agree_with_simpleitk():
    image = stored_image(ramp(3, 4, 5), rotation(0.3, -0.2, 0.5))
    index = np.array([[0, 0, 0], [4, 3, 2], [1, 2, 0]])
    geometry = geometry_of(image)
    expected = [image.TransformIndexToPhysicalPoint(i.tolist()) for i in index]
    np.testing.assert_allclose(geometry.to_mm(index), expected, atol=1e-9)
    np.testing.assert_allclose(geometry.to_index(np.array(expected)), index, atol=1e-9)


# --- masks ---

def test_verse_numbers():
    assert [v for v, c in VERSE_TO_CLASS.items() if c] == [20, 21, 22, 23, 24]
    assert [CLASSES[VERSE_TO_CLASS[v]] for v in (19, 20, 24, 25, 26)] == ["background", "L1", "L5"] + ["background"] * 2


def test_schemes(tmp_path):
    values = np.array([0, 1, 5, 19, 20, 24, 25, 28], np.int16).reshape(2, 2, 2)
    image = save(tmp_path / "i.nii", stored_image(values))
    mask = save(tmp_path / "m.nii", stored_image(values.astype(np.float32)))  # whole numbers stored as float are fine
    assert read_volume(image, mask).mask.ravel().tolist() == [0, 0, 0, 0, 1, 5, 0, 0]
    with refused("m.nii", "19, 20, 24, 25, 28", "0..5", "classes"):
        read_volume(image, mask, scheme="classes")
    small = save(tmp_path / "s.nii", stored_image(np.minimum(values, 5).astype(np.uint8)))
    assert read_volume(image, small, scheme="classes").mask.ravel().tolist() == [0, 1, 5, 5, 5, 5, 5, 5]
    assert read_volume(image, small).mask.max() == 0  # cervical in VerSe's numbers


@pytest.mark.parametrize("value, shown", [(29, "29"), (-1, "-1"), (20.5, "20.5"), (255, "255"), (1e9, "1e")])
def test_unknown_mask_value(tmp_path, value, shown):
    image = save(tmp_path / "i.nii", stored_image(ramp(2, 2, 2)))
    values = np.zeros((2, 2, 2), np.float32)
    values[1, 0, 1] = value
    with refused("m.nii", shown, "0..28", "check"):
        read_volume(image, save(tmp_path / "m.nii", stored_image(values)))


def test_labels_that_are_nearly_whole_numbers(tmp_path):
    """As nibabel writes floats: int16 with a slope.  Rounded, and said; of the package's own 0..5 too."""
    image = save(tmp_path / "i.nii", stored_image(ramp(2, 2, 2)))
    for labels, scheme, expected in (([0, 19, 20, 21, 22, 23, 24, 28], "verse", [0, 0, 1, 2, 3, 4, 5, 0]),
                                     ([0, 1, 2, 3, 4, 5, 0, 0], "classes", [0, 1, 2, 3, 4, 5, 0, 0])):
        values = np.reshape(labels, (2, 2, 2)).T.astype(float) * 1.00001
        scaled = nibabel.Nifti1Image(values, nibabel.load(image).affine)
        scaled.set_data_dtype(np.int16)
        nibabel.save(scaled, tmp_path / "m.nii")
        assert np.asarray(nibabel.load(tmp_path / "m.nii").dataobj).max() % 1 > 0
        volume = read_volume(image, tmp_path / "m.nii", scheme=scheme)
        assert volume.mask.ravel().tolist() == expected
        assert any("m.nii: its labels are up to" in note and "are rounded" in note for note in volume.notes)
    for odd in (20.002, np.nan, np.inf):
        values = np.full((2, 2, 2), 20, np.float32)
        values[0, 0, 0] = odd
        with refused("m.nii", "found mask values"):
            read_volume(image, save(tmp_path / "m.nii", stored_image(values)))


def blob(shape=(6, 8, 10)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[2:4, 3:5, 4:7] = 21
    mask[3, 4, 6] = 22
    return mask


def test_mask_one_slice_larger(tmp_path):
    """As in PLoS 02, 04, 08, 10: the mask has one more voxel along x, empty, from the same origin."""
    image = save(tmp_path / "i.nii", stored_image(ramp(6, 8, 10)))
    mask = save(tmp_path / "m.nii", stored_image(np.pad(blob(), ((0, 0), (0, 0), (0, 1)))))
    read = read_volume(image, mask)
    assert read.mask.tolist() == np.where(blob() > 0, blob() - 19, 0).tolist()
    assert read.notes[-1] == f"{mask}: its grid is not the scan's; nearest labels were taken"
    same = save(tmp_path / "same.nii", stored_image(blob()))
    assert "grid" not in "".join(read_volume(image, same).notes)


def test_mask_on_permuted_and_finer_grid(tmp_path):
    """By physical position: a cropped mask with other axes, and one of half the spacing, land on the same voxels."""
    image = save(tmp_path / "i.mha", stored_image(ramp(6, 8, 10), rotation(0.1, 0.2, 0.3) @ LPI))
    whole = stored_image(blob(), rotation(0.1, 0.2, 0.3) @ LPI)
    expected = np.where(blob() > 0, blob() - 19, 0).tolist()
    other = sitk.DICOMOrient(whole, "SAR")
    assert read_volume(image, save(tmp_path / "o.mha", other)).mask.tolist() == expected
    crop = whole[3:8, 2:6, 1:5]
    assert read_volume(image, save(tmp_path / "c.mha", crop)).mask.tolist() == expected
    fine = sitk.Expand(whole, [2, 2, 2], sitk.sitkNearestNeighbor)
    assert read_volume(image, save(tmp_path / "f.mha", fine)).mask.tolist() == expected


def test_mask_of_a_shifted_grid_moves(tmp_path):
    """Same size, but two voxels off: taking it as it is would label the wrong voxels."""
    image = save(tmp_path / "i.mha", stored_image(ramp(6, 8, 10), spacing=(1, 1, 1), origin=(0, 0, 0)))
    mask = save(tmp_path / "m.mha", stored_image(blob(), spacing=(1, 1, 1), origin=(2, 0, 0)))
    read = read_volume(image, mask)
    assert read.mask.tolist() == np.roll(np.where(blob() > 0, blob() - 19, 0), 2, axis=2).tolist()
    assert f"{mask}: its grid is not the scan's, though of the same size: one of the two headers" in read.notes[-1]


@pytest.mark.parametrize(("tissue", "air", "told"), [
    ((924, 1250), 24, True), ((924, 1250), 0, True), ((924, 1250), 1000, True),  # a CT with 1024 added
    ((-100, 226), -1000, False), ((500, 1900), 20, False), ((0, 400), 0, False)])  # a CT, two kinds of MR
def test_a_ct_that_would_be_taken_for_mr_is_doubted(tissue, air, told, tmp_path):
    """Where neither header nor option says what it is."""
    array = np.random.default_rng(0).integers(*tissue, (12, 14, 16)).astype(np.int16)
    array[:, :7] = air
    path = save(tmp_path / "scan.nii", sitk.GetImageFromArray(array))
    for modality in ("", "CT", "MR"):
        notes = [note for note in read_volume(path, modality=modality).notes if "as a CT's do with 1024 added" in note]
        assert len(notes) == (told and not modality)


def test_rounded_header_is_the_same_grid(tmp_path):
    """A voxel within a hair of the boundary must not be lost to a rounded origin."""
    image = save(tmp_path / "i.mha", stored_image(ramp(6, 8, 10)))
    full = np.full((6, 8, 10), 20, np.uint8)
    mask = save(tmp_path / "m.mha", stored_image(full, spacing=(0.7001, 1.1, 3.3), origin=(-12.51, 40.25, 7.125)))
    assert (read_volume(image, mask).mask == 1).all()


@pytest.mark.parametrize("origin", [(500, 40, 7), (-9, 40.25, 7.125)], ids=["elsewhere", "half off"])
def test_mask_of_another_scan(tmp_path, origin):
    image = save(tmp_path / "i.nii", stored_image(ramp(6, 8, 10)))
    with refused("m.nii", "i.nii", "labelled voxels outside", "belong together"):
        read_volume(image, save(tmp_path / "m.nii", stored_image(blob(), origin=origin)))


def test_mask_with_label_in_the_extra_slice(tmp_path):
    mask = np.pad(blob(), ((0, 0), (0, 0), (0, 1)))
    mask[2, 3, 10] = 21  # 1 of 13 labelled voxels
    image = save(tmp_path / "i.nii", stored_image(ramp(6, 8, 10)))
    with refused("m.nii", "1 of 13"):
        read_volume(image, save(tmp_path / "m.nii", stored_image(mask)))


# --- bad files ---

@pytest.mark.parametrize("extension", [*EXTENSIONS, ".mhd"])
@pytest.mark.parametrize("keep", [0.97, 0.5, 0.01])
def test_truncated(tmp_path, extension, keep, capfd):
    noise = np.random.default_rng(0).integers(0, 1000, (8, 9, 10)).astype(np.int16)
    path = save(tmp_path / f"cut{extension}", stored_image(noise))
    data = path.with_suffix(".raw") if extension == ".mhd" else path
    assert read_volume(path).image.shape == (8, 9, 10)
    data.write_bytes(data.read_bytes()[:int(data.stat().st_size * keep)])
    with refused(f"cut{extension}", "cannot be read", "complete", "again"):
        read_volume(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("extension", [".nii.gz", ".mha", ".nrrd"])
def test_damaged_in_the_middle(tmp_path, extension):
    """A stretch of wrong bytes in compressed data, of the right length."""
    noise = np.random.default_rng(0).integers(0, 1000, (20, 30, 40)).astype(np.int16)
    path = tmp_path / f"bad{extension}"
    sitk.WriteImage(stored_image(noise), str(path), useCompression=True)
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half:half + 100] = b"\xff" * 100
    path.write_bytes(data)
    with refused(f"bad{extension}", "cannot be read"):
        read_volume(path)


def test_not_a_scan(tmp_path):
    (tmp_path / "text.nii.gz").write_text("<html>404</html>")
    (tmp_path / "empty.nii").touch()
    (tmp_path / "folder").mkdir()
    for name, found in (("missing.nii", "no such file"), ("text.nii.gz", "cannot be read"),
                        ("empty.nii", "cannot be read"), ("folder", "no DICOM file")):
        with refused(name, found):
            read_volume(tmp_path / name)


def test_a_nifti_pair_is_its_single_file(tmp_path):
    """By either of its files; an Analyze pair, which does not tell left from right, is refused."""
    array = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    image = nibabel.load(save(tmp_path / "whole.nii", sitk.GetImageFromArray(array)))
    nibabel.Nifti1Pair(np.asarray(image.dataobj), image.affine, image.header).to_filename(tmp_path / "half.hdr")
    expected = read_volume(tmp_path / "whole.nii")
    for ending in ("hdr", "img"):
        volume = read_volume(tmp_path / f"half.{ending}")
        assert np.array_equal(volume.image, expected.image) and volume.geometry == expected.geometry
    nibabel.AnalyzeImage(np.asarray(image.dataobj), image.affine).to_filename(tmp_path / "old.hdr")
    with refused("old.hdr", "not that of NIfTI"):
        read_volume(tmp_path / "old.hdr")


@pytest.mark.parametrize("slope", [0.0, float("nan")])
def test_a_slope_that_means_no_scaling(tmp_path, slope):
    """The standard: without a slope the intercept counts for nothing either."""
    path = save(tmp_path / "scan.nii", sitk.GetImageFromArray(np.arange(120, dtype=np.int16).reshape(4, 5, 6)))
    expected, data = read_volume(path).image, bytearray(path.read_bytes())
    struct.pack_into("<2f", data, 112, slope, 100.0)
    path.write_bytes(data)
    assert np.array_equal(read_volume(path).image, expected)


@pytest.mark.parametrize("array, vector, found", [
    (np.zeros((5, 6), np.int16), False, "6 x 5 voxels"),
    (np.zeros((1, 5, 6), np.int16), False, "6 x 5 x 1 voxels"),
    (np.zeros((2, 4, 5, 6), np.int16), False, "6 x 5 x 4 x 2 voxels"),
    (np.zeros((4, 5, 6, 3), np.uint8), True, "vector of 3 voxels"),
    (np.zeros((4, 5, 6), np.complex64), False, "complex"),
])
def test_wrong_kind_of_image(tmp_path, array, vector, found):
    path = save(tmp_path / "odd.nii", sitk.GetImageFromArray(array, isVector=vector))
    with refused("odd.nii", found, "expected"):
        read_volume(path)


def test_single_frame_and_two_voxel_axes(tmp_path):
    frame = save(tmp_path / "frame.nii", sitk.GetImageFromArray(ramp(1, 2, 2, 2), isVector=False))
    assert read_volume(frame).image.shape == (2, 2, 2)


@pytest.mark.parametrize("step", [0.0, -2.0, float("nan")])
def test_spacing_nifti(tmp_path, step):
    """SimpleITK alone reads 0 and NaN as 1 mm."""
    path = save(tmp_path / "s.nii", stored_image(ramp(3, 4, 5)))
    header = bytearray(path.read_bytes())
    header[84:88] = struct.pack("<f", step)
    path.write_bytes(header)
    with refused("s.nii", f"0.7 x {step:g} x 3.3 mm", "positive"):
        read_volume(path)


def test_spacing_mha(tmp_path):
    path = save(tmp_path / "s.mha", stored_image(ramp(3, 4, 5), spacing=(2, 3, 4)))
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing = 2 3", b"ElementSpacing = 0 3"))
    with refused("s.mha", "spacing"):
        read_volume(path)


def test_non_finite_values(tmp_path):
    array = np.array([np.nan, -np.inf, np.inf, -3, 7, 0, 1, 2], np.float32).reshape(2, 2, 2)
    path = save(tmp_path / "nan.mha", stored_image(array))
    assert read_volume(path).image.ravel().tolist() == [-3, -3, 7, -3, 7, 0, 1, 2]
    with refused("all.mha", "no finite"):
        read_volume(save(tmp_path / "all.mha", stored_image(np.full((2, 2, 2), np.nan))))


# --- DICOM ---

def write_series(folder: Path, uid: str, slices: list[int], modality: str = "MR") -> None:
    """Axial slices 2.5 mm apart; slice k is k everywhere but for a ramp along x; file names count backwards."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in slices:
        image = sitk.GetImageFromArray(np.full((1, 4, 5), 10 * k, np.int16) + np.arange(5, dtype=np.int16))
        image.SetSpacing((0.7, 0.7, 2.5))
        for tag, value in {"0008|0060": modality, "0020|000d": "1.2", "0020|000e": uid, "0008|0018": f"{uid}.{k + 1}",
                           "0020|0013": str(k), "0020|0037": r"1\0\0\0\1\0",
                           "0020|0032": rf"1\2\{-30 + 2.5 * k}"}.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}.{99 - k}.dcm"))
        writer.Execute(image)


def test_dicom_folder(tmp_path):
    write_series(tmp_path / "scan.1", "1.2.3", list(range(6)))
    (tmp_path / "scan.1" / "README.txt").write_text("not DICOM")
    volume = read_volume(tmp_path / "scan.1")
    assert (volume.name, volume.modality, volume.geometry.orientation) == ("scan.1", "MR", "LPS")
    assert volume.spacing_mm == pytest.approx((2.5, 0.7, 0.7))
    assert volume.image[:, 0, 3].tolist() == [53, 43, 33, 23, 13, 3]  # stored towards the head
    assert volume.geometry.origin == pytest.approx((1, 2, -30))
    write_mask(tmp_path / "m.nrrd", np.ones(volume.image.shape, np.uint8), volume.geometry)
    assert (read_volume(tmp_path / "scan.1", tmp_path / "m.nrrd", scheme="classes").mask == 1).all()


def test_dicom_several_series(tmp_path):
    write_series(tmp_path, "1.2.3", [0, 1, 2, 3])
    write_series(tmp_path, "1.2.9", [0, 1])
    with refused(tmp_path.name, "2 DICOM series", "1.2.3 of 4 files", "1.2.9 of 2 files", "expected one"):
        read_volume(tmp_path)


def test_dicom_missing_slice(tmp_path, capfd):
    write_series(tmp_path, "1.2.3", [0, 1, 3, 4])
    with refused(tmp_path.name, "4 slices 2.5 to 5 mm apart", "missing"):
        read_volume(tmp_path)
    assert capfd.readouterr() == ("", "")


# --- writing ---

def volume_of(image: np.ndarray, mask: np.ndarray | None = None) -> Volume:
    spacing_mm = (3.0, 2.0, 1.0)
    return Volume(image.astype(np.float32), mask, spacing_mm, "v", "CT", Geometry.canonical(image.shape, spacing_mm))


@pytest.mark.parametrize("scale, kind", [(1, sitk.sitkInt16), (0.5, sitk.sitkFloat32), (1e4, sitk.sitkFloat32)])
def test_write_volume(tmp_path, scale, kind):
    volume = volume_of(ramp(3, 4, 5) * scale, (ramp(3, 4, 5) % 6).astype(np.uint8))
    write_volume(tmp_path / "new" / "v_img.nii.gz", volume, tmp_path / "new" / "v_vert.nii.gz")
    assert sitk.ReadImage(str(tmp_path / "new" / "v_img.nii.gz")).GetPixelID() == kind
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "new" / "v_vert.nii.gz")))
    assert np.unique(stored).tolist() == [0, 20, 21, 22, 23, 24]
    again = read_volume(tmp_path / "new" / "v_img.nii.gz", tmp_path / "new" / "v_vert.nii.gz")
    assert again.image.tolist() == volume.image.tolist() and again.mask.tolist() == volume.mask.tolist()
    assert again.spacing_mm == volume.spacing_mm


def test_write_refuses_wrong_arrays(tmp_path):
    geometry = Geometry.canonical((2, 3, 4), (1, 1, 1))
    with pytest.raises(ValueError, match=r"\(4, 3, 2\).*\(2, 3, 4\)"):
        write_mask(tmp_path / "m.nii", np.zeros((4, 3, 2), np.uint8), geometry)
    with pytest.raises(ValueError, match="0..255"):  # 255 = unlabelled is for training, not for a file
        write_mask(tmp_path / "m.nii", np.array([0, 255] * 12, np.uint8).reshape(2, 3, 4), geometry)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["m.mhd", "m.png", "m"])
def test_write_refuses_other_formats(tmp_path, name):
    with refused(name, "nii.gz"):
        write_mask(tmp_path / name, np.zeros((2, 2, 2), np.uint8), Geometry.canonical((2, 2, 2), (1, 1, 1)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [RuntimeError("disk full"), KeyboardInterrupt()])
def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, error):
    geometry = Geometry.canonical((2, 2, 2), (1, 1, 1))
    write_mask(tmp_path / "m.nii.gz", np.ones((2, 2, 2), np.uint8), geometry)
    before = (tmp_path / "m.nii.gz").read_bytes()

    def half(image, path, **options):
        Path(path).write_bytes(b"half")
        raise error
    monkeypatch.setattr(files.sitk, "WriteImage", half)
    with pytest.raises(ScanError if isinstance(error, RuntimeError) else KeyboardInterrupt):
        write_mask(tmp_path / "m.nii.gz", np.zeros((2, 2, 2), np.uint8), geometry)
    assert [p.name for p in tmp_path.iterdir()] == ["m.nii.gz"]
    assert (tmp_path / "m.nii.gz").read_bytes() == before


def test_write_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "taken.nii").mkdir()
    for target in ("file/m.nii", "taken.nii"):
        with refused(target, "cannot be written"):
            write_mask(tmp_path / target, np.zeros((2, 2, 2), np.uint8), Geometry.canonical((2, 2, 2), (1, 1, 1)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "taken.nii"]


# --- real scans ---

@needs_data
@pytest.mark.parametrize("case, orientation, classes", [
    ("ct_verse/012", "LPS", {1, 2, 3}), ("ct_totalsegmentator/example", "RAS", {1, 2, 3, 4, 5}),
    ("ct_tptbox/L3", "PIR", {2, 3, 4}), ("plos/02", "LPI", {1, 2, 3, 4, 5})])
def test_real_scans(tmp_path, case, orientation, classes):
    """Levels follow each other towards the feet (canonical z), and the mask goes back to the very grid of the image."""
    image, mask = DATA / f"{case}_img.nii.gz", DATA / f"{case}_vert.nii.gz"
    volume = read_volume(image, mask)
    assert volume.geometry.orientation == orientation
    assert set(np.unique(volume.mask)) == classes | {0}
    heights = [np.argwhere(volume.mask == c)[:, 0].mean() for c in sorted(classes)]
    assert heights == sorted(heights)
    write_mask(tmp_path / "m.nii.gz", volume.mask, volume.geometry, verse=True)
    stored, written = sitk.ReadImage(str(image)), sitk.ReadImage(str(tmp_path / "m.nii.gz"))
    assert written.GetSize() == stored.GetSize()
    np.testing.assert_allclose(written.GetOrigin() + written.GetSpacing() + written.GetDirection(),
                               stored.GetOrigin() + stored.GetSpacing() + stored.GetDirection(), atol=1e-6)
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(mask)))
    truth = np.where((truth >= 20) & (truth <= 24), truth, 0)[..., :stored.GetSize()[0]]  # PLoS 02: one slice less
    assert np.array_equal(sitk.GetArrayFromImage(written), truth)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_without_a_temporary_folder(tmp_path, monkeypatch, extension):
    """Neither reading nor writing needs one."""
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")
    path = save(tmp_path / f"a{extension}", stored_image(ramp(3, 4, 5)))
    monkeypatch.setattr("tempfile.gettempdir", none)
    volume = read_volume(path)
    write_mask(tmp_path / f"m{extension}", np.zeros(volume.image.shape, np.uint8), volume.geometry)
    assert geometry_of(sitk.ReadImage(str(tmp_path / f"m{extension}"))).size == volume.geometry.size
