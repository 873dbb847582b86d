"""The training loop, the same for weak, final and reference models.

`training_step` is what notebook 07 writes out, `fit` repeats it on a schedule.  Neither knows of files or of other
processes: `runs` keeps a training's state, draws it, and divides it among processes by a `Watch` of its own.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pointseg.losses import Move, Step, Term, weighted_total
from pointseg.network import autocast
from pointseg.profiles import Schedule
from pointseg.slices import Batch, SliceDataset


@dataclass
class Round:
    """What one round of training did."""

    step: int
    learning_rate: float
    losses: dict[str, float]  # mean of each term, and "total"
    validation: float  # Dice_wi on the prepared grid
    seconds: float


@dataclass
class History:
    rounds: list[Round] = field(default_factory=list)
    best_step: int = 0
    best_validation: float = float("-inf")

    @property
    def still_improving(self) -> bool:
        """The last round's score is the best by more than 0.01, so more rounds would have helped."""
        before = [r.validation for r in self.rounds[:-1]]
        return bool(before) and self.rounds[-1].validation > max(before) + 0.01


@dataclass
class Training:
    """All that changes while a network is trained: what a checkpoint has to hold."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    history: History = field(default_factory=History)
    step: int = 0
    values: list[dict[str, Tensor]] = field(default_factory=list)  # the losses of this round's steps
    best_weights: dict[str, Tensor] | None = None
    began_s: float = field(default_factory=time.monotonic)  # earlier, where it goes on from a checkpoint


class Watch:
    """What stands around a training: says what to train and on what, is told of each step.   This one shows a bar."""

    def __init__(self, name: str = "training"):
        self.name = name

    def take(self, model, scan) -> nn.Module:
        """What to train of a `Model`: its network.   scan: one of those to validate on, for whom wants to draw it."""
        return model.network

    def steps(self, dataset: SliceDataset, size: int, seed: int) -> Callable[[int], Iterator[tuple[Batch, Move]]]:
        """Given a step's number, the batches from there on, each with its move."""
        return lambda start: zip(dataset.batches(size, seed, start), Move.draws(seed, start))

    def start(self, training: Training) -> None:
        """Before the first step, which is that of `training.step`: a state that was kept is put back here."""
        steps = sum(training.schedule.rounds) * training.schedule.round_steps
        self.bar = tqdm(total=steps, desc=self.name, unit="step", mininterval=1, initial=training.step)

    def after_step(self, training: Training) -> None:
        pass

    def after_round(self, training: Training) -> None:
        last = training.history.rounds[-1]
        self.bar.set_postfix(loss=f"{last.losses['total']:.3f}", validation=f"{last.validation:.3f}", refresh=False)
        self.bar.update(training.schedule.round_steps)

    def end(self) -> None:
        self.bar.close()


def training_step(network: nn.Module, batch: Batch, move: Move, terms: Sequence[tuple[float, Term]],
                  optimizer: torch.optim.Optimizer, class_weights: Tensor | None = None) -> dict[str, Tensor]:
    """Forward, loss terms, backward, update.  Nothing here waits for the device.   -> each term's value and "total"."""
    image, labels, extent = batch
    with autocast(image.device):
        step = Step(network, image.to(memory_format=torch.channels_last), labels, extent, move, class_weights)
        total, values = weighted_total(terms, step)
    total.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return values | {"total": total.detach()}


def fit(network: nn.Module, steps: Callable[[int], Iterator[tuple[Batch, Move]]], terms: Sequence[tuple[float, Term]],
        schedule: Schedule, validate: Callable[[], float], class_weights: Tensor | None = None,
        watch: Watch | None = None) -> History:
    """Train in place; at the end the network holds its best weights by validation score.

    steps: as `Watch.steps`.  validate: the network's score as it is.
    """
    watch, where = watch or Watch(), next(network.parameters()).device
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), schedule.learning_rate, fused=True)
    training = Training(network, optimizer, schedule)
    watch.start(training)
    history, batches = training.history, steps(training.step)
    class_weights = None if class_weights is None else class_weights.to(where)
    while (rate := schedule.next_rate(history.rounds)) is not None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        network.train()
        while training.step < (len(history.rounds) + 1) * schedule.round_steps:
            batch, move = next(batches)
            batch = tuple(x.to(where, non_blocking=True) for x in batch)
            training.values.append(training_step(network, batch, move, terms, optimizer, class_weights))
            training.step += 1
            watch.after_step(training)
        losses = {name: float(torch.stack([v[name] for v in training.values]).mean()) for name in training.values[0]}
        if not np.isfinite(losses["total"]):
            raise FloatingPointError(f"{watch.name}: the loss is {losses['total']} after {training.step} steps; "
                                     "look for a scan unlike the others, or lower the profile's learning rate")
        score, training.values = validate(), []
        history.rounds.append(Round(training.step, rate, losses, score, time.monotonic() - training.began_s))
        if score > history.best_validation:
            history.best_step, history.best_validation = training.step, score
            training.best_weights = copy.deepcopy(network.state_dict())
        watch.after_round(training)
    watch.end()
    if training.best_weights is not None:
        network.load_state_dict(training.best_weights)
    return history
