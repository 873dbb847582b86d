"""An expert has N minutes: what should be labelled?  Dice_wi against labelling time, for labels of every kind.

    python tests/bench_minutes.py [--data ../shared/data --source myosegmentum] [--lines ..] [--folds 0 1 2 3 4 5]
                                  [--repeats 0] [--processes 2] [--minutes N] [--out out/minutes] [--csv FILE]
                                  [--figure FILE] [--report]

A run is an arm in a fold: a sagittal model of the classroom profile that learns from masks of scans or slices as they
are, or from the pseudo masks of three weak models (at half the schedule) where points are among the labels.  Each arm
is charged for, and chooses by, validation labels of its own kind.  Its rows are the confusion matrices of the test
scans in their own geometry, as the model labels them and with levels in order, which is what is printed.  Intervals
resample patients.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from folds import ORDERED, Run, confusions, measure, options, read_arrays, scans_of

from pointseg.points import SAGITTAL, Points, sample_points, sample_slices
from pointseg.preprocess import Prepared, Scans
from pointseg.procedure import Outcome, make_pseudo_masks, train_full
from pointseg.profiles import CLASSROOM
from pointseg.report.compare import REFERENCE, Curves, Row, in_text, interval, time_of
from pointseg.volume import BACKGROUND, UNLABELLED

PROFILE = replace(CLASSROOM, weak=replace(CLASSROOM.weak, rounds=(2, 1, 1, 0)))
TRAIN_SCANS = 20  # of a fold of MyoSegmenTUM: "masks of 3" are 3 of these, and as many of a hundred validation scans
SHARES = (0.01, 0.02, 0.035, 0.07, 0.1, 0.14)  # of the time for full masks: where kinds of labels are compared
Labels = Callable[[Sequence[Prepared], np.random.Generator], list[Prepared]]


def masks_of(count: int) -> Labels:
    """Full masks of so many of 20 scans, at least of one."""
    def labels(scans: Sequence[Prepared], rng: np.random.Generator) -> list[Prepared]:
        chosen = rng.permutation(len(scans))[:max(1, round(count * len(scans) / TRAIN_SCANS))]
        return [scans[i] for i in sorted(chosen)]
    return labels


def slices(every: int) -> Labels:
    """Masks of every so many sagittal slices of all scans."""
    return lambda scans, rng: [Points.of(scan, sample_slices(scan.mask, rng, every)) for scan in scans]


def one_slice(every_scans: int) -> Labels:
    """The mask of one slice that shows a vertebra, of one in so many scans."""
    def labels(scans: Sequence[Prepared], rng: np.random.Generator) -> list[Prepared]:
        chosen = rng.permutation(len(scans))[:max(1, round(len(scans) / every_scans))]
        return [Points.of(scans[i], _only(scans[i].mask, [rng.choice(shown(scans[i]))])) for i in sorted(chosen)]
    return labels


def points(every: int, per_instance: int = 3, background: int = 5, and_a_mask: bool = False) -> Labels:
    """Points on every so many sagittal slices, and the mask of one more where that is asked for."""
    def labels(scans: Sequence[Prepared], rng: np.random.Generator) -> list[Prepared]:
        labelled = []
        for scan in scans:
            drawn = sample_points(scan.mask, rng, per_instance, background)
            kept = _only(drawn, np.arange(rng.integers(every), scan.shape[SAGITTAL], every))
            if and_a_mask:
                x = rng.choice(shown(scan))
                kept[:, :, x] = scan.mask[:, :, x]
            labelled.append(Points.of(scan, kept))
        return labelled
    return labels


def shown(scan: Prepared) -> np.ndarray:
    """The sagittal slices that show a vertebra."""
    return np.flatnonzero(((scan.mask != BACKGROUND) & (scan.mask != UNLABELLED)).any((0, 1)))


def _only(mask: np.ndarray, chosen: Sequence[int] | np.ndarray) -> np.ndarray:
    labels = np.full(mask.shape, UNLABELLED, np.uint8)
    labels[:, :, chosen] = mask[:, :, chosen]
    return labels


ARMS = {  # before the colon: a curve of the figure
    "whole scans: 20": masks_of(20),
    "whole scans: 6": masks_of(6),
    "whole scans: 3": masks_of(3),
    "whole scans: 1": masks_of(1),
    "slices: every 4th": slices(4),
    "slices: every 7th": slices(7),
    "slices: every 19th": slices(19),
    "slices: one a scan": one_slice(1),
    "slices: one in 2 scans": one_slice(2),
    "slices: one in 4 scans": one_slice(4),
    "points: every slice": points(1),
    "points: every 2nd slice": points(2),
    "points: every 4th slice": points(4),
    "points: every 8th slice": points(8),
    "1 + 3 points: every slice": points(1, 1, 3),
    "1 + 3 points: every 8th slice": points(8, 1, 3),
    "mixed: a slice, points on every 4th": points(4, and_a_mask=True),
}


def of_points(arm: str) -> bool:
    return not arm.startswith(("whole", "slices"))


def labelled_by(labels: Labels, scans: Scans, seed: int) -> Scans:
    """Train and validation scans with an arm's labels."""
    return Scans(*(labels(part, np.random.default_rng((seed, i)))
                   for i, part in enumerate((scans.train, scans.validation))))


def do(arrays: Path, run: Run) -> list[Row]:
    data = read_arrays(arrays)
    scans = scans_of(data, run.fold)
    labelled = labelled_by(ARMS[run.line], scans, run.seed)
    time, learned = time_of(labelled, scans), labelled
    if of_points(run.line):
        outcome = Outcome({})
        make_pseudo_masks(outcome, labelled, labelled.train, PROFILE, run.seed)
        learned = replace(labelled, train=[outcome.pseudo[scan.name] for scan in labelled.train])
    model, _ = train_full(learned, "sagittal", PROFILE, run.seed)
    rows = []
    for scan in scans.test:
        about = (run.line, run.repeat, run.fold, "test", scan.name, data.patients[scan.name])
        rows += [Row(*about, answer, *time, in_text(matrix))
                 for answer, matrix in confusions(model.probabilities(scan), scan, data.own[scan.name]).items()]
    return rows


def report(rows: list[Row]) -> None:
    rows = [row for row in rows if row.answer == ORDERED]
    curves = Curves(rows)
    print(f"\nDice_wi of {curves.patients} patients' test scans, own geometry, with 95 % intervals over patients")
    for line in curves.lines:
        runs = {(row.fold, row.repeat) for row in rows if row.line == line}
        text = "{:.3f} [{:.3f}, {:.3f}]".format(*interval(curves.dice[line]))
        if REFERENCE in curves.dice and line != REFERENCE:
            text += "   {:+.3f} [{:+.3f}, {:+.3f}] to all masks".format(
                *interval(curves.dice[line] - curves.dice[REFERENCE]))
        print(f"{line:<36}{curves.share(line):>7.1%}{len(runs):>4} runs  {text}")
    for times in (1, 2, 4):
        print(f"\nwith {times} x 240 s a mask")
        for share in (0.9, 0.95) if REFERENCE in curves.dice else ():
            least = curves.least_share(share * curves.dice[REFERENCE], times)
            print(f"  the least time for {share:.0%} of the reference: {in_percent(least)}")
        for other in sorted({"slices", "whole scans"} & set(curves.kinds)) if "points" in curves.kinds else ():
            crossing = in_percent(curves.ahead_up_to("points", other, times))
            print(f"  points are ahead of {other} up to {crossing} of the time for full masks")
            for share in SHARES:
                gain = curves.at("points", share, times) - curves.at(other, share, times)
                if np.isfinite(gain).all():
                    print("  at {:>5.1%} points - {:<12}{:+.3f} [{:+.3f}, {:+.3f}]".format(
                        share, other, *interval(gain)))


def in_percent(draws: np.ndarray) -> str:
    low, high = np.quantile(draws[1:], (0.025, 0.975), method="nearest")
    return " [".join("not reached" if np.isinf(x) else f"{x:.1%}" for x in (draws[0], low)) + f", {high:.1%}]".replace(
        "inf%", "not reached")


def main() -> None:
    p = options(f"{__doc__}\narms: {', '.join(ARMS)}", "out/minutes")
    p.add_argument("--figure", type=Path, help="where to draw the curves")
    o = p.parse_args()
    full, weak = (sum(s.rounds) * s.round_steps for s in (PROFILE.full, PROFILE.weak))
    rows = measure(ARMS, do, lambda run, step: step * 1.2 * (full + 3 * weak * of_points(run.line)), o)
    report(rows)
    if o.figure:
        from pointseg.report import plot  # needs matplotlib, which a bare machine with a GPU lacks

        plot.save(plot.minutes(Curves([row for row in rows if row.answer == ORDERED])), o.figure)


if __name__ == "__main__":
    main()
