"""The loss terms of the thesis ("Loss functions"), as plain functions from tensors to a scalar.

Axis letters: B batch, K classes, H height, W width.  Means run over batch, channels and pixels, so that sizes compare.
The total is a list of (weight, term); a term is any function from a `Step` to a scalar:

    terms = [(1.0, point_term), (0.5, lambda step: my_own_loss(step.logits, step.labels))]
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pointseg.volume import UNLABELLED


def point_loss(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy at labelled pixels only.   logits (B, K, H, W), labels (B, H, W), UNLABELLED elsewhere -> scalar.

    class_weights (K,) weighs each pixel by its true class.  0 where nothing is labelled, not 0 / 0.   Thesis L_P.
    """
    weights = logits.new_ones(logits.shape[1]) if class_weights is None else class_weights
    loss = F.cross_entropy(logits, labels.long(), weights, ignore_index=UNLABELLED, reduction="sum")
    labelled = labels != UNLABELLED
    weight = (weights[labels.long().where(labelled, 0)] * labelled).sum()  # of all labelled pixels, by their class
    return loss / weight.clamp(min=1e-12)


def consistency_loss(answer_moved: Tensor, answer_to_moved: Tensor) -> Tensor:
    """mean |t(f(x)) - f(t(x))| for a transformation t.   both (B, K, H, W) -> scalar >= 0.   Laradji et al. 2021."""
    return (answer_moved - answer_to_moved).abs().mean()


def separation_loss(logits: Tensor) -> Tensor:
    """Reward class maps that differ.   logits (B, K, H, W) -> scalar <= 0.   Thesis eq. 2, with its absolute value."""
    s = logits.sigmoid()
    m, n = torch.triu_indices(s.shape[1], s.shape[1], offset=1, device=s.device)  # every pair of classes once
    return -(s[:, m] - s[:, n]).abs().sum(1).mean()


def extent_loss(logits: Tensor, extent: Tensor) -> Tensor:
    """Punish a vertebra's class far from its points: mean over k >= 1 of (1 - m_k) * -log(1 - S(z_k)).   Thesis eq. 4.

    logits z (B, K, H, W), extent m (B, K, H, W) bool: True within the radius of *all* points of the class on this slice
    -> scalar >= 0.
    """
    far = ~extent[:, 1:]
    return (far * F.softplus(logits[:, 1:])).mean()  # softplus(z) = -log(1 - S(z)), without the overflow


@dataclass(frozen=True)
class Move:
    """A transformation of slices: a horizontal flip or not, then a rotation by quarter_turns * 90 degrees."""

    flip: bool
    quarter_turns: int

    def __call__(self, x: Tensor) -> Tensor:
        x = x.flip(-1) if self.flip else x
        return x.rot90(self.quarter_turns, (-2, -1))

    @classmethod
    def draws(cls, seed: int, start: int = 0) -> Iterator["Move"]:
        """A random one for each training step, from step number `start` on."""
        rng = np.random.default_rng((seed, 1))
        every = (cls(bool(rng.integers(2)), int(rng.integers(4))) for _ in itertools.count())
        return itertools.islice(every, start, None)


@dataclass(frozen=True)
class Step:
    """What one training step offers to the loss terms.  Network outputs are computed when a term first asks."""

    network: Callable[[Tensor], Tensor]
    image: Tensor  # (B, 3, H, W)
    labels: Tensor  # (B, H, W) uint8
    extent: Tensor  # (B, K, H, W) bool
    move: Move
    class_weights: Tensor | None = None  # (K,)

    @cached_property
    def logits(self) -> Tensor:
        """f(x), (B, K, H, W)"""
        return self.network(self.image)

    @cached_property
    def moved_logits(self) -> Tensor:
        """f(t(x)): the network's answer to the transformed slice"""
        return self.network(self.move(self.image))


Term = Callable[[Step], Tensor]


def point_term(step: Step) -> Tensor:
    return point_loss(step.logits, step.labels, step.class_weights)


def moved_point_term(step: Step) -> Tensor:
    return point_loss(step.moved_logits, step.move(step.labels), step.class_weights)


def consistency_term(step: Step) -> Tensor:
    return consistency_loss(step.move(step.logits), step.moved_logits)


def separation_term(step: Step) -> Tensor:
    return separation_loss(step.logits)


def extent_term(step: Step) -> Tensor:
    return extent_loss(step.logits, step.extent)


def weighted_total(terms: list[tuple[float, Term]], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of weight * term(step), and each term's own value (detached, unweighted) under its function's name."""
    total, values = 0.0, {}
    for weight, term in terms:
        value = term(step)
        total = total + weight * value
        name = getattr(term, "__name__", type(term).__name__)  # a partial has none
        values[f"{name} {len(values) + 1}" if name in values else name] = value.detach()
    return total, values
