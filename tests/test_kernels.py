"""Each Numba kernel equals its NumPy twin below, and another library where there is one."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F

from pointseg.kernels import UNLABELLED, confusion_matrix, extent_mask, max_distance, reassemble, resample_argmax

GRIDS = [((7, 9), (1.0, 1.0)), ((12, 5), (0.5, 2.25)), ((1, 8), (3.0, 1.0)),
         ((4, 6, 5), (1.0, 1.0, 1.0)), ((3, 5, 8), (3.3, 0.7, 1.1))]  # shape, spacing_mm
POINTS = ("none", "one", "several", "outside", "doubled", "edge")


def points_of(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    size = np.array(shape)
    inside = rng.integers(0, size, (4, len(shape)))
    return {"none": np.zeros((0, len(shape))), "one": inside[:1], "several": inside + rng.random(inside.shape) - 0.5,
            "outside": np.concatenate([inside, -2.5 * size[None]]), "doubled": inside[[0, 0, 1, 1]],
            "edge": np.stack([np.zeros(len(shape)), size - 1, size - 0.5])}[kind]


def distances(points: np.ndarray, shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Twin: every pixel to every point, (*shape, N)."""
    pixels = np.stack(np.indices(shape), -1)[..., None, :]
    return np.linalg.norm((pixels - points) * spacing_mm, axis=-1)


# --- the farthest point ---

@pytest.mark.parametrize("kind", POINTS)
@pytest.mark.parametrize("shape, spacing_mm", GRIDS)
def test_fields_equal_their_twins(shape, spacing_mm, kind):
    points = points_of(kind, shape, np.random.default_rng(len(shape) + len(kind)))
    twin = distances(points, shape, spacing_mm).max(-1, initial=0)
    field = max_distance(points, shape, spacing_mm)
    assert field.dtype == np.float32 and field.shape == shape
    np.testing.assert_allclose(field, twin, rtol=1e-6)

    for radius_mm in (0.1, *np.quantile(twin, (0.1, 0.5, 0.9)) + 0.01, 1e4):
        mask = extent_mask(points, shape, spacing_mm, radius_mm)
        assert mask.dtype == bool and mask.shape == shape
        clear = np.abs(twin - radius_mm) > 1e-9  # at the radius itself, rounding decides
        assert clear.mean() > 0.9
        assert (mask == (twin < radius_mm))[clear].all()


def test_max_distance_by_hand():
    """A row 2 mm above the points, pixels 1.5 mm wide: the point at column 2 is 3, 1.5 and 0 mm across."""
    field = max_distance(np.array([[1, 2], [1, 2]]), (1, 3), (2.0, 1.5))
    np.testing.assert_allclose(field, np.sqrt([[4 + 9, 4 + 2.25, 4]]), rtol=1e-6)


def test_extent_is_open_and_meets_every_ball():
    """Points 0 and 4 of a row, radius 3: the farther one is 4, 3, 2, 3, 4 away, and 3 is not closer than 3."""
    assert extent_mask(np.array([[0, 0], [0, 4]]), (1, 5), (1, 1), 3).tolist() == [[False, False, True, False, False]]
    corner = extent_mask(np.array([[0, 0]]), (6, 6), (1, 1), 5)  # 3, 4, 5: exactly at the radius
    assert not corner[3, 4] and not corner[0, 5] and corner[3, 3] and corner[0, 4]


def test_no_point_bounds_nothing():
    nothing = np.zeros((0, 3))
    assert extent_mask(nothing, (2, 3, 4), (1, 1, 1), 0.5).all()
    assert not max_distance(nothing, (2, 3, 4), (1, 1, 1)).any()


# --- crops back into a slice ---

def reassemble_twin(crops: np.ndarray, corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    margin = 20  # more than any corner here lies outside
    layers = np.full((len(crops), crops.shape[1], shape[0] + 2 * margin, shape[1] + 2 * margin), np.nan)
    for layer, crop, (row, column) in zip(layers, crops, corners + margin, strict=True):
        layer[:, row : row + crop.shape[1], column : column + crop.shape[2]] = crop
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # mean of nothing, where no crop lies
        mean = np.nanmean(layers, 0)
    return np.nan_to_num(mean[:, margin:-margin, margin:-margin])


@pytest.mark.parametrize("shape, size, corners", [
    ((5, 7), (5, 7), [(0, 0)]),
    ((3, 4), (8, 8), [(-2, -2)]),  # a padded slice
    ((6, 9), (4, 6), [(0, 0), (0, 3), (2, 0), (2, 3)]),  # the four corners
    ((3, 9), (8, 6), [(-2, 0), (-2, 3)]),
    ((9, 9), (3, 3), [(0, 0), (6, 6), (2, 1)]),  # gaps
    ((4, 4), (3, 3), [(-3, 0), (4, 4), (0, -9)]),  # all beside the slice
])
def test_reassemble_equals_its_twin(shape, size, corners):
    crops = np.random.default_rng(0).standard_normal((len(corners), 3, *size), np.float32)
    whole = reassemble(crops, np.array(corners), shape)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, reassemble_twin(crops, np.array(corners), shape), rtol=1e-5, atol=1e-6)


def test_reassemble_by_hand():
    """Two crops of 2 pixels overlap in the middle one; the last pixel is covered by none."""
    crops = np.array([[[[1.0, 2.0]]], [[[4.0, 8.0]]]], np.float32)
    assert reassemble(crops, np.array([[0, 0], [0, 1]]), (1, 4)).tolist() == [[[1, 3, 8, 0]]]


# --- counting ---

@pytest.mark.parametrize("size, classes", [(0, 2), (1, 2), (63, 3), (64, 6), (65, 6), (12345, 6)])
def test_confusion_equals_scikit_learn(size, classes):
    rng = np.random.default_rng(size)
    truth, prediction = rng.integers(0, classes, (2, size)).astype(np.uint8)
    truth[rng.random(size) < 0.2] = UNLABELLED
    known = truth != UNLABELLED
    expected = sklearn.metrics.confusion_matrix(truth[known], prediction[known], labels=range(classes)) if size else 0
    counts = confusion_matrix(truth, prediction, classes)
    assert counts.dtype == np.int64 and counts.shape == (classes, classes)
    assert (counts == expected).all()


def test_confusion_by_hand():
    """Rows are the truth; a volume may be 3-D and a view."""
    truth = np.array([[[0, 1, 1, UNLABELLED]]], np.uint8).transpose(2, 1, 0)
    prediction = np.array([[[0, 0, 1, 77]]], np.uint8).transpose(2, 1, 0)  # under an unlabelled voxel anything goes
    assert confusion_matrix(truth, prediction, 2).tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize("truth, prediction, message", [
    (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), "shape"),
    (np.zeros(4, np.uint8), np.zeros(4, np.int64), "uint8.*int64"),
    (np.zeros(4, bool), np.zeros(4, np.uint8), "uint8.*bool"),
    (np.array([0, 2, 1], np.uint8), np.zeros(3, np.uint8), r"1 voxels.*0\.\.1"),
    (np.zeros(3, np.uint8), np.array([UNLABELLED, 0, 9], np.uint8), r"2 voxels.*0\.\.1"),  # no answer is not an answer
])
def test_confusion_refuses(truth, prediction, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(truth, prediction, 2)


# --- scores onto another grid ---

@pytest.mark.parametrize("source, target", [((4, 5, 6), (9, 11, 7)), ((9, 8, 7), (4, 3, 5)), ((1, 6, 2), (5, 6, 1))])
@pytest.mark.parametrize("classes", [2, 6])
def test_resample_argmax_equals_torch(source, target, classes):
    scores = np.random.default_rng(classes).random((classes, *source), np.float32)
    there = F.interpolate(torch.from_numpy(scores)[None].double(), target, mode="trilinear", align_corners=False)[0]
    first, second = there.topk(2, 0).values
    clear = (first - second > 1e-5).numpy()  # elsewhere rounding decides
    assert clear.mean() > 0.95
    found = resample_argmax(scores, target)
    assert found.dtype == np.uint8 and found.shape == target
    assert (found == there.argmax(0).numpy())[clear].all()


def test_resample_argmax_on_its_own_grid_is_argmax():
    scores = np.random.default_rng(0).random((5, 3, 4, 6)).astype(np.float32)
    scores[2] = scores[1]  # ties, to the first
    assert (resample_argmax(scores, (3, 4, 6)) == scores.argmax(0)).all()
    view = scores[:, ::-1, :, ::2]
    assert (resample_argmax(view, (3, 4, 3)) == view.argmax(0)).all()


@pytest.mark.parametrize("width, expected", [(2, [0, 1]), (3, [0, 0, 1]), (4, [0, 0, 1, 1])])
def test_resample_argmax_by_hand(width, expected):
    """Two voxels, one of each class.  Four in their place lie at -0.25, 0.25, 0.75, 1.25; of three, one is a tie."""
    scores = np.array([[1, 0], [0, 1]], np.float32).reshape(2, 1, 1, 2)
    assert resample_argmax(scores, (1, 1, width)).tolist() == [[expected]]


# --- threads ---

def test_kernels_leave_torch_its_threads():
    """Numba's OpenMP layer shares its pool with torch: the first kernel would set torch's number of threads too, and
    the same training would give other bits before and after it."""
    code = ("import numpy, torch; from pointseg.kernels import max_distance; before = torch.get_num_threads();"
            "max_distance(numpy.zeros((1, 2)), (4, 4), (1, 1)); print(before, torch.get_num_threads())")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1", "1"]
