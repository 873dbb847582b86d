"""What the procedure reports: the thesis's Table 1, table1.json, figures and models."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from pointseg.fusion import hard_predictions
from pointseg.metrics import per_class
from pointseg.points import BEARMAN, Points, Seconds, labelling_seconds
from pointseg.predict import ThreeAxes
from pointseg.preprocess import Prepared
from pointseg.procedure import Outcome
from pointseg.report import plot
from pointseg.report.scores import Evaluation, number, one_hot, summary
from pointseg.scans.files import write_json
from pointseg.slices import AXES
from pointseg.volume import CLASSES

THESIS_TABLE = {"transverse": 0.51, "coronal": 0.41, "sagittal": 0.34, "pseudo_mask_train": 0.48,
                "result_sagittal": 0.55, "reference_sagittal": 0.76}  # Dice_wi, thesis Table 1
ON_VALIDATION = ("transverse", "coronal", "sagittal", "pseudo_mask_train")  # which scans the thesis scored these on
THESIS_RATIO = 0.72
ROWS = {"reference": "reference (full masks)", "transverse": "weak model, transverse (2 classes)",
        "coronal": "weak model, coronal", "sagittal": "weak model, sagittal", "pseudo_mask": "pseudo mask, test scans",
        "pseudo_mask_train": "pseudo mask, training scans", "result": "result ({labels} only)",
        "slices": "rival: masks of some slices", "whole_scans": "rival: masks of some scans",
        "result_sagittal": "result, sagittal model alone", "reference_sagittal": "reference, sagittal model alone",
        "watershed": "points of the test scans, watershed"}


def answers_of(outcome: Outcome) -> dict[str, Callable[[Prepared], np.ndarray]]:
    """What the procedure says of a training or test scan, as class scores (K, z, y, x): each row of the table."""
    return {name: model.probabilities for name, model in outcome.models.items() if name in ROWS} | {
        "pseudo_mask": lambda scan: one_hot(outcome.pseudo[scan.name].mask, len(CLASSES))}


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
    labels: str = "points"
    labelling: Seconds = BEARMAN  # what an expert's labels take

    @property
    def costs(self) -> dict[str, float]:
        """Of each arm the time for all labels of training and validation scans, relative to full masks of the same;
        nothing where some have none."""
        known = self.outcome.labelled
        if "reference" not in known:
            return {}
        return {arm: self.label_seconds(arm) / self.label_seconds("reference") for arm in known}

    def label_seconds(self, arm: str) -> float:
        known = self.outcome.labelled[arm]
        return labelling_seconds([*known.train, *known.validation], self.labelling)

    @property
    def own_seconds(self) -> float | None:
        """What the result's labels took the expert, as the folder's own clicks say; None where they do not."""
        known = self.outcome.labelled["result"]
        clicks = [scan.scan.clicks for scan in (*known.train, *known.validation)
                  if isinstance(scan, Points) and scan.scan.clicks is not None]
        seconds = np.concatenate([c.seconds for c in clicks]) if clicks else np.empty(0)
        return float(np.nansum(seconds)) if np.isfinite(seconds).any() else None

    @property
    def flips_at_s(self) -> float | None:
        """Seconds a mask where it changes who wins, the result or masks of some slices for the same time.

        Where slices win: from there on, these slices take longer than the result's labels.  Else: down to there,
        labels take longer than all masks.
        """
        if not {"slices", "result", "reference"} <= self.outcome.labelled.keys() & self.scores.keys():
            return None
        wins = self.scores["slices"].dice_wi >= self.scores["result"].dice_wi
        masks = self.label_seconds("slices" if wins else "reference") / self.labelling.mask
        return self.label_seconds("result") / masks

    @property
    def stages(self) -> dict[str, np.ndarray]:
        """Labels (z, y, x) of the example at each stage of the procedure."""
        scan, models = self.example.scan, self.outcome.models
        said = hard_predictions({n: models[n] for n in (*AXES, "result", "reference") if n in models}, scan)
        pseudo, truth = {"pseudo mask": self.outcome.pseudo[scan.name].mask}, {"truth": scan.mask}
        return ({"points": self.example.mask} | {axis: said.pop(axis) for axis in AXES} | pseudo | said
                | (truth if scan.mask is not None else {}))

    @property
    def ratio(self) -> float:
        """Result over reference: the share of full supervision that points reach."""
        return self.ratio_of("result", "reference")

    def ratio_of(self, one: str, other: str) -> float:
        return self.scores[one].dice_wi / self.scores[other].dice_wi if {one, other} <= self.scores.keys() else np.nan

    def as_dict(self) -> dict:
        """The content of table1.json."""
        histories, of_rows = self.outcome.histories, {name: summary(e) for name, e in self.scores.items()}
        headline, smoothing = {name: of_row["dice_wi"] for name, of_row in of_rows.items()}, self.outcome.smoothing
        return headline | {
            "ratio": number(self.ratio),
            "thesis_way": {"result": headline.get("result_sagittal"), "reference": headline.get("reference_sagittal"),
                           "ratio": number(self.ratio_of("result_sagittal", "reference_sagittal"))},
            "labels": self.labels, "labelling_cost": self.costs.get("result"), "labelling_costs": self.costs,
            "labelling_seconds": {arm: self.label_seconds(arm) for arm in self.outcome.labelled},
            "own_label_seconds": self.own_seconds,
            "estimated_intervals": {name: of_row["estimated_interval"] for name, of_row in of_rows.items()
                                    if of_row["estimated_interval"]},
            "label_seconds": asdict(self.labelling), "flips_at_seconds_a_mask": self.flips_at_s,
            "prepared": {name: of_row["dice_wi_prepared"] for name, of_row in of_rows.items()},
            "per_class": {name: of_row["per_class"] for name, of_row in of_rows.items()},
            "per_source": {name: of_row["per_source"] for name, of_row in of_rows.items()},
            "smoothing": smoothing and dict(zip(("denoise", "erosion"), smoothing, strict=True)),
            "thresholds": {name: model.threshold for name, model in self.outcome.models.items()
                           if isinstance(model, ThreeAxes)},
            "validation": {name: h.best_validation for name, h in histories.items()},
            "steps": {name: {"best": h.best_step, "total": h.rounds[-1].step} for name, h in histories.items()},
            "seconds": round(self.seconds, 1), "peak_rss_mb": number(round(peak_rss_mb(), 1)), "split": self.split,
            "seed": self.seed, "profile": self.profile, "terms": self.terms, "data": self.data}

    def __str__(self) -> str:
        """The table as text, beside the thesis's."""
        lines = [f"Dice_wi on {len(self.split['test'])} test scans: {self.data}, profile {self.profile}, "
                 f"terms {self.terms}, seed {self.seed}",
                 f"{'':<36}{'own grid':>10}{'prepared':>10}{'label time':>12}{'thesis':>10}"]
        costs = self.costs or {"result": 0.0}
        for name, title in ROWS.items():
            if name not in self.scores:  # a notebook may leave out what it does not ask
                continue
            e, thesis = self.scores[name], THESIS_TABLE.get(name)
            cost = (f"{costs[name]:.1%}" if self.costs else f"{self.label_seconds(name) / 60:.0f} min") \
                if name in costs else ""
            shown = "" if thesis is None else f"{thesis:.2f}" + ("*" if name in ON_VALIDATION else " ")
            lines.append(f"{title.format(labels=self.labels):<36}{e.dice_wi:>10.2f}{e.dice_wi_prepared:>10.2f}{cost:>12}"
                         f"{shown:>11}".rstrip())
        if self.costs:
            lines += [f"{'result / reference':<36}{self.ratio:>10.0%}",
                      f"{'the same, sagittal models alone':<36}"
                      f"{self.ratio_of('result_sagittal', 'reference_sagittal'):>10.0%}{THESIS_RATIO:>32.0%}"]
        against = ", against full masks" if self.costs else "; without full masks there is no reference"
        lines.append(f"label time: all of training and validation scans{against}; *: on validation scans")
        if (own := self.own_seconds) is not None:
            lines.append(f"the expert's own time for the result's labels, as far as it is known: {own / 60:.0f} min; "
                         f"by Bearman's seconds {self.label_seconds('result') / 60:.0f} min")
        if between := self.scores["result"].interval:
            lines.append("estimated from places that chance has chosen, the result: {:.2f} to {:.2f} (95 %)".format(
                *between))
        if (flip := self.flips_at_s) is not None:
            wins = self.scores["slices"].dice_wi >= self.scores["result"].dice_wi
            lines.append(f"with {self.labelling.mask:.0f} s a mask, " + (
                f"masks of some slices win; from {flip:.0f} s on they take longer than the {self.labels}" if wins else
                f"the {self.labels} win; down to {flip:.0f} s, where all masks take no longer than they"))
        how = "mean of the weak models" if self.outcome.smoothing is None else (
            "vote of the weak models, {} denoise and {} erosion iterations".format(*self.outcome.smoothing))
        lines.append(f"pseudo masks: {how}; {self.seconds / 60:.1f} minutes, peak memory {peak_rss_mb():.0f} MB")
        reference = self.outcome.histories.get("reference_sagittal")
        if reference and reference.still_improving:
            lines.append("note: the reference still improved when its training ended: the ratio flatters the result")
        return "\n".join(lines)


@dataclass(frozen=True)
class Repeated:
    """The same table with several seeds: the mean of each score, with its 95 % interval (Student's t)."""

    tables: Sequence[Table]

    @property
    def values(self) -> dict[str, np.ndarray]:
        """Dice_wi of each row, and the ratios, by seed."""
        return {name: np.array([t.scores[name].dice_wi for t in self.tables]) for name in self.tables[0].scores} | {
            "ratio": np.array([t.ratio for t in self.tables]),
            "thesis_way": np.array([t.ratio_of("result_sagittal", "reference_sagittal") for t in self.tables])}

    def as_dict(self) -> dict:
        """The content of table1.json."""
        return {"seeds": [t.seed for t in self.tables],
                "mean": {name: number(x.mean()) for name, x in self.values.items()},
                "spread": {name: number(x.std(ddof=1)) for name, x in self.values.items()},
                "interval": {name: [number(x.mean() - half_interval(x)), number(x.mean() + half_interval(x))]
                             for name, x in self.values.items()},
                "tables": [t.as_dict() for t in self.tables]}

    def __str__(self) -> str:
        first, values = self.tables[0], self.values
        lines = [f"Dice_wi on test scans with {len(self.tables)} seeds: {first.data}, profile {first.profile}, terms "
                 f"{first.terms}", f"{'':<36}{'mean':>8}{'95 % interval':>16}   "
                 + "".join(f"{f'seed {t.seed}':>9}" for t in self.tables)]
        titles = ROWS | {"ratio": "result / reference", "thesis_way": "the same, sagittal models alone"}
        for name, title in titles.items():
            if name not in values:
                continue
            x, form = values[name], ".0%" if name in ("ratio", "thesis_way") else ".2f"
            half = half_interval(x)
            between = f"{x.mean() - half:{form}} to {x.mean() + half:{form}}"
            lines.append(f"{title.format(labels=first.labels):<36}{x.mean():>8{form}}{between:>16}   "
                         + "".join(f"{v:>9{form}}" for v in x))
        lines.append("interval: over seeds, which decide split, points, first weights and order; as the splits share "
                     "scans, it is a little narrow")
        return "\n".join(lines)


def half_interval(x: np.ndarray) -> float:
    """Half of the 95 % interval of a mean, by Student's t."""
    return stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))


def write_table(table: Table, out: Path) -> None:
    """table1.json and the figures, into a folder."""
    scan = table.example.scan
    plot.save(plot.stages(scan.image, table.stages, scan.spacing_mm, title=scan.name), out / "stages.png")
    shown = (*AXES, "result_sagittal", "reference_sagittal")
    histories = table.outcome.histories
    plot.save(plot.curves({name: histories[name] for name in shown if name in histories}), out / "curves.png")
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
