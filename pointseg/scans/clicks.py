"""Clicks of an expert on disk <-> labelled voxels of a scan, by physical position.

    .csv            level, x_mm, y_mm, z_mm in patient space (LPS); slice and seconds where known; stands_for_mm3 of
                    places that chance has chosen: our own
    .csv            index, axis-0, axis-1, axis-2 and level or label: napari's, voxels of the array as stored (z, y, x)
    .mrk.json .fcsv 3D Slicer's markups, LPS or RAS as the file says
    .json           VerSe's centroids, voxels in the axes that the file names

A level is written as people do: L1, l1, L1-2 (a second click), vert_L1, VerSe's 20; bg, background or 0.  Other
vertebrae by name or VerSe's number are background, as in masks.
"""

import csv
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointseg.scans.files import first_line, rows_of, whole_file, write_json
from pointseg.volume import BACKGROUND, CLASSES, Clicks, Geometry, ScanError

COLUMNS = ("level", "x_mm", "y_mm", "z_mm", "slice", "seconds", "stands_for_mm3")
NAPARI = ("axis-0", "axis-1", "axis-2")
WRITTEN = (".csv", ".mrk.json", ".fcsv", ".json")
EXPECTED_LEVEL = "L1..L5, VerSe's 20..24, or bg"
VERSE_L1 = 20  # VerSe: 1..7 = C1..C7, 8..19 = T1..T12, 20..25 = L1..L6, 26 sacrum, 27 coccyx, 28 = T13
OTHERS = {f"{letter}{n}" for letter, count in (("C", 7), ("T", 13), ("S", 5)) for n in range(1, count + 1)} | {"L6"}
LPS_OF = {"LPS": (1, 1, 1), "RAS": (-1, -1, 1), "1": (1, 1, 1), "0": (-1, -1, 1)}  # by name and by Slicer's old number
OPPOSITE = dict(zip("LRPAIS", "RLAPSI", strict=True))


@dataclass(frozen=True)
class _Point:
    """One row of a file: a class, and a place in patient space (LPS, mm) or as a stored index (x, y, z)."""

    row: str
    value: int
    place: tuple[float, float, float]
    seconds: float = math.nan
    stands_for_mm3: float = math.nan


def read_clicks(path: str | Path, geometry: Geometry) -> tuple[Clicks, list[str]]:
    """The clicks in a file, as voxels of the scan with this geometry, the nearest to each; and what looks wrong in it,
    but may be right.

    An unknown level, a place outside the scan or two classes on one voxel are refused: nothing is moved to fit.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ScanError(f"{path}: cannot be read ({error}), expected clicks as UTF-8 text; save it again") from None
    if path.suffix.lower() == ".json":
        points, in_mm = _from_json(path, text, geometry)
    elif path.suffix.lower() == ".fcsv":
        points, in_mm = _from_fcsv(path, text), True
    elif path.suffix.lower() == ".csv":
        points, in_mm = _from_csv(path, text)
    else:
        raise ScanError(f"{path}: found a name that ends in {path.suffix or 'nothing'}, expected clicks in a file that "
                        f"ends in {', '.join(WRITTEN)}; export them in one of these formats")
    if not points:
        raise ScanError(f"{path}: found no click, expected at least one; label the scan, or remove the file")
    places = np.array([p.place for p in points], float)
    index = geometry.to_index(places) if in_mm else places
    _refuse_outside(path, points, index, places if in_mm else None, geometry)
    stored = np.clip(np.rint(index), 0, np.array(geometry.size) - 1).astype(np.int64)
    return _without_twins(path, points, canonical_of(stored, geometry))


def has_places(path: Path) -> bool:
    """Whether a file of clicks tells classes of places that chance has chosen.   `read_clicks` names what is wrong."""
    try:
        (_, names), *rows = rows_of(path, path.read_text(encoding="utf-8-sig"))
        at = [name.casefold() for name in names].index(COLUMNS[-1])
    except (OSError, ValueError):  # no text, no table, no such column
        return False
    return any("".join(cells[at:at + 1]) for _, cells in rows)


def join(read: Sequence[tuple[Clicks, list[str]]], paths: Sequence[Path]) -> tuple[Clicks, list[str]]:
    """The clicks of several files of one scan; two classes on one voxel are refused here, too."""
    of: dict[tuple[int, ...], tuple[Path, int]] = {}
    for path, (clicks, _) in zip(paths, read, strict=True):
        for place, value in zip(map(tuple, clicks.places.tolist()), clicks.values.tolist(), strict=True):
            other, known = of.setdefault(place, (path, value))
            if known != value:
                raise ScanError(f"{path}: found {CLASSES[value]} on a voxel that {other} calls {CLASSES[known]}, "
                                "expected one of them; remove the other")
    joined = Clicks(*(np.concatenate([vars(clicks)[name] for clicks, _ in read]) for name in vars(read[0][0])))
    return joined, [doubt for _, doubts in read for doubt in doubts]


def canonical_of(stored_xyz: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Stored voxel indices (N, 3), x y z -> those of the canonical array (N, 3), z y x."""
    order, flips = geometry.axes
    places = stored_xyz[:, ::-1][:, list(order)]
    for axis in flips:
        places[:, axis] = geometry.shape_zyx[axis] - 1 - places[:, axis]
    return places


def stored_of(places: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The inverse of `canonical_of`."""
    order, flips = geometry.axes
    turned = np.array(places, np.int64)
    for axis in flips:
        turned[:, axis] = geometry.shape_zyx[axis] - 1 - turned[:, axis]
    return turned[:, np.argsort(order)][:, ::-1]


def write_clicks(path: str | Path, clicks: Clicks, geometry: Geometry) -> None:
    """Write clicks in the format that the name ends in, whole or not at all.   `read_clicks` finds the same voxels.

    Seconds, and what places stand for, are kept in our own format alone.
    """
    path, stored, values = Path(path), stored_of(clicks.places, geometry), clicks.values
    mm, names = geometry.to_mm(stored), ["bg" if v == BACKGROUND else CLASSES[v] for v in values]
    if path.name.lower().endswith(".mrk.json"):
        counts = {name: itertools.count(1) for name in names}
        labels = [f"{name}-{next(counts[name])}" for name in names]
        write_json(path, {"markups": [{
            "type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": [
                {"id": str(i), "label": label, "position": place.tolist(), "positionStatus": "defined"}
                for i, (label, place) in enumerate(zip(labels, mm, strict=True), 1)]}]})
    elif path.suffix.lower() == ".json":
        if BACKGROUND in values:
            raise ScanError(f"{path}: cannot hold background clicks, as VerSe's centroids; write .csv, .mrk.json or "
                            ".fcsv")
        write_json(path, [{"direction": list(geometry.orientation)}, *(
            {"label": int(v) + VERSE_L1 - 1, "X": float(x), "Y": float(y), "Z": float(z)}
            for v, (x, y, z) in zip(values, stored, strict=True))])
    elif path.suffix.lower() == ".fcsv":
        rows = [(f"p{i}", *(f"{c:.4f}" for c in place), 0, 0, 0, 1, 1, 1, 0, name, "", "")
                for i, (name, place) in enumerate(zip(names, mm, strict=True), 1)]
        _write_csv(path, rows, "# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n"
                   "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n")
    elif path.suffix.lower() == ".csv":
        known = [["" if math.isnan(x) else f"{x:.6g}" for x in of] for of in (clicks.seconds, clicks.stands_for_mm3)]
        _write_csv(path, [COLUMNS, *((name, *(f"{c:.4f}" for c in place), int(x), *further) for name, place, x, *further
                                     in zip(names, mm, clicks.places[:, 2], *known, strict=True))])
    else:
        raise ScanError(f"{path}: cannot be written in this format, expected a name that ends in "
                        f"{', '.join(WRITTEN)}; choose one of these")


def _write_csv(path: Path, rows: Sequence[Sequence], before: str = "") -> None:
    with whole_file(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        file.write(before)
        csv.writer(file, lineterminator="\n").writerows(rows)


def class_of(text: str) -> int | None:
    """The class of a level as people write it; None where that is no level."""
    name = re.sub(r"^(vertebrae|vertebra|vert)[\s_-]*", "", text.strip().casefold())
    name = re.sub(r"(?<=[a-z]\d)([\s_-]+\d+)$|(?<=bg|nd)([\s_-]+\d+)$", "", name).upper()
    if name in ("BG", "BACKGROUND", "0"):
        return BACKGROUND
    if name in CLASSES[1:]:
        return CLASSES.index(name)
    if name in OTHERS:
        return BACKGROUND
    if re.fullmatch(r"\d+(\.0+)?", name) and 8 <= float(name) <= 28:  # 1..7 may be VerSe's neck, or classes
        level = int(float(name)) - VERSE_L1 + 1
        return level if 1 <= level < len(CLASSES) else BACKGROUND
    return None


def _point(path: Path, row: str, level: str, place: Sequence[object], *further: str) -> _Point:
    value = class_of(level)
    if value is None:
        raise ScanError(f"{path}, {row}: found level {level!r}, expected {EXPECTED_LEVEL}")
    known = [_number(path, row, text) if text else math.nan for text in further]
    if any(x < 0 for x in known):
        raise ScanError(f"{path}, {row}: found {min(known):g}, expected no negative seconds or mm3")
    return _Point(row, value, tuple(_number(path, row, c) for c in place), *known)


def _number(path: Path, row: str, text: object) -> float:
    try:
        number = float(str(text).strip())
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ScanError(f"{path}, {row}: found {str(text)!r}, expected a number, with a point for decimals")
    return number


def _from_csv(path: Path, text: str) -> tuple[list[_Point], bool]:
    rows = [(f"line {number}", cells) for number, cells in rows_of(path, text)]
    header = [name.casefold() for name in rows[0][1]] if rows else []
    ours = set(COLUMNS[:4]) <= set(header)
    level = next((name for name in ("level", "label") if name in header), None)
    if not ours and not (set(NAPARI) <= set(header) and level):
        raise ScanError(f"{path}, line 1: found columns {', '.join(header) or 'none'}, expected "
                        f"{', '.join(COLUMNS[:4])} with commas between them, or napari's index, axis-0, axis-1, axis-2 "
                        "and level")
    if len(set(header)) < len(header):
        raise ScanError(f"{path}, line 1: found columns {', '.join(header)}, expected each once")
    points = []
    for row, cells in rows[1:]:
        if len(cells) != len(header):
            raise ScanError(f"{path}, {row}: found {len(cells)} values, expected {len(header)}, one for each column")
        get = dict(zip(header, cells, strict=True))
        place = [get[name] for name in (COLUMNS[1:4] if ours else NAPARI[::-1])]
        points.append(_point(path, row, get["level" if ours else level], place, get.get("seconds", ""),
                             get.get("stands_for_mm3", "")))
    return points, ours


def _from_fcsv(path: Path, text: str) -> list[_Point]:
    head = dict(re.findall(r"^#\s*(\w+)\s*=\s*(.*?)\s*$", text, re.M))
    signs = _signs(path, "line 2", head.get("CoordinateSystem"))
    columns = [name.strip() for name in head.get("columns", "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label").split(",")]
    if missing := {"x", "y", "z", "label"} - set(columns):
        raise ScanError(f"{path}: found columns {', '.join(columns)}, expected {', '.join(sorted(missing))} among them")
    points = []
    for number, cells in rows_of(path, text):
        row = f"line {number}"
        if cells[0].startswith("#"):
            continue
        if len(cells) < max(columns.index(name) for name in ("x", "y", "z", "label")) + 1:
            raise ScanError(f"{path}, {row}: found {len(cells)} values, expected {len(columns)}, one for each column")
        get = dict(zip(columns, cells))
        point = _point(path, row, get["label"], [get[c] for c in "xyz"])
        points.append(_Point(row, point.value, tuple(np.multiply(signs, point.place))))
    return points


def _signs(path: Path, row: str, system: object) -> tuple[int, int, int]:
    if str(system) not in LPS_OF:
        raise ScanError(f"{path}, {row}: found the coordinate system {system!r}, expected LPS or RAS; export it again "
                        "from 3D Slicer")
    return LPS_OF[str(system)]


def _from_json(path: Path, text: str, geometry: Geometry) -> tuple[list[_Point], bool]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ScanError(f"{path}: is no whole JSON file ({error}), expected 3D Slicer's markups or VerSe's centroids; "
                        "export it again") from None
    try:
        if isinstance(content, list):
            return _from_verse(path, content, geometry), False
        return [point for markup in content["markups"] for point in _from_markup(path, markup)], True
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ScanError(f"{path}: found JSON of another kind ({type(error).__name__}: {first_line(error)}), expected "
                        "3D Slicer's markups or VerSe's centroids; export it again") from None


def _from_markup(path: Path, markup: dict) -> Iterator[_Point]:
    signs = _signs(path, "markups", markup.get("coordinateSystem"))
    if (unit := markup.get("coordinateUnits", "mm")) not in ("mm", ["mm"] * 3):
        raise ScanError(f"{path}, markups: found coordinates in {unit}, expected mm; export it again")
    for number, point in enumerate(markup["controlPoints"], 1):
        if point.get("positionStatus", "defined") == "defined":
            row = f"control point {number}"
            if not isinstance(place := point.get("position"), list) or len(place) != 3:
                raise ScanError(f"{path}, {row}: found position {place}, expected three numbers")
            found = _point(path, row, str(point.get("label", "")), place)
            yield _Point(row, found.value, tuple(np.multiply(signs, found.place)))


def _from_verse(path: Path, content: list, geometry: Geometry) -> list[_Point]:
    """Voxels along the axes of `direction`: of each its letter, or the opposite one, is that of a stored axis."""
    direction = [str(letter).upper() for letter in content[0]["direction"]]
    own = list(geometry.orientation)
    axes = [{**{letter: i}, **{OPPOSITE[letter]: i}} for i, letter in enumerate(own)]
    at = [next((d for d, letter in enumerate(direction) if letter in axis), None) for axis in axes]
    if sorted(a for a in at if a is not None) != [0, 1, 2] or len(direction) != 3:
        raise ScanError(f"{path}, direction: found {', '.join(direction)}, expected three letters such as P, I, R")
    points = []
    for number, entry in enumerate(content[1:], 1):
        row = f"centroid {number}"
        found = _point(path, row, str(entry["label"]), [entry[c] for c in "XYZ"])
        place = [found.place[d] for d in at]
        place = [p if direction[d] == letter else n - 1 - p for p, d, letter, n in
                 zip(place, at, own, geometry.size, strict=True)]
        points.append(_Point(row, found.value, tuple(place)))
    return points


def _refuse_outside(path: Path, points: Sequence[_Point], index: np.ndarray, mm: np.ndarray | None,
                    geometry: Geometry) -> None:
    def outside(index: np.ndarray) -> np.ndarray:
        return ((index < -0.5) | (index > np.array(geometry.size) - 0.5)).any(1)

    out = np.flatnonzero(outside(index))
    if not len(out):
        return
    where = ", ".join(f"{c:g}" for c in points[out[0]].place)
    hint = "check that the file is of this scan"
    if mm is not None and not outside(geometry.to_index(mm * (-1, -1, 1))).any():
        hint = "with x and y of the other sign all lie inside, so they may be RAS where LPS is expected"
    raise ScanError(f"{path}, {points[out[0]].row}: found a click at {where} {'mm' if mm is not None else '(voxel)'}, "
                    f"{len(out)} of {len(points)} outside the scan, expected all inside its {geometry}; {hint}")


def _without_twins(path: Path, points: Sequence[_Point], places: np.ndarray) -> tuple[Clicks, list[str]]:
    """Two classes on one voxel are refused; the same click twice is one, and named."""
    seen: dict[tuple[int, ...], _Point] = {}
    kept, doubts = [], []
    for i, (point, place) in enumerate(zip(points, map(tuple, places.tolist()), strict=True)):
        if other := seen.get(place):
            if other.value != point.value:
                raise ScanError(f"{path}, {point.row}: found {CLASSES[point.value]} on the voxel that {other.row} "
                                f"calls {CLASSES[other.value]}, expected one of them; remove the other")
            if math.isnan(point.stands_for_mm3):  # chance may choose a place twice
                doubts.append(f"{path}, {point.row}: the same click as {other.row}, taken once")
                continue
        seen[place] = point
        kept.append(i)
    of_kept = [points[i] for i in kept]
    clicks = Clicks(places[kept].astype(np.int32), np.array([p.value for p in of_kept], np.uint8),
                    np.array([p.seconds for p in of_kept]), np.array([p.stands_for_mm3 for p in of_kept]))
    doubts += [f"{path}, {of_kept[i].row}: {why}" for i, why in out_of_order(clicks.places, clicks.values)]
    return clicks, doubts


def out_of_order(places: np.ndarray, values: np.ndarray) -> Iterator[tuple[int, str]]:
    """Clicks on the wrong side of another level's middle: the number of each, and what is odd.

    places (N, 3), z from head to foot.  Neighbours may overlap, where a spine is bent, so levels apart are compared.
    """
    middles = {k: np.median(places[values == k, 0]) for k in range(1, len(CLASSES)) if (values == k).any()}
    for i, (place, k) in enumerate(zip(places, values, strict=True)):
        for other, middle in middles.items():
            if k != BACKGROUND and abs(int(k) - other) > 1 and (int(k) - other) * (place[0] - middle) < 0:
                below = "below" if place[0] > middle else "above"
                yield i, f"{CLASSES[k]} lies {below} {CLASSES[other]}, expected the other way round"
                break
