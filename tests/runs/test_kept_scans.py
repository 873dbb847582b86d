"""Prepared scans in files: the same numbers as in memory, made once, checked, shared, and let go of."""

import dataclasses
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pointseg.datasets.manifest import Case, read_manifest
from pointseg.datasets.phantom import write_phantoms
from pointseg.points import draw_points
from pointseg.preprocess import Prepared, prepare
from pointseg.profiles import AUGMENTATION
from pointseg.runs.volumes import hash_of_case, key_of, prepare_into
from pointseg.slices import AXES, SliceDataset
from pointseg.volume import ScanError

GRID_MM = 4.0


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[Case]:
    return read_manifest(write_phantoms(tmp_path_factory.mktemp("scans"), 2, seed=3, spacing_mm=3.0))


def no_preparing(*_):
    raise AssertionError("a scan was prepared again")


def test_a_kept_scan_is_the_prepared_one(cases, tmp_path, monkeypatch):
    """Image, mask, spacing, name and modality; and it is prepared once, whatever the case is called."""
    expected = prepare(cases[0].read(), GRID_MM)
    for case in (cases[0], dataclasses.replace(cases[0], case="other")):
        scan = prepare_into(tmp_path)(case, GRID_MM)
        assert np.array_equal(scan.image, expected.image) and np.array_equal(scan.mask, expected.mask)
        assert (scan.spacing_mm, scan.name, scan.modality, scan.shape) == (
            expected.spacing_mm, case.name, expected.modality, expected.shape)
        monkeypatch.setattr("pointseg.runs.volumes.read_and_prepare", no_preparing)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".npy"]
    with pytest.raises(ValueError, match="read-only"):
        scan.image[0, 0, 0] = 1


def test_other_bytes_another_grid_reading_or_code_make_another_scan(cases, tmp_path, monkeypatch):
    """The name of a file is not part of it, its content is."""
    case, copy = cases[0], tmp_path / "copy.nii.gz"
    copy.write_bytes(case.image.read_bytes())
    copied = dataclasses.replace(case, image=copy)
    assert key_of(copied, 2.0) == key_of(case, 2.0)
    others = [dataclasses.replace(case, modality="CT"), dataclasses.replace(case, levels=("vertebra",)),
              dataclasses.replace(case, image=cases[1].image), dataclasses.replace(case, mask=cases[1].mask)]
    assert len({key_of(case, 2.0), key_of(case, 3.0), *(key_of(c, 2.0) for c in others)}) == 6
    before = hash_of_case(copied)
    copy.write_bytes(cases[1].image.read_bytes() + b" ")
    assert hash_of_case(copied) != before
    before = key_of(case, 2.0)
    monkeypatch.setattr("pointseg.runs.volumes.identity_of", lambda *modules: {"code": "other"})
    assert key_of(case, 2.0) != before


DAMAGES = {"first byte": lambda x: bytes([x[0] ^ 1]) + x[1:], "last byte": lambda x: x[:-1] + bytes([x[-1] ^ 1]),
           "short": lambda x: x[:-5], "long": lambda x: x + b"12345", "empty": lambda x: b"", "gone": lambda x: None}
JSON_DAMAGES = {"text": b"nothing of ours", "list": b"[1, 2]", "other": b'{"sha256": "0"}', "bytes": b"\xff\xfe",
                "killed before it": None}


@pytest.mark.parametrize("damage", [*DAMAGES, *JSON_DAMAGES])
def test_damaged_files_are_named_and_made_again(cases, tmp_path, capsys, damage):
    scan = prepare_into(tmp_path)(cases[0], GRID_MM)
    path, image = scan.path, scan.image.copy()
    file = path if damage in DAMAGES else path.with_suffix(".json")
    content = DAMAGES[damage](path.read_bytes()) if damage in DAMAGES else JSON_DAMAGES[damage]
    file.unlink() if content is None else file.write_bytes(content)
    for said in ("" if damage == "killed before it" else f"{path}: is damaged", ""):
        assert np.array_equal(prepare_into(tmp_path)(cases[0], GRID_MM).image, image)
        printed = capsys.readouterr().out
        assert said in printed and bool(said) == bool(printed)


def test_a_file_that_is_gone_is_named(cases, tmp_path):
    scan = prepare_into(tmp_path)(cases[0], GRID_MM)
    scan.path.unlink()
    with pytest.raises(ScanError, match=r"\.npy: cannot be read any more"):
        scan.mask.any()


def _prepare_in_process(case: Case, folder: Path, barrier) -> None:
    barrier.wait()
    assert prepare_into(folder)(case, GRID_MM).image.any()


def test_processes_share_a_folder(cases, tmp_path):
    """Four prepare the same scan at the same moment: each gets it, and one is left."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    processes = [context.Process(target=_prepare_in_process, args=(cases[0], tmp_path, barrier)) for _ in range(4)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(120)
    assert [p.exitcode for p in processes] == [0] * 4
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".npy"]


@pytest.mark.parametrize("sparse", [True, False], ids=["points", "masks"])
@pytest.mark.parametrize("axis", AXES)
def test_items_from_files_are_those_from_memory(cases, tmp_path, axis, sparse):
    """Two epochs, every item; and so it is in another process, to which no voxel is sent."""
    def dataset(scans: list[Prepared]) -> SliceDataset:
        return SliceDataset(draw_points(scans, 0) if sparse else scans, axis, 2 if axis == "transverse" else 6, 96,
                            AUGMENTATION, 0, 110.0 if sparse else None)

    in_memory = [prepare(case.read(), GRID_MM) for case in cases]
    memory, files = dataset(in_memory), dataset([prepare_into(tmp_path)(case, GRID_MM) for case in cases])
    numbers = list(range(2 * len(memory)))
    assert len(files) == len(memory)
    assert all(map(torch.equal, memory.batch(numbers), files.batch(numbers)))
    assert len(pickle.dumps(files)) < len(pickle.dumps(memory)) - sum(scan.image.nbytes for scan in in_memory) / 2
    assert all(map(torch.equal, files.batch([3, 1]), pickle.loads(pickle.dumps(files)).batch([3, 1])))


MANY = """
import itertools, os, resource, sys
from pathlib import Path
import numpy as np
from pointseg.points import Points
from pointseg.preprocess import Prepared
from pointseg.runs.run import Run
from pointseg.runs.volumes import kept_scan
from pointseg.slices import Augmentation, SliceDataset, batch_numbers
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
os.fsync = lambda file: None  # no power cut threatens these 6,000 files
folder, mask = Path(sys.argv[1]), np.arange(512, dtype=np.uint8).reshape(8, 8, 8) % 6
made = [Prepared(np.full((8, 8, 8), i % 256, np.uint8), mask, (1.0,) * 3, f"s/{i}") for i in range(1500)]
scans = [kept_scan(folder / f"{scan.name}.npy", lambda: scan) for scan in made]
keep = Run(folder, folder)
pseudo = [keep(f"pseudo/{scan.name}", lambda: scan.with_mask(scan.mask)) for scan in scans]
points = [Points.of(scan, mask) for scan in scans]
for labelled in (points, pseudo):
    dataset = SliceDataset(labelled, "sagittal", 6, 32, Augmentation(), 0)
    assert len(dataset) == 12000
    for numbers in itertools.islice(batch_numbers(12000, 60, 0), 200):  # an epoch
        found = (255 * dataset.batch(numbers)[0][:, 1, 16, 16]).round().int().tolist()
        assert found == [dataset.index[i][0] % 256 for i in numbers]
print("done")
"""


def test_1500_scans_with_256_open_files(tmp_path):
    """Scans, their points and their pseudo masks: each is read, and none is held open."""
    found = subprocess.run([sys.executable, "-c", MANY, str(tmp_path)], capture_output=True, text=True)
    assert found.stdout == "done\n", found.stderr
