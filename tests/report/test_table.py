"""What a table says, from scores and labels set by hand: costs, who wins until when, ratios, intervals over seeds."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from pointseg.points import BEARMAN, Points, Seconds, sample_points
from pointseg.predict import ThreeAxes
from pointseg.preprocess import Prepared, Scans
from pointseg.procedure import Outcome
from pointseg.report.scores import Evaluation
from pointseg.report.table import Repeated, Table
from pointseg.train import History, Round
from pointseg.volume import CLASSES, UNLABELLED

NAMES = ("transverse", "coronal", "sagittal", "result_sagittal", "reference_sagittal")
DICE = {"result": 0.8, "reference": 0.9, "slices": 0.7, "result_sagittal": 0.6, "reference_sagittal": 0.75}


def scored(dice: float) -> Evaluation:
    """One case of two classes whose Dice are both this."""
    matrix, hits = np.zeros((6, 6), int), round(1000 * dice)
    matrix[:2, :2] = [[hits, 1000 - hits], [1000 - hits, hits]]
    return Evaluation(CLASSES, {"a/1": {"own": matrix.tolist(), "prepared": matrix.tolist(), "found_mm": {}}})


def table_of(seed: int = 0, **dice: float) -> Table:
    """Three scans with L2 on ten sagittal slices each: points of all, masks of 2, 1 and 2 slices, masks of two scans.

    A slice with points has 8 of 2 classes: 22.1 + 6 * 0.9 = 27.5 s; a mask takes 239.7 s."""
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[3:9, 3:9, 1:11] = 2
    masks = [Prepared(mask, mask, (1.0, 1.0, 1.0), f"a/{i}") for i in range(3)]
    points = [Points.of(s, sample_points(mask, np.random.default_rng(0))) for s in masks]
    slices = [s.with_mask(np.where(np.arange(12) <= n, mask, UNLABELLED)) for s, n in zip(masks, (2, 1, 2))]
    labelled = {arm: Scans(known[:-1], known[-1:]) for arm, known in {
        "result": points, "reference": masks, "slices": slices, "whole_scans": masks[1:]}.items()}
    history = History([Round(10, 1e-3, {"total": 1.0}, 0.5, 1.0)], 10, 0.5)
    outcome = Outcome(labelled, {"result": ThreeAxes(None, None, None, 0.6)}, dict.fromkeys(NAMES, history), (2, 1))
    return Table(outcome, {name: scored(x) for name, x in (DICE | dice).items()}, {"test": ["a/9"]}, points[0], 90.0,
                 seed, "tiny", "P", "synthetic")


def test_costs_by_hand():
    """Thirty slices of points, thirty masks, five, and twenty: of training and validation scans, against all masks."""
    expected = {"result": 27.5 / 239.7, "reference": 1, "slices": 5 / 30, "whole_scans": 20 / 30}
    assert table_of().costs == pytest.approx(expected)
    assert replace(table_of(), labelling=Seconds(100.0, 10.0, 1.0)).costs["result"] == pytest.approx(16 / 100)


@pytest.mark.parametrize(("slices", "flips", "said"), [
    (0.7, 27.5, "the points win; down to 28 s, where all masks take no longer than they"),  # thirty against thirty
    (0.9, 165.0, "masks of some slices win; from 165 s on they take longer than the points")])  # 30 * 27.5 / 5
def test_where_the_verdict_flips(slices, flips, said):
    """At so many seconds both take equally long; it depends on the seconds of points, not on those of a mask."""
    table = table_of(slices=slices)
    assert table.flips_at_s == pytest.approx(flips) and f"with 240 s a mask, {said}" in str(table)
    there = replace(table, labelling=replace(BEARMAN, mask=flips))
    other = "slices" if slices > 0.8 else "reference"
    assert there.label_seconds(other) == pytest.approx(there.label_seconds("result"))
    assert there.flips_at_s == pytest.approx(flips)


def test_ratios_and_json_by_hand():
    table = table_of()
    content, text = json.loads(json.dumps(table.as_dict(), allow_nan=False)), str(table)
    assert table.ratio == content["ratio"] == pytest.approx(8 / 9) and np.isnan(table.ratio_of("result", "whole_scans"))
    assert content["thesis_way"] == pytest.approx({"result": 0.6, "reference": 0.75, "ratio": 0.8})
    assert content["labelling_cost"] == content["labelling_costs"]["result"] == pytest.approx(27.5 / 239.7)
    assert content["label_seconds"] == {"mask": 239.7, "points": 22.1, "further_point": 0.9}
    assert content["flips_at_seconds_a_mask"] == pytest.approx(27.5) and content["thresholds"] == {"result": 0.6}
    assert content["smoothing"] == {"denoise": 2, "erosion": 1} and "pseudo_mask_train" not in content
    for line in ("result (points only)                      0.80      0.80       11.5%",
                 "reference, sagittal model alone           0.75      0.75                  0.76",
                 "result / reference                         89%", "2 denoise and 1 erosion iterations; 1.5 minutes"):
        assert line in text
    assert "rival: masks of some scans" not in text  # no score of it
    table.outcome.smoothing = None
    del table.scores["slices"], table.outcome.labelled["slices"]
    content = table.as_dict()
    assert content["smoothing"] is content["flips_at_seconds_a_mask"] is None and "a mask," not in str(table)


def test_intervals_are_students():
    dice = np.array((0.71, 0.8, 0.83, 0.78))
    repeated = Repeated([table_of(seed, result=x, result_sagittal=x - 0.1) for seed, x in enumerate(dice)])
    content = json.loads(json.dumps(repeated.as_dict()))
    for name, values in {"result": dice, "ratio": dice / 0.9, "thesis_way": (dice - 0.1) / 0.75}.items():
        expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
        assert content["interval"][name] == pytest.approx(list(expected))
    low, high = content["interval"]["result"]
    assert f"0.78    {low:.2f} to {high:.2f}" in str(repeated) and "with 4 seeds" in str(repeated)
    assert content["seeds"] == [0, 1, 2, 3] and len(content["tables"]) == 4
