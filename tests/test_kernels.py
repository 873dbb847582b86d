"""Each Numba kernel equals its NumPy twin below, and another library where there is one."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from numba.core.caching import IndexDataCacheFile
from skimage.exposure import equalize_adapthist

import pointseg
from pointseg.compiled import jit
from pointseg.kernels import (
    argmax_of_planes,
    clahe,
    confusion_matrix,
    extent_mask,
    extent_masks,
    max_distance,
    reassemble,
    reassemble_labels,
    resample_argmax,
    sample_labels,
    sample_stack,
)
from pointseg.volume import UNLABELLED


def distances(points: np.ndarray, shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Twin: every pixel to every point, (*shape, N)."""
    pixels = np.stack(np.indices(shape), -1)[..., None, :]
    return np.linalg.norm((pixels - points) * spacing_mm, axis=-1)


# --- the farthest point ---

@pytest.mark.parametrize("seed", range(40))
def test_fields_equal_their_twins(seed):
    """Random shapes, spacings and points, some on whole pixels, some doubled, in a line or in a plane, some far off."""
    rng = np.random.default_rng(seed)
    dimensions = int(rng.integers(2, 4))
    shape, spacing_mm = tuple(rng.integers(1, 40, dimensions)), tuple(rng.uniform(0.3, 4, dimensions))
    points = rng.normal(0.5, rng.choice([0.1, 0.5, 3]), (rng.integers(0, 40), dimensions)) * shape
    points = np.rint(points) if rng.random() < 0.5 else points
    points[:, rng.integers(dimensions)] *= rng.random() < 0.7
    points = np.concatenate([points, points[: rng.integers(3)]])
    twin = distances(points, shape, spacing_mm).max(-1, initial=0)
    found = max_distance(points, shape, spacing_mm)
    assert found.dtype == np.float32 and found.shape == shape
    np.testing.assert_allclose(found, twin, rtol=1e-6)

    classes = rng.integers(0, 4, len(points))
    radius_mm = float(rng.choice(twin.ravel()) + rng.random())
    masks = extent_masks(points, classes, 5, shape, spacing_mm, radius_mm)
    assert masks.dtype == bool and masks.shape == (5, *shape) and masks[4].all()  # a class without a point
    for k in range(5):
        field = distances(points[classes == k], shape, spacing_mm).max(-1, initial=-np.inf)
        clear = np.abs(field - radius_mm) > 1e-9 * radius_mm
        assert (masks[k] == (field < radius_mm))[clear].all()
        assert (extent_mask(points[classes == k], shape, spacing_mm, radius_mm) == masks[k]).all()


@pytest.mark.parametrize("flat", [False, True])
def test_many_points_in_a_large_volume(flat):
    """There only the corners of the points' hull are kept, if they have one."""
    rng = np.random.default_rng(0)
    shape, spacing_mm, points = (90, 120, 110), (1.0, 0.8, 1.2), rng.normal(55, 9, (30, 3))
    points[:, 1] = 30 if flat else points[:, 1]
    twin = np.maximum.reduce([distances(points[i : i + 5], shape, spacing_mm).max(-1) for i in range(0, 30, 5)])
    np.testing.assert_allclose(max_distance(points, shape, spacing_mm), twin, rtol=1e-6)
    assert (extent_mask(points, shape, spacing_mm, 60.0) == (twin < 60))[np.abs(twin - 60) > 1e-9].all()


def test_max_distance_by_hand():
    """A row 2 mm above the points, pixels 1.5 mm wide: the point at column 2 is 3, 1.5 and 0 mm across."""
    field = max_distance(np.array([[1, 2], [1, 2]]), (1, 3), (2.0, 1.5))
    np.testing.assert_allclose(field, np.sqrt([[4 + 9, 4 + 2.25, 4]]), rtol=1e-6)


def test_extent_is_open_and_meets_every_ball():
    """Points 0 and 4 of a row, radius 3: the farther one is 4, 3, 2, 3, 4 away, and 3 is not closer than 3."""
    assert extent_mask(np.array([[0, 0], [0, 4]]), (1, 5), (1, 1), 3).tolist() == [[False, False, True, False, False]]
    corner = extent_mask(np.array([[0, 0]]), (6, 6), (1, 1), 5)  # 3, 4, 5: exactly at the radius
    assert not corner[3, 4] and not corner[0, 5] and corner[3, 3] and corner[0, 4]


# --- crops back into a slice ---

def reassemble_twin(crops: np.ndarray, corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    margin = 40  # more than any corner here lies outside
    layers = np.full((len(crops), crops.shape[1], shape[0] + 2 * margin, shape[1] + 2 * margin), np.nan)
    for layer, crop, (row, column) in zip(layers, crops, corners + margin, strict=True):
        layer[:, row : row + crop.shape[1], column : column + crop.shape[2]] = crop
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # mean of nothing, where no crop lies
        mean = np.nanmean(layers, 0)
    return np.nan_to_num(mean[:, margin:-margin, margin:-margin])


def test_reassemble_by_hand():
    """Two crops of 2 pixels overlap in the middle one; the last pixel is covered by none."""
    crops = np.array([[[[1.0, 2.0]]], [[[4.0, 8.0]]]], np.float32)
    assert reassemble(crops, np.array([[0, 0], [0, 1]]), (1, 4)).tolist() == [[[1, 3, 8, 0]]]


@pytest.mark.parametrize("seed", range(20))
def test_reassembly_takes_the_mean_and_labels_are_its_argmax(seed):
    """Any number of crops anywhere, with gaps and beside the slice; whole numbers, so that classes are often equal."""
    rng = np.random.default_rng(seed)
    slices, crops_each, classes = rng.integers(1, 5), rng.integers(1, 6), rng.integers(1, 8)
    size, shape = tuple(rng.integers(1, 12, 2)), tuple(rng.integers(1, 18, 2))
    corners = rng.integers(-12, 18, (crops_each, 2))
    crops = rng.integers(-2, 3, (slices, crops_each, classes, *size)).astype(np.float32)
    labels = reassemble_labels(crops, corners, shape)
    assert labels.dtype == np.uint8 and labels.shape == (slices, *shape)
    for found, of_slice in zip(labels, crops, strict=True):
        mean = reassemble_twin(of_slice, corners, shape)
        np.testing.assert_allclose(reassemble(of_slice, corners, shape), mean, rtol=1e-5, atol=1e-6)
        hits = reassemble_twin(np.ones_like(of_slice), corners, shape)
        assert (found == np.rint(60 * mean * (hits > 0)).argmax(0)).all()  # 60 is a multiple of 1 to 5: exact again


# --- counting ---

@pytest.mark.parametrize("seed", range(20))
def test_confusion_equals_scikit_learn(seed):
    """Vertebrae and noise, any size and start in memory, up to 12 classes, with and without unlabelled voxels."""
    rng = np.random.default_rng(seed)
    size, classes, start = rng.integers(1, 5000), rng.integers(1, 13), rng.integers(0, 9)
    truth, prediction = (np.repeat(rng.integers(0, classes, size // 50 + 1), 50)[:size].astype(np.uint8)
                         for _ in range(2))
    noisy = rng.random(size) < rng.choice([0, 0.01, 1])
    prediction[noisy] = rng.integers(0, classes, noisy.sum())
    truth[rng.random(size) < rng.choice([0, 0.01])] = UNLABELLED
    buffers = np.empty((2, size + start), np.uint8)
    truth, prediction = (np.concatenate([b[:start], x])[start:] for b, x in zip(buffers, (truth, prediction)))
    known = truth != UNLABELLED
    expected = sklearn.metrics.confusion_matrix(truth[known], prediction[known], labels=range(classes))
    counts = confusion_matrix(truth, prediction, classes)
    assert counts.dtype == np.int64 and (counts == expected).all()


def test_confusion_counts_beyond_32_bits():
    """2^31 + 100 voxels of background, and a last one that is not.  Zeros take no memory until they are written."""
    truth, prediction = np.zeros((2, 2**31 + 101), np.uint8)
    prediction[-1] = 5
    assert confusion_matrix(truth, prediction, 6)[0].tolist() == [2**31 + 100, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("function, last", [
    (lambda shape: extent_mask(np.array([[511, 511, 500]]), shape, (1, 1, 1), 12.0), [True, True, False]),
    (lambda shape: resample_argmax(np.stack([np.zeros((2, 2, 2)), np.indices((2, 2, 2)).min(0) - 0.5]), shape),
     [1, 1, 0]),
    (lambda shape: max_distance(np.array([[0, 0, 0], [0, 0, 1]]), shape, (1, 1, 1)),
     [511 * 3**0.5, (2 * 511**2 + 500**2) ** 0.5, (2 * 511**2 + 1) ** 0.5]),
], ids=["extent", "argmax", "distance"])
def test_the_last_voxel_of_512_cubed(function, last):
    """Its number is 2^27 - 1, its byte in a field of 6 classes beyond 2^31."""
    volume = function((512, 512, 512))
    assert [volume[511, 511, 511], volume[511, 511, 500], volume[511, 511, 0]] == pytest.approx(last)


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


def test_planes_may_come_one_by_one():
    scores = np.random.default_rng(0).random((4, 6, 5, 7), np.float32)
    found = argmax_of_planes((scores[:, i] for i in range(6)), 6, (9, 10, 11))
    assert (found == resample_argmax(scores, (9, 10, 11))).all()


# --- slices for training ---

@pytest.mark.parametrize("seed", range(12))
def test_samples_equal_torchs_grid_sample(seed):
    """Turned, scaled and shifted, partly or wholly out of the slice; any strides."""
    rng = np.random.default_rng(seed)
    image = np.moveaxis(rng.integers(0, 256, rng.integers(1, 25, 3), np.uint8), 0, rng.integers(3))
    shape, out_shape = image.shape[1:], tuple(rng.integers(1, 30, 2))
    matrix, offset = np.eye(2) + rng.normal(0, 0.3, (2, 2)), rng.normal(0, 9, 2)
    table = rng.random(256, np.float32)
    place = matrix @ np.indices(out_shape).reshape(2, -1) + offset[:, None]  # rows and columns in the slice
    grid = torch.from_numpy((2 * place[::-1].T + 1) / shape[::-1] - 1).reshape(1, *out_shape, 2)

    found = np.empty((len(image), *out_shape), np.float32)
    sample_stack(image, matrix, offset, table, found)
    expected = F.grid_sample(torch.from_numpy(table[image])[None].double(), grid, align_corners=False)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)

    labels = np.empty(out_shape, np.uint8)
    sample_labels(image[0], matrix, offset, labels)
    beside = torch.from_numpy(image[:1].astype(float) + 1)[None]  # 0 is "outside" to grid_sample
    expected = F.grid_sample(beside, grid, mode="nearest", align_corners=False)[0, 0].numpy()
    clear = (np.abs(place % 1 - 0.5) > 1e-6).all(0).reshape(out_shape)  # halfway, rounding decides
    assert (labels == np.where(expected == 0, UNLABELLED, expected - 1))[clear].all()


# --- equalisation ---

@pytest.mark.parametrize("seed", range(12))
def test_clahe_equals_scikit_image(seed):
    """Slices smaller and larger than the kernel, odd and even, noise and few levels, clipped hard or not at all."""
    rng = np.random.default_rng(seed)
    image = rng.random((*rng.integers(2, 70, 2), 2), np.float32) ** rng.choice([0.3, 1, 4])
    image = np.rint(image * 12).astype(np.float32) / 12 if rng.random() < 0.5 else image
    kernel, clip = tuple(rng.integers(2, 40, 2).tolist()), float(rng.choice([0.009, 0.05, 1.0]))
    bins = int(rng.choice([64, 256]))
    found = clahe(image, kernel, clip, bins)
    for i in range(2):
        expected = equalize_adapthist(image[..., i], kernel_size=kernel, clip_limit=clip, nbins=bins)
        assert (found[..., i] == np.rint(expected * 255)).all()


# --- threads ---

def run_alone(code: str, **environment: str) -> str:
    found = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_kernels_of_the_loader_run_beside_others():
    """Numba's workqueue ends the process when two threads start parallel kernels at once: the loader's are serial."""
    code = """
import threading, numpy as np
from pointseg import kernels
image, table, go_on = np.zeros((3, 40, 40), np.uint8), np.zeros(256, np.float32), True
def load():
    while go_on:
        kernels.extent_masks(np.ones((9, 2)), np.arange(9) % 3, 3, (64, 64), (1, 1), 20.0)
        kernels.sample_stack(image, np.eye(2), np.zeros(2), table, np.empty((3, 64, 64), np.float32))
        kernels.sample_labels(image[0], np.eye(2), np.zeros(2), np.empty((64, 64), np.uint8))
thread = threading.Thread(target=load)
thread.start()
for _ in range(300):
    kernels.confusion_matrix(np.zeros(2**16, np.uint8), np.zeros(2**16, np.uint8), 6)
    kernels.reassemble_labels(np.zeros((2, 1, 6, 64, 64), np.float32), np.zeros((1, 2), int), (64, 64))
go_on = False
thread.join()
print("done")
"""
    assert run_alone(code, NUMBA_NUM_THREADS="2") == "done\n"


def test_kernels_leave_torch_its_threads():
    """Numba's OpenMP layer shares its pool with torch: the first kernel would set torch's number of threads too, and
    the same training would give other bits before and after it."""
    code = ("import numpy, torch; from pointseg.kernels import confusion_matrix; before = torch.get_num_threads();"
            "zeros = numpy.zeros(999, 'u1'); confusion_matrix(zeros, zeros, 2); print(before, torch.get_num_threads())")
    assert run_alone(code, OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="2").split() == ["1", "1"]


def test_threads_change_nothing():
    code = """
import hashlib, numpy as np
from pointseg import kernels
rng = np.random.default_rng(0)
digest = hashlib.sha256()
scores = rng.random((6, 20, 30, 40), np.float32)
labels = kernels.resample_argmax(scores, (40, 50, 60))
for x in (labels, kernels.confusion_matrix(labels, labels[::-1].copy(), 6), kernels.clahe(scores[0], (9, 9), 0.01, 256),
          kernels.max_distance(rng.random((30, 3)) * 100, (110, 100, 100), (1, 1, 1)),
          kernels.reassemble_labels(scores[None].repeat(2, 0), rng.integers(-9, 9, (6, 2)), (40, 40))):
    digest.update(x.tobytes())
print(digest.hexdigest())
"""
    assert run_alone(code, NUMBA_NUM_THREADS="1") == run_alone(code, NUMBA_NUM_THREADS="2")


# --- compiled code on disk ---

def test_a_read_only_installation_of_a_user_without_a_home(tmp_path):
    """There is no place for compiled code: kernels work all the same."""
    (tmp_path / "pointseg").mkdir()
    for name in ("__init__", "compiled", "kernels", "volume"):
        shutil.copy(Path(pointseg.__file__).with_name(f"{name}.py"), tmp_path / "pointseg")
    (tmp_path / "pointseg" / "__pycache__").touch()  # where no folder can be made, be it by root
    code = (f"import sys; sys.path[0] = {str(tmp_path)!r}; import numpy; from pointseg import kernels;"
            "zeros = numpy.zeros(9, 'u1');"
            "print(kernels.__file__, kernels.confusion_matrix(zeros, zeros, 2).sum())")
    nowhere = {name: str(tmp_path / "pointseg" / "__pycache__") for name in (
        "HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "NUMBA_CACHE_DIR")}
    found = run_alone(code, **nowhere)
    assert found.split() == [str(tmp_path / "pointseg" / "kernels.py"), "9"]


@pytest.mark.parametrize(("part", "error"), [("_save_index", OSError(28, "No space left on device")),
                                             ("_save_data", PermissionError(13, "Permission denied")),
                                             ("_load_index", EOFError("Ran out of input"))])
def test_a_cache_that_is_full_or_damaged(part, error, monkeypatch):
    def fails(*_):
        raise error

    monkeypatch.setattr(IndexDataCacheFile, part, fails)
    assert jit()(_twice)(21) == 42


def _twice(number):
    return 2 * number
