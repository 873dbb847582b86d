"""Scores of whole cases, in the scans' own geometry and on the prepared grid.   Thesis, "Metrics"."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from tqdm.auto import tqdm

from pointseg.datasets.manifest import CENTROIDS, Case
from pointseg.datasets.split import cases_with_levels
from pointseg.estimate import known_truth
from pointseg.kernels import confusion_matrix, resample_argmax
from pointseg.metrics import per_class, weighted_dice
from pointseg.predict import Model, ThreeAxes
from pointseg.preprocess import Prepared
from pointseg.report.centres import centres_mm, identified
from pointseg.volume import CLASSES, ScanError, Volume

VERTEBRA_CLASSES = ("background", "vertebra")


@dataclass
class Evaluation:
    """What was counted in each case, as JSON holds it, and the scores that follow from it."""

    classes: tuple[str, ...]
    cases: dict[str, dict] = field(default_factory=dict)  # by name, "source/case"; see `score_case`

    def matrices(self, grid: str = "own") -> dict[str, np.ndarray]:
        """Confusion matrices (K, K) by case, on its "own" grid or the "prepared" one; none of centroids alone."""
        return {name: np.array(case[grid]) for name, case in self.cases.items() if case[grid]}

    def pooled(self, grid: str = "own") -> np.ndarray:
        """Over all cases.   -> (K, K)"""
        return sum(self.matrices(grid).values(), np.zeros((len(self.classes),) * 2, np.int64))

    @property
    def confusion(self) -> np.ndarray:
        return self.pooled()

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % of Dice_wi, where cases without a mask were scored at places that chance has chosen: by drawing these
        places again (bootstrap).  None where all have masks."""
        k, rng = len(self.classes), np.random.default_rng(0)
        estimated = [np.array(case["places"]) for case in self.cases.values() if case.get("places")]
        if not estimated:
            return None
        counted = sum((np.array(c["own"]) for c in self.cases.values() if c["own"] and not c.get("places")),
                      np.zeros((k, k)))
        draws = []
        for _ in range(500):
            matrix = counted.copy()
            for places in estimated:
                truth, said, weight = places[rng.integers(len(places), size=len(places))].T
                np.add.at(matrix, (truth.astype(int), said.astype(int)), weight)
            draws.append(weighted_dice(matrix))
        return tuple(np.quantile(draws, (0.025, 0.975)).tolist())

    @property
    def dice_wi(self) -> float:
        return weighted_dice(self.pooled())

    @property
    def dice_wi_prepared(self) -> float:
        return weighted_dice(self.pooled("prepared"))

    def per_source(self) -> dict[str, float]:
        """Dice_wi of each source."""
        pooled: dict[str, np.ndarray] = {}
        for name, matrix in self.matrices().items():
            source = name.split("/")[0]
            pooled[source] = pooled.get(source, 0) + matrix
        return {source: weighted_dice(matrix) for source, matrix in pooled.items()}


def evaluate(scores_of: dict[str, Callable[[Prepared], np.ndarray]], prepare: Callable[[Volume], Prepared],
             cases: Iterable[Case]) -> dict[str, Evaluation]:
    """Compare class scores (K, z, y, x) on the prepared grid with what is known of the cases, read one at a time: with
    their masks, else at places that chance has chosen.

    scores_of: by name, what to score.  Scores are resampled to the scan's own grid, then the highest wins; for two
    classes L1..L5 count as one.  With more, it is also told how many vertebrae were identified, and of cases that know
    centroids alone nothing else.
    """
    return pooled({case.name: score_case(scores_of, prepare, case) for case in tqdm(cases, "scoring", unit="scan")})


def score_case(scores_of: dict[str, Callable[[Prepared], np.ndarray]], prepare: Callable[[Volume], Prepared],
               case: Case) -> dict[str, dict]:
    """`evaluate` of one case, as JSON holds it.   -> by name "classes", "own" and "prepared" confusion matrices, and
    "found_mm" by level: how far off a vertebra was found, None where it was not identified.  Without a mask "places"
    has the class, the answer and the weight in voxels of each place that chance has chosen."""
    volume, results = case.read(), {}
    scan = prepare(volume)
    for name, function in scores_of.items():
        scores = function(scan)
        k = len(scores)
        own = resample_argmax(scores, volume.image.shape)
        result = results[name] = {"classes": CLASSES if k > 2 else VERTEBRA_CLASSES, "own": [], "prepared": [],
                                  "found_mm": {}}
        if volume.mask is None:
            result |= _at_places(volume, own, k)
            continue
        if case.mask_extent != CENTROIDS:
            prepared = resample_argmax(scores, scan.mask.shape)
            result["own"] = confusion_matrix(known_truth(volume.mask, k), own, k).tolist()
            result["prepared"] = confusion_matrix(known_truth(scan.mask, k), prepared, k).tolist()
        if k > 2:
            centres = [centres_mm(labels, volume.spacing_mm) for labels in (volume.mask, own)]
            result["found_mm"] = {CLASSES[level]: number(mm) for level, mm in identified(*centres).items()}
    return results


def _at_places(volume: Volume, labels: np.ndarray, k: int) -> dict[str, list]:
    known = volume.clicks.chosen(by_chance=True) if volume.clicks else None
    if known is None or not len(known.values):
        raise ScanError(f"{volume.name}: found neither a mask nor places that chance has chosen, expected one of them "
                        "to score by, since clicks of one's own choice flatter; --split test leaves out training scans")
    truth, said = known_truth(known.values, k), labels[tuple(known.places.T)]
    weights, matrix = known.stands_for_mm3 / np.prod(volume.spacing_mm), np.zeros((k, k))
    np.add.at(matrix, (truth, said), weights)
    return {"own": matrix.tolist(), "prepared": matrix.tolist(),
            "places": np.stack([truth, said, weights], 1).tolist()}


def pooled(of_cases: dict[str, dict[str, dict]]) -> dict[str, Evaluation]:
    """From `score_case` of each case by its name to an evaluation of each of what was scored."""
    results: dict[str, Evaluation] = {}
    for case, of_case in of_cases.items():
        for name, counted in of_case.items():
            results.setdefault(name, Evaluation(tuple(counted["classes"]))).cases[case] = counted
    return results


def evaluate_model(model: Model | ThreeAxes, cases: Iterable[Case]) -> Evaluation:
    """Score a model on cases: one of L1..L5 on those whose vertebrae have levels."""
    cases = list(cases)
    usable = [c for c in cases if c.mask_extent != CENTROIDS] if model.num_classes == 2 else cases_with_levels(cases)
    if not usable:
        raise ScanError("found centroids alone, which tell levels but no extent, expected masks to score a model of "
                        "two classes by; take another source, or a model of L1..L5")

    def told(volume: Volume) -> Prepared:
        for note in volume.notes:
            tqdm.write(f"{volume.name}: {note}")
        return model.prepare(volume)

    return evaluate({"model": model.probabilities}, told, usable)["model"]


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(z, y, x) uint8 -> (K, z, y, x) float32, so that hard labels resample like probabilities."""
    return (labels == np.arange(num_classes, dtype=np.uint8)[:, None, None, None]).astype(np.float32)


def summary(evaluation: Evaluation) -> dict:
    """What `pointseg evaluate --json` writes; an undefined score is None."""
    matrix, scores = evaluation.confusion, per_class(evaluation.confusion)
    found_mm = {name: case["found_mm"] for name, case in evaluation.cases.items() if case["found_mm"]}
    distances = [mm for of_case in found_mm.values() for mm in of_case.values()]
    return {
        "dice_wi": number(evaluation.dice_wi), "dice_wi_prepared": number(evaluation.dice_wi_prepared),
        "estimated_interval": evaluation.interval,
        "per_class": {name: {"precision": number(scores.precision[k]), "recall": number(scores.recall[k]),
                             "dice": number(scores.dice[k]), "iou": number(scores.iou[k]),
                             "voxels": int(scores.voxels[k])} for k, name in enumerate(evaluation.classes)},
        "identified": sum(mm is not None for mm in distances) / len(distances) if distances else None,
        "identified_mm": found_mm, "absent_classes": [evaluation.classes[k] for k in absent_classes(matrix)],
        "per_source": {name: number(score) for name, score in evaluation.per_source().items()},
        "per_case": {name: number(weighted_dice(m)) for name, m in evaluation.matrices().items()},
        "confusion": matrix.tolist(), "cases": list(evaluation.cases)}


def absent_classes(confusion: np.ndarray) -> list[int]:
    """Classes without a true voxel, which `weighted_dice` leaves out."""
    return np.flatnonzero(confusion.sum(1) == 0).tolist()


def text_of(summary: dict) -> str:
    """A `summary` to read."""
    distances = [mm for of_case in summary["identified_mm"].values() for mm in of_case.values()]
    found = [mm for mm in distances if mm is not None]
    told = f"{len(found)} of {len(distances)} vertebrae identified"
    if found:
        told += f" ({summary['identified']:.0%}), {np.mean(found):.1f} mm off on average"
    if not summary["per_case"]:
        return f"{told}, {len(summary['cases'])} scans with centroids alone"
    columns = {"precision": "precision", "recall": "recall", "dice": "Dice", "iou": "IoU"}
    lines = [f"Dice_wi {_shown(summary['dice_wi'])} in the scans' own geometry, {_shown(summary['dice_wi_prepared'])} "
             f"on the prepared grid, {len(summary['per_case'])} scans"]
    if between := summary["estimated_interval"]:
        lines.append("estimated, where scans have no mask, from places that chance has chosen: 95 % interval "
                     f"{between[0]:.3f} to {between[1]:.3f}")
    lines += ["", f"{'':<12}" + "".join(f"{title:>10}" for title in columns.values())]
    lines += [f"{name:<12}" + "".join(f"{_shown(row[key]):>10}" for key in columns)
              for name, row in summary["per_class"].items()]
    if summary["absent_classes"]:
        lines.append(f"left out of Dice_wi, since no scan shows it: {', '.join(summary['absent_classes'])}")
    if distances:
        lines += ["", told]
    lines += ["", *(f"{source:<24}{_shown(score):>8}" for source, score in summary["per_source"].items())]
    if len(summary["per_case"]) > 1:
        lines += ["", *(f"{name:<24}{_shown(score):>8}" for name, score in summary["per_case"].items())]
    lines += ["", "confusion matrix, voxels (rows truth, columns prediction)",
              " " * 12 + "".join(f"{name:>12}" for name in summary["per_class"])]
    lines += [f"{name:<12}" + "".join(f"{n:>12.0f}" for n in row)
              for name, row in zip(summary["per_class"], summary["confusion"], strict=True)]
    return "\n".join(lines)


def number(x: float) -> float | None:
    """A float that JSON can hold: nan or infinity, an undefined score, becomes None."""
    return float(x) if np.isfinite(x) else None


def _shown(x: float | None) -> str:
    return "nan" if x is None else f"{x:.3f}"
