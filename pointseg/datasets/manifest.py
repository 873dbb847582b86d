"""Dataset folders: a manifest.csv beside NIfTI files, and the split of its cases by patient."""

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np
import SimpleITK as sitk

from pointseg.scans.clicks import has_places
from pointseg.scans.files import found_at, rows_of, whole_file
from pointseg.scans.outlines import outlined
from pointseg.scans.reading import read_mask
from pointseg.scans.volumes import read_volume, span_of
from pointseg.volume import BACKGROUND, CLASSES, UNLABELLED, ScanError, Volume

MANIFEST = "manifest.csv"
COLUMNS = ("source", "case", "patient", "modality", "image", "mask", "mask_extent", "levels", "flaw")
FURTHER = ("part", "points", "labelled", "scheme")  # that few folders need: a published split, clicks, outlines, 0..5
PARTS = ("train", "validation", "test")
PART, POINTS, LABELLED, SCHEME = FURTHER
REQUIRED = ("source", "case", "patient", "image")  # and mask or points
CENTROIDS = "centroids"  # mask_extent of cases that know a small ball in each vertebra, and next to no background
NAMELESS = "vertebra"  # levels of cases whose vertebrae have no known level


@dataclass(frozen=True)
class Case:
    """One row of the manifest: a scan and what is known of it, a mask, an expert's clicks, or both."""

    source: str
    case: str
    patient: str
    modality: str
    image: Path
    mask: Path | None
    mask_extent: str = ""
    levels: tuple[str, ...] = ()
    flaw: str = ""
    part: str = ""  # of the split that the source publishes: "train", "validation", "test" or "" for none
    points: Path | None = None  # a file of clicks: see `scans.clicks`
    labelled: str = ""  # which slices the mask tells all of, where not of every one: see `scans.outlines`
    scheme: str = ""  # of the mask's values: "classes" for 0..5, as `pointseg segment` writes them, else VerSe's

    @property
    def name(self) -> str:
        return f"{self.source}/{self.case}"

    @property
    def files(self) -> list[Path]:
        return [path for path in (self.image, self.mask, self.points) if path]

    @property
    def names_levels(self) -> bool:
        """Whether the mask tells L1 from L2.  Without that a case can serve models of two classes alone."""
        return NAMELESS not in self.levels

    @property
    def is_checked(self) -> bool:
        """Whether a prediction of it can be scored: by a mask, or at places that chance has chosen."""
        return self.mask is not None or has_places(self.points)

    def read(self) -> Volume:
        """The scan and what is known of it: its mask must show a lumbar vertebra, or there is nothing to learn."""
        scheme = "vertebra" if not self.names_levels else "classes" if self.scheme == "classes" else "dataset"
        volume = read_volume(self.image, self.mask, name=self.name, modality=self.modality, scheme=scheme,
                             clicks_path=self.points)
        if self.mask and self.labelled:
            volume = outlined(volume, self.labelled, self.mask)
        if self.mask and not ((volume.mask != BACKGROUND) & (volume.mask != UNLABELLED)).any():
            values = set(np.unique(sitk.GetArrayFromImage(read_mask(self.mask).image)).astype(int).tolist())
            hint = "check the file"
            if scheme == "dataset" and values & {*range(1, len(CLASSES))} and max(values - {UNLABELLED}) < len(CLASSES):
                hint = (f"if 1..5 are L1..L5, as segment writes without --verse, say classes in a column {SCHEME} of "
                        f"the {MANIFEST}")
            raise ScanError(f"{self.mask}: found no voxel of L1..L5 among its values {span_of(values)}, expected at "
                            f"least one; {hint}, or remove {self.name} from the {MANIFEST}")
        return volume


def read_manifest(folder: str | Path, sources: Sequence[str] = ()) -> list[Case]:
    """The cases of a dataset folder in manifest order; `sources` keeps only these."""
    manifest = Path(folder) / MANIFEST
    if not manifest.is_file():
        found = f"no {MANIFEST} in this folder" if Path(folder).is_dir() else found_at(folder)
        raise ScanError(f"{folder}: {found}, expected a dataset folder; check the path, or write one "
                        "as data/README.md says")
    _, rows = read_rows(folder)
    cases = [_case(manifest, line, row) for line, row in rows]
    if not cases:
        raise ScanError(f"{manifest}: found no case, expected one a line; add some")
    _refuse_duplicates(manifest, cases)
    known = sorted({c.source for c in cases})
    if unknown := sorted(set(sources) - set(known)):
        raise ScanError(f"{manifest}: found no source {', '.join(unknown)}, expected one of {', '.join(known)}; "
                        "choose among these")
    chosen = [c for c in cases if not sources or c.source in sources]
    for case in chosen:
        for path in case.files:
            if not path.exists():
                raise ScanError(f"{path}: no such file, but {MANIFEST} names it for {case.name}; "
                                "restore the file or remove the line")
    return chosen


def read_rows(folder: str | Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns of a folder's manifest and its rows, each with the number of its line; none where it is missing."""
    manifest = Path(folder) / MANIFEST
    if not manifest.exists():
        return [], []
    try:
        text = manifest.read_bytes().decode("utf-8-sig")  # -sig: spreadsheets write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise ScanError(f"{manifest}: cannot be read ({error}), expected UTF-8 text; save it as CSV again") from None
    (_, names), *found = [*rows_of(manifest, text)] or [(1, [])]
    columns = [name.casefold() if name.casefold() in (*COLUMNS, *FURTHER) else name for name in names]
    if twice := sorted({name for name in columns if name and columns.count(name) > 1}):
        raise ScanError(f"{manifest}: found several columns {', '.join(twice)}, expected each once; remove "
                        "one")
    if missing := [c for c in REQUIRED if c not in columns]:
        raise ScanError(f"{manifest}: found columns {', '.join(columns) or 'none'}, missing {', '.join(missing)}; "
                        "add them to the first line")
    if long := [line for line, values in found if any(values[len(columns):])]:
        raise ScanError(f"{manifest}, line {long[0]}: found more values than columns, expected {len(columns)}; put "
                        "quotes around a value with commas in it")
    return columns, [(line, dict(zip(columns, values))) for line, values in found]


def earlier_cases(folder: str | Path, source: str) -> set[str]:
    """The cases of a source that a folder's manifest names, be their files there or not."""
    return {row.get("case", "") for _, row in read_rows(folder)[1] if row.get("source") == source}


def add_to_manifest(folder: str | Path, cases: Sequence[Case]) -> None:
    """Add cases to a folder's manifest, or write one; what it holds already stays, with columns of its own.

    A case of the same source and name is replaced.
    """
    columns, rows = read_rows(folder)
    new = {(c.source, c.case) for c in cases}
    old = [row for _, row in rows if (row.get("source"), row.get("case")) not in new]
    columns += [c for c in _columns(cases) if c not in columns]
    every = [*old, *(_row(folder, c) for c in cases)]
    every.sort(key=lambda row: (row.get("source", ""), row.get("case", "")))
    _write_rows(Path(folder), columns, every)


def write_manifest(folder: str | Path, cases: Iterable[Case]) -> None:
    """Write manifest.csv with paths relative to the folder, atomically."""
    cases = list(cases)
    _write_rows(Path(folder), _columns(cases), [_row(folder, c) for c in cases])


def _columns(cases: Sequence[Case]) -> tuple[str, ...]:
    return (*COLUMNS, *(column for column in FURTHER if any(getattr(c, column) for c in cases)))


def _row(folder: str | Path, case: Case) -> dict[str, str]:
    inside = {path: Path(os.path.relpath(path, folder)) for path in case.files}
    if outside := [str(path) for path, relative in inside.items() if ".." in relative.parts]:
        raise ScanError(f"{case.name}: found {' and '.join(outside)}, expected paths inside {folder}; "
                        "move the files there")
    image, mask, points = (inside[p].as_posix() if p else "" for p in (case.image, case.mask, case.points))
    values = (case.source, case.case, case.patient, case.modality, image, mask, case.mask_extent,
              " ".join(case.levels), case.flaw, case.part, points, case.labelled, case.scheme)
    return dict(zip((*COLUMNS, *FURTHER), values, strict=True))


def _write_rows(folder: Path, columns: Sequence[str], rows: Iterable[dict[str, str]]) -> None:
    with whole_file(folder / MANIFEST) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _case(manifest: Path, line: int, row: dict[str, str]) -> Case:
    get = {column: row.get(column, "") for column in (*COLUMNS, *FURTHER)}
    for column, word in (("mask_extent", CENTROIDS), ("levels", NAMELESS)):
        get[column] = word if get[column].casefold() == word else get[column]
    for column in REQUIRED:
        if not get[column]:
            raise ScanError(f"{manifest}, line {line}: {column} is empty, expected a value; fill it in")
    if not get["mask"] and not get[POINTS]:
        raise ScanError(f"{manifest}, line {line}: mask and points are empty, expected one of them; fill it in")
    for column in ("image", "mask", POINTS):
        path = Path(get[column].replace("\\", "/"))  # as Windows writes it
        get[column] = str(path) if get[column] else ""
        if path.is_absolute() or PureWindowsPath(path).drive or ".." in path.parts:
            raise ScanError(f"{manifest}, line {line}: {column} is {path}, expected a path inside the folder; "
                            "move the file there")
    modality = get["modality"].upper()[:2]  # MRI is MR
    if modality not in ("CT", "MR", ""):
        raise ScanError(f"{manifest}, line {line}: modality is {get['modality']}, expected CT, MR or nothing; "
                        "correct it")
    if "/" in get["source"]:
        raise ScanError(f"{manifest}, line {line}: source is {get['source']}, expected a name without /; rename it")
    if get[PART] not in (*PARTS, ""):
        raise ScanError(f"{manifest}, line {line}: {PART} is {get[PART]}, expected {', '.join(PARTS)} or nothing; "
                        "correct it")
    if get[SCHEME] not in ("", "verse", "classes"):
        raise ScanError(f"{manifest}, line {line}: {SCHEME} is {get[SCHEME]}, expected verse (20..24 are L1..L5), "
                        "classes (1..5 are) or nothing; correct it")
    image, mask, points = (manifest.parent / get[c] if get[c] else None for c in ("image", "mask", POINTS))
    return Case(get["source"], get["case"], get["patient"], modality, image, mask, get["mask_extent"],
                tuple(get["levels"].split()), get["flaw"], get[PART], points, get[LABELLED], get[SCHEME])


def _refuse_duplicates(manifest: Path, cases: Sequence[Case]) -> None:
    seen: set[str] = set()
    for case in cases:
        if case.name in seen:
            raise ScanError(f"{manifest}: found {case.name} twice, expected each source and case once; remove one line")
        seen.add(case.name)
