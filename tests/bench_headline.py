"""What labels are worth, with several seeds: the result from points, its reference from all masks, and its rivals.

    python tests/bench_headline.py [--data ../shared/data --source myosegmentum] [--seeds 6] [--processes 1]
                                   [--out out/headline] [--arrays FILE] [--minutes N] [--report]

Each seed has its own split, points, first weights and order.  Printed with 95 % intervals over seeds: Dice_wi of the
test scans in their own geometry; what choosing a model's round by points costs against choosing it by masks, on the
test scans, from the same rounds; and how far a score that is estimated from points is from the true one.

A model is trained once and kept in OUT, so a run that was broken off goes on; --minutes: stop in time, and go on later.
The first run writes the prepared scans into --arrays: from there on nothing but this file, the top level of the package
and torch is needed, so that a machine with a GPU can do the work.  --report: only print what is there.
"""

import argparse
import gzip
import itertools
import json
import math
import multiprocessing
import os
import pickle
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from folds import Silent, one_core
from scipy import stats

from pointseg import procedure
from pointseg.estimate import estimated_confusion, known_truth
from pointseg.fusion import answers, choose_smoothing, choose_threshold, fuse_all
from pointseg.kernels import confusion_matrix, resample_argmax
from pointseg.metrics import weighted_dice
from pointseg.network import FCN8VGG16, device
from pointseg.points import BEARMAN, draw_labels, draw_points, draw_rivals, labelling_seconds
from pointseg.predict import Model, ThreeAxes
from pointseg.preprocess import Prepared, Scans, prepare
from pointseg.profiles import CLASSROOM
from pointseg.slices import AXES

LONGER = replace(CLASSROOM, full=replace(CLASSROOM.full, divisors=(1, 3, 3), rounds=(4, 2, 1), round_steps=200))
HALF, QUARTER = "slices_half", "slices_quarter"  # of the slices that the points' time buys
PROFILES = {"longer": LONGER}  # arms with a schedule of their own; all others have the classroom's


@dataclass(frozen=True)
class Work:
    """One seed's share: names of models, each with what it waits for."""

    out: Path
    arrays: Path
    seed: int

    @property
    def folder(self) -> Path:
        return self.out / f"seed{self.seed}"

    @property
    def scans(self) -> Scans:
        return split_of(self.arrays, self.seed)[0]

    def labelled(self, arm: str) -> Scans:
        scans = self.scans
        if arm in ("reference", "longer"):
            return scans
        if arm in ("weak", "result", "second"):
            return draw_labels(scans, "points", self.seed)
        if arm in (HALF, QUARTER):
            seconds = replace(BEARMAN, mask=BEARMAN.mask * (2 if arm == HALF else 4))
            return draw_labels(scans, "slices", self.seed, seconds)
        return draw_rivals(scans, self.seed)[arm]

    def has(self, arm: str) -> bool:
        return all((self.folder / f"{name}.pt").exists() for name in models_of([arm]))

    def kept(self, name: str) -> dict:
        return torch.load(self.folder / f"{name}.pt", map_location=device())

    def model(self, name: str) -> Model:
        kept = self.kept(name)
        network = FCN8VGG16(**kept["architecture"]).to(device()).eval()
        network.load_state_dict(kept["network"])
        return Model(network, name.split("_")[-1], CLASSROOM.grid_mm, CLASSROOM.input_px)

    def train(self, name: str) -> None:
        arm, axis = arm_of(name), name.split("_")[-1]
        labelled, of_points = self.labelled(arm), arm in ("weak", "result")
        if arm in ("result", "second"):
            labelled = replace(labelled, train=self.pseudo("weak" if arm == "result" else "result"))
        watch = Rounds(name, self.scans, self.seed) if of_points else Silent(name)
        if arm == "weak":
            terms = procedure.terms_named(CLASSROOM.terms, CLASSROOM)
            model, _ = procedure.train_weak(labelled, axis, CLASSROOM, self.seed, terms, watch)
        else:
            model, _ = procedure.train_full(labelled, axis, PROFILES.get(arm, CLASSROOM), self.seed, watch)
        write(self.folder / f"{name}.pt", {"architecture": model.network.config, "rounds": getattr(watch, "rounds", ()),
                                           "network": model.network.state_dict()})

    def pseudo(self, arm: str) -> list[Prepared]:
        masks = pickle.loads((self.folder / f"answers-{arm}.pt").read_bytes())["train"]
        return [scan.with_mask(masks[scan.name]) for scan in self.scans.train]

    def answers(self, arm: str) -> None:
        """Pseudo masks: for weak models the better of vote and mean, by points; both are kept to be scored."""
        labelled, models = self.labelled(arm), {axis: self.model(axis if arm == "weak" else f"{arm}_{axis}")
                                                for axis in AXES}
        three, score = choose_threshold(ThreeAxes(**models), labelled.validation)
        made = {"train": {name: s.mask for name, s in answers(three, labelled.train, arm).items()}}
        if arm == "weak":
            made["smoothing"], of_vote = choose_smoothing(models, labelled.validation)
            made["vote"] = {name: s.mask for name, s in fuse_all(models, labelled.train, made["smoothing"]).items()}
            made["mean"], made["by vote"] = made["train"], of_vote > score
            made["train"] = made["vote"] if made["by vote"] else made["mean"]
        write(self.folder / f"answers-{arm}.pt", made)

    def scores(self) -> None:
        """All that the report needs, in counts; of what is there."""
        (scans, own), arms = split_of(self.arrays, self.seed), [arm for arm in ARMS if self.has(arm)]
        names = models_of(arms)
        said = {name: Said({scan.name: model.probabilities(scan) for scan in scans.validation + scans.test})
                for name, model in ((name, self.model(name)) for name in names)}
        for arm in arms:
            three = ThreeAxes(*(said[name] for name in models_of([arm])))
            said[arm] = choose_threshold(three, self.labelled(arm).validation)[0]
        thresholds = {arm: said[arm].threshold for arm in arms}
        counts: dict[str, np.ndarray] = {}  # in the scans' own geometry
        estimates: dict[str, list[np.ndarray]] = {}  # confusion matrices from points and from masks
        for part in ("validation", "test"):
            for scan, points in zip(getattr(scans, part), draw_points(getattr(scans, part), self.seed), strict=True):
                for name, model in said.items():
                    scores = model.probabilities(scan)
                    k = len(scores)
                    if part == "test":
                        truth = known_truth(own[scan.name], k)
                        matrix = confusion_matrix(truth, resample_argmax(scores, truth.shape), k)
                        counts[name] = counts.get(name, 0) + matrix
                    if k == 6:
                        labels = scores.argmax(0).astype(np.uint8)
                        both = np.stack([estimated_confusion(known, labels, k) for known in (points, scan)])
                        estimates[f"{part} {name}"] = estimates.get(f"{part} {name}", 0) + both
        made = pickle.loads((self.folder / "answers-weak.pt").read_bytes())
        for name in ("vote", "mean"):
            counts[f"pseudo_{name}_train"] = sum(confusion_matrix(s.mask, made[name][s.name], 6) for s in scans.train)
        full = labelling_seconds([*scans.train, *scans.validation])
        known = {arm: self.labelled(arm) for arm in arms}
        line = {"seed": self.seed, "device": str(device()), "own": {name: m.tolist() for name, m in counts.items()},
                "smoothing": made["smoothing"], "by vote": bool(made["by vote"]),
                "thresholds": thresholds,
                "estimates": {name: [weighted_dice(m) for m in both] for name, both in estimates.items()},
                "cost": {arm: labelling_seconds([*k.train, *k.validation]) / full for arm, k in known.items()},
                "rounds": {name: self.kept(name)["rounds"] for name in names}}
        part = self.folder / "part.json"
        part.write_text(json.dumps(line))
        part.rename(self.folder / "scores.json")


@dataclass(frozen=True)
class Said:
    """What a model said, by scan: to a `ThreeAxes` it is the model."""

    of_scans: dict[str, np.ndarray]

    def probabilities(self, scan: Prepared) -> np.ndarray:
        return self.of_scans[scan.name].copy()


class Rounds(Silent):
    """Scores each round by points and by masks of the validation scans, and by the test scans."""

    def __init__(self, name: str, scans: Scans, seed: int):
        super().__init__(name)
        self.judges = {"points": draw_points(scans.validation, seed), "masks": scans.validation, "test": scans.test}
        self.rounds: list[dict] = []

    def take(self, model, scan):
        self.model = model
        return super().take(model, scan)

    def after_round(self, training) -> None:
        last, k = training.history.rounds[-1], self.model.num_classes
        said = {scan.name: self.model.labels(scan) for scan in self.judges["masks"] + self.judges["test"]}
        self.rounds.append({"step": last.step, "loss": last.losses["total"], "chosen by": last.validation} | {
            judge: weighted_dice(sum(estimated_confusion(scan, said[scan.name], k) for scan in labelled))
            for judge, labelled in self.judges.items()})


ARMS = ("weak", "result", "reference", "slices", "whole_scans", QUARTER, "second", HALF, "longer")


def models_of(arms) -> list[str]:
    return [axis if arm == "weak" else f"{arm}_{axis}" for arm in arms for axis in AXES]


def arm_of(name: str) -> str:
    return "_".join(name.split("_")[:-1]) or "weak"


ORDER = [*AXES, "answers-weak", *models_of(["result"]), *models_of(["reference", "slices"]), "answers-result",
         *models_of(ARMS[4:])]


def needs(name: str) -> list[str]:
    """What must be there before a piece of work."""
    if name.startswith("answers-"):
        return models_of([name.removeprefix("answers-")])
    return {"result": ["answers-weak"], "second": ["answers-result"]}.get(arm_of(name), [])


@cache
def split_of(arrays: Path, seed: int) -> tuple[Scans, dict[str, np.ndarray]]:
    """The prepared scans of a split, and all masks in the scans' own geometry by name."""
    content = pickle.loads(gzip.decompress(arrays.read_bytes()))
    scans = {name: Prepared(*fields) for name, fields in content["scans"].items()}
    parts = {part: [scans[name] for name in names] for part, names in content["splits"][seed].items()}
    return Scans(**parts), content["own"]


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    if "network" in content:
        torch.save(content, part)
    else:
        part.write_bytes(pickle.dumps(content))
    part.rename(path)


def do(work: Work, name: str) -> float:
    start = time.monotonic()
    if name.startswith("answers-"):
        work.answers(name.removeprefix("answers-"))
    else:
        work.scores() if name == "scores" else work.train(name)
    return time.monotonic() - start


def work_through(works: list[Work], processes: int, minutes: float) -> None:
    """What is not there yet, as soon as what it waits for is; a line for each piece."""
    end, running = time.monotonic() + 60 * minutes, {}
    waiting = [(work, name) for name in ORDER for work in works if not (work.folder / f"{name}.pt").exists()]
    with pool_of(processes) as pool:
        while running or waiting:
            missing = {(work.seed, name) for work, name in [*waiting, *running.values()]}
            ready = [(w, name) for w, name in waiting if not any((w.seed, need) in missing for need in needs(name))]
            for item in ready[:processes - len(running)]:
                waiting.remove(item)
                running[pool.submit(do, *item)] = item
            for job in wait(running, max(0, end - time.monotonic()), FIRST_COMPLETED).done:
                work, name = running.pop(job)
                print(f"seed {work.seed} {name}: {job.result():.0f} s", flush=True)
            if time.monotonic() >= end:  # what runs is lost, what is done is kept
                for process in list(pool._processes.values()):
                    process.kill()
                break
    with pool_of(processes) as pool:
        for work, seconds in zip(works, pool.map(do, works, ["scores"] * len(works))):
            print(f"seed {work.seed} scores: {seconds:.0f} s", flush=True)


def pool_of(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), one_core if processes > 1 else None)


def write_arrays(arrays: Path, data: Path, sources: list[str], seeds: int) -> None:
    """Prepared scans, and their masks in their own geometry."""
    from pointseg.datasets.manifest import read_manifest
    from pointseg.datasets.split import names_of, split_without_flaws

    cases = read_manifest(data, sources)
    content: dict = {"scans": {}, "own": {}, "splits": {}}
    for seed in range(seeds):
        split = split_without_flaws(cases, seed)
        content["splits"][seed] = names_of(split)
        for case in (*split.train, *split.validation, *split.test):
            if case.name not in content["scans"]:
                volume = case.read()
                scan = prepare(volume, CLASSROOM.grid_mm)
                content["scans"][case.name] = (scan.image, scan.mask, scan.spacing_mm, scan.name, scan.modality)
                content["own"][case.name] = volume.mask
    arrays.parent.mkdir(parents=True, exist_ok=True)
    arrays.write_bytes(gzip.compress(pickle.dumps(content)))


def interval(values, sign: str = "") -> str:
    """Mean and 95 % interval over seeds (Student's t)."""
    x = np.asarray(values, float)
    if len(x) < 2:
        return f"{x.mean():{sign}.3f}"
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return f"{x.mean():{sign}.3f} [{x.mean() - half:{sign}.3f}, {x.mean() + half:{sign}.3f}]"


def report(out: Path) -> None:
    lines = [json.loads(path.read_text()) for path in sorted(out.glob("seed*/scores.json"))]
    if not lines:
        print("no seed is done yet")
        return
    print(f"\n{len(lines)} seeds, {lines[0]['device']}.  Dice_wi of the test scans in their own geometry")
    names = [name for name in lines[0]["own"] if all(name in line["own"] for line in lines)]
    dice = {name: [weighted_dice(np.array(line["own"][name])) for line in lines] for name in names}
    for name, x in dice.items():
        costs = [line["cost"].get(name, np.nan) for line in lines]
        print(f"{name:<24}{interval(x):<24}" + " ".join(f"{v:.3f}" for v in x)
              + ("" if np.isnan(costs).any() else f"   label time {np.mean(costs):.1%}"))
    for a, b in (("result", "reference"), ("result_sagittal", "reference_sagittal"), ("second", "reference")):
        if a in dice and b in dice:
            print(f"{f'{a} / {b}':<40}{interval(np.divide(dice[a], dice[b]))}")
    for a, b in (("result", "result_sagittal"), ("reference", "reference_sagittal"), ("result", "weak"),
                 ("second", "result"), ("pseudo_mean_train", "pseudo_vote_train"), ("slices", "result"),
                 ("slices", "reference"), (HALF, "result"), (QUARTER, "result"), ("whole_scans", "result"),
                 ("longer", "reference")):
        if a in dice and b in dice:
            print(f"{f'{a} - {b}':<40}{interval(np.subtract(dice[a], dice[b]), '+')}")
    for name in ("result", "reference", "slices"):
        pooled = sum((np.array(line["own"][name]) for line in lines if name in line["own"]), np.zeros((6, 6)))[1:, 1:]
        print(f"{f'levels right where {name} finds a vertebra':<48}{np.trace(pooled) / max(pooled.sum(), 1):.3f}")
    print("\nrounds chosen by points against chosen by masks: difference on the test scans, a mean a seed")
    for names, title in (((*AXES,), "weak models"), (models_of(["result"]), "result"),
                         ((*AXES, *models_of(["result"])), "all six")):
        differences = []
        for line in lines if all(name in line["rounds"] for name in names for line in lines) else []:
            of = []
            for name in names:
                rounds = line["rounds"][name]
                by = {j: max(rounds, key=lambda r: r[j])["test"] for j in ("points", "masks")}
                of.append(by["points"] - by["masks"])
            differences.append(np.mean(of))
        if differences:
            print(f"{title:<26}{interval(differences, '+')}")
    print("\nscores estimated from points against true ones, models of six classes")
    for part in ("validation", "test"):
        of_seeds = [{n: v for n, v in line["estimates"].items() if n.startswith(part)} for line in lines]
        off = [[e - t for e, t in of.values()] for of in of_seeds]
        pairs = [(x, y) for of in of_seeds for x, y in itertools.combinations(of.values(), 2)
                 if abs(x[1] - y[1]) > 0.05]
        right = sum((x[0] - y[0]) * (x[1] - y[1]) > 0 for x, y in pairs)
        print(f"{part:<12}off by {np.mean(np.abs(np.concatenate(off))):.3f} on average, bias "
              f"{interval([np.mean(o) for o in off], '+')}; {right} of {len(pairs)} pairs over 0.05 apart ranked right")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=Path("../shared/data"))
    p.add_argument("--source", nargs="+", default=["myosegmentum"])
    p.add_argument("--seeds", type=int, default=6)
    p.add_argument("--processes", type=int, default=1)
    p.add_argument("--out", type=Path, default=Path("out/headline"))
    p.add_argument("--arrays", type=Path)
    p.add_argument("--minutes", type=float, default=1e6)
    p.add_argument("--report", action="store_true")
    o = p.parse_args()
    arrays = o.arrays or o.out / "arrays.pickle.gz"
    if not o.report:
        if not arrays.is_file():
            if not o.data.is_dir():
                print(f"skipped: no dataset folder {o.data}")
                return
            write_arrays(arrays, o.data, o.source, o.seeds)
        work_through([Work(o.out, arrays, seed) for seed in range(o.seeds)], o.processes, o.minutes)
    report(o.out)


if __name__ == "__main__":
    main()
