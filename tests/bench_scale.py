"""Memory and time of a training step with 10 and with 500 scans, prepared once into files and read from there.

    python tests/bench_scale.py [--scans 10 500] [--steps 150]

Each count trains in a process of its own, whose peak (VmHWM, Linux) counts everything: libraries, network, files
mapped.  Scans are small synthetic ones, distinct in every voxel; preparing them takes a minute.  The processes take
turns, twice, since the machine's speed drifts; the time is the mean of both turns' median steps.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from pointseg.datasets.manifest import read_manifest
from pointseg.datasets.phantom import write_phantoms
from pointseg.points import draw_points
from pointseg.procedure import terms_named
from pointseg.profiles import CLASSROOM
from pointseg.runs.volumes import prepare_into
from pointseg.slices import SliceDataset
from pointseg.train import Watch, training_step

PROFILE = CLASSROOM


def train(folder: Path, count: int, steps: int) -> None:
    """Prints the peak in MB and the median step in ms."""
    prepared = prepare_into(folder / "cache")
    scans = [prepared(case, PROFILE.grid_mm) for case in read_manifest(folder / "scans")[:count]]
    dataset = SliceDataset(draw_points(scans, 0), "sagittal", 6, PROFILE.input_px, PROFILE.augmentation, 0,
                           CLASSROOM.extent_radius_mm)
    network = PROFILE.network(6, 0).to(memory_format=torch.channels_last)
    optimizer, terms, seconds = torch.optim.Adam(network.parameters(), 1e-3), terms_named(PROFILE.terms, PROFILE), []
    batches = Watch().steps(dataset, PROFILE.weak.batch, 0)(0)
    for _ in range(steps):
        start = time.perf_counter()
        batch, move = next(batches)
        training_step(network, batch, move, terms, optimizer)["total"].item()
        if len(batch[0]) == PROFILE.weak.batch:  # an epoch's last one may be smaller, and few scans have many epochs
            seconds.append(time.perf_counter() - start)
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1024, 1e3 * statistics.median(seconds))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--scans", nargs="+", type=int, default=[10, 500])
    p.add_argument("--steps", type=int, default=150)
    p.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    o = p.parse_args()
    if o.train:
        train(Path(o.train[0]), int(o.train[1]), o.steps)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantoms(folder / "scans", max(o.scans), 0, spacing_mm=3.0)
        for case in tqdm(read_manifest(folder / "scans"), "preparing", unit="scan"):
            prepare_into(folder / "cache")(case, PROFILE.grid_mm)
        size_mb = sum(f.stat().st_size for f in (folder / "cache").iterdir()) / 2**20
        print(f"{max(o.scans)} scans of 3 mm, prepared for a grid of {PROFILE.grid_mm:g} mm: {size_mb:.0f} MB of files")
        found = {n: [] for n in o.scans}
        for n in 2 * o.scans:
            said = subprocess.run([sys.executable, __file__, "--steps", str(o.steps), "--train", name, str(n)],
                                  check=True, capture_output=True, text=True).stdout
            found[n].append([float(x) for x in said.split()[-2:]])
        peaks, steps = ({n: sum(turn[i] for turn in found[n]) / 2 for n in o.scans} for i in (0, 1))
        for n in o.scans:
            print(f"{n:>5} scans: peak {peaks[n]:.0f} MB ({peaks[n] / peaks[o.scans[0]] - 1:+.1%}, asked: within 10%), "
                  f"step {steps[n]:.1f} ms ({steps[n] / steps[o.scans[0]] - 1:+.1%}, asked: within 5%)")


if __name__ == "__main__":
    main()
