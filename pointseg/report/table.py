"""What the procedure reports: the thesis's Table 1, table1.json, figures and models."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointseg.metrics import per_class
from pointseg.points import Points, grow_points, labelling_cost, mean_further_points
from pointseg.preprocess import Prepared
from pointseg.procedure import Outcome, hard_predictions
from pointseg.report import plot
from pointseg.report.scores import Evaluation, number, one_hot, summary
from pointseg.scans.files import write_json
from pointseg.slices import AXES
from pointseg.volume import CLASSES

THESIS_TABLE = {"transverse": 0.51, "coronal": 0.41, "sagittal": 0.34, "pseudo_mask": 0.48, "result": 0.55,
                "reference": 0.76}  # Dice_wi, thesis Table 1
THESIS_RATIO = 0.72
ROWS = (("reference (full masks)", "reference"), ("weak model, transverse (2 classes)", "transverse"),
        ("weak model, coronal", "coronal"), ("weak model, sagittal", "sagittal"),
        ("pseudo mask, test scans", "pseudo_mask"), ("pseudo mask, training scans", "pseudo_mask_train"),
        ("result (points only)", "result"), ("points of the test scans, watershed", "watershed"))


def answers_of(outcome: Outcome) -> dict[str, Callable[[Prepared], np.ndarray]]:
    """What the procedure says of a training or test scan, as class scores (K, z, y, x): each model, the pseudo mask."""
    return {name: model.probabilities for name, model in outcome.models.items()} | {
        "pseudo_mask": lambda scan: one_hot(outcome.pseudo[scan.name].mask, len(CLASSES))}


def grown(points: Points, scan: Prepared) -> np.ndarray:
    """The points of a scan without any learning, as class scores."""
    return one_hot(grow_points(scan.image, points.labels, scan.spacing_mm), len(CLASSES))


@dataclass
class Table:
    """Everything that `table1` reports."""

    outcome: Outcome
    scores: dict[str, Evaluation]  # on test scans, by model; pseudo_mask_train on training scans; watershed
    split: dict[str, list[str]]
    example: Points  # a test scan, to be shown
    seconds: float
    seed: int
    profile: str
    terms: str
    data: str

    @property
    def further_points(self) -> float:
        """Points beyond the first of each class on a slice, as they were drawn."""
        return float(np.mean([mean_further_points(p.labels) for p in self.outcome.points]))

    @property
    def stages(self) -> dict[str, np.ndarray]:
        """Labels (z, y, x) of the example at each stage of the procedure."""
        scan, models = self.example.scan, self.outcome.models
        said = hard_predictions(models, scan)
        return {"points": self.example.labels} | {axis: said[axis] for axis in AXES} | {
            "pseudo mask": self.outcome.pseudo[scan.name].mask, "result": said["result"],
            "reference": said["reference"], "truth": scan.mask}

    @property
    def ratio(self) -> float:
        """Result over reference: the share of full supervision that points reach."""
        return self.scores["result"].dice_wi / self.scores["reference"].dice_wi

    def as_dict(self) -> dict:
        """The content of table1.json."""
        histories, of_rows = self.outcome.histories, {name: summary(e) for name, e in self.scores.items()}
        headline = {name: of_row["dice_wi"] for name, of_row in of_rows.items()}
        return headline | {
            "ratio": number(self.ratio), "labelling_cost": labelling_cost(),
            "labelling_cost_drawn": labelling_cost(self.further_points),
            "prepared": {name: of_row["dice_wi_prepared"] for name, of_row in of_rows.items()},
            "per_class": {name: of_row["per_class"] for name, of_row in of_rows.items()},
            "per_source": {name: of_row["per_source"] for name, of_row in of_rows.items()},
            "smoothing": {"denoise": self.outcome.smoothing[0], "erosion": self.outcome.smoothing[1]},
            "validation": {name: h.best_validation for name, h in histories.items()},
            "steps": {name: {"best": h.best_step, "total": h.rounds[-1].step} for name, h in histories.items()},
            "seconds": round(self.seconds, 1), "peak_rss_mb": number(round(peak_rss_mb(), 1)), "split": self.split,
            "seed": self.seed, "profile": self.profile, "terms": self.terms, "data": self.data}

    def __str__(self) -> str:
        """The table as text, beside the thesis's."""
        lines = [f"Dice_wi on {len(self.split['test'])} test scans: {self.data}, profile {self.profile}, "
                 f"terms {self.terms}, seed {self.seed}",
                 f"{'':<36}{'own grid':>10}{'prepared':>10}{'thesis':>10}"]
        for title, name in ROWS:
            if name not in self.scores:  # a notebook may leave out what it does not ask
                continue
            e, thesis = self.scores[name], THESIS_TABLE.get(name)
            lines.append(f"{title:<36}{e.dice_wi:>10.2f}{e.dice_wi_prepared:>10.2f}"
                         + (f"{thesis:>10.2f}" if thesis else f"{'-':>10}"))
        lines.append(f"{'result / reference':<36}{self.ratio:>10.0%}{'':>10}{THESIS_RATIO:>10.0%}")
        lines.append(f"{'labelling time / full masks':<36}{labelling_cost(self.further_points):>10.1%}{'':>10}"
                     f"{labelling_cost():>10.1%}")
        denoise, erosion = self.outcome.smoothing
        lines.append(f"smoothing: {denoise} denoise and {erosion} erosion iterations; "
                     f"{self.seconds / 60:.1f} minutes, peak memory {peak_rss_mb():.0f} MB")
        if self.outcome.histories["reference"].still_improving:
            lines.append("note: the reference still improved when its training ended: the ratio flatters the result")
        return "\n".join(lines)


@dataclass(frozen=True)
class Repeated:
    """The same table with several seeds: the mean of each score, and how far the seeds spread."""

    tables: Sequence[Table]

    @property
    def values(self) -> dict[str, np.ndarray]:
        """Dice_wi of each row, and the ratio, by seed."""
        names = self.tables[0].scores
        return {name: np.array([t.scores[name].dice_wi for t in self.tables]) for name in names} | {
            "ratio": np.array([t.ratio for t in self.tables])}

    def as_dict(self) -> dict:
        """The content of table1.json."""
        return {"seeds": [t.seed for t in self.tables],
                "mean": {name: number(x.mean()) for name, x in self.values.items()},
                "spread": {name: number(x.std(ddof=1)) for name, x in self.values.items()},
                "tables": [t.as_dict() for t in self.tables]}

    def __str__(self) -> str:
        first, values = self.tables[0], self.values
        lines = [f"Dice_wi on test scans with {len(self.tables)} seeds: {first.data}, profile {first.profile}, terms "
                 f"{first.terms}", f"{'':<36}{'mean':>8}{'spread':>8}   " + "".join(f"{f'seed {t.seed}':>9}"
                                                                                 for t in self.tables)]
        for title, name in ROWS:
            x = values[name]
            lines.append(f"{title:<36}{x.mean():>8.2f}{x.std(ddof=1):>8.2f}   " + "".join(f"{v:>9.2f}" for v in x))
        x = values["ratio"]
        lines.append(f"{'result / reference':<36}{x.mean():>8.0%}{x.std(ddof=1):>8.0%}   "
                     + "".join(f"{v:>9.0%}" for v in x))
        lines.append("spread: standard deviation over seeds, which decide split, points, first weights and order")
        return "\n".join(lines)


def write_table(table: Table, out: Path) -> None:
    """table1.json and the figures, into a folder."""
    scan = table.example.scan
    plot.save(plot.stages(scan.image, table.stages, scan.spacing_mm, title=scan.name), out / "stages.png")
    plot.save(plot.curves(table.outcome.histories), out / "curves.png")
    dice = {name: per_class(e.confusion).dice[1:].tolist() for name, e in table.scores.items() if len(e.classes) > 2}
    plot.save(plot.class_scores(dice), out / "per_class.png")
    plot.save(plot.confusion(table.scores["result"].confusion, CLASSES), out / "confusion.png")
    write_json(out / "table1.json", table.as_dict())


def peak_rss_mb() -> float:
    """The process's largest resident memory so far, in MB; nan on Windows, which does not tell."""
    try:
        import resource
    except ModuleNotFoundError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
