"""For the assignments in notebooks/course: is a loss term of one's own sound, and what does it do in a small training?

    print(check_term(my_term, invariant=("flip", "rotation")))
    bench(yours=[(1.0, point_term), (0.5, my_term)], thesis=[(1.0, point_term), (0.1, separation_term)])
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch

from pointseg.kernels import confusion_matrix
from pointseg.lessons import SEED, lesson_cases
from pointseg.lessons.checks import Report, check_term, example_step
from pointseg.losses import Term, point_term
from pointseg.metrics import per_class, weighted_dice
from pointseg.network import FCN8VGG16, device
from pointseg.points import Points, draw_points
from pointseg.predict import Model
from pointseg.preprocess import Prepared, prepare
from pointseg.profiles import AUGMENTATION, CLASSROOM, Schedule
from pointseg.report.plot import Figure, legend, overlay
from pointseg.slices import SliceDataset
from pointseg.train import Watch, fit
from pointseg.volume import BACKGROUND, CLASSES

__all__ = ["Bench", "Report", "Trained", "bench", "check_term", "example_step"]

GRID_MM, INPUT_PX, TRAIN, VALIDATION = 4.0, 96, 16, 4  # scans
SCHEDULE = Schedule(learning_rate=3e-3, divisors=(1, 4), rounds=(3, 1), round_steps=100, batch=8, patience=10,
                    stop_after=100)
Terms = Sequence[tuple[float, Term]]


@dataclass
class Trained:
    """What one list of terms gave on the validation scans."""

    confusion: np.ndarray  # (K, K), rows truth
    predictions: list[np.ndarray]  # (z, y, x) uint8 of each validation scan
    seconds: float

    @property
    def dice_wi(self) -> float:
        return weighted_dice(self.confusion)


@dataclass
class Bench:
    """The trainings by name, or, where terms were refused, the sentences that say why."""

    trained: dict[str, Trained] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if self.refused:
            return "\n".join(["No result yet.", *self.refused])
        trained = self.trained.values()
        rows = {"": list(self.trained), "Dice_wi": [f"{t.dice_wi:.2f}" for t in trained]}
        rows |= {f"Dice {name}": [f"{per_class(t.confusion).dice[k]:.2f}" for t in trained]
                 for k, name in enumerate(CLASSES) if k != BACKGROUND}
        rows["seconds"] = [f"{t.seconds:.0f}" for t in trained]
        return "\n".join(f"{name:<10}" + "".join(f"{x:>14}" for x in row) for name, row in rows.items())

    __repr__ = __str__

    @property
    def figure(self) -> Figure | None:
        """The middle slice of a validation scan: image, truth and each prediction; None where terms were refused."""
        if self.refused:
            return None
        scan = task()[1][0]
        at = int(np.rint(np.argwhere(scan.mask != BACKGROUND)[:, 2].mean()))  # the middle of the vertebrae
        shown = {"image": np.zeros_like(scan.mask), "truth": scan.mask}
        shown |= {name: t.predictions[0] for name, t in self.trained.items()}
        figure = Figure((8, 3.2), layout="constrained")
        for ax, (name, labels) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
            overlay(ax, scan.image[:, :, at], labels[:, :, at], scan.spacing_mm[:2])
            ax.set_title(name, fontsize=10)
        legend(figure)
        return figure


def bench(yours: Terms, thesis: Terms) -> Bench:
    """Train the same network on the same points three times: with the point loss alone, the thesis's terms, and yours.

    Sagittal slices of a few scans on a coarse grid, seconds a training: enough to see what a term does, too little to
    decide between two scores that are close.  Nothing is trained where `check_term` finds one of the terms wrong.
    """
    refused = [f"{name_of(term)}: {sentence}" for _, term in [*thesis, *yours] for sentence in check_term(term).failed]
    if refused:
        return Bench(refused=refused)
    try:
        return Bench({"points alone": trained_once(((1.0, point_term),)), "thesis": trained_once(tuple(thesis)),
                      "yours": train(yours)})
    except FloatingPointError as error:
        return Bench(refused=[f"WRONG: {error}"])


def name_of(term: Term) -> str:
    return getattr(term, "__name__", type(term).__name__)


@cache
def task() -> tuple[list[Points], list[Prepared]]:
    """Points of the training scans, and the validation scans."""
    scans = [prepare(case.read(), GRID_MM) for case in lesson_cases()[: TRAIN + VALIDATION]]
    return draw_points(scans[:-VALIDATION], SEED), scans[-VALIDATION:]


def train(terms: Terms) -> Trained:
    points, validation = task()
    dataset = SliceDataset(points, "sagittal", len(CLASSES), INPUT_PX, replace(AUGMENTATION, shift_px=2), SEED,
                           radius_mm=CLASSROOM.extent_radius_mm)
    torch.manual_seed(SEED)
    network = FCN8VGG16(len(CLASSES), width=0.125, batch_norm=True, finest_pool=1, hidden=64).to(device())
    model, watch = Model(network, "sagittal", GRID_MM, INPUT_PX), Watch(" + ".join(name_of(t) for _, t in terms))
    start = time.monotonic()
    torch.manual_seed(SEED)  # for dropout
    fit(network, watch.steps(dataset, SCHEDULE.batch, SEED), terms, SCHEDULE, lambda: model.score(validation),
        watch=watch)
    seconds = time.monotonic() - start
    predictions = [model.labels(scan) for scan in validation]
    confusion = sum(confusion_matrix(s.mask, p, len(CLASSES)) for s, p in zip(validation, predictions, strict=True))
    return Trained(confusion, predictions, seconds)


trained_once = cache(train)  # the same functions with the same weights: the package's own, which do not change
