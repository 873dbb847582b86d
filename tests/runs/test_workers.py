"""Processes that make batches: what goes wrong in them is a line, and nothing waits for ever."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pointseg.runs.checkpoint import Checkpoints
from pointseg.runs.processes import room_for_processes
from pointseg.volume import ScanError

CODE = """
import sys
from pathlib import Path
from tiny import QUICK, tiny_training
from pointseg.runs.checkpoint import Checkpoints
from pointseg.volume import ScanError
try:
    tiny_training(QUICK, Checkpoints("training", Path(sys.argv[1]), workers=2))
except ScanError as error:
    print(f"said: {error}")
"""


class Fails:
    """A dataset whose batches cannot be made."""

    def __init__(self, how):
        self.how = how

    def __len__(self):
        return 8

    def batch(self, numbers):
        self.how()

    __getitems__ = batch


def kills_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def has_no_scan():
    raise ScanError("scan.npy: cannot be read any more")


def has_no_room():
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


def has_a_fault():
    raise RuntimeError("a fault of ours")


@pytest.mark.posix
@pytest.mark.parametrize(("how", "said"), [
    (kills_itself, r"--workers 1: a process that makes batches has failed \(.*(killed|exited).*--workers 0$"),
    (has_no_room, r"--workers 1: .*\(unable to allocate shared memory.*/dev/shm.*--workers 0$"),
    (has_no_scan, r"^scan\.npy: cannot be read any more$")])
def test_what_goes_wrong_there_is_one_line(how, said, tmp_path):
    steps = Checkpoints("training", tmp_path, workers=1).steps(Fails(how), 4, 0)
    with pytest.raises(ScanError, match=said) as found:
        next(steps(0))
    assert "\n" not in str(found.value)


def test_a_fault_of_ours_stays_one(tmp_path):
    with pytest.raises(RuntimeError, match="a fault of ours"):
        next(Checkpoints("training", tmp_path, workers=1).steps(Fails(has_a_fault), 4, 0)(0))


def test_processes_that_cannot_be_started():
    with pytest.raises(ScanError, match=r"cannot be started \(.*No space left.*/dev/shm.*--jobs 1$"), \
            room_for_processes("--jobs 1"):
        raise OSError(28, "No space left on device")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize(("size", "full"), [("64k", False), ("4k", True)])
def test_shared_memory_that_is_tiny_or_full(size, full, tmp_path):
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && "
    fill = "head -c 4096 /dev/zero > /dev/shm/full; " if full else ""
    script = f'{mount}{{ {fill}exec "$0" "$@"; }}'
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, sys.executable, "-c", CODE, str(tmp_path)],
                          env=os.environ | {"PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(__file__).parents[1]}"},
                          capture_output=True, text=True, timeout=300)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no disk can be mounted here")
    assert "said: " in done.stdout and "--workers 0" in done.stdout and "/dev/shm" in done.stdout


def test_batches_of_other_processes_are_the_same(tmp_path):
    """As on macOS and Windows, where they get the dataset as a pickle."""
    code = """
import multiprocessing, sys, torch
from pathlib import Path
from tiny import tiny_dataset
from pointseg.runs.checkpoint import Checkpoints
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    batches = [next(Checkpoints("t", Path("."), workers=n).steps(tiny_dataset(), 4, 0)(1))[0] for n in (0, 1)]
    assert all(map(torch.equal, *batches))
"""
    (tmp_path / "code.py").write_text(code)
    subprocess.run([sys.executable, str(tmp_path / "code.py")], check=True, timeout=300, env=os.environ | {
        "PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{Path(__file__).parents[1]}"})
