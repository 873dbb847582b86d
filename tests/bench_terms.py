"""Which loss terms, weights and rules of fusion help?  The arena: lines in six folds, on validation scans.

    python tests/bench_terms.py [--data ../shared/data --source myosegmentum] [--lines P PC ..] [--folds 0 1 2 3 4 5]
                                [--repeats 0] [--processes 2] [--minutes N] [--out out/terms] [--csv FILE] [--report]

A run is a line in a fold: three weak models at half the classroom's schedule, from points, chosen by points.  Its rows
are the confusion matrices of each validation and training scan on the prepared grid.  Test scans are not looked at.
Printed: Dice_wi of each line, and its difference to the line it is a change of, with a 95 % interval that resamples
patients.  With twenty lines one false finding is expected: a finding is what holds again in another repeat, with new
points and first weights (`--repeats 1`).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from folds import Run, Silent, measure, options, read_arrays, scans_of
from scipy import ndimage
from torch import Tensor

from pointseg.estimate import class_voxels, known_truth
from pointseg.fusion import choose_smoothing, choose_threshold, hard_predictions, pseudo_mask
from pointseg.kernels import confusion_matrix
from pointseg.losses import Step, Term, point_loss
from pointseg.metrics import weighted_dice
from pointseg.points import Points, draw_labels, draw_points
from pointseg.predict import Model, ThreeAxes
from pointseg.preprocess import Prepared, Scans
from pointseg.procedure import terms_named, train_full, train_weak
from pointseg.profiles import CLASSROOM, Profile
from pointseg.report.compare import (
    Row,
    by_patient,
    compared,
    in_text,
    interval,
    resampled,
    time_of,
    verdict,
)
from pointseg.slices import AXES
from pointseg.volume import BACKGROUND, CLASSES, UNLABELLED

HALF = replace(CLASSROOM, weak=replace(CLASSROOM.weak, rounds=(2, 1, 1, 0)))
STEPS, FINAL_STEPS = (sum(s.rounds) * s.round_steps for s in (HALF.weak, HALF.full))
NEAR_MM = 12.0  # of a vertebra: as far as a model that grows over its edge


# --- terms that the package does not have

def by_number(labelled: Scans, axis: str) -> Term:
    """Every class's points have the same say, however many there are."""
    classes = 2 if axis == "transverse" else len(CLASSES)
    values = np.concatenate([known_truth(scan.values, classes) for scan in labelled.train])
    counts = np.bincount(values, minlength=classes)
    weights = torch.tensor(np.divide(1, counts, out=np.zeros(classes), where=counts > 0), dtype=torch.float32)
    weights /= weights.mean()

    def number_weighted_point_term(step: Step) -> Tensor:
        return point_loss(step.logits, step.labels, weights.to(step.logits.device))
    return number_weighted_point_term


def pairwise_term(step: Step, sigma: float = 0.1) -> Tensor:
    """Neighbours that look alike should be of one class."""
    p, image, total, pairs = step.logits.softmax(1), step.image[:, 1], 0.0, 0
    for axis in (-1, -2):
        alike = torch.exp(-(image.diff(dim=axis) ** 2) / (2 * sigma**2))
        total, pairs = total + (alike * (p.diff(dim=axis) ** 2).sum(1)).sum(), pairs + alike.numel()
    return total / pairs


def size_prior(labelled: Scans, axis: str) -> Term:
    """A vertebra with a point on a slice should be about as large there as points say that sections are.

    The mean section is the class's estimated voxels divided by the slices with a point of it; half of it to twice it is
    free, since sections at a vertebra's edge are small.
    """
    classes, along = 2 if axis == "transverse" else len(CLASSES), AXES[axis]
    voxels, slices = np.zeros(len(CLASSES)), 0
    for scan in labelled.train:
        voxels += class_voxels(scan)
        slices += len({(k, i) for k, i in zip(known_truth(scan.values, classes), scan.places[:, along]) if k})
    section = voxels[1:].sum() / slices  # pixels

    def size_prior_term(step: Step) -> Tensor:
        pixels = step.logits[0, 0].numel()
        share = step.logits.softmax(1).mean((2, 3))[:, 1:]
        shown = torch.stack([(step.labels == k).flatten(1).any(1) for k in range(1, step.logits.shape[1])], 1)
        low, high = section / 2 / pixels, section * 2 / pixels
        outside = (low - share).clamp(min=0) + (share - high).clamp(min=0)
        return (shown * (outside / share.clamp(min=low)) ** 2).sum() / shown.sum().clamp(min=1)
    return size_prior_term


def rotation_term(step: Step, degrees: float = 10.0) -> Tensor:
    """Consistency with a small rotation instead of quarter turns, which no scanner makes."""
    angle = torch.deg2rad(degrees * torch.randn(()))
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin(), angle * 0]),
                        torch.stack([angle.sin(), angle.cos(), angle * 0])]).to(step.image.device)

    def turned(x: Tensor) -> Tensor:
        grid = F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x.float(), grid, align_corners=False)
    inside = turned(torch.ones_like(step.logits[:, :1])) > 0.5
    apart = (turned(step.logits) - step.network(turned(step.image))).abs()
    return (apart * inside).mean()


def distance_apart(labelled: Scans, axis: str) -> tuple[float, ...]:
    """Of each class the largest distance, mm, of two of its points on a slice: its extent's radius, and a tenth more.

    A vertebra lies within its diameter of each of its points; the background has no extent.
    """
    classes, along = 2 if axis == "transverse" else len(CLASSES), AXES[axis]
    largest = np.full(classes, 10.0)
    for scan in labelled.train:
        places, values = scan.along(along)
        mm = places[:, 1:] * np.delete(scan.spacing_mm, along)
        cuts = np.flatnonzero(np.diff(places[:, 0], prepend=-1))
        for here, known in zip(np.split(mm, cuts[1:]), np.split(known_truth(values, classes), cuts[1:])):
            for k in np.unique(known[known != BACKGROUND]):
                of_class = here[known == k]
                largest[k] = max(largest[k], np.sqrt(((of_class[:, None] - of_class) ** 2).sum(-1)).max())
    return tuple((1.1 * largest).tolist())


# --- labels that the package does not draw

def background_near(scans: Scans, seed: int) -> Scans:
    """Points whose background is drawn anew where a slice shows a vertebra: three of five within NEAR_MM of one."""
    return Scans(*([_near(scan, points, (seed, i)) for i, (scan, points) in enumerate(zip(part, draw_points(part, seed),
                                                                                          strict=True))]
                   for part in (scans.train, scans.validation)))


def _near(scan: Prepared, points: Points, seed: tuple[int, ...]) -> Points:
    labels, rng = points.mask, np.random.default_rng((*seed, 1))
    for x in range(scan.shape[2]):
        plane, shown = labels[:, :, x], scan.mask[:, :, x] != BACKGROUND
        if shown.any():
            distance = ndimage.distance_transform_edt(~shown, scan.spacing_mm[:2])
            near = np.flatnonzero((distance > 0) & (distance <= NEAR_MM))
            old = np.flatnonzero(plane == BACKGROUND)
            moved = rng.choice(old, min(3, len(old)), replace=False)
            plane.flat[moved] = UNLABELLED
            plane.flat[rng.choice(near, min(len(moved), len(near)), replace=False)] = BACKGROUND
    return Points.of(scan, labels)


# --- lines

@dataclass(frozen=True)
class Line:
    """A change of the weak models' training.   terms, radius: given the labels and the axis."""

    than: str = "P"  # the line that it is compared with
    letters: str = "P"
    further: dict[float, Callable[[Scans, str], Term]] = field(default_factory=dict)  # by weight
    instead: Callable[[Scans, str], Term] | None = None  # of the point term
    weighting: float = CLASSROOM.point_weighting
    radius: Callable[[Scans, str], float | tuple[float, ...]] | None = None
    labels: Callable[[Scans, int], Scans] = lambda scans, seed: draw_labels(scans, "points", seed)
    passes: int = 1  # of the network in a step

    def profile(self, labelled: Scans, axis: str, half: Profile) -> Profile:
        radius = self.radius(labelled, axis) if self.radius else half.extent_radius_mm
        return replace(half, point_weighting=self.weighting, extent_radius_mm=radius)

    def terms(self, labelled: Scans, axis: str, profile: Profile) -> list[tuple[float, Term]]:
        terms = terms_named(self.letters, profile)
        if self.instead:
            terms[0] = (1.0, self.instead(labelled, axis))
        return terms + [(weight, make(labelled, axis)) for weight, make in self.further.items()]


def always(value):
    return lambda labelled, axis: value


LINES = {
    "P": Line(),
    "P unweighted": Line(weighting=0.0),
    "P by number": Line(instead=by_number),
    "PC": Line(letters="PC", passes=2),
    "PE": Line(letters="PE"),
    "PE 60 mm": Line(letters="PE", radius=always(60.0)),
    "PE 45 mm": Line(letters="PE", radius=always(45.0)),
    "PE a level": Line(letters="PE", radius=distance_apart),
    "PS": Line(letters="PS"),
    "PCES": Line(letters="PCES", passes=2),
    "PE unweighted": Line("P unweighted", "PE", weighting=0.0),
    "PE 45 mm unweighted": Line("P unweighted", "PE", weighting=0.0, radius=always(45.0)),
    "PCES unweighted": Line("P unweighted", "PCES", weighting=0.0, passes=2),
    "pairwise": Line(further={1.0: always(pairwise_term)}),
    "size prior": Line(further={0.3: size_prior}),
    "rotations": Line(further={0.3: always(rotation_term)}, passes=2),
    "background near": Line(labels=background_near),
}
FINALS = "finals"  # not a change of the weak models: sagittal models that learn from their pseudo masks
LINES[FINALS] = Line()
WITH_ALL_ANSWERS = ("P", "P unweighted", FINALS)  # the others have the mean of the three models alone
ANSWERS = {"vote": "vote", "ordered": "levels in order", "average": "mean of the last weights",
           "undisputed": "levels in order, disputed voxels unlabelled"}
Answer = Callable[[Prepared], np.ndarray]  # labels (z, y, x) of a scan


class LastWeights(Silent):
    """Also takes the mean of the network's weights over the last round."""

    def start(self, training) -> None:
        self.sum, self.count = {}, 0
        s = training.schedule
        self.begin = (sum(s.rounds) - 1) * s.round_steps

    def after_step(self, training) -> None:
        if training.step > self.begin:
            self.count += 1
            for name, x in training.network.state_dict().items():
                self.sum[name] = self.sum.get(name, 0) + x.detach().double()

    def mean_of(self, model: Model) -> Model:
        network = copy.deepcopy(model.network)
        network.load_state_dict({name: (x / self.count).to(model.network.state_dict()[name].dtype)
                                 for name, x in self.sum.items()})
        return replace(model, network=network.eval())


class Said:
    """What a model says of each scan, found once."""

    def __init__(self, model: Model):
        self.model, self.num_classes, self.of_scan = model, model.num_classes, {}

    def probabilities(self, scan: Prepared) -> np.ndarray:
        if scan.name not in self.of_scan:
            self.of_scan[scan.name] = self.model.probabilities(scan)
        return self.of_scan[scan.name].copy()

    def labels(self, scan: Prepared) -> np.ndarray:
        return self.probabilities(scan).argmax(0).astype(np.uint8)


def trained(line: Line, labelled: Scans, seed: int, half: Profile) -> tuple[dict[str, Model], dict[str, Model]]:
    """The line's weak models by axis, and the same with the mean of their last weights."""
    models, averages = {}, {}
    for axis in AXES:
        profile, watch = line.profile(labelled, axis, half), LastWeights(axis)
        models[axis], _ = train_weak(labelled, axis, profile, seed, line.terms(labelled, axis, profile), watch)
        averages[axis] = watch.mean_of(models[axis])
    return models, averages


def do(arrays: Path, run: Run) -> list[Row]:
    data, line = read_arrays(arrays), LINES[run.line]
    scans = scans_of(data, run.fold)
    labelled = line.labels(scans, run.seed)
    models, averages = trained(line, labelled, run.seed, HALF)
    time = time_of(labelled, scans)
    said = {axis: Said(model) for axis, model in models.items()}
    rules = pseudo_mask_rules(run.line, said, averages, labelled)
    answers = {"validation": rules | {axis: model.labels for axis, model in said.items()}, "train": rules}
    if run.line == FINALS:
        answers = {"validation": finals(rules, said, labelled, run.seed)}
    rows = []
    for part, of_part in answers.items():
        for scan in getattr(scans, part):
            for name, answer in of_part.items():
                k = 2 if name == "transverse" else len(CLASSES)
                matrix = confusion_matrix(known_truth(scan.mask, k), answer(scan), k)
                rows.append(Row(run.line, run.repeat, run.fold, part, scan.name, data.patients[scan.name], name, *time,
                                in_text(matrix)))
            if part == "train":
                for model in said.values():
                    del model.of_scan[scan.name]
    return rows


def pseudo_mask_rules(line: str, weak: dict, averages: dict, labelled: Scans) -> dict[str, Answer]:
    """Ways to make pseudo masks of three weak models, by name, their thresholds chosen by the validation labels."""
    three = {"mean": ThreeAxes(**weak, ordered=False)}
    if line in WITH_ALL_ANSWERS:
        three |= {"ordered": ThreeAxes(**weak), "average": ThreeAxes(**averages, ordered=False)}
    rules = {name: choose_threshold(model, labelled.validation)[0].labels for name, model in three.items()}
    if line in WITH_ALL_ANSWERS:
        (denoise, erosion), _ = choose_smoothing(weak, labelled.validation)
        rules["vote"] = lambda scan: pseudo_mask(**hard_predictions(weak, scan), denoise=denoise, erosion=erosion)
    return rules


def finals(rules: dict[str, Answer], weak: dict, labelled: Scans, seed: int) -> dict[str, Answer]:
    """What a sagittal model says that learned from each rule's pseudo masks; last with disputed voxels unlabelled."""
    def undisputed(scan: Prepared) -> np.ndarray:
        t, c, s = hard_predictions(weak, scan).values()
        return np.where(((t > 0) == (s > 0)) & (c == s), rules["ordered"](scan), np.uint8(UNLABELLED))

    answers = {}
    for name, rule in (rules | {"undisputed": undisputed}).items():
        if name != "average":
            learned = replace(labelled, train=[scan.with_mask(rule(scan)) for scan in labelled.train])
            answers[name] = train_full(learned, "sagittal", HALF, seed)[0].labels
    return answers


def report(rows: list[Row]) -> None:
    scored = [row for row in rows if row.part == "validation"]
    print("\nDice_wi on validation scans, prepared grid; differences, with 95 % intervals over patients, of the first "
          "points and weights, of new ones, of all")
    print(f"{'':<52}{'runs':>5}{'trans.':>8}{'cor.':>7}{'sag.':>7}  {'together':<22}{'train':>6}")
    for title, line, answer, than in comparisons():
        ours = by_patient(scored, line=line, answer=answer)
        if not ours:
            print(f"{title:<52}   not run")
            continue
        text = f"{title:<52}{len({(row.repeat, row.fold) for row in scored if row.line == line}):>5}"
        for axis, width in zip(AXES, (8, 7, 7), strict=True):
            of_axis = by_patient(scored, line=line, answer=axis)
            text += f"{weighted_dice(sum(of_axis.values())):>{width}.3f}" if of_axis else " " * width
        text += "  {:.3f} [{:.3f}, {:.3f}]  ".format(*interval(resampled(ours)))
        training = by_patient(rows, part="train", line=line, answer=answer)
        text += f"{weighted_dice(sum(training.values())):>6.3f}" if training else " " * 6
        if than != (line, answer):
            shown = verdicts(scored, (line, answer), than)
            text += f"   to {than[0]}: " + ", ".join(
                "{:+.3f} [{:+.3f}, {:+.3f}]".format(*x) if x else "-" for x in shown.values())
            text += f" {verdict(*shown['all'][1:])}" if shown["all"] else ""
        print(text)


def verdicts(scored: Sequence[Row], ours: tuple[str, str], than: tuple[str, str]) -> dict[str, tuple | None]:
    """The difference in the first runs, again with new points and first weights, and of all together; None: not run."""
    of = {"first": [row for row in scored if row.repeat == 0], "again": [row for row in scored if row.repeat > 0],
          "all": scored}
    return {name: compared(part, ours, than) if all(by_patient(part, line=line, answer=answer)
                                                    for line, answer in (ours, than)) else None
            for name, part in of.items()}


def comparisons() -> list[tuple[str, str, str, tuple[str, str]]]:
    """Title, line, answer, and line and answer to compare with."""
    of_lines = [(name, name, "mean", (line.than, "mean")) for name, line in LINES.items()]
    return of_lines + [(f"{line}, {title}", line, answer, (line, "mean"))
                       for line in WITH_ALL_ANSWERS for answer, title in ANSWERS.items()
                       if answer != ("average" if line == FINALS else "undisputed")]


def main() -> None:
    o = options(f"{__doc__}\nlines: {', '.join(LINES)}", "out/terms").parse_args()
    rows = measure(LINES, do, lambda run, step: step * 1.2 * (3 * STEPS * LINES[run.line].passes  # 1.2: load and score
                                                              + 4 * FINAL_STEPS * (run.line == FINALS)), o)
    report(rows)


if __name__ == "__main__":
    main()
