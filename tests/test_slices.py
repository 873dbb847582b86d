"""Volumes into slices and back: nothing is moved, lost or relabelled on the way."""

from dataclasses import astuple

import numpy as np
import pytest
import torch

from pointseg.points import Points
from pointseg.preprocess import Prepared
from pointseg.slices import (
    AXES,
    Augmentation,
    SliceDataset,
    batch_numbers,
    crop_corners,
    cut_crops,
    input_size,
    slice_stack,
    tile_corners,
)
from pointseg.volume import UNLABELLED

PLAIN = Augmentation()
STRONG = Augmentation(rotation_deg=20, log_scale=0.15, log_stretch=0.1, shift_px=4)


def scan_of(shape: tuple[int, int, int], seed: int = 0, spacing_mm=(1.0, 1.0, 1.0)) -> Prepared:
    rng = np.random.default_rng(seed)
    return Prepared(rng.integers(0, 256, shape, np.uint8), rng.integers(0, 6, shape, np.uint8), spacing_mm, "scan")


def dataset_of(labels: np.ndarray, axis: str = "sagittal", num_classes: int = 6, input_px: int = 32,
               augmentation: Augmentation = PLAIN, seed: int = 0, **options) -> SliceDataset:
    return SliceDataset([labelled(labels, options.pop("sparse", False))], axis, num_classes, input_px, augmentation,
                        seed, **options)


def labelled(labels: np.ndarray, sparse: bool = False, spacing_mm=(1.0, 1.0, 1.0)) -> Prepared | Points:
    scan = scan_of(labels.shape, spacing_mm=spacing_mm)
    return Points.of(scan, labels) if sparse else scan.with_mask(labels)


def padded(plane: np.ndarray, size: tuple[int, int], value: float) -> np.ndarray:
    """Symmetrically, the odd pixel after."""
    before = [(s - n) // 2 for s, n in zip(size, plane.shape, strict=True)]
    return np.pad(plane, [(b, s - n - b) for b, s, n in zip(before, size, plane.shape, strict=True)],
                  constant_values=value)


# --- slices with their neighbours ---

@pytest.mark.parametrize("axis, plane", [(0, lambda v, i: v[i]), (1, lambda v, i: v[:, i]),
                                         (2, lambda v, i: v[:, :, i])])
@pytest.mark.parametrize("spacing_mm, step", [(1.0, 1), (2.0, 1), (0.5, 2), (0.34, 3)])
def test_slice_stack(axis, plane, spacing_mm, step):
    volume = np.arange(5 * 6 * 7).reshape(5, 6, 7)
    for index in range(volume.shape[axis]):
        neighbours = [i if 0 <= i < volume.shape[axis] else index for i in (index - step, index, index + step)]
        expected = np.stack([plane(volume, i) for i in neighbours])
        assert (slice_stack(volume, axis, index, spacing_mm) == expected).all()


# --- crops ---

@pytest.mark.parametrize("shape, size, corners", [
    ((10, 12), (6, 7), [(0, 0), (0, 5), (4, 0), (4, 5), (2, 2)]),  # centre: half a pixel is rounded down
    ((6, 7), (6, 7), [(0, 0)] * 5),
    ((5, 4), (8, 8), [(-1, -2)] * 5),  # padded: 1 above and 2 below, 2 on either side
    ((10, 4), (6, 8), [(0, -2), (0, -2), (4, -2), (4, -2), (2, -2)]),
    ((4, 10), (8, 6), [(-2, 0), (-2, 4), (-2, 0), (-2, 4), (-2, 2)]),
])
def test_crop_corners_by_hand(shape, size, corners):
    assert crop_corners(shape, size) == corners


def test_input_size_by_hand():
    """The largest slice is 70 x 33, so 96 x 64; at most 64."""
    assert input_size([(20, 33), (70, 32)], 352) == (96, 64)
    assert input_size([(20, 33), (70, 32)], 64) == (64, 64)
    assert input_size([(32, 1)], 352) == (32, 32)


# --- the dataset without augmentation ---

@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "points"])
@pytest.mark.parametrize("axis", AXES)
def test_without_augmentation_items_are_padded_slices(axis, sparse):
    labels = np.random.default_rng(1).choice(np.array([0, 1, 2, 3, 4, 5, UNLABELLED], np.uint8), (20, 31, 26))
    dataset = dataset_of(labels, axis, sparse=sparse)
    scan, number = dataset.scans[0], AXES[axis]
    assert len(dataset) == labels.shape[number]
    for i in (0, 7, len(dataset) - 1):
        image, target, extent = dataset[i]
        stack = slice_stack(scan.image, number, i, 1.0) / 255
        assert image.dtype == torch.float32
        np.testing.assert_allclose(image, [padded(plane, (32, 32), 0) for plane in stack], atol=1e-4)
        assert target.dtype == torch.uint8
        assert (target.numpy() == padded(labels.take(i, number), (32, 32), UNLABELLED)).all()
        assert extent.dtype == torch.bool and extent.shape == (6, 1, 1) and extent.all()


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "points"])
def test_a_larger_slice_is_cropped_at_one_of_five_places(sparse):
    labels = np.random.default_rng(1).integers(0, 6, (50, 40, 2)).astype(np.uint8)
    dataset = dataset_of(labels, sparse=sparse)
    seen = set()
    for epoch in range(40):
        image, target, _ = dataset[2 * epoch + 1]
        places = [c for c in crop_corners((50, 40), (32, 32))
                  if (target.numpy() == labels[c[0]:c[0] + 32, c[1]:c[1] + 32, 1]).all()]
        assert len(places) == 1
        (row, column), = places
        crop = dataset.scans[0].image[row:row + 32, column:column + 32, 1]
        np.testing.assert_allclose(image[1], crop / 255, atol=1e-4)
        seen.update(places)
    assert len(seen) == 5


def test_slices_without_labels_are_left_out():
    labels = np.full((8, 9, 10), UNLABELLED, np.uint8)
    labels[2, 3, 4], labels[5, 3, 7] = 0, 1
    assert dataset_of(labels, "sagittal").index == [(0, 4), (0, 7)]
    assert dataset_of(labels, "coronal").index == [(0, 3)]
    scans = [labelled(x) for x in (np.full_like(labels, UNLABELLED), labels)]
    assert SliceDataset(scans, "transverse", 6, 32, PLAIN, 0).index == [(1, 2), (1, 5)]


def test_nothing_to_learn_from():
    with pytest.raises(ValueError, match="1 scans, but no slice with a label"):
        dataset_of(np.full((8, 9, 10), UNLABELLED, np.uint8))


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "points"])
def test_two_classes_join_the_vertebrae(sparse):
    labels = np.array([0, 1, 3, 5, UNLABELLED], np.uint8).reshape(1, 1, 5)
    target = dataset_of(labels, "transverse", num_classes=2, sparse=sparse)[0][1]
    assert target[15, 13:18].tolist() == [0, 1, 1, 1, UNLABELLED]  # a 1 x 5 slice in the middle of 32 x 32
    assert (target != UNLABELLED).sum() == 4


def test_items_depend_on_seed_epoch_and_index_alone():
    labels = np.random.default_rng(1).integers(0, 6, (20, 24, 6)).astype(np.uint8)
    everything = Augmentation(*(0.1,) * len(astuple(PLAIN)))
    dataset = dataset_of(labels, augmentation=everything, seed=5)
    first = [dataset[i][0] for i in range(6)]
    again = {i: dataset[i][0] for i in (5, 2, 2, 0, 4, 1, 3)}
    assert all((first[i] == again[i]).all() for i in range(6))
    assert all((x == y).all() for x, y in zip(dataset.batch([4, 4, 9]), map(torch.stack, zip(*(dataset[i] for i in
                                                                                       (4, 4, 9))))))
    assert (dataset[6 + 3][0] != first[3]).any() and (dataset[3][0] == first[3]).all()  # the next epoch, and back
    other = dataset_of(labels, augmentation=everything, seed=6)
    assert (other[3][0] != first[3]).any()
    assert [(x == y).all() for (x, _, _), y in zip(dataset, first, strict=True)] == [True] * 6  # the first epoch


# --- augmentation ---

@pytest.mark.parametrize("axis", AXES)
def test_points_move_with_the_image(axis):
    """A point, moved as a point, falls into the disc around it, moved as a map.  It is lost only with its disc."""
    places = {0: (30, 12), 1: (8, 8), 2: (14, 30), 3: (22, 20), 4: (33, 34), 5: (2, 25)}
    rows, columns = np.mgrid[:38, :40]
    points, discs = np.full((2, 38, 40), UNLABELLED, np.uint8)
    for k, (row, column) in places.items():
        points[row, column] = k
        discs[np.hypot(rows - row, columns - column) < 2.5] = k
    points, discs = (np.repeat(np.expand_dims(x, AXES[axis]), 4, AXES[axis]) for x in (points, discs))
    sparse = dataset_of(points, axis, input_px=32, augmentation=STRONG, sparse=True)
    dense = dataset_of(discs, axis, input_px=32, augmentation=STRONG)
    inside = lost = 0
    for epoch in range(25):
        for i in range(4 * epoch, 4 * epoch + 4):
            moved, disc = sparse[i][1].numpy(), dense[i][1].numpy()
            at = moved != UNLABELLED
            assert (moved[at] == disc[at]).all()
            inside += at.sum()
            framed = np.pad(disc, 1, constant_values=UNLABELLED)
            framed[2:-2, 2:-2] = UNLABELLED  # the outermost pixels
            for k in places:
                assert (moved == k).sum() <= 1
                if not (moved == k).any():
                    assert (disc == k).sum() == 0 or (framed == k).any()
                    lost += 1
    assert inside > 200 and lost > 20  # both happen


@pytest.mark.parametrize("augmentation", [PLAIN, Augmentation(rotation_deg=20, log_scale=0.2, shift_px=4)],
                         ids=["plain", "moved"])
def test_extent_moves_with_the_image(augmentation):
    """Around a single point the extent is a disc of radius_mm, in slice pixels: the same disc as a moved map.

    Pixels are 2 mm.  L3 has no point on this slice, and background never has an extent: all True.
    """
    labels, discs = np.full((2, 40, 44, 1), UNLABELLED, np.uint8)
    labels[18, 24], discs[:] = 2, 0
    rows, columns = np.mgrid[:40, :44]
    discs[np.hypot(rows - 18, columns - 24) < 9] = 2
    sparse, dense = (SliceDataset([labelled(x, sparse, (2.0, 2.0, 2.0))], "sagittal", 6, 64, augmentation, 0,
                                  18.0 if sparse else None) for x, sparse in ((labels, True), (discs, False)))
    for epoch in range(20):
        extent, disc = sparse[epoch][2].numpy(), dense[epoch][1].numpy()
        assert extent.shape == (6, 64, 64)
        assert extent[[0, 1, 3, 4, 5]].all()
        known = disc != UNLABELLED
        differ = (extent[2] != (disc == 2)) & known
        rim = 2 * (np.pi * (disc == 2).sum()) ** 0.5  # its length in pixels; nearest neighbours double some of them
        assert differ.sum() <= (0 if augmentation == PLAIN else 0.7 * rim)


def test_points_outside_the_crop_still_bound_their_vertebra():
    """A point 3 px above the crop, another in it: both bound the class, so 7 px from one is outside."""
    labels = np.full((64, 32, 1), UNLABELLED, np.uint8)
    labels[29, 10], labels[34, 10] = 1, 1
    dataset = dataset_of(labels, sparse=True, radius_mm=6.0)
    for epoch in range(20):
        _, target, extent = dataset[epoch]
        if (target != UNLABELLED).sum() == 1 and target[2, 10] == 1:  # the lower crop, which starts at row 32
            assert extent[1, :, 10].tolist() == [row < 3 for row in range(32)]  # 29 + 6 = 35, exclusive
            return
    pytest.fail("the lower crop was never drawn")


def test_two_classes_share_one_extent():
    labels = np.full((32, 32, 1), UNLABELLED, np.uint8)
    labels[10, 10], labels[10, 14] = 1, 4
    extent = dataset_of(labels, num_classes=2, sparse=True, radius_mm=4.0)[0][2]
    assert extent.shape == (2, 32, 32)
    assert extent[1, 10].nonzero().flatten().tolist() == [11, 12, 13]


@pytest.mark.parametrize("axis", AXES)
def test_masks_have_extents_too(axis):
    """Those of all their voxels, also of those beyond the crop; the mask's own labels stay what they are."""
    values, often = np.array([0, 1, 4, UNLABELLED], np.uint8), (0.9, 0.03, 0.03, 0.04)
    mask = np.random.default_rng(0).choice(values, (40, 36, 34), p=often)
    of_mask, of_points, plain = (dataset_of(mask, axis, 2 if axis == "transverse" else 6, augmentation=STRONG,
                                            sparse=sparse, radius_mm=radius_mm)
                                 for sparse, radius_mm in ((False, 28.0), (True, 28.0), (False, None)))
    for number in range(0, 2 * len(of_mask), 7):
        _, labels, extent = of_mask[number]
        assert torch.equal(extent, of_points[number][2]) and extent[1].any() and not extent[1].all()
        assert torch.equal(labels, plain[number][1])


@pytest.mark.parametrize("sparse", [False, True], ids=["as a mask", "as points"])
@pytest.mark.parametrize("axis", AXES)
def test_masks_of_some_slices_and_points_of_the_others(axis, sparse):
    """Two of seven sagittal slices are known whole, of others a few voxels: each item has what its slice has."""
    rng, labels, number = np.random.default_rng(1), np.full((20, 24, 7), UNLABELLED, np.uint8), AXES[axis]
    labels[:, :, [2, 5]] = rng.integers(0, 6, (20, 24, 2))
    labels[rng.integers(0, 20, 30), rng.integers(0, 24, 30), np.arange(30) % 4] = 3
    dataset, known = dataset_of(labels, axis, sparse=sparse), (labels != UNLABELLED).any(tuple({0, 1, 2} - {number}))
    assert dataset.index == [(0, i) for i in np.flatnonzero(known)]
    for (_, i), (_, target, _) in zip(dataset.index, dataset):
        assert (target.numpy() == padded(labels.take(i, number), (32, 32), UNLABELLED)).all()


@pytest.mark.parametrize("known", [9, 10])
def test_half_of_the_voxels_make_a_mask(known):
    """Of 20 rows: with 9, voxels are moved one by one, and no more come out; with 10, maps, which grow if enlarged."""
    labels = np.full((20, 20, 1), UNLABELLED, np.uint8)
    labels[:known] = 1
    dataset = dataset_of(labels, augmentation=Augmentation(log_scale=0.2))
    most = max(int((dataset[epoch][1] == 1).sum()) for epoch in range(20))
    assert most > 200 if known == 10 else most == 180


def test_padding_is_never_a_label_and_stays_black():
    """Whatever the intensities become; noise is left out, since it comes with the picture."""
    labels = np.ones((20, 20, 1), np.uint8)
    dataset = dataset_of(labels, augmentation=Augmentation(log_gamma=0.3, contrast=0.3))
    for epoch in range(30):
        image, target, _ = dataset[epoch]
        assert (target == 1).sum() == 400 and (target == UNLABELLED).sum() == 32 * 32 - 400
        image[:, 5:27, 5:27] = 0  # the slice, and a rim of one pixel where rounding lets it shine through
        assert image.abs().max() < 0.01


@pytest.mark.parametrize("field", ["log_gamma", "contrast", "noise"])
def test_intensity_changes(field):
    """Each alone changes the picture in every epoch, by about as much as its size, and never the labels."""
    labels = np.ones((32, 32, 1), np.uint8)
    dataset = dataset_of(labels, augmentation=Augmentation(**{field: 0.1}))
    plain = dataset_of(labels)[0][0]
    changes = []
    for epoch in range(20):
        image, target, _ = dataset[epoch]
        assert image.dtype == torch.float32 and torch.isfinite(image).all() and (target == 1).all()
        changes.append((image - plain).abs().mean().item())
    assert min(changes) > 0 and 0.005 < np.mean(changes) < 0.1


# --- batches ---

def test_batches_are_whole_epochs_in_random_order():
    """12 items in batches of 5: 5, 5, 2, each item once an epoch, numbered on; the seed decides the order."""
    def epochs(seed):
        batches = batch_numbers(12, 5, seed)
        drawn = [[next(batches) for _ in range(3)] for _ in range(2)]
        assert [[len(numbers) for numbers in epoch] for epoch in drawn] == [[5, 5, 2]] * 2
        return [sum(epoch, []) for epoch in drawn]

    first, second = epochs(0)
    assert sorted(first) == list(range(12)) and sorted(second) == list(range(12, 24))
    assert [n - 12 for n in second] != first and epochs(0) == [first, second] and epochs(1)[0] != first


@pytest.mark.parametrize("start", [0, 1, 2, 3, 7])
def test_batches_can_start_anywhere(start):
    dataset = dataset_of(np.ones((4, 4, 12), np.uint8), augmentation=Augmentation(shift_px=1, noise=0.1))
    later = dataset.batches(5, 3, start)
    for i, of_all in zip(range(start + 7), dataset.batches(5, 3)):
        assert i < start or all(map(torch.equal, of_all, next(later)))


# --- crops for inference ---

def test_crops_cover_a_slice():
    """A slice that fits makes one crop; one too long in one direction makes two; in both, four; far longer, more."""
    assert tile_corners((20, 32), (32, 32)) == [(-6, 0)]
    assert tile_corners((40, 20), (32, 32)) == [(0, -6), (8, -6)]
    assert tile_corners((40, 50), (32, 32)) == [(0, 0), (0, 18), (8, 0), (8, 18)]
    assert tile_corners((80, 32), (32, 32)) == [(0, 0), (24, 0), (48, 0)]
    crops = cut_crops(scan_of((20, 32, 2)), 2, 0, [(-6, 0)], (32, 32))
    assert crops.shape == (1, 3, 32, 32) and crops.dtype == np.float32
    assert (crops[:, :, :6] == 0).all() and (crops[:, :, 26:] == 0).all() and crops[:, :, 6:26].max() <= 1
