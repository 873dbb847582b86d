"""Which files and folders are scans, and what their masks are called."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pointseg.datasets.manifest import MANIFEST, Case, read_manifest
from pointseg.scans.dicom import frames_in, series_in
from pointseg.scans.reading import SCAN_ENDINGS, data_files
from pointseg.scans.volumes import stem
from pointseg.volume import ScanError


def find_scans(paths: Sequence[Path], out: Path) -> dict[Path, str]:
    """Each path that is a scan (a file, a DICOM folder, or missing: to be reported), and the scans below the others.

    Of a dataset folder these are the images of its manifest; of others the scan that their DICOM files are (or the
    scans, where each file has many frames), every file with a scan's ending, and the same in their folders, but for
    `out`, which holds masks.   -> the scans in order, and their modality as far as a manifest tells it.
    """
    scans: dict[Path, str] = {}
    for path in paths:
        found = dict(_below(path, _real(out))) if os.path.isdir(path) else {path: ""}
        if not found and frames_in(path):  # to be refused by what it is
            found = {path: ""}
        if not found:
            raise ScanError(f"{path}: found no scan in this folder, expected DICOM files or {', '.join(SCAN_ENDINGS)}; "
                            "check the path")
        known = {_real(s) for s in scans}  # a scan that is given by two paths is one
        scans |= {scan: modality for scan, modality in found.items() if _real(scan) not in known}
    _refuse_parts(scans)
    return scans


def _refuse_parts(scans: Iterable[Path]) -> None:
    """A series whose files lie in several folders, as discs have it, would be several scans, none of them whole."""
    of: dict[tuple[str, ...], Path] = {}
    for scan in filter(os.path.isdir, scans):
        if (series := series_in(scan)) and (other := of.setdefault(series, scan)) != scan:
            raise ScanError(f"{scan}: found slices of a series that {other} has slices of, too, expected each series "
                            "in one folder; put its files together, or remove a copy")


def _below(folder: Path, out: Path) -> Iterator[tuple[Path, str]]:
    if _real(folder) == out:
        raise ScanError(f"{folder}: is the folder of scans and of masks at once, expected two; change -o")
    if os.access(folder, os.X_OK) and (folder / MANIFEST).is_file():
        yield from ((case.image, case.modality) for case in read_manifest(folder))
        return
    try:
        paths = sorted(folder.iterdir())
        every = frames_in(folder)
        dicom = {p: n for p, n in every.items() if n}  # without segmentations, reports ..
    except OSError:
        yield folder, ""  # to be reported as one that cannot be read
        return
    several = len(dicom) > 1 and min(dicom.values()) > 1  # each of these files is a scan
    if dicom and not several:
        yield folder, ""
    paths = [p for p in paths if p not in every or (p in dicom and several)]
    for path in paths:
        if path.name.startswith("."):
            continue
        if os.path.isdir(path) and not path.is_symlink() and _real(path) != out:  # a link may lead back
            yield from _below(path, out)
        elif path.name.lower().endswith(SCAN_ENDINGS) and (several or not dicom or path.suffix.lower() != ".dcm"):
            yield path, ""


def masks_in(folder: Path, scans: Sequence[Path]) -> list[Path]:
    """A name for the mask of each scan: the scan's, with its folders where two scans would share one."""
    names = [Path(stem(s) if not os.path.isdir(s) else _real(s).name) for s in scans]
    if len({str(n).lower() for n in names}) < len(names):  # as macOS and Windows tell names apart
        absolute = [_real(s) for s in scans]
        root = Path(os.path.commonpath([s.parent for s in absolute]))
        names = [s.relative_to(root).parent / name for s, name in zip(absolute, names, strict=True)]
    if twice := sorted({str(n) for n in names if names.count(n) > 1}):
        raise ScanError(f"found several scans named {', '.join(twice)} in one folder, expected a name each, since "
                        "their masks would overwrite each other; rename them, or segment them into different folders")
    return [folder / f"{name}.nii.gz" for name in names]


def inputs_of(folder: Path, cases: Sequence[Case]) -> list[Path]:
    """The files that a command reads of a dataset folder."""
    return [folder / MANIFEST, *(path for case in cases for path in case.files)]


def refuse_overwriting(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """An output may not take the place of an input, a scan or a model say, or of the file that holds a scan's voxels.
    """
    if both := {_real(o) for o in outputs} & {_real(p) for i in inputs if os.path.isfile(i) for p in data_files(i)}:
        raise ScanError(f"{min(both)}: is read by this very command, expected another name for what it writes; change "
                        "that")


def _real(path: Path) -> Path:
    """Without links; unlike `resolve`, of loops of links too."""
    return Path(os.path.realpath(path))
