"""Isotropic grid, intensity window, CLAHE: ramps stay ramps, labels stay labels, scikit-image agrees."""

import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.exposure import equalize_adapthist

from pointseg.preprocess import CHUNK_VOXELS, equalise, prepare, resample_linear, resample_nearest, rescale
from pointseg.volume import Geometry, Volume

SHAPES = [((4, 5, 6), (9, 11, 7)), ((9, 8, 7), (4, 3, 5)), ((10, 3, 12), (3, 10, 12))]


def volume_of(image: np.ndarray, mask: np.ndarray | None, spacing_mm: tuple[float, float, float]) -> Volume:
    return Volume(image.astype(np.float32), mask, spacing_mm, "name", "MR", Geometry.canonical(image.shape, spacing_mm))


# --- grids ---

@pytest.mark.parametrize("width, expected", [(4, [1, 1, 2, 2]), (3, [1, 2, 2]), (2, [1, 2]), (1, [2])])
def test_nearest_by_hand(width, expected):
    """Voxel centres of three in the place of two: 1/3, 1 (the second's edge), 5/3."""
    labels = np.array([1, 2], np.uint8).reshape(1, 1, 2)
    assert resample_nearest(labels, (1, 1, width)).tolist() == [[expected]]


@pytest.mark.parametrize("source, target", SHAPES)
def test_nearest_equals_torch_and_invents_nothing(source, target):
    labels = np.random.default_rng(0).choice(np.array([0, 1, 5], np.uint8), source)
    found = resample_nearest(labels, target)
    oracle = F.interpolate(torch.from_numpy(labels)[None, None].float(), target, mode="nearest-exact")[0, 0]
    assert found.dtype == np.uint8
    assert (found == oracle.numpy()).all()
    assert set(np.unique(found)) <= {0, 1, 5}  # between 1 and 5, linear interpolation would find 3


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("n, atol", [(30, 1e-4), (60, 1e-4), (24, 0), (12, 1e-4), (8, 1e-4), (5, 0.03)])
def test_a_ramp_stays_a_ramp(axis, n, atol):
    """Of 24 voxels 0, 1, 2, ...: new voxel i has its centre at (i + 1/2) * 24 / n - 1/2.

    Averages over 4.8 voxels are a little lopsided: their weights are sampled at whole voxels.
    """
    image = np.moveaxis(np.broadcast_to(np.arange(24.0)[:, None, None], (24, 4, 5)), 0, axis)
    shape = tuple(n if i == axis else s for i, s in enumerate(image.shape))
    found = np.moveaxis(resample_linear(image, shape), axis, 0)
    assert found.dtype == np.float32 and found.shape == (n, 4, 5)
    at = (np.arange(n) + 0.5) * 24 / n - 0.5
    inner = (at > 24 / n) & (at < 23 - 24 / n)  # the ends have neighbours on one side only
    assert inner.sum() >= 3
    assert np.abs(found[inner] - at[inner, None, None]).max() <= atol


@pytest.mark.parametrize("source, target", SHAPES)
def test_a_constant_stays_constant(source, target):
    np.testing.assert_allclose(resample_linear(np.full(source, -3.5), target), -3.5, rtol=1e-5)


@pytest.mark.parametrize("axis", range(3))
def test_a_coarser_grid_averages(axis):
    """Voxels 0, 1, 0, 1, ...: plain interpolation to a third would pick every third, and see stripes."""
    image = np.moveaxis(np.broadcast_to((np.arange(36) % 2)[:, None, None], (36, 3, 3)), 0, axis)
    shape = tuple(12 if i == axis else 3 for i in range(3))
    inner = np.moveaxis(resample_linear(image, shape), axis, 0)[1:-1]
    assert np.abs(inner - 0.5).max() < 0.1


def test_prepare_keeps_the_field_of_view():
    """33 mm of 3.3 mm slices on a grid of 2 mm: 16.5, so 16 voxels of 2.0625 mm."""
    mask = np.zeros((10, 40, 30), np.uint8)
    mask[3:7, 10:30, 5:25] = 4
    image = np.random.default_rng(0).random(mask.shape) + 3 * mask
    scan = prepare(volume_of(image, mask, (3.3, 0.5, 1.0)), 2.0)
    assert scan.image.shape == scan.mask.shape == (16, 10, 15)
    assert scan.spacing_mm == pytest.approx((33 / 16, 2.0, 2.0))
    assert scan.image.dtype == scan.mask.dtype == np.uint8
    assert set(np.unique(scan.mask)) == {0, 4} and scan.name == "name"
    assert prepare(volume_of(image, None, (3.3, 0.5, 1.0)), 2.0).mask is None


@pytest.mark.parametrize("spacing_mm", [(1.3, 0.7, 2.1), (4.0, 4.0, 4.0)])
def test_image_and_mask_stay_together(spacing_mm):
    """A bright block lies at the same place in mm before and after, in both."""
    mask = np.zeros((30, 36, 20), np.uint8)
    mask[5:17, 20:33, 3:12] = 2
    scan = prepare(volume_of(mask * 100.0, mask, spacing_mm), 2.0)

    def centre_mm(x, spacing):
        return (np.array(ndimage.center_of_mass(x)) + 0.5) * spacing

    expected = centre_mm(mask > 0, spacing_mm)
    np.testing.assert_allclose(centre_mm(scan.mask > 0, scan.spacing_mm), expected, atol=1.0)
    np.testing.assert_allclose(centre_mm(scan.image > 128, scan.spacing_mm), expected, atol=1.0)


# --- intensities ---

def test_ct_window_by_hand():
    """-200 HU is 0 and 1000 HU is 1; metal changes nothing elsewhere."""
    image = np.array([-1000, -200, 400, 1000, 3000], np.float32).reshape(1, 1, 5)
    assert rescale(image, "CT").ravel().tolist() == [0, 0, 0.5, 1, 1]
    image[0, 0, 4] = 30000
    assert rescale(image, "CT").ravel().tolist() == [0, 0, 0.5, 1, 1]


def test_mr_percentiles_by_hand():
    """Of 0..1000 the percentiles 0.5 and 99.5 are 5 and 995."""
    image = np.arange(1001, dtype=np.float32).reshape(7, 11, 13)
    found = rescale(image, "MR").ravel()
    assert found[[0, 5, 500, 995, 1000]] == pytest.approx([0, 0, 0.5, 1, 1], abs=1e-6)
    np.testing.assert_allclose(rescale(image * 7 - 100, "MR").ravel(), found, atol=1e-6)  # MR has no unit


def test_an_unknown_modality_is_told_by_its_air():
    rng = np.random.default_rng(0)
    ct = rng.uniform(-100, 800, (6, 10, 10))
    ct[:, :2] = -1000
    mr = rng.uniform(-100, 800, (6, 10, 10))
    assert (rescale(ct, "") == rescale(ct, "CT")).all() and (rescale(ct, "") != rescale(ct, "MR")).any()
    assert (rescale(mr, "") == rescale(mr, "MR")).all() and (rescale(mr, "") != rescale(mr, "CT")).any()


def test_a_ct_that_is_not_in_hu_is_treated_like_mr():
    """Stored without its offset, or stretched to 8 bits: no value is negative, and the window would show next to
    nothing."""
    image = np.random.default_rng(0).uniform(0, 255, (6, 10, 10))
    assert (rescale(image, "CT") == rescale(image, "MR")).all() and rescale(image, "CT").max() == 1


def test_resampling_in_parts_equals_resampling_at_once(monkeypatch):
    image = np.random.default_rng(0).integers(-1000, 1000, (23, 18, 27)).astype(np.int16)
    for shape in ((11, 20, 9), (40, 9, 27)):
        whole = resample_linear(image, shape)
        monkeypatch.setattr("pointseg.preprocess.CHUNK_VOXELS", 18 * 27 * 2)
        assert (resample_linear(image, shape) == whole).all()
        monkeypatch.undo()


def test_a_large_scan_never_stands_in_memory_as_floats():
    """Beside rows and result there is a part of it: int16 stays int16."""
    image = np.zeros((300, 200, 200), np.int16)
    tracemalloc.start()
    try:
        resample_linear(image, (150, 100, 100))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * (300 * 100 * 100 + 150 * 100 * 100) + 2.5 * 4 * CHUNK_VOXELS < 1.3 * 4 * image.size


def test_a_constant_scan_does_not_divide_by_zero():
    assert (rescale(np.full((2, 2, 2), 7.0), "MR") == 0).all()


def test_clahe_equals_scikit_image_slice_by_slice():
    """Kernel 50 mm: 25 x 50 px at 2 x 1 mm.  Slice 1 is constant, so it stays black."""
    image = np.random.default_rng(0).random((40, 60, 3)).astype(np.float32) ** 2
    image[:, :, 1] = 0.7
    found = equalise(image, (2.0, 1.0, 5.0))
    assert found.dtype == np.uint8
    assert not found[:, :, 1].any()
    for i in (0, 2):
        expected = equalize_adapthist(image[:, :, i], kernel_size=(25, 50), clip_limit=0.009, nbins=256)
        assert (found[:, :, i] == np.rint(expected * 255)).all()
