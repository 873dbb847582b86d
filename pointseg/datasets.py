"""Dataset folders: a manifest.csv beside NIfTI files, and the split of its cases by patient."""

import csv
import itertools
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pointseg.files import ScanError, whole_file
from pointseg.volume import BACKGROUND, UNLABELLED, Volume, read_volume

MANIFEST = "manifest.csv"
COLUMNS = ("source", "case", "patient", "modality", "image", "mask", "mask_extent", "levels", "flaw")
PART = "part"  # a further column, where a source publishes its split
REQUIRED = ("source", "case", "patient", "image", "mask")
PARTS = ("train", "validation", "test")
CENTROIDS = "centroids"  # mask_extent of cases that know a small ball in each vertebra, and next to no background
NAMELESS = "vertebra"  # levels of cases whose vertebrae have no known level
SIXTHS = (4, 1, 1)  # of the patients, for training, test, validation: the order in which a tie is settled


@dataclass(frozen=True)
class Case:
    """One row of the manifest: a scan and its mask."""

    source: str
    case: str
    patient: str
    modality: str
    image: Path
    mask: Path
    mask_extent: str = ""
    levels: tuple[str, ...] = ()
    flaw: str = ""
    part: str = ""  # of the split that the source publishes: "train", "validation", "test" or "" for none

    @property
    def name(self) -> str:
        return f"{self.source}/{self.case}"

    @property
    def names_levels(self) -> bool:
        """Whether the mask tells L1 from L2.  Without that a case can serve models of two classes alone."""
        return NAMELESS not in self.levels

    def read(self) -> Volume:
        """The scan and its mask, which must show a lumbar vertebra: without one there is nothing to learn or score."""
        volume = read_volume(self.image, self.mask, name=self.name, modality=self.modality,
                             scheme="dataset" if self.names_levels else "vertebra")
        if not ((volume.mask != BACKGROUND) & (volume.mask != UNLABELLED)).any():
            raise ScanError(f"{self.mask}: found no voxel of L1..L5, expected at least one; "
                            f"check the file, or remove {self.name} from the {MANIFEST}")
        return volume


@dataclass(frozen=True)
class Split:
    """Cases of disjoint sets of patients."""

    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]


def read_manifest(folder: str | Path, sources: Sequence[str] = ()) -> list[Case]:
    """The cases of a dataset folder in manifest order; `sources` keeps only these."""
    manifest = Path(folder) / MANIFEST
    if not manifest.is_file():
        found = "no such folder" if not Path(folder).is_dir() else f"no {MANIFEST} in this folder"
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
        for path in (case.image, case.mask):
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
        with open(manifest, newline="", encoding="utf-8-sig") as file:  # -sig: spreadsheets write a byte order mark
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ScanError(f"{manifest}: cannot be read ({error}), expected UTF-8 text; save it as CSV again") from None
    if missing := [c for c in REQUIRED if c not in columns]:
        raise ScanError(f"{manifest}: found columns {', '.join(columns) or 'none'}, missing {', '.join(missing)}; "
                        "add them to the first line")
    return columns, rows


def earlier_cases(folder: str | Path, source: str) -> set[str]:
    """The cases of a source that a folder's manifest names, be their files there or not."""
    return {row["case"] for _, row in read_rows(folder)[1] if row["source"] == source}


def add_to_manifest(folder: str | Path, cases: Sequence[Case]) -> None:
    """Add cases to a folder's manifest, or write one; what it holds already stays, with columns of its own.

    A case of the same source and name is replaced.
    """
    columns, rows = read_rows(folder)
    new = {(c.source, c.case) for c in cases}
    old = [row for _, row in rows if (row.get("source"), row.get("case")) not in new]
    columns += [c for c in (*COLUMNS, *((PART,) if any(c.part for c in cases) else ())) if c not in columns]
    every = sorted([*old, *(_row(folder, c) for c in cases)], key=lambda row: (row["source"] or "", row["case"] or ""))
    _write_rows(Path(folder), columns, every)


def write_manifest(folder: str | Path, cases: Iterable[Case]) -> None:
    """Write manifest.csv with paths relative to the folder, atomically."""
    cases = list(cases)
    columns = (*COLUMNS, PART) if any(c.part for c in cases) else COLUMNS
    _write_rows(Path(folder), columns, [_row(folder, c) for c in cases])


def _row(folder: str | Path, case: Case) -> dict[str, str]:
    image, mask = (Path(os.path.relpath(path, folder)) for path in (case.image, case.mask))
    if ".." in image.parts + mask.parts:
        raise ScanError(f"{case.name}: found {case.image} and {case.mask}, expected paths inside {folder}; "
                        "move the files there")
    values = (case.source, case.case, case.patient, case.modality, image.as_posix(), mask.as_posix(), case.mask_extent,
              " ".join(case.levels), case.flaw, case.part)
    return dict(zip((*COLUMNS, PART), values, strict=True))


def _write_rows(folder: Path, columns: Sequence[str], rows: Iterable[dict[str, str]]) -> None:
    with whole_file(folder / MANIFEST) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def cases_with_levels(cases: Sequence[Case]) -> list[Case]:
    """Leave out cases whose vertebrae have no level, saying so: they can serve models of two classes alone."""
    named = [c for c in cases if c.names_levels]
    if nameless := len(cases) - len(named):
        sources = ", ".join(sorted({c.source for c in cases if not c.names_levels}))
        if not named:
            raise ScanError(f"{sources}: found no case that tells L1 from L2, expected some; such cases can serve "
                            "2-class models alone: train --axis transverse, and evaluate it")
        print(f"{nameless} of {len(cases)} cases ({sources}) do not tell L1 from L2 and are left out")
    return named


def split_cases(cases: Sequence[Case], seed: int = 0) -> Split:
    """Split 4/6, 1/6, 1/6 by patient, each source on its own.

    Depends on the seed and the set of cases, not on their order, and a source's split not on the other sources, with
    one exception: a part left empty in the end takes a patient from the largest.
    """
    patients = sorted({(c.source, c.patient) for c in cases})  # the same name in two sources is two people
    if len(patients) < 3:
        raise ScanError(f"found {len(patients)} patients, expected at least 3, one each for training, validation and "
                        "test; add scans of other patients")
    parts: list[list[tuple[str, str]]] = [[], [], []]
    for source in sorted({source for source, _ in patients}):
        rest = [p for p in patients if p[0] == source]
        random.Random(f"{seed} {source}").shuffle(rest)  # seeded by text: alike on every machine, unlike hash()
        for part, count in zip(parts, largest_remainder(len(rest), SIXTHS)):
            part.extend(rest[:count])
            del rest[:count]
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    train, test, validation = (tuple(sorted((c for c in cases if (c.source, c.patient) in part), key=lambda c: c.name))
                               for part in parts)
    return Split(train, validation, test)


def published_split(cases: Sequence[Case]) -> Split:
    """The split that the sources publish, which the manifest's column "part" holds."""
    if without := [c.name for c in cases if not c.part]:
        raise ScanError(f"found {len(without)} of {len(cases)} cases without a published part ({', '.join(without[:3])}"
                        f"{', ...' if len(without) > 3 else ''}), expected one for each; take only sources that "
                        "publish their split, or leave out --published-split")
    parts = [tuple(sorted((c for c in cases if c.part == part), key=lambda c: c.name)) for part in PARTS]
    if empty := [part for part, chosen in zip(PARTS, parts, strict=True) if not chosen]:
        raise ScanError(f"found no case in the published {' and '.join(empty)} part, expected one in each; "
                        "add the rest of the dataset, or leave out --published-split")
    for a, b in itertools.combinations(parts, 2):
        if both := {(c.source, c.patient) for c in a} & {(c.source, c.patient) for c in b}:
            raise ScanError(f"found patients in two parts of the published split ({', '.join(p for _, p in both)}), "
                            "expected each in one; correct the manifest, or leave out --published-split")
    return Split(*parts)


def largest_remainder(total: int, weights: Sequence[int]) -> list[int]:
    """Whole numbers that sum to `total` in proportion to the weights: the floors, then one more to each of the largest
    remainders, ties to the first.  3 by (4, 1, 1) is 2, 1/2, 1/2, so [2, 1, 0]."""
    counts = [total * w // sum(weights) for w in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: -(total * weights[i] % sum(weights)))
    for i in by_remainder[:total - sum(counts)]:
        counts[i] += 1
    return counts


def _case(manifest: Path, line: int, row: dict[str, str | None]) -> Case:
    get = {column: (row.get(column) or "").strip() for column in (*COLUMNS, PART)}
    for column in REQUIRED:
        if not get[column]:
            raise ScanError(f"{manifest}, line {line}: {column} is empty, expected a value; fill it in")
    for column in ("image", "mask"):
        path = Path(get[column])
        if path.is_absolute() or ".." in path.parts:
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
    return Case(get["source"], get["case"], get["patient"], modality, manifest.parent / get["image"],
                manifest.parent / get["mask"], get["mask_extent"], tuple(get["levels"].split()), get["flaw"], get[PART])


def _refuse_duplicates(manifest: Path, cases: Sequence[Case]) -> None:
    seen: set[str] = set()
    for case in cases:
        if case.name in seen:
            raise ScanError(f"{manifest}: found {case.name} twice, expected each source and case once; remove one line")
        seen.add(case.name)
