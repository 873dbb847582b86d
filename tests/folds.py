"""Six folds of patients, and runs that go on where they stopped: what the benchmarks that compare methods share."""

import argparse
import gzip
import json
import multiprocessing
import os
import pickle
import random
import re
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pointseg.kernels import confusion_matrix, resample_argmax
from pointseg.levels import in_order
from pointseg.network import device
from pointseg.preprocess import Prepared, Scans, prepare
from pointseg.profiles import CLASSROOM
from pointseg.report.compare import Row, difference, interval, read_rows, resampled, write_rows
from pointseg.train import Watch
from pointseg.volume import CLASSES

FOLDS = 6
AS_IT_IS, ORDERED = "as it is", "levels in order"  # answers


class Data(NamedTuple):
    scans: dict[str, Prepared]
    own: dict[str, np.ndarray]  # masks in the scans' own geometry
    patients: dict[str, str]


class Run(NamedTuple):
    line: str
    repeat: int  # each has its own labels, first weights and order
    fold: int

    @property
    def seed(self) -> int:
        return 100 * self.repeat + self.fold

    @property
    def file(self) -> str:
        return f"{re.sub('[^A-Za-z0-9+]+', '_', self.line)}/{self.repeat}-{self.fold}.csv"


class Silent(Watch):
    """Shows nothing."""

    def start(self, training) -> None:
        pass

    def after_round(self, training) -> None:
        pass

    def end(self) -> None:
        pass


def write_arrays(arrays: Path, data: Path, sources: Sequence[str]) -> None:
    """Prepared scans without a flaw, and their masks in their own geometry: all that a run needs."""
    from pointseg.datasets.manifest import read_manifest

    content = Data({}, {}, {})
    for case in read_manifest(data, sources):
        if not case.flaw:
            volume = case.read()
            scan = prepare(volume, CLASSROOM.grid_mm)
            content.scans[case.name] = (scan.image, scan.mask, scan.spacing_mm, scan.name, scan.modality)
            content.own[case.name], content.patients[case.name] = volume.mask, case.patient
    arrays.parent.mkdir(parents=True, exist_ok=True)
    arrays.write_bytes(gzip.compress(pickle.dumps(tuple(content)), 5))


@cache
def read_arrays(arrays: Path) -> Data:
    scans, own, patients = pickle.loads(gzip.decompress(arrays.read_bytes()))
    return Data({name: Prepared(*fields) for name, fields in scans.items()}, own, patients)


def scans_of(data: Data, fold: int) -> Scans:
    """One sixth of the patients is tested, the next sixth validates, so in six folds each does once."""
    patients = sorted(set(data.patients.values()))
    random.Random("folds").shuffle(patients)
    sixth = {patient: i % FOLDS for i, patient in enumerate(patients)}
    parts: dict[str, list[Prepared]] = {"train": [], "validation": [], "test": []}
    for name, scan in data.scans.items():
        part = {fold: "test", (fold + 1) % FOLDS: "validation"}.get(sixth[data.patients[name]], "train")
        parts[part].append(scan)
    return Scans(**parts)


def confusions(probabilities: np.ndarray, scan: Prepared, own: np.ndarray) -> dict[str, np.ndarray]:
    """Of each answer the confusion matrix in the scan's own geometry.   probabilities (6, z, y, x), own: its mask"""
    scores = {AS_IT_IS: probabilities, ORDERED: in_order(probabilities.copy(), scan.spacing_mm)}
    return {answer: confusion_matrix(own, resample_argmax(s, own.shape), len(CLASSES)) for answer, s in scores.items()}


def work_through(runs: Sequence[Run], do: Callable[[Path, Run], list[Row]], seconds: Callable[[Run], float],
                 o: argparse.Namespace) -> None:
    """Do what is not done yet, each run in one process, and write its rows when it ends; a line for each.

    seconds: about how long a run takes on one core; what is printed first.
    """
    done = {run_of(row) for row in collect(o)}
    missing = [run for run in runs if run not in done]
    hours = sum(map(seconds, missing)) / 3600
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are done; the others take about {hours:.1f} core hours, "
          f"{hours / o.processes:.1f} hours with {o.processes} processes", flush=True)
    os.environ["TQDM_DISABLE"] = "1"  # of the processes that begin here: bars of several runs would mix
    end = time.monotonic() + 60 * o.minutes
    with ProcessPoolExecutor(o.processes, multiprocessing.get_context("spawn"), one_core) as pool:
        jobs = {pool.submit(keep, do, o.arrays, o.out, run, end): run for run in missing}
        for job in as_completed(jobs):
            if (took := job.result()) is not None:
                print(f"{jobs[job].file}: {took:.0f} s", flush=True)


def measure(lines: Collection[str], do: Callable[[Path, Run], list[Row]], seconds: Callable[[Run, float], float],
            o: argparse.Namespace) -> list[Row]:
    """Do the runs that are asked for, publish where that is asked for.   -> all rows that there are

    seconds: of a run on one core, given those of a training step of the classroom profile.
    """
    if not o.report and prepared(o):
        step = seconds_a_step()
        runs = [Run(line, repeat, fold) for repeat in o.repeats for fold in o.folds for line in o.lines or lines]
        work_through(runs, do, lambda run: seconds(run, step), o)
    rows = collect(o)
    if o.csv:
        publish(rows, o)
    return rows


def one_core() -> None:
    import numba

    torch.set_num_threads(1)
    numba.set_num_threads(1)


def keep(do: Callable[[Path, Run], list[Row]], arrays: Path, out: Path, run: Run, end: float) -> float | None:
    start = time.monotonic()  # on Linux the same clock in every process
    if start > end:
        return None
    torch.manual_seed(run.seed)
    rows = do(arrays, run)
    path = out / run.file
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path.with_suffix(".part"), rows)
    path.with_suffix(".part").rename(path)
    return time.monotonic() - start


def collect(o: argparse.Namespace) -> list[Row]:
    """The rows of all runs that are done, here or, as --csv tells, elsewhere; by line, repeat and fold."""
    here = [row for path in o.out.glob("*/*.csv") for row in read_rows(path)]
    done = {run_of(row) for row in here}
    elsewhere = [row for row in read_rows(o.csv) if run_of(row) not in done] if o.csv and o.csv.is_file() else []
    return sorted(here + elsewhere, key=run_of)


def run_of(row: Row) -> Run:
    return Run(row.line, row.repeat, row.fold)


def compared(line: str, ours: dict[str, np.ndarray], others: Sequence[dict[str, np.ndarray]]) -> str:
    """A line of a report: Dice_wi, and its difference to each of `others`, of the same patients, with intervals.

    ours, others: confusion matrices by patient.
    """
    if not ours:
        return f"{line:<24}   not run"
    text = f"{line:<24}{len(ours):>4} patients  " + "{:.3f} [{:.3f}, {:.3f}]".format(*interval(resampled(ours)))
    for theirs in others:
        told = theirs is not ours and ours.keys() & theirs.keys()
        text += "   " + ("{:+.3f} [{:+.3f}, {:+.3f}]".format(*difference(ours, theirs)) if told else " " * 24)
    return text.rstrip()


def publish(rows: Sequence[Row], o: argparse.Namespace) -> None:
    """All rows but those of training scans into the CSV that notebook 11 reads, and beside it how they were made."""
    import timing  # looks at the machine, for which it needs more than a bare one with a GPU has

    write_rows(o.csv, [row for row in rows if row.part != "train"])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    about, path = {}, o.csv.with_name("about.json")
    if path.is_file():
        about = json.loads(path.read_text())
    about[o.csv.name] = {"commit": o.commit or commit, "folds": sorted({row.fold for row in rows}),
                         "repeats": sorted({row.repeat for row in rows}), "scans": " ".join(o.source),
                         "machine": o.machine or timing.machine()}
    path.write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")


def seconds_a_step(steps: int = 10) -> float:
    """About what a training step of the classroom profile takes here on one core, 8 slices of 128 x 128."""
    network, threads = CLASSROOM.network(6, 0).to(device()), torch.get_num_threads()
    torch.set_num_threads(1)
    x = torch.rand(CLASSROOM.weak.batch, 3, 128, 128, device=device())
    for i in range(steps + 2):
        if i == 2:
            start = time.monotonic()
        with torch.autocast(device().type, torch.bfloat16):
            network(x).square().mean().backward()
    if device().type == "cuda":
        torch.cuda.synchronize()
    torch.set_num_threads(threads)
    return (time.monotonic() - start) / steps


def options(doc: str, out: str) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=Path("../shared/data"))
    p.add_argument("--source", nargs="+", default=["myosegmentum"])
    p.add_argument("--folds", nargs="+", type=int, default=list(range(FOLDS)))
    p.add_argument("--repeats", nargs="+", type=int, default=[0], help="each has its own labels and first weights")
    p.add_argument("--lines", nargs="+", help="of those listed above")
    p.add_argument("--processes", type=int, default=1, help="runs side by side, each on one core")
    p.add_argument("--minutes", type=float, default=1e6, help="begin no run after so many")
    p.add_argument("--out", type=Path, default=Path(out), help="a CSV a run: a run that is there is not done again")
    p.add_argument("--arrays", type=Path, help="prepared scans, written by the first run: on another machine nothing "
                                               "else is needed")
    p.add_argument("--csv", type=Path, help="all rows in one file, for notebook 11, and about.json beside it")
    p.add_argument("--commit", help="of which the runs are, for about.json, where it is not this one")
    p.add_argument("--machine", help="on which they ran, for about.json, where it is not this one")
    p.add_argument("--report", action="store_true", help="only print what is there")
    return p


def prepared(o: argparse.Namespace) -> bool:
    """Whether there are scans to run on."""
    o.arrays = o.arrays or o.out / "arrays.pickle.gz"
    if not o.arrays.is_file():
        if not o.data.is_dir():
            print(f"skipped: no dataset folder {o.data}")
            return False
        write_arrays(o.arrays, o.data, o.source)
    return True
