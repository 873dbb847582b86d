"""Fusion by unanimity, and morphology that keeps classes and the volume's edges apart."""

import numpy as np
import pytest
from scipy import ndimage

from pointseg.fusion import fuse, pseudo_mask, smooth

CUBE = np.ones((3, 3, 3), bool)
BLOCK = (slice(8, 17), slice(9, 18), slice(8, 20))


def volume_of(*blocks: tuple[int, tuple[slice, slice, slice]], shape=(26, 28, 30)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    for k, box in blocks:
        labels[box] = k
    return labels


def by_scipy(mask: np.ndarray, opening: int, closing: int, erosion: int) -> np.ndarray:
    """The whole volume with room around; iterations=0 would mean "until nothing changes"."""
    for operation, times in ((ndimage.binary_opening, opening), (ndimage.binary_closing, closing),
                             (ndimage.binary_erosion, erosion)):
        mask = operation(mask, CUBE, times) if times else mask
    return mask


# --- fusion ---

def test_fuse_by_hand():
    """Class i where transverse says vertebra and the two others agree on i."""
    transverse = np.array([1, 1, 1, 1, 0, 0, 1, 1], np.uint8).reshape(2, 2, 2)
    coronal = np.array([3, 3, 0, 0, 3, 0, 5, 4], np.uint8).reshape(2, 2, 2)
    sagittal = np.array([3, 2, 0, 1, 3, 0, 5, 5], np.uint8).reshape(2, 2, 2)
    fused = fuse(transverse, coronal, sagittal)
    assert fused.dtype == np.uint8
    assert fused.ravel().tolist() == [3, 0, 0, 0, 0, 0, 5, 0]


def test_pseudo_mask_by_hand():
    """Each prediction has a hole of its own: closed first, then all three agree on the block, less one layer."""
    solid, predictions = volume_of((4, BLOCK)), []
    for place in ((10, 11, 12), (12, 13, 14), (14, 15, 16)):
        predictions.append(solid.copy())
        predictions[-1][place] = 0
    predictions[0] = (predictions[0] > 0).astype(np.uint8)
    predictions[1][2:4, 2:4, 2:4] = predictions[2][2:4, 2:4, 2:4] = 1  # the transverse model disagrees
    assert (pseudo_mask(*predictions, denoise=1, erosion=0) == solid).all()
    inner = volume_of((4, tuple(slice(s.start + 1, s.stop - 1) for s in BLOCK)))
    assert (pseudo_mask(*predictions, denoise=1, erosion=1) == inner).all()
    assert (pseudo_mask(*predictions, denoise=0, erosion=0)[BLOCK] == 4).all()  # each is closed once, whatever denoise
    assert (fuse(*predictions) == 0).sum() == (solid == 0).sum() + 3


def test_each_prediction_is_closed_once():
    """Algorithm 1 does not close predictions `denoise` times, as it does what was fused."""
    rng = np.random.default_rng(0)
    blocks = [np.kron(rng.random((6, 6, 6)) < 0.7, np.ones((3, 3, 3))).astype(np.uint8) for _ in range(3)]
    once, twice = (smooth(fuse(*(smooth(p, closing=n) for p in blocks)), 2, 2, 1) for n in (1, 2))
    assert (pseudo_mask(*blocks, denoise=2, erosion=1) == once).all() and (once != twice).any()


# --- smoothing ---

@pytest.mark.parametrize("seed", range(25))
def test_smooth_equals_scipy_on_any_volume(seed):
    """Blocks of all classes that touch each other and the edges, with holes, in thin volumes too: SciPy class by class
    on a volume that goes on beyond its edges, and a closing that takes no other class's voxels."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 22, 3)
    labels = np.kron(rng.integers(0, 6, -(-shape // 4)), np.ones((4, 4, 4)))[tuple(map(slice, shape))].astype(np.uint8)
    labels[rng.random(labels.shape) < 0.1] = 0
    opening, closing, erosion = rng.integers(0, 4, 3)
    room = 20
    wide = np.pad(labels, room, mode="edge")
    expected = np.zeros_like(wide)
    for k in range(1, 6):
        mask = by_scipy(wide == k, opening, closing, erosion) & ((wide == k) | (wide == 0))
        expected[mask & (expected == 0)] = k
    assert (smooth(labels, opening, closing, erosion) == expected[(slice(room, -room),) * 3]).all()


def test_an_empty_volume():
    empty = np.zeros((4, 5, 6), np.uint8)
    assert not smooth(empty, 2, 2, 1).any()
    assert not pseudo_mask(empty, empty, empty, 2, 1).any()


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_closing_keeps_neighbours_apart(gap):
    """Two vertebrae that touch, or nearly: neither takes the other's voxels, none of theirs is lost."""
    labels = volume_of((1, (slice(5, 10), slice(8, 18), slice(8, 18))),
                       (2, (slice(10 + gap, 16), slice(8, 18), slice(8, 18))))
    labels[9, 12, 12] = 0  # a hole at the border, which both closings could fill: it goes to the lower class
    found = smooth(labels, closing=2)
    assert ((found == labels) | (labels == 0)).all()
    assert found[9, 12, 12] == 1
    assert not found[10 : 10 + gap].any()
