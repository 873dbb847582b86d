"""Clicks from a dataset folder to a training: on a prepared grid, in files of prepared scans, beside masks or alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny import TINY, tiny_scan

from pointseg.commands import main as cli
from pointseg.datasets.manifest import Case, read_manifest, write_manifest
from pointseg.datasets.phantom import write_phantoms
from pointseg.datasets.split import names_of, read_and_prepare, split_without_flaws
from pointseg.estimate import estimated_confusion, stands_for
from pointseg.points import draw_clicks, draw_labels, draw_points
from pointseg.preprocess import Scans, moved, prepare
from pointseg.profiles import PROFILES
from pointseg.runs.volumes import kept_scan
from pointseg.scans.clicks import write_clicks
from pointseg.scans.volumes import write_volume
from pointseg.slices import Augmentation, SliceDataset
from pointseg.volume import Clicks, Geometry, ScanError, Volume

SHAPE, SPACING = (24, 20, 16), (1.0, 1.5, 4.0)


def volume(seed: int = 0) -> Volume:
    rng, mask = np.random.default_rng(seed), np.zeros(SHAPE, np.uint8)
    for k in range(1, 6):
        mask[4 * k - 1 : 4 * k + 2, 5:14, 3:13] = k
    image = (mask * 30 + rng.integers(0, 40, SHAPE)).astype(np.int16)
    return Volume(image, mask, SPACING, f"mine/{seed}", "MR", Geometry.canonical(SHAPE, SPACING))


def clicks(*rows, stands_for=np.nan) -> Clicks:
    places, values = np.array([r[:3] for r in rows], np.int32), np.array([r[3] for r in rows], np.uint8)
    return Clicks(places, values, np.full(len(rows), np.nan), np.full(len(rows), stands_for))


def folder_of(tmp_path, volumes, with_masks=False, suffix=".csv"):
    cases = []
    for v in volumes:
        name = v.name.split("/")[1]
        image, mask, points = (tmp_path / f"{name}{end}" for end in ("_img.nii.gz", "_vert.nii.gz", suffix))
        write_volume(image, v, mask if with_masks else None)
        write_clicks(points, v.clicks, v.geometry)
        cases.append(Case("mine", name, name, "MR", image, mask if with_masks else None, points=points))
    write_manifest(tmp_path, cases)
    return read_manifest(tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".mrk.json", ".fcsv"])
@pytest.mark.parametrize("with_masks", [False, True])
def test_a_folder_of_points_trains_bit_for_bit_as_points_drawn_on_the_own_grid(tmp_path, suffix, with_masks):
    drawn = [replace(v, clicks=draw_clicks(v.mask, np.random.default_rng(7))) for v in map(volume, range(2))]
    there = draw_points([prepare(v, 2.0) for v in drawn], 0)
    read = draw_points([prepare(case.read(), 2.0) for case in folder_of(tmp_path, drawn, with_masks, suffix)], 0)
    for a, b in zip(there, read, strict=True):
        assert np.array_equal(a.places, b.places) and np.array_equal(a.values, b.values)
        assert np.array_equal(a.image, b.image)
    for axis in ("transverse", "coronal", "sagittal"):
        one, other = (SliceDataset(s, axis, 6, 32, Augmentation(shift_px=1, rotation_deg=5), 0) for s in (there, read))
        assert len(one) == len(other)
        assert all((x == y).all() for i in range(len(one)) for x, y in zip(one[i], other[i], strict=True))


def test_a_level_out_of_order_is_told_where_a_scan_is_prepared(tmp_path, capsys):
    v = volume()
    rows = [(4 * k, 8, 8, k) for k in range(1, 6)] + [(22, 9, 8, 1)]  # an L1 at the height of L5
    case, = folder_of(tmp_path, [replace(v, clicks=clicks(*rows))])
    read_and_prepare(case, 2.0)
    assert "mine/0: " in (said := capsys.readouterr().out) and "line 7: L1 lies below L" in said


def test_moved_clicks_lie_where_they_were_and_disputed_voxels_are_left_out():
    two = clicks((0, 0, 0, 1), (1, 1, 1, 1), (3, 3, 3, 2), (2, 2, 2, 0), (7, 7, 7, 5))
    assert moved(two, (8, 8, 8), (8, 8, 8)).places.tolist() == two.places.tolist()
    finer = moved(two, (8, 8, 8), (16, 16, 16))
    assert finer.places.tolist() == (2 * two.places + 1).tolist()
    coarse = moved(two, (8, 8, 8), (4, 4, 4))
    assert coarse.places.tolist() == [[0, 0, 0], [3, 3, 3]] and coarse.values.tolist() == [1, 5]
    by_chance = replace(two, stands_for_mm3=np.ones(5))
    assert len(moved(by_chance, (8, 8, 8), (4, 4, 4)).values) == 5


def test_a_scan_in_a_file_keeps_its_clicks_with_and_without_a_mask(tmp_path):
    for number, v in enumerate((volume(), replace(volume(), mask=None))):
        scan = prepare(replace(v, clicks=draw_clicks(volume().mask, np.random.default_rng(1))), 2.0)
        path = tmp_path / f"{number}.npy"
        for kept in (kept_scan(path, lambda scan=scan: scan), kept_scan(path, lambda: pytest.fail("made again"))):
            assert (kept.mask is None) == (v.mask is None) and np.array_equal(kept.image, scan.image)
            for a, b in zip(vars(kept.clicks).values(), vars(scan.clicks).values(), strict=True):
                assert np.array_equal(a, b, equal_nan=True) and a.dtype == b.dtype


def test_clicks_teach_and_never_choose():
    v = replace(volume(), clicks=clicks((4, 8, 8, 1), (0, 0, 0, 0)))
    with_mask, without = prepare(v, 2.0), prepare(replace(v, mask=None), 2.0)
    labelled = draw_labels(Scans([with_mask, without], [with_mask]), "points", 0)
    assert [len(p.values) for p in labelled.train] == [2, 2]
    assert len(labelled.validation[0].values) > 100  # drawn from the mask, not clicked
    with pytest.raises(ScanError, match="mine/0: found neither a mask nor classes of places that chance has chosen"):
        draw_labels(Scans([with_mask], [without]), "points", 0)
    with pytest.raises(ScanError, match="mine/0: found no mask, expected one for labels 'slices'"):
        draw_labels(Scans([without], [with_mask]), "slices", 0)
    nothing = prepare(replace(v, mask=None, clicks=None), 2.0)
    with pytest.raises(ScanError, match="found neither a mask nor clicks"):
        draw_labels(Scans([nothing], [with_mask]), "points", 0)


def test_places_that_chance_has_chosen_tell_the_confusion_matrix_without_bias():
    """Of many draws the mean is the true matrix, whatever share of places lies near a vertebra."""
    scan, rng = tiny_scan(), np.random.default_rng(0)
    prediction = np.roll(scan.mask, 3, 0)
    near = (np.roll(scan.mask, 5, 1) != 0).ravel() | (scan.mask != 0).ravel()
    density = 0.7 * near / near.sum() + 0.3 / near.size
    truth = estimated_confusion(scan, prediction, 6)
    estimates = []
    for _ in range(300):
        flat = rng.choice(near.size, 200, p=density)
        places = np.stack(np.unravel_index(flat, scan.shape), 1).astype(np.int32)
        drawn = Clicks(places, scan.mask.ravel()[flat], np.full(200, np.nan), 1 / (200 * density[flat]))
        points = draw_points([replace(scan, clicks=drawn, mask=None)], 0, to_choose=True)[0]
        assert np.array_equal(stands_for(points), drawn.stands_for_mm3)  # voxels of 1 mm3
        estimates.append(estimated_confusion(points, prediction, 6))
    mean, error = np.mean(estimates, 0), np.std(estimates, 0) / np.sqrt(300)
    assert (abs(mean - truth) <= 4 * error + 1e-9).all() and min(truth[1, 1], truth[0, 1], truth[1, 0]) > 0


def by_chance(v: Volume, count: int, seed: int) -> Clicks:
    """Classes of places, half of them drawn near the vertebrae."""
    near = (v.mask != 0).ravel()
    density, rng = 0.5 * near / near.sum() + 0.5 / near.size, np.random.default_rng(seed)
    flat = rng.choice(near.size, count, p=density)
    places = np.stack(np.unravel_index(flat, v.mask.shape), 1).astype(np.int32)
    stands_for = np.prod(v.spacing_mm) / (count * density[flat])
    return Clicks(places, v.mask.ravel()[flat], np.full(count, 3.0), stands_for)


@pytest.fixture(scope="module")
def without_masks(tmp_path_factory):
    """A folder of synthetic scans: in training clicks, else places that chance has chosen; nowhere a mask."""
    out = tmp_path_factory.mktemp("scans")
    write_phantoms(out / "with", 6, 0, spacing_mm=4.0)
    cases, split = [], split_without_flaws(read_manifest(out / "with"), 0)
    for part, of_part in names_of(split).items():
        for case in read_manifest(out / "with"):
            if case.name in of_part:
                v = case.read()
                drawn = draw_clicks(v.mask, np.random.default_rng(1)) if part == "train" else by_chance(v, 400, 2)
                image, points = (out / "without" / f"{case.case}{end}" for end in ("_img.nii.gz", ".csv"))
                write_volume(image, v)
                write_clicks(points, drawn, v.geometry)
                cases.append(Case(case.source, case.case, case.patient, case.modality, image, None, points=points))
    write_manifest(out / "without", cases)
    return out


def test_table1_without_any_mask(without_masks, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PROFILES, "classroom", TINY)
    arguments = ["--data", str(without_masks / "without"), "--out", str(tmp_path), "--cache", str(tmp_path / "cache")]
    assert cli.main(["table1", *arguments]) == 0
    said = capsys.readouterr().out
    assert "without full masks there is no reference" in said and "estimated from places that chance has chosen" in said
    assert "table1.json, result.pt and" in said  # and no reference.pt
    table = json.loads((tmp_path / "table1.json").read_text())
    assert 0 <= table["result"] <= 1 and "reference" not in table and table["labelling_seconds"]["result"] > 0
    assert table["own_label_seconds"] == 400 * 3 and "the expert's own time" in said  # one scan chooses
    low, high = table["estimated_intervals"]["result"]
    assert low <= table["result"] <= high
    model = str(tmp_path / "result.pt")
    assert cli.main(["evaluate", model, "--data", str(without_masks / "without"), "--split", "test"]) == 0
    estimated = capsys.readouterr().out
    assert cli.main(["evaluate", model, "--data", str(without_masks / "with"), "--split", "test"]) == 0
    assert "95 % interval" in estimated and "95 % interval" not in capsys.readouterr().out
    assert cli.main(["table1", *arguments]) == 0  # again: nothing is trained twice, and the table is the same
    assert json.loads((tmp_path / "table1.json").read_text())["result"] == table["result"]


def test_clicks_alone_neither_choose_nor_score(without_masks, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PROFILES, "classroom", TINY)
    folder = without_masks / "without"
    split = split_without_flaws(read_manifest(folder), 0)
    volumes = {case.name: case.read() for case in read_manifest(without_masks / "with")}
    for part in ("validation", "test"):
        case, = (c for c in read_manifest(folder) if c.name == names_of(split)[part][0])
        kept, v = case.points.read_bytes(), volumes[case.name]
        write_clicks(case.points, draw_clicks(v.mask, np.random.default_rng(0)), v.geometry)
        status = cli.main(["table1", "--data", str(folder), "--out", str(tmp_path / part), "--cache",
                           str(tmp_path / "cache")])
        case.points.write_bytes(kept)
        error, = (line for line in capsys.readouterr().err.splitlines() if line.startswith("pointseg"))
        assert status == 1 and "places that chance has chosen" in error
