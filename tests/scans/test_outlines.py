"""Masks of some slices: what is unlabelled, in every orientation, and what is refused or doubted."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from pointseg.datasets.manifest import Case, read_manifest, write_manifest
from pointseg.preprocess import prepare, resample_nearest
from pointseg.scans.outlines import PLANES, outlined
from pointseg.scans.volumes import turned, write_volume
from pointseg.volume import UNLABELLED, Geometry, ScanError, Volume

SHAPE = (12, 10, 14)


def volume(painted=(3, 6, 9), geometry=None) -> Volume:
    """L1 and L2 on some sagittal slices."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:5, 3:7, list(painted)], mask[7:10, 3:7, list(painted)] = 1, 2
    geometry = geometry or Geometry.canonical(SHAPE, (2.0, 2.0, 2.0))
    return Volume(np.arange(mask.size, dtype=np.int16).reshape(SHAPE), mask, geometry.spacing_mm, "a", "MR", geometry)


def known_slices(v: Volume, axis: int = 2) -> list[int]:
    known = v.mask != UNLABELLED
    planes = known.any(tuple({0, 1, 2} - {axis}))
    assert (known.all(tuple({0, 1, 2} - {axis})) == planes).all()  # a slice is known whole, or not at all
    return np.flatnonzero(planes).tolist()


def test_painted_slices_keep_their_background_and_the_others_are_unlabelled():
    v = outlined(volume(), "sagittal painted", "m.nii")
    assert known_slices(v) == [3, 6, 9] and (v.mask[:, :, 6] == volume().mask[:, :, 6]).all() and not v.notes
    v = outlined(volume(), "sagittal 3 6 9 12", "m.nii")
    assert known_slices(v) == [3, 6, 9, 12]  # an empty one is labelled too


def test_numbers_are_those_of_the_file_in_every_orientation():
    """The same painted slices, stored along every axis and in both directions."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            direction = np.zeros((3, 3))
            direction[list(order), range(3)] = signs
            extents = dict(zip("zyx", SHAPE, strict=True))
            size = tuple(extents["xyz"[axis]] for axis in order)
            geometry = Geometry(size, (2.0,) * 3, (0.0,) * 3, tuple(direction.ravel()))
            assert geometry.shape_zyx == SHAPE
            along = order.index(0)  # the stored axis of the sagittal slices
            numbers = np.arange(size[along]).reshape([-1 if 2 - a == along else 1 for a in range(3)])
            canonical = turned(np.broadcast_to(numbers, size[::-1]), geometry)[0, 0]  # of each slice its number
            told = "sagittal " + " ".join(str(canonical[x]) for x in (3, 6, 9))
            assert known_slices(outlined(volume(geometry=geometry), told, "m.nii")) == [3, 6, 9]


@pytest.mark.parametrize("plane", PLANES)
def test_every_plane(plane):
    axis = PLANES.index(plane)
    mask = np.zeros(SHAPE, np.uint8)
    np.moveaxis(mask, axis, 0)[4, 2:5, 2:5] = 3
    assert known_slices(outlined(replace(volume(), mask=mask), f"{plane} painted", "m.nii"), axis) == [4]


@pytest.mark.parametrize(("labelled", "said"), [
    ("painted", "found labelled slices 'painted', expected transverse, coronal or sagittal"),
    ("sagittal", "expected transverse"), ("sagittal 3,6", "expected transverse"), ("axial 3", "expected transverse"),
    ("sagittal -3", "expected transverse"), ("sagittal 3 6 9 14", "found labelled slice 14, expected 0..13"),
    ("sagittal 3 6", "found labels on sagittal slices 9, expected them on 3, 6 alone")])
def test_what_does_not_fit_is_refused(labelled, said):
    with pytest.raises(ScanError, match="m.nii") as error:
        outlined(volume(), labelled, "m.nii")
    assert said in str(error.value)


def test_a_level_forgotten_between_two_painted_slices_is_a_doubt():
    v = volume(painted=(5, 6, 7))
    v.mask[v.mask == 2] *= 1
    forgotten = v.mask.copy()
    forgotten[:, :, 6][forgotten[:, :, 6] == 2] = 0
    note, = outlined(replace(v, mask=forgotten), "sagittal painted", "m.nii").notes
    assert "sagittal slice 6 shows no L2" in note
    assert not outlined(volume(painted=(2, 6, 10)), "sagittal painted", "m.nii").notes


def test_a_folder_of_outlines_and_a_coarser_grid_lose_no_slice(tmp_path):
    v = volume()
    write_volume(tmp_path / "a_img.nii.gz", v, tmp_path / "a_vert.nii.gz")
    case = Case("mine", "a", "a", "MR", tmp_path / "a_img.nii.gz", tmp_path / "a_vert.nii.gz",
                labelled="sagittal painted")
    write_manifest(tmp_path, [case])
    read = read_manifest(tmp_path)[0].read()
    assert known_slices(read) == [3, 6, 9]
    for grid_mm in (2.0, 3.0, 4.0, 6.0):
        scan = prepare(read, grid_mm)
        known = np.flatnonzero((scan.mask != UNLABELLED).any((0, 1))).tolist()
        assert known == sorted({int(x * scan.shape[2] / SHAPE[2] + 0.5 * scan.shape[2] / SHAPE[2]) for x in (3, 6, 9)})


def test_full_masks_are_resampled_as_before():
    labels = np.random.default_rng(0).integers(0, 6, (13, 11, 9)).astype(np.uint8)
    index = [((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip((6, 11, 20), labels.shape, strict=True)]
    assert np.array_equal(resample_nearest(labels, (6, 11, 20)), labels[np.ix_(*index)])
