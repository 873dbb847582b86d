"""Bodies in their order: built by hand, so that what each should be is known."""

import numpy as np
import pytest

from pointseg.levels import find_bodies, in_order, levels_of

SPACING = (2.0, 2.0, 2.0)


def spine(told: list[int], heights: list[int] | None = None, sure: float = 0.8, gap: int = 4) -> np.ndarray:
    """Probabilities of bodies one below the other, each told a level.   -> (6, z, 16, 14)"""
    heights = heights or [11] * len(told)
    p = np.zeros((6, 4 + sum(heights) + gap * len(told), 20, 18), np.float32)
    p[0] = 1
    z = 4
    for level, height in zip(told, heights, strict=True):
        body = p[:, z : z + height, 3:17, 2:16]
        body[:] = (1 - sure) / 5
        body[level] = sure
        z += height + gap
    return p


def given(p: np.ndarray) -> list[int]:
    """The most frequent level of each body, from head to foot; 0 for one that is gone."""
    bodies = find_bodies(p.argmax(0) > 0, SPACING) * (p.argmax(0) > 0)
    after = in_order(p.copy(), SPACING).argmax(0)
    return [int(np.bincount(after[bodies == b], minlength=6).argmax()) for b in range(1, bodies.max() + 1)]


@pytest.mark.parametrize(("told", "expected"), [
    ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
    ([1, 2, 2, 4, 5], [1, 2, 3, 4, 5]),  # one is wrong
    ([1, 3, 2, 4, 5], [1, 2, 3, 4, 5]),  # two have changed places
    ([3, 4, 5], [3, 4, 5]),  # a scan that begins at L3
    ([1, 2], [1, 2]),
    ([1, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),  # T12 looks like L1
    ([1, 2, 3, 4, 5, 5], [1, 2, 3, 4, 5, 0]),  # S1 looks like L5
    ([4], [4])])
def test_bodies_share_out_the_levels(told, expected):
    assert given(spine(told)) == expected


def test_what_is_in_order_stays_to_the_last_bit_and_sums_to_1():
    p = spine([1, 2, 3, 4, 5])
    assert np.array_equal(in_order(p.copy(), SPACING), p)
    changed = in_order(spine([1, 2, 2, 4, 5]), SPACING)
    assert np.allclose(changed.sum(0), 1) and (changed >= 0).all()
    assert np.array_equal(np.sort(changed, 0), np.sort(spine([1, 2, 2, 4, 5]), 0))  # values only change places


def test_a_body_is_of_one_level_though_some_of_its_voxels_say_another():
    p = spine([1, 2, 3, 4, 5])
    part = p[:, 19:24]  # of L2
    part[[2, 3]] = part[[3, 2]]
    after = in_order(p, SPACING).argmax(0)
    assert set(np.unique(after[19:30])) == {0, 2}


def test_bodies_that_touch_are_two_levels_if_they_are_large_enough():
    p = spine([1, 2, 3, 4, 5], gap=4)
    z = 4 + 2 * 15 + 11
    p[:, z : z + 4, 3:17, 2:16] = p[:, z - 1 : z, 3:17, 2:16]  # L3 reaches L4: one body of both
    bodies = find_bodies(p.argmax(0) > 0, SPACING)
    assert bodies.max() == 4 and levels_of(p, bodies * (p.argmax(0) > 0)) == [(1, 1), (2, 2), (3, 4), (5, 5)]
    assert np.array_equal(in_order(p.copy(), SPACING), p)


def test_a_thin_bridge_does_not_join_two_bodies():
    p = spine([1, 2, 3, 4, 5])
    p[:, 15:19, 9:12, 8:11] = p[:, 14:15, 9:12, 8:11]  # 6 mm wide
    assert find_bodies(p.argmax(0) > 0, SPACING).max() == 5


@pytest.mark.parametrize("shape", [(8, 8, 8), (1, 8, 8), (30, 1, 30), (30, 30, 1)])
def test_nothing_found_and_single_slices(shape):
    empty = np.zeros((6, *shape), np.float32)
    empty[0] = 1
    assert np.array_equal(in_order(empty.copy(), SPACING), empty)
    full = np.zeros((6, *shape), np.float32)
    full[2] = 1
    assert in_order(full.copy(), SPACING).argmax(0).max() == 2  # too thin for a core, or one body: it stays


def test_spacing_is_in_mm():
    """Upright voxels of 4 mm: the same bodies in half as many."""
    p = spine([1, 2, 2, 4, 5], heights=[12] * 5)[:, ::2]
    after = in_order(p.copy(), (4.0, 2.0, 2.0))
    assert [k for k in range(1, 6) if (after.argmax(0) == k).any()] == [1, 2, 3, 4, 5]
