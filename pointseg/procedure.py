"""The whole procedure, from prepared scans to the result, the reference and the rivals.   `run` is all of it.

Each of its steps is a function that can be called alone.  `learn` is what an expert's labels are made into: it sees no
label but those it is given.  Each piece of work is made through `keep(name, make)`, which is make() here; `runs` hands
in one that stores what was made, and next time returns that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from pointseg import losses
from pointseg.estimate import class_weights
from pointseg.fusion import Keep, answers, choose_smoothing, choose_threshold, fuse_all, just_make
from pointseg.losses import Step, Term
from pointseg.network import device
from pointseg.points import draw_labels, draw_rivals, has_masks, unlabelled
from pointseg.predict import Model, ThreeAxes
from pointseg.preprocess import Prepared, Scans
from pointseg.profiles import Profile, Schedule
from pointseg.slices import AXES, SliceDataset
from pointseg.train import History, Watch, fit
from pointseg.volume import CLASSES, ScanError

Terms = Sequence[tuple[float, Term]]


@dataclass
class Outcome:
    """What the procedure has made."""

    labelled: dict[str, Scans]  # what each arm has learned from and chosen by: result, reference, slices, whole_scans
    models: dict[str, Model | ThreeAxes] = field(default_factory=dict)  # by axis or arm, and result_sagittal and so on
    histories: dict[str, History] = field(default_factory=dict)  # of the models of one axis
    smoothing: tuple[int, int] | None = None  # denoise and erosion iterations of the vote; None: the mean was better
    pseudo: dict[str, Prepared] = field(default_factory=dict)  # training and test scans with pseudo masks, by name


def run(scans: Scans, profile: Profile, seed: int = 0, terms: Terms | None = None, labelled: Scans | None = None,
        keep: Keep = just_make, rounds: int = 1, rivals: dict[str, Scans] | None = None) -> Outcome:
    """The result, from labels alone; beside it the reference, from all masks, and its rivals, from some.

    terms: of the weak models, where not the profile's.  labelled: training and validation scans with an expert's
    labels, where not points drawn from their masks.  rivals: by name; where not given, as `draw_rivals`.  Where some
    of these scans have no mask there is neither reference nor rival.
    """
    labelled = labelled or draw_labels(scans, "points", seed)
    outcome = learn(labelled, [unlabelled(scan) for scan in scans.test], profile, seed, terms, keep, rounds)
    for arm, known in supervised(scans, seed, rivals).items():
        outcome.labelled[arm] = known
        train_three(outcome, arm, full_makes(arm, known, profile, seed), known.validation, keep)
    return outcome


def supervised(scans: Scans, seed: int, rivals: dict[str, Scans] | None = None) -> dict[str, Scans]:
    """What learns from masks, by arm: the reference from all, its rivals from some; no arm where a scan has no mask."""
    return {"reference": scans} | (draw_rivals(scans, seed) if rivals is None else rivals) if has_masks(scans) else {}


def learn(labelled: Scans, others: Sequence[Prepared], profile: Profile, seed: int, terms: Terms | None = None,
          keep: Keep = just_make, rounds: int = 1) -> Outcome:
    """Three weak models, pseudo masks, and from those the result: three models, one an axis.

    labelled: all that is known of training and validation scans; it trains, weighs the classes, and chooses each
    model's best weights, the thresholds, and how pseudo masks are made.  others: scans that get pseudo masks as well,
    only to be scored.  rounds: in each after the first, the answers of the result so far are the pseudo masks.
    """
    outcome, validation = Outcome({"result": labelled}), labelled.validation
    make_pseudo_masks(outcome, labelled, [*labelled.train, *others], profile, seed, terms, keep)
    pseudo = outcome.pseudo
    for turn in range(1, rounds + 1):
        arm = "result" if turn == rounds else f"round{turn}"
        learned = replace(labelled, train=[pseudo[scan.name] for scan in labelled.train])
        result, _ = train_three(outcome, arm, full_makes(arm, learned, profile, seed), validation, keep)
        if turn < rounds:
            pseudo = answers(result, labelled.train, arm, keep)
    return outcome


def make_pseudo_masks(outcome: Outcome, labelled: Scans, scans: Sequence[Prepared], profile: Profile, seed: int,
                      terms: Terms | None = None, keep: Keep = just_make) -> None:
    """Three weak models, and pseudo masks of these scans: their mean or their vote, which the labels say is better."""
    mean, score = train_three(outcome, "weak", weak_makes(labelled, profile, seed, terms), labelled.validation, keep)
    weak = {axis: outcome.models[axis] for axis in AXES}
    smoothing, score_of_vote = choose_smoothing(weak, labelled.validation, keep)
    if score_of_vote > score:
        outcome.smoothing, outcome.pseudo = smoothing, fuse_all(weak, scans, smoothing, keep)
    else:
        outcome.pseudo = answers(mean, scans, "weak", keep)


def train_three(outcome: Outcome, arm: str, makes: dict[str, Callable], validation: Sequence[Prepared],
                keep: Keep = just_make) -> tuple[ThreeAxes, float]:
    """Train an arm's models, one an axis, and put them together.   -> with their Dice_wi by the validation labels"""
    for name, make in makes.items():
        outcome.models[name], outcome.histories[name] = keep(name, make)
    outcome.models[arm], score = choose_threshold(ThreeAxes(*(outcome.models[name] for name in makes)), validation,
                                                  arm, keep)
    return outcome.models[arm], score


def weak_makes(labelled: Scans, profile: Profile, seed: int, terms: Terms | None = None) -> dict[str, Callable]:
    """What trains each weak model, by its name."""
    terms = terms or terms_named(profile.terms, profile)
    return {axis: partial(train_weak, labelled, axis, profile, seed, terms) for axis in AXES}


def full_makes(arm: str, labelled: Scans, profile: Profile, seed: int) -> dict[str, Callable]:
    """What trains each of the three models of an arm, by its name."""
    return {f"{arm}_{axis}": partial(train_full, labelled, axis, profile, seed) for axis in AXES}


def terms_named(letters: str, profile: Profile) -> list[tuple[float, Term]]:
    """ "PCES" -> the terms of those letters, with the profile's weights.   C includes the moved slices' point loss."""
    weight = profile.term_weights
    known = {"P": [(weight["P"], losses.point_term)], "E": [(weight["E"], losses.extent_term)],
             "C": [(weight["P"], losses.moved_point_term), (weight["C"], losses.consistency_term)],
             "S": [(weight["S"], losses.separation_term)]}
    if set(letters) - set(known) or "P" not in letters or len(set(letters)) != len(letters):
        raise ScanError(f"terms: found {letters!r}, expected P and any of C, E, S, each once, such as P or PCES")
    return [term for letter in letters for term in known[letter]]


def full_loss(step: Step) -> Tensor:
    """Cross-entropy with full labels; only padding is left out.   For the final model and the reference."""
    return losses.point_loss(step.logits, step.labels)


def train_weak(labelled: Scans, axis: str, profile: Profile, seed: int, terms: Terms,
               watch: Watch | None = None) -> tuple[Model, History]:
    """Train a model along one axis from points.   Extents are at hand whatever the terms: yours may ask for them."""
    num_classes = classes_along(axis)
    dataset = SliceDataset(labelled.train, axis, num_classes, profile.input_px, profile.augmentation, seed,
                           profile.extent_radius_mm)
    weights = class_weights(labelled.train, num_classes, profile.point_weighting)
    return _train(dataset, labelled.validation, axis, profile, seed, profile.weak, terms, weights,
                  watch or Watch(f"{axis}, points"))


def train_full(labelled: Scans, axis: str, profile: Profile, seed: int,
               watch: Watch | None = None) -> tuple[Model, History]:
    """Train a model along one axis from masks of scans or of some slices: pseudo masks, or true ones."""
    dataset = SliceDataset(labelled.train, axis, classes_along(axis), profile.input_px, profile.augmentation, seed)
    return _train(dataset, labelled.validation, axis, profile, seed, profile.full, [(1.0, full_loss)], None,
                  watch or Watch(f"{axis}, masks"))


def classes_along(axis: str) -> int:
    """Two on transverse slices, which show a vertebra but not its level, else six."""
    return 2 if axis == "transverse" else len(CLASSES)


def _train(dataset: SliceDataset, validation: Sequence[Prepared], axis: str, profile: Profile, seed: int,
           schedule: Schedule, terms: Terms, weights: Tensor | None, watch: Watch) -> tuple[Model, History]:
    modalities = tuple(sorted({scan.modality for scan in dataset.scans} - {""}))
    model = Model(profile.network(dataset.num_classes, seed).to(device()), axis, profile.grid_mm, profile.input_px,
                  modalities)
    torch.manual_seed(seed)  # for dropout: what ran before in this process must not matter
    history = fit(watch.take(model, validation[0]), watch.steps(dataset, schedule.batch, seed), terms, schedule,
                  partial(model.score, validation), weights, watch)
    model.network.eval()
    return model, history
