"""Points as an expert would set them: how many, where, and what they cost."""

import numpy as np
import pytest
from scipy import ndimage

from pointseg.points import grow_points, labelling_cost, mean_further_points, sample_points
from pointseg.volume import UNLABELLED


def blocks() -> np.ndarray:
    """L1 in two components and L3 in one on slices 1 and 2; L5 of 2 voxels on slice 3; slice 0 is empty."""
    mask = np.zeros((20, 16, 4), np.uint8)
    mask[2:6, 3:8, 1:3] = 1
    mask[2:6, 10:14, 1:3] = 1
    mask[9:15, 2:9, 1:3] = 3
    mask[18, 5:7, 3] = 5
    return mask


@pytest.mark.parametrize("per_instance, background", [(1, 0), (3, 5), (7, 11)])
def test_points_lie_in_their_class_and_every_component_has_its_share(per_instance, background):
    mask = blocks()
    labels = sample_points(mask, np.random.default_rng(1), per_instance, background)
    points = labels != UNLABELLED
    assert (labels[points] == mask[points]).all()
    for x in range(mask.shape[2]):
        assert (labels[:, :, x] == 0).sum() == background
        for k in (1, 3, 5):
            components, count = ndimage.label(mask[:, :, x] == k)
            for c in range(1, count + 1):
                here = components == c
                assert (points[:, :, x] & here).sum() == min(per_instance, here.sum())  # a small one is labelled whole


def test_a_slice_without_background():
    labels = sample_points(np.full((3, 3, 1), 2, np.uint8), np.random.default_rng(0))
    assert (labels == 2).sum() == 3 and (labels == 0).sum() == 0


def test_the_generator_decides():
    first, again, other = (sample_points(blocks(), np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert (first == again).all() and (first != other).any()


def test_points_are_spread_evenly():
    """Each of 20 voxels of a component is drawn with probability 3/20."""
    mask = np.zeros((4, 5, 2000), np.uint8) + 1
    share = (sample_points(mask, np.random.default_rng(0)) == 1).mean(2)
    np.testing.assert_allclose(share, 3 / 20, atol=0.03)  # four standard deviations of 0.008


def test_labelling_cost_by_hand():
    """(22.1 + 6 * 0.9) / 239.7 = 27.5 / 239.7"""
    assert labelling_cost() == pytest.approx(0.1147, abs=5e-5)
    assert labelling_cost(0) == pytest.approx(22.1 / 239.7)


def test_mean_further_points_by_hand():
    """Slice 0: 5 points of 2 classes, 3 further; slice 1: 2 of 2, none; slice 2 shows no vertebra."""
    labels = np.full((5, 5, 3), UNLABELLED, np.uint8)
    labels[0, :5, 0] = 0, 0, 4, 4, 4
    labels[0, :2, 1] = 0, 1
    labels[0, :5, 2] = 0
    assert mean_further_points(labels) == 1.5
    assert mean_further_points(labels[:, :, 2:]) == 0
    # blocks: 5 + 6 + 3 points of 3 classes on two slices, 5 + 2 of 2 on another
    assert mean_further_points(sample_points(blocks(), np.random.default_rng(0))) == pytest.approx((11 + 11 + 5) / 3)


def test_points_grow_to_the_edges_of_a_clean_box():
    mask = np.zeros((20, 20, 6), np.uint8)
    mask[4:9, 5:15] = 1
    mask[11:17, 5:15] = 2
    labels = sample_points(mask, np.random.default_rng(0))
    grown = grow_points(100.0 * (mask > 0), labels, (4.0, 4.0, 4.0))
    assert grown.dtype == np.uint8 and set(np.unique(grown)) == {0, 1, 2}  # an absent class does not appear
    assert (grown == mask).mean() > 0.9
    assert np.array_equal(grown[labels != UNLABELLED], labels[labels != UNLABELLED])
