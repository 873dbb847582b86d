"""How careful need an expert be?  Dice_wi from clicks that lean to the middle, miss by some mm, or name a wrong level.

    python tests/bench_clicks.py [--data ../shared/data --source myosegmentum] [--lines ..] [--folds 0 1 2 3 4 5]
                                 [--repeats 0] [--processes 2] [--minutes N] [--out out/clicks] [--csv FILE]
                                 [--figure FILE] [--report]

A run is a way to click in a fold: three weak models at half the classroom's schedule from points on every sagittal
slice, put together with their levels in order.  Validation points are drawn by chance, as a careful expert would name
them.  Rows are the confusion matrices of the test scans in their own geometry; intervals resample patients.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from bench_minutes import PROFILE
from folds import Run, compared, measure, options, read_arrays, scans_of

from pointseg.kernels import confusion_matrix
from pointseg.points import Care, Points, draw_labels, sample_points
from pointseg.procedure import Outcome, train_three, weak_makes
from pointseg.report.compare import Row, by_patient, difference, in_text, time_of
from pointseg.volume import CLASSES

CAREFUL = "anywhere, exact"
LINES = {CAREFUL: Care(), "middle: depth cubed": Care(towards_middle=3),
         "misses: 1 mm": Care(jitter_mm=1), "misses: 2 mm": Care(jitter_mm=2), "misses: 3 mm": Care(jitter_mm=3),
         "wrong levels: 5 %": Care(wrong_levels=0.05), "wrong levels: 10 %": Care(wrong_levels=0.1),
         "middle, 2 mm, 2 %": Care(towards_middle=1, jitter_mm=2, wrong_levels=0.02)}


def do(arrays: Path, run: Run) -> list[Row]:
    data, care = read_arrays(arrays), LINES[run.line]
    scans = scans_of(data, run.fold)
    clicked = [Points.of(scan, sample_points(scan.mask, np.random.default_rng((run.seed, i)), care=care,
                                             spacing_mm=scan.spacing_mm)) for i, scan in enumerate(scans.train)]
    labelled = replace(draw_labels(scans, "points", run.seed), train=clicked)
    makes = weak_makes(labelled, PROFILE, run.seed)
    three, _ = train_three(Outcome({}), "weak", makes, labelled.validation)
    rows, time = [], time_of(labelled, scans)
    for scan in scans.test:
        truth = data.own[scan.name]
        matrix = confusion_matrix(truth, three.segment(scan, truth.shape), len(CLASSES))
        rows.append(Row(run.line, run.repeat, run.fold, "test", scan.name, data.patients[scan.name], "weak models",
                        *time, in_text(matrix)))
    return rows


def report(rows: list[Row]) -> None:
    print("\nDice_wi of test scans, own geometry, with 95 % intervals over patients")
    of_lines = {line: by_patient(rows, line=line) for line in LINES}
    for line, ours in of_lines.items():
        print(compared(line, ours, [of_lines[CAREFUL]]))


def main() -> None:
    p = options(f"{__doc__}\nlines: {', '.join(LINES)}", "out/clicks")
    p.add_argument("--figure", type=Path, help="where to draw what each kind of carelessness costs")
    o = p.parse_args()
    steps = 3 * sum(PROFILE.weak.rounds) * PROFILE.weak.round_steps
    rows = measure(LINES, do, lambda run, step: 1.2 * steps * step, o)
    report(rows)
    if o.figure:
        draw(rows, o.figure)


def draw(rows: list[Row], path: Path) -> None:
    """Differences to careful clicks, with their intervals."""
    from pointseg.report import plot  # needs matplotlib, which a bare machine with a GPU lacks

    careful, lines = by_patient(rows, line=CAREFUL), [line for line in LINES if by_patient(rows, line=line)][1:]
    figure = plot.Figure((8, 4), layout="constrained")
    ax = figure.subplots()
    for at, line in enumerate(lines):
        value, low, high = difference(by_patient(rows, line=line), careful)
        ax.plot([low, high], [at, at], color="grey")
        ax.plot(value, at, "o", color=plot.MODEL_COLOURS[0])
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(lines)), lines)
    ax.set(xlabel="Dice_wi less that of careful clicks, 95 % interval over patients", ylim=(len(lines) - 0.5, -0.5))
    plot.save(figure, path)


if __name__ == "__main__":
    main()
