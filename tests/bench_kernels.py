"""The numeric core against what one would otherwise call: NumPy as published, SciPy, scikit-image, scikit-learn.

    python tests/bench_kernels.py [--only WORD ...]

Then cost against size: nanoseconds a voxel from 64^3 to 512^3, with more points, with one thread and with two; and how
long the first calls of a process take when their compiled code is cached.  About 6 minutes on two CPU cores.
"""

import argparse
import os
import subprocess
import sys
import tempfile

import numba
import numpy as np
import sklearn.metrics
from scipy import ndimage
from scipy.spatial.distance import cdist
from skimage.exposure import equalize_adapthist, rescale_intensity
from skimage.transform import resize
from timing import Other, Report, in_unit, read, seconds, side_by_side

from pointseg import kernels
from pointseg.datasets.phantom import make_phantom
from pointseg.fusion import CUBE, smooth
from pointseg.metrics import weighted_dice
from pointseg.preprocess import (
    CLAHE_BINS,
    CLAHE_CLIP,
    CLAHE_KERNEL_MM,
    MR_PERCENTILES,
    prepare,
    resample_linear,
    resample_nearest,
)
from pointseg.slices import tile_corners
from pointseg.volume import Geometry, Volume

RADIUS_MM = 110.0


def points_in(shape: tuple[int, ...], count: int, seed: int = 0) -> np.ndarray:
    """Points of one vertebra: 15 px around the middle."""
    return np.random.default_rng(seed).normal(np.array(shape) / 2, 15, (count, len(shape)))


# --- the way it was done before ---

def distances_by_broadcasting(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """All pixels to all points at once, as published: (*shape, N) float64 on the way."""
    pixels = np.stack(np.indices(shape), -1)[..., None, :]
    return np.sqrt(((pixels - points) ** 2).sum(-1)).max(-1)


def distances_point_by_point(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The same for a volume, where all at once would take tens of gigabytes."""
    farthest = np.zeros(shape)
    for point in points:
        np.maximum(farthest, sum((axis - p) ** 2 for axis, p in zip(np.ogrid[tuple(map(slice, shape))], point)),
                   out=farthest)
    return np.sqrt(farthest, out=farthest)


def distances_by_cdist(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A slab at a time."""
    plane = np.stack(np.indices((1, *shape[1:])), -1).reshape(-1, len(shape))
    return np.stack([cdist(plane + (z, *(0,) * (len(shape) - 1)), points).max(1).reshape(shape[1:])
                     for z in range(shape[0])])


def labels_by_nanmean(crops: np.ndarray, corners: list[tuple[int, int]], shape: tuple[int, int]) -> np.ndarray:
    labels = np.empty((len(crops), *shape), np.uint8)
    for of_slice, out in zip(crops, labels):
        layers = np.full((*of_slice.shape[:2], *shape), np.nan, np.float32)
        for layer, crop, (row, column) in zip(layers, of_slice, corners):
            layer[:, row : row + crop.shape[1], column : column + crop.shape[2]] = crop
        out[:] = np.nanmean(layers, 0).argmax(0)
    return labels


def smooth_by_scipy(labels: np.ndarray, denoise: int, erosion: int) -> np.ndarray:
    out = np.zeros_like(labels)
    for k in range(1, 6):
        mask = ndimage.binary_closing(ndimage.binary_opening(labels == k, CUBE, denoise), CUBE, denoise)
        out[ndimage.binary_erosion(mask, CUBE, erosion, border_value=1)] = k
    return out


def prepare_by_scikit_image(volume: Volume, grid_mm: float) -> np.ndarray:
    shape = tuple(round(n * s / grid_mm) for n, s in zip(volume.image.shape, volume.spacing_mm))
    image = resize(volume.image, shape, order=1, mode="edge", anti_aliasing=False)
    low, high = np.percentile(image, MR_PERCENTILES)
    image = rescale_intensity(image, (low, high), (0, 1))
    kernel = round(CLAHE_KERNEL_MM / grid_mm)
    slices = [equalize_adapthist(image[:, :, x], kernel, CLAHE_CLIP, CLAHE_BINS) for x in range(shape[2])]
    return np.rint(255 * np.stack(slices, -1)).astype(np.uint8)


# --- what to measure on ---

def vertebrae(shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The mask of a synthetic scan, and a prediction of it: shifted, with specks."""
    mask = resample_nearest(make_phantom(seed).mask, shape)
    prediction, rng = np.roll(mask, (2, -1, 1), (0, 1, 2)), np.random.default_rng(seed)
    specks = rng.random(shape) < 1e-4
    prediction[specks] = rng.integers(0, 6, specks.sum())
    return mask, prediction


def words(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(-1).view(np.uint64)


def fields(report: Report, count: int) -> None:
    """Of a slice with five classes, and of a volume, where the published way would take 12 GB for 30 points."""
    plane, cube = (352, 352), (256,) * 3
    points, in_cube = [points_in(plane, count, k) for k in range(5)], points_in(cube, count)
    together, classes = np.concatenate(points), np.repeat(np.arange(5), count)
    for title, ours, theirs, name, asked, floor in (
        (f"extent masks 352 x 352, 5 classes, {count} points",
         lambda: kernels.extent_masks(together, classes, 5, plane, (1, 1), RADIUS_MM),
         lambda: [distances_by_broadcasting(p, plane) < RADIUS_MM for p in points], "NumPy, all to all", 50,
         lambda: np.full((5, *plane), True)),
        (f"extent mask 256^3, {count} points", lambda: kernels.extent_mask(in_cube, cube, (1, 1, 1), RADIUS_MM),
         lambda: distances_point_by_point(in_cube, cube) < RADIUS_MM, "NumPy, point by point", 50,
         lambda: np.full(cube, True)),
        (f"distance fields 352 x 352, 5 classes, {count} points",
         lambda: [kernels.max_distance(p, plane, (1, 1)) for p in points],
         lambda: [distances_by_broadcasting(p, plane) for p in points], "NumPy, all to all", 20,
         lambda: [np.full(plane, 1, np.float32) for _ in points]),
        (f"distance field 256^3, {count} points", lambda: kernels.max_distance(in_cube, cube, (1, 1, 1)),
         lambda: distances_point_by_point(in_cube, cube), "NumPy, point by point", 20,
         lambda: np.full(cube, 1, np.float32)),
    ):
        others = [Other(name, theirs, asked)]
        if "field 256" in title:
            others.append(Other("SciPy cdist", lambda: distances_by_cdist(in_cube, cube), 20))
        report.row(title, ours, others, floor, 3, rounds=3)


def reassembly(report: Report) -> None:
    shape, size = (500, 450), (352, 352)
    crops, corners = np.random.default_rng(0).random((100, 4, 6, *size), np.float32), tile_corners(shape, size)
    ours = kernels.reassemble_labels(crops[:2], np.array(corners), shape)
    assert (ours == labels_by_nanmean(crops[:2], corners, shape)).mean() > 0.9999  # sums and means round differently
    report.row("reassembly of 100 slices, 4 crops, 6 classes",
               lambda: kernels.reassemble_labels(crops, np.array(corners), shape),
               [Other("NaN, nanmean, argmax", lambda: labels_by_nanmean(crops, corners, shape), 20)],
               lambda: read(words(crops)), rounds=3, warm_up=False)


def counting(report: Report, title: str, truth: np.ndarray, prediction: np.ndarray) -> None:
    def by_bincount():
        return np.bincount((6 * truth + prediction).ravel(), minlength=36).reshape(6, 6)

    def by_scikit_learn():
        return sklearn.metrics.confusion_matrix(truth.ravel(), prediction.ravel(), labels=range(6))

    assert (kernels.confusion_matrix(truth, prediction, 6) == by_bincount()).all()
    report.row(f"confusion matrix and Dice_wi, 256^3, {title}",
               lambda: weighted_dice(kernels.confusion_matrix(truth, prediction, 6)),
               [Other("NumPy bincount", lambda: weighted_dice(by_bincount()), 5),
                Other("scikit-learn", lambda: weighted_dice(by_scikit_learn()), 100)],
               lambda: (read(words(truth)), read(words(prediction))), 2, rounds=3)


def smoothing(report: Report) -> None:
    labels = vertebrae((300, 220, 180))[1]
    report.row("smoothing, 5 classes, 300 x 220 x 180, 2 + 1", lambda: smooth(labels, 2, 2, 1),
               [Other("SciPy, class by class", lambda: smooth_by_scipy(labels, 2, 1), 5)], rounds=3)


def preparing(report: Report) -> None:
    image = resample_linear(make_phantom(0).image, (300, 220, 45))
    scan = Volume(image, None, (1.0, 1.0, 4.0), "scan", "MR", Geometry.canonical(image.shape, (1.0, 1.0, 4.0)))
    report.row("preparing a scan of 300 x 220 x 180 mm", lambda: prepare(scan, 1.0),
               [Other("scikit-image, slice by slice", lambda: prepare_by_scikit_image(scan, 1.0), 2)], rounds=3)
    apart = np.abs(prepare(scan, 1.0).image.astype(int) - prepare_by_scikit_image(scan, 1.0))
    report.line("  the two differ", f"in {(apart > 0).sum()} of {apart.size} voxels, in {(apart > 1).sum()} by more "
                f"than one grey level of 256, by at most {apart.max()}", voxels=int((apart > 1).sum()))


def side_by_side_rows(report: Report) -> None:
    for count in (3, 30):
        fields(report, count)
    reassembly(report)
    counting(report, "vertebrae", *vertebrae((256,) * 3))
    counting(report, "noise", *np.random.default_rng(0).integers(0, 6, (2, 256, 256, 256)).astype(np.uint8))
    smoothing(report)
    preparing(report)


# --- cost against size ---

def on_cubes(n: int) -> dict[str, object]:
    """Every kernel on a cube of n^3 voxels: a name and a call."""
    shape = (n,) * 3
    mask, prediction = vertebrae(shape)
    grey = (mask / np.float32(5)) ** 0.5
    scores = np.random.default_rng(0).random((6, n // 4, n // 4, n // 4), np.float32)
    crops = np.random.default_rng(0).random((n, 1, 6, n, n), np.float32) if n <= 256 else None
    calls = {f"extent mask, {k} points": lambda k=k: kernels.extent_mask(points_in(shape, k), shape, (1,) * 3, 0.43 * n)
             for k in (3, 30, 300)}
    calls |= {f"distance field, {k} points": lambda k=k: kernels.max_distance(points_in(shape, k), shape, (1, 1, 1))
              for k in (3, 30, 300)}
    calls |= {
        "confusion matrix": lambda: kernels.confusion_matrix(mask, prediction, 6),
        "resampling 6 classes, argmax": lambda: kernels.resample_argmax(scores, shape),
        "CLAHE": lambda: kernels.clahe(grey, (50, 50), CLAHE_CLIP, CLAHE_BINS),
        "smoothing, 2 + 1": lambda: smooth(mask, 2, 2, 1)}
    if crops is not None:  # 512^3 would be 3 GB of them
        calls["reassembly, 6 classes"] = lambda: kernels.reassemble_labels(crops, np.zeros((1, 2), int), (n, n))
    return calls


def sizes(report: Report, edges: tuple[int, ...] = (64, 128, 256, 512)) -> None:
    print(f"\n{'nanoseconds a voxel':<46}" + "".join(f"{f'{n}^3':>10}" for n in edges) + f"{'1 / 2 threads':>18}")
    found: dict[str, dict[int, float]] = {}
    threads: dict[str, float] = {}
    for n in edges:
        for name, call in on_cubes(n).items():
            call()
            found.setdefault(name, {})[n] = min(seconds(call) for _ in range(3)) / n**3 * 1e9
            if n == 256:
                threads[name] = one_against_two(call)
    for name, by_size in found.items():
        report.line(name, "".join(f"{by_size[n]:>10.2f}" if n in by_size else f"{'-':>10}" for n in edges)
                    + f"{threads[name]:>17.2f}x", nanoseconds=by_size, one_against_two_threads=threads[name])


def one_against_two(call) -> float:
    """Time with one thread over time with two."""
    usual = numba.get_num_threads()

    def with_threads(count: int) -> None:
        numba.set_num_threads(min(count, usual))
        call()
    both = side_by_side({"one": lambda: with_threads(1), "two": lambda: with_threads(2)}, rounds=5)
    numba.set_num_threads(usual)
    return both["one"] / both["two"]


FIRST_CALLS = """
import time
import numpy as np
from pointseg import kernels
start = time.perf_counter()
cube, labels = (24,) * 3, np.zeros((24, 24, 24), np.uint8)
kernels.extent_mask(np.ones((3, 3)), cube, (1, 1, 1), 9.0)
kernels.max_distance(np.ones((3, 3)), cube, (1, 1, 1))
kernels.max_distance(np.ones((3, 3)), (128, 128, 128), (1, 1, 1))
kernels.confusion_matrix(labels, labels, 6)
kernels.reassemble(np.zeros((1, 6, 24, 24), np.float32), np.zeros((1, 2), int), (24, 24))
kernels.reassemble_labels(np.zeros((2, 1, 6, 24, 24), np.float32), np.zeros((1, 2), int), (24, 24))
kernels.resample_argmax(np.zeros((6, *cube), np.float32), cube)
kernels.clahe(np.random.default_rng(0).random(cube, np.float32), (9, 9), 0.01, 256)
kernels.sample_stack(labels[:3], np.eye(2), np.zeros(2), np.zeros(256, np.float32), np.empty((3, 9, 9), "f"))
kernels.sample_labels(labels[0], np.eye(2), np.zeros(2), np.empty((9, 9), np.uint8))
print(time.perf_counter() - start)
"""


def first_calls(report: Report) -> None:
    """Of every kernel in a new process, with an empty cache and with a filled one."""
    print()
    with tempfile.TemporaryDirectory() as cache:
        def run() -> float:
            return float(subprocess.run([sys.executable, "-c", FIRST_CALLS], capture_output=True, text=True, check=True,
                                        env=os.environ | {"NUMBA_CACHE_DIR": cache}).stdout)
        cold, *warm = [run() for _ in range(4)]
    report.line("first call of every kernel, compiled", f"{in_unit(cold):>10}", seconds=cold)
    report.line("first call of every kernel, cached", f"{in_unit(min(warm)):>10} (asked: below 1 s)", seconds=min(warm))


PARTS = {"rows": side_by_side_rows, "sizes": sizes, "first": first_calls}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="WORD",
                   help=f"some of {', '.join(PARTS)}")
    o = p.parse_args()
    report = Report("kernels")
    for part in o.only:
        PARTS[part](report)


if __name__ == "__main__":
    main()
