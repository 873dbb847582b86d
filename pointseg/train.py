"""One training loop for weak, final and reference models, and the models it saves."""

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pointseg.losses import Move, Step, Term, weighted_total
from pointseg.network import autocast
from pointseg.slices import SliceDataset


@dataclass(frozen=True)
class Schedule:
    """Adam; the rate is divided by each divisor in turn when the training loss stops falling (thesis section 4.2).

    Losses are compared once a round of `round_steps` steps.  A stage ends after `patience` rounds without a new best
    loss, or after its share of `rounds`; training ends with the last stage, or after `stop_after` new best losses
    without a new best validation score.
    """

    learning_rate: float
    divisors: tuple[float, ...]
    rounds: tuple[int, ...]  # the most a stage may take
    round_steps: int
    batch: int
    patience: int
    stop_after: int


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


def training_step(network: nn.Module, batch: tuple[Tensor, Tensor, Tensor], move: Move,
                  terms: Sequence[tuple[float, Term]], optimizer: torch.optim.Optimizer,
                  class_weights: Tensor | None = None) -> dict[str, Tensor]:
    """Forward, loss terms, backward, update.  Nothing here waits for the device.   -> each term's value and "total"."""
    image, labels, extent = batch
    with autocast(image.device):
        step = Step(network, image.to(memory_format=torch.channels_last), labels, extent, move, class_weights)
        total, values = weighted_total(terms, step)
    total.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return values | {"total": total.detach()}


def fit(network: nn.Module, dataset: SliceDataset, terms: Sequence[tuple[float, Term]], schedule: Schedule,
        validate: Callable[[nn.Module], float], seed: int, name: str = "training",
        class_weights: Tensor | None = None) -> History:
    """Train in place; at the end the network holds its best weights by validation score."""
    torch.manual_seed(seed)  # for dropout: what ran before in this process must not matter
    where = next(network.parameters()).device
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), schedule.learning_rate, fused=True)
    rng = np.random.default_rng((seed, 1))
    class_weights = None if class_weights is None else class_weights.to(where)
    batches = endless_batches(dataset, schedule.batch, seed)
    if where.type != "cpu":  # there the thread would only take the network's cores
        batches = made_ahead(batches, where)
    history, best_loss, best_weights, bests_without_gain = History(), float("inf"), None, 0
    rate, step, start = schedule.learning_rate, 0, time.monotonic()
    bar = tqdm(total=sum(schedule.rounds) * schedule.round_steps, desc=name, unit="step", mininterval=1)
    for divisor, rounds in zip(schedule.divisors, schedule.rounds, strict=True):
        rate /= divisor
        for group in optimizer.param_groups:
            group["lr"] = rate
        stalled = 0
        for _ in range(rounds):
            network.train()
            values = []
            for _ in range(schedule.round_steps):
                batch = next(batches)
                move = Move(bool(rng.integers(2)), int(rng.integers(4)))
                values.append(training_step(network, batch, move, terms, optimizer, class_weights))
            step += schedule.round_steps
            losses = {key: float(torch.stack([v[key] for v in values]).mean()) for key in values[0]}
            if not np.isfinite(losses["total"]):
                raise FloatingPointError(f"{name}: the loss is {losses['total']} after {step} steps; "
                                         "look for a scan unlike the others, or lower the profile's learning rate")
            score = validate(network)
            history.rounds.append(Round(step, rate, losses, score, time.monotonic() - start))
            bar.update(schedule.round_steps)
            bar.set_postfix({k: f"{v:.3f}" for k, v in losses.items()} | {"val": f"{score:.3f}"}, refresh=False)
            gained = score > history.best_validation
            if gained:
                history.best_validation, history.best_step, bests_without_gain = score, step, 0
                best_weights = copy.deepcopy(network.state_dict())
            stalled += 1
            if losses["total"] < best_loss:
                best_loss, stalled, bests_without_gain = losses["total"], 0, bests_without_gain + (not gained)
            if bests_without_gain >= schedule.stop_after or stalled >= schedule.patience:
                break
        if bests_without_gain >= schedule.stop_after:
            break
    bar.close()
    if best_weights is not None:
        network.load_state_dict(best_weights)
    return history


def endless_batches(dataset: SliceDataset, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of whole epochs in random order, one epoch after the other; the last one of an epoch may be smaller."""
    generator = torch.Generator().manual_seed(seed)
    for epoch in itertools.count():
        order = torch.randperm(len(dataset), generator=generator) + epoch * len(dataset)
        for numbers in order.split(batch):
            yield dataset.batch(numbers.tolist())


def made_ahead(batches: Iterator[tuple[Tensor, ...]], where: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """The same batches on a device: while the network learns from one, a thread makes the next and sends it there."""
    def fetch() -> tuple[Tensor, ...]:
        batch = next(batches)
        if where.type == "cuda":  # pinned memory is what a GPU fetches from without anybody waiting
            batch = tuple(x.pin_memory() for x in batch)
        return tuple(x.to(where, non_blocking=True) for x in batch)

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(fetch)
        while True:
            batch = ahead.result()
            ahead = pool.submit(fetch)
            yield batch
