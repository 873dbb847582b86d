"""A spine that is right says nothing; each thing that cannot be right is named."""

import numpy as np
import pytest

from pointseg.commands.plausible import volumes_ml, warnings

SPACING_MM = (1.5, 1.0, 2.0)  # (z, y, x)


def spine(shape=(150, 60, 40)) -> np.ndarray:
    """Five boxes of 18 x 30 x 20 voxels, 27 x 30 x 40 mm, 24 voxels apart."""
    labels = np.zeros(shape, np.uint8)
    for k in range(1, 6):
        labels[24 * k - 10 : 24 * k + 8, 15:45, 10:30] = k
    return labels


def test_a_spine_is_plausible():
    assert warnings(spine(), SPACING_MM) == []
    assert volumes_ml(spine(), SPACING_MM) == pytest.approx(dict.fromkeys(("L1", "L2", "L3", "L4", "L5"), 27 * 1.2))


def test_nothing_found():
    assert warnings(np.zeros((9, 8, 7), np.uint8), SPACING_MM) == ["found no lumbar vertebra"]


def changed(*changes: tuple[tuple[slice, ...], int]) -> np.ndarray:
    """The spine with other labels in these boxes."""
    labels = spine()
    for box, k in changes:
        labels[box] = k
    return labels


@pytest.mark.parametrize(("labels", "said"), [
    (changed((np.s_[62:80], 0)), ["L3 missing between L1 and L5"]),
    (changed((np.s_[38:56, 15:45, 10:30], 3), (np.s_[62:80, 15:45, 10:30], 2)), ["L3 lies above L2"]),
    (changed((np.s_[140:, :20, 30:], 1)), ["L1 touches the lower and front and left edge of the scan, so it may be cut "
                                           "off", "L1 is in pieces"]),
    (changed((np.s_[:14, 15:45, 10:30], 1)), ["L1 touches the upper edge"]),
    (changed((np.s_[86:104, 18:], 0)), ["L4 has 3.2 ml, expected 5 to 150"]),
    (np.kron(spine(), np.ones((1, 1, 6), np.uint8)), ["L1 has 194.4 ml, expected 5 to 150"]),  # six times as wide
    (changed((np.s_[110:], 0), (np.s_[38:56], 0), (np.s_[63:68, 15:45, 10:30], 2)), ["expected 15 to 60"]),
], ids=["gap", "order", "stray", "cut", "small", "large", "close"])
def test_each_fault_is_named(labels, said):
    found = " | ".join(warnings(labels, SPACING_MM))
    for text in said:
        assert text in found


def test_a_speck_is_no_piece():
    assert not any("pieces" in w for w in warnings(changed((np.s_[140:142, :3, 38:], 1)), SPACING_MM))


def test_pieces_are_measured_in_mm():
    """A gap of 9 voxels along x: 18 mm at 2 mm, and no more than 9 at 1 mm, which is nothing to warn of."""
    labels = spine((150, 60, 80))
    labels[labels == 3] = 0
    labels[62:80, 15:45, 10:20] = 3
    labels[62:80, 15:45, 29:39] = 3
    assert any(w.startswith("L3 is in pieces 2") or w.startswith("L3 is in pieces 1")
               for w in warnings(labels, SPACING_MM))
    assert not any("pieces" in w for w in warnings(labels, (1.5, 1.0, 1.0)))


def test_neither_fine_grids_nor_single_voxels_break_it():
    labels = np.zeros((7, 300, 5), np.uint8)
    labels[3, 150, 2] = 3  # may fall between the coarse grid's voxels
    assert "L3 has 0.0 ml, expected 5 to 150" in warnings(labels, (8.0, 0.1, 0.3))
