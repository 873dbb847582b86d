"""Segment scans, one or many: each on its own, whatever becomes of the others.

Beside each mask lie a picture and a record (JSON) of how it was made.  The record is written last, so a scan whose
record fits is done, and a second start does what is missing.
"""

import contextlib
import csv
import hashlib
import json
import multiprocessing
import queue
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from tqdm.auto import tqdm

from pointseg.commands import plausible
from pointseg.predict import Model
from pointseg.report import plot
from pointseg.runs.models import load_model
from pointseg.runs.processes import room_for_processes, take_cores
from pointseg.runs.surroundings import steady_streams
from pointseg.scans.files import check_file, check_format, first_line, hash_of, whole_file, write_json
from pointseg.scans.reading import data_files
from pointseg.scans.volumes import read_volume, stem, write_mask
from pointseg.volume import CLASSES, ScanError, printable

SUMMARY = "summary.csv"
VERTEBRAE = CLASSES[1:]


@dataclass(frozen=True)
class Options:
    """What is the same for all scans of a run."""

    model: Path
    modality: str = ""
    series: str = ""
    verse: bool = False  # write 20..24 for L1..L5
    modality_of: dict[Path, str] = field(default_factory=dict)  # of single scans, where `modality` is not given

    def modality_for(self, scan: Path) -> str:
        """CT or MR, or "" to be told by the scan itself."""
        return self.modality or self.modality_of.get(scan, "")


@dataclass(frozen=True)
class Outcome:
    """What became of a scan."""

    scan: Path
    mask: Path
    status: str  # "done", "already done" or "failed"
    message: str = ""  # why it failed
    modality: str = ""
    volumes_ml: dict[str, float] | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def segment_one(scan: Path, mask: Path, options: Options) -> Outcome:
    """Segment a scan into a mask, its picture and its record.  Errors are ScanError."""
    check_format(mask)
    for path in (mask, picture_of(mask), _record(mask)):
        check_file(path)
    _refuse_foreign(mask)
    model = cached_model(options.model)
    volume = read_volume(scan, modality=options.modality_for(scan), series=options.series)
    prepared = model.prepare(volume)
    labels = model.segment(prepared, volume.image.shape)
    warnings = plausible.warnings(labels, volume.spacing_mm)
    if model.modalities and prepared.modality not in model.modalities:
        told = "" if volume.modality else ", as its intensities tell"
        warnings.insert(0, f"the scan is {prepared.modality}{told}, but the model learned from "
                           f"{' and '.join(model.modalities)}")
    volumes = plausible.volumes_ml(labels, volume.spacing_mm)
    picture = plot.three_planes(volume.image, labels, volume.spacing_mm, title=volume.name)
    _record(mask).unlink(missing_ok=True)  # from now on the mask is no longer what it says
    try:
        write_mask(mask, labels, volume.geometry, verse=options.verse)
        plot.save(picture, picture_of(mask))
        record = {"scan": str(scan), "mask": mask.name, "geometry": str(volume.geometry), "modality": prepared.modality,
                  "volumes_ml": volumes, "warnings": warnings, "notes": list(volume.notes),
                  "made_from": _fingerprint(scan, options), "mask_sha256": hash_of(mask)}
        write_json(_record(mask), record)
    except BaseException:  # a full disk, or Ctrl-C: three files or none
        for path in (mask, picture_of(mask)):
            with contextlib.suppress(OSError):  # what went wrong is told, not this
                path.unlink(missing_ok=True)
        raise
    return Outcome(scan, mask, "done", "", prepared.modality, volumes, tuple(warnings), volume.notes)


def segment_many(scans: Sequence[Path], masks: Sequence[Path], options: Options, jobs: int = 1) -> Iterator[Outcome]:
    """Segment scans as `segment_one` does, `jobs` at a time in processes of their own, in the order they finish.

    A scan that fails, and be it that it takes its process with it, does not keep the others from being done.
    """
    pairs = list(zip(scans, masks, strict=True))
    if jobs == 1:
        yield from (_attempt(scan, mask, options) for scan, mask in pairs)
        return
    workers: queue.SimpleQueue[ProcessPoolExecutor] = queue.SimpleQueue()
    with room_for_processes("--jobs 1"):
        for _ in range(jobs):
            workers.put(_worker(jobs))

    def attempt(scan: Path, mask: Path) -> Outcome:
        worker = workers.get()
        try:
            return worker.submit(_attempt, scan, mask, options).result()
        except BrokenProcessPool:
            worker.shutdown()
            worker = _worker(jobs)
            return Outcome(scan, mask, "failed", f"{scan}: its process was killed, most likely for lack of memory; "
                                                 "try it alone, or with fewer --jobs")
        finally:
            workers.put(worker)

    with ThreadPoolExecutor(jobs) as threads:
        waiting = [threads.submit(attempt, scan, mask) for scan, mask in pairs]
        try:
            for future in as_completed(waiting):
                yield future.result()
        finally:
            for future in waiting:
                future.cancel()
            for _ in range(jobs):
                workers.get().shutdown()


def _worker(jobs: int) -> ProcessPoolExecutor:
    """One process.  A pool of several would be lost as a whole with the first that is killed."""
    worker = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (jobs,))
    worker.submit(int)  # starts it
    return worker


def _begin(jobs: int) -> None:
    """A worker shares the cores, and leaves it to the parent to stop at Ctrl-C: it ends the scan that it has."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    steady_streams()
    take_cores(jobs)


def _attempt(scan: Path, mask: Path, options: Options) -> Outcome:
    try:
        return _finished(scan, mask, options) or segment_one(scan, mask, options)
    except ScanError as error:
        return Outcome(scan, mask, "failed", str(error))
    except MemoryError:
        return Outcome(scan, mask, "failed", f"{scan}: does not fit into memory; crop it, or use a larger machine")
    except Exception as error:  # a fault of ours, or torch's word for no memory: the other scans can do without it
        return Outcome(scan, mask, "failed", f"{scan}: {type(error).__name__}: {first_line(error)}; "
                                             "run it alone for the whole report")


def _finished(scan: Path, mask: Path, options: Options) -> Outcome | None:
    """The outcome that an earlier run has recorded, where scan, model and options are still the same."""
    try:
        record = json.loads(_record(mask).read_text(encoding="utf-8"))
        if record["made_from"] != _fingerprint(scan, options):
            return None
        outcome = Outcome(scan, mask, "already done", "", record["modality"], record["volumes_ml"],
                          tuple(record["warnings"]), tuple(record["notes"]))
        same = record["mask_sha256"] == hash_of(mask)
    except (OSError, ValueError, LookupError, TypeError):  # no mask, no record, or not one of ours
        return None
    if not same:
        raise ScanError(f"{mask}: has changed since it was made, expected our mask or none; rename it to keep it, "
                        "delete it to make it anew")
    return outcome


def picture_of(mask: Path) -> Path:
    return _beside(mask, ".png")


def _record(mask: Path) -> Path:
    return _beside(mask, ".json")


def _beside(mask: Path, ending: str) -> Path:
    return mask.with_name(stem(mask) + ending)


def _refuse_foreign(mask: Path) -> None:
    """A .json beside the scan, as converters write, may have the record's name: it is not ours to replace."""
    path = _record(mask)
    if path.exists():
        try:
            ours = "made_from" in json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            ours = not path.stat().st_size
        if not ours:
            raise ScanError(f"{path}: is there already and no record of ours, expected a free name; change -o")


def _fingerprint(scan: Path, options: Options) -> dict:
    listed = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in data_files(scan)]
    return {"scan": hashlib.sha256(repr(listed).encode()).hexdigest(), "model": _loaded(options.model)[1],
            "options": [options.modality_for(scan), options.series, options.verse]}


def cached_model(path: Path) -> Model:
    """A model of L1..L5, read once a process."""
    return _loaded(path)[0]


def _loaded(path: Path) -> tuple[Model, str]:
    """A model and its file's hash."""
    return _load(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=1)
def _load(path: Path, changed_ns: int) -> tuple[Model, str]:
    model = load_model(path)
    if model.num_classes != len(CLASSES):
        raise ScanError(f"{path}: knows vertebrae but not their levels, expected a model of L1..L5; "
                        "take result.pt, reference.pt, sagittal.pt or coronal.pt")
    return model, hash_of(path)


def run(scans: Sequence[Path], masks: Sequence[Path], options: Options, jobs: int, folder: Path) -> list[Outcome]:
    """Segment scans with a progress bar, and write what became of them to folder/summary.csv.   -> in their order."""
    check_file(folder / SUMMARY)
    found: dict[Path, Outcome] = {}
    with tqdm(total=len(scans), desc="segmenting", unit="scan") as bar:
        for outcome in segment_many(scans, masks, options, jobs):
            found[outcome.scan] = outcome
            if outcome.status == "failed":
                bar.write(f"failed: {outcome.message}")
            bar.update()
    outcomes = [found[scan] for scan in scans]
    with whole_file(folder / SUMMARY) as part, open(part, "w", newline="", encoding="utf-8",
                                                    errors="backslashreplace") as file:  # of names that are not UTF-8
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("scan", "mask", "status", "modality", *(f"{v}_ml" for v in VERTEBRAE), "warnings", "notes",
                         "message"))
        for o in outcomes:
            volumes = [f"{o.volumes_ml[v]:.2f}" for v in VERTEBRAE] if o.volumes_ml else [""] * len(VERTEBRAE)
            writer.writerow((o.scan, o.mask, o.status, o.modality, *volumes, "; ".join(o.warnings), "; ".join(o.notes),
                             o.message))
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """One line a scan: its volumes in ml, or that it failed."""
    names = [printable(str(o.scan)) for o in outcomes]
    width = max(map(len, names)) + 2
    lines = [f"{'ml':<{width}}" + "".join(f"{v:>8}" for v in VERTEBRAE)]
    for name, o in zip(names, outcomes, strict=True):
        volumes = "".join(f"{o.volumes_ml[v]:8.1f}" for v in VERTEBRAE) if o.volumes_ml else "  failed"
        lines.append(f"{name:<{width}}{volumes}" + "".join(f"\n    warning: {w}" for w in o.warnings))
    return "\n".join(lines)


def single(outcome: Outcome) -> str:
    """What there is to say of one scan that is done."""
    lines = [f"read as {outcome.modality}", *(f"note: {n}" for n in outcome.notes)]
    lines += [f"{name:<4}{ml:8.1f} ml" for name, ml in outcome.volumes_ml.items()]
    return "\n".join([*lines, *(f"warning: {w}" for w in outcome.warnings)])
