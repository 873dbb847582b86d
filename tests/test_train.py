"""The training loop: one step without a device, then the schedule with scripted losses and scores."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from tiny import TERMS, schedule_of, tiny_dataset, tiny_network, tiny_training
from torch import nn

from pointseg.losses import Move
from pointseg.profiles import Schedule
from pointseg.train import History, Round, Watch, fit, training_step


class OneNumber(nn.Module):
    """A network that is a single parameter."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.value.expand(len(x), 3, *x.shape[-2:])


def scripted(losses: Iterable[float]):
    """A term that takes these values one after the other; its slope is always 1, so Adam's steps are the rate."""
    losses = iter(losses)

    def term(step):
        value = step.logits.mean()
        return value - value.detach() + next(losses)
    return term


def fit_scripted(losses: Iterable[float], scores: Iterable[float],
                 schedule: Schedule) -> tuple[History, float, list[float]]:
    """-> history, the network's number at the end, and the numbers that were validated"""
    network, scores, shown = OneNumber(), iter(scores), []

    def validate() -> float:
        shown.append(network.value.item())
        return next(scores)

    steps = Watch().steps(tiny_dataset(), schedule.batch, 0)
    return fit(network, steps, [(1.0, scripted(losses))], schedule, validate), network.value.item(), shown


# --- one step ---

@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "norm"])
def test_training_step_without_a_device(batch_norm, weighted):
    """On `meta` there are shapes but no numbers: a step that reads one, or mixes in a CPU tensor, fails here, as it
    would make a GPU wait."""
    network = tiny_network(batch_norm, 6).to("meta")
    optimizer = torch.optim.Adam(network.parameters())
    batch = (torch.empty(2, 3, 64, 32, device="meta"), torch.empty(2, 64, 32, dtype=torch.uint8, device="meta"),
             torch.empty(2, 6, 64, 32, dtype=torch.bool, device="meta"))
    weights = torch.empty(6, device="meta") if weighted else None
    for move in (Move(False, 0), Move(True, 1)):
        values = training_step(network, batch, move, TERMS, optimizer, weights)
        assert list(values) == [term.__name__ for _, term in TERMS] + ["total"]
        assert all(v.is_meta and v.shape == () and not v.requires_grad for v in values.values())
    assert all(len(optimizer.state[p]) for p in network.parameters())  # every parameter was updated


@pytest.mark.parametrize("term", [lambda step: step.logits.mean() * step.logits.max().item(),
                                  lambda step: (step.logits * torch.ones(6, 1, 1)).mean()], ids=["item", "cpu"])
def test_meta_finds_what_waits(term):
    """The test above can fail."""
    network = tiny_network(num_classes=6).to("meta")
    batch = (torch.empty(1, 3, 32, 32, device="meta"), None, None)
    with pytest.raises(RuntimeError):
        training_step(network, batch, Move(False, 0), [(1.0, term)], torch.optim.Adam(network.parameters()))


def test_training_step_by_hand():
    """loss = 2 * 3 v, plain gradient descent with rate 0.1: from 0 to -0.6, and again to -1.2."""
    network = OneNumber()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)

    def three_times(step):
        return 3 * step.logits.mean()

    batch = (torch.zeros(2, 3, 8, 8), None, None)
    first = training_step(network, batch, Move(False, 0), [(2.0, three_times)], optimizer)
    assert network.value.item() == pytest.approx(-0.6)
    second = training_step(network, batch, Move(False, 0), [(2.0, three_times)], optimizer)
    assert network.value.item() == pytest.approx(-1.2)  # no gradient was left over
    assert [v.item() for v in first.values()] == [0, 0]
    assert {k: v.item() for k, v in second.items()} == pytest.approx({"three_times": -1.8, "total": -3.6})


# --- the schedule ---

@pytest.mark.parametrize(("schedule", "losses", "scores", "expected"), [
    (schedule_of((1, 10, 10), (2, 2, 1)), [1] * 9, [0] * 9, [0.1, 0.1, 0.01, 0.01, 0.001]),
    (schedule_of((1, 10, 10), (0, 1, 0)), [1] * 9, [0] * 9, [0.01]),
    # Two rounds without a new best loss end the first stage, 9 and 9 after 3 the second.
    (schedule_of((1, 10), (10, 10), patience=2), [5, 4, 4.5, 4, 3, 9, 9, 1], [0] * 8, [0.1] * 4 + [0.01] * 3),
    # A second stage that never beats the first one's 1 ends after its patience, falling losses or not.
    (schedule_of((1, 10), (2, 10), patience=3), [1, 2, 9, 8, 7, 6], [0] * 6, [0.1] * 2 + [0.01] * 3),
    # Every round brings a new best loss, the second one the best score: so many more, and training ends.
    *((schedule_of((1, 10), (10, 10), stop_after=n), range(9, 0, -1), [0.4, 0.5] + [0.3] * 9, [0.1] * (2 + n))
      for n in (1, 2, 3)),
    # After the first round's score only 4 and 3 are new best losses.
    (schedule_of(stop_after=2), [5, 6, 7, 4, 8, 3, 2, 1], [0.5] + [0.3] * 9, [0.1] * 6),
], ids=["divisors", "no rounds", "patience", "best loss", "stop 1", "stop 2", "stop 3", "bests"])
def test_rates_by_hand(schedule, losses, scores, expected):
    rounds = []
    while (rate := schedule.next_rate(rounds)) is not None:
        rounds.append(Round(0, rate, {"total": losses[len(rounds)]}, scores[len(rounds)], 0.0))
    assert [r.learning_rate for r in rounds] == pytest.approx(expected)


def test_a_training_follows_its_schedule():
    """Adam on a constant slope moves by its rate in each step: twice 0.1, twice 0.01, once 0.001."""
    history, _, shown = fit_scripted(range(10), [0] * 5, schedule_of((1, 10, 10), (2, 2, 1), round_steps=2))
    assert [r.step for r in history.rounds] == [2, 4, 6, 8, 10]
    assert np.diff([0, *shown]) == pytest.approx([-0.2, -0.2, -0.02, -0.02, -0.002], rel=1e-3)
    assert [r.losses for r in history.rounds[:2]] == [{"term": 0.5, "total": 0.5}, {"term": 2.5, "total": 2.5}]  # means


def test_the_best_weights_are_kept():
    """The first of equal scores, 0.7 in round 3."""
    scores = [0.1, 0.5, 0.7, 0.6, 0.7, 0.2]
    history, at_the_end, shown = fit_scripted(range(99, 0, -1), scores, schedule_of(rounds=(6,)))
    assert (history.best_step, history.best_validation) == (3, 0.7)
    assert at_the_end == shown[2] != shown[-1]


def test_without_a_score_the_last_weights_stay():
    _, at_the_end, shown = fit_scripted([1, 1], [float("nan")] * 2, schedule_of(rounds=(2,)))
    assert at_the_end == shown[-1] != 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number(bad):
    with pytest.raises(FloatingPointError, match=r"training.*after 4 steps.*learning rate"):
        fit_scripted([1, 1, bad, 1], [0.5, 0.5], schedule_of(round_steps=2))


def test_training_learns_and_repeats_itself():
    """The loss falls and squares are found; the same seed gives the same bits, whatever was drawn between."""
    schedule = schedule_of(rounds=(4,), learning_rate=3e-3, round_steps=10)
    history, weights = tiny_training(schedule)
    losses = [r.losses["point_term"] for r in history.rounds]
    assert losses[-1] < 0.5 * losses[0] and history.best_validation > 0.8
    torch.rand(3)  # what else the process drew
    again, same = tiny_training(schedule)
    assert [r.losses for r in again.rounds] == [r.losses for r in history.rounds]
    assert all(torch.equal(x, same[name]) for name, x in weights.items())
