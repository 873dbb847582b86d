"""What the notebooks share: which scans they read, and trained models kept from one notebook to the next.

Nothing here is part of the procedure.  Everything is written below out/lessons, which may be deleted at any time.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from pointseg.datasets.manifest import MANIFEST, Case, read_manifest
from pointseg.datasets.phantom import make_phantom, write_phantoms
from pointseg.losses import Term, point_term
from pointseg.predict import Model
from pointseg.preprocess import Scans
from pointseg.procedure import train_full, train_weak
from pointseg.profiles import LESSON
from pointseg.runs.identity import PACKAGE, identity_of
from pointseg.runs.run import Run
from pointseg.train import History
from pointseg.volume import ScanError, Volume

ROOT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else Path.cwd()  # a checkout, else where we are
OUT = ROOT / "out" / "lessons"
COUNT, SPACING_MM, SEED = 30, 2.0, 0


def data_folder() -> Path | None:
    """The dataset folder that POINTSEG_DATA names, None where it is not set.

    A relative path counts from the current folder or, so that it means the same in notebooks/, from the checkout.
    """
    named = os.environ.get("POINTSEG_DATA")
    if not named:
        return None
    for folder in (Path(named), ROOT / named):
        if folder.is_dir():
            return folder
    raise ScanError(f"POINTSEG_DATA={named}: no such folder, expected a dataset folder; correct it, or unset it to "
                    "work on synthetic scans")


def lesson_cases() -> list[Case]:
    """At most COUNT cases: from the folder that POINTSEG_DATA names, else synthetic ones, made on first use.

    Of a folder only cases without a known flaw, and of its largest source: one model learns one kind of scan.
    """
    folder = data_folder()
    if folder is None:
        return _synthetic("water", COUNT, SEED)
    cases = [c for c in read_manifest(folder) if not c.flaw]
    if not cases:
        raise ScanError(f"{folder}: found no case without a flaw in the {MANIFEST}; name another folder")
    sources = [c.source for c in cases]
    return [c for c in cases if c.source == max(sorted(set(sources)), key=sources.count)][:COUNT]


def other_cases(count: int = 3) -> list[Case]:
    """A few cases of each source that `lesson_cases` leaves out: other MR sequences, where the scans are synthetic."""
    if (folder := data_folder()) is None:
        return [case for i, sequence in enumerate(("T1", "T2")) for case in _synthetic(sequence, count, SEED + 1 + i)]
    taken, cases = lesson_cases()[0].source, {}
    for case in read_manifest(folder):
        if case.source != taken and not case.flaw:
            cases.setdefault(case.source, []).append(case)
    return [case for of_source in cases.values() for case in of_source[:count]]


def lesson_volume() -> Volume:
    """One scan with its mask to look at: the first of `lesson_cases`, or a synthetic one of 1 mm."""
    return make_phantom(SEED, sequence="water") if data_folder() is None else lesson_cases()[0].read()


def weak_model(labelled: Scans, axis: str,
               terms: Sequence[tuple[float, Term]] = ((1.0, point_term),)) -> tuple[Model, History]:
    """`train_weak` in the lesson profile; with the package's own terms it is trained once and then read."""
    train = partial(train_weak, labelled, axis, LESSON, SEED, terms)
    if any(getattr(term, "__module__", "") != point_term.__module__ for _, term in terms):
        return train()  # your own term: it may have changed since the last time
    used = [(weight, term.__name__) for weight, term in terms]
    return _remember(axis, train, axis, used, *_known(labelled))


def full_model(labelled: Scans, name: str, axis: str = "sagittal") -> tuple[Model, History]:
    """`train_full` on scans with pseudo masks, or true ones, in the lesson profile, trained once and then read."""
    return _remember(f"{name}_{axis}", partial(train_full, labelled, axis, LESSON, SEED), *_known(labelled))


def _known(labelled: Scans) -> Iterator:
    for scan in (*labelled.train, *labelled.validation):
        yield from (scan.name, scan.mask)


def training_of(name: str) -> Path:
    """The folder that the training of that model, the last one, wrote its course to: "sagittal", "result" and so on."""
    return max(OUT.glob(f"{name}-*-training"), key=lambda folder: folder.stat().st_mtime)


def _synthetic(sequence: str, count: int, seed: int) -> list[Case]:
    folder = OUT / f"scans-{sequence}-{_fingerprint()}"
    if not (folder / MANIFEST).is_file():  # written last
        write_phantoms(folder, count, seed, spacing_mm=SPACING_MM, sequence=sequence)
    return [replace(case, source=f"synthetic-{sequence.lower()}") for case in read_manifest(folder)]


def _remember(name: str, train: Callable[..., tuple[Model, History]], *depends_on) -> tuple[Model, History]:
    """The trained model; a training that a closed laptop has broken off goes on."""
    stem = f"{name}-{_fingerprint(*depends_on)}"
    return Run(OUT, OUT).trained(f"{stem}-training", OUT / f"{stem}.pt", train)


def _fingerprint(*parts) -> str:
    """Of the package's source, the lesson profile and the parts: whatever changes, nothing old is read."""
    digest = hashlib.sha256(repr(LESSON).encode())
    digest.update(repr(identity_of("procedure", "datasets.phantom")).encode())
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()[:12]
