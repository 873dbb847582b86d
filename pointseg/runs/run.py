"""What a command has done so far, in a folder, so that it can be killed at any moment and go on.

Each finished piece of work lies in a file of its own, whole or not at all: a trained model, a pseudo mask, the scores
of a scan.  run.json says what the work was for; with other arguments, data or code it is refused, not mixed.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import numpy as np

from pointseg.predict import Model
from pointseg.runs.cache import VolumeFile, kept_volumes
from pointseg.runs.checkpoint import Checkpoints
from pointseg.runs.models import load_model, save_model
from pointseg.runs.parallel import from_main, rank
from pointseg.scans.files import hash_of, write_json
from pointseg.train import History
from pointseg.volume import ScanError

RUN, DONE, SECONDS, LOCK = "run.json", "done.json", "seconds.json", "lock"
T = TypeVar("T")
Train = Callable[[Checkpoints | None], tuple[Model, History]]


class Run:
    """A folder of finished pieces; without a folder nothing is kept, and every piece is made."""

    def __init__(self, folder: Path | None = None):
        self.folder, self.start = folder, time.monotonic()
        self.before_s = self._json(SECONDS, {"seconds": 0.0})["seconds"] if folder else 0.0

    @classmethod
    @contextlib.contextmanager
    def begin(cls, folder: Path, identity: Callable[[], dict], restart: bool = False) -> Iterator["Run"]:
        """Begin a run, or go on with it where it has the same identity: what its results depend on.

        One run at a time; of its processes the first does this.  restart: throw away what another run left.
        """
        def begin() -> None:
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
            from_main(begin)
            yield cls(folder)

    @property
    def seconds(self) -> float:
        """All processes of this run took so long, but for what was lost."""
        return self.before_s + time.monotonic() - self.start

    def remember(self, name: str, make: Callable[[], T]) -> T:
        """What `make` makes, as JSON holds it; made once."""
        if self.folder is None:
            return make()
        if (known := self._json(f"{_safe(name)}.json", None)) is None:
            write_json(self.folder / f"{_safe(name)}.json", known := make())
            self.keep_seconds()
        return known

    def volume(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray | VolumeFile:
        """A volume (z, y, x) uint8; made once."""
        if self.folder is None:
            return make()
        volumes, _ = kept_volumes(self.folder / f"{_safe(name)}.volume", lambda: ({"labels": make()}, {}))
        self.keep_seconds()
        return volumes["labels"]

    def trained(self, name: str, path: Path | None, train: Train) -> tuple[Model, History]:
        """A model in `path` and its history; trained once, and from the last checkpoint on where it was broken off.

        train: given where to keep its checkpoints.  Of several processes the first writes.
        """
        if self.folder is None:
            return train(None)
        folder = self.folder / name
        if history := from_main(lambda: self._finished(name, path)):
            return load_model(path), history
        model, history = train(Checkpoints(folder, on_write=self.keep_seconds))
        if rank() == 0:
            save_model(path, model)
            write_json(folder / DONE, {"model": hash_of(path), "history": asdict(history)})
            Checkpoints(folder).remove()
            self.keep_seconds()
        return model, history

    def is_trained(self, name: str, path: Path) -> bool:
        return self._finished(name, path) is not None

    def keep_seconds(self) -> None:
        if self.folder:
            write_json(self.folder / SECONDS, {"seconds": self.seconds})

    def _finished(self, name: str, path: Path) -> History | None:
        done = self._json(f"{name}/{DONE}" if name else DONE, None)
        if done is None:
            return None
        if not path.is_file() or hash_of(path) != done["model"]:
            print(f"{path}: is not the model that was trained here, so it is trained again")
            return None
        return History.from_dict(done["history"])

    def _json(self, name: str, otherwise: object) -> object:
        """What a file of this folder holds; a damaged one counts as missing."""
        path = self.folder / name
        if not path.is_file():
            return otherwise
        try:
            return json.loads(path.read_text())
        except ValueError:
            print(f"{path}: is damaged, so what it held is made again")
            return otherwise


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
        known = json.loads(path.read_text())
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
    """This process alone works in a folder.  A killed one holds it no longer.  Not on Windows, which has no fcntl."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a") as file:
        try:
            import fcntl
        except ModuleNotFoundError:
            yield
            return
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ScanError(f"{folder}: another process works here, expected one at a time; wait for it, stop it, or "
                            "write elsewhere") from None
        yield
