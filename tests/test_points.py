"""Points as an expert would set them: how many, where, and what they cost."""

import numpy as np
import pytest
from scipy import ndimage

from pointseg.points import (
    BEARMAN,
    NEAR_MM,
    Care,
    Points,
    Seconds,
    draw_labels,
    draw_places,
    draw_points,
    draw_rivals,
    labelling_cost,
    labelling_seconds,
    sample_points,
    sample_slices,
    unlabelled,
)
from pointseg.preprocess import Prepared, Scans
from pointseg.report.watershed import grow_points
from pointseg.volume import UNLABELLED, ScanError


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


def prepared(mask: np.ndarray | None, name: str = "scan") -> Prepared:
    return Prepared(np.ones((20, 16, 4), np.uint8) if mask is None else mask, mask, (1.0, 2.0, 3.0), name, "MR")


@pytest.mark.parametrize("seconds", [BEARMAN, Seconds(100.0, 10.0, 2.0)])
def test_labelling_seconds_by_hand(seconds):
    """blocks: 5 + 6 + 3 points of 3 classes on two slices, 5 + 2 of 2 on the third; the empty slice is free."""
    mask = blocks()
    points = sample_points(mask, np.random.default_rng(0))
    two, one = (seconds.points + n * seconds.further_point for n in (11, 5))
    expected = [(points, 2 * two + one), (mask, 3 * seconds.mask), (np.full_like(mask, UNLABELLED), 0),
                (np.where(np.arange(4) == 1, mask, UNLABELLED), seconds.mask),
                (np.where(np.arange(4) == 1, mask, points), seconds.mask + two + one)]
    for labels, time_s in expected:
        for scan in (prepared(labels), Points.of(prepared(None), labels)):
            assert labelling_seconds([scan], seconds) == pytest.approx(time_s)
    assert labelling_seconds((prepared(x) for x, _ in expected), seconds) == pytest.approx(sum(s for _, s in expected))


def test_points_are_a_prepared_scan():
    """Only places and values are kept, and the mask is made of them; a scan without a mask will do."""
    labels, scan = sample_points(blocks(), np.random.default_rng(0)), prepared(None)
    points = Points.of(scan, labels)
    assert isinstance(points, Prepared) and points.image is scan.image and points.shape == (20, 16, 4)
    assert (points.spacing_mm, points.name, points.modality) == ((1.0, 2.0, 3.0), "scan", "MR")
    assert points.mask is not points.mask and np.array_equal(points.mask, labels) and points.mask.dtype == np.uint8
    assert not any(isinstance(x, np.ndarray) and x.shape == labels.shape for x in vars(points).values())
    assert type(points.with_mask(blocks())) is Prepared and points.with_mask(blocks()).image is scan.image
    assert (unlabelled(scan).mask == UNLABELLED).all()


# --- labels of any kind ---

@pytest.mark.parametrize("every", [1.0, 1.5, 2.9, 7.0, 100.0])
def test_sampled_slices_are_whole_and_evenly_spaced(every):
    """So many on average, at least one; the steps between them differ by one at most."""
    mask, counts = np.random.default_rng(0).integers(0, 6, (5, 4, 20)).astype(np.uint8), []
    for seed in range(200):
        labels = sample_slices(mask, np.random.default_rng(seed), every)
        chosen = np.flatnonzero((labels != UNLABELLED).any((0, 1)))
        assert np.array_equal(labels, np.where(np.isin(np.arange(20), chosen), mask, UNLABELLED))
        assert set(np.diff(chosen)) <= {int(every), int(np.ceil(every))}
        counts.append(len(chosen))
    assert min(counts) >= 1 and np.mean(counts) == pytest.approx(max(1, 20 / every), rel=0.04)


def box_of(slices: int, name: str) -> Prepared:
    """L2 on all but the outermost sagittal slices."""
    mask = np.zeros((16, 18, slices), np.uint8)
    mask[3:12, 4:13, 1:-1] = 2
    return prepared(mask, name)


@pytest.mark.parametrize("seconds", [BEARMAN, Seconds(60.0, 22.1, 0.9), Seconds(10.0, 22.1, 0.9)])
def test_labels_of_each_kind_take_about_the_same_time(seconds):
    """Slices as long as the points to within a mask a scan; as many scans, at least one.  Where a mask takes less than
    points, all masks."""
    scans = Scans([box_of(12 + i, f"t{i}") for i in range(9)], [box_of(14, f"v{i}") for i in range(2)])
    for part in ("train", "validation"):
        there, known = getattr(scans, part), {kind: getattr(draw_labels(scans, kind, 1, seconds), part)
                                              for kind in ("points", "slices", "whole scans", "masks")}
        points, slices, whole, masks = (labelling_seconds(labelled, seconds) for labelled in known.values())
        assert known["masks"] == there and {s.name for s in known["whole scans"]} <= {s.name for s in there}
        assert [s.name for s in known["points"]] == [s.name for s in known["slices"]] == [s.name for s in there]
        assert masks == pytest.approx(seconds.mask * sum(s.shape[2] - 2 for s in there))
        if points < masks:
            assert abs(slices - points) <= seconds.mask * len(there)
            assert len(known["whole scans"]) == max(1, round(len(there) * points / masks)) < len(there)
        else:
            assert slices == whole == pytest.approx(masks)


def test_labels_are_drawn_alike_and_from_the_seed():
    scans = Scans([box_of(12, "a"), box_of(12, "b")], [box_of(12, "v")], [box_of(12, "t")])
    for kind in ("points", "slices"):
        first, again, other = (draw_labels(scans, kind, seed) for seed in (0, 0, 3))
        assert first.test == [] and all(np.array_equal(a.mask, b.mask) for a, b in zip(first.train, again.train))
        assert any((a.mask != b.mask).any() for a, b in zip(first.train, other.train))
        assert (first.train[0].mask != first.train[1].mask).any()
    assert np.array_equal(draw_labels(scans, "points", 5).validation[0].mask, draw_points(scans.validation, 5)[0].mask)
    assert {name: len(rival.train) for name, rival in draw_rivals(scans, 0).items()} == {"slices": 2, "whole_scans": 1}
    with pytest.raises(ScanError, match="labels: found 'circles', expected points, slices"):
        draw_labels(scans, "circles", 0)


def test_points_grow_to_the_edges_of_a_clean_box():
    mask = np.zeros((20, 20, 6), np.uint8)
    mask[4:9, 5:15] = 1
    mask[11:17, 5:15] = 2
    labels = sample_points(mask, np.random.default_rng(0))
    grown = grow_points(100.0 * (mask > 0), labels, (4.0, 4.0, 4.0))
    assert grown.dtype == np.uint8 and set(np.unique(grown)) == {0, 1, 2}  # an absent class does not appear
    assert (grown == mask).mean() > 0.9
    assert np.array_equal(grown[labels != UNLABELLED], labels[labels != UNLABELLED])


def test_careless_clicks_are_as_careless_as_they_say():
    """A block of 20 x 20 mm on every slice: the depth, the jitter and the share of wrong levels are measured."""
    mask, rng = np.zeros((60, 60, 200), np.uint8), np.random.default_rng(0)
    mask[20:40, 20:40] = 2

    def clicked(**care) -> tuple[np.ndarray, np.ndarray]:
        labels = sample_points(mask, rng, background=0, care=Care(**care))
        places = np.argwhere(labels != UNLABELLED)
        return places, labels[tuple(places.T)]

    def depth(places: np.ndarray) -> float:
        return float(np.minimum(places[:, :2] - 19, 40 - places[:, :2]).min(1).mean())

    places, values = clicked()
    assert (values == 2).all() and (mask[tuple(places.T)] == 2).all()
    assert depth(places) + 1 < depth(clicked(towards_middle=1.0)[0]) < depth(clicked(towards_middle=3.0)[0]) - 1
    spread = np.std([clicked(towards_middle=30.0, jitter_mm=j)[0][:, 0] for j in (0.0,)]), np.std(
        clicked(towards_middle=30.0, jitter_mm=3.0)[0][:, 0])
    assert abs(np.sqrt(spread[1] ** 2 - spread[0] ** 2) - 3) < 0.3
    _, values = clicked(wrong_levels=0.1)
    assert set(values) == {1, 2, 3} and abs(np.mean(values != 2) - 0.1) < 0.03
    mask[mask == 2] = 5  # L5 has no level below it
    assert set(clicked(wrong_levels=0.5)[1]) == {4, 5}


def test_jitter_is_in_mm_and_stays_in_the_scan():
    mask, rng = np.zeros((40, 40, 100), np.uint8), np.random.default_rng(1)
    mask[0:2, 18:22] = 1
    labels = sample_points(mask, rng, background=0, care=Care(jitter_mm=4.0), spacing_mm=(0.5, 4.0, 1.0))
    places = np.argwhere(labels == 1)
    assert len(places) > 250 and places[:, 0].std() > 2 * places[:, 1].std() and places[:, 0].max() > 10


@pytest.mark.parametrize("middles", [[[20, 30, 10], [34, 30, 10], [0, 0, 0]], [[20, 30, 10]], []], ids=len)
@pytest.mark.parametrize("kept", [None, 7], ids=["all", "who stops early"])
def test_random_places_tell_volumes_without_bias(middles, kept):
    """Boxes near the middles, where two spheres overlap, and far from them; also from the first places alone."""
    spacing_mm, mask = (2.0, 1.5, 4.0), np.zeros((50, 60, 20), np.uint8)
    mask[15:25, 25:35, 8:12], mask[30:38, 25:35, 8:12], mask[:, 55:, :] = 1, 2, 3
    told = []
    for seed in range(400):
        places, mm3 = draw_places(mask.shape, spacing_mm, np.reshape(middles, (-1, 3)), 40, np.random.default_rng(seed))
        values = mask[tuple(places.T)][:kept]
        told.append(np.bincount(values, mm3[:kept] * 40 / len(values), minlength=4))
    error = np.std(told, 0) / np.sqrt(len(told))
    assert (abs(np.mean(told, 0) - np.bincount(mask.ravel()) * np.prod(spacing_mm)) < 4 * error).all()


def test_random_places_are_shared_out_among_vertebrae():
    middles, spacing_mm = np.array([[60.0, 60.0, 60.0], [180.0, 60.0, 60.0]]), (1.0, 1.0, 1.0)
    for seed in range(5):
        places, _ = draw_places((240, 120, 120), spacing_mm, middles, 50, np.random.default_rng(seed))
        near = (((places[:, None] - middles) ** 2).sum(2) < NEAR_MM**2).sum(0)
        assert (near >= 20).all() and near.sum() < 50  # the others fall anywhere
