"""Prepared scans in files: the same numbers as in memory, made once, checked, shared, and let go of."""

import dataclasses
import gc
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pointseg.datasets.manifest import Case, read_manifest
from pointseg.datasets.phantom import write_phantoms
from pointseg.points import Points
from pointseg.preprocess import Prepared, prepare
from pointseg.procedure import draw_points
from pointseg.profiles import AUGMENTATION
from pointseg.runs import cache, identity
from pointseg.runs.cache import CachedScan, hash_of_case, kept_volumes, prepared_case, read_volumes, write_volumes
from pointseg.slices import AXES, Labelled, SliceDataset
from pointseg.volume import UNLABELLED, ScanError

GRID_MM = 4.0


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[Case]:
    return read_manifest(write_phantoms(tmp_path_factory.mktemp("scans"), 2, seed=3, spacing_mm=3.0))


def no_preparing(*_):
    raise AssertionError("a scan was prepared again")


def mapped() -> int:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum(line.rstrip().endswith((".scan", ".volume")) for line in lines)


def test_a_cached_scan_is_the_prepared_one(cases, tmp_path, monkeypatch):
    """Image, mask, spacing, name and modality; and it is prepared once."""
    expected = prepare(cases[0].read(), GRID_MM)
    for _ in range(2):
        scan = prepared_case(cases[0], GRID_MM, tmp_path)
        assert np.array_equal(scan.image, expected.image) and np.array_equal(scan.mask, expected.mask)
        assert (scan.spacing_mm, scan.name, scan.modality, scan.shape) == (
            expected.spacing_mm, expected.name, expected.modality, expected.shape)
        for axis in range(3):
            planes = np.asarray(scan.planes(axis))
            assert planes.flags.c_contiguous and np.array_equal(planes, np.moveaxis(expected.image, axis, 0))
            assert np.array_equal(Labelled(scan, scan.truth).planes(axis), np.moveaxis(expected.mask, axis, 0))
        monkeypatch.setattr(cache, "prepare", no_preparing)
    assert len(list(tmp_path.iterdir())) == 1


def test_other_bytes_another_grid_or_another_reading_are_another_scan(cases, tmp_path):
    """The name of a file is not part of it, its content is."""
    case, names = cases[0], set()
    copy = tmp_path / "copy.nii.gz"
    copy.write_bytes(case.image.read_bytes())
    assert cache.key_of(dataclasses.replace(case, image=copy), 2.0) == cache.key_of(case, 2.0)
    others = [dataclasses.replace(case, modality="CT"), dataclasses.replace(case, levels=("vertebra",)),
              dataclasses.replace(case, image=cases[1].image), dataclasses.replace(case, mask=cases[1].mask)]
    names = {cache.key_of(case, 2.0), cache.key_of(case, 3.0), *(cache.key_of(c, 2.0) for c in others)}
    assert len(names) == 6
    copied = dataclasses.replace(case, image=copy)
    before = hash_of_case(copied)
    copy.write_bytes(cases[1].image.read_bytes() + b" ")
    assert hash_of_case(copied) != before


def test_changed_code_prepares_anew(cases, tmp_path, monkeypatch):
    before, package = cache.key_of(cases[0], 2.0), shutil.copytree(identity.PACKAGE, tmp_path / "package")
    monkeypatch.setattr(identity, "PACKAGE", package)
    (package / "train.py").write_text("1 / 0")  # has no part in it
    assert cache.key_of(cases[0], 2.0) == before
    (package / "kernels.py").write_text("CLAHE_LEVELS = 3")
    assert cache.key_of(cases[0], 2.0) != before


@pytest.mark.parametrize("damage", ["first byte", "last byte", "spacing", "short", "long", "empty", "text",
                                    "no volumes"])
def test_damaged_files_are_named_and_made_again(cases, tmp_path, capsys, damage):
    scan = prepared_case(cases[0], GRID_MM, tmp_path)
    path, image = scan.image_file.path, scan.image.copy()
    content = bytearray(path.read_bytes())
    if damage in ("first byte", "last byte"):
        content[cache.HEADER_BYTES if damage == "first byte" else -1] ^= 1
    elif damage == "spacing":
        content = content.replace(b'"modality": "MR"', b'"modality": "CT"')
    else:
        content = {"short": content[:-5], "long": content + b"12345", "empty": b"", "text": b"nothing of ours",
                   "no volumes": b'{"sha256": "0", "bytes": 2}'}[damage]
    path.write_bytes(content)
    again = prepared_case(cases[0], GRID_MM, tmp_path)
    assert f"{path}: is damaged" in capsys.readouterr().out
    assert np.array_equal(again.image, image) and not isinstance(read_volumes(path), str)


def _prepare_in_process(case: Case, folder: Path, barrier) -> None:
    barrier.wait()
    assert prepared_case(case, GRID_MM, folder).image.any()


def test_processes_share_a_folder(cases, tmp_path):
    """Four prepare the same scan at the same moment: each gets it, and one file is left."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    processes = [context.Process(target=_prepare_in_process, args=(cases[0], tmp_path, barrier)) for _ in range(4)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(120)
    assert [p.exitcode for p in processes] == [0] * 4
    assert [p.suffix for p in tmp_path.iterdir()] == [".scan"]


def test_a_file_that_is_gone_is_named(tmp_path):
    write_volumes(tmp_path / "a.volume", {"labels": np.zeros((2, 3, 4), np.uint8)}, {})
    volumes, _ = read_volumes(tmp_path / "a.volume")
    (tmp_path / "a.volume").unlink()
    with pytest.raises(ScanError, match=r"a\.volume.*cannot be read any more"):
        np.asarray(volumes["labels"])


def test_volumes_are_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"labels": np.arange(24, dtype=np.uint8).reshape(2, 3, 4)}, {"what": "numbers"}

    for _ in range(2):
        volumes, about = kept_volumes(tmp_path / "deep" / "a.volume", make)
        assert np.array_equal(volumes["labels"], make()[0]["labels"]) and about == {"what": "numbers"}
    assert len(made) == 3  # one of them by kept_volumes


# --- points and data sets ---

@pytest.mark.parametrize("axis", range(3))
def test_points_are_their_labels(axis):
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((5, 6, 7)) < 0.1, rng.integers(0, 6, (5, 6, 7)), UNLABELLED).astype(np.uint8)
    points = Points.of(labels)
    assert np.array_equal(np.asarray(points), labels)
    turned = points.along(axis)
    assert np.array_equal(np.asarray(turned), np.moveaxis(labels, axis, 0))
    assert np.array_equal(turned.places, np.argwhere(np.moveaxis(labels, axis, 0) != UNLABELLED))
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(points)[0, 0, 0] = 1


@pytest.mark.parametrize("sparse", [True, False], ids=["points", "masks"])
@pytest.mark.parametrize("axis", AXES)
def test_items_from_files_are_those_from_memory(cases, tmp_path, axis, sparse):
    """Two epochs, every item; and after them nothing is mapped any more."""
    in_memory = [prepare(case.read(), GRID_MM) for case in cases]
    in_files = [prepared_case(case, GRID_MM, tmp_path) for case in cases]
    num_classes = 2 if axis == "transverse" else 6

    def dataset(scans: list[Prepared] | list[CachedScan]) -> SliceDataset:
        labelled = draw_points(scans, 0) if sparse else [Labelled(scan, scan.truth) for scan in scans]
        return SliceDataset(labelled, axis, num_classes, 96, AUGMENTATION, 0, sparse, 110.0 if sparse else None)

    memory, files = dataset(in_memory), dataset(in_files)
    numbers = list(range(2 * len(memory)))
    assert len(files) == len(memory)
    assert all(torch.equal(x, y) for x, y in zip(memory.batch(numbers), files.batch(numbers), strict=True))
    again = pickle.loads(pickle.dumps(files))
    assert len(pickle.dumps(files)) < len(pickle.dumps(memory)) - sum(scan.image.nbytes for scan in in_memory) / 2
    assert all(torch.equal(x, y) for x, y in zip(files.batch([3, 1]), again.batch([3, 1]), strict=True))
    if not Path("/proc/self/maps").is_file():  # not Linux
        return
    gc.collect()
    assert mapped() == 0
    held = in_files[0].image
    assert mapped() == 1 and held.any()
