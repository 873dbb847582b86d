"""What points tell of the voxels between them: areas and scores by hand, without bias, and masks counted exactly."""

import numpy as np
import pytest

from pointseg.estimate import TRIANGLE_SHARE, class_voxels, class_weights, estimated_confusion, stands_for
from pointseg.kernels import confusion_matrix
from pointseg.metrics import per_class, weighted_dice
from pointseg.points import Points, sample_points, sample_slices
from pointseg.preprocess import Prepared
from pointseg.volume import UNLABELLED

SHAPE = (12, 15, 3)
POINTS = [(2, 2, 0, 1), (2, 6, 0, 1), (4, 2, 0, 1),  # L1: a triangle of 4 voxels, so a section of 4 / 0.08 = 50
          (8, 2, 0, 2), (8, 5, 0, 2), (8, 9, 0, 2),  # L2: in one line, so no more than the points themselves
          (6, 0, 0, 3), (6, 9, 0, 4), (6, 9, 1, 4),  # L3: one point; L4: one on each of two slices
          (11, 0, 0, 0), (11, 9, 0, 0), (11, 9, 1, 0)]  # slice 2 and L5 have none
ANSWER = np.zeros(SHAPE, np.uint8)  # 40 voxels of L1, 30 and 10 of L2, and L5 all over slice 2, where nobody looked
ANSWER[1:5, 1:11, 0], ANSWER[8:10, :, 0], ANSWER[0, :10, 1], ANSWER[..., 2] = 1, 2, 2, 5


def prepared(mask: np.ndarray) -> Prepared:
    return Prepared(np.zeros(mask.shape, np.uint8), mask, (1.0, 1.0, 1.0), "scan")


def pointed(points: list[tuple[int, int, int, int]]) -> Points:
    """points: (z, y, x, class)"""
    table = np.array(points, np.int32).reshape(-1, 4)
    return Points(prepared(np.full(SHAPE, UNLABELLED, np.uint8)), table[:, :3], table[:, 3].astype(np.uint8))


# --- by hand ---

def test_stands_for_by_hand():
    """Of L1's 50 voxels each point gets the squared distance of the other two: 20, 4 and 16 of 40."""
    expected = [25, 5, 20, *(3 * np.array([16, 49, 9]) / 74), 1, 1, 1, 0, 0, 0]
    assert stands_for(pointed(POINTS)) == pytest.approx(expected)
    two_and_two = pointed([(2, 2, 0, 1), (2, 6, 0, 1), (6, 2, 1, 1), (6, 6, 1, 1)])  # three span 8 voxels, of 2 slices
    assert stands_for(two_and_two).sum() == pytest.approx(2 * 8 / 0.08)


def test_confusion_by_hand():
    """L1 and L2 are found, L3 and L4 taken for background, whose own row is what is left, and never below 0."""
    expected = np.zeros((6, 6))
    expected[1, 1], expected[2, 2], expected[3, 0], expected[4, 0] = 50, 3, 1, 2
    expected[0] = [360 - 80 - 1 - 2, 0, 40 - 3, 0, 0, 0]
    assert estimated_confusion(pointed(POINTS), ANSWER, 6) == pytest.approx(expected)
    of_two = estimated_confusion(pointed(POINTS), (ANSWER > 0).astype(np.uint8), 2)
    assert of_two == pytest.approx(np.array([[277, 80 - 53], [3, 53]]))
    assert class_voxels(pointed(POINTS)) == pytest.approx([360 - 56, 50, 3, 1, 2, 0])


@pytest.mark.parametrize(("points", "voxels"), [
    ([], 0), ([(1, 1, 0, 2)], 1), ([(1, 1, 0, 0)], 0), ([(1, 1, 0, 2), (1, 2, 0, 2), (1, 3, 0, 2)], 3),
    ([(i, i, i % 3, 5) for i in range(7)], 6)], ids=["none", "one", "background", "in a line", "in space"])
@pytest.mark.parametrize("num_classes", [2, 6])
def test_few_points_give_numbers(points, voxels, num_classes):
    """At least as many voxels as points that make threes, and no division by what is not there."""
    found = estimated_confusion(pointed(points), np.ones(SHAPE, np.uint8), num_classes)
    assert (found >= 0).all() and found[1:].sum() == pytest.approx(voxels)
    assert found[:, 1].sum() == found.sum() == pytest.approx(180 * len({x for _, _, x, _ in points}))
    assert np.isnan(weighted_dice(found)) == (not points)
    assert not points or class_weights([pointed(points)], num_classes, 1.0).isfinite().all()


# --- masks ---

def random_mask(shape=(14, 12, 9)) -> tuple[np.ndarray, np.ndarray]:
    """A mask with voxels that nobody knows, and an answer that is often right."""
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 6, shape).astype(np.uint8)
    prediction = np.where(rng.random(mask.shape) < 0.6, mask, rng.integers(0, 6, mask.shape)).astype(np.uint8)
    mask[rng.random(mask.shape) < 0.2] = UNLABELLED
    return mask, prediction


@pytest.mark.parametrize("num_classes", [2, 6])
@pytest.mark.parametrize("every", [1, 3, 20], ids=["all slices", "every third", "one slice"])
def test_labelled_slices_are_counted(num_classes, every):
    mask, said = random_mask()
    truth = labels = sample_slices(mask, np.random.default_rng(0), every)
    if num_classes == 2:
        truth, said = np.where(labels == UNLABELLED, labels, labels > 0).astype(np.uint8), (said > 0).astype(np.uint8)
    expected = confusion_matrix(truth, said, num_classes)
    for scan in (prepared(labels), Points.of(prepared(mask), labels)):
        assert (estimated_confusion(scan, said, num_classes) == expected).all() and expected.sum() > 50
        assert (class_weights([scan], num_classes, 1.0) == 1).all()


def test_slices_and_points_of_one_scan_add_up():
    """Points on slices 0 and 1, a mask on slice 2, in an answer with enough of each class."""
    mask, answer = np.full(SHAPE, UNLABELLED, np.uint8), np.where(ANSWER == 1, 2, ANSWER)
    mask[..., 2] = random_mask(SHAPE)[0][..., 2]
    apart = estimated_confusion(pointed(POINTS), answer, 6) + confusion_matrix(mask, answer, 6)
    both = prepared(np.where(mask == UNLABELLED, pointed(POINTS).mask, mask))
    assert estimated_confusion(both, answer, 6) == pytest.approx(apart)


# --- without bias ---

ROWS, COLUMNS = np.mgrid[:64, :96]


def ellipse(row: int, column: int, height: int, width: int) -> np.ndarray:
    return ((ROWS - row) / height) ** 2 + ((COLUMNS - column) / width) ** 2 < 1


def rectangle(row: int, column: int, height: int, width: int) -> np.ndarray:
    return (abs(ROWS - row) <= height) & (abs(COLUMNS - column) <= width)


SECTIONS = {1: rectangle(16, 20, 9, 13), 2: ellipse(46, 20, 10, 15), 5: rectangle(46, 50, 8, 7) | ellipse(52, 80, 6, 7),
            3: (ROWS >= 4) & (COLUMNS >= 42) & ((ROWS - 4) / 24 + (COLUMNS - 42) / 30 <= 1)}
SHARES = {1: 11 / 144, 2: 35 / (48 * np.pi**2), 3: 1 / 12}  # of a triangle in the section: Blaschke 1917
THERE = [0, *sorted(SECTIONS)]


@pytest.fixture(scope="module")
def sections() -> tuple[np.ndarray, list[Points]]:
    """L1 rectangles, L2 ellipses, L3 triangles, L5 in two components; 600 slices, their points drawn four times."""
    plane = sum(k * section for k, section in SECTIONS.items()).astype(np.uint8)
    mask = np.repeat(plane[..., None], 600, 2)
    return mask, [Points.of(prepared(mask), sample_points(mask, np.random.default_rng(seed))) for seed in range(4)]


def test_areas_and_weights_are_those_of_convex_sections(sections):
    """Within 10 % of the truth; and where the shape is known, as far from it as the theory says, within 5 %.

    The classes' weights are then the mask's: the share of voxels over the share of labels.
    """
    mask, drawn = sections
    voxels = np.bincount(mask.ravel(), minlength=6)
    labels = sum(np.bincount(points.values, minlength=6) for points in drawn)
    found = np.mean([class_voxels(points) for points in drawn], 0) / voxels.clip(1)
    assert found[THERE] == pytest.approx(1, abs=0.1) and found[4] == 0
    for k, share in SHARES.items():
        assert found[k] == pytest.approx(share / TRIANGLE_SHARE, abs=0.05)
    weights, expected = class_weights(drawn, 6, 1.0).numpy()[THERE], voxels[THERE] / labels[THERE]
    assert weights / weights[0] == pytest.approx(expected / expected[0], rel=0.1)


@pytest.mark.parametrize("shift", [(0, 0), (3, -4), (-6, 2)], ids=str)
@pytest.mark.parametrize("num_classes", [2, 6])
def test_scores_are_those_of_the_masks(sections, shift, num_classes):
    """Dice and Dice_wi within 0.04 of the true ones (an ellipse's area is told 7 % too small): of a perfect answer, and
    of shifted ones that take some of L5 for L1 and find an L4 that is not there."""
    truth, drawn = sections
    prediction = np.roll(truth, shift, (0, 1))
    if shift != (0, 0):
        prediction[40:52, 70:, ::2][prediction[40:52, 70:, ::2] == 5] = 1
        prediction[:3, :10] = 4
    if num_classes == 2:
        prediction, truth = ((x > 0).astype(np.uint8) for x in (prediction, truth))
    expected = confusion_matrix(truth, prediction, num_classes)
    found = np.mean([estimated_confusion(points, prediction, num_classes) for points in drawn], 0)
    there = THERE if num_classes == 6 else [0, 1]
    assert per_class(found).dice[there] == pytest.approx(per_class(expected).dice[there], abs=0.04)
    assert weighted_dice(found) == pytest.approx(weighted_dice(expected), abs=0.04)


def test_class_weights_by_hand():
    """L1: 50 of 180 voxels and 3 of 5 labels; background 130 and 2.  L2..L5 are nowhere: weighed as L1 is."""
    scan = pointed([*POINTS[:3], (11, 0, 0, 0), (11, 9, 0, 0)])
    two, half, six = (class_weights([scan], *how).tolist() for how in ((2, 1.0), (2, 0.5), (6, 1.0)))
    assert two[0] / two[1] == pytest.approx((130 / 2) / (50 / 3)) and sum(two) == pytest.approx(2)
    assert half[0] / half[1] == pytest.approx((two[0] / two[1]) ** 0.5)
    assert [w / six[0] for w in six] == pytest.approx([1, *[(50 / 3) / (130 / 2)] * 5]) and sum(six) == pytest.approx(6)
    assert class_weights([scan], 6, 0.0).tolist() == [1] * 6
