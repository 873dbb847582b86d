"""Each public dataset from its published layout, with its traps planted: taken right, or left out by name."""

import csv
import gzip
import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from pointseg.commands import main as cli
from pointseg.datasets import importers
from pointseg.datasets.importers import convert, plos, spider, usiegen, uwspine, verse
from pointseg.datasets.importers.base import Found, LeftOut
from pointseg.datasets.manifest import read_manifest
from pointseg.datasets.split import published_split, split_cases
from pointseg.estimate import class_weights
from pointseg.points import draw_points
from pointseg.preprocess import prepare
from pointseg.scans.files import WriteError
from pointseg.scans.volumes import geometry_of, read_volume, to_canonical, to_own_geometry
from pointseg.volume import UNLABELLED, Geometry, ScanError

SHAPE, SPACING = (44, 14, 12), (3.0, 2.5, 2.0)  # canonical (z, y, x)
HEIGHTS = {19: 1, 20: 7, 21: 13, 22: 19, 23: 25, 24: 31, 26: 37}  # VerSe's number -> first z of a box of 4
LPI, RAS = np.diag([1.0, 1, -1]), np.diag([-1.0, -1, 1])
SAGITTAL = np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]])  # x to the back, y to the feet, z to the right


def truth(levels=tuple(HEIGHTS), seed: int = 0) -> np.ndarray:
    """(z, y, x) boxes with VerSe's numbers, a little different for each seed."""
    mask = np.zeros(SHAPE, np.uint8)
    for v in levels:
        mask[HEIGHTS[v] : HEIGHTS[v] + 4, 3 + seed % 3 : 9, 2 : 9 - seed // 3 % 3] = v
    return mask


def picture(mask: np.ndarray, seed: int = 0) -> np.ndarray:
    """An image (z, y, x) that is bright where the mask is, and differs from place to place and seed to seed."""
    noise = np.random.default_rng(seed).integers(0, 50, mask.shape)
    return (noise + 300 * (mask > 0)).astype(np.int16)


def stored(canonical: np.ndarray, direction: np.ndarray = LPI, origin=(5.0, -7.0, 11.0)) -> sitk.Image:
    """A canonical array stored along other axes: what a scanner with these axes would have written."""
    size = [0, 0, 0]
    step = np.zeros(3)
    for column in range(3):
        axis = int(np.abs(direction[:, column]).argmax())  # 0 left, 1 posterior, 2 superior
        size[column], step[column] = SHAPE[2 - axis], SPACING[2 - axis]
    geometry = Geometry(tuple(size), tuple(step), origin, tuple(np.ravel(direction).astype(float)))
    return to_own_geometry(canonical, geometry)  # which test_volume compares with SimpleITK on all 48 axis orders


def save(path: Path, image: sitk.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".dcm":
        image = sitk.Cast(image, sitk.sitkInt16)
        image.SetMetaData("0008|0060", "MR")  # so that it becomes an Enhanced MR with a place for each frame
    sitk.WriteImage(image, str(path))
    return path


def run(name: str, raw: Path, out: Path, capsys, *options: str) -> tuple[dict[str, object], str]:
    """-> the cases by name, and what was printed."""
    assert cli.main(["import", name, str(raw), str(out), *options]) == 0, capsys.readouterr().err
    return {c.case: c for c in read_manifest(out) if c.source == (options[-1] if "--source" in options else name)}, \
        capsys.readouterr().out


def left_out(out: Path, source: str) -> dict[str, str]:
    with open(out / source / "import.csv", newline="") as file:
        return {row["case"]: row["why"] for row in csv.DictReader(file) if row["taken"] == "no"}


def check(case, levels=tuple(HEIGHTS), seed: int = 0, geometry: sitk.Image | None = None) -> None:
    """The imported scan shows the truth's vertebrae where the image is bright, in the classes 1..5."""
    volume = case.read()
    expected = truth(levels, seed)
    classes = np.where((expected >= 20) & (expected <= 24), expected - 19, 0)
    assert volume.image.shape == SHAPE and volume.spacing_mm == pytest.approx(SPACING)
    known = volume.mask != UNLABELLED
    assert (volume.mask == classes)[known].all() and set(np.unique(volume.mask[known])) == {0, *classes[known]}
    assert (volume.image == picture(expected, seed)).all()
    if geometry is not None:
        assert volume.geometry == geometry_of(geometry)


def xvertseg_values(mask: np.ndarray) -> np.ndarray:
    return np.where((mask >= 20) & (mask <= 24), 200 + 10 * (mask.astype(np.int16) - 20), 0)


# --- xVertSeg ---

def test_xvertseg(tmp_path, capsys):
    data = tmp_path / "raw" / "xVertSeg.v1" / "Data1"
    for seed, number in enumerate(("001", "002", "003", "004")):
        image = stored(picture(truth(seed=seed), seed))
        save(data / "images" / f"image{number}.mhd", image)
        save(data / "masks" / f"mask{number}.mhd", stored(xvertseg_values(truth(seed=seed))))
    save(data.parent / "Data2" / "images" / "image016.mhd", stored(picture(truth(), 9)))
    (data / "scores").mkdir()
    (data / "scores" / "scores.csv").write_text("image,L1,L2,L3,L4,L5\nimage001,0,0,1,0,0\nimage002,2,0,0,0,3\n"
                                                    "4,1,1,1,1,1\n")  # a count, say: not image004
    cases, said = run("xvertseg", tmp_path / "raw", tmp_path / "out", capsys)
    assert list(cases) == ["001", "002", "003", "004"]
    for seed, case in enumerate(cases.values()):
        check(case, seed=seed)
        assert (case.modality, case.mask_extent) == ("CT", "whole vertebrae")
        assert case.levels == ("L1", "L2", "L3", "L4", "L5")
    assert "image016.mhd: has no mask" in left_out(tmp_path / "out", "xvertseg")["016"]  # Data2
    assert "scores.csv: 2 0 0 0 3" in said and not any(c.flaw for c in cases.values())
    assert "4 scans of 4 patients taken, 1 left out" in said and "2 to train, 1 to validate, 1 to test" in said


def test_xvertseg_values_between_are_refused(tmp_path, capsys):
    """Linear resampling of a mask, as in the thesis's code, makes such values."""
    data = tmp_path / "raw" / "Data1"
    for number, mask in (("001", xvertseg_values(truth())), ("002", np.minimum(xvertseg_values(truth()), 235))):
        save(data / "images" / f"image{number}.mhd", stored(picture(truth(), int(number))))
        save(data / "masks" / f"mask{number}.mhd", stored(mask))
    cases, _ = run("xvertseg", tmp_path / "raw", tmp_path / "out", capsys)
    assert list(cases) == ["001"] and "found mask values 235, expected 0, 200, 210" in \
        left_out(tmp_path / "out", "xvertseg")["002"]


# --- USiegen ---

def usiegen_case(raw: Path, case: str, seed: int, direction: np.ndarray = SAGITTAL, levels=tuple(HEIGHTS)) -> None:
    names = {19: "T12", 20: "L1", 21: "L2", 22: "L3", 23: "L4", 24: "L5", 26: "S1"}
    mask = truth(levels, seed)
    save(raw / "SpineDatasets" / f"{case}.dcm", stored(picture(mask, seed), direction))
    for v in levels:
        save(raw / "SpineSegmented" / case / f"{names[v]}.mha", stored((mask == v).astype(np.uint8) * 7, direction))


def test_usiegen(tmp_path, capsys):
    raw = tmp_path / "raw"
    for seed, case in enumerate(("AKa2", "AKa3", "AKs5", "AKs8", "DzZ_T1", "DzZ_T2", "F02", "F03")):
        usiegen_case(raw, case, seed)
    (raw / "SpineSegmented" / "AKa2").rename(raw / "SpineSegmented" / "AKA2")  # as in the archive
    save(raw / "SpineDatasets" / "St1.dcm", stored(picture(truth(), 77), SAGITTAL))
    (raw / "SpineSegmented" / "F02" / "L1.obj").write_text("a mesh")
    cases, _ = run("usiegen", raw, tmp_path / "out", capsys)
    for seed, case in enumerate(cases.values()):
        check(case, seed=seed)
        assert case.levels == ("T12", "L1", "L2", "L3", "L4", "L5", "S1") and case.mask_extent == "vertebral bodies"
    patients = [c.patient.removeprefix("usiegen-") for c in cases.values()]
    assert patients == ["AKa", "AKa", "AKs", "AKs", "DzZ", "DzZ", "F02", "F03"]
    assert "no masks" in left_out(tmp_path / "out", "usiegen")["St1"]
    split = split_cases(list(cases.values()))
    assert not {c.patient for c in split.train} & {c.patient for c in (*split.test, *split.validation)}


def test_usiegen_axes_that_no_header_tells(tmp_path, capsys):
    """Anteroposterior, craniocaudal, left-right, whatever the header says: as it stands, it would be taken for LPS."""
    usiegen_case(tmp_path / "raw", "C002", 0)
    for path in (tmp_path / "raw").rglob("*"):
        if path.suffix in (".dcm", ".mha"):
            image = sitk.ReadImage(str(path))
            for key in image.GetMetaDataKeys():
                image.EraseMetaData(key)
            image.SetDirection(np.eye(3).ravel().tolist())
            save(path, image)
    cases, _ = run("usiegen", tmp_path / "raw", tmp_path / "out", capsys)
    check(cases["C002"])


def test_usiegen_frames_stay_in_the_order_that_masks_were_drawn_in(tmp_path, capsys):
    """A file may hold its slices from last to first.  Sorted by place, as slices of a folder are, the masks, which have
    no place to be matched by, would land on the wrong side."""
    usiegen_case(tmp_path / "raw", "C002", 0)
    path = tmp_path / "raw" / "SpineDatasets" / "C002.dcm"
    tags = pydicom.dcmread(path)
    tags.PerFrameFunctionalGroupsSequence = list(tags.PerFrameFunctionalGroupsSequence)[::-1]
    tags.PixelData = tags.pixel_array[::-1].tobytes()
    tags.save_as(path)
    for mask in (tmp_path / "raw").rglob("*.mha"):
        save(mask, sitk.GetImageFromArray(sitk.GetArrayFromImage(sitk.ReadImage(str(mask)))[::-1]))
    cases, _ = run("usiegen", tmp_path / "raw", tmp_path / "out", capsys)
    check(cases["C002"])


@pytest.mark.parametrize(("case", "patient"), [("AKa4", "AKa"), ("AKs3", "AKs"), ("DzZ_T2", "DzZ"), ("S01", "S01"),
                                               ("Lan", "Lan"), ("LanII", "Lan"),
                                               ("St1", "St1"), ("C002", "C002")])
def test_usiegen_patients(case, patient):
    assert usiegen.patient_of(case) == patient


# --- PLoS ---

def test_plos(tmp_path, capsys):
    raw = tmp_path / "raw"
    for seed in range(3):
        mask = truth(seed=seed)
        # The headers have the craniocaudal axis the wrong way round.
        save(raw / f"Img_{seed + 1:02d}.nii", stored(picture(mask, seed)[::-1]))
        labels = stored((mask[::-1] > 0).astype(np.uint8))
        if seed == 1:  # as in some of them, a slice more
            labels = sitk.ConstantPad(labels, [0, 0, 0], [1, 0, 0], 0)
        save(raw / f"Img_{seed + 1:02d}_Labels.nii", labels)
    save(raw / "Img_04.nii", stored(picture(truth(), 9)))
    save(raw / "Img_05.nii", stored(picture(truth(), 10)))
    save(raw / "Img_05_Labels.nii", stored(truth()))  # someone's own labels
    cases, said = run("plos", raw, tmp_path / "out", capsys)
    assert list(cases) == ["01", "02", "03"] and set(left_out(tmp_path / "out", "plos")) == {"04", "05"}
    for seed, case in enumerate(cases.values()):
        volume = case.read()
        assert (volume.image == picture(truth(seed=seed), seed)).all()  # head up again
        assert (volume.mask == (truth(seed=seed) > 0)).all()
        assert case.levels == ("vertebra",) and not case.names_levels
    assert "2-class models alone" in said


def test_plos_turns_the_header_and_not_the_place():
    image = stored(picture(truth()), RAS)
    before = geometry_of(image)
    plos.turn_over(image)
    after = geometry_of(image)
    corners = np.array([[0, 0, 0], np.array(before.size) - 1])
    assert sorted(after.to_mm(corners)[:, 2]) == pytest.approx(sorted(before.to_mm(corners)[:, 2]))
    assert after.to_mm(corners)[:, :2] == pytest.approx(before.to_mm(corners)[:, :2])
    assert (before.orientation, after.orientation) == ("RAS", "RAI")


def test_masks_without_levels_serve_two_classes_alone(tmp_path, capsys):
    raw = tmp_path / "raw"
    for seed in range(3):
        save(raw / f"Img_{seed + 1:02d}.nii", stored(picture(truth(seed=seed), seed)))
        save(raw / f"Img_{seed + 1:02d}_Labels.nii", stored((truth(seed=seed) > 0).astype(np.uint8)))
    cases, _ = run("plos", raw, tmp_path / "out", capsys)
    with pytest.raises(ScanError, match="99, expected .*0..28"):  # never taken for L1 by mistake
        read_volume(cases["01"].image, cases["01"].mask)
    for command in (["table1"], ["train", "--axis", "sagittal"]):
        assert cli.main([*command, "--data", str(tmp_path / "out")]) == 1
        assert "plos: found no case that tells L1 from L2" in capsys.readouterr().err


# --- MyoSegmenTUM ---

def myo_case(raw: Path, number: str, seed: int, levels=(20, 21, 22, 23, 24), contrasts=("T2star", "WATER", "FAT"),
             masks: np.ndarray | None = None) -> Path:
    folder = raw / number / number / "vertebrae"
    image = picture(truth(seed=seed), seed)
    for k, name in enumerate(contrasts):
        save(folder / f"{name}.dcm", stored(image if name == "WATER" else image + 7 * k, SAGITTAL))
    for v in levels:
        mask = (truth(seed=seed) if masks is None else masks) == v
        save(folder / f"L{v - 19}_{number}.mha", stored(mask.astype(np.uint8), SAGITTAL))
    return folder


def test_myosegmentum(tmp_path, capsys):
    raw = tmp_path / "raw"
    for seed, number in enumerate(("01", "02", "18")):
        myo_case(raw, number, seed)
    myo_case(raw, "19", 2)  # a copy of 18
    folder = myo_case(raw, "33", 6)  # image and mask differ in shape
    save(folder / "L2_33.mha", sitk.GetImageFromArray(np.zeros((8, 9, 10), np.uint8)))
    myo_case(raw, "35", 7)
    mixed = truth(seed=8)
    mixed[mixed == 23] = 0
    mixed[truth(seed=7) == 23] = 23  # 36's L4 is 35's
    myo_case(raw, "36", 8, masks=mixed)
    junk = raw / "01" / "__MACOSX" / "01" / "vertebrae"
    junk.mkdir(parents=True)
    (junk / "WATER.dcm").write_bytes(b"\x00\x05\x16\x07 AppleDouble")
    (junk / "L1_01.mha").write_bytes(b"\x00\x05\x16\x07 AppleDouble")
    cases, said = run("myosegmentum", raw, tmp_path / "out", capsys)
    assert list(cases) == ["01", "02", "18", "35", "36"]
    for seed, number in enumerate(("01", "02", "18")):
        check(cases[number], (19, 20, 21, 22, 23, 24, 26), seed)
        assert cases[number].levels == ("L1", "L2", "L3", "L4", "L5")
    out = left_out(tmp_path / "out", "myosegmentum")
    assert "is a copy of 18's image" in out["19"]
    assert "L2_33.mha: has 10 x 9 x 8 voxels" in out["33"] and "expected the same grid" in out["33"]
    assert cases["36"].flaw == "L4 mask is a copy of case 35's" and not cases["35"].flaw
    assert "flaw, so not used in training: 36" in said


def test_myosegmentum_without_the_doubled_folder_and_without_water(tmp_path, capsys):
    """Unpacked by other means; the masks' grid stands in for a header that has none."""
    folder = myo_case(tmp_path / "raw", "05", 0, contrasts=("T2star",))
    shutil.move(folder, tmp_path / "raw" / "05" / "vertebrae")
    shutil.rmtree(tmp_path / "raw" / "05" / "05")
    cases, _ = run("myosegmentum", tmp_path / "raw", tmp_path / "out", capsys)
    assert cases["05"].patient == "myosegmentum-05" and (cases["05"].read().mask == np.where(
        (truth() >= 20) & (truth() <= 24), truth() - 19, 0)).all()


# --- UWSpine ---

def uw_case(raw: Path, folder: str, scan: str, seed: int, direction=LPI, lines=None) -> Path:
    path = raw / folder / scan / f"{scan}.nii.gz"
    image = stored(picture(truth(seed=seed), seed), direction)
    save(path, image)
    if lines is None:
        lines = []
        for v in HEIGHTS:
            own = sitk.GetArrayFromImage(stored(truth(seed=seed), direction))
            mm = np.argwhere(own == v).mean(0)[::-1] * image.GetSpacing()  # from the first voxel along the stored axes
            name = {19: "T12", 26: "S1"}.get(v, f"L{v - 19}")
            lines.append(f"{200 + 10 * (v - 20)}\t{name}_center\t" + "\t".join(f"{c:.4f}" for c in mm))
    path.with_name(f"{scan}.lml").write_text("Landmarks\t\t\t\t\n" + "\n".join(lines) + "\n")
    return path


def test_uwspine(tmp_path, capsys):
    raw = tmp_path / "raw"
    uw_case(raw, "spine-1/patient0001", "101", 0)
    uw_case(raw, "spine-1/patient0001", "102", 1)
    uw_case(raw, "spine-2/patient0007", "103", 2)
    uw_case(raw, "spine-2/patient0008", "103b", 3)
    uw_case(raw, "spine-5/patient0009", "104", 4).with_name("104.lml").unlink()
    cases, said = run("uwspine", raw, tmp_path / "out", capsys)
    assert list(cases) == ["101", "102", "103", "103b"]
    assert "has no 104.lml" in left_out(tmp_path / "out", "uwspine")["104"]
    assert [c.patient for c in cases.values()] == [f"uwspine-patient000{n}" for n in (1, 1, 7, 8)]
    volume = cases["101"].read()
    assert (volume.image == picture(truth())).all() and cases["101"].mask_extent == "centroids"
    for v in (20, 21, 22, 23, 24):  # a ball inside each body, and nothing else of that class
        where = volume.mask == v - 19
        assert where.any() and (truth()[where] == v).all()
        assert np.argwhere(where).mean(0) == pytest.approx(np.argwhere(truth() == v).mean(0), abs=0.6)
    assert (volume.mask == UNLABELLED).mean() > 0.5  # what surrounds them is not background
    assert "weakest labels" in said


def test_uwspine_coordinates_are_along_stored_axes(tmp_path, capsys):
    """In mm from the first voxel, without origin and direction: in patient space they would lie elsewhere."""
    uw_case(tmp_path / "raw", "spine-1/patient0001", "101", 0, direction=np.diag([1.0, 1, 1]))
    cases, _ = run("uwspine", tmp_path / "raw", tmp_path / "out", capsys)
    where = cases["101"].read().mask == 3
    assert (truth()[where] == 22).all()


@pytest.mark.parametrize(("line", "why"), [
    ("200\tL1_center\t5\t5", "line 2: found"), ("200\tL1_center\t5\t5\tnan", "line 2: found"),
    ("210\tL1_center\t5\t5\t5", "id 210 is called L1_center, expected L2"),
    ("200\tL1_center\t5\t5\t5000", "outside the image"), ("190\tT12_center\t5\t5\t5", "labels nothing")])
def test_uwspine_faults(tmp_path, capsys, line, why):
    uw_case(tmp_path / "raw", "spine-1/p1", "1", 0)
    uw_case(tmp_path / "raw", "spine-1/p2", "2", 1, lines=[line])
    cases, _ = run("uwspine", tmp_path / "raw", tmp_path / "out", capsys)
    assert list(cases) == ["1"] and why in left_out(tmp_path / "out", "uwspine")["2"]


def test_uwspine_test_data_without_patients(tmp_path, capsys):
    """spine-test-data/SCAN/SCAN.nii.gz, or flat: each its own patient, not all of them one."""
    for number in range(3):
        uw_case(tmp_path / "raw", "spine-test-data", f"{number}", number)
        for path in (tmp_path / "raw" / "spine-test-data" / f"{number}").iterdir():
            shutil.copy(path, tmp_path / "flat" / path.name) if (tmp_path / "flat").mkdir(exist_ok=True) is None else 0
    for raw in ("raw", "flat"):
        cases, _ = run("uwspine", tmp_path / raw, tmp_path / f"out {raw}", capsys)
        assert [c.patient for c in cases.values()] == ["uwspine-0", "uwspine-1", "uwspine-2"]


def test_uwspine_beyond_the_last_point_nothing_is_background(tmp_path, capsys):
    path = uw_case(tmp_path / "raw", "spine-1/p1", "1", 0)
    lines = path.with_name("1.lml").read_text().splitlines()
    path.with_name("1.lml").write_text("\n".join(x for x in lines if x[:3] not in ("220", "230", "240")))
    cases, _ = run("uwspine", tmp_path / "raw", tmp_path / "out", capsys)
    mask = cases["1"].read().mask
    assert (mask[HEIGHTS[21] + 4 :] == UNLABELLED).all() and {1, 2} <= set(np.unique(mask))


def test_uwspine_people_by_either_folder():
    assert uwspine._people([("a", "1"), ("a", "2"), ("b", "2"), ("c", "3")]) == ["a", "a", "a", "c"]


def test_centroids_are_labels_to_learn_from_and_score_identification(tmp_path, capsys):
    uw_case(tmp_path / "raw", "spine-1/p1", "1", 0)
    cases, _ = run("uwspine", tmp_path / "raw", tmp_path / "out", capsys)
    volume = cases["1"].read()
    classes = np.where((truth() >= 20) & (truth() <= 24), truth() - 19, 0)
    scan = prepare(volume, 4.0)
    learned, = draw_points([scan], 0)  # one click a level, no voxel of the balls
    assert [np.count_nonzero(learned.values == k) for k in range(1, 6)] == [1] * 5
    assert (classes[tuple(volume.clicks.places.T)] == volume.clicks.values).all()
    for k in range(1, 6):
        click, = volume.clicks.places[volume.clicks.values == k]
        assert click == pytest.approx(np.argwhere(truth() == k + 19).mean(0), abs=0.51)
    assert (class_weights([learned], 6, 0.65) == 1).all()  # which tells no sizes
    chosen_by, = draw_points([scan], 0, to_choose=True)
    assert len(chosen_by.values) > len(learned.values)


@pytest.mark.parametrize("direction", [LPI, np.diag([1.0, 1, 1])], ids=["LPI", "LPS"])
def test_background_clicks_of_centroids_lie_where_no_lumbar_vertebra_reaches(tmp_path, direction):
    image = sitk.GetImageFromArray(np.zeros((90, 8, 8), np.uint8))
    image.SetSpacing((2.0, 2.0, 4.0))
    image.SetDirection(direction.ravel())
    centres = {v: (8.0, 8.0, 8.0 + 12 * (v - 20)) for v in (20, 21, 22, 23, 24)}
    mask = uwspine.mask_of(image, centres, tmp_path)
    clicks = uwspine.clicks_of(mask, centres)
    assert np.bincount(clicks.values).tolist() == [25, 1, 1, 1, 1, 1]
    view = to_canonical(mask, geometry_of(mask))[tuple(clicks.places.T)]
    assert (view == np.where(clicks.values > 0, clicks.values + 19, 0)).all()


# --- VerSe ---

def centroids(levels, seed: int, axes: str = "LPI") -> list[dict]:
    """In voxels along the named axes."""
    entries: list[dict] = [{"direction": list(axes)}]
    grows, place = {"L": 2, "R": 2, "P": 1, "A": 1, "I": 0, "S": 0}, "LPI"
    for v in levels:
        centre = np.argwhere(truth(seed=seed) == v).mean(0)
        coordinates = [centre[grows[a]] if a in place else SHAPE[grows[a]] - 1 - centre[grows[a]] for a in axes]
        entries.append({"label": v} | dict(zip("XYZ", map(float, coordinates), strict=True)))
    return entries


def verse_case(root: Path, subject: str, name: str, seed: int, levels=(19, 20, 21, 22, 23, 24), direction=LPI,
               ctd: list[dict] | None = None, extra: dict[int, int] | None = None) -> None:
    mask = truth(levels, seed)
    for v, other in (extra or {}).items():
        mask[mask == v] = other
    save(root / "rawdata" / subject / f"{name}_ct.nii.gz", stored(picture(truth(seed=seed), seed), direction))
    folder = root / "derivatives" / subject
    save(folder / f"{name}_seg-vert_msk.nii.gz", stored(mask, direction))
    (folder / f"{name}_seg-subreg_ctd.json").write_text(json.dumps(centroids(levels, seed) if ctd is None else ctd))


def test_verse(tmp_path, capsys):
    raw = tmp_path / "raw"
    root = raw / "dataset-verse19training"
    verse_case(root, "sub-verse004", "sub-verse004", 0)
    verse_case(root, "sub-verse401", "sub-verse401_split-verse201", 1, direction=RAS, ctd=centroids(HEIGHTS, 1, "PIR"))
    verse_case(root, "sub-verse401", "sub-verse401_split-verse202", 2, direction=SAGITTAL)
    verse_case(raw / "dataset-02validation", "sub-gl195", "sub-gl195_dir-ax", 3)
    verse_case(raw / "dataset-03test", "sub-verse600", "sub-verse600", 4, extra={19: 28})
    verse_case(raw / "dataset-03test", "sub-verse601", "sub-verse601", 5, extra={19: 20, 20: 21, 21: 22, 22: 23,
                                                                                 23: 24, 24: 25} and {24: 25})
    save(raw / "dataset-03test" / "rawdata" / "sub-verse602" / "sub-verse602_ct.nii.gz", stored(picture(truth(), 99)))
    cases, said = run("verse", raw, tmp_path / "out", capsys)
    check(cases["sub-verse004"], seed=0, levels=HEIGHTS)
    check(cases["sub-verse401_split-verse201"], seed=1)
    check(cases["sub-verse401_split-verse202"], seed=2)
    assert cases["sub-verse401_split-verse201"].patient == cases["sub-verse401_split-verse202"].patient == \
        "verse-sub-verse401"
    assert [c.part for c in cases.values()] == ["validation", "train", "train", "train", "test", "test"]
    assert cases["sub-verse600"].levels == ("T13", "L1", "L2", "L3", "L4", "L5") and not cases["sub-verse600"].flaw
    assert "six lumbar vertebrae" in cases["sub-verse601"].flaw and "L6" in cases["sub-verse601"].levels
    assert 5 not in cases["sub-verse601"].read().mask  # L6 is not L5
    assert list(left_out(tmp_path / "out", "verse")) == ["sub-verse602"]
    split = published_split([c for c in cases.values() if c.case != "sub-verse601"])
    assert [len(p) for p in (split.train, split.validation, split.test)] == [3, 1, 1]
    assert "--published-split" in said


def test_verse_vertebrae_that_the_edge_cuts_are_not_background(tmp_path, capsys):
    """L4 and what follows can be seen but has no label; so have L1 and T12 above: neither is background to learn.

    In the other scan T12 and L5 are labelled, so beyond them nothing lumbar is left, and all is known.
    """
    verse_case(tmp_path / "raw", "sub-verse001", "sub-verse001", 0, levels=(21, 22))
    verse_case(tmp_path / "raw", "sub-verse002", "sub-verse002", 1)
    cases, _ = run("verse", tmp_path / "raw", tmp_path / "out", capsys)
    mask = cases["sub-verse001"].read().mask
    for v in (20, 23):
        assert (mask[truth() == v] == UNLABELLED).all()
    assert (mask[truth() == 21] == 2).all() and (mask[truth() == 22] == 3).all()
    assert (mask[HEIGHTS[21] + 3 : HEIGHTS[22]] == 0).sum() > 100  # between the labels it is background
    assert UNLABELLED not in cases["sub-verse002"].read().mask
    assert cases["sub-verse001"].levels == ("L2", "L3")


@pytest.mark.parametrize("axes", ["LPI", "PIR", "RAS", "SLA"])
def test_verse_centroids_name_their_axes(tmp_path, axes):
    path = tmp_path / "ctd.json"
    path.write_text(json.dumps(centroids(HEIGHTS, 0, axes) + [{"label": 25, "X": float("nan"), "Y": 1, "Z": 1}]))
    for direction in (LPI, RAS, SAGITTAL):
        assert verse.check_centroids(stored(truth(), direction), path) == ""
    wrong = centroids(HEIGHTS, 0, axes)
    wrong[0]["direction"] = [{"I": "S", "S": "I"}.get(a, a) for a in axes]  # axes misread: upside down
    path.write_text(json.dumps(wrong))
    assert "do not belong together" in verse.check_centroids(stored(truth()), path)


@pytest.mark.parametrize(("text", "flaw"), [('[{"label": 20, "X": 1, "Y": 2, "Z": 3}]', ""), ("{", "cannot be read"),
                                            ('[{"direction": ["Q","Q","Q"]}]', "cannot be read")])
def test_verse_odd_centroid_files(tmp_path, text, flaw):
    (tmp_path / "ctd.json").write_text(text)
    assert flaw in verse.check_centroids(stored(truth()), tmp_path / "ctd.json")
    assert bool(flaw) == bool(verse.check_centroids(stored(truth()), tmp_path / "ctd.json"))


# --- SPIDER ---

def spider_values(mask: np.ndarray, upwards: bool = True) -> np.ndarray:
    """T12, L1 .. L5 as 6 .. 1 (or 19 .. 24), canal 100, a disc 201; S1 is not labelled."""
    out = np.zeros(mask.shape, np.int16)
    for v in (19, 20, 21, 22, 23, 24):
        out[mask == v] = 25 - v if upwards else v
    out[:, 11, 5] = 100
    out[HEIGHTS[24] + 4 : HEIGHTS[24] + 6, 4, 4] = 201
    return out


def test_spider(tmp_path, capsys):
    raw = tmp_path / "raw"
    rows = ["new_file_name,num_vertebrae,num_discs,sex,birth_date,subset"]
    for seed, name in enumerate(("1_t1", "1_t2", "2_t2", "17_t2_SPACE")):
        values = spider_values(truth(seed=seed))
        if name == "2_t2":
            values[values == 6] = 106  # T12 is cut by the edge
        save(raw / "images" / f"{name}.mha", stored(picture(truth(seed=seed), seed), SAGITTAL))
        save(raw / "masks" / f"{name}.mha", stored(values, SAGITTAL))
        rows.append(f"{name},7,7,F ,,{'validation' if name[0] == '2' else 'training'}")
    (raw / "overview.csv").write_text("\n".join(rows))
    save(raw / "images" / "5_t1.mha", stored(picture(truth(), 9)))
    cases, _ = run("spider", raw, tmp_path / "out", capsys)
    assert {c.case: c.patient for c in cases.values()} == {"1_t1": "spider-1", "1_t2": "spider-1", "2_t2": "spider-2",
                                                           "17_t2_SPACE": "spider-17"}
    for seed, name in enumerate(("1_t1", "1_t2", "2_t2", "17_t2_SPACE")):
        check(cases[name], seed=seed)
    mask = cases["2_t2"].read().mask
    assert (mask[truth(seed=2) == 19] == UNLABELLED).all() and UNLABELLED not in cases["1_t1"].read().mask
    assert cases["1_t1"].levels == ("T12", "L1", "L2", "L3", "L4", "L5") and cases["2_t2"].part == "validation"
    assert "has no masks/5_t1.mha" in left_out(tmp_path / "out", "spider")["5_t1"]


def test_spider_other_schemes(tmp_path, capsys):
    """Numbers down to L5 = 24 are understood; numbers in no order, and unknown ones, are left out."""
    raw = tmp_path / "raw"
    jumbled = spider_values(truth())
    jumbled[truth() == 22], jumbled[truth() == 23] = 2, 3
    unknown = spider_values(truth())
    unknown[0, 0, 0] = 50
    for k, (name, values) in enumerate({"1_t1": spider_values(truth(), upwards=False), "2_t1": jumbled, "3_t1": unknown,
                                        "4_t1": np.minimum(spider_values(truth()), 1)}.items()):
        save(raw / "images" / f"{name}.mha", stored(picture(truth(), k)))
        save(raw / "masks" / f"{name}.mha", stored(values))
    cases, _ = run("spider", raw, tmp_path / "out", capsys)
    assert list(cases) == ["1_t1"] and cases["1_t1"].levels[0] == "T12"
    check(cases["1_t1"])
    out = left_out(tmp_path / "out", "spider")
    assert "neither upwards nor downwards" in out["2_t1"] and "found mask values 50" in out["3_t1"]
    assert "labels 1 vertebrae, expected at least 2" in out["4_t1"]


def test_spider_scheme_does_not_depend_on_axes(tmp_path):
    for direction in (LPI, RAS, SAGITTAL):
        assert spider.scheme_of(stored(spider_values(truth()), direction), tmp_path) is spider.UPWARDS
        assert spider.scheme_of(stored(spider_values(truth(), False), direction), tmp_path) is spider.DOWNWARDS


# --- TotalSegmentator ---

def test_totalsegmentator(tmp_path, capsys):
    raw = tmp_path / "raw" / "Totalsegmentator_dataset"
    names = {19: "T12", 20: "L1", 21: "L2", 22: "L3", 23: "L4", 24: "L5"}
    for seed, case in enumerate(("s0000", "s0001", "s0002")):
        save(raw / case / "ct.nii.gz", stored(picture(truth(seed=seed), seed), RAS))
        for v, name in names.items():
            there = truth(seed=seed) == v if case != "s0002" else np.zeros(SHAPE, bool)  # a scan of the head
            values = there.astype(np.uint8) if v != 21 else there + np.float32(1e-5)  # as scaling leaves them
            save(raw / case / "segmentations" / f"vertebrae_{name}.nii.gz", stored(values, RAS))
        save(raw / case / "segmentations" / "liver.nii.gz", stored(np.ones(SHAPE, np.uint8), RAS))
    combined = np.where(truth() > 0, 46 - truth().astype(int), 0).astype(np.uint8)  # v1 has L1 = 22, v2 L1 = 31
    save(raw / "s0003" / "ct.nii.gz", stored(picture(truth(), 9), RAS))
    save(raw / "s0003" / "segmentations.nii.gz", stored(combined, RAS))
    (raw / "meta.csv").write_bytes(b"\xef\xbb\xbf" + b"image_id;age;gender;institute;study_type;split\n"
                                   b"s0000;60;m;A;ct;train\ns0001;61;f;B;ct;val\n")
    cases, _ = run("totalsegmentator", tmp_path / "raw", tmp_path / "out", capsys)
    assert list(cases) == ["s0000", "s0001"] and [c.part for c in cases.values()] == ["train", "validation"]
    for seed, case in enumerate(cases.values()):
        check(case, seed=seed)
        assert case.levels == ("T12", "L1", "L2", "L3", "L4", "L5")
    out = left_out(tmp_path / "out", "totalsegmentator")
    assert "labels nothing, expected one of L1..L5" in out["s0002"]
    assert "segmentations.nii.gz is not read, since versions 1 and 2 number its vertebrae differently" in out["s0003"]


def test_totalsegmentator_overlap_is_left_out(tmp_path, capsys):
    for case in ("s0000", "s0001"):
        save(tmp_path / "raw" / case / "ct.nii.gz", stored(picture(truth(), int(case[-1]))))
        for name, v in (("L1", 20), ("L2", 20 if case == "s0001" else 21)):
            save(tmp_path / "raw" / case / "segmentations" / f"vertebrae_{name}.nii.gz",
                 stored((truth() == v).astype(np.uint8)))
    cases, _ = run("totalsegmentator", tmp_path / "raw", tmp_path / "out", capsys)
    assert list(cases) == ["s0000"] and "that another file labels too" in \
        left_out(tmp_path / "out", "totalsegmentator")["s0001"]


# --- CTSpine1K ---

def test_ctspine1k(tmp_path, capsys):
    raw = tmp_path / "raw"
    names = {"COLONOG/1.3.6.1.4.1.9328.50.4.0001": "colonography-0001", "HNSCC-3DCT-RT/HN_P023": "hnscc-P023",
             "MSD-T10/liver_110": "liver-110", "COVID-19/volume-covid19-A-0202_0_ct": "covid19-A-0202",
             "COVID-19/volume-covid19-A-0202_1_ct": "covid19-A-0202"}
    for seed, name in enumerate(names):
        save(raw / "raw_data" / "volumes" / f"{name}.nii.gz", stored(picture(truth(seed=seed), seed)))
        save(raw / "raw_data" / "labels" / f"{name}_seg.nii.gz", stored(truth((19, 20, 21, 22, 23, 24), seed)))
    save(raw / "raw_data" / "volumes" / "MSD-T10" / "liver_7.nii.gz", stored(picture(truth(), 50)))
    save(raw / "raw_data" / "labels" / "COVID-19" / "volume-covid19-A-0377_ct_seg.nii.gz", stored(truth()))
    (raw / "metadata").mkdir()
    (raw / "metadata" / "data_split.txt").write_text(
        "trainset:\n1.3.6.1.4.1.9328.50.4.0001.nii.gz\nHN_P023.nii.gz\n\ntest_public:\nliver_110.nii.gz\n\n"
        "test_private:\nvolume-covid19-A-0202_0_ct.nii.gzvolume-covid19-A-0202_1_ct.nii.gz")
    cases, _ = run("ctspine1k", raw, tmp_path / "out", capsys)
    assert {c.case: c.patient for c in cases.values()} == {
        name.split("/")[1]: f"ctspine1k-{patient}" for name, patient in names.items()}
    for seed, name in enumerate(names):
        check(cases[name.split("/")[1]], seed=seed)
    parts = {c.case: c.part for c in cases.values()}
    assert parts["HN_P023"] == "train" and parts["liver_110"] == "validation"
    assert parts["volume-covid19-A-0202_0_ct"] == parts["volume-covid19-A-0202_1_ct"] == "test"
    out = left_out(tmp_path / "out", "ctspine1k")
    assert "has no liver_7_seg.nii.gz" in out["liver_7"] and "has no volume-covid19-A-0377_ct.nii.gz" in \
        out["volume-covid19-A-0377_ct"]


# --- any folder ---

LABELS = ("--labels", "7=L1", "8=L2", "9=background")


def folder_values() -> np.ndarray:
    return np.select([truth() == 20, truth() == 21, truth() == 22], [7, 8, 9]).astype(np.uint8)


def test_folder(tmp_path, capsys):
    raw = tmp_path / "raw"
    for seed, case in enumerate(("P1_a", "P1_b", "P2_a", "P3_a")):
        save(raw / "img" / f"{case}.mha", stored(picture(truth(seed=seed), seed)))
        save(raw / "seg" / f"{case}_labels.nrrd", stored(folder_values()))
    save(raw / "img" / "P3_a.nii.gz", stored(picture(truth(), 40)))  # a second patient under one name
    save(raw / "img" / "P4_a.mha", stored(picture(truth(), 41)))
    save(raw / "img" / "odd.mha", stored(picture(truth(), 42)))
    save(raw / "seg" / "odd_labels.nrrd", stored(folder_values()))
    save(raw / "seg" / "P5_a_labels.nrrd", stored(folder_values()))
    save(raw / "img" / "P6_a.mha", stored(picture(truth(), 43)))
    save(raw / "seg" / "P6_a_labels.nrrd", stored(truth()))
    cases, said = run("folder", raw, tmp_path / "out", capsys, "--images", "img/*", "--masks", "seg/*_labels.nrrd",
                      *LABELS, "--patient", "(P[0-9]+)_", "--modality", "CT", "--mask-extent", "bodies",
                      "--source", "mine")
    assert list(cases) == ["P1_a", "P1_b", "P2_a"]
    case = cases["P1_a"]
    assert (case.patient, case.modality, case.mask_extent, case.levels) == ("mine-P1", "CT", "vertebral bodies",
                                                                            ("L1", "L2"))
    assert (case.read().mask == np.select([truth() == 20, truth() == 21], [1, 2])).all()
    assert (case.read().image == picture(truth())).all()
    out = left_out(tmp_path / "out", "mine")
    assert "P3_a.mha, P3_a.nii.gz: several files of one name" in out["P3_a"]
    assert "has no mask seg/P4_a_labels.nrrd" in out["P4_a"] and "has no image" in out["P5_a"]
    assert "does not match --patient" in out["odd"] and "found mask values 19, 20" in out["P6_a"]


@pytest.mark.parametrize(("options", "said"), [
    ([], "--labels is missing"), (["--labels", "7"], "found '7', expected VALUE=NAME"),
    (["--labels", "7=L9"], "found '7=L9'"), (["--labels", "x=L1"], "found 'x=L1'"),
    (["--labels", "1=L1", "01=L2"], "found 01 twice"),
    (["--labels", "1=vertebra", "2=L1"], "one or the other"), ([*LABELS, "--images", "img"], "one * for the case"),
    ([*LABELS, "--masks", "*/*.mha"], "one * for the case"), ([*LABELS, "--masks", "../*.mha"], "inside RAW_DIR"),
    ([*LABELS, "--patient", "("], "--patient"),
    ([*LABELS, "--patient", "P"], "no group"), ([*LABELS, "--source", "a/b"], "--source"),
    ([*LABELS, "--source", ".."], "--source"),
    (LABELS, "found no scan with a mask, expected images/\\* and masks/\\*")])
def test_folder_options(tmp_path, capsys, options, said):
    (tmp_path / "raw").mkdir()
    assert cli.main(["import", "folder", str(tmp_path / "raw"), str(tmp_path / "out"), *options]) == 1
    assert said.replace("\\", "") in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("scaled", [lambda v: v * 1.0000024 - 2e-6, lambda v: v - 5e-4, lambda v: v + 1e-3 * (v == 8)])
def test_labels_that_a_writer_has_scaled_are_rounded(scaled, tmp_path, capsys):
    """nibabel stores floats as int16 with a slope, and 21 comes back as 20.99995."""
    save(tmp_path / "raw" / "images" / "a.nii.gz", stored(picture(truth())))
    save(tmp_path / "raw" / "masks" / "a.nii.gz", stored(scaled(folder_values().astype(np.float32))))
    cases, said = run("folder", tmp_path / "raw", tmp_path / "out", capsys, *LABELS)
    assert (cases["a"].read().mask == np.select([truth() == 20, truth() == 21], [1, 2])).all()
    assert "off whole numbers and are rounded" in said
    save(tmp_path / "raw" / "masks" / "a.nii.gz", stored(folder_values() + np.float32(0.002)))
    assert cli.main(["import", "folder", str(tmp_path / "raw"), str(tmp_path / "out"), *LABELS]) == 1
    assert "found mask values 0.002" in capsys.readouterr().err


def test_folder_of_folders(tmp_path, capsys):
    """A folder a patient, where the star stands for the folder; sidecars are no scans; vertebrae without levels."""
    for seed in range(2):
        save(tmp_path / "raw" / f"p{seed}" / "ct.nii.gz", stored(picture(truth(seed=seed), seed)))
        save(tmp_path / "raw" / f"p{seed}" / "seg.nii.gz", stored((truth(seed=seed) > 0).astype(np.uint8)))
    values = np.where(truth(seed=1) == 24, 2, truth(seed=1) > 0).astype(np.uint8)
    save(tmp_path / "raw" / "p1" / "seg.nii.gz", stored(values))
    cases, _ = run("folder", tmp_path / "raw", tmp_path / "out", capsys, "--images", "*/ct.nii.gz", "--masks",
                   "*/seg.nii.gz", "--labels", "1=vertebra", "2=unlabelled", "--source", "mine")
    assert list(cases) == ["p0", "p1"] and cases["p1"].levels == ("vertebra",)
    mask = cases["p1"].read().mask
    assert (mask[truth(seed=1) == 24] == UNLABELLED).all() and set(np.unique(mask)) == {0, 1, UNLABELLED}
    for seed in range(2):
        save(tmp_path / "flat" / "images" / f"p{seed}.nii.gz", stored(picture(truth(seed=seed), seed)))
        (tmp_path / "flat" / "images" / f"p{seed}.json").write_text("{}")
        save(tmp_path / "flat" / "masks" / f"p{seed}.nii.gz", stored(folder_values()))
    cases, _ = run("folder", tmp_path / "flat", tmp_path / "out", capsys, *LABELS, "--source", "flat")
    assert list(cases) == ["p0", "p1"]


def test_options_of_folder_are_for_folder(tmp_path, capsys):
    assert cli.main(["import", "plos", str(small(tmp_path / "raw")), str(tmp_path / "out"), "--images", "x/*"]) == 1
    assert "--images: is for import folder alone" in capsys.readouterr().err


# --- what all share ---

def small(raw: Path, numbers=("001", "002")) -> Path:
    for number in numbers:
        seed = int(number)
        save(raw / "Data1" / "images" / f"image{number}.mhd", stored(picture(truth(seed=seed), seed)))
        save(raw / "Data1" / "masks" / f"mask{number}.mhd", stored(xvertseg_values(truth(seed=seed))))
    return raw


def test_there_is_a_module_for_each_name():
    for name in importers.NAMES[:-1]:
        module = importers.importer(name)
        assert name == module.SOURCE and module.LAYOUT and module.MASK_EXTENT and module.MODALITY in ("CT", "MR")
    assert len(importers.NAMES) == 10


def test_sources_share_a_folder(tmp_path, capsys):
    run("xvertseg", small(tmp_path / "x"), tmp_path / "out", capsys)
    verse_case(tmp_path / "v", "sub-verse004", "sub-verse004", 0)
    run("verse", tmp_path / "v", tmp_path / "out", capsys)
    assert [c.name for c in read_manifest(tmp_path / "out")] == ["verse/sub-verse004", "xvertseg/001", "xvertseg/002"]


def test_a_dataset_may_come_in_several_archives(tmp_path, capsys):
    """What the manifest holds already stays, in its own columns too; the same case is replaced; a file that was lost
    is restored by another run."""
    run("xvertseg", small(tmp_path / "x"), tmp_path / "out", capsys)
    manifest = tmp_path / "out" / "manifest.csv"
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([lines[0] + ",age", lines[1] + ",60", lines[2] + ",61"]))
    (tmp_path / "out" / "xvertseg" / "002_img.nii.gz").unlink()
    cases, said = run("xvertseg", small(tmp_path / "y", ("002", "003")), tmp_path / "out", capsys)
    assert list(cases) == ["001", "002", "003"]
    assert "1 others of an earlier import stay" in said and "1 of an earlier import are replaced" in said
    with open(tmp_path / "out" / "xvertseg" / "import.csv", newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["001", "002", "003"]
    assert [line.split(",")[-1] for line in manifest.read_text().splitlines()] == ["age", "60", "", ""]
    verse_case(tmp_path / "v1", "sub-verse004", "sub-verse004", 0)
    verse_case(tmp_path / "v2" / "dataset-03test", "sub-verse600", "sub-verse600", 1)
    for raw in ("v1", "v2"):
        cases, _ = run("verse", tmp_path / raw, tmp_path / "out", capsys)
    assert {c.case: c.part for c in cases.values()} == {"sub-verse004": "", "sub-verse600": "test"}


def test_different_scans_of_one_name_are_left_out_and_copies_taken_once(tmp_path, capsys):
    raw = small(tmp_path / "raw" / "old", ("001", "002"))
    for number, seed in (("001", 5), ("002", 2)):
        folder = raw.parent / "new" / "Data1"
        save(folder / "images" / f"image{number}.mhd", stored(picture(truth(seed=seed), seed)))
        save(folder / "masks" / f"mask{number}.mhd", stored(xvertseg_values(truth(seed=seed))))
    for path in (raw / "Data1").rglob("*00[12].*"):
        if path.suffix == ".mhd":  # the header alone would be alike: a scan in one file shows the difference
            sitk.WriteImage(sitk.ReadImage(str(path)), str(path.with_suffix(".mha")))
    cases = [Found("a", "p", raw / "Data1" / "images" / "image001.mha", ()),
             Found("a", "p", raw / "Data1" / "images" / "image002.mha", ()),
             Found("b", "p", raw / "Data1" / "images" / "image001.mha", ()),
             Found("b", "p", shutil.copy(raw / "Data1" / "images" / "image001.mha", tmp_path / "copy.mha"), ())]
    a, b, copy = convert._one_of_each_name([*cases[:3], replace(cases[3], image=Path(cases[3].image))])
    assert isinstance(a, LeftOut) and "image001.mha" in a.why and "image002.mha" in a.why and "one name" in a.why
    assert b == cases[2] and isinstance(copy, LeftOut) and "is the same file" in copy.why


def test_masks_whose_header_does_not_fit_are_a_flaw(tmp_path, capsys):
    """Of the image's size, but two voxels off, or of another spacing: one of the two headers is wrong."""
    raw = small(tmp_path / "raw", ("001", "002", "003"))
    mask = stored(xvertseg_values(truth(seed=2)), origin=(5.0, -7.0, 5.0))
    save(raw / "Data1" / "masks" / "mask002.mhd", mask)
    mask = stored(xvertseg_values(truth(seed=3)))
    mask.SetSpacing((1.9, 2.4, 2.9))
    save(raw / "Data1" / "masks" / "mask003.mhd", mask)
    cases, _ = run("xvertseg", raw, tmp_path / "out", capsys)
    assert not cases["001"].flaw
    for number in ("002", "003"):
        assert cases[number].flaw.startswith(f"mask{number}.mhd has the image's size, but lies elsewhere")


def test_levels_that_cannot_be_are_a_flaw(tmp_path, capsys):
    """A vertebra that nobody labelled between two that are; two that changed places; a scan upside down."""
    for number, change in (("001", {21: 0}), ("002", {21: 22, 22: 21}), ("003", {}), ("004", {24: 0}), ("005", {})):
        mask = truth(seed=int(number))
        image = stored(picture(mask, int(number)))
        mask = np.select([mask == v for v in change], list(change.values()), mask.astype(int)) if change else mask
        save(tmp_path / "raw" / "Data1" / "images" / f"image{number}.mhd", image)
        save(tmp_path / "raw" / "Data1" / "masks" / f"mask{number}.mhd", stored(xvertseg_values(mask)))
    for path in (tmp_path / "raw").rglob("*003.mhd"):
        image = sitk.ReadImage(str(path))
        image.SetDirection(np.eye(3).ravel().tolist())
        save(path, image)
    cases, _ = run("xvertseg", tmp_path / "raw", tmp_path / "out", capsys)
    assert cases["001"].flaw == "L2 not labelled between others that are"
    assert cases["002"].flaw == "levels out of order: L3 not below L2"
    assert cases["003"].flaw.startswith("levels out of order: L2 not below L1, L3 not below L2")
    assert cases["004"].flaw == cases["005"].flaw == ""
    values = truth(levels=(19, 20, 21))
    values[values == 19] = 28  # T13, whose number is the highest
    assert convert.doubts(stored(values), [20, 21, 28]) == []


def test_a_patients_scans_may_share_a_mask(tmp_path, capsys):
    """SPIDER has one drawn for T1 and T2; between two patients it is a mistake."""
    for k, name in enumerate(("1_t1", "1_t2", "2_t1")):
        save(tmp_path / "raw" / "images" / f"{name}.mha", stored(picture(truth(), k)))
        save(tmp_path / "raw" / "masks" / f"{name}.mha", stored(spider_values(truth())))
    cases, _ = run("spider", tmp_path / "raw", tmp_path / "out", capsys)
    assert not cases["1_t1"].flaw and not cases["1_t2"].flaw and "is a copy of case 1_t1's" in cases["2_t1"].flaw


@pytest.mark.posix
def test_raw_folders_one_level_off_linked_or_unpacked_otherwise(tmp_path, capsys, monkeypatch):
    """From inside, through a link, unzipped by a tool that doubles folders, unpacked .nii, Mac's doubles beside."""
    small(tmp_path / "raw")
    monkeypatch.chdir(tmp_path / "raw" / "Data1" / "images")
    cases, _ = run("xvertseg", Path("."), tmp_path / "a", capsys)
    assert list(cases) == ["001", "002"]
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "Data1").symlink_to(tmp_path / "raw" / "Data1")
    (tmp_path / "raw" / "Data1" / "loop").symlink_to(tmp_path / "raw")
    assert list(run("xvertseg", tmp_path / "links", tmp_path / "b", capsys)[0]) == ["001", "002"]
    save(tmp_path / "s" / "images" / "images" / "1_t1.mha", stored(picture(truth())))
    save(tmp_path / "s" / "masks" / "masks" / "1_t1.mha", stored(spider_values(truth())))
    assert list(run("spider", tmp_path / "s", tmp_path / "c", capsys)[0]) == ["1_t1"]
    verse_case(tmp_path / "v", "sub-verse004", "sub-verse004", 0)
    for path in list((tmp_path / "v").rglob("*.nii.gz")):
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path.with_suffix("")))
        path.unlink()
    save(tmp_path / "v" / "derivatives" / "sub-verse009" / "sub-verse009_seg-vert_msk.nii.gz", stored(truth()))
    cases, _ = run("verse", tmp_path / "v", tmp_path / "d", capsys)
    check(cases["sub-verse004"])
    assert "has no image in rawdata" in left_out(tmp_path / "d", "verse")["sub-verse009"]
    usiegen_case(tmp_path / "u", "AKa2", 0)
    shutil.copytree(tmp_path / "u" / "SpineSegmented", tmp_path / "u" / "__MACOSX" / "SpineSegmented")
    for path in (tmp_path / "u" / "__MACOSX").rglob("*.mha"):
        path.rename(path.with_name(f"._{path.name}"))
    assert list(run("usiegen", tmp_path / "u", tmp_path / "e", capsys)[0]) == ["AKa2"]


def test_bent_axes_are_straight_in_what_is_written(tmp_path, capsys):
    """SimpleITK refuses the raw file; it must read the imported one."""
    for name, array in (("ct", picture(truth())), ("segmentations/vertebrae_L1", (truth() == 20).astype(np.uint8))):
        path = save(tmp_path / "raw" / "s0000" / f"{name}.nii.gz", stored(array, RAS))
        data = bytearray(gzip.decompress(path.read_bytes()))
        rows = np.array(struct.unpack_from("<12f", data, 280)).reshape(3, 4)
        rows[:, :3] += rows[:, [1, 2, 0]] * 0.004
        struct.pack_into("<12f", data, 280, *rows.ravel())
        struct.pack_into("<2h", data, 252, 0, 1)
        path.write_bytes(gzip.compress(bytes(data)))
        with pytest.raises(RuntimeError, match="orthonormal"):
            sitk.ReadImage(str(path))
    for name, options in (("totalsegmentator", ()), ("folder", (
            "--images", "*/ct.nii.gz", "--masks", "*/segmentations/vertebrae_L1.nii.gz", "--labels", "1=L1", "--source",
            "folder"))):
        cases, _ = run(name, tmp_path / "raw", tmp_path / "out", capsys, *options)
        assert sitk.ReadImage(str(cases["s0000"].image)).GetSize() == (12, 14, 44)
        assert (cases["s0000"].read().mask == (truth() == 20)).all()


def test_oblique_scans_keep_their_place(tmp_path, capsys):
    turn = sitk.VersorTransform((0.3, 0.1, 0.2), 0.3)
    direction = np.reshape(turn.GetMatrix(), (3, 3)) @ RAS
    image = stored(picture(truth()), RAS)
    mask = stored(xvertseg_values(truth()), RAS)
    for name, x in (("images/image001", image), ("masks/mask001", mask)):
        x.SetDirection(direction.ravel().tolist())
        save(tmp_path / "raw" / "Data1" / f"{name}.mhd", x)
    cases, _ = run("xvertseg", tmp_path / "raw", tmp_path / "out", capsys)
    check(cases["001"])
    for path in (cases["001"].image, cases["001"].mask):
        found = sitk.ReadImage(str(path))
        assert found.GetDirection() == pytest.approx(direction.ravel(), abs=1e-6)
        assert found.GetOrigin() == pytest.approx(image.GetOrigin(), abs=1e-4)


def test_a_mask_of_another_scan_is_left_out(tmp_path, capsys):
    raw = small(tmp_path / "raw")
    save(raw / "Data1" / "masks" / "mask002.mhd", stored(xvertseg_values(truth()), origin=(900.0, 0, 0)))
    cases, _ = run("xvertseg", raw, tmp_path / "out", capsys)
    assert list(cases) == ["001"] and "belong together" in left_out(tmp_path / "out", "xvertseg")["002"]


def test_damaged_files_are_left_out(tmp_path, capsys):
    raw = small(tmp_path / "raw", ("001", "002", "003"))
    data = raw / "Data1" / "images" / "image002.raw"
    data.write_bytes(data.read_bytes()[:100])
    (raw / "Data1" / "masks" / "mask003.mhd").write_text("<html>")
    cases, said = run("xvertseg", raw, tmp_path / "out", capsys)
    assert list(cases) == ["001"] and set(left_out(tmp_path / "out", "xvertseg")) == {"002", "003"}
    assert "2 left out" in said and "left out: 002:" in said


@pytest.mark.parametrize(("prepare", "said"), [
    (lambda raw: None, "no such folder"), (lambda raw: raw.mkdir(), "found no scan"),
    (lambda raw: raw.write_bytes(b"PK"), "found a file, expected the folder of the raw dataset; check the path, and "
     "unpack archives")])
def test_nothing_to_import(tmp_path, capsys, prepare, said):
    prepare(tmp_path / "raw")
    assert cli.main(["import", "verse", str(tmp_path / "raw"), str(tmp_path / "out")]) == 1
    assert f"{tmp_path / 'raw'}: {said}" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))


def test_a_full_disk_ends_the_import_and_a_fault_of_ours_does_not(tmp_path, capsys, monkeypatch):
    def full(path, image):
        raise WriteError(f"{path}: cannot be written (No space left on device)")
    monkeypatch.setattr(convert, "write_image", full)
    assert cli.main(["import", "xvertseg", str(small(tmp_path / "raw")), str(tmp_path / "out")]) == 1
    assert "No space left" in capsys.readouterr().err and not (tmp_path / "out" / "manifest.csv").exists()
    monkeypatch.undo()
    real = importers.importer("xvertseg").read_pair
    monkeypatch.setattr(importers.importer("xvertseg"), "read_pair",
                        lambda found, known: 1 / 0 if found.case == "001" else real(found, known))
    cases, _ = run("xvertseg", tmp_path / "raw", tmp_path / "out", capsys)
    assert list(cases) == ["002"] and "ZeroDivisionError" in left_out(tmp_path / "out", "xvertseg")["001"]


def test_a_manifest_of_another_kind_is_refused_at_once(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.csv").write_text("name;age;image;mask\n")
    assert cli.main(["import", "xvertseg", str(small(tmp_path / "raw")), str(tmp_path / "out")]) == 1
    assert "missing source" in capsys.readouterr().err and len(list((tmp_path / "out").iterdir())) == 1


def test_out_within_raw_is_refused(tmp_path, capsys):
    raw = small(tmp_path / "raw")
    assert cli.main(["import", "xvertseg", str(raw), str(raw / "out")]) == 1
    assert "lie in each other" in capsys.readouterr().err
    (tmp_path / "xvertseg").mkdir()
    assert cli.main(["import", "xvertseg", str(tmp_path / "xvertseg"), str(tmp_path)]) == 1  # its own output
    assert "lie in each other" in capsys.readouterr().err and not (raw / "out").exists()


def test_a_conversion_that_dies_leaves_the_old_manifest(tmp_path, capsys, monkeypatch):
    run("xvertseg", small(tmp_path / "x"), tmp_path / "out", capsys)
    before = (tmp_path / "out" / "manifest.csv").read_bytes()
    real, calls = convert.write_image, []

    def dies(path, image):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(path, image)
    monkeypatch.setattr(convert, "write_image", dies)
    other = small(tmp_path / "y", ("001", "002", "003"))
    assert cli.main(["import", "xvertseg", str(other), str(tmp_path / "out")]) == 130
    assert (tmp_path / "out" / "manifest.csv").read_bytes() == before
    assert not list((tmp_path / "out").rglob(".writing-*"))
    assert [c.read().mask.max() for c in read_manifest(tmp_path / "out")] == [5, 5]
