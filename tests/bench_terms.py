"""Which of the thesis's loss terms help?  The weak models of several seeds, with and without each term.

    python tests/bench_terms.py [--data ../shared/data] [--source myosegmentum] [--terms P PC PCE PCES] [--seeds 0 1]
                                [--rounds 2 1 1 0]

Prints Dice_wi on the prepared grid of the test scans for the weak models and the pseudo mask, and of the training
scans' pseudo masks, which is what the final model learns from.  --rounds: rounds of 100 steps at each learning rate, by
default half the classroom profile's, so that a line takes 2 to 4 minutes on two CPU cores.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from pointseg.datasets.manifest import read_manifest
from pointseg.datasets.split import prepare_split, split_without_flaws
from pointseg.estimate import known_truth
from pointseg.fusion import choose_smoothing, hard_predictions, pseudo_mask
from pointseg.kernels import confusion_matrix
from pointseg.metrics import weighted_dice
from pointseg.points import draw_labels
from pointseg.procedure import terms_named, train_weak
from pointseg.profiles import CLASSROOM
from pointseg.slices import AXES


def pooled(pairs: list[tuple[np.ndarray, np.ndarray]], num_classes: int) -> float:
    return weighted_dice(sum(confusion_matrix(truth, prediction, num_classes) for truth, prediction in pairs))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=Path("../shared/data"))
    p.add_argument("--source", nargs="+", default=["myosegmentum"])
    p.add_argument("--terms", nargs="+", default=["P", "PC", "PCE", "PCES"])
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    p.add_argument("--rounds", nargs=4, type=int, default=[2, 1, 1, 0])
    o = p.parse_args()
    profile = replace(CLASSROOM, weak=replace(CLASSROOM.weak, rounds=tuple(o.rounds)))
    if not o.data.is_dir():
        print(f"skipped: no dataset folder {o.data}")
        return
    print(f"{'terms':<8}{'seed':>5}{'transverse':>12}{'coronal':>10}{'sagittal':>10}{'mean':>8}{'pseudo':>8}"
          f"{'pseudo, training':>18}", flush=True)
    for seed in o.seeds:  # a seed's runs share the split, the points and the first weights
        split = split_without_flaws(read_manifest(o.data, o.source), seed)
        scans = prepare_split(split, profile)
        labelled = draw_labels(scans, "points", seed)
        for letters in o.terms:
            terms = terms_named(letters, profile)
            models = {axis: train_weak(labelled, axis, profile, seed, terms)[0] for axis in AXES}
            parts = {name: [hard_predictions(models, scan) for scan in getattr(scans, name)]
                     for name in ("train", "test")}
            (denoise, erosion), _ = choose_smoothing(models, labelled.validation)
            weak = [pooled([(known_truth(s.mask, model.num_classes), q[axis])
                            for s, q in zip(scans.test, parts["test"])], model.num_classes)
                    for axis, model in models.items()]
            fused = {name: pooled([(s.mask, pseudo_mask(**q, denoise=denoise, erosion=erosion))
                                   for s, q in zip(getattr(scans, name), parts[name])], 6)
                     for name in ("test", "train")}
            print(f"{letters:<8}{seed:>5}{weak[0]:>12.3f}{weak[1]:>10.3f}{weak[2]:>10.3f}{np.mean(weak):>8.3f}"
                  f"{fused['test']:>8.3f}{fused['train']:>18.3f}", flush=True)


if __name__ == "__main__":
    main()
