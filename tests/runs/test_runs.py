"""Runs that are broken off and go on: the same bits, nothing mixed, nothing half written."""

import csv
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from unittest.mock import MagicMock, call

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import MODELS, TINY, schedule_of, tiny_scan, tiny_training, weights_in

from pointseg import profiles
from pointseg.commands import main as cli
from pointseg.datasets.manifest import read_manifest
from pointseg.datasets.phantom import write_phantoms
from pointseg.points import BEARMAN, Seconds, draw_labels
from pointseg.preprocess import Scans
from pointseg.report.plot import training
from pointseg.runs import identity
from pointseg.runs.checkpoint import BEFORE, LAST, Checkpoints
from pointseg.runs.run import Run, begin
from pointseg.runs.weights import read_torch
from pointseg.scans.files import WriteError
from pointseg.train import History, Watch
from pointseg.volume import ScanError

SCHEDULE = schedule_of((1, 3), (2, 2), learning_rate=3e-3, round_steps=5, patience=2)


class Killed(BaseException):
    """Nothing catches it, like a signal."""


class EachStep(Checkpoints):
    """Keeps every state, and is killed when asked to."""

    def __init__(self, folder: Path, killed_after: int | None = None, **options):
        super().__init__("training", folder, **options)
        self.killed_after = killed_after

    def due(self, least_s: float) -> bool:
        return True

    def write(self, state: dict) -> None:
        super().write(state)
        if state["step"] == self.killed_after:
            raise Killed


def trained(watch: Watch | None = None) -> tuple[History, dict[str, torch.Tensor]]:
    return tiny_training(SCHEDULE, watch)


def killed_at(folder: Path, step: int) -> None:
    with pytest.raises(Killed):
        trained(EachStep(folder, step))


def assert_same(a: tuple[History, dict], b: tuple[History, dict]) -> None:
    without_seconds = [asdict(History([dataclasses.replace(r, seconds=0) for r in h.rounds], h.best_step,
                                      h.best_validation)) for h in (a[0], b[0])]
    assert without_seconds[0] == without_seconds[1]
    assert all(torch.equal(x, b[1][name]) for name, x in a[1].items())


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[History, dict]:
    return trained()


# --- a training ---

@pytest.mark.parametrize("steps", [(1,), (4,), (5, 5), (7, 8, 12), (20,), (20, 20)], ids=str)
def test_a_training_goes_on_bit_by_bit(tmp_path, uninterrupted, steps):
    """Killed once or several times: within a round, before and after it is scored, after a change of the rate, after
    the last step."""
    for step in steps:
        killed_at(tmp_path, step)
        torch.rand(3)  # what the next process draws before
    assert_same(trained(Checkpoints("training", tmp_path)), uninterrupted)


@pytest.mark.parametrize("workers", [0, 2])
def test_neither_checkpoints_nor_workers_change_a_training(tmp_path, uninterrupted, workers):
    assert_same(trained(EachStep(tmp_path, workers=workers)), uninterrupted)


DAMAGES = {"empty": lambda content: b"", "half": lambda content: content[: len(content) // 2],
           "one bit": lambda content: content[:5000] + bytes([content[5000] ^ 4]) + content[5001:],
           "text": lambda content: b"this is no checkpoint"}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, capsys, uninterrupted, damage):
    killed_at(tmp_path, 8)
    (tmp_path / LAST).write_bytes(DAMAGES[damage]((tmp_path / LAST).read_bytes()))
    assert Checkpoints("training", tmp_path).read()["step"] == 7
    assert f"{tmp_path / LAST}: is damaged" in capsys.readouterr().out
    assert_same(trained(Checkpoints("training", tmp_path)), uninterrupted)


def test_two_damaged_checkpoints_begin_anew(tmp_path, capsys, uninterrupted):
    killed_at(tmp_path, 8)
    for name in (LAST, BEFORE):
        (tmp_path / name).write_bytes(b"")
    assert_same(trained(Checkpoints("training", tmp_path)), uninterrupted)
    said = capsys.readouterr().out
    assert "the one before it is used" in said and "this training starts anew" in said


def test_killed_between_the_two_names(tmp_path):
    """The last state has its new name, the next one not yet the old: the last is found."""
    killed_at(tmp_path, 8)
    os.replace(tmp_path / LAST, tmp_path / BEFORE)
    assert Checkpoints("training", tmp_path).read()["step"] == 8


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk(tmp_path, uninterrupted):
    """A disk with room for two checkpoints and a half: an error that says so; with more room the training goes on."""
    killed_at(tmp_path / "once", 3)
    size = (tmp_path / "once" / LAST).stat().st_size
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(2.5 * size)}", "tmpfs", str(disk)],
                      capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        with pytest.raises(WriteError, match=r"checkpoint\.pt: cannot be written.*space"):
            trained(EachStep(disk))
        assert sorted(p.name for p in disk.iterdir()) == [BEFORE, LAST]
        assert Checkpoints("training", disk).read()["step"] == 2
        subprocess.run(["mount", "-o", f"remount,size={10 * size}", str(disk)], check=True)
        assert_same(trained(EachStep(disk)), uninterrupted)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_checkpoints_are_rarer_where_writing_takes_long(tmp_path, monkeypatch):
    """Every 5 s; but writing takes a twentieth of the time at most."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    keeper = Checkpoints("training", tmp_path, on_write=lambda: now.__setitem__(0, now[0] + 1.0))  # a second each
    now[0] = 4.9
    assert not keeper.due(5.0)
    now[0] = 5.0
    assert keeper.due(5.0) and keeper.due(1.0)
    keeper.write({})
    now[0] += 19.9
    assert not keeper.due(5.0) and not keeper.due(1.0)
    now[0] += 0.2
    assert keeper.due(5.0)


def test_what_one_can_watch(tmp_path):
    """A line a round with each term, and a picture a round; drawn together, two rows a training."""
    for name in ("sagittal", "coronal"):
        history, _ = trained(EachStep(tmp_path / name))
    with open(tmp_path / "coronal" / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "seconds", "learning_rate", "point_term", "consistency_term", "total",
                             "validation"]
    assert [int(r["step"]) for r in rows] == [r.step for r in history.rounds] == [5, 10, 15, 20]
    assert [float(r["point_term"]) for r in rows] == [r.losses["point_term"] for r in history.rounds]
    assert [float(r["validation"]) for r in rows] == [r.validation for r in history.rounds]
    images = sorted((tmp_path / "coronal" / "images").iterdir())
    assert [p.name for p in images] == [f"{s:07d}.png" for s in (5, 10, 15, 20)]

    axes = training(tmp_path).get_axes()
    assert len(axes) == 8
    losses, rate, score, picture = axes[:4]
    assert [line.get_label() for line in losses.get_lines()] == ["point term", "consistency term", "total"]
    assert rate.get_lines()[0].get_ydata().tolist() == pytest.approx([3e-3, 3e-3, 1e-3, 1e-3])
    assert score.get_lines()[0].get_xdata().tolist() == [5, 10, 15, 20]
    assert len(picture.get_images()) == 1 and "step 20" in picture.get_title()
    with pytest.raises(ScanError, match=r"found no history\.csv"):
        training(tmp_path / "nowhere")


def test_tensorboard_is_told_the_same(tmp_path, monkeypatch):
    """Each round once; gone on with, what a killed process may have told of later rounds is hidden."""
    tensorboard = MagicMock()  # the package itself is not among those that are tested with
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", tensorboard)

    class Shown(EachStep):
        def show(self, history: History) -> None:
            super().show(history)
            if history.rounds[-1].step == 10 and tensorboard.SummaryWriter.call_count == 1:
                raise Killed

    for _ in range(2):
        with suppress(Killed):
            history, _ = trained(Shown(tmp_path, tensorboard=True))
    writer, last = tensorboard.SummaryWriter, history.rounds[-1]  # the state that was kept lies before round 2
    assert writer.call_args_list == [call(tmp_path / "tensorboard", purge_step=step) for step in (5, 10)]
    assert [c.args[2] for c in writer().add_image.call_args_list] == [5, 10, 10, 15, 20]
    assert [c.args for c in writer().add_scalar.call_args_list[-5:]] == [
        *((f"loss/{name}", value, 20) for name, value in last.losses.items()),
        ("learning rate", last.learning_rate, 20), ("validation", last.validation, 20)]


def test_tensorboard_is_asked_for_where_it_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert cli.main(["table1", "--tensorboard", "--scans", "3", "--out", str(tmp_path)]) == 1
    assert "--tensorboard: its package is not installed; pip install tensorboard" in capsys.readouterr().err


# --- a run ---

def what() -> dict:
    return {"seed": 0, "data": {"a/1": "x" * 64}, "terms": "P"}


@pytest.mark.parametrize(("change", "said"), [
    ({"seed": 1}, "seed (0 there, 1 now)"), ({"terms": "PC"}, "terms ('P' there, 'PC' now)"),
    ({"data": {"a/1": "y" * 64}}, "data a/1 ('xxx"), ({"data": {"a/1": "x" * 64, "a/2": "z"}}, "data a/2 (None there"),
    ({"code": "new"}, "code (None there, 'new' now)")])
def test_another_run_is_refused_and_nothing_touched(tmp_path, change, said):
    run = Run(tmp_path / "r", tmp_path)
    with begin(run.folder, what):
        assert run("what", lambda: [1, 2]) == [1, 2]
    with pytest.raises(ScanError) as refused, begin(run.folder, lambda: what() | change):
        pass
    assert said in str(refused.value) and "--restart" in str(refused.value)
    with begin(run.folder, what):
        assert run("what", lambda: [3]) == [1, 2]
    with begin(run.folder, lambda: what() | change, restart=True):
        assert run("what", lambda: [3]) == [3]


def test_pieces_are_made_once_and_damaged_ones_again(tmp_path, capsys):
    run = Run(tmp_path, tmp_path)
    for number, scan in ((lambda: {"x": 0.1}, tiny_scan), (lambda: 1 / 0, lambda: 1 / 0)):
        assert run("a/b", number) == {"x": 0.1}
        kept = run("v/w", scan)
        assert np.array_equal(kept.mask, tiny_scan().mask) and kept.name == "tiny"
    (tmp_path / "a" / "b.json").write_text('{"x": ')
    assert run("a/b", lambda: {"x": 0.2}) == {"x": 0.2}
    assert f"{tmp_path / 'a' / 'b.json'}: is damaged" in capsys.readouterr().out
    (tmp_path / "v" / "w.scan.npy").write_bytes(b"half")
    assert np.array_equal(run("v/w", lambda: tiny_scan(1)).image, tiny_scan(1).image)
    assert f"{tmp_path / 'v' / 'w.scan.npy'}: is damaged" in capsys.readouterr().out
    (tmp_path / "v" / "w.scan.npy").unlink()
    assert np.array_equal(run("v/w", lambda: tiny_scan(2)).image, tiny_scan(2).image)


def test_leftovers_of_a_killed_writer_are_swept(tmp_path):
    for folder in (tmp_path, tmp_path / "r", tmp_path / "r" / "sagittal"):
        (folder / ".writing-abc").mkdir(parents=True)
        (folder / ".writing-abc" / "half").write_text("half")
    with begin(tmp_path / "r", what):
        assert list(tmp_path.rglob(".writing-*")) == [tmp_path / ".writing-abc"]  # another command's, perhaps
    os.utime(tmp_path / ".writing-abc", (0, 0))
    with begin(tmp_path / "r", what):
        assert not list(tmp_path.rglob(".writing-*"))


def test_names_stay_in_their_folder(tmp_path):
    run = Run(tmp_path / "r", tmp_path)
    for name in ("scores/../../outside", "/absolute", "a/b c:d"):
        assert run(name, lambda: 1) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["r"] and not Path("/absolute.json").exists()


def test_one_process_at_a_time(tmp_path):
    """A second one is refused, until the first is gone, killed though it be."""
    code = ("import sys, time; from pathlib import Path; from pointseg.runs.run import begin\n"
            "with begin(Path(sys.argv[1]), lambda: {'seed': 0}): print('in', flush=True); time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "r")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    with pytest.raises(ScanError, match="another process works here"), begin(tmp_path / "r", lambda: {"seed": 0}):
        pass
    process.kill()
    process.wait()
    with begin(tmp_path / "r", lambda: {"seed": 0}):
        pass


# --- the commands ---

@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("data") / "scans", 7, seed=1, spacing_mm=3.0)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(profiles.PROFILES, "classroom", TINY)


def table1(scans: Path, out: Path, *more: str) -> int:
    return cli.main(["table1", "--data", str(scans), "--out", str(out), "--cache", str(scans.parent / "cache"), *more])


def contents(out: Path) -> tuple[dict, dict]:
    table = json.loads((out / "table1.json").read_text())
    return ({k: v for k, v in table.items() if k not in ("seconds", "peak_rss_mb")},
            {path.name: weights_in(path) for path in out.glob("*.pt")})


def assert_same_table(a: Path, b: Path) -> None:
    (table, weights), (table_b, weights_b) = contents(a), contents(b)
    assert table == table_b and len(weights) == 17 and weights.keys() == weights_b.keys()
    for name, of_model in weights.items():
        assert all(map(torch.equal, of_model, weights_b[name]))


@pytest.fixture(scope="module")
def whole(scans, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(profiles.PROFILES, "classroom", TINY)
        assert table1(scans, out) == 0
    return out


COMMAND = """
import sys
sys.path[:0] = [{tests!r}]
from tiny import TINY
from pointseg import profiles
from pointseg.commands import main as cli
from pointseg.runs import checkpoint
profiles.PROFILES["classroom"] = TINY
checkpoint.Checkpoints.due = lambda self, least_s: {each_step}
if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
"""


def command(tmp_path: Path, each_step: bool = True) -> Path:
    """The command line with the tiny profile, and a checkpoint after each step or none, as a script."""
    script = tmp_path / "command.py"
    script.write_text(COMMAND.format(tests=str(Path(__file__).parents[1]), each_step=each_step))
    return script


@pytest.mark.posix
def test_table1_killed_at_random_moments(scans, whole, tmp_path):
    """Five times, wherever it is; each time what has a name is whole, and the end is that of an undisturbed run."""
    rng, kills = random.Random(1), 0
    arguments = [sys.executable, str(command(tmp_path)), "table1", "--data", str(scans), "--out", str(tmp_path / "out"),
                 "--cache", str(tmp_path / "cache")]
    while True:
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            out, _ = process.communicate(timeout=rng.uniform(4, 8) if kills < 5 else None)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
        for path in [p for p in (tmp_path / "out").rglob("*") if not any(".writing-" in part for part in p.parts)]:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".pt":
                read_torch(path)
    assert process.returncode == 0, out.decode()
    assert kills >= 2
    assert_same_table(tmp_path / "out", whole)


def test_a_finished_table1_is_told_again_at_once(scans, whole, tmp_path):
    """Nothing is trained; a model that was replaced is trained again, and nothing else.  Threes are put together."""
    copy = shutil.copytree(whole, tmp_path / "copy")
    before = {path.name: path.stat().st_mtime_ns for path in copy.glob("*.pt")}
    shutil.copy(copy / "coronal.pt", copy / "reference_sagittal.pt")
    assert table1(scans, copy) == 0
    assert {name for name in before if (copy / name).stat().st_mtime_ns != before[name]} == {
        "reference_sagittal.pt", "reference.pt", "result.pt"}
    assert_same_table(copy, whole)


@pytest.mark.parametrize("more", [
    ["--seed", "1"], ["--terms", "PC"], ["--batch", "5"], ["--labels", "slices"], ["--validation", "masks"],
    ["--seconds", "100", "22", "1"], ["--rounds", "2"]], ids=str)
def test_table1_with_other_arguments_is_refused(scans, whole, capsys, more):
    before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    assert table1(scans, whole, *more) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("pointseg table1: ") and "holds another run" in error and more[0][2:] in error
    assert before == {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}


def test_options_reach_the_plan_and_what_it_draws(scans, tmp_path):
    """Labels of the kind asked for at the price asked for, chosen by themselves or by masks; rivals for that price."""
    more = ["--labels", "slices", "--validation", "masks", "--rounds", "3", "--seconds", "60", "20", "1.5"]
    given, usual = (cli.chosen_plan(cli.parser().parse_args(["table1", "--cache", str(tmp_path), *options]), scans)
                    for options in (more, []))
    for plan, expected in ((given, ("slices", True, 3, Seconds(60, 20, 1.5))), (usual, ("points", False, 1, BEARMAN))):
        assert (plan.labels, plan.validation_masks, plan.rounds, plan.seconds) == expected
    assert {key for key, value in given.identity.items() if value != usual.identity[key]} == {
        "labels", "validation masks", "seconds", "rounds"}
    prepared = Scans([tiny_scan(0), tiny_scan(1)], [tiny_scan(2)])
    labelled, drawn = given.labelled(prepared), draw_labels(prepared, "slices", 0, given.seconds).train
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(labelled.train, drawn, strict=True))
    assert labelled.validation is prepared.validation is not usual.labelled(prepared).validation
    rivals = [plan.rivals(prepared)["slices"].train[0] for plan in (given, usual)]
    assert np.array_equal(rivals[0].mask, drawn[0].mask) and len(rivals[0].values) > len(rivals[1].values)  # cheaper


@pytest.mark.parametrize(("more", "said"), [
    ("--labels circles", "invalid choice: 'circles'"), ("--validation none", "invalid choice: 'none'"),
    ("--seconds 240 22", "expected 3 arguments"), ("--seconds 0 22 1", "0.0 is no time"), ("--rounds 0", "than 1"),
    ("--seconds 240 22 nan", "nan is no time"), ("--seconds long 22 1", "invalid number value: 'long'")])
def test_nonsense_is_refused_with_the_options_name(capsys, more, said):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["table1", *more.split()])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert more.split()[0] in error and said in error


def test_table1_with_other_data_or_code_is_refused(scans, whole, tmp_path, capsys, monkeypatch):
    data = shutil.copytree(scans, tmp_path / "scans")
    cases = read_manifest(data)
    shutil.copy(cases[1].image, cases[0].image)
    assert table1(data, whole) == 1
    assert f"data {cases[0].name}" in capsys.readouterr().err
    package = shutil.copytree(identity.PACKAGE, tmp_path / "package")
    (package / "fusion.py").write_text("1 / 0")
    monkeypatch.setattr(identity, "PACKAGE", package)
    assert table1(scans, whole) == 1
    assert "different in code (" in capsys.readouterr().err


def test_models_side_by_side_are_those_one_after_the_other(scans, tmp_path):
    """Two processes at a time, with the threads that one of them has."""
    results = []
    for at_once in ("1", "2"):
        out = tmp_path / at_once
        arguments = [sys.executable, str(command(tmp_path, each_step=False)), "table1", "--data", str(scans), "--out",
                     str(out), "--cache", str(tmp_path / "cache"), "--at-once", at_once]
        subprocess.run(arguments, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        results.append(out)
    assert_same_table(*results)


def test_seeds_report_mean_spread_and_interval(scans, whole, tmp_path, capsys):
    """The first seed's run is there already, and gone on with."""
    shutil.copytree(whole, tmp_path / "seed0")
    assert table1(scans, tmp_path, "--seeds", "2") == 0
    said = capsys.readouterr().out
    table = json.loads((tmp_path / "table1.json").read_text())
    each = [json.loads((tmp_path / f"seed{s}" / "table1.json").read_text()) for s in (0, 1)]
    assert table["seeds"] == [0, 1] and [t["result"] for t in table["tables"]] == [t["result"] for t in each]
    for name in (*MODELS, "ratio", "pseudo_mask"):
        values = [t[name] for t in each]
        assert table["mean"][name] == pytest.approx(np.mean(values))
        assert table["spread"][name] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
        if values[0] != values[1]:
            expected = stats.t.interval(0.95, 1, np.mean(values), stats.sem(values))
            assert table["interval"][name] == pytest.approx(list(expected))
    assert "with 2 seeds" in said and "95 % interval" in said
    assert_same_table(tmp_path / "seed0", whole)


def test_train_goes_on_and_keeps_what_one_can_watch(scans, tmp_path, capsys, monkeypatch):
    script, model = command(tmp_path), tmp_path / "sagittal.pt"
    arguments = ["train", "--data", str(scans), "--cache", str(tmp_path / "cache"), "-o", str(model)]
    process = subprocess.Popen([sys.executable, str(script), *arguments], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    last = tmp_path / "sagittal-training" / LAST
    while not last.is_file() and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not model.exists()
    monkeypatch.setattr(cli, "find_spec", lambda name: name == "tensorboard")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", tensorboard := MagicMock())
    assert cli.main([*arguments, "--tensorboard"]) == 0
    assert [c.args[0] for c in tensorboard.SummaryWriter.call_args_list] == [last.with_name("tensorboard")]
    assert "best validation" in capsys.readouterr().out
    assert not last.exists() and (tmp_path / "sagittal-training" / "history.csv").is_file()
    assert cli.main([*arguments[:-1], str(tmp_path / "again.pt")]) == 0
    weights = [read_torch(tmp_path / name)["weights"] for name in ("sagittal.pt", "again.pt")]
    assert all(torch.equal(x, weights[1][k]) for k, x in weights[0].items())
    assert cli.main([*arguments, "--labels", "masks"]) == 1
    assert "labels ('points' there, 'masks' now)" in capsys.readouterr().err


def test_a_model_of_masks_is_the_reference(scans, whole, tmp_path):
    path = tmp_path / "masks.pt"
    assert cli.main(["train", "--data", str(scans), "--cache", str(tmp_path / "cache"), "--labels", "masks",
                     "-o", str(path)]) == 0
    weights, expected = (read_torch(p)["weights"] for p in (path, whole / "reference_sagittal.pt"))
    assert all(torch.equal(x, expected[name]) for name, x in weights.items()) and len(weights) == len(expected)
