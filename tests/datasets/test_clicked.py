"""Scans and files of clicks -> a dataset folder, by the command line."""

import shutil

import numpy as np
import pytest

from pointseg.commands import main as cli
from pointseg.datasets.clicked import files_by_scan
from pointseg.datasets.manifest import Case, read_manifest, write_manifest
from pointseg.datasets.phantom import write_phantoms
from pointseg.volume import ScanError


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("scans"), 2, 0, spacing_mm=4.0)


def error_of(arguments, capsys) -> str:
    assert cli.main([str(a) for a in arguments]) == 1
    line, = (line for line in capsys.readouterr().err.splitlines() if line.startswith("pointseg"))
    return line


@pytest.mark.parametrize("ending", [".csv", ".mrk.json", ".fcsv"])
def test_exported_clicks_come_back_as_a_folder_that_trains(scans, tmp_path, ending, capsys):
    assert cli.main(["export", "--data", str(scans), "-o", str(tmp_path / "clicks"), "--format", ending]) == 0
    files = sorted((tmp_path / "clicks").iterdir())
    images = read_manifest(scans)[0].image.parent
    arguments = ["import", "points", *files, "--scans", images, "-o", tmp_path / "mine", "--patient", r"(\d+)_img"]
    assert cli.main([str(a) for a in arguments]) == 0
    assert "clicks, L1, L2, L3, L4, L5" in capsys.readouterr().out
    for before, after in zip(read_manifest(scans), read_manifest(tmp_path / "mine"), strict=True):
        volume, mask = after.read(), before.read().mask
        assert volume.mask is None and after.patient == f"clicked-{before.case}"
        assert (mask[tuple(volume.clicks.places.T)] == volume.clicks.values).all()
        assert np.array_equal(volume.image, before.read().image)


def test_careless_export(scans, tmp_path):
    for name, more in {"careful": [], "careless": ["--jitter-mm", "6", "--wrong-levels", "0.3"]}.items():
        assert cli.main(["export", "--data", str(scans), "-o", str(tmp_path / name), "--format", ".csv", *more]) == 0
    a, b = (sorted((tmp_path / name).iterdir())[0].read_text() for name in ("careful", "careless"))
    assert a != b


@pytest.mark.parametrize(("option", "value"), [
    ("--jitter-mm", "-1"), ("--jitter-mm", "nan"), ("--jitter-mm", "inf"), ("--wrong-levels", "1.5"),
    ("--wrong-levels", "-0.1"), ("--towards-middle", "nan"), ("--towards-middle", "1e9")])
def test_care_that_is_none_is_bad_usage(option, value, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", "--data", "x", "-o", "y", option, value])
    assert f"argument {option}: {float(value)} is " in capsys.readouterr().err


def test_clicks_of_two_scans_of_one_name_do_not_replace_each_other(scans, tmp_path, capsys):
    case = read_manifest(scans)[0]
    for name in "ab":
        (tmp_path / "d" / name).mkdir(parents=True)
        shutil.copy(case.image, tmp_path / "d" / name / "scan.nii.gz")
        shutil.copy(case.mask, tmp_path / "d" / name / "mask.nii.gz")
    write_manifest(tmp_path / "d", [Case("s", name, name, "CT", *(tmp_path / "d" / name / f"{kind}.nii.gz"
                                                                 for kind in ("scan", "mask"))) for name in "ab"])
    said = error_of(["export", "--data", tmp_path / "d", "-o", tmp_path / "out"], capsys)
    assert "found several scans named scan, expected a name each" in said and not (tmp_path / "out").exists()


def test_files_find_their_scan_by_the_longest_name(tmp_path):
    scans = [tmp_path / name for name in ("a.nii.gz", "a_2.nii.gz", "b.nii.gz")]
    for scan in scans:
        scan.write_bytes(b"")
    found = files_by_scan([tmp_path / n for n in ("a_2.mrk.json", "a.csv", "a_L1.fcsv", "a_2-L2.csv")], scans)
    assert {s.name: [f.name for f in files] for s, files in found.items()} == {
        "a_2.nii.gz": ["a_2.mrk.json", "a_2-L2.csv"], "a.nii.gz": ["a.csv", "a_L1.fcsv"]}
    with pytest.raises(ScanError, match="c.csv: found no scans whose name it begins with, expected one of a, a_2, b"):
        files_by_scan([tmp_path / "c.csv"], scans)
    with pytest.raises(ScanError, match="a2.csv: found no scans"):
        files_by_scan([tmp_path / "a2.csv"], scans)


def test_wrong_arguments_and_contradicting_files_get_a_line(scans, tmp_path, capsys):
    image = read_manifest(scans)[0].image
    (tmp_path / "a").mkdir()
    for level in ("L1", "L2"):
        (tmp_path / "a" / f"{image.name.split('.')[0]}_{level}.csv").write_text(
            f"level,x_mm,y_mm,z_mm\n{level},8,8,-8\n")
    files = sorted((tmp_path / "a").iterdir())
    assert "expected the folder of the scans" in error_of(["import", "points", *files], capsys)
    more = ["--scans", image.parent, "-o", tmp_path / "out"]
    assert "found L2 on a voxel that" in error_of(["import", "points", *files, *more], capsys)
    assert not (tmp_path / "out" / "manifest.csv").exists()
    assert cli.main([str(a) for a in ["import", "points", files[0], *more]]) == 0
    assert "gone: no such folder, expected that of the scans" in error_of(
        ["import", "points", files[0], "--scans", tmp_path / "gone", "-o", tmp_path / "out"], capsys)
    for path, said in ((tmp_path / "gone.csv", "no such file"), (tmp_path / "a", "found a folder")):
        assert f"{path}: {said}, expected a file of clicks" in error_of(["import", "points", path, *more], capsys)
    assert "expected RAW_DIR and OUT_DIR" in error_of(["import", "plos", tmp_path], capsys)
    assert "a format that is not written" in error_of(["export", "--data", scans, "-o", tmp_path, "--format", ".txt"],
                                                      capsys)
    clicked = ["export", "--data", tmp_path / "out", "-o", tmp_path / "again"]
    assert "found no mask, expected one to draw clicks from" in error_of(clicked, capsys)
