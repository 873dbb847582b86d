"""The state of a training on disk: checkpoints to go on from, and files to watch it by.

checkpoint.pt is the last state, checkpoint-before.pt the one before it, in case the last is damaged.  history.csv has a
line a round, images/ a picture a round: a validation slice as the network sees it, beside the truth.  On request
tensorboard/ has both for TensorBoard.
"""

import contextlib
import csv
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from matplotlib.image import imsave
from torch import nn
from torch.utils.data import DataLoader

from pointseg.losses import Move
from pointseg.predict import Model
from pointseg.preprocess import Prepared
from pointseg.report.plot import HISTORY, IMAGES, slice_and_truth
from pointseg.runs.processes import SHARED_MEMORY, room_for_processes
from pointseg.runs.weights import check_tensors, read_torch, save_torch
from pointseg.scans.files import Damaged, first_line, whole_file
from pointseg.slices import Batch, SliceDataset, batch_numbers
from pointseg.train import History, Round, Training, Watch
from pointseg.volume import ScanError

FORMAT = 2
EVERY_S = 5.0  # of training lost at most, where nothing else is said
WRITING_SHARE = 0.05  # of the time that writing may take: a large network is stored less often
LAST, BEFORE, TENSORBOARD = "checkpoint.pt", "checkpoint-before.pt", "tensorboard"


class Checkpoints(Watch):
    """Keeps a training in a folder, and goes on with it."""

    def __init__(self, name: str, folder: Path, workers: int = 0, tensorboard: bool = False,
                 on_write: Callable[[], None] = lambda: None):
        """workers: processes that make batches; 0: the training's own.  on_write: called after each checkpoint."""
        super().__init__(name)
        self.folder, self.workers, self.on_write = folder, workers, on_write
        self.tensorboard, self._events = tensorboard, None
        self.last_s, self.cost_s = time.monotonic(), 0.0
        self.model: Model | None = None
        self.scan: Prepared | None = None

    def take(self, model: Model, scan: Prepared) -> nn.Module:
        self.model, self.scan = model, scan
        return super().take(model, scan)

    def steps(self, dataset: SliceDataset, size: int, seed: int) -> Callable[[int], Iterator[tuple[Batch, Move]]]:
        """As a `Watch` has them, but `workers` make them ahead, in the same order."""
        def batches(start: int) -> Iterator[Batch]:
            numbers = self.numbers(len(dataset), size, seed, start)
            if not self.workers:
                return map(dataset.batch, numbers)
            loader = DataLoader(dataset, batch_sampler=numbers, num_workers=self.workers, collate_fn=_shared,
                                pin_memory=torch.cuda.is_available(),  # from where a GPU fetches while it works
                                generator=torch.Generator())  # its own, or it would draw from the network's
            return _made_by_others(loader)

        return lambda start: zip(batches(start), Move.draws(seed, start))

    def numbers(self, count: int, size: int, seed: int, start: int) -> Iterator[list[int]]:
        """Of the items of each batch, from batch number `start` on."""
        return batch_numbers(count, size, seed, start)

    def start(self, training: Training) -> None:
        if state := self.read(lambda state: check_fits(state, training)):
            restore(training, state)
        super().start(training)

    def after_step(self, training: Training) -> None:
        done = len(training.values) == training.schedule.round_steps
        self.keep(training, 1.0 if done else EVERY_S)  # before a validation, which may take as long as many steps

    def after_round(self, training: Training) -> None:
        super().after_round(training)
        self.show(training.history)
        self.keep(training, 1.0)

    def keep(self, training: Training, least_s: float) -> None:
        """Write a checkpoint, if at least so much time has passed since the last and writing has not taken too much."""
        if self.due(least_s):
            self.write(state_of(training))

    def due(self, least_s: float) -> bool:
        return time.monotonic() - self.last_s >= max(least_s, self.cost_s / WRITING_SHARE)

    def write(self, state: dict) -> None:
        start = time.monotonic()
        last = self.folder / LAST
        with whole_file(last) as part:
            save_torch({"format": FORMAT} | state, part)
            with contextlib.suppress(FileNotFoundError):  # the first one
                os.replace(last, self.folder / BEFORE)
        self.on_write()
        self.last_s = time.monotonic()
        self.cost_s = self.last_s - start

    def read(self, fits: Callable[[dict], None] = lambda state: None) -> dict | None:
        """The last state that is whole; None where there is none.

        fits: raises where a state is not one of this training.  What is passed over is named.
        """
        paths = [p for p in (self.folder / LAST, self.folder / BEFORE) if p.is_file()]
        for path in paths:
            try:
                state = read_torch(path)
                if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
                    raise Damaged("no checkpoint of this version")
                fits(state)
                return state
            except Exception as error:  # whatever a damaged or foreign file makes of the reader
                instead = "the one before it is used" if path != paths[-1] else "this training starts anew"
                print(f"{path}: is damaged or of another training ({first_line(error)}), so {instead}")
        return None

    def remove(self) -> None:
        """Of a training that is done and whose model is saved."""
        for name in (LAST, BEFORE):
            (self.folder / name).unlink(missing_ok=True)

    def show(self, history: History) -> None:
        """Write history.csv and the picture of its last round."""
        last = history.rounds[-1]
        write_history(self.folder / HISTORY, history)
        image = slice_and_truth(self.model, self.scan) if self.model else None
        if image is not None:
            with whole_file(self.folder / IMAGES / f"{last.step:07d}.png") as part:
                imsave(part, image)
        if self.tensorboard:
            if self._events is None:  # what a killed process has shown of rounds that are done again is hidden
                from torch.utils.tensorboard import SummaryWriter

                self._events = SummaryWriter(self.folder / TENSORBOARD, purge_step=last.step)
            scalars = {f"loss/{name}": value for name, value in last.losses.items()}
            for name, value in (scalars | {"learning rate": last.learning_rate, "validation": last.validation}).items():
                self._events.add_scalar(name, value, last.step)
            if image is not None:
                self._events.add_image("middle slice", image, last.step, dataformats="HWC")
            self._events.flush()


def state_of(training: Training) -> dict:
    """All of a training that the next step depends on."""
    where = next(training.network.parameters()).device
    return {"step": training.step, "history": asdict(training.history), "network": training.network.state_dict(),
            "optimizer": training.optimizer.state_dict(), "best_weights": training.best_weights,
            "values": {name: torch.stack([of_step[name] for of_step in training.values])
                       for name in (training.values or [{}])[0]}, "seconds": time.monotonic() - training.began_s,
            "generator": torch.cuda.get_rng_state(where) if where.type == "cuda" else torch.get_rng_state()}


def restore(training: Training, state: dict) -> None:
    """The inverse of `state_of`."""
    where = next(training.network.parameters()).device
    training.step, training.history = state["step"], history_of(state["history"])
    training.network.load_state_dict(state["network"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.best_weights = state["best_weights"] and {k: x.to(where) for k, x in state["best_weights"].items()}
    unstacked = {name: x.to(where).unbind() for name, x in state["values"].items()}
    training.values = [dict(zip(unstacked, of_step)) for of_step in zip(*unstacked.values())]
    training.began_s = time.monotonic() - state["seconds"]
    if where.type == "cuda":
        torch.cuda.set_rng_state(state["generator"], where)
    else:
        torch.set_rng_state(state["generator"])


def history_of(content: dict) -> History:
    """What `dataclasses.asdict` made of one."""
    return History(**content | {"rounds": [Round(**r) for r in content["rounds"]]})


def write_history(path: Path, history: History) -> None:
    """One line a round: step, seconds, learning_rate, each loss term, total, validation."""
    terms = list(history.rounds[0].losses)
    with whole_file(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("step", "seconds", "learning_rate", *terms, "validation"))
        for r in history.rounds:
            writer.writerow((r.step, round(r.seconds, 2), r.learning_rate, *r.losses.values(), r.validation))


def check_fits(state: dict, training: Training) -> None:
    """Raise where a stored state is not one of this network's training."""
    for part in ("network", "best_weights"):
        if part == "network" or state[part] is not None:
            check_tensors(state[part], training.network.state_dict())
    parameters = dict(enumerate(training.network.parameters()))
    for moment in ("exp_avg", "exp_avg_sq"):
        check_tensors({i: of[moment] for i, of in state["optimizer"]["state"].items()}, parameters)
    in_rounds = len(history_of(state["history"]).rounds) * training.schedule.round_steps
    if any(x.shape != (state["step"] - in_rounds,) for x in state["values"].values()) or not state["seconds"] >= 0 or (
            not state["values"] and state["step"] != in_rounds):
        raise Damaged("its place is impossible")
    if state["generator"].dtype != torch.uint8:
        raise Damaged("its random numbers are of another kind")


def _shared(batch: Batch) -> Batch:
    """A batch, moved to memory that another process sees.  torch would do it in a thread whose errors nobody hears."""
    return tuple(x.share_memory_() for x in batch)


def _made_by_others(loader: DataLoader) -> Iterator[Batch]:
    """Its batches; what goes wrong in the processes that make them is a line."""
    with room_for_processes("--workers 0"):
        batches = iter(loader)
    try:
        yield from batches
    except ScanError as error:  # which comes with the lines of a traceback, in one
        raise ScanError(str(error).rpartition(f"{ScanError.__module__}.ScanError: ")[2].removesuffix("\\n")) from None
    except RuntimeError as error:
        if "shared memory" not in str(error) and not str(error).startswith("DataLoader worker"):  # killed, say
            raise
        why = str(error).strip().splitlines()[-1].removeprefix("RuntimeError: ")
        raise ScanError(f"--workers {loader.num_workers}: a process that makes batches has failed ({why}), expected "
                        f"memory, and room in {SHARED_MEMORY}; make some, or start again with --workers 0") from None
