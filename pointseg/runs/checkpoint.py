"""The state of a training on disk: checkpoints to go on from, and files to watch it by.

checkpoint.pt is the last state, checkpoint-before.pt the one before it, in case the last is damaged.  history.csv has a
line a round, images/ a picture a round: a validation slice as the network sees it, beside the truth.  On request
tensorboard/ has both for TensorBoard.
"""

import contextlib
import csv
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from pointseg.runs.weights import read_torch, save_torch
from pointseg.scans.files import Damaged, first_line, whole_file
from pointseg.train import History, Round

FORMAT = 1
EVERY_S = 5.0  # of training lost at most, where nothing else is said
WRITING_SHARE = 0.05  # of the time that writing may take: a large network is stored less often
LAST, BEFORE, HISTORY, IMAGES = "checkpoint.pt", "checkpoint-before.pt", "history.csv", "images"
TENSORBOARD = "tensorboard"


class Checkpoints:
    """Keeps a training in a folder.   See `train.Keeper`."""

    def __init__(self, folder: Path, picture: Callable[[nn.Module], np.ndarray] | None = None,
                 on_write: Callable[[], None] = lambda: None):
        """picture: (H, W, 3) uint8 of what the network sees; on_write: called after each checkpoint."""
        self.folder, self.picture, self.on_write = folder, picture, on_write
        self.tensorboard = False  # whether `show` writes for it, too
        self._events = None
        self.last_s, self.cost_s = time.monotonic(), 0.0

    def due(self, least_s: float = EVERY_S) -> bool:
        """Whether at least so much time has passed since the last checkpoint, and writing has not taken too much."""
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

    def show(self, history: History, network: nn.Module) -> None:
        """Write history.csv and the picture of its last round."""
        last, image = history.rounds[-1], self.picture and self.picture(network)
        write_history(self.folder / HISTORY, history)
        if image is not None:
            from matplotlib.image import imsave  # half a second, and only here

            with whole_file(self.folder / IMAGES / f"{last.step:07d}.png") as part:
                imsave(part, image)
        if self.tensorboard:
            self._show_tensorboard(last, image)

    def _show_tensorboard(self, last: Round, image: np.ndarray | None) -> None:
        if self._events is None:  # what a killed process has shown of rounds that are done again is hidden
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(self.folder / TENSORBOARD, purge_step=last.step)
        scalars = {f"loss/{name}": value for name, value in last.losses.items()}
        for name, value in (scalars | {"learning rate": last.learning_rate, "validation": last.validation}).items():
            self._events.add_scalar(name, value, last.step)
        if image is not None:
            self._events.add_image("middle slice", image, last.step, dataformats="HWC")
        self._events.flush()


def write_history(path: Path, history: History) -> None:
    """One line a round: step, seconds, learning_rate, each loss term, total, validation."""
    terms = list(history.rounds[0].losses)
    with whole_file(path) as part, open(part, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("step", "seconds", "learning_rate", *terms, "validation"))
        for r in history.rounds:
            writer.writerow((r.step, round(r.seconds, 2), r.learning_rate, *r.losses.values(), r.validation))
