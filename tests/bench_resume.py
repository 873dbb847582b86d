"""Kill `table1` at random moments, start it again, and compare what it ends with.

    python tests/bench_resume.py [--runs 25] [--kills 1] [--scans 12]

Each run is killed (SIGKILL) at so many random moments of its course and started again each time until it ends.  Prints
whether its table and all weights are those of a run that nobody killed, bit for bit, how many files were unreadable
after a kill, and how much work a kill cost at most: the time since something was last stored, or since the start.  A
run takes about 2.5 minutes on two CPU cores, so 25 of them an hour; --runs 5 --kills 5 is as many kills in less.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from pointseg.datasets.phantom import write_phantoms
from pointseg.runs.cache import read_volumes
from pointseg.runs.experiment import MODELS
from pointseg.runs.weights import read_torch

UNEQUAL = ("seconds", "peak_rss_mb")  # of any two runs


def start(scans: Path, out: Path, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "pointseg", "table1", "--profile", "lesson", "--data", str(scans), "--out",
               str(out), "--cache", str(out.parent / "cache")]
    with open(log, "a") as file:
        return subprocess.Popen(command, stdout=file, stderr=file)


def result(out: Path) -> tuple[dict, dict]:
    table = json.loads((out / "table1.json").read_text())
    weights = {name: read_torch(out / f"{name}.pt")["weights"] for name in MODELS}
    return {key: value for key, value in table.items() if key not in UNEQUAL}, weights


def equal(a: tuple[dict, dict], b: tuple[dict, dict]) -> bool:
    return a[0] == b[0] and all(torch.equal(x, b[1][name][key]) for name, of in a[1].items() for key, x in of.items())


def unreadable(folder: Path) -> list[Path]:
    """Files that are not whole; what lies in a .writing- folder has not been given its name yet."""
    bad = []
    for path in folder.rglob("*"):
        if path.is_dir() or any(p.name.startswith(".writing-") for p in path.parents) or path.name == "lock":
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".pt":
                read_torch(path)
            elif path.suffix in (".scan", ".volume"):
                assert not isinstance(read_volumes(path), str)
            elif path.suffix == ".png":
                assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
        except Exception:
            bad.append(path)
    return bad


def work_lost(started: float, *folders: Path) -> float:
    stored = [p.stat().st_mtime for folder in folders for p in folder.rglob("*") if p.is_file()]
    return time.time() - max([started, *stored])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=int, default=25)
    p.add_argument("--kills", type=int, default=1, help="of each run (default 1)")
    p.add_argument("--scans", type=int, default=12)
    o = p.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scans = write_phantoms(folder / "scans", o.scans, 0, spacing_mm=2.0)
        begin = time.time()
        assert start(scans, folder / "whole", folder / "log").wait() == 0, (folder / "log").read_text()
        whole_s, expected = time.time() - begin, result(folder / "whole")
        print(f"uninterrupted: {whole_s:.0f} s, result {expected[0]['result']:.4f}", flush=True)
        alike, bad, lost = 0, [], []
        for i in range(o.runs):
            out, kills = folder / f"run{i}", 0
            (folder / "cache").rename(folder / f"cache-{i}")  # so that preparing can be hit, too
            while True:
                begin = time.time()
                process = start(scans, out, folder / "log")
                wait_s = rng.uniform(0.5, whole_s / o.kills) if kills < o.kills else None
                try:
                    status = process.wait(wait_s)
                    break
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    kills += 1
                    lost.append(work_lost(begin, out, folder / "cache"))
                    bad += unreadable(out) + unreadable(folder / "cache")
                    print(f"  run {i}: killed after {wait_s:.1f} s, {lost[-1]:.1f} s after something was stored",
                          flush=True)
            same = status == 0 and equal(result(out), expected)
            alike += same
            print(f"run {i}: {kills} kills, {'bit-identical' if same else 'DIFFERENT'}", flush=True)
        print(f"{alike} of {o.runs} runs end bit-identical after {len(lost)} kills (asked: all); {len(bad)} unreadable "
              f"files (asked: 0); at most {max(lost, default=0):.1f} s of work lost a kill (asked: 10)")
        for path in bad:
            print("unreadable:", path)
        if alike < o.runs or bad:
            sys.exit(1)


if __name__ == "__main__":
    main()
