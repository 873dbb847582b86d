"""The whole procedure, from prepared scans to the result and the reference.   `run` is all of it, top to bottom.

Each of its steps is a function that can be called alone.  Each piece of work is made through `keep(name, make)`, which
is make() here; `runs` hands in one that stores what was made, and next time returns that.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pointseg.fusion import pseudo_mask
from pointseg.kernels import confusion_matrix
from pointseg.losses import (
    Step,
    Term,
    consistency_term,
    extent_term,
    moved_point_term,
    point_loss,
    point_term,
    separation_term,
)
from pointseg.metrics import weighted_dice
from pointseg.network import device
from pointseg.points import Points, sample_points
from pointseg.predict import Model
from pointseg.preprocess import Prepared, prepare
from pointseg.profiles import EXTENT_RADIUS_MM, Profile, Schedule
from pointseg.slices import AXES, SliceDataset
from pointseg.train import History, Watch, fit
from pointseg.volume import CLASSES, UNLABELLED, ScanError

SMOOTHINGS = [(denoise, erosion) for denoise in (0, 1, 2) for erosion in (0, 1, 2)]  # iterations to choose from
Terms = Sequence[tuple[float, Term]]
T = TypeVar("T")
Keep = Callable[[str, Callable[..., T]], T]


@dataclass(frozen=True)
class Scans:
    """The prepared scans of a split."""

    train: list[Prepared]
    validation: list[Prepared]
    test: list[Prepared]


@dataclass(frozen=True)
class Outcome:
    """What the procedure has made."""

    points: Sequence[Points]  # of the training scans
    models: dict[str, Model]  # transverse, coronal, sagittal, result, reference
    histories: dict[str, History]  # of the models
    smoothing: tuple[int, int]  # denoise and erosion iterations
    pseudo: dict[str, Prepared]  # training and test scans with pseudo masks, by name


def just_make(name: str, make: Callable[..., T]) -> T:
    """The `keep` that keeps nothing.   A kept `make` that trains may be handed a `watch`, to go on inside a model."""
    return make()


def run(scans: Scans, profile: Profile, seed: int = 0, terms: Terms | None = None,
        points: Sequence[Points] | None = None, keep: Keep = just_make) -> Outcome:
    """Points, three weak models, pseudo masks, and from those the result; beside it the reference, from true masks.

    terms: of the weak models, where not the profile's.  points: of the training scans, where not drawn from masks.
    Masks of the validation scans weigh the classes, choose each model's best weights, and the smoothing.
    """
    terms, points = terms or terms_named(profile.terms, profile), points or draw_points(scans.train, seed)
    models, histories = {}, {}
    for axis in AXES:
        models[axis], histories[axis] = keep(
            axis, partial(train_weak, points, scans.validation, axis, profile, seed, terms))
    weak = dict(models)
    smoothing = choose_smoothing(weak, scans.validation, keep)
    pseudo = fuse_all(weak, scans.train + scans.test, smoothing, keep)  # of test scans only to be scored
    for name, labelled in (("result", [pseudo[scan.name] for scan in scans.train]), ("reference", scans.train)):
        models[name], histories[name] = keep(
            name, partial(train_full, labelled, scans.validation, "sagittal", profile, seed))
    return Outcome(points, models, histories, smoothing, pseudo)


def read_and_prepare(case, grid_mm: float) -> Prepared:
    """case: has a `read()` that returns a Volume, as those of `datasets` do."""
    return prepare(case.read(), grid_mm)


def prepare_split(split, profile: Profile, prepare_case: Callable[..., Prepared] = read_and_prepare) -> Scans:
    """Read and prepare all cases of a split, which has three sequences of them: train, validation, test."""
    parts = (split.train, split.validation, split.test)
    with tqdm(total=sum(map(len, parts)), desc="preparing", unit="scan") as bar:
        def prepared(case) -> Prepared:
            scan = prepare_case(case, profile.grid_mm)
            bar.update()
            return scan

        return Scans(*([prepared(case) for case in part] for part in parts))


def draw_points(scans: Sequence[Prepared], seed: int) -> list[Points]:
    """Point labels for scans, from their masks."""
    return [Points.of(scan, sample_points(scan.mask, np.random.default_rng((seed, i))))
            for i, scan in enumerate(scans)]


def point_weights(points: Sequence[Points], validation: Sequence[Prepared], num_classes: int, power: float) -> Tensor:
    """Class weights that undo how points are drawn: (share of voxels / share of points) ** power.   -> (K,), mean 1.

    Five background points stand for far more pixels than three points in a vertebra.  Weighted by what each point
    stands for (power 1), the point loss estimates the full mask's cross-entropy; unweighted (power 0, the thesis) it
    lets vertebrae grow.  The shares of voxels come from the validation scans' masks, those of points from the labels.
    """
    def shares(labels: Iterable[np.ndarray]) -> np.ndarray:
        counts = sum(np.bincount(x[x != UNLABELLED], minlength=len(CLASSES)) for x in labels).astype(float)
        counts = np.array([counts[0], counts[1:].sum()]) if num_classes == 2 else counts
        return counts / counts.sum()

    voxels, drawn = shares(scan.mask for scan in validation), shares(p.values for p in points)  # one at a time
    ratio = np.divide(voxels, drawn, out=np.zeros(num_classes), where=drawn > 0)
    ratio[ratio == 0] = ratio[1:].max(initial=0) or 1.0  # a class that is missing there: as the other vertebrae
    weights = ratio**power
    return torch.tensor(weights / weights.mean(), dtype=torch.float32)


def terms_named(letters: str, profile: Profile) -> list[tuple[float, Term]]:
    """ "PCES" -> the terms of those letters, with the profile's weights.   C includes the moved slices' point loss."""
    weight = profile.term_weights
    known = {"P": [(weight["P"], point_term)], "E": [(weight["E"], extent_term)], "S": [(weight["S"], separation_term)],
             "C": [(weight["P"], moved_point_term), (weight["C"], consistency_term)]}
    if set(letters) - set(known) or "P" not in letters or len(set(letters)) != len(letters):
        raise ScanError(f"terms: found {letters!r}, expected P and any of C, E, S, each once, such as P or PCES")
    return [term for letter in letters for term in known[letter]]


def full_loss(step: Step) -> Tensor:
    """Cross-entropy with full labels; only padding is left out.   For the final model and the reference."""
    return point_loss(step.logits, step.labels)


def train_weak(points: Sequence[Points], validation: Sequence[Prepared], axis: str, profile: Profile, seed: int,
               terms: Terms, watch: Watch | None = None) -> tuple[Model, History]:
    """Train a model along one axis from points.   Extents are at hand whatever the terms: yours may ask for them."""
    num_classes = classes_along(axis)
    dataset = SliceDataset(points, axis, num_classes, profile.input_px, profile.augmentation, seed, sparse=True,
                           radius_mm=EXTENT_RADIUS_MM)
    weights = point_weights(points, validation, num_classes, profile.point_weighting)
    return _train(dataset, validation, axis, profile, seed, profile.weak, terms, weights,
                  watch or Watch(f"{axis}, points"))


def train_full(scans: Sequence[Prepared], validation: Sequence[Prepared], axis: str, profile: Profile, seed: int,
               watch: Watch | None = None) -> tuple[Model, History]:
    """Train a model along one axis from the masks of scans: pseudo masks, or true ones for the reference."""
    dataset = SliceDataset(scans, axis, classes_along(axis), profile.input_px, profile.augmentation, seed)
    return _train(dataset, validation, axis, profile, seed, profile.full, [(1.0, full_loss)], None,
                  watch or Watch(f"{axis}, masks"))


def classes_along(axis: str) -> int:
    """Two on transverse slices, which show a vertebra but not its level, else six."""
    return 2 if axis == "transverse" else len(CLASSES)


def _train(dataset: SliceDataset, validation: Sequence[Prepared], axis: str, profile: Profile, seed: int,
           schedule: Schedule, terms: Terms, class_weights: Tensor | None, watch: Watch) -> tuple[Model, History]:
    modalities = tuple(sorted({scan.modality for scan in dataset.scans} - {""}))
    model = Model(profile.network(dataset.num_classes, seed).to(device()), axis, profile.grid_mm, profile.input_px,
                  modalities)
    torch.manual_seed(seed)  # for dropout: what ran before in this process must not matter
    history = fit(watch.take(model, validation[0]), watch.steps(dataset, schedule.batch, seed), terms, schedule,
                  partial(model.score, validation), class_weights, watch)
    model.network.eval()
    return model, history


def hard_predictions(models: dict[str, Model], scan: Prepared) -> dict[str, np.ndarray]:
    """Each model's labels (z, y, x) uint8 of one scan, by the model's name."""
    return {name: model.labels(scan) for name, model in models.items()}


def choose_smoothing(weak: dict[str, Model], validation: Sequence[Prepared],
                     keep: Keep = just_make) -> tuple[int, int]:
    """The denoise and erosion iterations with the best Dice_wi on the validation scans; the fewer of equals."""
    counts = np.sum([keep(f"smoothing/{scan.name}", partial(smoothing_counts, weak, scan))
                     for scan in tqdm(validation, "choosing smoothing", unit="scan")], axis=0)
    return max(zip(SMOOTHINGS, counts, strict=True), key=lambda choice: weighted_dice(choice[1]))[0]


def smoothing_counts(weak: dict[str, Model], scan: Prepared) -> np.ndarray:
    """Of one scan the confusion matrix of the pseudo mask for each of SMOOTHINGS.   -> (choices, K, K)"""
    predictions = hard_predictions(weak, scan)
    return np.stack([confusion_matrix(scan.mask, pseudo_mask(**predictions, denoise=d, erosion=e), len(CLASSES))
                     for d, e in SMOOTHINGS])


def fuse_all(weak: dict[str, Model], scans: Sequence[Prepared], smoothing: tuple[int, int],
             keep: Keep = just_make) -> dict[str, Prepared]:
    """The scans with pseudo masks in the place of their masks, by name.   smoothing: denoise and erosion iterations."""
    def fused(scan: Prepared) -> Prepared:
        return scan.with_mask(pseudo_mask(**hard_predictions(weak, scan), denoise=smoothing[0], erosion=smoothing[1]))

    return {scan.name: keep(f"pseudo/{scan.name}", partial(fused, scan))
            for scan in tqdm(scans, "fusing pseudo masks", unit="scan")}
