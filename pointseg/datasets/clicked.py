"""Scans and the files that an expert has clicked in -> a dataset folder; and simulated clicks -> such files."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from pointseg.datasets.manifest import Case, add_to_manifest
from pointseg.points import Care, draw_clicks
from pointseg.scans.clicks import WRITTEN, join, read_clicks, write_clicks
from pointseg.scans.files import check_folder, found_at, some_of
from pointseg.scans.volumes import read_volume, stem, write_volume
from pointseg.volume import BACKGROUND, CLASSES, ScanError


def files_by_scan(files: Sequence[Path], scans: Sequence[Path]) -> dict[Path, list[Path]]:
    """The scan that each file of clicks belongs to: its name begins with the scan's, without endings; the longest."""
    names = {scan: stem(scan) if scan.is_file() else scan.resolve().name for scan in scans}
    found: dict[Path, list[Path]] = {}
    for file in files:
        mine = [scan for scan, name in names.items() if re.match(rf"{re.escape(name)}(?![^\W_])", file.name)]
        longest = [s for s in mine if len(names[s]) == max(len(names[m]) for m in mine)]
        if len(longest) != 1:
            raise ScanError(f"{file}: found {len(longest) or 'no'} scans whose name it begins with, expected one of "
                            f"{', '.join(sorted(names.values())[:5])}{', ...' if len(names) > 5 else ''}; rename it")
        found.setdefault(longest[0], []).append(file)
    return found


def import_points(files: Sequence[Path], scans: Sequence[Path], out: Path, source: str = "clicked",
                  patient: str = "") -> list[str]:
    """Write a dataset folder of scans with clicks, or add to one.   -> what there is to tell, a line each

    patient: a regular expression whose first group, in the scan's name, names the patient; else each scan is one.
    All is read before anything is written into the manifest.
    """
    check_folder(out)
    if missing := [file for file in files if not file.is_file()]:
        raise ScanError(f"{missing[0]}: {found_at(missing[0], 'file')}, expected a file of clicks; check the path")
    cases, told = [], []
    for scan, of_scan in tqdm(files_by_scan(files, scans).items(), "reading clicks", unit="scan"):
        volume = read_volume(scan)
        case = stem(scan) if scan.is_file() else scan.resolve().name
        person = re.search(patient, case) if patient else None
        if patient and not (person and person[1]):
            raise ScanError(f"{scan}: its name does not match --patient {patient}")
        clicks, doubts = join([read_clicks(file, volume.geometry) for file in of_scan], of_scan)
        image, points = out / source / f"{case}_img.nii.gz", out / source / f"{case}_points.csv"
        write_volume(image, volume)
        write_clicks(points, clicks, volume.geometry)
        known = [CLASSES[k] for k in np.unique(clicks.values) if k != BACKGROUND]
        cases.append(Case(source, case, f"{source}-{person[1] if person else case}", volume.modality, image, None,
                          levels=tuple(known), points=points))
        told.append(f"{case}: {len(clicks.values)} clicks, {', '.join(known) or 'no vertebra'}")
        told += [f"  note: {note}" for note in volume.notes] + [f"  doubt: {doubt}" for doubt in doubts]
    add_to_manifest(out, cases)
    return told


def export_paths(cases: Sequence[Case], out: Path, ending: str) -> list[Path]:
    """Where the clicks of each case go."""
    if ending not in WRITTEN:
        raise ScanError(f"{ending}: found a format that is not written, expected one of {', '.join(WRITTEN)}")
    names = [stem(case.image) for case in cases]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ScanError(f"{out}: found several scans named {some_of(twice)}, expected a name each, since their files "
                        "would overwrite each other; export them by --source, or rename them")
    return [out / f"{name}{ending}" for name in names]


def export_points(cases: Sequence[Case], paths: Sequence[Path], seed: int, care: Care) -> None:
    """Clicks as an expert might set them, drawn from masks on the scans' own grids, a file a scan."""
    for number, (case, path) in enumerate(zip(tqdm(cases, "drawing clicks", unit="scan"), paths, strict=True)):
        volume, rng = case.read(), np.random.default_rng((seed, number))
        if volume.mask is None:
            raise ScanError(f"{case.name}: found no mask, expected one to draw clicks from")
        clicks = draw_clicks(volume.mask, rng, care=care, spacing_mm=volume.spacing_mm)
        write_clicks(path, clicks, volume.geometry)
