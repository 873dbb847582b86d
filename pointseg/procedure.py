"""The thesis's procedure, from cases to its Table 1.

prepare -> points -> three weak models -> pseudo masks -> final model; beside it the reference, trained on true masks.
Every stage is a function, so that a notebook can run them one by one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from pointseg.datasets import CENTROIDS, Case, Split, cases_with_levels, published_split, split_cases
from pointseg.evaluate import evaluate, one_hot
from pointseg.fusion import pseudo_mask
from pointseg.kernels import confusion_matrix
from pointseg.losses import (
    Step,
    Term,
    consistency_term,
    extent_term,
    moved_point_term,
    point_term,
    separation_term,
)
from pointseg.metrics import weighted_dice
from pointseg.model import Model
from pointseg.network import device
from pointseg.points import Points, grow_points, mean_further_points, sample_points
from pointseg.predict import validation_score
from pointseg.preprocess import Prepared, prepare
from pointseg.profiles import EXTENT_RADIUS_MM, Profile
from pointseg.report import Table
from pointseg.slices import AXES, Labelled, SliceDataset
from pointseg.train import History, Schedule, fit
from pointseg.volume import CLASSES, UNLABELLED, ScanError

DENOISE, EROSION = (0, 1, 2), (0, 1, 2)  # the smoothing iterations to choose from


@dataclass(frozen=True)
class Scans:
    """The prepared scans of a split."""

    train: list[Prepared]
    validation: list[Prepared]
    test: list[Prepared]


def split_without_flaws(cases: Sequence[Case], seed: int, published: bool = False, two_classes: bool = False) -> Split:
    """Leave out cases with a known flaw, saying so, and split the others by patient, or as their sources publish it.

    Cases whose vertebrae have no level are left out too, except where two classes are asked for.
    """
    flawed = [c for c in cases if c.flaw]
    if flawed:
        print(f"{len(flawed)} of {len(cases)} cases have a known flaw and are left out: "
              + "; ".join(f"{c.name} ({c.flaw})" for c in flawed))
    usable = [c for c in cases if not c.flaw]
    if not two_classes:
        usable = cases_with_levels(usable)
    return published_split(usable) if published else split_cases(usable, seed)


def names_of(split: Split) -> dict[str, list[str]]:
    """Case names by part, as models and tables keep them."""
    return {part: [c.name for c in getattr(split, part)] for part in ("train", "validation", "test")}


def prepare_split(split: Split, profile: Profile) -> Scans:
    """Read and prepare all cases of a split."""
    bar = tqdm(total=len(split.train) + len(split.validation) + len(split.test), desc="preparing", unit="scan")

    def prepare_all(cases: Sequence[Case]) -> list[Prepared]:
        scans = []
        for case in cases:
            scans.append(prepare(case.read(), profile.grid_mm))
            bar.update()
        return scans

    with bar:
        return Scans(prepare_all(split.train), prepare_all(split.validation), prepare_all(split.test))


def draw_points(scans: Sequence[Prepared], seed: int) -> list[Labelled]:
    """Point labels for scans, from their masks."""
    return [Labelled(scan, Points.of(sample_points(scan.mask, np.random.default_rng((seed, i)))))
            for i, scan in enumerate(scans)]


def point_weights(points: Sequence[Labelled], validation: Sequence[Prepared], num_classes: int, power: float) -> Tensor:
    """Class weights that undo how points are drawn: (share of voxels / share of points) ** power.   -> (K,), mean 1.

    Five background points stand for far more pixels than three points in a vertebra.  Weighted by what each point
    stands for (power 1), the point loss estimates the full mask's cross-entropy; unweighted (power 0, the thesis) it
    lets vertebrae grow.  The shares of voxels come from the validation scans' masks, those of points from the labels.
    """
    def shares(maps: list[np.ndarray]) -> np.ndarray:
        counts = sum(np.bincount(m[m != UNLABELLED], minlength=len(CLASSES)) for m in maps).astype(float)
        counts = np.array([counts[0], counts[1:].sum()]) if num_classes == 2 else counts
        return counts / counts.sum()

    voxels, drawn = shares([scan.mask for scan in validation]), shares([p.labels for p in points])
    ratio = np.divide(voxels, drawn, out=np.zeros(num_classes), where=drawn > 0)
    ratio[ratio == 0] = ratio[1:].max(initial=0) or 1.0  # a class that is missing there: as the other vertebrae
    weights = ratio**power
    return torch.tensor(weights / weights.mean(), dtype=torch.float32)


def full_loss(step: Step) -> Tensor:
    """Cross-entropy with full labels; only padding is left out.   For the final model and the reference."""
    return F.cross_entropy(step.logits, step.labels.long(), ignore_index=UNLABELLED)


def train_weak(points: Sequence[Labelled], validation: Sequence[Prepared], axis: str, profile: Profile, seed: int,
               terms: Sequence[tuple[float, Term]], split: dict[str, list[str]]) -> tuple[Model, History]:
    """Train a model along one axis from points: two classes on transverse slices, else six."""
    num_classes = 2 if axis == "transverse" else len(CLASSES)
    dataset = SliceDataset(points, axis, num_classes, profile.input_px, profile.augmentation, seed, sparse=True,
                           radius_mm=EXTENT_RADIUS_MM)
    weights = point_weights(points, validation, num_classes, profile.point_weighting)
    return _train(dataset, validation, axis, profile, seed, profile.weak, terms, split, f"{axis}, points", weights)


def train_full(labelled: Sequence[Labelled], validation: Sequence[Prepared], axis: str, profile: Profile, seed: int,
               split: dict[str, list[str]], name: str) -> tuple[Model, History]:
    """Train a model along one axis from label volumes: pseudo masks, or true ones for the reference."""
    num_classes = 2 if axis == "transverse" else len(CLASSES)
    dataset = SliceDataset(labelled, axis, num_classes, profile.input_px, profile.augmentation, seed)
    return _train(dataset, validation, axis, profile, seed, profile.full, [(1.0, full_loss)], split, name)


def _train(dataset: SliceDataset, validation: Sequence[Prepared], axis: str, profile: Profile, seed: int,
           schedule: Schedule, terms: Sequence[tuple[float, Term]], split: dict[str, list[str]], name: str,
           class_weights: Tensor | None = None) -> tuple[Model, History]:
    network = profile.network(dataset.num_classes, seed).to(device())
    history = fit(network, dataset, terms, schedule,
                  lambda n: validation_score(n, validation, axis, profile.input_px), seed, name, class_weights)
    modalities = tuple(sorted({scan.modality for scan in dataset.scans} - {""}))
    return Model(network.eval(), axis, profile.grid_mm, profile.input_px, profile.name, seed, split,
                 modalities), history


def terms_named(letters: str, profile: Profile) -> list[tuple[float, Term]]:
    """ "PCES" -> the terms of those letters, with the profile's weights."""
    weight = profile.term_weights
    known = {"P": [(weight["P"], point_term)], "E": [(weight["E"], extent_term)], "S": [(weight["S"], separation_term)],
             "C": [(weight["P"], moved_point_term), (weight["C"], consistency_term)]}  # f(t(x)) meets the points too
    if set(letters) - set(known) or "P" not in letters or len(set(letters)) != len(letters):
        raise ScanError(f"--terms: found {letters!r}, expected P and any of C, E, S, each once, such as P or PCES")
    return [term for letter in letters for term in known[letter]]


def hard_predictions(models: dict[str, Model], scan: Prepared) -> dict[str, np.ndarray]:
    """Each model's labels (z, y, x) uint8 of one scan, by the model's name."""
    return {name: model.labels(scan) for name, model in models.items()}


def choose_smoothing(predictions: Sequence[dict[str, np.ndarray]], scans: Sequence[Prepared]) -> tuple[int, int]:
    """The denoise and erosion iterations with the best Dice_wi on the validation scans; the fewer of equals."""
    def score(denoise: int, erosion: int) -> float:
        return weighted_dice(sum(confusion_matrix(scan.mask, pseudo_mask(**p, denoise=denoise, erosion=erosion),
                                                  len(CLASSES)) for p, scan in zip(predictions, scans, strict=True)))
    return max(((d, e) for d in DENOISE for e in EROSION), key=lambda pair: score(*pair))


def fuse_all(weak: dict[str, Model], scans: Sequence[Prepared], smoothing: tuple[int, int]) -> dict[str, np.ndarray]:
    """Pseudo masks (z, y, x) uint8 by scan name.   smoothing: denoise and erosion iterations."""
    return {scan.name: pseudo_mask(**hard_predictions(weak, scan), denoise=smoothing[0], erosion=smoothing[1])
            for scan in tqdm(scans, "fusing pseudo masks", unit="scan")}


def run(cases: Sequence[Case], profile: Profile, seed: int = 0, terms: str | None = None, data: str = "",
        on_model: Callable[[str, Model], None] = lambda name, model: None, published: bool = False) -> Table:
    """The whole procedure on the cases of a dataset folder.

    terms: letters, where not given the profile's.  on_model is handed each model as soon as it is trained, to save it.
    published: split as the sources do, not by the seed.
    """
    start = time.monotonic()
    terms = profile.terms if terms is None else terms
    weak_terms = terms_named(terms, profile)
    split = split_without_flaws(cases, seed, published)
    if not any(c.mask_extent != CENTROIDS for c in split.test):
        raise ScanError("found no mask among the test scans, only centroids, expected some to score by; add a source "
                        "with masks, or train and evaluate a model")
    names = names_of(split)
    print(", ".join(f"{len(part)} {name}" for name, part in names.items()) + " scans")
    scans = prepare_split(split, profile)
    points = draw_points(scans.train, seed)

    models, histories = {}, {}
    for axis in AXES:
        models[axis], histories[axis] = train_weak(points, scans.validation, axis, profile, seed, weak_terms, names)
        on_model(axis, models[axis])
    weak = dict(models)
    predictions = [hard_predictions(weak, scan) for scan in tqdm(scans.validation, "choosing smoothing", unit="scan")]
    smoothing = choose_smoothing(predictions, scans.validation)
    pseudo = fuse_all(weak, scans.train + scans.test, smoothing)
    for name, masks in (("result", pseudo), ("reference", {scan.name: scan.mask for scan in scans.train})):
        labelled = [Labelled(scan, masks[scan.name]) for scan in scans.train]
        models[name], histories[name] = train_full(labelled, scans.validation, "sagittal", profile, seed, names, name)
        on_model(name, models[name])

    test_points = {p.scan.name: p.labels for p in draw_points(scans.test, seed)}
    others = {  # hard labels, from the weak models' vote and without any learning
        "pseudo_mask": lambda scan: pseudo[scan.name],
        "watershed": lambda scan: grow_points(scan.image, test_points[scan.name], scan.spacing_mm)}
    scores = evaluate({name: model.probabilities for name, model in models.items()}
                      | {name: lambda scan, f=f: one_hot(f(scan), len(CLASSES)) for name, f in others.items()},
                      models["result"].prepare, split.test)
    scores |= evaluate({"pseudo_mask_train": lambda scan: one_hot(pseudo[scan.name], len(CLASSES))},
                       models["result"].prepare, split.train)
    example = next(s for s, c in zip(scans.test, split.test, strict=True) if c.mask_extent != CENTROIDS)
    stages = {"points": test_points[example.name]} | hard_predictions(weak, example)
    stages |= {"pseudo mask": pseudo[example.name]}
    stages |= hard_predictions({name: models[name] for name in ("result", "reference")}, example)
    further_points = float(np.mean([mean_further_points(p.labels) for p in points]))
    return Table(scores, histories, names, smoothing, further_points, time.monotonic() - start, seed, profile.name,
                 terms, data, example, stages | {"truth": example.mask})


def train_one(cases: Sequence[Case], axis: str, from_points: bool, profile: Profile, seed: int,
              terms: str | None = None, published: bool = False) -> tuple[Model, History]:
    """One model along one axis, from points or from masks, on the split that `run` would use."""
    weak_terms = terms_named(profile.terms if terms is None else terms, profile)
    split = split_without_flaws(cases, seed, published, two_classes=axis == "transverse")
    scans = prepare_split(split, profile)
    if from_points:
        return train_weak(draw_points(scans.train, seed), scans.validation, axis, profile, seed, weak_terms,
                          names_of(split))
    labelled = [Labelled(scan, scan.mask) for scan in scans.train]
    return train_full(labelled, scans.validation, axis, profile, seed, names_of(split), f"{axis}, masks")
