"""Methods compared over many runs: confusion matrices of scans in a CSV, and intervals that resample patients.

A run is one method ("line") on one fold, with one draw of labels and first weights ("repeat").  Its rows are scans,
each with the part of the split that it was in, and with what was scored ("answer").
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from pointseg.metrics import weighted_dice
from pointseg.points import BEARMAN, Seconds, labelling_seconds
from pointseg.preprocess import Scans

DRAWS = 2000  # resamples of an interval
REFERENCE = "whole scans: 20"
KINDS = ("points", "1 + 3 points", "mixed", "slices", "whole scans")  # of labels, as arms begin
Matrices = Mapping[str, np.ndarray]  # by patient, (K, K), rows truth: pooled over all that a patient has


@dataclass(frozen=True)
class Row:
    """What one run says of one scan."""

    line: str
    repeat: int
    fold: int
    part: str
    scan: str
    patient: str
    answer: str
    seconds: float  # of an expert, for all labels that trained and chose
    outlined: int  # slices among them that have a mask
    shown: int  # slices that show a vertebra: what full masks of all these scans would outline
    confusion: str  # (K, K) in rows, numbers apart by blanks

    def share(self, times: float = 1.0) -> float:
        """Time of its labels as a share of full masks, were outlining a slice so many times as slow as in Bearman."""
        mask = BEARMAN.mask * times
        return (self.seconds + self.outlined * (mask - BEARMAN.mask)) / (self.shown * mask)

    @property
    def matrix(self) -> np.ndarray:
        numbers = np.array(self.confusion.split(), float)
        return numbers.reshape(2 * (round(len(numbers) ** 0.5),))


def time_of(labelled: Scans, scans: Scans) -> tuple[float, int, int]:
    """What a row tells of labels: seconds, outlined slices, and slices that show a vertebra.   scans: with masks"""
    of_masks = Seconds(mask=1, points=0, further_point=0)
    outlined, shown = (round(labelling_seconds([*s.train, *s.validation], of_masks)) for s in (labelled, scans))
    return labelling_seconds([*labelled.train, *labelled.validation]), outlined, shown


def in_text(confusion: np.ndarray) -> str:
    return " ".join(f"{n:.0f}" for n in confusion.ravel())


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([f.name for f in fields(Row)])
        writer.writerows(map(astuple, rows))


def read_rows(path: Path) -> list[Row]:
    with open(path, newline="", encoding="utf-8") as file:
        return [Row(**{f.name: f.type(line[f.name]) for f in fields(Row)}) for line in csv.DictReader(file)]


def by_patient(rows: Iterable[Row], **chosen: object) -> dict[str, np.ndarray]:
    """The pooled confusion matrices of the rows that have these values, such as part="validation"."""
    pooled: dict[str, np.ndarray] = {}
    for row in rows:
        if all(getattr(row, name) == value for name, value in chosen.items()):
            pooled[row.patient] = pooled.get(row.patient, 0) + row.matrix
    return pooled


def resampled(ours: Matrices, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Dice_wi of all patients, then of as many drawn with replacement, again and again.   -> (1 + draws,)

    The same seed draws the same patients, so two methods can be compared draw by draw.
    """
    patients = sorted(ours)
    stack = np.stack([ours[p] for p in patients])
    rng, n = np.random.default_rng(seed), len(patients)
    counts = [np.ones(n), *(np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(draws))]
    return np.array([weighted_dice(np.tensordot(count, stack, 1)) for count in counts])


def interval(draws: np.ndarray) -> tuple[float, float, float]:
    """The value, and the 95 % interval of its resamples: what `resampled` returns, or a function of such."""
    return float(draws[0]), *(float(q) for q in np.quantile(draws[1:], (0.025, 0.975)))


def difference(ours: Matrices, theirs: Matrices) -> tuple[float, float, float]:
    """Dice_wi of one method less that of another, and its 95 % interval; over the patients that both have."""
    both = ours.keys() & theirs.keys()
    if not both:
        raise ValueError("found no patient that both methods have, expected at least one")
    return interval(resampled({p: ours[p] for p in both}) - resampled({p: theirs[p] for p in both}))


def compared(rows: Sequence[Row], ours: tuple[str, str], theirs: tuple[str, str]) -> tuple[float, float, float]:
    """Difference of two methods, (line, answer) each, over the folds and repeats that both have."""
    runs = [{(row.repeat, row.fold) for row in rows if (row.line, row.answer) == method} for method in (ours, theirs)]
    alike = [row for row in rows if (row.repeat, row.fold) in runs[0] & runs[1]]
    return difference(*(by_patient(alike, line=line, answer=answer) for line, answer in (ours, theirs)))


class Curves:
    """What labels of each kind are worth: arms named "kind: amount", by their time.   rows: of test scans

    dice: of each arm, of all patients and of resamples, alike for all; where an arm lacks a patient that another has,
    that patient is left out for all.
    """

    def __init__(self, rows: Sequence[Row], draws: int = DRAWS):
        self.rows = {line: [row for row in rows if row.line == line] for line in dict.fromkeys(r.line for r in rows)}
        matrices = {line: by_patient(of_line, part="test") for line, of_line in self.rows.items()}
        both = set.intersection(*(set(m) for m in matrices.values())) if matrices else set()
        self.patients = len(both)
        self.lines = sorted(self.rows, key=self.share)
        self.dice = {line: resampled({p: matrices[line][p] for p in both}, draws) for line in self.lines if both}

    def share(self, line: str, times: float = 1.0) -> float:
        """Mean time of an arm's labels, as a share of full masks; were outlining so many times as slow."""
        return float(np.mean([row.share(times) for row in self.rows[line]]))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in KINDS if any(line.startswith(f"{kind}:") for line in self.lines)]

    def of_kind(self, kind: str, times: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Shares (N,), rising, and Dice_wi (N, 1 + draws) of a kind's arms."""
        lines = sorted((n for n in self.lines if n.partition(":")[0] == kind), key=lambda n: self.share(n, times))
        return np.array([self.share(n, times) for n in lines]), np.array([self.dice[n] for n in lines])

    def at(self, kind: str, share: float, times: float = 1.0) -> np.ndarray:
        """Dice_wi for so much time, between arms straight over its logarithm.   -> (1 + draws,)

        nan for less than a kind's least arm; who has more time than for its largest stops there.
        """
        shares, dice = self.of_kind(kind, times)
        if share < shares[0]:
            return np.full(dice.shape[1], np.nan)
        right = int(np.searchsorted(shares, share))
        if right == len(shares) or shares[right] == share:
            return dice[min(right, len(shares) - 1)]
        weight = np.log(share / shares[right - 1]) / np.log(shares[right] / shares[right - 1])
        return (1 - weight) * dice[right - 1] + weight * dice[right]

    def least_share(self, wanted: np.ndarray, times: float = 1.0) -> np.ndarray:
        """The least time from which on some kind reaches `wanted` (1 + draws,); inf where none does."""
        grid = np.geomspace(min(self.share(line, times) for line in self.lines), 1, 400)
        best = np.stack([np.nanmax([self.at(kind, share, times) for kind in self.kinds], 0) for share in grid])
        reached = best >= wanted
        return np.where(reached.any(0), grid[reached.argmax(0)], np.inf)

    def ahead_up_to(self, kind: str, other: str, times: float = 1.0) -> np.ndarray:
        """The most time with which a kind is ahead of another; 0 where it never is, of those that both have."""
        least = max(self.of_kind(k, times)[0][0] for k in (kind, other))
        grid = np.geomspace(least, 1, 400)
        ahead = np.stack([self.at(kind, share, times) > self.at(other, share, times) for share in grid])
        return np.where(ahead.any(0), grid[len(grid) - 1 - ahead[::-1].argmax(0)], 0)

    def best(self, shares: Sequence[float], times: float = 1.0) -> list[tuple[str, float]]:
        """For each time the kind that is best, and in which share of the resamples it is; "" where none is so cheap."""
        answers = []
        for share in shares:
            dice = np.nan_to_num(np.stack([self.at(kind, share, times) for kind in self.kinds]), nan=-1.0)
            kind = int(dice[:, 0].argmax())
            certainty = float((dice[:, 1:].argmax(0) == kind).mean())
            answers.append((self.kinds[kind], certainty) if dice[kind, 0] >= 0 else ("", 0.0))
        return answers


def verdict(low: float, high: float) -> str:
    """What an interval of a difference shows."""
    return "helps" if low > 0 else "hurts" if high < 0 else "not shown"
