"""One training loop for weak, final and reference models.

Every step is a function of the seed, the step's number and the state before it, so that a training can be taken up
again from a stored state, or be divided among processes, and give the same.
"""

import copy
import functools
import itertools
import math
import operator
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from pointseg.losses import Move, Step, Term, labelled_weight, weighted_total
from pointseg.network import BatchDropout, BatchNorm, autocast
from pointseg.runs.parallel import Part, all_sum, from_main, part_of, rank, world_size
from pointseg.runs.weights import check_tensors
from pointseg.scans.files import Damaged, first_line
from pointseg.slices import SliceDataset
from pointseg.volume import ScanError

Batch = tuple[Tensor, Tensor, Tensor]  # images (B, 3, h, w), labels (B, h, w), extents (B, K, h, w)


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

    @classmethod
    def from_dict(cls, content: dict) -> "History":
        """What `dataclasses.asdict` made of one."""
        return cls(**content | {"rounds": [Round(**r) for r in content["rounds"]]})

    @property
    def still_improving(self) -> bool:
        """The last round's score is the best by more than 0.01, so more rounds would have helped."""
        before = [r.validation for r in self.rounds[:-1]]
        return bool(before) and self.rounds[-1].validation > max(before) + 0.01


@dataclass
class Place:
    """Where a training stands between two steps."""

    step: int = 0
    stage: int = 0  # index of the divisor
    rounds: int = 0  # of this stage
    stalled: int = 0
    best_loss: float = math.inf
    bests_without_gain: int = 0
    micro_batch: int | None = None  # slices at a time, where a whole batch is more than memory holds
    offload: bool = False  # or what the backward pass needs waits in the CPU's memory


class Keeper(Protocol):
    """What `fit` asks of whoever keeps a training's state on disk; see `checkpoint.Checkpoints`."""

    def due(self, least_s: float = ...) -> bool: ...

    def write(self, state: dict) -> None: ...

    def read(self, fits: Callable[[dict], None]) -> dict | None: ...

    def show(self, history: History, network: nn.Module) -> None: ...


def training_step(network: nn.Module, batch: Batch, move: Move, terms: Sequence[tuple[float, Term]],
                  optimizer: torch.optim.Optimizer, class_weights: Tensor | None = None, part: Part | None = None,
                  micro_batch: int | None = None) -> dict[str, Tensor]:
    """Forward, loss terms, backward, update.  Nothing here waits for the device.   -> each term's value and "total".

    part: which slices of the whole batch `batch` is, where other processes have the others; the values are those of the
    whole.  micro_batch: so many slices at a time, whose gradients add up to the batch's.
    """
    labels = batch[1]
    count = len(batch[0])
    part = part or Part(0, count, count)
    at_once = micro_batch or max(count, 1)
    starts = range(0, max(count, 1), at_once)  # a process without slices still takes part, with none
    labelled = None
    if len(starts) > 1 or world_size() > 1:
        weights = labels.new_ones(batch[2].shape[1], dtype=torch.float32) if class_weights is None else class_weights
        # Piece by piece, so that processes that have a piece each add up the same numbers in the same order.
        labelled = all_sum(torch.stack([labelled_weight(piece, weights) for piece in labels.split(at_once)]).sum(0))
    generator = _generator_state(batch[0].device) if len(starts) > 1 else None
    sums: dict[str, Tensor] = {}
    for start in starts:
        image, target, extent = batch if len(starts) == 1 else (x[start : start + at_once] for x in batch)
        piece = part.piece(start, len(image))
        share = piece.count / piece.total
        _set_part(network, piece)
        if generator is not None:
            _set_generator_state(batch[0].device, generator)  # dropout is drawn for the whole batch, each time anew
        last = start == starts[-1]
        with nullcontext() if last or world_size() == 1 else network.no_sync():
            with autocast(image.device):
                step = Step(network, image.to(memory_format=torch.channels_last), target, extent, move, class_weights,
                            None if labelled is None else labelled * share)
                total, values = weighted_total(terms, step)
            scale = share * world_size()  # DistributedDataParallel takes the mean over processes, which have to add up
            (total if scale == 1 else total * scale).backward()
        for name, value in (values | {"total": total.detach()}).items():
            value = value * share if share else torch.zeros_like(value)  # the mean of no slices is no number
            sums[name] = sums[name] + value if name in sums else value
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if world_size() > 1:
        sums = dict(zip(sums, all_sum(torch.stack(list(sums.values()))).unbind(), strict=True))
    return sums


def fit(network: nn.Module, dataset: SliceDataset, terms: Sequence[tuple[float, Term]], schedule: Schedule,
        validate: Callable[[nn.Module], float], seed: int, name: str = "training",
        class_weights: Tensor | None = None, keeper: Keeper | None = None, workers: int = 0,
        micro_batch: int | None = None) -> History:
    """Train in place; at the end the network holds its best weights by validation score.

    keeper: where the state is kept; a training that was broken off goes on from there.  workers: processes that make
    batches; 0: this one.  micro_batch: slices at a time, where a whole batch does not fit into memory, see
    `step_in_memory`; found out where it is not given and one process trains.
    """
    torch.manual_seed(seed)  # for dropout: what ran before in this process must not matter
    where = next(network.parameters()).device
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), schedule.learning_rate, fused=True)
    class_weights = None if class_weights is None else class_weights.to(where)
    place, history, best_weights, before_s = Place(), History(), None, 0.0
    values: dict[str, list[Tensor]] = {}  # of the steps of this round
    if state := from_main(lambda: keeper.read(lambda s: _check_fits(s, network))) if keeper else None:
        place, history = Place(**state["place"]), History.from_dict(state["history"])
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        best_weights = state["best_weights"] and {k: x.to(where) for k, x in state["best_weights"].items()}
        values = {key: list(of_steps.to(where).unbind()) for key, of_steps in state["values"].items()}
        before_s = state["seconds"]
        _set_generator_state(where, state["generator"])
    if micro_batch:
        divisible = not has_batch_norm(network)
        place.micro_batch, place.offload = micro_batch if divisible else None, not divisible
    trained = distributed(network) if world_size() > 1 else network
    batches = zip(batch_numbers(len(dataset), schedule.batch, seed, place.step),
                  endless_batches(dataset, schedule.batch, seed, place.step, workers, where))
    moves = np.random.default_rng((seed, 1))
    for _ in range(place.step):
        draw_move(moves)
    start = time.monotonic()

    def state_now() -> dict:
        return {"place": asdict(place), "history": asdict(history), "network": network.state_dict(),
                "optimizer": optimizer.state_dict(), "best_weights": best_weights,
                "values": {key: torch.stack(of_steps) for key, of_steps in values.items()},
                "seconds": before_s + time.monotonic() - start, "generator": _generator_state(where)}

    def keep(**least) -> None:
        if keeper and rank() == 0 and keeper.due(**least):
            keeper.write(state_now())

    bar = tqdm(total=sum(schedule.rounds) * schedule.round_steps, desc=name, unit="step", mininterval=1,
               initial=place.step, disable=rank() > 0)
    while place.stage < len(schedule.rounds):
        if place.rounds == schedule.rounds[place.stage]:
            place.stage, place.rounds, place.stalled = place.stage + 1, 0, 0
            continue
        rate = functools.reduce(operator.truediv, schedule.divisors[: place.stage + 1], schedule.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        network.train()
        end = (len(history.rounds) + 1) * schedule.round_steps
        while place.step < end:
            numbers, batch = next(batches)
            step = step_in_memory(trained, batch, draw_move(moves), terms, optimizer, class_weights,
                                  part_of(len(numbers)), place)
            for key, value in step.items():
                values.setdefault(key, []).append(value)
            place.step += 1
            keep()
        keep(least_s=1.0)  # before a validation, which may take as long as many steps
        losses = {key: float(torch.stack(of_steps).mean()) for key, of_steps in values.items()}
        if not np.isfinite(losses["total"]):
            raise FloatingPointError(f"{name}: the loss is {losses['total']} after {place.step} steps; "
                                     "look for a scan unlike the others, or lower the profile's learning rate")
        score = validate(network)
        values = {}
        history.rounds.append(Round(place.step, rate, losses, score, before_s + time.monotonic() - start))
        bar.update(schedule.round_steps)
        bar.set_postfix({k: f"{v:.3f}" for k, v in losses.items()} | {"val": f"{score:.3f}"}, refresh=False)
        gained = score > history.best_validation
        if gained:
            history.best_validation, history.best_step, place.bests_without_gain = score, place.step, 0
            best_weights = copy.deepcopy(network.state_dict())
        place.rounds += 1
        place.stalled += 1
        if losses["total"] < place.best_loss:
            place.best_loss, place.stalled = losses["total"], 0
            place.bests_without_gain += not gained
        if place.bests_without_gain >= schedule.stop_after:
            place.stage = len(schedule.rounds)
        elif place.stalled >= schedule.patience:
            place.rounds = schedule.rounds[place.stage]
        if keeper and rank() == 0:
            keeper.show(history, network)
            keep(least_s=1.0)
    bar.close()
    if best_weights is not None:
        network.load_state_dict(best_weights)
    _set_part(network, None)
    return history


def step_in_memory(network: nn.Module, batch: Batch, move: Move, terms: Sequence[tuple[float, Term]],
                   optimizer: torch.optim.Optimizer, class_weights: Tensor | None, part: Part,
                   place: Place) -> dict[str, Tensor]:
    """`training_step`; where memory runs out, once more in a way that takes less and gives the same.

    Half as many slices at a time, until they fit.  With batch norm, whose statistics are the whole batch's, what the
    backward pass needs moves to the CPU's memory instead.
    """
    where = batch[0].device
    while True:
        generator, buffers = _generator_state(where), [b.clone() for b in network.buffers()]
        try:
            with torch.autograd.graph.save_on_cpu(where.type == "cuda") if place.offload else nullcontext():
                return training_step(network, batch, move, terms, optimizer, class_weights, part, place.micro_batch)
        except torch.cuda.OutOfMemoryError as error:
            found = first_line(error)  # what has been computed is let go of where this block ends
        at_once, whole = place.micro_batch or len(batch[0]), has_batch_norm(network)
        if world_size() > 1:
            raise ScanError(f"rank {rank()}: out of memory ({found}), expected room for {at_once} slices; "
                            f"start again with --micro-batch {max(1, at_once // 2)}, or more processes")
        if at_once == 1 or place.offload:
            raise ScanError(f"out of memory ({found}), expected room for {'a batch' if whole else 'one slice'}; take a "
                            "coarser grid or a larger GPU")
        if whole:
            place.offload = True
        else:
            place.micro_batch = (at_once + 1) // 2
        print("out of memory: what the backward pass needs now waits in the CPU's memory" if whole else
              f"out of memory: from now on {place.micro_batch} slices at a time, whose gradients are added up")
        optimizer.zero_grad(set_to_none=True)
        _set_generator_state(where, generator)
        for buffer, kept in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(kept)
        if where.type == "cuda":
            torch.cuda.empty_cache()


def has_batch_norm(network: nn.Module) -> bool:
    """Whether what a network makes of a slice depends on the others of its batch."""
    return any(isinstance(module, BatchNorm) for module in network.modules())


def draw_move(rng: np.random.Generator) -> Move:
    return Move(bool(rng.integers(2)), int(rng.integers(4)))


def batch_numbers(count: int, batch: int, seed: int, start: int = 0) -> Iterator[Tensor]:
    """Numbers of a data set's items, batch by batch from batch number `start` on: whole epochs in random order.

    The last batch of an epoch may be smaller.
    """
    generator = torch.Generator().manual_seed(seed)
    skipped_epochs, skipped = divmod(start, math.ceil(count / batch))
    for epoch in itertools.count():
        order = torch.randperm(count, generator=generator)  # also of skipped epochs, for the generator's sake
        if epoch >= skipped_epochs:
            yield from (order + epoch * count).split(batch)[skipped:]
            skipped = 0


def endless_batches(dataset: SliceDataset, batch: int, seed: int, start: int = 0, workers: int = 0,
                    where: torch.device | None = None) -> Iterator[Batch]:
    """This process's part of each batch of `batch_numbers`, on a device where one is given.

    workers: so many processes make batches ahead, in the same order; 0: they are made when they are asked for, which
    for a GPU is ahead too, since nothing waits for its last step.
    """
    parts = ((numbers := of_batch.tolist())[(p := part_of(len(numbers))).first : p.first + p.count]
             for of_batch in batch_numbers(len(dataset), batch, seed, start))
    if workers:
        batches = DataLoader(dataset, batch_sampler=parts, num_workers=workers, collate_fn=_as_it_is,
                             generator=torch.Generator())  # its own, or it would draw from the network's
    else:
        batches = map(dataset.batch, parts)
    for made in batches:
        if where is None:
            yield made
            continue
        if where.type == "cuda":  # pinned memory is what a GPU fetches from without anybody waiting
            made = tuple(x.pin_memory() for x in made)
        yield tuple(x.to(where, non_blocking=True) for x in made)


def distributed(network: nn.Module) -> DistributedDataParallel:
    # Buffers are the same everywhere and are not sent; gradients that are views of what is sent take half the memory.
    with warnings.catch_warnings():  # of the first option's newer name, which older versions do not know
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)


def _check_fits(state: dict, network: nn.Module) -> None:
    """Raise where a stored state is not one of this network's training."""
    for part in ("network", "best_weights"):
        if part == "network" or state[part] is not None:
            check_tensors(state[part], network.state_dict())
    parameters = dict(enumerate(network.parameters()))
    for moment in ("exp_avg", "exp_avg_sq"):
        check_tensors({i: of[moment] for i, of in state["optimizer"]["state"].items()}, parameters)
    place, history = Place(**state["place"]), History.from_dict(state["history"])
    if not (0 <= len(history.rounds) <= place.step and place.stage >= 0 and state["seconds"] >= 0):
        raise Damaged("its place is impossible")
    if state["generator"].dtype != torch.uint8 or any(x.ndim != 1 for x in state["values"].values()):
        raise Damaged("its random numbers or losses are of another kind")


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _set_part(network: nn.Module, part: Part | None) -> None:
    for module in network.modules():
        if isinstance(module, BatchDropout):
            module.part = part


def _generator_state(where: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(where) if where.type == "cuda" else torch.get_rng_state()


def _set_generator_state(where: torch.device, state: Tensor) -> None:
    torch.cuda.set_rng_state(state, where) if where.type == "cuda" else torch.set_rng_state(state)
