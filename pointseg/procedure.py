"""The stages of the thesis's procedure, each a function, so that a notebook can run them one by one.

prepare -> points -> three weak models -> pseudo masks -> final model; beside it the reference, trained on true masks.
`experiment.run` is all of them, to the thesis's Table 1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pointseg.datasets.manifest import PARTS, Case
from pointseg.datasets.split import Split
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
from pointseg.predict import Model, predict_slice, validation_score
from pointseg.preprocess import Prepared, prepare
from pointseg.profiles import EXTENT_RADIUS_MM, Profile
from pointseg.runs.cache import VolumeFile, prepared_case
from pointseg.runs.checkpoint import Checkpoints
from pointseg.runs.parallel import barrier, rank, share, world_size
from pointseg.runs.run import Run
from pointseg.slices import AXES, Labelled, SliceDataset
from pointseg.train import History, Schedule, fit
from pointseg.volume import CLASSES, UNLABELLED, ScanError

SMOOTHINGS = [(denoise, erosion) for denoise in (0, 1, 2) for erosion in (0, 1, 2)]  # iterations to choose from


@dataclass(frozen=True)
class Scans:
    """The prepared scans of a split."""

    train: list[Prepared]
    validation: list[Prepared]
    test: list[Prepared]


@dataclass(frozen=True)
class Machine:
    """What a run may use, which does not change its result."""

    cache: Path | None = None  # folder for prepared scans; None: they are in memory
    workers: int = 0  # processes that make batches; 0: the training's own
    micro_batch: int | None = None  # slices at a time, where a batch does not fit into memory
    at_once: int = 1  # models trained side by side
    tensorboard: bool = False  # write for it, where checkpoints are kept


HERE = Machine()  # everything in memory, in this process


def prepare_split(split: Split, profile: Profile, cache: Path | None = None) -> Scans:
    """Read and prepare all cases of a split.

    cache: folder where they lie prepared, or are put, to be read from there; None: they are prepared into memory.  Of
    several processes each prepares some.
    """
    parts = [list(getattr(split, part)) for part in PARTS]
    bar = tqdm(total=sum(map(len, parts)), desc="preparing", unit="scan", disable=rank() > 0)

    def prepare_all(cases: Sequence[Case]) -> list[Prepared]:
        scans = []
        for case in cases:
            scans.append(prepare(case.read(), profile.grid_mm) if cache is None else
                         prepared_case(case, profile.grid_mm, cache))
            bar.update()
        return scans

    with bar:
        if cache is not None and world_size() > 1:
            for case in share(sum(parts, [])):
                prepared_case(case, profile.grid_mm, cache)
            barrier()
        return Scans(*map(prepare_all, parts))


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
    def shares(maps: Iterable[np.ndarray]) -> np.ndarray:
        counts = sum(np.bincount(m[m != UNLABELLED], minlength=len(CLASSES)) for m in maps).astype(float)
        counts = np.array([counts[0], counts[1:].sum()]) if num_classes == 2 else counts
        return counts / counts.sum()

    voxels, drawn = shares(scan.mask for scan in validation), shares(p.labels for p in points)  # one at a time
    ratio = np.divide(voxels, drawn, out=np.zeros(num_classes), where=drawn > 0)
    ratio[ratio == 0] = ratio[1:].max(initial=0) or 1.0  # a class that is missing there: as the other vertebrae
    weights = ratio**power
    return torch.tensor(weights / weights.mean(), dtype=torch.float32)


def full_loss(step: Step) -> Tensor:
    """Cross-entropy with full labels; only padding is left out.   For the final model and the reference."""
    return point_loss(step.logits, step.labels, None, step.labelled)


def train_weak(points: Sequence[Labelled], validation: Sequence[Prepared], axis: str, profile: Profile, seed: int,
               terms: Sequence[tuple[float, Term]], split: dict[str, list[str]], keeper: Checkpoints | None = None,
               machine: Machine = HERE) -> tuple[Model, History]:
    """Train a model along one axis from points: two classes on transverse slices, else six."""
    num_classes = 2 if axis == "transverse" else len(CLASSES)
    dataset = SliceDataset(points, axis, num_classes, profile.input_px, profile.augmentation, seed, sparse=True,
                           radius_mm=EXTENT_RADIUS_MM)
    weights = point_weights(points, validation, num_classes, profile.point_weighting)
    return _train(dataset, validation, axis, profile, seed, profile.weak, terms, split, f"{axis}, points", keeper,
                  machine, weights)


def train_full(labelled: Sequence[Labelled], validation: Sequence[Prepared], axis: str, profile: Profile, seed: int,
               split: dict[str, list[str]], name: str, keeper: Checkpoints | None = None,
               machine: Machine = HERE) -> tuple[Model, History]:
    """Train a model along one axis from label volumes: pseudo masks, or true ones for the reference."""
    num_classes = 2 if axis == "transverse" else len(CLASSES)
    dataset = SliceDataset(labelled, axis, num_classes, profile.input_px, profile.augmentation, seed)
    return _train(dataset, validation, axis, profile, seed, profile.full, [(1.0, full_loss)], split, name, keeper,
                  machine)


def _train(dataset: SliceDataset, validation: Sequence[Prepared], axis: str, profile: Profile, seed: int,
           schedule: Schedule, terms: Sequence[tuple[float, Term]], split: dict[str, list[str]], name: str,
           keeper: Checkpoints | None, machine: Machine, class_weights: Tensor | None = None) -> tuple[Model, History]:
    network = profile.network(dataset.num_classes, seed).to(device())
    if keeper:
        keeper.picture = partial(picture_of, scan=validation[0], axis=axis, input_px=profile.input_px)
        keeper.tensorboard = machine.tensorboard
    history = fit(network, dataset, terms, schedule,
                  lambda n: validation_score(n, validation, axis, profile.input_px), seed, name, class_weights, keeper,
                  machine.workers, machine.micro_batch)
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
    return best_smoothing([smoothing_counts(p, scan) for p, scan in zip(predictions, scans, strict=True)])


def smoothing_counts(predictions: dict[str, np.ndarray], scan: Prepared) -> np.ndarray:
    """Of one scan the confusion matrix of the pseudo mask for each choice.   -> (choices, K, K)"""
    return np.stack([confusion_matrix(scan.mask, pseudo_mask(**predictions, denoise=d, erosion=e), len(CLASSES))
                     for d, e in SMOOTHINGS])


def best_smoothing(counts: Sequence[np.ndarray]) -> tuple[int, int]:
    """`choose_smoothing`, from the counts of each scan."""
    return max(zip(SMOOTHINGS, sum(counts), strict=True), key=lambda choice: weighted_dice(choice[1]))[0]


def picture_of(network: nn.Module, scan: Prepared, axis: str, input_px: int) -> np.ndarray:
    """The middle slice of a scan's vertebrae: what the network sees there, beside the truth.   -> (H, W, 3) uint8"""
    from pointseg.report.plot import centre_of, pair

    at = centre_of(scan.mask)[AXES[axis]]
    labels = predict_slice(network, scan, axis, at, input_px)
    return pair(scan.image.take(at, AXES[axis]), labels, scan.mask.take(at, AXES[axis]))


def fuse_all(weak: dict[str, Model], scans: Sequence[Prepared], smoothing: tuple[int, int],
             kept: Run | None = None) -> dict[str, np.ndarray | VolumeFile]:
    """Pseudo masks (z, y, x) uint8 by scan name.   smoothing: denoise and erosion iterations; kept: the run they are a
    part of, whose folder then holds them."""
    kept = kept or Run()
    return {scan.name: kept.volume(f"pseudo/{scan.name}", lambda scan=scan: pseudo_mask(
                **hard_predictions(weak, scan), denoise=smoothing[0], erosion=smoothing[1]))
            for scan in tqdm(scans, "fusing pseudo masks", unit="scan")}
