"""What the classroom profile trades: the reference model on finer grids, wider networks and other skips.

    python tests/bench_profile.py [--data ../shared/data] [--source myosegmentum] [--seed 0]
                                  [--only VARIANT ...]

Each line changes one number of the profile and trains the reference with it, as many steps as the profile has.  Prints
the seconds it took and Dice_wi on the test scans in their own geometry.  About 3 minutes a line on two CPU cores.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from pointseg.datasets.manifest import read_manifest
from pointseg.datasets.split import prepare_split, split_without_flaws
from pointseg.procedure import train_full
from pointseg.profiles import CLASSROOM
from pointseg.report.scores import evaluate_model
from pointseg.slices import Augmentation

VARIANTS = {
    "classroom": CLASSROOM,
    "FCN8 skips": replace(CLASSROOM, finest_pool=3),
    "twice the steps": replace(CLASSROOM, full=replace(CLASSROOM.full, rounds=(8, 4, 2))),
    "grid 1.5 mm": replace(CLASSROOM, grid_mm=1.5, input_px=256),
    "width 3/8": replace(CLASSROOM, width=0.375),
    "no augmentation": replace(CLASSROOM, augmentation=Augmentation()),
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=Path("../shared/data"))
    p.add_argument("--source", nargs="+", default=["myosegmentum"])
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    o = p.parse_args()
    if not o.data.is_dir():
        print(f"skipped: no dataset folder {o.data}")
        return
    split = split_without_flaws(read_manifest(o.data, o.source), o.seed)
    print(f"{'':<30}{'seconds':>9}{'Dice_wi':>9}{'prepared':>10}{'validation':>12}", flush=True)
    for name in o.only:
        profile = VARIANTS[name]
        scans = prepare_split(split, profile)
        start = time.monotonic()
        model, history = train_full(scans, "sagittal", profile, o.seed)
        seconds, scores = time.monotonic() - start, evaluate_model(model, split.test)
        print(f"{name:<30}{seconds:>9.0f}{scores.dice_wi:>9.3f}{scores.dice_wi_prepared:>10.3f}"
              f"{history.best_validation:>12.3f}", flush=True)


if __name__ == "__main__":
    main()
