"""Kill `table1` at random moments, start it again, and compare what it ends with.

    python tests/bench_resume.py [--runs 25] [--kills 1] [--scans 12]

Each run is killed (SIGKILL) at so many random moments of its course and started again each time until it ends.  Prints
whether its table and all weights are those of a run that nobody killed, bit for bit, and how much work a kill cost at
most: the time since something was last stored, or since the start.  A run takes about 2.5 minutes on two CPU cores, so
25 of them an hour; --runs 5 --kills 5 is as many kills in less.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tiny import weights_in

from pointseg.datasets.phantom import write_phantoms


def start(scans: Path, out: Path, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "pointseg", "table1", "--profile", "lesson", "--data", str(scans), "--out",
               str(out), "--cache", str(out.parent / "cache")]
    with open(log, "a") as file:
        return subprocess.Popen(command, stdout=file, stderr=file)


def equal(a: Path, b: Path) -> bool:
    tables = [json.loads((out / "table1.json").read_text()) | {"seconds": 0, "peak_rss_mb": 0} for out in (a, b)]
    return tables[0] == tables[1] and all(
        torch.equal(x, y) for path in b.glob("*.pt")
        for x, y in zip(weights_in(a / path.name), weights_in(path), strict=True))


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
        folder, whole = Path(name), Path(name) / "whole"
        scans = write_phantoms(folder / "scans", o.scans, 0, spacing_mm=2.0)
        begin = time.time()
        assert start(scans, whole, folder / "log").wait() == 0, (folder / "log").read_text()
        whole_s, alike, lost = time.time() - begin, 0, []
        print(f"uninterrupted: {whole_s:.0f} s", flush=True)
        for i in range(o.runs):
            out, kills = folder / f"run{i}", 0
            (folder / "cache").rename(folder / f"cache-{i}")  # so that preparing can be hit, too
            while True:
                begin = time.time()
                process = start(scans, out, folder / "log")
                try:
                    status = process.wait(rng.uniform(0.5, whole_s / o.kills) if kills < o.kills else None)
                    break
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    kills += 1
                    lost.append(work_lost(begin, out, folder / "cache"))
            same = status == 0 and equal(out, whole)
            alike += same
            print(f"run {i}: {kills} kills, {'bit-identical' if same else 'DIFFERENT'}", flush=True)
        print(f"{alike} of {o.runs} runs end bit-identical after {len(lost)} kills (asked: all); at most "
              f"{max(lost, default=0):.1f} s of work lost a kill (asked: 10)")
        sys.exit(alike < o.runs)


if __name__ == "__main__":
    main()
