"""Intervals that resample patients, and the words of the notebooks against the committed results."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from pointseg.metrics import weighted_dice
from pointseg.points import draw_labels
from pointseg.preprocess import Prepared, Scans
from pointseg.report.compare import (
    Row,
    by_patient,
    compared,
    difference,
    in_text,
    interval,
    read_rows,
    resampled,
    time_of,
    verdict,
    write_rows,
)


def row(patient="a", line="P", part="validation", matrix=((5, 1), (2, 4)), **other) -> Row:
    given = dict(line=line, repeat=0, fold=1, part=part, scan=f"{patient}/1", patient=patient, answer="mean",
                 seconds=30.5, outlined=2, shown=10, confusion=in_text(np.array(matrix)))
    return Row(**given | other)


def test_rows_come_back_from_a_file_as_they_were(tmp_path):
    rows = [row(), row("b", 'a "line", with commas'), row("ü", matrix=np.arange(36).reshape(6, 6))]
    write_rows(tmp_path / "rows.csv", rows)
    assert read_rows(tmp_path / "rows.csv") == rows
    assert (read_rows(tmp_path / "rows.csv")[2].matrix == np.arange(36).reshape(6, 6)).all()


def test_a_patient_with_two_scans_is_pooled_and_other_parts_are_left_out():
    rows = [row(), row(scan="a/2", matrix=((1, 0), (0, 1))), row("b"), row("b", part="test"), row("b", line="PC")]
    pooled = by_patient(rows, line="P", part="validation")
    assert pooled["a"].tolist() == [[6, 1], [2, 5]] and pooled["b"].tolist() == [[5, 1], [2, 4]]


def test_methods_are_compared_over_the_runs_that_both_have():
    bad = ((1, 5), (5, 1))
    rows = [row(), row("b"), replace(row(), repeat=1), replace(row("b"), fold=3, confusion=in_text(np.array(bad))),
            row(answer="vote"), row("b", answer="vote")]
    assert compared(rows, ("P", "vote"), ("P", "mean")) == (0, 0, 0)
    with pytest.raises(ValueError, match="no patient"):
        compared(rows, ("PC", "mean"), ("P", "mean"))


def test_value_is_dice_of_all_voxels():
    rng = np.random.default_rng(0)
    truth, said = rng.integers(0, 2, (2, 400))
    halves = [np.array([[np.sum((t == i) & (s == j)) for j in (0, 1)] for i in (0, 1)])
              for t, s in zip(np.split(truth, 2), np.split(said, 2), strict=True)]
    value, low, high = interval(resampled(dict(zip("ab", halves, strict=True))))
    voxels = np.bincount(truth)
    dice = f1_score(truth, said, average=None)
    assert value == pytest.approx((dice / voxels).sum() / (1 / voxels).sum()) and low <= value <= high


def test_one_patient_has_no_spread_and_equal_methods_no_difference():
    one = {"a": np.array([[5, 1], [2, 4]])}
    value, low, high = interval(resampled(one))
    assert value == low == high == pytest.approx(weighted_dice(one["a"]))
    many = {p: np.random.default_rng(i).integers(1, 9, (2, 2)) for i, p in enumerate("abcdef")}
    assert difference(many, dict(reversed(many.items()))) == (0, 0, 0)


def test_interval_of_the_difference_is_of_pairs():
    """Patients differ by far more than the methods do; paired, the small gain of every patient shows."""
    rng = np.random.default_rng(0)
    theirs = {f"{i}": np.array([[900, 20], [wrong, 100 - wrong]]) for i, wrong in enumerate(rng.integers(5, 60, 30))}
    ours = {p: m + np.array([[0, 0], [-2, 2]]) for p, m in theirs.items()}
    value, low, high = difference(ours, theirs)
    assert 0 < low < value < high < 0.03 and verdict(low, high) == "helps"
    assert interval(resampled(ours))[1] < interval(resampled(theirs))[2]  # unpaired the two overlap
    with pytest.raises(ValueError, match="no patient that both"):
        difference(ours, {"other": theirs["0"]})


def test_about_95_of_100_intervals_hold_the_truth():
    rng, held = np.random.default_rng(1), 0
    for seed in range(100):
        hits = rng.normal(70, 10, 40).clip(1, 99)
        low, high = interval(resampled({f"{i}": np.array([[1e5, 10], [100 - h, h]]) for i, h in enumerate(hits)}, 300,
                                       seed))[1:]
        held += low <= weighted_dice(np.array([[1e5, 10], [30, 70]])) <= high
    assert held >= 86


@pytest.mark.parametrize(("low", "high", "word"), [(0.01, 0.02, "helps"), (-0.02, -0.01, "hurts"),
                                                   (-0.01, 0.02, "not shown"), (0, 0, "not shown")])
def test_verdict(low, high, word):
    assert verdict(low, high) == word


def test_labels_cost_what_they_would_with_slower_outlines():
    mask = np.zeros((6, 6, 4), np.uint8)
    mask[1:4, 1:4, 1:3] = 1  # two slices show a vertebra
    scans = Scans(*([Prepared(np.zeros(mask.shape, np.uint8), mask, (1.0, 1.0, 1.0), "a")] for _ in range(2)))
    of_masks, of_points = (Row(**vars(row()) | dict(zip(("seconds", "outlined", "shown"), time_of(
        draw_labels(scans, kind, 0), scans), strict=True))) for kind in ("masks", "points"))
    assert (of_masks.outlined, of_masks.shown) == (4, 4) and of_masks.share() == of_masks.share(4) == 1
    assert of_points.outlined == 0 and of_points.seconds == pytest.approx(4 * (22.1 + 6 * 0.9))
    assert of_points.share(2) == pytest.approx(of_points.share() / 2) == pytest.approx(27.5 / 239.7 / 2)
