"""Vertebrae that are identified by their centres."""

import numpy as np
import pytest

from pointseg.report.centres import centres_mm, identified


def centres(**mm: float) -> dict[int, np.ndarray]:
    return {int(level[1]): np.array([z, 0.0, 0.0]) for level, z in mm.items()}


def test_identified_by_hand():
    """L1 is 5 mm off; L2 30 mm, too far; L3 is nearer to L4; L4 exact; L5 was not found."""
    truth = centres(L1=0, L2=35, L3=70, L4=88, L5=125)
    found = centres(L1=5, L2=65, L3=80, L4=88)
    assert identified(truth, found) == {1: 5.0, 2: np.inf, 3: np.inf, 4: 0.0, 5: np.inf}
    assert identified({}, found) == {} and identified(centres(L2=0), {}) == {2: np.inf}
    assert identified(centres(L1=0), centres(L1=20)) == {1: 20.0}


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_centres_are_medians(count):
    rng = np.random.default_rng(count)
    labels = np.zeros((9, 10, 11), np.uint8)
    labels[0, 0, 0] = 255
    for k in (2, 5):
        labels.ravel()[rng.choice(labels.size - 1, count, replace=False) + 1] = k
    found = centres_mm(labels, (3.0, 2.0, 0.5))
    assert set(found) == {2, 5} & set(np.unique(labels))
    for k, centre in found.items():
        assert centre == pytest.approx(np.median(np.argwhere(labels == k), axis=0) * (3.0, 2.0, 0.5))
