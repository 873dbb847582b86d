"""What a command has done so far, in a folder, so that it can be killed at any moment and go on.

A `Run` is the `keep` of `procedure.run`.  Each finished piece of work lies in a file of its own, whole or not at all: a
trained model, a scan with its pseudo mask, the counts of a scan.  run.json says what the work was for; with other
arguments, data or code it is refused, not mixed.
"""

import contextlib
import inspect
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from filelock import FileLock, Timeout

from pointseg.predict import Model
from pointseg.preprocess import Prepared
from pointseg.runs.checkpoint import Checkpoints, history_of
from pointseg.runs.models import load_model, save_model
from pointseg.runs.processes import from_main, rank
from pointseg.runs.volumes import kept_scan
from pointseg.scans.files import hash_of, write_json
from pointseg.train import History
from pointseg.volume import ScanError

RUN, DONE, SECONDS, LOCK = "run.json", "done.json", "seconds.json", "lock"
T = TypeVar("T")


@dataclass
class Run:
    """A folder of finished pieces, and the models beside it."""

    folder: Path
    models: Path  # folder for NAME.pt
    about: Mapping = field(default_factory=dict)  # split, profile and seed, for the models' files
    watch: Callable[..., Checkpoints] = Checkpoints

    def __post_init__(self):
        self.began_s = time.monotonic() - (self._json(self.folder / SECONDS) or {"seconds": 0.0})["seconds"]

    @property
    def seconds(self) -> float:
        """All processes of this run took so long, but for what was lost."""
        return time.monotonic() - self.began_s

    def __call__(self, name: str, make: Callable[..., T]) -> T:
        """What `make` makes, made once: where it takes a `watch` a model and its history, else a scan, or what JSON
        holds."""
        if "watch" in inspect.signature(make).parameters:
            return self.trained(name, self.models / f"{name}.pt", make)
        arrays, numbers = (self.folder / f"{_safe(name)}{ending}" for ending in (".scan.npy", ".json"))
        if arrays.is_file():
            return kept_scan(arrays, make)
        if (known := self._json(numbers)) is not None:
            return known
        made = make()
        if isinstance(made, Prepared):
            made = kept_scan(arrays, lambda: made)
        else:
            write_json(numbers, made)
        self.keep_seconds()
        return made

    def trained(self, name: str, path: Path, train: Callable[..., tuple[Model, History]]) -> tuple[Model, History]:
        """A model in `path` and its history; trained once, and from the last checkpoint on where it was broken off.

        Of several processes the first writes.
        """
        if history := from_main(lambda: self._finished(name, path)):
            return load_model(path), history
        watch = self.watch(name or path.stem, self.folder / name, on_write=self.keep_seconds)
        model, history = train(watch=watch)
        if rank() == 0:
            save_model(path, model, **self.about)
            write_json(self.folder / name / DONE, {"model": hash_of(path), "history": asdict(history)})
            watch.remove()
            self.keep_seconds()
        return model, history

    def is_trained(self, name: str) -> bool:
        return self._finished(name, self.models / f"{name}.pt") is not None

    def keep_seconds(self) -> None:
        write_json(self.folder / SECONDS, {"seconds": self.seconds})

    def _finished(self, name: str, path: Path) -> History | None:
        done = self._json(self.folder / name / DONE)
        if done is None:
            return None
        if not path.is_file() or hash_of(path) != done["model"]:
            print(f"{path}: is not the model that was trained here, so it is trained again")
            return None
        return history_of(done["history"])

    def _json(self, path: Path) -> object | None:
        """What a file holds; a missing or damaged one is None."""
        try:
            return json.loads(path.read_bytes()) if path.is_file() else None
        except ValueError:
            print(f"{path}: is damaged, so what it held is made again")
            return None


@contextlib.contextmanager
def begin(folder: Path, identity: Callable[[], dict], restart: bool = False) -> Iterator[None]:
    """Begin a run, or go on with it where it has the same identity: what its results depend on.

    One run at a time; of its processes the first does this.  restart: throw away what another run left.
    """
    def first() -> None:
        stack.enter_context(_locked(folder))
        if restart:
            for path in folder.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        remove_leftovers(folder.parent, older_than_s=3600)  # where others may be writing
        for below in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
            remove_leftovers(below)
        path, now = folder / RUN, json.loads(json.dumps(identity()))  # as it will be read
        if path.is_file():
            _refuse_other(path, now)
        else:
            write_json(path, now)

    with contextlib.ExitStack() as stack:
        from_main(first)
        yield


def remove_leftovers(folder: Path, older_than_s: float = 0.0) -> None:
    """What processes that were killed while they wrote (`files.whole_file`) have left in a folder."""
    for path in folder.glob(".writing-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime >= older_than_s:
                shutil.rmtree(path)


def _safe(name: str) -> str:
    """A case's name, as a path that stays where it belongs."""
    return quote(name).replace("..", "%2E%2E").lstrip("/")


def _refuse_other(path: Path, identity: dict) -> None:
    try:
        known = json.loads(path.read_bytes())
    except ValueError:
        known = {}
    differences = list(_differences(known, identity))
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ScanError(f"{path.parent}: holds another run, different in {'; '.join(differences[:3])}{more}; expected "
                        "the same arguments, data and version of this package to go on with it; write elsewhere, or "
                        "begin anew with --restart")


def _differences(known: object, now: object, name: str = "") -> Iterator[str]:
    """ "seed (0 there, 1 now)" and so on."""
    if isinstance(known, dict) and isinstance(now, dict):
        for key in {**known, **now}:
            yield from _differences(known.get(key), now.get(key), f"{name} {key}".strip())
    elif known != now:
        there, here = (repr(x) if len(repr(x)) <= 20 else f"{repr(x)[:17]}..." for x in (known, now))
        yield f"{name} ({there} there, {here} now)"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """This process alone works in a folder.  A killed one holds it no longer."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout:
        raise ScanError(f"{folder}: another process works here, expected one at a time; wait for it, stop it, or "
                        "write elsewhere") from None
