"""The profiles: same code, other numbers."""

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pointseg.network import FCN8VGG16, FULLY_CONNECTED, load_vgg16
from pointseg.slices import Augmentation
from pointseg.volume import ScanError


@dataclass(frozen=True)
class Schedule:
    """The learning rate, divided by one divisor after the other when the training loss stops falling, and the end."""

    learning_rate: float
    divisors: tuple[float, ...]
    rounds: tuple[int, ...]  # the most that each divisor may take
    round_steps: int  # after which losses are compared and the model is scored
    batch: int  # slices
    patience: int  # rounds without a new best loss, until the next divisor
    stop_after: int  # new best losses without a new best score, until the end

    def next_rate(self, rounds: Sequence) -> float | None:
        """The learning rate of the round that follows these (`train.Round`); None where training has come to its end.

        A stage ends after `patience` rounds without a new best loss, or after its share of rounds; training ends with
        the last stage, or after `stop_after` new best losses without a new best score.
        """
        stages = [stage for stage, most in enumerate(self.rounds) for _ in range(most)]  # of each round, at most
        at, stalled, bests_without_gain, best_loss, best_score = 0, 0, 0, math.inf, -math.inf
        for r in rounds:
            stage, at, stalled = stages[at], at + 1, stalled + 1
            gained = r.validation > best_score
            if gained:
                best_score, bests_without_gain = r.validation, 0
            if r.losses["total"] < best_loss:
                best_loss, stalled = r.losses["total"], 0
                bests_without_gain += not gained
            if bests_without_gain >= self.stop_after:
                return None
            while stalled >= self.patience and stage in stages[at:]:
                at += 1
            if stage not in stages[at:]:
                stalled = 0
        if at == len(stages):
            return None
        return functools.reduce(operator.truediv, self.divisors[: stages[at] + 1], self.learning_rate)


@dataclass(frozen=True)
class Profile:
    """Everything that differs between a laptop and a GPU."""

    name: str
    grid_mm: float
    input_px: int  # largest network input, a multiple of 32; a smaller scan gets a smaller input
    width: float
    batch_norm: bool
    finest_pool: int
    hidden: int
    imagenet: bool  # start from ImageNet's weights
    point_weighting: float  # 0: every point counts the same (thesis); 1: as many as the pixels it stands for
    terms: str  # of the weak models: P point, C consistency, E extent, S separation
    term_weights: dict[str, float]
    weak: Schedule
    full: Schedule  # the final model and the reference
    augmentation: Augmentation
    extent_radius_mm: float | tuple[float, ...] = 110.0  # no vertebra reaches further from a point in it; or a class's
    first_weights: Callable[[], Mapping[str, Tensor]] | None = None  # reads ImageNet's: see `runs.weights`

    def network(self, num_classes: int, seed: int) -> FCN8VGG16:
        """A fresh network; its first weights depend on the seed alone, and on ImageNet's where the profile says so."""
        torch.manual_seed(seed)
        network = FCN8VGG16(num_classes, self.width, self.batch_norm, self.finest_pool, self.hidden)
        if self.imagenet:
            if self.first_weights is None:
                raise ScanError(f"the {self.name} profile starts from ImageNet's weights and has none: give it "
                                "first_weights=runs.weights.read_imagenet, or imagenet=False to start from scratch")
            if missing := load_vgg16(network, self.first_weights()):
                print(f"not among the ImageNet weights, so started at random: {', '.join(missing)}")
        return network


AUGMENTATION = Augmentation(rotation_deg=6, log_scale=0.08, log_stretch=0.04, shift_px=5, log_gamma=0.25, contrast=0.1,
                            noise=0.05)

CLASSROOM = Profile(
    name="classroom", grid_mm=2.0, input_px=192, width=0.25, batch_norm=True, finest_pool=2, hidden=256, imagenet=False,
    point_weighting=0.65, terms="P",  # the other terms take twice the time and did not help in it: see tests/README.md
    term_weights={"P": 1.0, "C": 0.3, "E": 1.0, "S": 0.1},  # S reaches -9 for 6 classes, ten times any other term
    weak=Schedule(1e-3, (1, 3, 3, 3), (4, 2, 1, 1), round_steps=100, batch=8, patience=10, stop_after=100),
    full=Schedule(1e-3, (1, 3, 3, 3), (4, 2, 1, 1), round_steps=100, batch=8, patience=10, stop_after=100),
    augmentation=AUGMENTATION)

LESSON = replace(  # the notebooks' own: every cell runs in seconds, every model in half a minute
    CLASSROOM, name="lesson", grid_mm=3.0, finest_pool=1,  # pool 1's spacing of 6 mm is as near to 8 mm as 3 mm allow
    weak=replace(CLASSROOM.weak, divisors=(1, 3, 3), rounds=(3, 1, 1)),
    full=replace(CLASSROOM.full, divisors=(1, 3, 3), rounds=(3, 2, 1)),
    augmentation=replace(AUGMENTATION, shift_px=3))

THESIS_SCHEDULE = Schedule(1e-4, (1, 10, 10, 50), (1000, 1000, 1000, 1000), round_steps=250, batch=6, patience=10,
                           stop_after=10)
THESIS = Profile(
    name="thesis", grid_mm=1.0, input_px=352, width=1.0, batch_norm=False, finest_pool=3, hidden=FULLY_CONNECTED,
    imagenet=True, point_weighting=0.0, terms="PCES", term_weights={"P": 1.0, "C": 1.0, "E": 1.0, "S": 1.0},
    weak=THESIS_SCHEDULE, full=THESIS_SCHEDULE, augmentation=AUGMENTATION)

PROFILES = {p.name: p for p in (CLASSROOM, LESSON, THESIS)}
