"""Does a folder of real scans without a training mask give the score of the table that has masks?

    python tests/bench_points_only.py [--data ../shared/data --source myosegmentum] [--lines ..] [--folds 0 1 2 3 4 5]
                                      [--repeats 0] [--processes 2] [--minutes N] [--out out/points_only] [--csv FILE]
                                      [--report]

A run is the whole procedure in a fold, the classroom profile at half its schedule, scored on the fold's test scans in
their own geometry.  With masks its points are drawn from them on the prepared grid, as `table1` does, to train and to
choose by.  Without, it reads a dataset folder: training scans with clicks, on sagittal slices as far apart as that
grid's; validation scans with the classes of random places, as the labelling tool asks for them; masks of test scans
alone.  The last line tells the noise: masks once more, with other points, first weights and order.  `--report --csv
notebooks/results/points_only.csv` prints what was found.
"""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import bench_minutes
import numpy as np
from folds import Run, compared, measure, options, read_arrays, scans_of

from pointseg.datasets.manifest import PARTS, Case, read_manifest, write_manifest
from pointseg.datasets.split import prepare_split, published_split
from pointseg.kernels import confusion_matrix
from pointseg.points import SAGITTAL, draw_clicks, draw_labels, draw_places
from pointseg.preprocess import Scans
from pointseg.procedure import learn
from pointseg.report.compare import Row, by_patient, in_text, time_of
from pointseg.scans.clicks import write_clicks
from pointseg.volume import BACKGROUND, CLASSES, UNLABELLED, Clicks, Volume

PROFILE = replace(bench_minutes.PROFILE, full=bench_minutes.PROFILE.weak)
MASKS, ALONE, AGAIN = LINES = ("masks", "points alone", "masks, drawn again")
PLACES = 300  # in each validation scan: about as long as points on all its slices take (Bearman)
RESULT, WEAK = "result", "weak"


def clicks_of(volume: Volume, rng: np.random.Generator) -> Clicks:
    """Three in each vertebra and five beside, on slices that lie a voxel of the prepared grid apart."""
    every = max(1, round(PROFILE.grid_mm / volume.spacing_mm[SAGITTAL]))
    clicks = draw_clicks(volume.mask, rng)
    kept = clicks.places[:, SAGITTAL] % every == rng.integers(every)
    return Clicks(*(of[kept] for of in (clicks.places, clicks.values, clicks.seconds, clicks.stands_for_mm3)))


def places_of(volume: Volume, rng: np.random.Generator) -> Clicks:
    """Random places and their classes, most near vertebrae, of each of which two voxels tell where it is."""
    levels = [k for k in np.unique(volume.mask) if k not in (BACKGROUND, UNLABELLED)]
    middles = np.array([rng.permutation(np.argwhere(volume.mask == k))[:2].mean(0) for k in levels])
    places, mm3 = draw_places(volume.mask.shape, volume.spacing_mm, middles, PLACES, rng)
    return Clicks(places, volume.mask[tuple(places.T)], np.full(PLACES, np.nan), mm3)


def write_folder(folder: Path, parts: dict[str, list[Case]], seed: int) -> None:
    """A dataset folder of links to scans: with clicks to train, places to validate, masks to test."""
    cases = []
    for part in PARTS:
        for number, case in enumerate(parts[part]):
            image, mask, points = (folder / f"{part}{number}_{end}" for end in (
                "img.nii.gz", "vert.nii.gz", "points.csv"))
            image.symlink_to(case.image.resolve())
            if part == "test":
                mask.symlink_to(case.mask.resolve())
            else:
                volume, rng = case.read(), np.random.default_rng((seed, PARTS.index(part), number))
                write_clicks(points, (clicks_of if part == "train" else places_of)(volume, rng), volume.geometry)
            cases.append(replace(case, part=part, image=image, mask=mask if part == "test" else None,
                                 points=None if part == "test" else points))
    write_manifest(folder, cases)


def without_masks(data: Path, scans: Scans, seed: int) -> Scans:
    """The same scans, from such a folder."""
    cases = {case.name: case for case in read_manifest(data)}
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), {part: [cases[s.name] for s in getattr(scans, part)] for part in PARTS}, seed)
        return prepare_split(published_split(read_manifest(folder)), PROFILE)


def do(folder: Path, arrays: Path, run: Run) -> list[Row]:
    data = read_arrays(arrays)
    scans, seed = scans_of(data, run.fold), run.seed + 1000 * (run.line == AGAIN)
    labelled = draw_labels(without_masks(folder, scans, seed) if run.line == ALONE else scans, "points", seed)
    outcome = learn(labelled, [], PROFILE, seed)
    rows, time = [], time_of(labelled, scans)
    for scan in scans.test:
        truth = data.own[scan.name]
        for answer in (RESULT, WEAK):
            matrix = confusion_matrix(truth, outcome.models[answer].segment(scan, truth.shape), len(CLASSES))
            rows.append(Row(run.line, run.repeat, run.fold, "test", scan.name, data.patients[scan.name], answer, *time,
                            in_text(matrix)))
    return rows


def report(rows: list[Row]) -> None:
    print("\nDice_wi of test scans, own geometry, with 95 % intervals over patients; differences of the same patients")
    for answer in (RESULT, WEAK):
        print(f"{answer:<62}to {MASKS:<24}to {AGAIN}")
        of_lines = {line: by_patient(rows, line=line, answer=answer) for line in LINES}
        for line, ours in of_lines.items():
            print(compared(f"  {line}", ours, [of_lines[MASKS], of_lines[AGAIN]]))


def main() -> None:
    o = options(f"{__doc__}\nlines: {', '.join(LINES)}", "out/points_only").parse_args()
    steps = 3 * sum(sum(s.rounds) * s.round_steps for s in (PROFILE.weak, PROFILE.full))
    report(measure(LINES, partial(do, o.data), lambda run, step: 1.2 * steps * step, o))


if __name__ == "__main__":
    main()
