"""Scores from a confusion matrix, against scikit-learn and by hand."""

from math import isnan

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score, precision_score, recall_score

from pointseg.metrics import per_class, weighted_dice
from pointseg.report.scores import absent_classes


@pytest.mark.parametrize("classes, seed", [(2, 0), (6, 1), (6, 2)])
def test_scores_equal_scikit_learn(classes, seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, 500)
    prediction = np.where(rng.random(500) < 0.6, truth, rng.integers(0, classes, 500))
    scores = per_class(confusion_matrix(truth, prediction))
    for found, oracle in ((scores.precision, precision_score), (scores.recall, recall_score),
                          (scores.dice, f1_score), (scores.iou, jaccard_score)):
        np.testing.assert_allclose(found, oracle(truth, prediction, average=None))
    assert scores.voxels.tolist() == np.bincount(truth).tolist()


def test_scores_by_hand():
    """Truth 0 0 0 1, prediction 0 0 1 1; class 2 is nowhere."""
    scores = per_class(np.array([[2, 1, 0], [0, 1, 0], [0, 0, 0]]))
    nan = float("nan")
    np.testing.assert_allclose(scores.precision, [1, 1 / 2, nan])
    np.testing.assert_allclose(scores.recall, [2 / 3, 1, nan])
    np.testing.assert_allclose(scores.dice, [4 / 5, 2 / 3, nan])
    np.testing.assert_allclose(scores.iou, [2 / 3, 1 / 2, nan])


def test_missed_and_invented_classes_score_zero():
    """Class 1 is never found: no precision, but Dice 0.  Class 2 is invented: no recall, but Dice 0."""
    scores = per_class(np.array([[5, 0, 3], [2, 0, 0], [0, 0, 0]]))
    assert isnan(scores.precision[1]) and scores.recall[1] == 0 and scores.dice[1] == scores.iou[1] == 0
    assert isnan(scores.recall[2]) and scores.precision[2] == 0 and scores.dice[2] == scores.iou[2] == 0


def test_weighted_dice_by_hand():
    """Dice 4/5 with weight 1/3 and 2/3 with weight 1: (4/15 + 2/3) / (4/3) = 0.7.  The rare class counts most."""
    assert weighted_dice(np.array([[2, 1], [0, 1]])) == pytest.approx(0.7)


def test_an_absent_class_is_left_out_and_named():
    """Equation 5 divides by A_m.  Class 1 has no true voxel, but its 4 false ones still lower class 0."""
    confusion = np.array([[6, 4, 0], [0, 0, 0], [0, 0, 5]])
    assert absent_classes(confusion) == [1]
    expected = (12 / 16 / 10 + 1 / 5) / (1 / 10 + 1 / 5)
    assert weighted_dice(confusion) == pytest.approx(expected)
    assert absent_classes(np.eye(3)) == []


def test_nothing_at_all():
    assert isnan(weighted_dice(np.zeros((3, 3), int)))
    assert absent_classes(np.zeros((3, 3), int)) == [0, 1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_bounds_and_order(seed):
    """1 for a perfect answer, never outside 0..1, and the same whatever the order of the classes."""
    confusion = np.random.default_rng(seed).integers(0, 50, (6, 6))
    order = np.random.default_rng(seed).permutation(6)
    assert 0 < weighted_dice(confusion) < 1
    assert weighted_dice(confusion[order][:, order]) == pytest.approx(weighted_dice(confusion))
    assert weighted_dice(np.diag(np.diag(confusion) + 1)) == pytest.approx(1)
