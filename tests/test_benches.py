"""The benchmarks that compare methods: folds, runs that go on where they stopped, and every line for two steps."""

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import bench_baseline
import bench_clicks
import bench_minutes
import bench_points_only
import bench_terms
import folds
import numpy as np
import pytest
import torch
from tiny import TINY

from pointseg.datasets.manifest import Case, write_manifest
from pointseg.points import Points, draw_labels, few_labels
from pointseg.preprocess import Prepared, Scans
from pointseg.report.compare import Row, read_rows
from pointseg.scans.volumes import write_volume
from pointseg.volume import BACKGROUND, UNLABELLED, Geometry, Volume

TWO_STEPS = replace(TINY.weak, divisors=(1, 1), rounds=(1, 1), round_steps=1)
PROFILE = replace(TINY, weak=TWO_STEPS, full=TWO_STEPS)


def scan(number: int) -> Prepared:
    """L1 to L5 as blocks one below the other, on noise."""
    rng, mask = np.random.default_rng(number), np.zeros((40, 24, 8), np.uint8)
    for k in range(1, 6):
        mask[7 * k - 3 : 7 * k + 2, 6:16, 1:7] = k
    image = ((mask > 0) * 90 + rng.integers(0, 40, mask.shape)).astype(np.uint8)
    return Prepared(image, mask, (2.0, 2.0, 2.0), f"tiny/{number:02d}")


@pytest.fixture
def data(monkeypatch) -> folds.Data:
    scans = {s.name: s for s in map(scan, range(12))}
    data = folds.Data(scans, {name: s.mask for name, s in scans.items()},
                      {name: f"patient {i // 2 if i < 4 else i}" for i, name in enumerate(scans)})  # two have two scans
    for bench in (bench_terms, bench_minutes, bench_clicks, bench_points_only):
        monkeypatch.setattr(bench, "read_arrays", lambda arrays: data)
    monkeypatch.setattr(bench_terms, "HALF", PROFILE)
    for bench in (bench_minutes, bench_clicks, bench_points_only):
        monkeypatch.setattr(bench, "PROFILE", PROFILE)
    return data


def test_each_scan_is_tested_once_validates_once_and_no_patient_is_in_two_parts(data):
    of_folds = [folds.scans_of(data, fold) for fold in range(folds.FOLDS)]
    for part in ("test", "validation"):
        assert sorted(s.name for of in of_folds for s in getattr(of, part)) == sorted(data.scans)
    for of in of_folds:
        patients = [{data.patients[s.name] for s in part} for part in (of.train, of.validation, of.test)]
        assert sum(map(len, patients)) == len(set.union(*patients)) and all(patients)


@pytest.mark.parametrize("line", bench_terms.LINES)
def test_a_line_of_the_arena_runs_and_looks_at_no_test_scan(data, line):
    rows = bench_terms.do(Path(), folds.Run(line, 1, 2))
    scans, names = folds.scans_of(data, 2), {row.scan for row in rows}
    seen = scans.validation if line == bench_terms.FINALS else scans.train + scans.validation
    assert names == {s.name for s in seen} and {row.line for row in rows} == {line}
    for row in rows:
        truth = np.bincount(data.scans[row.scan].mask.ravel())
        assert row.matrix.sum(1).tolist() == ([truth[0], truth[1:].sum()] if row.answer == "transverse" else [*truth])


@pytest.mark.parametrize("arm", bench_minutes.ARMS)
def test_an_arm_of_the_curve_runs_is_charged_for_validation_and_scored_on_test_scans(data, arm):
    scans = folds.scans_of(data, 1)
    labelled = bench_minutes.labelled_by(bench_minutes.ARMS[arm], scans, 1)
    rows, answers = bench_minutes.do(Path(), folds.Run(arm, 0, 1)), (folds.AS_IT_IS, folds.ORDERED)
    assert [row.scan for row in rows] == [s.name for s in scans.test for _ in answers] and labelled.validation
    assert all((row.matrix.sum(1) == np.bincount(data.own[row.scan].ravel())).all() for row in rows)
    shares = {row.share() for row in rows}
    assert len(shares) == 1 and 0 < shares.pop() < 1.001
    for known in (*labelled.train, *labelled.validation):  # nothing is known but what the arm's time bought
        truth = data.scans[known.name].mask
        assert (known.mask[known.mask != UNLABELLED] == truth[known.mask != UNLABELLED]).all()
        assert arm.startswith("whole") == (few_labels(known) is None) or arm == "slices: every 4th"


def test_amounts_of_labels():
    scans = Scans([scan(i) for i in range(20)], [scan(i) for i in range(20, 25)])
    def count(arm: str) -> tuple[int, int, int]:
        labelled = bench_minutes.labelled_by(bench_minutes.ARMS[arm], scans, 0)
        whole = sum((s.mask[:, :, x] != UNLABELLED).all() for s in labelled.train for x in range(8))
        pointed = sum(2 < np.count_nonzero(s.mask[:, :, x] != UNLABELLED) < 100
                      for s in labelled.train for x in range(8))
        return whole, pointed, len(labelled.validation)
    assert count("whole scans: 3") == (3 * 8, 0, 1) and count("whole scans: 6") == (6 * 8, 0, 2)
    assert count("slices: one a scan") == (20, 0, 5) and count("slices: one in 4 scans") == (5, 0, 1)
    assert count("slices: every 4th") == (20 * 2, 0, 5)
    assert count("points: every slice") == (0, 20 * 8, 5) and count("points: every 8th slice") == (0, 20, 5)
    whole, pointed, _ = count("mixed: a slice, points on every 4th")
    assert whole == 20 and 20 <= pointed <= 40  # a mask may fall on a slice with points


def test_background_near_a_vertebra_is_drawn_near_it_and_vertebrae_stay():
    scans = Scans([scan(0)], [scan(1)])
    before, after = (bench_terms.LINES[line].labels(scans, 5) for line in ("P", "background near"))
    for old, new in zip(before.train + before.validation, after.train + after.validation, strict=True):
        assert isinstance(new, Points) and len(new.values) == len(old.values)
        assert np.array_equal(old.mask * (old.values.max() >= 1) == 1, new.mask == 1)
        truth = scan(0 if new.name.endswith("00") else 1).mask
        assert (truth[tuple(new.places.T)] == new.values).all()
        places = new.places[new.values == BACKGROUND]
        vertebra = np.argwhere(truth != BACKGROUND)
        near = [min(2 * np.sqrt(((vertebra[vertebra[:, 2] == p[2]] - p) ** 2).sum(1))) <= bench_terms.NEAR_MM
                for p in places if 1 <= p[2] < 7]
        assert sum(near) >= 3 * 6


def options(out: Path, **other) -> argparse.Namespace:
    return argparse.Namespace(**dict(out=out, arrays=out / "arrays", processes=1, minutes=1e6, csv=None) | other)


def one_row(arrays: Path, run: folds.Run) -> list[Row]:
    """Leaves a trace of being called."""
    (arrays.parent / f"{run.line}{run.fold}-{time.monotonic_ns()}.trace").write_text("")
    if os.environ.get("SLOW") and run.fold == 1:
        time.sleep(60)
    return [Row(run.line, run.repeat, run.fold, "test", "s", "p", "mean", 1.0, 0, 1, "1 0 0 1")]


def test_no_run_is_done_twice_and_none_is_lost(tmp_path, capsys):
    runs = [folds.Run("a: line", 0, fold) for fold in range(3)]
    folds.work_through(runs[:2], one_row, lambda run: 1800.0, options(tmp_path))
    assert "0 of 2 runs are done; the others take about 1.0 core hours, 1.0 hours" in capsys.readouterr().out
    folds.work_through(runs, one_row, lambda run: 1800.0, options(tmp_path))
    assert len(list(tmp_path.glob("*.trace"))) == 3
    found = [(row.line, row.fold) for row in folds.collect(options(tmp_path))]
    assert found == [("a: line", fold) for fold in range(3)]
    published = tmp_path / "all.csv"
    (tmp_path / "there").mkdir()
    folds.write_rows(published, folds.collect(options(tmp_path)))
    folds.work_through([*runs, folds.Run("new", 0, 0)], one_row, lambda run: 1.0,
                       options(tmp_path / "there", csv=published))  # another machine
    assert len(list(tmp_path.glob("there/*.trace"))) == 1
    assert len(folds.collect(options(tmp_path / "there", csv=published))) == 4
    folds.work_through([folds.Run("late", 0, 0)], one_row, lambda run: 1.0, options(tmp_path, minutes=0))
    assert len(folds.collect(options(tmp_path))) == 3  # no time left to begin


@pytest.mark.posix
def test_a_run_that_is_killed_is_done_again_alone(tmp_path):
    """The first run ends, the second is killed in its midst."""
    code = ("import sys; sys.path.insert(0, 'tests'); import folds, test_benches as t; from pathlib import Path\n"
            f"if __name__ == '__main__': folds.work_through([folds.Run('x', 0, f) for f in range(3)], t.one_row, "
            f"lambda run: 1.0, t.options(Path({str(tmp_path)!r})))")
    script = tmp_path / "go.py"
    script.write_text(code)
    first = subprocess.Popen([sys.executable, script], env=os.environ | {"SLOW": "1"}, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.trace"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert [row.fold for row in folds.collect(options(tmp_path))] == [0]
    subprocess.run([sys.executable, script], check=True, timeout=120, stdout=subprocess.DEVNULL)
    assert [row.fold for row in folds.collect(options(tmp_path))] == [0, 1, 2]
    assert [len(list(tmp_path.glob(f"x{fold}-*.trace"))) for fold in range(3)] == [1, 2, 1]
    assert all(read_rows(path) for path in tmp_path.glob("*/*.csv"))


def test_three_dimensional_items_move_points_as_masks_and_a_dice_of_the_truth_is_1():
    known = scan(3)
    size = known.shape
    kept = bench_baseline.moved(known.image, np.eye(3), np.zeros(3), size, "bilinear", 0)
    assert np.abs(kept - known.image).max() < 0.01
    shifted = bench_baseline.moved(known.mask, np.eye(3), np.array([2, 1, -1]), size, "nearest", UNLABELLED)
    assert (shifted[:-2, :-1, 1:] == known.mask[2:, 1:, :-1]).all() and (shifted[:, :, 0] == UNLABELLED).all()
    turn = bench_baseline.rotation(np.deg2rad([0, 0, 90]))  # about x: z becomes y
    assert np.allclose(abs(turn), [[0, 1, 0], [1, 0, 0], [0, 0, 1]]) and np.allclose(turn @ turn.T, np.eye(3))
    points = Points.of(known, bench_terms.LINES["P"].labels(Scans([known], [known]), 0).train[0].mask)
    both = [bench_baseline.Scans3D([s], (40, 24, 8), np.random.default_rng(1)).item(s) for s in (points, known)]
    few = both[0][1] != UNLABELLED
    assert torch.equal(both[0][0], both[1][0]) and 50 < few.sum() <= len(points.values)
    assert (both[0][1][few] == both[1][1][few]).float().mean() > 0.9  # a rounded place may lie over an edge
    labels = torch.from_numpy(known.mask)[None]
    logits = 20 * torch.nn.functional.one_hot(labels.long(), 6).movedim(-1, 1).float()
    assert bench_baseline.dice_loss(logits, labels) < 1e-3 < 0.9 < bench_baseline.dice_loss(-logits, labels)


def test_the_baseline_runs_on_masks_and_points(data, monkeypatch):
    pytest.importorskip("monai", reason="the baseline is an extra: pip install -e .[baseline]")
    monkeypatch.setattr(bench_baseline, "read_arrays", lambda arrays: data)
    monkeypatch.setattr(bench_baseline, "train", partial(bench_baseline.train, rounds=1, round_steps=2))
    for line in bench_baseline.LABELS:
        rows = bench_baseline.do(Path(), folds.Run(line, 0, 1))
        assert [row.scan for row in rows if row.answer == folds.ORDERED] == [
            s.name for s in folds.scans_of(data, 1).test]
        assert all((row.matrix.sum(1) == np.bincount(data.own[row.scan].ravel())).all() for row in rows)


@pytest.mark.parametrize("line", bench_clicks.LINES)
def test_a_way_to_click_runs_and_is_scored_on_test_scans(data, line):
    rows = bench_clicks.do(Path(), folds.Run(line, 0, 3))
    assert [row.scan for row in rows] == [s.name for s in folds.scans_of(data, 3).test]
    assert all((row.matrix.sum(1) == np.bincount(data.own[row.scan].ravel())).all() for row in rows)


@pytest.fixture
def real(data, tmp_path, monkeypatch) -> Path:
    """The same scans as a dataset folder with masks, on a grid of 1 mm, which is prepared on theirs of 2 mm."""
    monkeypatch.setattr(bench_points_only, "PROFILE", replace(PROFILE, grid_mm=2.0))
    cases = []
    for name, s in data.scans.items():
        mask = s.mask.repeat(2, 0).repeat(2, 1).repeat(2, 2)
        image, own, spacing = s.image.repeat(2, 0).repeat(2, 1).repeat(2, 2), name.split("/")[1], (1.0,) * 3
        data.own[name] = mask
        volume = Volume(image.astype(np.int16), mask, spacing, name, "MR", Geometry.canonical(mask.shape, spacing))
        files = [tmp_path / f"{own}_{kind}.nii.gz" for kind in ("img", "vert")]
        write_volume(files[0], volume, files[1])
        cases.append(Case("tiny", own, data.patients[name], "MR", *files))
    write_manifest(tmp_path, cases)
    return tmp_path


@pytest.mark.parametrize("line", (bench_points_only.MASKS, bench_points_only.ALONE))
def test_the_whole_procedure_runs_with_and_without_masks(data, real, line):
    rows = bench_points_only.do(real, Path(), folds.Run(line, 0, 3))
    assert [row.scan for row in rows] == [s.name for s in folds.scans_of(data, 3).test for _ in range(2)]
    assert all((row.matrix.sum(1) == np.bincount(data.own[row.scan].ravel())).all() for row in rows)


def test_a_folder_without_masks_has_as_many_points_as_masks_would_give_and_places_to_choose_by(data, real):
    scans = folds.scans_of(data, 3)
    alone = bench_points_only.without_masks(real, scans, 0)
    assert all(s.mask is None for s in alone.train + alone.validation) and all(s.mask is not None for s in alone.test)
    drawn = draw_labels(scans, "points", 0)
    for known, before in zip(draw_labels(alone, "points", 0).train, drawn.train, strict=True):
        truth = data.scans[known.name].mask
        assert known.name == before.name and (truth[tuple(known.places.T)] == known.values).all()
        counts = [np.bincount(of.values, minlength=6) for of in (known, before)]
        assert (counts[0] <= counts[1]).all() and (counts[0] > 0.8 * counts[1]).all()  # some fall on one voxel
    for scan in alone.validation:
        assert len(scan.clicks.values) == bench_points_only.PLACES and np.isfinite(scan.clicks.stands_for_mm3).all()


@pytest.mark.parametrize(("bench", "line", "answer"), [
    (bench_terms, "P", "mean"), (bench_minutes, "slices: every 7th", folds.ORDERED),
    (bench_baseline, "3-D U-Net: masks", folds.AS_IT_IS), (bench_clicks, "misses: 1 mm", "weak models"),
    (bench_points_only, bench_points_only.ALONE, bench_points_only.RESULT)])
def test_a_bench_reports_what_is_there(bench, line, answer, tmp_path, monkeypatch, capsys):
    matrix = " ".join(str(n) for n in np.diag([900, 9, 9, 9, 9, 9]).ravel())
    part = "validation" if bench is bench_terms else "test"
    axes = [(axis, "9 0 0 9") for axis in ("transverse", "coronal", "sagittal")] if bench is bench_terms else []
    folds.write_rows(tmp_path / "all.csv", [Row(line, 0, 0, part, "s", "p", name, 1.0, 0, 1, text)
                                            for name, text in [(answer, matrix), *axes]])
    monkeypatch.setattr("sys.argv", ["bench", "--report", "--out", str(tmp_path), "--csv", str(tmp_path / "all.csv")])
    bench.main()
    assert line in (said := capsys.readouterr().out) and "1.000 [1.000, 1.000]" in said
    assert "commit" in (tmp_path / "about.json").read_text()
