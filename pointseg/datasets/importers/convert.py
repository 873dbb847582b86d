"""From a raw folder to a dataset folder, the same for every dataset."""

import csv
import filecmp
import hashlib
import itertools
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm.auto import tqdm

from pointseg.datasets.importers.base import (
    LEVELS,
    LUMBAR,
    NUMBERS,
    Found,
    LeftOut,
    Read,
    cranial_to_caudal,
    heights_mm,
)
from pointseg.datasets.manifest import CENTROIDS, NAMELESS, Case, add_to_manifest, earlier_cases
from pointseg.datasets.split import split_cases
from pointseg.scans.clicks import write_clicks
from pointseg.scans.files import WriteError, check_folder, first_line, found_at, some_of, whole_file, write_image
from pointseg.scans.volumes import VERTEBRA, geometry_of
from pointseg.volume import BACKGROUND, UNLABELLED, ScanError

REPORT = "import.csv"
ALIKE_BY_CHANCE = 8  # voxels; masks that are smaller prove nothing


@dataclass
class Report:
    """What became of a raw folder."""

    source: str
    taken: list[Case] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)  # by case
    kept: int = 0  # cases of this source that the manifest named already and names still
    replaced: int = 0  # those that were taken anew

    def __str__(self) -> str:
        cases = self.taken
        lines = [f"{self.source}: {len(cases)} scans of {len({c.patient for c in cases})} patients taken, "
                 f"{len(self.left_out)} left out"]
        if self.kept:
            lines.append(f"  {self.kept} others of an earlier import stay in the manifest")
        if self.replaced:
            lines.append(f"  {self.replaced} of an earlier import are replaced")
        lines += [f"  left out: {x.case}: {x.why}" for x in self.left_out]
        lines += [f"  flaw, so not used in training: {c.case}: {c.flaw}" for c in cases if c.flaw]
        lines += [f"  note: {case}: {note}" for case, note in self.notes.items()]
        counts = Counter(level for c in cases for level in c.levels)
        lines.append("  labelled: " + ", ".join(f"{level} in {n}" for level, n in counts.items()))
        if any(not c.names_levels for c in cases):
            lines.append("  its vertebrae have no levels, so it serves 2-class models alone: train --axis transverse")
        if any(c.mask_extent == CENTROIDS for c in cases):
            lines.append("  it knows one click a vertebra: the weakest labels; evaluate scores their identification")
        usable = [c for c in cases if not c.flaw]
        if len({c.patient for c in usable}) >= 3:
            split = split_cases(usable)
            lines.append(f"  split of these by patient, seed 0: {len(split.train)} to train, "
                         f"{len(split.validation)} to validate, {len(split.test)} to test")
        if any(c.part for c in cases):
            parts = Counter(c.part or "none" for c in cases)
            lines.append(f"  published split: {', '.join(f'{n} {part}' for part, n in parts.items())}; "
                         "table1 and train take it with --published-split")
        return "\n".join(lines)


def convert(module, raw: Path, out: Path) -> Report:
    """Convert a raw folder to a dataset folder; sources that `out` holds already stay in its manifest.

    Images go to OUT/SOURCE/CASE_img.nii.gz, masks to CASE_vert.nii.gz, clicks to CASE_points.csv, and
    OUT/SOURCE/import.csv says what became of each scan.  A scan that cannot be used is left out, with the reason; of
    several copies of an image the first is taken.  The manifest is written last, so a conversion that was broken off
    leaves the old one.  Cases that it names already, of this source or others, stay in it: a dataset may come in
    several archives.
    """
    if not raw.is_dir():
        raise ScanError(f"{raw}: {found_at(raw)}, expected the folder of the raw dataset; check the path, and unpack "
                        "archives")
    raw, target = raw.resolve(), (out / module.SOURCE).resolve()  # resolved, so that every file has its folders' names
    if raw == target or raw in target.parents or target in raw.parents:
        raise ScanError(f"{out}: {target} and the raw folder {raw} lie in each other, expected folders apart; "
                        "change OUT_DIR")
    check_folder(out)
    before = earlier_cases(out, module.SOURCE)  # refuses a damaged manifest before hours of work
    report, copies = Report(module.SOURCE), Copies()
    entries = list(module.find(raw))
    if not any(isinstance(e, Found) for e in entries):
        raise ScanError(f"{raw}: found no scan with a mask, expected {module.LAYOUT}; check the path, and unpack its "
                        "archives" + "".join(f"; left out {e.case}: {e.why}" for e in entries[:3]))
    for found in tqdm(_one_of_each_name(entries), module.SOURCE, unit="scan"):
        try:
            if isinstance(found, LeftOut):
                report.left_out.append(found)
                continue
            read = module.read(found)
            case = _write(module, found, read, copies, out)
            report.taken.append(case)
            if notes := "; ".join(filter(None, (found.note, read.note))):
                report.notes[case.case] = notes
        except WriteError:  # a full disk is no fault of the scan
            raise
        except ScanError as error:
            report.left_out.append(LeftOut(found.case, str(error)))
        except Exception as error:  # a fault of ours, or no memory: the other scans can do without it
            report.left_out.append(LeftOut(found.case, f"{found.image}: {type(error).__name__}: {first_line(error)}"))
    if not report.taken:
        raise ScanError(f"{raw}: none of {len(entries)} scans could be used: "
                        + "; ".join(f"{x.case}: {x.why}" for x in report.left_out[:3]))
    taken = {c.case for c in report.taken}
    report.kept, report.replaced = len(before - taken), len(before & taken)
    add_to_manifest(out, report.taken)
    _write_report(out / module.SOURCE / REPORT, report)
    return report


def _write(module, found: Found, read: Read, copies: "Copies", out: Path) -> Case:
    values = sitk.GetArrayViewFromImage(read.mask)
    labelled = [int(v) for v in np.unique(values) if v not in (BACKGROUND, UNLABELLED)]
    if not set(labelled) & {*LUMBAR, VERTEBRA}:
        levels = ", ".join(LEVELS[v] for v in labelled) or "nothing"
        raise ScanError(f"{found.masks[0]}: labels {levels}, expected one of L1..L5")
    twin, copied = copies.seen(found, read, labelled)
    if twin:
        raise ScanError(f"{found.image}: is a copy of {twin}'s image")
    flaws = [read.flaw, *doubts(read.mask, labelled), *(
        f"{NAMELESS if v == VERTEBRA else LEVELS[v]} mask is a copy of case {other}'s" for v, other in copied.items())]
    image, mask = (out / module.SOURCE / f"{found.case}_{kind}.nii.gz" for kind in ("img", "vert"))
    if read.as_stored and found.image.name.endswith(".nii.gz"):
        with whole_file(image) as part:
            shutil.copyfile(found.image, part)
    else:
        write_image(image, read.image)
    write_image(mask, read.mask)
    points = image.with_name(f"{found.case}_points.csv") if read.clicks else None
    if points:
        write_clicks(points, read.clicks, geometry_of(read.image))
    levels = tuple(NAMELESS if v == VERTEBRA else LEVELS[v] for v in cranial_to_caudal(labelled))
    return Case(module.SOURCE, found.case, found.patient, module.MODALITY, image, mask, module.MASK_EXTENT, levels,
                "; ".join(filter(None, flaws)), found.part, points)


def doubts(mask: sitk.Image, labelled: Sequence[int]) -> list[str]:
    """What in a mask's levels is no label to learn from."""
    levels = cranial_to_caudal(v for v in labelled if v in LEVELS)
    found = ["six lumbar vertebrae: L6 counts as background"] if NUMBERS["L6"] in levels else []
    last = max((v for v in levels if v != NUMBERS["T13"]), default=0)  # whose number is the highest of all
    if gaps := [LEVELS[v] for v in LUMBAR if min(levels, default=0) < v < last and v not in levels]:
        found.append(f"{' and '.join(gaps)} not labelled between others that are")
    heights = list(heights_mm(mask, levels).values())
    if wrong := [f"{LEVELS[b]} not below {LEVELS[a]}" for (a, ha), (b, hb)
                 in itertools.pairwise(zip(levels, heights, strict=True)) if hb >= ha]:
        found.append(f"levels out of order: {', '.join(wrong)}")
    return found


class Copies:
    """Remembers images and the masks of single vertebrae, to find the same ones under other names."""

    def __init__(self):
        self.images: dict[str, str] = {}
        self.masks: dict[tuple[int, str], Found] = {}

    def seen(self, found: Found, read: Read, labelled: Sequence[int]) -> tuple[str, dict[int, str]]:
        """-> the case that has this very image, or "", and by mask value another patient's case with this very one.

        Two images of one patient may share a mask: one was drawn for both.
        """
        image = _hash(sitk.GetArrayViewFromImage(read.image))
        if twin := self.images.get(image):
            return twin, {}
        self.images[image] = found.case
        copied, values = {}, sitk.GetArrayViewFromImage(read.mask)
        for v in labelled:
            where = values == v
            if np.count_nonzero(where) > ALIKE_BY_CHANCE:
                other = self.masks.setdefault((v, _hash(np.packbits(where), where.shape)), found)
                if other.patient != found.patient:
                    copied[v] = other.case
        return "", copied


def _hash(values: np.ndarray, shape: tuple[int, ...] = ()) -> str:
    digest = hashlib.sha256(repr((values.shape, shape, values.dtype.str)).encode())
    for plane in values:
        digest.update(np.ascontiguousarray(plane))
    return digest.hexdigest()


def _one_of_each_name(entries: Sequence[Found | LeftOut]) -> list[Found | LeftOut]:
    """Of scans under one name the first, where they are the same file; else none, since they may be two patients."""
    of_name: dict[str, list[Found]] = {}
    for e in entries:
        if isinstance(e, Found):
            of_name.setdefault(e.case, []).append(e)
    out: list[Found | LeftOut] = [e for e in entries if isinstance(e, LeftOut)]
    for case, found in of_name.items():
        if all(f.image.is_file() and filecmp.cmp(f.image, found[0].image, shallow=False) for f in found[1:]):
            out.append(found[0])
            out += [LeftOut(case, f"{f.image}: is the same file as {found[0].image}") for f in found[1:]]
        else:
            out.append(LeftOut(case, f"{some_of([str(f.image) for f in found])}: are different scans of one name, "
                                     "expected one; import their folders one by one, into different folders"))
    return out


def _write_report(path: Path, report: Report) -> None:
    """Add to import.csv what became of these cases; of those of an earlier import it tells already."""
    rows = [(c.case, "yes", "; ".join(filter(None, (c.flaw, report.notes.get(c.case))))) for c in report.taken]
    rows += [(x.case, "no", x.why) for x in report.left_out]
    new = {case for case, _, _ in rows}
    if path.exists():
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            rows = [tuple(row) for row in list(csv.reader(file))[1:] if len(row) == 3 and row[0] not in new] + rows
    with whole_file(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("case", "taken", "why"), *rows])
