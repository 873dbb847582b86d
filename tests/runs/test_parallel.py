"""Several processes as one: the same training, and an end for all where one is lost."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pointseg.commands import main as cli
from pointseg.datasets.phantom import write_phantoms
from pointseg.datasets.split import PARTS
from pointseg.network import FCN8VGG16, BatchDropout, BatchNorm
from pointseg.predict import Model
from pointseg.runs import parallel
from pointseg.runs.models import save_model
from pointseg.runs.parallel import Part, part_of, share, side_by_side
from pointseg.runs.weights import read_torch
from pointseg.volume import ScanError

TESTS = Path(__file__).parents[1]
ALONE = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # a thread each, and no GPU
SCRIPT = """
import dataclasses, sys
sys.path[:0] = [{tests!r}]
from tiny import TINY
from pointseg import network, profiles, train
from pointseg.commands import main as cli
profiles.PROFILES["classroom"] = dataclasses.replace(TINY, name="tiny", terms="PCES", batch_norm={batch_norm},
                                                     point_weighting=0.65)
{more}
if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
"""
DOUBLE = """  # sums in another order then differ by nothing that counts
from pointseg.profiles import Profile
before, step = Profile.network, train.training_step
Profile.network = lambda self, *a: before(self, *a).double()
train.training_step = lambda net, batch, move, terms, opt, weights=None, part=None, micro=None: step(
    net, (batch[0].double(), *batch[1:]), move, terms, opt, None if weights is None else weights.double(), part, micro)
apply = network.functional_call
network.functional_call = lambda net, weights, x: apply(net, weights, x.double())
"""
STEPS = """
import copy, sys
sys.path[:0] = [{tests!r}]
import torch
from tiny import TERMS, tiny_network
from pointseg.runs import parallel
from pointseg.losses import Move
from pointseg.train import distributed, training_step

def own_term(step):
    return step.logits.square().mean()

terms = [*TERMS, (0.1, own_term)]
with parallel.together():
    network = tiny_network({batch_norm}, 6).double().train()
    trained = distributed(network) if parallel.world_size() > 1 else network
    optimizer, weights = torch.optim.SGD(network.parameters(), 0.1), torch.arange(1, 7) / 3.0
    states = []
    for total in (3, 1, 2, 1, 4):
        torch.manual_seed(total)
        batch = (torch.rand(total, 3, 64, 32, dtype=torch.float64), torch.randint(6, (total, 64, 32)).byte(),
                 torch.rand(total, 6, 64, 32) < 0.5)
        batch[1][torch.rand(total, 64, 32) < 0.9] = 255
        part = parallel.part_of(total)
        values = training_step(trained, tuple(x[part.first : part.first + part.count] for x in batch), Move(True, 1),
                               terms, optimizer, weights.double(), part)
        assert list(values) == [term.__name__ for _, term in terms] + ["total"]
        states.append([values, copy.deepcopy(network.state_dict())])
    if parallel.rank() == 0:
        torch.save(states, sys.argv[1])
"""
SLOW = """
import time
step = train.training_step
def slow(*a):
    time.sleep(0.3)
    return step(*a)
train.training_step = slow
"""


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("data") / "scans", 7, seed=1, spacing_mm=3.0)


def command(folder: Path, processes: int, batch_norm: bool = True, more: str = "") -> list[str]:
    script = folder / "command.py"
    script.write_text(SCRIPT.format(tests=str(TESTS), batch_norm=batch_norm, more=more))
    return [*launcher(processes), str(script)]


def launcher(processes: int) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(torchrun if processes > 1 else [])]


def train(folder: Path, scans: Path, processes: int, *options: str, **how) -> Path:
    """-> the model's path"""
    folder.mkdir()
    model = folder / "model.pt"
    arguments = ["train", "--data", str(scans), "--cache", str(folder / "cache"), "-o", str(model), *options]
    done = subprocess.run([*command(folder, processes, **how), *arguments], capture_output=True, text=True,
                          env=ALONE, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best validation Dice_wi") == 1  # one process speaks
    return model


@pytest.mark.parametrize("batch_norm", [True, False], ids=["norm", "plain"])
def test_two_processes_train_as_one(scans, tmp_path, batch_norm):
    """All four terms, dropout, batches of 4 and the smaller ones at an epoch's end: the same curve, the same weights.

    In float64: what differs then is not rounding.  Batch 3 of two processes: two slices and one.
    """
    how = {"batch_norm": batch_norm, "more": DOUBLE}
    one, two = (train(tmp_path / str(n), scans, n, "--batch", "3", "--precision", "float32", **how) for n in (1, 2))
    histories = [json.loads((m.with_name("model-training") / "done.json").read_text())["history"] for m in (one, two)]
    for a, b in zip(histories[0]["rounds"], histories[1]["rounds"], strict=True):
        assert list(a["losses"]) == list(b["losses"]) and len(a["losses"]) == 6
        np.testing.assert_allclose(list(b["losses"].values()), list(a["losses"].values()), rtol=1e-9)
        assert a["validation"] == b["validation"]  # counts, which two processes share and add up
    weights = [torch.load(m, weights_only=True)["weights"] for m in (one, two)]
    for name, x in weights[0].items():
        if not (batch_norm and name.startswith("features") and name.endswith("bias") and weights[0][name].ndim == 1
                and name.replace("bias", "running_mean") not in weights[0]):  # before a norm it has no effect
            tolerance = 1e-3 if name.endswith("running_mean") else 1e-6  # which follows the bias without effect
            torch.testing.assert_close(weights[1][name], x, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("batch_norm", [True, False], ids=["norm", "plain"])
def test_steps_with_fewer_slices_than_processes(tmp_path, batch_norm):
    """An epoch's last batch may be one slice: the other processes take part without any."""
    script, found = tmp_path / "steps.py", []
    script.write_text(STEPS.format(tests=str(TESTS), batch_norm=batch_norm))
    for processes in (1, 2, 3):
        subprocess.run([*launcher(processes), str(script), str(tmp_path / "state.pt")], check=True, timeout=100,
                       env=ALONE)
        found.append(torch.load(tmp_path / "state.pt", weights_only=True))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-12)


def test_two_processes_are_one_that_takes_the_same_pieces(scans, tmp_path):
    """In float32, to the last bit: the same sums in the same order.  Without batch norm, which is never in pieces."""
    two = train(tmp_path / "two", scans, 2, "--batch", "2", "--precision", "float32", batch_norm=False)
    one = train(tmp_path / "one", scans, 1, "--batch", "2", "--precision", "float32", "--micro-batch", "1",
                batch_norm=False)
    weights = [torch.load(m, weights_only=True)["weights"] for m in (one, two)]
    for name, x in weights[0].items():
        assert torch.equal(weights[1][name], x), name


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_rank_ends_all(scans, tmp_path, lost):
    """Within 30 seconds, not zero, and said which one; started again, the training goes on and ends."""
    model = tmp_path / "model.pt"
    arguments = ["train", "--data", str(scans), "--cache", str(tmp_path / "cache"), "-o", str(model)]
    process = subprocess.Popen([*command(tmp_path, 2, more=SLOW), *arguments], stdout=subprocess.PIPE,
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
    assert re.search(rf"rank +: {lost} .*\n.*exitcode +: -9", cause) and f"rank      : {1 - lost}" not in cause
    assert not model.exists()
    for pid in ranks.values():
        assert not Path(f"/proc/{pid}").exists()
    done = subprocess.run([*command(tmp_path, 2), *arguments], capture_output=True, text=True, timeout=200,
                          env=ALONE)
    assert done.returncode == 0 and model.is_file() and read_torch(model)["weights"]


def test_bad_input_ends_all(tmp_path):
    """No process waits for another."""
    process = subprocess.run([*command(tmp_path, 2), "train", "--data", "nowhere", "-o", str(tmp_path / "m.pt")],
                             capture_output=True, text=True, timeout=100, env=ALONE)
    assert process.returncode != 0 and "nowhere: no such folder" in process.stderr


def test_two_processes_evaluate_as_one(scans, tmp_path):
    """The scans are shared; the scores are those of all, in their order, printed and written once."""
    model = tmp_path / "model.pt"
    save_model(model, Model(FCN8VGG16(6, 1 / 16, hidden=8), "sagittal", 4.0, 96, "tiny", 0, dict.fromkeys(PARTS, [])))
    said = []
    for n in (1, 2):
        done = subprocess.run([*command(tmp_path, n), "evaluate", str(model), "--data", str(scans), "--json",
                               str(tmp_path / f"{n}.json")], capture_output=True, text=True, timeout=200, env=ALONE)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1] and "7 scans" in said[0]
    assert (tmp_path / "1.json").read_text() == (tmp_path / "2.json").read_text()


def test_table1_is_not_for_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["table1"]) == 1
    assert "--at-once" in capsys.readouterr().err


# --- exchanges ---

@pytest.fixture
def other(monkeypatch) -> Connection:
    """What rank 1 of 2 holds, where this process is rank 0."""
    here, there = Pipe()
    monkeypatch.setattr(parallel, "_pipes", {1: here})
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    return there


@pytest.mark.parametrize("mine", [torch.tensor(0.5), torch.rand(3, 2), torch.rand(4, 3, dtype=torch.float64).t(),
                                  torch.ones(2, 2, dtype=torch.bfloat16), torch.arange(3), torch.tensor([True, False])])
def test_a_pipe_carries_every_tensor(other, mine):
    theirs = ~mine if mine.dtype == torch.bool else mine + 1
    other.send_bytes(theirs.contiguous().view(-1).view(torch.uint8).numpy())
    assert torch.equal(parallel.gathered(mine), torch.stack([mine, theirs]))
    assert other.recv_bytes() == mine.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def test_large_tensors_do_not_fill_a_pipe(other, monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_gather", lambda out, x: [o.copy_(x) for o in out])
    x = torch.rand(parallel.PIPE_BYTES)
    assert torch.equal(parallel.gathered(x), torch.stack([x, x])) and not other.poll()


@pytest.mark.parametrize(("size", "said"), [(8, "its message is too short"), (16, "")])
def test_who_is_at_another_place_is_named(other, size, said):
    other.send_bytes(bytes(size))
    with pytest.raises(torch.distributed.DistNetworkError, match=f"rank 1 cannot be heard: .*{said}"):
        parallel.gathered(torch.rand(3))


def test_who_is_lost_or_silent_is_named(other, monkeypatch):
    monkeypatch.setattr(parallel, "SILENCE", timedelta(seconds=0.1))
    with pytest.raises(torch.distributed.DistNetworkError, match="rank 1 cannot be heard: nothing came for 0:00:00"):
        parallel.gathered(torch.rand(3))
    other.close()
    with pytest.raises(torch.distributed.DistNetworkError, match="rank 1 cannot be heard"):
        parallel.gathered(torch.rand(3))


@pytest.mark.parametrize("pipes", [2, 0])
def test_three_processes_are_joined_each_with_each(tmp_path, pipes):
    """Also with one that has other things to do first; and without pipes, where a socket's path would be too long."""
    long = tmp_path / ("long" * 30)
    long.mkdir()
    script = tmp_path / "sum.py"
    script.write_text("""
import time, torch
from pointseg.runs import parallel
with parallel.together():
    r = parallel.rank()
    time.sleep(r == 1)
    assert len(parallel._pipes) == PIPES
    for _ in range(100):
        assert parallel.gathered(torch.full((3, 2), r)).tolist() == [[[i] * 2] * 3 for i in range(3)]
    assert parallel.all_sum(torch.tensor(r + 0.5)) == 4.5
assert not parallel._pipes
""".replace("PIPES", str(pipes)))
    subprocess.run([*launcher(3), str(script)], check=True, timeout=100,
                   env=ALONE | ({} if pipes else {"TMPDIR": str(long)}))


# --- parts of a batch ---

@pytest.mark.parametrize("total", range(1, 10))
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_every_slice_has_one_process(monkeypatch, total, processes):
    parts, shares = [], []
    for r in range(processes):
        monkeypatch.setattr("pointseg.runs.parallel.rank", lambda r=r: r)
        monkeypatch.setattr("pointseg.runs.parallel.world_size", lambda: processes)
        parts.append(part_of(total))
        shares += share(range(total))
    assert [i for p in parts for i in range(p.first, p.first + p.count)] == list(range(total))
    assert max(p.count for p in parts) - min(p.count for p in parts) <= 1
    assert sorted(shares) == list(range(total))


def test_dropout_is_cut_from_the_whole_batchs():
    whole, parts, x = BatchDropout(), BatchDropout(), torch.rand(6, 40, 3, 2)
    torch.manual_seed(0)
    expected = whole(x)
    assert (expected == 0).any() and torch.equal(expected, (torch.manual_seed(0), nn.Dropout2d()(x))[1])
    for first, count in ((0, 6), (0, 2), (2, 3), (5, 1), (3, 0)):
        parts.part = Part(first, count, 6)
        torch.manual_seed(0)
        assert torch.equal(parts(x[first : first + count]), expected[first : first + count])
    parts.eval()
    assert torch.equal(parts(x), x)


def test_alone_a_norm_is_torchs():
    x, ours, theirs = torch.randn(3, 4, 5, 6), BatchNorm(4), nn.BatchNorm2d(4)
    assert torch.equal(ours(x), theirs(x)) and torch.equal(ours.running_var, theirs.running_var)
    assert isinstance(FCN8VGG16(2, 1 / 16, True, hidden=8).features[1], BatchNorm)


def test_a_process_that_fails_is_named():
    with pytest.raises(ScanError, match=r"second: its process ended with exit status 1"):
        side_by_side(_fail_at_second, ["first", "second", "third"], 2)


def _fail_at_second(name: str) -> None:
    if name == "second":
        raise ScanError("this one cannot")
    time.sleep(0.1)


