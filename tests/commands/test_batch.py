"""Many scans: what is bad is named and the others are done, whatever it does; a second start does what is missing."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from odd_scans import TINY, save, values, write_frames, write_slices

from pointseg.commands import batch
from pointseg.commands import main as cli
from pointseg.commands.scanlist import find_scans, masks_in
from pointseg.datasets.manifest import Case, write_manifest
from pointseg.predict import Model
from pointseg.runs.models import load_model, save_model
from pointseg.scans.files import whole_file
from pointseg.volume import ScanError


def summary(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder / "summary.csv", newline="") as file:
        return {Path(row["scan"]).name: row for row in csv.DictReader(file)}


@pytest.fixture
def scans(tmp_path) -> Path:
    """Two good scans in different formats, a DICOM folder, a damaged file, and what is no scan at all."""
    folder = tmp_path / "scans"
    folder.mkdir()
    save(folder / "a.nii.gz")
    save(folder / "b.1.mhd", values()[:, ::-1].copy())
    write_slices(folder / "c", values())
    (folder / "d.nii").write_bytes(b"half")
    (folder / "notes.txt").write_text("not a scan")
    (folder / ".hidden.nii").write_text("nor this")
    return folder


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_many_scans(jobs, scans, model, good, tmp_path, capsys):
    arguments = ["segment", str(scans), str(tmp_path / "gone.mha"), "--model", str(model), "-o", str(tmp_path / "out"),
                 "--jobs", jobs]
    assert cli.main(arguments) == 1
    said = capsys.readouterr()
    assert "2 of 5 scans failed" in said.err and "Traceback" not in said.err and "segmenting" in said.err
    assert "3 done, 0 already done, 2 failed" in said.out
    rows = summary(tmp_path / "out")
    assert {name: row["status"] for name, row in rows.items()} == {"a.nii.gz": "done", "b.1.mhd": "done", "c": "done",
                                                                   "d.nii": "failed", "gone.mha": "failed"}
    assert "d.nii: cannot be read" in rows["d.nii"]["message"] and "no such file" in rows["gone.mha"]["message"]
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {"summary.csv", *(f"{n}.{e}" for n in ("a", "b.1", "c") for e in ("nii.gz", "png", "json"))}
    mask = sitk.ReadImage(str(tmp_path / "out" / "a.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(mask), good())
    assert float(rows["a.nii.gz"]["L2_ml"]) == pytest.approx(np.sum(good() == 2) * 7.5 / 1000, abs=0.01)


def test_a_second_start_does_what_is_missing(scans, model, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["segment", str(scans / "a.nii.gz"), str(scans / "b.1.mhd"), str(scans / "c"), "--model", str(model),
                 "-o", str(out)]
    assert cli.main(arguments) == 0
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    (out / "b.1.nii.gz").unlink()  # lost
    save(scans / "a.nii.gz", values()[::-1].copy())  # another scan under the same name
    os.utime(scans / "a.nii.gz", (1, 1))
    assert cli.main(arguments) == 0
    assert "2 done, 1 already done, 0 failed" in capsys.readouterr().out
    assert {name: row["status"] for name, row in summary(out).items()} == {"a.nii.gz": "done", "b.1.mhd": "done",
                                                                           "c": "already done"}
    assert (out / "c.nii.gz").stat().st_mtime_ns == before[out / "c.nii.gz"]
    assert summary(out)["c"]["L1_ml"] and (out / "b.1.nii.gz").is_file()
    (out / "c.json").write_text("")  # killed by a full disk, say: not done
    assert cli.main([*arguments, "--verse"]) == 0  # and other options make other masks
    assert "3 done, 0 already done" in capsys.readouterr().out
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(out / "c.nii.gz"))))) <= {0, *range(20, 25)}
    assert cli.main(arguments) == 0
    assert "3 done" in capsys.readouterr().out
    copy = tmp_path / "model.pt"
    save_model(copy, Model(TINY.network(6, seed=3), "coronal", 3.0, 192))
    assert cli.main([*arguments, "--model", str(copy)]) == 0  # as do other weights
    assert "3 done, 0 already done" in capsys.readouterr().out


@pytest.mark.posix
def test_a_scan_that_kills_its_process_does_not_take_the_others(scans, model, tmp_path, monkeypatch):
    """As the system does when memory runs out."""
    paths = [scans / "a.nii.gz", scans / "b.1.mhd", scans / "c"]
    monkeypatch.setattr(batch, "_attempt", dies)
    outcomes = batch.segment_many(paths, masks_in(tmp_path / "out", paths), batch.Options(model), jobs=2)
    found = {o.scan.name: o for o in outcomes}
    assert found["b.1.mhd"].status == "failed" and "its process was killed" in found["b.1.mhd"].message
    assert found["a.nii.gz"].status == found["c"].status == "done"


def dies(scan, mask, options):
    if scan.name == "b.1.mhd":
        os.kill(os.getpid(), signal.SIGKILL)
    return batch.Outcome(scan, mask, "done")


def test_no_fault_of_ours_stops_the_others(scans, model, tmp_path, monkeypatch):
    real = batch.read_volume

    def faulty(path, **options):
        if path.name == "a.nii.gz":
            raise MemoryError
        if path.name == "c":
            raise ZeroDivisionError("oh")
        return real(path, **options)
    monkeypatch.setattr(batch, "read_volume", faulty)
    paths = [scans / "a.nii.gz", scans / "b.1.mhd", scans / "c"]
    found = list(batch.segment_many(paths, masks_in(tmp_path / "out", paths), batch.Options(model)))
    assert [o.status for o in found] == ["failed", "done", "failed"]
    assert "does not fit into memory" in found[0].message and "ZeroDivisionError: oh" in found[2].message


@pytest.mark.posix
@pytest.mark.parametrize(("how", "jobs"), [("SIGKILL", "1"), ("SIGINT", "1"), ("SIGINT", "2")])
def test_broken_off(how, jobs, model, tmp_path):
    """Every mask that is there is whole.  Ctrl-C, which reaches every process of the group: one line and nothing half
    done.  A second start ends with all masks."""
    (tmp_path / "scans").mkdir()
    for k in range(40):
        save(tmp_path / "scans" / f"{k}.nii")
    command = [sys.executable, "-m", "pointseg", "segment", str(tmp_path / "scans"), "--model", str(model), "-o",
               str(tmp_path / "out"), "--jobs", jobs]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, getattr(signal, how))
    _, said = process.communicate(timeout=30)
    masks = list(tmp_path.glob("out/*.nii.gz"))
    assert 1 <= len(masks) < 40
    assert all(sitk.ReadImage(str(mask)).GetSize() == (24, 20, 16) for mask in masks)
    if how == "SIGINT":
        assert process.returncode == 130 and "Traceback" not in said
        assert said.endswith("pointseg segment: interrupted\n") and not list(tmp_path.glob("out/.writing-*"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "40 done" not in done.stdout and "0 failed" in done.stdout
    assert len(list(tmp_path.glob("out/*.nii.gz"))) == 40


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_leaves_three_files_or_none(error, model, tmp_path, monkeypatch):
    scan, mask = save(tmp_path / "s.mha"), tmp_path / "out" / "m.nii.gz"
    batch.segment_one(scan, mask, batch.Options(model))
    assert len(list((tmp_path / "out").iterdir())) == 3

    def full(figure, path):
        with whole_file(path):
            raise error
    monkeypatch.setattr(batch.plot, "save", full)
    with pytest.raises(ScanError if isinstance(error, OSError) else KeyboardInterrupt):
        batch.segment_one(scan, mask, batch.Options(model, verse=True))
    assert not list((tmp_path / "out").iterdir())


def test_a_mask_that_was_changed_stays_and_a_changed_scan_is_done_anew(model, tmp_path):
    """Be it that the scan's voxels lie in a file of their own."""
    scan, mask = save(tmp_path / "s.mhd"), tmp_path / "m.nii.gz"
    options = batch.Options(model)
    assert batch._attempt(scan, mask, options).status == "done"
    assert batch._attempt(scan, mask, options).status == "already done"
    mask.write_bytes(b"corrected by hand")
    outcome = batch._attempt(scan, mask, options)
    assert outcome.status == "failed" and "has changed since it was made" in outcome.message
    assert mask.read_bytes() == b"corrected by hand"
    mask.unlink()
    assert batch._attempt(scan, mask, options).status == "done"
    (tmp_path / "s.raw").write_bytes(values()[::-1].tobytes())
    assert batch._attempt(scan, mask, options).status == "done"
    assert batch._attempt(scan, mask, options).status == "already done"


def test_a_json_of_someone_else_stays(scans, model, tmp_path, capsys):
    """As converters write beside scans."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.json").write_text('{"EchoTime": 0.1}')
    assert cli.main(["segment", str(scans / "a.nii.gz"), "--model", str(model), "-o", str(tmp_path / "out")]) == 1
    assert "no record of ours" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.json", "summary.csv"}


# --- names ---

def test_names_of_masks(tmp_path):
    a, b = tmp_path / "s1" / "ct.nii.gz", tmp_path / "s2" / "ct.nii.gz"
    assert masks_in(Path("out"), [a, tmp_path / "x.y.mha"]) == [Path("out/ct.nii.gz"), Path("out/x.y.nii.gz")]
    assert masks_in(Path("out"), [a, b]) == [Path("out/s1/ct.nii.gz"), Path("out/s2/ct.nii.gz")]
    assert masks_in(Path("out"), [a, b.with_name("CT.mha")])[1] == Path("out/s2/CT.nii.gz")  # one name on macOS
    with pytest.raises(ScanError, match="several scans named ct in one folder"):
        masks_in(Path("out"), [a, a.with_name("ct.mha")])


def test_scans_below_a_folder(scans):
    assert [p.name for p in find_scans([scans], Path("out"))] == ["a.nii.gz", "b.1.mhd", "c", "d.nii"]
    assert list(find_scans([scans / "c"], Path("out"))) == [scans / "c"]  # a DICOM folder is one scan
    assert [p.name for p in find_scans([scans / "a.nii.gz", scans / "a.nii.gz"], Path("out"))] == ["a.nii.gz"]


def test_scans_beside_dicom_files_and_files_of_many_frames(scans, tmp_path):
    """Nothing is passed over in silence: what lies beside or below slices, and each file that is a scan of its own."""
    save(scans / "c" / "more.mha")
    (scans / "c" / "below").mkdir()
    save(scans / "c" / "below" / "x.nii")
    assert [str(p.relative_to(scans)) for p in find_scans([scans / "c"], Path("out"))] == ["c", "c/below/x.nii",
                                                                                                 "c/more.mha"]
    (tmp_path / "frames").mkdir()
    for name in ("a.dcm", "b.dcm"):
        write_frames(tmp_path / "frames" / name, values())
    assert [p.name for p in find_scans([tmp_path / "frames"], Path("out"))] == ["a.dcm", "b.dcm"]


def test_scans_of_a_dataset_folder(scans, tmp_path):
    """The images of its manifest, and not the masks, which lie beside them."""
    case = Case("mine", "1", "1", "CT", scans / "a.nii.gz", scans / "d.nii")
    write_manifest(scans, [case])
    assert find_scans([scans, scans / "a.nii.gz"], Path("out")) == {scans / "a.nii.gz": "CT"}


def test_the_manifest_tells_the_modality(model, tmp_path, capsys):
    """A CT cropped to the spine shows no air: by its intensities it would be taken for MR."""
    (tmp_path / "data").mkdir()
    scan = save(tmp_path / "data" / "a.nii.gz", np.maximum(values(), -200))
    for given, modality in ((scan, "MR"), (tmp_path / "data", "CT")):
        write_manifest(tmp_path / "data", [Case("mine", "1", "1", "CT", scan, scan)])
        assert cli.main(["segment", str(given), "--model", str(model), "-o", str(tmp_path / "out")]) == 0
        assert summary(tmp_path / "out")["a.nii.gz"]["modality"] == modality


@pytest.mark.parametrize(("arguments", "said"), [
    (["SCANS", "-o", "OUT/m.nii.gz"], "is one mask, but 4 scans are given"), (["SCANS", "-o", "OUT/m.txt"], "m.txt"),
    (["SCANS/a.nii.gz", "-o", "SCANS/notes.txt"], "notes.txt"), (["OUT", "-o", "OUT/x"], "no scan in this folder")])
def test_wrong_outputs(arguments, said, scans, model, tmp_path, capsys):
    (tmp_path / "o").mkdir()
    names = {"SCANS": str(scans), "OUT": str(tmp_path / "o")}
    for key, value in names.items():
        arguments = [a.replace(key, value) for a in arguments]
    assert cli.main(["segment", *arguments, "--model", str(model)]) == 1
    assert said in capsys.readouterr().err and not list((tmp_path / "o").iterdir())
    assert (scans / "notes.txt").read_text() == "not a scan"


# --- what a scan's modality has to do with it ---

def test_a_model_of_another_modality_is_warned_of(model, tmp_path, capsys):
    ours = load_model(model)
    for known, warned in ((("MR",), True), (("CT", "MR"), False), ((), False)):
        save_model(tmp_path / "m.pt", Model(ours.network, "sagittal", 3.0, 192, known))
        assert cli.main(["segment", str(save(tmp_path / "s.mha")), "--model", str(tmp_path / "m.pt"), "-o",
                         str(tmp_path / "mask.nii.gz")]) == 0
        assert ("the scan is CT, as its intensities tell, but the model learned from MR" in capsys.readouterr().out) \
            is warned
        assert any("learned from" in w for w in json.loads((tmp_path / "mask.json").read_text())["warnings"]) is warned


def test_masks_do_not_overwrite_scans_nor_become_some(scans, model, tmp_path, capsys):
    before = (scans / "a.nii.gz").read_bytes()
    for given, said in (([scans], "scans and of masks at once"), ([scans / "a.nii.gz"], "a.nii.gz: is read by this")):
        assert cli.main(["segment", *map(str, given), "--model", str(model), "-o", str(scans)]) == 1
        assert said in capsys.readouterr().err and (scans / "a.nii.gz").read_bytes() == before
    (scans / "d.nii").unlink()
    for _ in range(2):  # masks below the folder of scans are no scans in the second run
        assert cli.main(["segment", str(scans), "--model", str(model), "-o", str(scans / "masks")]) == 0
    assert "0 done, 3 already done, 0 failed" in capsys.readouterr().out
