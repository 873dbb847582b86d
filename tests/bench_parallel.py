"""Two processes with a thread each against one process with two threads: how far losses part, and how fast each is.

    python tests/bench_parallel.py [--steps 50] [--only WORD ...]

Both train the same network on the same synthetic scans with the same whole batch of 8.  "Thesis" is the thesis
profile's network with a head of 256 channels (no batch norm) and its rate on the classroom's grid, with ImageNet's
weights where they are to be had; "classroom" is the classroom's, whose batch norm takes 26 further exchanges a step.
float64 tells whether the same is computed.  In float32 every change in the order of a sum sets off a divergence that
grows from step to step: a ReLU or a maximum that decides otherwise.  Two controls show that this has nothing to do with
processes: one process with one thread against one with two, and, without batch norm, two processes against one with one
thread that takes the batch in the same two pieces (`--micro-batch`), which adds up in the same order.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pointseg.datasets.phantom import make_phantom
from pointseg.network import set_mixed_precision
from pointseg.preprocess import prepare
from pointseg.procedure import draw_points, point_weights, terms_named
from pointseg.profiles import CLASSROOM, EXTENT_RADIUS_MM, THESIS
from pointseg.runs import parallel
from pointseg.slices import SliceDataset
from pointseg.train import batch_numbers, distributed, draw_move, endless_batches, training_step

WEIGHTS = Path(__file__).parents[2] / "shared" / "weights" / "vgg16_features_imagenet.pth"
PROFILES = {
    "classroom": replace(CLASSROOM, terms="P"),
    "thesis": replace(THESIS, grid_mm=2.0, input_px=192, hidden=256, terms="P", imagenet=WEIGHTS.is_file(),
                      imagenet_file=WEIGHTS, weak=replace(THESIS.weak, batch=8))}


def train(name: str, double: bool, steps: int, threads: int, pieces: int, out: Path) -> None:
    profile = PROFILES[name]
    torch.set_num_threads(threads)
    set_mixed_precision(False)
    with parallel.together():
        scans = [prepare(make_phantom(seed, spacing_mm=3.0), profile.grid_mm) for seed in range(3)]
        points = draw_points(scans, 0)
        dataset = SliceDataset(points, "sagittal", 6, profile.input_px, profile.augmentation, 0, sparse=True,
                               radius_mm=EXTENT_RADIUS_MM)
        kind = torch.float64 if double else torch.float32
        network = profile.network(6, 0).to(kind, memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(network.parameters(), profile.weak.learning_rate, fused=True)
        weights = point_weights(points, scans, 6, profile.point_weighting).to(kind)
        trained = distributed(network) if parallel.world_size() > 1 else network
        torch.manual_seed(0)
        network.train()
        moves, terms, losses, seconds = np.random.default_rng(0), terms_named(profile.terms, profile), [], []
        batches = endless_batches(dataset, profile.weak.batch, 0)
        for numbers, _ in zip(batch_numbers(len(dataset), profile.weak.batch, 0), range(steps)):
            start = time.perf_counter()
            image, labels, extent = next(batches)
            batch: tuple[Tensor, ...] = (image.to(kind), labels, extent)
            losses.append(training_step(trained, batch, draw_move(moves), terms, optimizer, weights,
                                        parallel.part_of(len(numbers)),
                                        -(-len(numbers) // pieces))["total"].item())
            seconds.append(time.perf_counter() - start)
        if parallel.rank() == 0:
            out.write_text(json.dumps([losses, statistics.median(seconds)]))


def run(name: str, double: bool, steps: int, processes: int, threads: int,
        pieces: int = 1) -> tuple[np.ndarray, float]:
    """-> losses (steps,), median seconds of a step"""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "losses.json"
        start = [sys.executable] if processes == 1 else [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        done = subprocess.run([*start, __file__, "--train", name, str(int(double)), str(threads), str(pieces), str(out),
                               "--steps", str(steps)], capture_output=True, text=True,
                              env=os.environ | {"OMP_NUM_THREADS": str(threads)})
        if done.returncode:
            raise RuntimeError(done.stderr)
        losses, seconds = json.loads(out.read_text())
    return np.array(losses), seconds


def difference(a: np.ndarray, b: np.ndarray) -> str:
    relative = np.abs(a - b) / np.abs(a)
    return f"{relative.max():.1e} (first 10 steps {relative[:10].max():.1e})"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--only", nargs="+", choices=list(PROFILES), default=list(PROFILES), metavar="WORD")
    p.add_argument("--train", nargs=5, help=argparse.SUPPRESS)
    o = p.parse_args()
    if o.train:
        train(o.train[0], o.train[1] == "1", o.steps, int(o.train[2]), int(o.train[3]), Path(o.train[4]))
        return
    for name in o.only:
        one, two, control = (run(name, False, o.steps, *how)[0] for how in ((1, 2), (2, 1), (1, 1)))
        print(f"{name}, float32, {o.steps} steps: losses differ by {difference(one, two)}, asked 1e-5;\n"
              f"    one process with one thread or two: {difference(one, control)}", flush=True)
        if name == "thesis":
            print(f"    same pieces, one thread: {difference(run(name, False, o.steps, 1, 1, pieces=2)[0], two)}")
        times = np.array([[run(name, False, max(1, o.steps // 3), *how)[1] for how in ((1, 2), (2, 1))]
                          for _ in range(3)])
        one_s, two_s = np.median(times, axis=0)
        print(f"{name}, float32: {one_s * 1e3:.0f} ms a step with two threads, {two_s * 1e3:.0f} ms with two "
              f"processes: {np.median(times[:, 0] / times[:, 1]):.2f}x, asked 0.9x", flush=True)
        if name == "classroom":
            steps = min(o.steps, 20)  # in double precision convolutions are slow
            exact, other = (run(name, True, steps, *how)[0] for how in ((1, 2), (2, 1)))
            print(f"{name}, float64, {steps} steps: losses differ by {difference(exact, other)}", flush=True)


if __name__ == "__main__":
    main()
