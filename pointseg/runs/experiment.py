"""The whole procedure, and one model of it: what `table1` and `train` do, and go on with after an end at any moment."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from pointseg.datasets.manifest import CENTROIDS, Case
from pointseg.datasets.split import Split, names_of, split_without_flaws
from pointseg.network import device, mixed_precision, set_mixed_precision
from pointseg.points import grow_points, mean_further_points
from pointseg.predict import Model
from pointseg.procedure import (
    HERE,
    Machine,
    Scans,
    best_smoothing,
    draw_points,
    fuse_all,
    hard_predictions,
    prepare_split,
    smoothing_counts,
    terms_named,
    train_full,
    train_weak,
)
from pointseg.profiles import Profile
from pointseg.report.scores import Evaluation, merged, one_hot, score_case
from pointseg.report.table import Table
from pointseg.runs.cache import VolumeFile, hash_of_case
from pointseg.runs.checkpoint import Checkpoints
from pointseg.runs.identity import identity_of as code_and_libraries
from pointseg.runs.parallel import side_by_side
from pointseg.runs.run import Run
from pointseg.slices import AXES, Labelled
from pointseg.train import History
from pointseg.volume import CLASSES, ScanError

INDEPENDENT = (*AXES, "reference")  # models that wait for no other
MODELS = (*AXES, "result", "reference")


@dataclass(frozen=True)
class Plan:
    """What a run is asked to do."""

    cases: tuple[Case, ...]
    profile: Profile
    seed: int
    terms: str
    published: bool
    machine: Machine
    two_classes: bool = False

    @cached_property
    def split(self) -> Split:
        return split_without_flaws(self.cases, self.seed, self.published, self.two_classes)


def identity_of(plan: Plan) -> dict:
    """All that a run's result depends on: its arguments, its data and its code."""
    cases = [c for part in (plan.split.train, plan.split.validation, plan.split.test) for c in part]
    return {"profile": asdict(plan.profile) | {"imagenet_file": str(plan.profile.imagenet_file)}, "seed": plan.seed,
            "terms": plan.terms, "published split": plan.published, "split": names_of(plan.split),
            "data": {case.name: hash_of_case(case) for case in cases},
            "device": device().type, "mixed precision": mixed_precision(),
            **code_and_libraries("procedure", "report.scores")}


def run(cases: Sequence[Case], profile: Profile, seed: int = 0, terms: str | None = None, data: str = "",
        published: bool = False, out: Path | None = None, machine: Machine = HERE, restart: bool = False) -> Table:
    """The whole procedure on the cases of a dataset folder.

    terms: letters, where not given the profile's.  published: split as the sources do, not by the seed.  out: folder
    for the models, and for all that it takes to go on after an end at any moment; restart: begin anew there.
    """
    plan = Plan(tuple(cases), profile, seed, profile.terms if terms is None else terms, published, machine)
    if not any(c.mask_extent != CENTROIDS for c in plan.split.test):
        raise ScanError("found no mask among the test scans, only centroids, expected some to score by; add a source "
                        "with masks, or train and evaluate a model")
    print(", ".join(f"{len(part)} {name}" for name, part in names_of(plan.split).items()) + " scans")
    if out is None:
        return _run(plan, Run(), None, data)
    with Run.begin(out / "training", lambda: {"command": "table1"} | identity_of(plan), restart) as kept:
        return _run(plan, kept, out, data)


def _run(plan: Plan, kept: Run, out: Path | None, data: str) -> Table:
    scans, names = prepare_split(plan.split, plan.profile, plan.machine.cache), names_of(plan.split)
    points = draw_points(scans.train, plan.seed)
    paths = {name: out and out / f"{name}.pt" for name in MODELS}
    if out and plan.machine.at_once > 1:
        waiting = [name for name in INDEPENDENT if not kept.is_trained(name, paths[name])]
        side_by_side(partial(_train_alone, plan, mixed_precision(), kept.folder, paths), waiting, plan.machine.at_once)
    models, histories = {}, {}
    for axis in AXES:
        models[axis], histories[axis] = kept.trained(axis, paths[axis], partial(_weak, plan, scans, points, axis))
    weak = dict(models)
    counts = [np.array(kept.remember(f"smoothing/{scan.name}", lambda scan=scan: smoothing_counts(
                  hard_predictions(weak, scan), scan).tolist()))
              for scan in tqdm(scans.validation, "choosing smoothing", unit="scan")]
    smoothing = best_smoothing(counts)
    pseudo = fuse_all(weak, scans.train + scans.test, smoothing, kept)
    for name, masks in (("result", [pseudo[scan.name] for scan in scans.train]), ("reference", None)):
        models[name], histories[name] = kept.trained(name, paths[name],
                                                     partial(_full, plan, scans, "sagittal", name, masks))

    test_points = {p.scan.name: p for p in draw_points(scans.test, plan.seed)}
    scores = _score(plan, kept, models, pseudo, test_points)
    example = next(s for s, c in zip(scans.test, plan.split.test, strict=True) if c.mask_extent != CENTROIDS)
    stages = {"points": test_points[example.name].labels} | hard_predictions(weak, example)
    stages |= {"pseudo mask": np.asarray(pseudo[example.name])}
    stages |= hard_predictions({name: models[name] for name in ("result", "reference")}, example)
    further_points = float(np.mean([mean_further_points(p.labels) for p in points]))
    return Table(scores, histories, names, smoothing, further_points, kept.seconds, plan.seed, plan.profile.name,
                 plan.terms, data, example, stages | {"truth": example.mask})


def _score(plan: Plan, kept: Run, models: dict[str, Model], pseudo: dict[str, np.ndarray | VolumeFile],
           test_points: dict[str, Labelled]) -> dict[str, Evaluation]:
    """Models, pseudo masks and grown points, against the truth of the test scans; pseudo masks of the training scans
    too."""
    others = {  # hard labels, from the weak models' vote and without any learning
        "pseudo_mask": lambda scan: np.asarray(pseudo[scan.name]),
        "watershed": lambda scan: grow_points(scan.image, test_points[scan.name].labels, scan.spacing_mm)}
    of_test = {name: model.probabilities for name, model in models.items()} | {
        name: lambda scan, f=f: one_hot(f(scan), len(CLASSES)) for name, f in others.items()}
    of_training = {"pseudo_mask_train": lambda scan: one_hot(np.asarray(pseudo[scan.name]), len(CLASSES))}

    def score(scores_of: dict, case: Case) -> dict[str, Evaluation]:
        content = kept.remember(f"scores/{case.name}", lambda: {
            name: e.to_json() for name, e in score_case(scores_of, models["result"].prepare, case).items()})
        return {name: Evaluation.from_json(e) for name, e in content.items()}

    return merged(score(functions, case)
                  for functions, part in ((of_test, plan.split.test), (of_training, plan.split.train))
                  for case in tqdm(part, "scoring", unit="scan"))


def _weak(plan: Plan, scans: Scans, points: Sequence[Labelled], axis: str,
          keeper: Checkpoints | None) -> tuple[Model, History]:
    return train_weak(points, scans.validation, axis, plan.profile, plan.seed, terms_named(plan.terms, plan.profile),
                      names_of(plan.split), keeper, plan.machine)


def _full(plan: Plan, scans: Scans, axis: str, name: str, masks: Sequence[np.ndarray | VolumeFile] | None,
          keeper: Checkpoints | None) -> tuple[Model, History]:
    """masks: of the training scans; None: their true ones."""
    labelled = [Labelled(scan, scan.truth if masks is None else masks[i]) for i, scan in enumerate(scans.train)]
    return train_full(labelled, scans.validation, axis, plan.profile, plan.seed, names_of(plan.split), name, keeper,
                      plan.machine)


def _train_alone(plan: Plan, mixed: bool, folder: Path, paths: dict[str, Path], name: str) -> None:
    """One of the independent models, in a process of its own."""
    set_mixed_precision(mixed)
    scans = prepare_split(plan.split, plan.profile, plan.machine.cache)
    train = partial(_full, plan, scans, "sagittal", name, None) if name == "reference" else partial(
        _weak, plan, scans, draw_points(scans.train, plan.seed), name)
    Run(folder).trained(name, paths[name], train)


def train_one(cases: Sequence[Case], axis: str, from_points: bool, profile: Profile, seed: int,
              terms: str | None = None, published: bool = False, path: Path | None = None,
              machine: Machine = HERE, restart: bool = False) -> tuple[Model, History]:
    """One model along one axis, from points or from masks, on the split that `run` would use.

    path: of the model; beside it PATH-training then holds all that it takes to go on after an end at any moment.
    """
    plan = Plan(tuple(cases), profile, seed, profile.terms if terms is None else terms, published, machine,
                two_classes=axis == "transverse")

    def train(keeper: Checkpoints | None) -> tuple[Model, History]:
        scans = prepare_split(plan.split, profile, machine.cache)
        if from_points:
            return _weak(plan, scans, draw_points(scans.train, seed), axis, keeper)
        return _full(plan, scans, axis, f"{axis}, masks", None, keeper)

    if path is None:
        return train(None)
    folder = path.with_name(f"{path.stem}-training")

    def identity() -> dict:
        return {"command": "train", "axis": axis, "labels": "points" if from_points else "masks"} | identity_of(plan)

    with Run.begin(folder, identity, restart) as kept:
        return kept.trained("", path, train)
