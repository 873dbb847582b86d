"""The four terms: by hand on a pixel or two, against torch's own losses, and what symmetry demands."""

from dataclasses import replace
from functools import partial
from itertools import islice
from math import log

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pointseg.losses import (
    Move,
    Step,
    consistency_loss,
    consistency_term,
    extent_loss,
    extent_term,
    moved_point_term,
    point_loss,
    point_term,
    separation_loss,
    separation_term,
    weighted_total,
)
from pointseg.volume import UNLABELLED

MOVES = [Move(flip, turns) for flip in (False, True) for turns in range(4)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_labels(*shape: int, classes: int = 4, labelled: float = 0.3) -> torch.Tensor:
    return torch.randint(classes, shape).where(torch.rand(shape) < labelled, UNLABELLED).to(torch.uint8)


def step_of(network, move: Move = MOVES[0], size: tuple[int, int] = (6, 6), classes: int = 4) -> Step:
    return Step(network, torch.rand(2, 3, *size), random_labels(2, *size, classes=classes),
                torch.rand(2, classes, *size) < 0.5, move)


class Uneven(nn.Module):
    """A network whose answer depends on the place: no move leaves it alone."""

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.pixels = nn.Conv2d(3, 4, 1)
        self.places = nn.Parameter(torch.randn(size))

    def forward(self, x):
        return self.pixels(x) * self.places


# --- L_P ---

@pytest.mark.parametrize("weights", [None, torch.tensor([0.1, 1.0, 3.0, 0.5])], ids=["plain", "weighted"])
def test_point_loss_is_cross_entropy_at_the_points(weights):
    logits, labels = torch.randn(2, 4, 7, 5), random_labels(2, 7, 5)
    points = labels != UNLABELLED
    expected = F.cross_entropy(logits.movedim(1, -1)[points], labels[points].long(), weights)
    torch.testing.assert_close(point_loss(logits, labels, weights), expected)


def test_point_terms_use_the_steps_weights():
    """Class weights (K,) count by a point's true class, on the slice and on the moved slice alike."""
    weights = torch.tensor([0.1, 1.0, 3.0, 0.5])
    step = replace(step_of(Uneven((6, 6)), Move(True, 1)), class_weights=weights)
    torch.testing.assert_close(point_term(step), point_loss(step.logits, step.labels, weights))
    moved_labels = step.labels.flip(-1).rot90(1, (-2, -1))
    torch.testing.assert_close(moved_point_term(step), point_loss(step.moved_logits, moved_labels, weights))
    assert point_term(step) != point_loss(step.logits, step.labels)


def test_point_loss_by_hand():
    """Equal logits cost log 2; a lead of log 3 makes 3/4 of the probability, and costs log 4/3."""
    logits = torch.tensor([[0.0, log(3), 50.0], [0.0, 0.0, -50.0]]).reshape(1, 2, 1, 3)
    labels = torch.tensor([1, 0, UNLABELLED], dtype=torch.uint8).reshape(1, 1, 3)
    assert point_loss(logits, labels).item() == pytest.approx((log(2) + log(4 / 3)) / 2)
    weights = torch.tensor([1.0, 3.0])
    assert point_loss(logits, labels, weights).item() == pytest.approx((3 * log(2) + log(4 / 3)) / 4)


def test_point_loss_without_points():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = point_loss(logits, torch.full((1, 4, 4), UNLABELLED, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.tolist() == torch.zeros(1, 3, 4, 4).tolist()


# --- L_S ---

def test_separation_loss_by_hand():
    """Sigmoids 1/2, 3/4, 1/4 differ by 1/4 + 1/4 + 1/2 = 1, the other pixel's not at all: the mean is 1/2."""
    logits = torch.tensor([[0.0, 1.0], [log(3), 1.0], [-log(3), 1.0]]).reshape(1, 3, 1, 2)
    assert separation_loss(logits).item() == pytest.approx(-0.5)


def test_separation_needs_its_absolute_value():
    """Equation 2 as the abstract prints it changes sign when the classes swap places: it prefers their order."""
    def as_printed(logits):
        s = logits.sigmoid()
        pairs = [(m, n) for m in range(s.shape[1]) for n in range(m + 1, s.shape[1])]
        return -sum(s[:, m] - s[:, n] for m, n in pairs).mean()

    logits = torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(as_printed(logits), -as_printed(logits.flip(1)))
    torch.testing.assert_close(separation_loss(logits), separation_loss(logits.flip(1)))
    torch.testing.assert_close(separation_loss(logits), separation_loss(logits[:, torch.randperm(5)]))
    assert separation_loss(logits) < -abs(as_printed(logits))
    assert separation_loss(logits[:, :1].expand(-1, 5, -1, -1)) == 0  # maps that do not differ


# --- L_E ---

def test_extent_loss_is_half_of_binary_cross_entropy():
    """Equation 4 in words: cross-entropy to the extent mask, with weight 0 on the positive side."""
    logits, extent = torch.randn(2, 4, 5, 6), torch.rand(2, 4, 5, 6) < 0.5
    expected = F.binary_cross_entropy_with_logits(logits[:, 1:], extent[:, 1:].float(), pos_weight=torch.zeros(1))
    torch.testing.assert_close(extent_loss(logits, extent), expected)


def test_extent_loss_by_hand():
    """One of two pixels is far.  A logit of log 3 means 3/4 there, which costs log 4; equation 4 as printed adds
    log 3/4 instead, a cost below 0 that has no lower bound."""
    logits = torch.tensor([[9.0, 9.0], [log(3), 5.0]]).reshape(1, 2, 1, 2)
    extent = torch.tensor([[False, False], [False, True]]).reshape(1, 2, 1, 2)
    assert extent_loss(logits, extent).item() == pytest.approx(log(4) / 2)


def test_extent_loss_is_stable():
    logits = torch.tensor([[0.0, 0.0], [1e4, -1e4]]).reshape(1, 2, 1, 2).requires_grad_()
    loss = extent_loss(logits, torch.zeros(1, 2, 1, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(1e4 / 2)
    assert logits.grad.flatten().tolist() == [0, 0, 0.5, 0]


def test_extent_leaves_background_and_unknown_classes_alone():
    """Without points the mask is all True; the dataset then hands in a single pixel for each class."""
    logits, extent = torch.randn(2, 4, 5, 6, requires_grad=True), torch.zeros(2, 4, 5, 6, dtype=torch.bool)
    extent[:, 2] = True
    extent_loss(logits, extent).backward()
    reached = logits.grad.abs().sum((0, 2, 3)) > 0
    assert reached.tolist() == [False, True, False, True]
    assert extent_loss(logits, torch.ones(2, 4, 1, 1, dtype=torch.bool)) == 0


# --- L_C and the moves ---

def test_moves_by_hand():
    """A flip swaps columns; a turn is counter-clockwise and comes second."""
    x = torch.tensor([[1, 2], [3, 4]])
    assert Move(True, 0)(x).tolist() == [[2, 1], [4, 3]]
    assert Move(False, 1)(x).tolist() == [[2, 4], [1, 3]]
    assert Move(True, 1)(x).tolist() == [[1, 3], [2, 4]]
    assert len({str(move(x).tolist()) for move in MOVES}) == 8  # all symmetries of the square


def test_moves_are_drawn_from_the_seed_and_from_any_step_on():
    drawn = list(islice(Move.draws(3), 100))
    assert set(drawn) == set(MOVES)
    assert list(islice(Move.draws(3, start=60), 40)) == drawn[60:] and list(islice(Move.draws(4), 100)) != drawn


@pytest.mark.parametrize("move", MOVES, ids=str)
def test_consistency_is_zero_for_what_moves_along(move):
    step = step_of(nn.Conv2d(3, 4, 1), move, (4, 6))
    assert consistency_term(step).item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(moved_point_term(step), point_term(step))


@pytest.mark.parametrize("move", MOVES[1:], ids=str)
def test_consistency_punishes_what_depends_on_the_place(move):
    step = step_of(Uneven((6, 6)), move)
    assert consistency_term(step) > 0.01
    assert (moved_point_term(step) - point_term(step)).abs() > 1e-4


def test_consistency_by_hand():
    a = torch.tensor([1.0, 5.0]).reshape(1, 1, 1, 2).requires_grad_()
    b = torch.tensor([4.0, 4.0]).reshape(1, 1, 1, 2).requires_grad_()
    loss = consistency_loss(a, b)
    loss.backward()
    assert loss.item() == 2  # (3 + 1) / 2
    assert a.grad.flatten().tolist() == [-0.5, 0.5]
    assert b.grad.flatten().tolist() == [0.5, -0.5]  # gradients flow through both


def test_a_step_asks_the_network_once_for_each_answer():
    asked = []

    def network(x):
        asked.append(x.clone())
        return torch.stack([x[:, 0], x[:, 1] ** 2, x[:, 2], x[:, 0]], 1)

    step = step_of(network, Move(True, 1))
    point_term(step), separation_term(step), extent_term(step)
    assert len(asked) == 1
    moved_point_term(step), consistency_term(step)
    assert len(asked) == 2
    assert (asked[0] == step.image).all()
    assert (asked[1] == step.image.flip(-1).rot90(1, (-2, -1))).all()


# --- the sum ---

def test_weighted_total():
    step = step_of(Uneven((6, 6)), Move(True, 1))
    terms = [point_term, moved_point_term, consistency_term, separation_term, extent_term]
    weights = (1.0, 0.5, 0.25, 0.0, 2.0)
    total, values = weighted_total(list(zip(weights, terms, strict=True)), step)
    assert list(values) == [term.__name__ for term in terms]
    for term in terms:
        torch.testing.assert_close(values[term.__name__], term(step).detach())  # its own value, whatever its weight
    torch.testing.assert_close(total.detach(), sum(w * values[t.__name__] for w, t in zip(weights, terms, strict=True)))
    assert total.requires_grad and not any(v.requires_grad for v in values.values())


def test_no_value_is_lost():
    """Two lambdas share a name, as in the module's own example, and a partial has none: all show up in the history."""
    step = step_of(nn.Conv2d(3, 4, 1))
    terms = [lambda s: s.logits.mean(), lambda s: s.logits.std(), partial(lambda s, by: by * s.logits.std(), by=2)]
    total, values = weighted_total([(1.0, term) for term in terms], step)
    assert len(values) == 3
    torch.testing.assert_close(sum(values.values()), total.detach())
