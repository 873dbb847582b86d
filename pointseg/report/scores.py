"""Scores on whole cases, in the scans' own geometry and on the prepared grid.   Thesis section 3.6."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from tqdm.auto import tqdm

from pointseg.datasets.manifest import CENTROIDS, Case
from pointseg.datasets.split import cases_with_levels
from pointseg.kernels import confusion_matrix, resample_argmax
from pointseg.metrics import absent_classes, centres_mm, identified, per_class, weighted_dice
from pointseg.predict import Model, known_truth
from pointseg.preprocess import Prepared
from pointseg.runs.parallel import collected, rank, share
from pointseg.volume import CLASSES, ScanError, Volume

VERTEBRA_CLASSES = ("background", "vertebra")


@dataclass
class Evaluation:
    """Confusion matrices (K, K) of each case, in its own geometry and on the prepared grid."""

    classes: tuple[str, ...]
    own: dict[str, np.ndarray] = field(default_factory=dict)  # by case name, "source/case"
    prepared: dict[str, np.ndarray] = field(default_factory=dict)
    found_mm: dict[str, dict[int, float]] = field(default_factory=dict)  # by case and level, see metrics.identified

    @property
    def confusion(self) -> np.ndarray:
        """Pooled over all cases, in their own geometry."""
        return sum(self.own.values(), np.zeros((len(self.classes),) * 2, np.int64))

    @property
    def dice_wi(self) -> float:
        return weighted_dice(self.confusion)

    @property
    def dice_wi_prepared(self) -> float:
        return weighted_dice(sum(self.prepared.values(), np.zeros((len(self.classes),) * 2, np.int64)))

    @property
    def distances_mm(self) -> np.ndarray:
        """Of all vertebrae of all cases: how far off each was found, inf where it was not identified."""
        return np.array([d for of_case in self.found_mm.values() for d in of_case.values()])

    @property
    def identified(self) -> float:
        """The share of vertebrae that were identified; nan where there are none, or no levels."""
        return float(np.isfinite(self.distances_mm).mean()) if len(self.distances_mm) else np.nan

    def to_json(self) -> dict:
        """All of it, as JSON holds it; `from_json` reads it back."""
        matrices = {key: {name: m.tolist() for name, m in getattr(self, key).items()} for key in ("own", "prepared")}
        return {"classes": self.classes, **matrices, "found_mm": {
            name: {int(k): float(d) for k, d in of_case.items()} for name, of_case in self.found_mm.items()}}

    @classmethod
    def from_json(cls, content: dict) -> "Evaluation":
        matrices = [{name: np.array(m, np.int64) for name, m in content[key].items()} for key in ("own", "prepared")]
        found_mm = {name: {int(k): d for k, d in of_case.items()} for name, of_case in content["found_mm"].items()}
        return cls(tuple(content["classes"]), *matrices, found_mm)

    def per_source(self) -> dict[str, float]:
        """Dice_wi of each source."""
        pooled: dict[str, np.ndarray] = {}
        for name, matrix in self.own.items():
            source = name.split("/")[0]
            pooled[source] = pooled.get(source, 0) + matrix
        return {source: weighted_dice(matrix) for source, matrix in pooled.items()}

    def __str__(self) -> str:
        """The scores as text."""
        scores = per_class(self.confusion)
        distances = self.distances_mm
        found = distances[np.isfinite(distances)]
        identified = f"{len(found)} of {len(distances)} vertebrae identified"
        if len(found):
            identified += f" ({self.identified:.0%}), {found.mean():.1f} mm off on average"
        if not self.own:
            return f"{identified}, {len(self.found_mm)} scans with centroids alone"
        lines = [f"Dice_wi {self.dice_wi:.3f} in the scans' own geometry, {self.dice_wi_prepared:.3f} on the prepared "
                 f"grid, {len(self.own)} scans", "", f"{'':<12}{'precision':>10}{'recall':>10}{'Dice':>10}{'IoU':>10}"]
        for k, name in enumerate(self.classes):
            row = (scores.precision[k], scores.recall[k], scores.dice[k], scores.iou[k])
            lines.append(f"{name:<12}" + "".join(f"{x:>10.3f}" for x in row))
        if absent := absent_classes(self.confusion):
            lines.append(f"left out of Dice_wi, since no scan shows it: {', '.join(self.classes[k] for k in absent)}")
        if len(distances):
            lines += ["", identified]
        lines += ["", *(f"{source:<24}{score:>8.3f}" for source, score in self.per_source().items())]
        if len(self.own) > 1:
            lines += ["", *(f"{name:<24}{weighted_dice(matrix):>8.3f}" for name, matrix in self.own.items())]
        lines += ["", "confusion matrix, voxels (rows truth, columns prediction)",
                  " " * 12 + "".join(f"{name:>12}" for name in self.classes)]
        lines += [f"{name:<12}" + "".join(f"{n:>12}" for n in row)
                  for name, row in zip(self.classes, self.confusion, strict=True)]
        return "\n".join(lines)

    def as_dict(self) -> dict:
        """What `pointseg evaluate --json` writes; an undefined score is None."""
        scores = per_class(self.confusion)
        return {
            "dice_wi": number(self.dice_wi), "dice_wi_prepared": number(self.dice_wi_prepared),
            "per_class": {name: {"precision": number(scores.precision[k]), "recall": number(scores.recall[k]),
                                 "dice": number(scores.dice[k]), "iou": number(scores.iou[k]),
                                 "voxels": int(scores.voxels[k])} for k, name in enumerate(self.classes)},
            "identified": number(self.identified),
            "identified_mm": {name: {self.classes[k]: number(d) for k, d in of_case.items()}
                              for name, of_case in self.found_mm.items()},
            "absent_classes": [self.classes[k] for k in absent_classes(self.confusion)],
            "per_source": {name: number(score) for name, score in self.per_source().items()},
            "per_case": {name: number(weighted_dice(matrix)) for name, matrix in self.own.items()},
            "confusion": self.confusion.tolist(), "cases": list(dict.fromkeys((*self.own, *self.found_mm)))}


def number(x: float) -> float | None:
    """A float that JSON can hold: nan, an undefined score, becomes None."""
    return float(x) if np.isfinite(x) else None


def evaluate(scores_of: dict[str, Callable[[Prepared], np.ndarray]], prepare: Callable[[Volume], Prepared],
             cases: Iterable[Case]) -> dict[str, Evaluation]:
    """Compare class scores (K, z, y, x) on the prepared grid with the masks of the cases, read one at a time.

    scores_of: by name, what to score.  Scores are resampled to the scan's own grid, then the highest wins; for two
    classes L1..L5 count as one.  With more, it is also told how many vertebrae were identified, and of cases that know
    centroids alone nothing else.  Of several processes each scores some cases, and all get the result.
    """
    cases = list(cases)
    here = {case.name: score_case(scores_of, prepare, case) for case in
            tqdm(share(cases), "scoring", unit="scan", disable=rank() > 0)}
    everywhere = {name: of_case for of_process in collected(here) for name, of_case in of_process.items()}
    return merged(everywhere[case.name] for case in cases)


def score_case(scores_of: dict[str, Callable[[Prepared], np.ndarray]], prepare: Callable[[Volume], Prepared],
               case: Case) -> dict[str, Evaluation]:
    """`evaluate` of one case."""
    volume, results = case.read(), {}
    scan = prepare(volume)
    for name, function in scores_of.items():
        scores = function(scan)
        k = len(scores)
        result = results[name] = Evaluation(CLASSES if k > 2 else VERTEBRA_CLASSES)
        own = resample_argmax(scores, volume.mask.shape)
        if case.mask_extent != CENTROIDS:
            prepared = resample_argmax(scores, scan.mask.shape)
            result.own[case.name] = confusion_matrix(known_truth(volume.mask, k), own, k)
            result.prepared[case.name] = confusion_matrix(known_truth(scan.mask, k), prepared, k)
        if k > 2:
            centres = [centres_mm(labels, volume.spacing_mm) for labels in (volume.mask, own)]
            result.found_mm[case.name] = identified(*centres)
    return results


def merged(of_cases: Iterable[dict[str, Evaluation]]) -> dict[str, Evaluation]:
    """The evaluations of single cases, by name of what was scored, as one of all cases."""
    results: dict[str, Evaluation] = {}
    for of_case in of_cases:
        for name, evaluation in of_case.items():
            result = results.setdefault(name, Evaluation(evaluation.classes))
            result.own |= evaluation.own
            result.prepared |= evaluation.prepared
            result.found_mm |= evaluation.found_mm
    return results


def evaluate_model(model: Model, cases: Iterable[Case]) -> Evaluation:
    """Score a model on cases: one of L1..L5 on those whose vertebrae have levels."""
    cases = list(cases)
    usable = [c for c in cases if c.mask_extent != CENTROIDS] if model.num_classes == 2 else cases_with_levels(cases)
    if not usable:
        raise ScanError("found centroids alone, which tell levels but no extent, expected masks to score a model of "
                        "two classes by; take another source, or a model of L1..L5")
    return evaluate({"model": model.probabilities}, model.prepare, usable)["model"]


def cases_of_split(cases: Iterable[Case], model: Model, part: str) -> list[Case]:
    """The cases that the model's own split kept for `part`; an error where the folder has none of them."""
    chosen = [c for c in cases if c.name in set(model.split[part])]
    if not chosen:
        kept = ", ".join(model.split[part]) or "none"
        raise ScanError(f"found none of the model's {part} cases ({kept}) in this folder; "
                        "expected the folder it was trained on, or --split all for scans it has never seen")
    return chosen


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(z, y, x) uint8 -> (K, z, y, x) float32, so that hard labels resample like probabilities."""
    return (labels == np.arange(num_classes, dtype=np.uint8)[:, None, None, None]).astype(np.float32)
