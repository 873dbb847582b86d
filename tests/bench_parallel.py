"""`pointseg train` by two processes with a thread each (torchrun) against one process with two threads.

    python tests/bench_parallel.py [--profile lesson] [--scans 12]

Prints the median milliseconds of a step, with the share of scoring: every process scores all validation scans.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from pointseg.datasets.phantom import write_phantoms


def run(folder: Path, profile: str, processes: int, threads: int) -> float:
    start = [sys.executable] if processes == 1 else [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    subprocess.run([*start, "-m", "pointseg", "train", "--profile", profile, "--data", str(folder / "scans"), "--cache",
                    str(folder / "cache"), "-o", str(folder / "m.pt"), "--restart"], check=True, capture_output=True,
                   env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    rounds = json.loads((folder / "m-training" / "done.json").read_text())["history"]["rounds"]
    return 1e3 * float(np.median(np.diff([r["seconds"] for r in rounds]) / np.diff([r["step"] for r in rounds])))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--profile", default="lesson")
    p.add_argument("--scans", type=int, default=12)
    o = p.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_phantoms(Path(name) / "scans", o.scans, 0, spacing_mm=2.0)
        times = np.array([[run(Path(name), o.profile, *how) for how in ((1, 2), (2, 1))] for _ in range(3)])
    one, two = np.median(times, axis=0)
    print(f"{o.profile}: {one:.0f} ms a step with two threads, {two:.0f} ms with two processes: {one / two:.2f}x")


if __name__ == "__main__":
    main()
