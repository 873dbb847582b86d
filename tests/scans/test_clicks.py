"""Clicks on disk: the same voxels through every format and geometry, and one line for what is wrong."""

import itertools
import json

import numpy as np
import pytest

from pointseg.scans.clicks import canonical_of, class_of, has_places, out_of_order, read_clicks, stored_of, write_clicks
from pointseg.scans.volumes import turned
from pointseg.volume import BACKGROUND, Clicks, Geometry, ScanError

SUFFIXES = (".csv", ".mrk.json", ".fcsv", ".json")
SIZE = (9, 7, 11)


def geometries():
    """All 48 orientations, anisotropic; and oblique ones."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            direction = np.zeros((3, 3))
            direction[list(order), range(3)] = signs
            yield Geometry(SIZE, (0.4, 3.0, 0.7), (-31.2, 12.5, 400.0), tuple(direction.ravel()))
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    for sign in (1, -1):
        yield Geometry(SIZE, (0.29, 4.4, 0.29), (55.0, -20.0, -300.0), tuple((sign * turn).ravel()))


def clicks(geometry, rng, count=40, background=True):
    shape = geometry.shape_zyx
    flat = rng.choice(np.prod(shape), count, replace=False)
    places = np.stack(np.unravel_index(flat, shape), 1)
    values = np.sort(rng.integers(0 if background else 1, 6, count)).astype(np.uint8)
    return places, values


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_voxels_through_every_format_in_every_orientation(tmp_path, suffix):
    rng = np.random.default_rng(1)
    for geometry in geometries():
        places, values = clicks(geometry, rng, background=suffix != ".json")
        path = tmp_path / f"clicks{suffix}"
        took = np.full(len(values), 2.5)
        write_clicks(path, Clicks(places, values, took, took / 5), geometry)
        read, _ = read_clicks(path, geometry)
        assert np.array_equal(read.places, places) and np.array_equal(read.values, values)
        assert np.isnan(read.seconds).all() if suffix != ".csv" else (read.seconds == 2.5).all()
        assert np.array_equal(read.stands_for_mm3, read.seconds / 5, equal_nan=True)


def test_canonical_places_are_those_of_the_array():
    for geometry in geometries():
        stored = np.arange(np.prod(SIZE)).reshape(SIZE[::-1])
        canonical = turned(stored, geometry)
        places = np.argwhere(canonical >= 0)
        z, y, x = stored_of(places, geometry)[:, ::-1].T
        assert np.array_equal(stored[z, y, x], canonical[tuple(places.T)])
        assert np.array_equal(canonical_of(stored_of(places, geometry), geometry), places)


GEOMETRY = Geometry((20, 20, 20), (2.0, 2.0, 2.0), (100.0, 200.0, -50.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
MM = "110.0,220.0,-30.0"  # the voxel 5, 10, 10


def test_napari_counts_voxels_of_the_stored_array(tmp_path):
    path = tmp_path / "napari.csv"
    path.write_text("index,axis-0,axis-1,axis-2,level\n0,3.2,10.0,5.0,L1\n1,1.0,2.0,3.0,bg\n")
    read, _ = read_clicks(path, GEOMETRY)
    assert canonical_of(np.array([[5, 10, 3], [3, 2, 1]]), GEOMETRY).tolist() == read.places.tolist()
    assert read.values.tolist() == [1, 0]


def test_slicer_in_ras_is_the_same_place_as_in_lps(tmp_path):
    def markup(system, x, y):
        point = {"label": "L3-2", "position": [x, y, -30.0], "positionStatus": "defined"}
        undefined = {"label": "?", "position": None, "positionStatus": "undefined"}
        return json.dumps({"markups": [{"coordinateSystem": system, "controlPoints": [point, undefined]}]})

    found = []
    for name, text in (("a.mrk.json", markup("LPS", 110.0, 220.0)), ("b.mrk.json", markup("RAS", -110.0, -220.0)),
                       ("c.fcsv", "# CoordinateSystem = RAS\n# columns = id,x,y,z,label\np,-110,-220,-30,L3\n"),
                       ("d.fcsv", "# CoordinateSystem = 1\n# columns = id,x,y,z,label\np,110,220,-30,vert_L3\n"),
                       ("e.json", verse({"label": 22, "X": 5, "Y": 10, "Z": 10})),
                       ("f.json", verse({"label": 22, "X": 9, "Y": 9, "Z": 5}, direction="IAL")),
                       ("g.csv", f"level,x_mm,y_mm,z_mm\r\nl3,{MM}\r\n"),
                       ("h.csv", f"\ufefflevel,x_mm,y_mm,z_mm\n22,{MM}")):
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        read, _ = read_clicks(tmp_path / name, GEOMETRY)
        found.append((read.places.tolist(), read.values.tolist()))
    assert found[0][1] == [3] and all(f == found[0] for f in found)


@pytest.mark.parametrize(("text", "expected"), [
    ("L1", 1), ("l5", 5), (" L2 ", 2), ("vert_L3", 3), ("Vertebra L4", 4), ("vertebrae_L4", 4), ("20", 1), ("24", 5),
    ("24.0", 5), ("L1-3", 1), ("L1_12", 1), ("bg", 0), ("BG-4", 0), ("Background", 0), ("0", 0), ("T12", 0), ("S1", 0),
    ("19", 0), ("26", 0), ("L6", 0), ("C3", 0), ("", None), ("3", None), ("L0", None), ("L7", None), ("L12", None),
    ("99", None), ("F-1", None), ("sacrum?", None), ("20.5", None), ("-1", None), ("nan", None)])
def test_levels_as_people_write_them(text, expected):
    assert class_of(text) == expected


HEAD = "level,x_mm,y_mm,z_mm\n"
FCSV = "# CoordinateSystem = LPS\n# columns = id,x,y,z,label\n"
POINT = {"label": "L1", "position": [110.0, 220.0, -30.0]}


def markups(**changes):
    return json.dumps({"markups": [{"coordinateSystem": "LPS", "controlPoints": [POINT]} | changes]})


def verse(*entries, direction=("L", "P", "S")):
    return json.dumps([{"direction": list(direction)}, *entries])


@pytest.mark.parametrize("first", ["", "sep={}\n", "SEP={}\r\n", '"sep={}"\n'])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_what_stands_between_values(delimiter, first, tmp_path):
    """Told by the first line: Excel may say it there."""
    text = first.format(delimiter) + (HEAD + f"L1,{MM}\n").replace(",", delimiter)
    (tmp_path / "a.csv").write_text(text, newline="")
    (tmp_path / "b.csv").write_text(HEAD + f"L1,{MM}\n")
    other, usual = (read_clicks(tmp_path / name, GEOMETRY)[0] for name in ("a.csv", "b.csv"))
    assert np.array_equal(other.places, usual.places) and other.values.tolist() == [1]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_places_of_chance_are_told_however_the_table_is_written(delimiter, tmp_path):
    """As `read_clicks` reads it: else a scan that can be scored would only train."""
    for name, mm3 in (("places.csv", "7.5"), ("clicks.csv", "")):
        text = f"Level,X_mm,Y_mm,Z_mm,Stands_for_mm3 \nL1,{MM},\nL1,110.0,220.0,-32.0,{mm3}\n"
        (tmp_path / name).write_text(text.replace(",", delimiter))
    assert has_places(tmp_path / "places.csv") and not has_places(tmp_path / "clicks.csv")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "other.csv").write_bytes(b"\xff\xfe\x00")
    assert not any(has_places(tmp_path / name) for name in ("empty.csv", "other.csv", "missing.csv"))


MALFORMED = [  # name, text, what the message says beside the file
    ("a.csv", "", "line 1: found columns none, expected level"),
    ("a.csv", "\n\n", "line 1: found columns none"),
    ("a.csv", HEAD, "found no click"),
    ("a.csv", "L1,110,220,-30\n", "line 1: found columns l1, 110"),
    ("a.csv", "level,x,y,z\nL1,110,220,-30\n", "line 1: found columns level, x, y, z, expected level, x_mm"),
    ("a.csv", "level,x_mm,y_mm\nL1,110,220\n", "line 1: found columns level, x_mm, y_mm, expected"),
    ("a.csv", "level x_mm y_mm z_mm\nL1 110 220 -30\n", "line 1: found columns level x_mm y_mm z_mm, expected"),
    ("a.csv", "level;x_mm;y_mm;z_mm\nL1;110,5;220;-30\n", "line 2: found '110,5', expected a number, with a point"),
    ("a.csv", "level,level,x_mm,y_mm,z_mm\nL1,L2,110,220,-30\n", "line 1: found columns level, level"),
    ("a.csv", HEAD + f"L1,{MM},7\n", "line 2: found 5 values, expected 4"),
    ("a.csv", HEAD + "L1,110,220\n", "line 2: found 3 values, expected 4"),
    ("a.csv", HEAD + "L1,110,5,220,5,-30,5\n", "line 2: found 7 values, expected 4"),
    ("a.csv", HEAD + 'L1,"110,5",220,-30\n', "line 2: found '110,5', expected a number, with a point"),
    ("a.csv", HEAD + "L1,,220,-30\n", "line 2: found '', expected a number"),
    ("a.csv", HEAD + "L1,nan,220,-30\n", "line 2: found 'nan', expected a number"),
    ("a.csv", HEAD + "L1,inf,220,-30\n", "line 2: found 'inf', expected a number"),
    ("a.csv", HEAD + "L1,1e400,220,-30\n", "line 2: found '1e400', expected a number"),
    ("a.csv", HEAD + "L1,110 mm,220,-30\n", "line 2: found '110 mm', expected a number"),
    ("a.csv", HEAD + f"L1,{MM}\nL7,{MM}\n", "line 3: found level 'L7', expected L1..L5"),
    ("a.csv", HEAD + f",{MM}\n", "line 2: found level '', expected L1..L5"),
    ("a.csv", HEAD + f"3,{MM}\n", "line 2: found level '3', expected L1..L5, VerSe's 20..24"),
    ("a.csv", HEAD + f"L1,{MM}\nL2,{MM}\n", "line 3: found L2 on the voxel that line 2 calls L1"),
    ("a.csv", HEAD + f"bg,{MM}\nL2,110.4,220,-30\n", "line 3: found L2 on the voxel that line 2 calls background"),
    ("a.csv", HEAD + "L1,98.9,220,-30\n", "line 2: found a click at 98.9, 220, -30 mm, 1 of 1 outside the scan"),
    ("a.csv", HEAD + "L1,110,220,1e9\n", "line 2: found a click at 110, 220, 1e+09 mm"),
    ("a.csv", HEAD + f"L1,{MM}\nL1,-110,-220,-30\n", "line 3: found a click at -110, -220, -30 mm, 1 of 2 outside"),
    ("a.csv", HEAD + "L1,-110,-220,-30\n", "all lie inside, so they may be RAS where LPS is expected"),
    ("a.csv", "level,x_mm,y_mm,z_mm,seconds\nL1,110,220,-30,soon\n", "line 2: found 'soon', expected a number"),
    ("a.csv", "level,x_mm,y_mm,z_mm,seconds\nL1,110,220,-30,-1\n", "line 2: found -1, expected no negative seconds"),
    ("a.csv", HEAD + f'"L1,{MM}\n', "line 2: found unexpected end of data, expected commas"),
    ("a.csv", "index,axis-0,axis-1,axis-2\n0,1,2,3\n", "line 1: found columns index, axis-0, axis-1, axis-2, expected"),
    ("a.csv", "index,axis-0,axis-1,level\n0,1,2,L1\n", "line 1: found columns index, axis-0, axis-1, level, expected"),
    ("a.csv", "index,axis-0,axis-1,axis-2,level\n0,25,2,3,L1\n", "line 2: found a click at 3, 2, 25 (voxel)"),
    ("a.csv", b"level,x_mm\xff\xfe", "cannot be read"),
    ("a.csv", HEAD.encode("utf-16"), "cannot be read"),
    ("a.txt", HEAD + f"L1,{MM}\n", "found a name that ends in .txt"),
    ("a.fcsv", f"# columns = id,x,y,z,label\np,{MM},L1\n", "found the coordinate system None, expected LPS or RAS"),
    ("a.fcsv", f"# CoordinateSystem = IJK\n# columns = id,x,y,z,label\np,{MM},L1\n", "the coordinate system 'IJK'"),
    ("a.fcsv", f"# CoordinateSystem = LPS\n# columns = id,x,y,label\np,{MM},L1\n", "expected z among them"),
    ("a.fcsv", FCSV + "p,110,220\n", "line 3: found 3 values, expected 5"),
    ("a.fcsv", FCSV + "p,110,220,x,L1\n", "line 3: found 'x', expected a number"),
    ("a.fcsv", FCSV + f"p,{MM},F-1\n", "line 3: found level 'F-1', expected L1..L5"),
    ("a.fcsv", FCSV, "found no click"),
    ("a.mrk.json", markups()[:-9], "is no whole JSON file"),
    ("a.mrk.json", "[" * 100_000, "is no whole JSON file"),
    ("a.mrk.json", markups(controlPoints=[POINT | {"position": "110 220 -30"}]), "control point 1: found position 110"),
    ("a.json", verse({"label": 20, "X": 1, "Y": True, "Z": 3}), "centroid 1: found 'True', expected a number"),
    ("a.csv", "sep=;\n" + HEAD + f"L1,{MM}\n", "line 1: found columns level,x_mm"),
    ("a.csv", "sep=x\n" + HEAD + f"L1,{MM}\n", "line 1: found columns sep=x"),
    ("a.mrk.json", "{}", "found JSON of another kind (KeyError: 'markups')"),
    ("a.mrk.json", "7", "found JSON of another kind"),
    ("a.mrk.json", "[]", "found JSON of another kind"),
    ("a.mrk.json", markups(coordinateSystem="XYZ"), "found the coordinate system 'XYZ', expected LPS or RAS"),
    ("a.mrk.json", markups(coordinateUnits="cm"), "found coordinates in cm, expected mm"),
    ("a.mrk.json", markups(controlPoints=[]), "found no click"),
    ("a.mrk.json", markups(controlPoints=[POINT | {"position": [1, 2]}]), "control point 1: found position [1, 2]"),
    ("a.mrk.json", markups(controlPoints=[POINT | {"position": [1, None, 2]}]), "control point 1: found 'None'"),
    ("a.mrk.json", markups(controlPoints=[POINT, POINT | {"label": "F-1"}]), "control point 2: found level 'F-1'"),
    ("a.mrk.json", markups(controlPoints=None), "found JSON of another kind"),
    ("a.json", verse(direction=("P", "I")), "direction: found P, I, expected three letters"),
    ("a.json", verse(direction=("P", "A", "R")), "direction: found P, A, R, expected three letters"),
    ("a.json", verse({"label": 20, "X": 1, "Y": 2}), "found JSON of another kind (KeyError: 'Z')"),
    ("a.json", verse({"label": 20, "X": 1, "Y": 2, "Z": 20}), "centroid 1: found a click at"),
    ("a.json", verse({"label": 5, "X": 1, "Y": 2, "Z": 3}), "centroid 1: found level '5', expected L1..L5"),
]


@pytest.mark.parametrize(("name", "text", "said"), MALFORMED)
def test_what_is_wrong_gets_one_line(tmp_path, name, text, said):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ScanError) as error:
        read_clicks(path, GEOMETRY)
    message = str(error.value)
    assert message.startswith(str(path)) and said in message and "expected" in message and "\n" not in message


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(ScanError, match="expected"):
            read_clicks(path, GEOMETRY)


def test_twice_the_same_click_is_one_and_named(tmp_path):
    (tmp_path / "a.csv").write_text(HEAD + f"L1,{MM}\nL1,{MM}\n")
    read, doubts = read_clicks(tmp_path / "a.csv", GEOMETRY)
    assert len(read.values) == 1 and "line 3: the same click as line 2" in doubts[0]


def test_ten_thousand_clicks(tmp_path):
    geometry = Geometry((60, 60, 60), (1.0,) * 3, (0.0,) * 3, (1, 0, 0, 0, 1, 0, 0, 0, 1))
    places, values = clicks(geometry, np.random.default_rng(0), 10_000)
    unknown = np.full(len(values), np.nan)
    write_clicks(tmp_path / "a.csv", Clicks(places, values, unknown, unknown), geometry)
    assert np.array_equal(read_clicks(tmp_path / "a.csv", geometry)[0].places, places)


def test_a_level_far_out_of_order_is_a_doubt_and_a_bent_spine_is_none():
    places = np.array([[10 * k + d, 0, 0] for k in range(1, 6) for d in (0, 2, 4)])
    values = np.repeat(np.arange(1, 6), 3).astype(np.uint8)
    assert list(out_of_order(places, values)) == []
    overlapping = places.copy()
    overlapping[values == 5] -= 12  # L5 reaches as high as L4, not as L3
    assert list(out_of_order(overlapping, values)) == []
    wrong = places.copy()
    wrong[0, 0] = 52  # called L1, among L5
    assert [i for i, _ in out_of_order(wrong, values)] == [0]
    assert "L1 lies below L3" in next(out_of_order(wrong, values))[1]
    assert list(out_of_order(wrong[:1], np.array([BACKGROUND]))) == []
