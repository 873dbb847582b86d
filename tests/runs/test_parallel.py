"""Several processes: they train one model, or several side by side, and all end where one is lost."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pointseg.commands import main as cli
from pointseg.datasets.phantom import write_phantoms
from pointseg.runs import parallel
from pointseg.runs.parallel import Together
from pointseg.runs.processes import side_by_side
from pointseg.volume import ScanError

ALONE = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # a thread each, and no GPU
SCRIPT = """
import sys, time
sys.path[:0] = [{tests!r}]
from tiny import TINY
from pointseg import profiles, train
from pointseg.commands import main as cli
from pointseg.runs import checkpoint
profiles.PROFILES["classroom"] = TINY
step = train.training_step
def slow(*a):
    time.sleep({pause})
    return step(*a)
train.training_step = slow
checkpoint.Checkpoints.due = lambda self, least_s: True
if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("data") / "scans", 7, seed=1, spacing_mm=3.0)


def command(folder: Path, *arguments: str, processes: int = 2, pause: float = 0.0) -> list[str]:
    """The command line with the tiny profile, so many seconds more a step, and a checkpoint after each."""
    script = folder / "command.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[1]), pause=pause))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(torchrun if processes > 1 else []), str(script), *arguments]


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, env=ALONE, timeout=240)


def test_two_processes_train_a_model(scans, tmp_path):
    """One of them speaks and writes."""
    model, data = str(tmp_path / "m.pt"), ["--data", str(scans)]
    done = run(*command(tmp_path, "train", *data, "--terms", "PCES", "--cache", str(tmp_path / "cache"), "-o", model))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best validation Dice_wi") == 1
    history = json.loads((tmp_path / "m-training" / "done.json").read_text())["history"]
    assert [r["step"] for r in history["rounds"]] == [10, 20, 30, 40]
    assert all(np.isfinite(list(r["losses"].values())).all() for r in history["rounds"])
    assert {p.name for p in (tmp_path / "m-training").iterdir()} == {"done.json", "history.csv", "images", "lock",
                                                                     "run.json", "seconds.json"}
    scored = run(*command(tmp_path, "evaluate", model, *data, "--split", "test", processes=1))
    assert scored.returncode == 0 and "Dice_wi" in scored.stdout


@pytest.mark.posix
@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_rank_ends_all(scans, tmp_path, lost):
    """Within 30 seconds, not zero, and said which one; started again, the training goes on and ends."""
    model = tmp_path / "model.pt"
    arguments = ["train", "--data", str(scans), "--cache", str(tmp_path / "cache"), "-o", str(model)]
    process = subprocess.Popen(command(tmp_path, *arguments, pause=0.3), stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, env=ALONE)
    deadline = time.time() + 120
    while not (tmp_path / "model-training" / "checkpoint.pt").is_file():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.2)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    ranks = {int(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0RANK=")[1].split(b"\0")[0]): int(pid)
             for pid in children if b"\0RANK=" in Path(f"/proc/{pid}/environ").read_bytes()}
    start = time.time()
    os.kill(ranks[lost], signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert time.time() - start < 30 and process.returncode != 0
    cause = said.partition("Root Cause")[2]  # of torchrun's summary
    assert re.search(rf"rank +: {lost} .*\n.*exitcode +: -9", cause)
    assert not model.exists() and not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    done = run(*command(tmp_path, *arguments))
    assert done.returncode == 0 and model.is_file()


@pytest.mark.parametrize(("options", "said"), [(["--data", "nowhere"], "nowhere: no such folder"),
                                               (["--batch", "5"], "--batch: found 5 slices for 2 processes")])
def test_bad_input_ends_all(scans, tmp_path, options, said):
    """No process waits for another, and a line says why."""
    done = run(*command(tmp_path, "train", "--data", str(scans), "--cache", str(tmp_path / "cache"), "-o",
                        str(tmp_path / "m.pt"), *options))
    assert done.returncode != 0 and not (tmp_path / "m.pt").exists()
    lines = {line.partition("pointseg train: ")[2] for line in done.stderr.splitlines() if "pointseg train: " in line}
    assert len(lines) == 1 and said in lines.pop()  # from each process that was not ended before it could say so


@pytest.mark.parametrize("arguments", [["table1"], ["evaluate", "m.pt", "--data", "d"]], ids=lambda a: a[0])
def test_only_train_is_for_torchrun(monkeypatch, capsys, arguments):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(arguments) == 1
    said = capsys.readouterr().err
    assert "was started by torchrun" in said and ("--at-once" in said) == (arguments[0] == "table1")


@pytest.mark.parametrize("start", [0, 5])
def test_processes_share_an_endless_sequence_of_epochs(monkeypatch, tmp_path, start):
    """7 items in batches of 6 by 3 processes: equal parts, and together whole epochs, one after the other."""
    monkeypatch.setattr(parallel, "world_size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        numbers = Together("training", tmp_path).numbers(7, 6, 0, start)
        parts.append(list(itertools.islice(numbers, 7)))
    assert {len(numbers) for part in parts for numbers in part} == {2}
    together = [i for of_step in zip(*parts) for numbers in of_step for i in numbers]
    assert len(set(together)) == len(together) == 42
    if start == 0:
        assert [sorted(together[e : e + 7]) for e in range(0, 42, 7)] == np.arange(42).reshape(6, 7).tolist()
    else:
        assert set(range(35, 70)) <= set(together) < set(range(28, 77))  # from item 30 on
    with pytest.raises(ScanError, match="--batch: found 4 slices for 3 processes"):
        parallel.check_equal_parts(4)


@pytest.mark.posix
def test_a_model_that_fails_does_not_stop_those_beside_it(tmp_path):
    with pytest.raises(ScanError, match="this one cannot"):
        side_by_side(_fail_at_second, [str(tmp_path / name) for name in ("first", "second")], 2)
    assert [p.name for p in tmp_path.iterdir()] == ["first"]
    with pytest.raises(ScanError, match=r"killed was killed, most likely for lack of memory.*--at-once"):
        side_by_side(_fail_at_second, ["killed"], 2)


@pytest.mark.posix
@pytest.mark.parametrize("awaited", ["begun", "0"])
def test_ctrl_c_ends_models_side_by_side(awaited, tmp_path):
    """It reaches all processes of a terminal, importing or at work: one traceback at most, that of the first."""
    script = tmp_path / "script.py"
    script.write_text("""
import sys, time
from pathlib import Path
def work(name):
    Path(name).touch()
    time.sleep(100)
if __name__ == "__main__":
    from pointseg.runs.processes import side_by_side
    Path("begun").touch()
    side_by_side(work, "0123", 2)
""")
    process = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                               env=ALONE, start_new_session=True)
    while not (tmp_path / awaited).exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert said.count("Traceback") == 1 and said.endswith("KeyboardInterrupt\n")


def _fail_at_second(name: str) -> None:
    if name.endswith("second"):
        raise ScanError("this one cannot")
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1)
    Path(name).touch()
