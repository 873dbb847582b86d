"""What the procedure reports: the thesis's Table 1, table1.json, figures and models."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointseg.metrics import per_class
from pointseg.points import labelling_cost
from pointseg.preprocess import Prepared
from pointseg.report import plot
from pointseg.report.scores import Evaluation, number
from pointseg.scans.files import write_json
from pointseg.train import History
from pointseg.volume import CLASSES

THESIS_TABLE = {"transverse": 0.51, "coronal": 0.41, "sagittal": 0.34, "pseudo_mask": 0.48, "result": 0.55,
                "reference": 0.76}  # Dice_wi, thesis Table 1
THESIS_RATIO = 0.72
ROWS = (("reference (full masks)", "reference"), ("weak model, transverse (2 classes)", "transverse"),
        ("weak model, coronal", "coronal"), ("weak model, sagittal", "sagittal"),
        ("pseudo mask, test scans", "pseudo_mask"), ("pseudo mask, training scans", "pseudo_mask_train"),
        ("result (points only)", "result"), ("points of the test scans, watershed", "watershed"))


@dataclass
class Table:
    """Everything that `table1` reports."""

    scores: dict[str, Evaluation]  # on test scans, by model; pseudo_mask_train on training scans; watershed
    histories: dict[str, History]
    split: dict[str, list[str]]
    smoothing: tuple[int, int]
    further_points: float
    seconds: float
    seed: int
    profile: str
    terms: str
    data: str
    example: Prepared  # a test scan
    stages: dict[str, np.ndarray]  # its labels (z, y, x) at each stage of the procedure

    @property
    def ratio(self) -> float:
        """Result over reference: the share of full supervision that points reach."""
        return self.scores["result"].dice_wi / self.scores["reference"].dice_wi

    def as_dict(self) -> dict:
        """The content of table1.json."""
        headline = {name: number(e.dice_wi) for name, e in self.scores.items()}
        return headline | {
            "ratio": number(self.ratio), "labelling_cost": labelling_cost(),
            "labelling_cost_drawn": labelling_cost(self.further_points),
            "prepared": {name: number(e.dice_wi_prepared) for name, e in self.scores.items()},
            "per_class": {name: e.as_dict()["per_class"] for name, e in self.scores.items()},
            "per_source": {name: e.as_dict()["per_source"] for name, e in self.scores.items()},
            "smoothing": {"denoise": self.smoothing[0], "erosion": self.smoothing[1]},
            "validation": {name: h.best_validation for name, h in self.histories.items()},
            "steps": {name: {"best": h.best_step, "total": h.rounds[-1].step} for name, h in self.histories.items()},
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
        lines.append(f"smoothing: {self.smoothing[0]} denoise and {self.smoothing[1]} erosion iterations; "
                     f"{self.seconds / 60:.1f} minutes, peak memory {peak_rss_mb():.0f} MB")
        if self.histories["reference"].still_improving:
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
    plot.save(plot.stages(table.example.image, table.stages, table.example.spacing_mm, title=table.example.name),
              out / "stages.png")
    plot.save(plot.curves(table.histories), out / "curves.png")
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
