"""The training loop: one step without a device, then the schedule with scripted losses and scores."""

import contextlib
import copy
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from tiny import TERMS, schedule_of, tiny_dataset, tiny_network, tiny_scan
from torch import nn

from pointseg.losses import Move, consistency_term, point_term
from pointseg.network import FCN8VGG16
from pointseg.predict import validation_score
from pointseg.preprocess import Prepared
from pointseg.slices import SliceDataset
from pointseg.train import Schedule, batch_numbers, endless_batches, fit, training_step
from pointseg.volume import ScanError


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


class Scores:
    """A validation with scripted scores, which keeps a copy of the network it was shown."""

    def __init__(self, scores: Iterable[float]):
        self.scores, self.shown = iter(scores), []

    def __call__(self, network: nn.Module) -> float:
        self.shown.append(copy.deepcopy(network.state_dict()))
        return next(self.scores)


def fit_scripted(losses: Iterable[float], scores: Iterable[float], schedule: Schedule):
    network, validate = OneNumber(), Scores(scores)
    return fit(network, tiny_dataset(), [(1.0, scripted(losses))], schedule, validate, seed=0), network, validate


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


# --- a batch in parts ---

def stepped(network: FCN8VGG16, micro_batch: int | None = None, terms=TERMS) -> tuple[dict, dict, torch.Tensor]:
    """One step with dropout, class weights and points that are unevenly spread.   -> values, gradients, random state"""
    class Kept(torch.optim.SGD):
        def step(self):
            self.kept = {name: p.grad.clone() for name, p in network.named_parameters()}

    rng = np.random.default_rng(0)
    labels = np.full((5, 64, 32), 255, np.uint8)
    for b, count in enumerate((9, 1, 0, 4, 2)):
        labels[b].flat[rng.choice(64 * 32, count, replace=False)] = rng.integers(0, 6, count)
    batch = (torch.from_numpy(rng.random((5, 3, 64, 32), np.float32)), torch.from_numpy(labels),
             torch.from_numpy(rng.random((5, 6, 64, 32)) < 0.5))
    optimizer, weights = Kept(network.parameters(), 0.1), torch.tensor([0.2, 1, 2, 1, 1, 0.8])
    torch.manual_seed(1)
    values = training_step(network.train(), batch, Move(True, 1), terms, optimizer, weights, micro_batch=micro_batch)
    return values, optimizer.kept, torch.get_rng_state()


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4, 5, 9])
def test_gradients_of_micro_batches_add_up(micro_batch, monkeypatch):
    """All terms, each with its own kind of mean; the same dropout, and what is drawn next is the same too."""
    monkeypatch.setattr("pointseg.train.autocast", lambda where: contextlib.nullcontext())
    values, gradients, state = stepped(tiny_network(False, 6))
    parts = stepped(tiny_network(False, 6), micro_batch)
    for name, value in values.items():
        torch.testing.assert_close(parts[0][name], value, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(parts[1][name], gradient, rtol=1e-4, atol=1e-4 * gradient.abs().max().item())
    assert torch.equal(parts[2], state)


def test_a_micro_batch_without_a_device():
    """As `test_training_step_without_a_device`: dividing a batch must not make a GPU wait either."""
    network = tiny_network(False, 6).to("meta")
    batch = (torch.empty(5, 3, 64, 32, device="meta"), torch.empty(5, 64, 32, dtype=torch.uint8, device="meta"),
             torch.empty(5, 6, 64, 32, dtype=torch.bool, device="meta"))
    values = training_step(network, batch, Move(True, 1), TERMS, torch.optim.Adam(network.parameters()), None,
                           micro_batch=2)
    assert all(v.is_meta for v in values.values())


def room_for(slices: int):
    """A term that runs out of memory where it sees more slices than that, in the middle of a step."""
    def term(step):
        value = point_term(step)
        if len(step.image) > slices:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return value
    return term


def fitted(network: FCN8VGG16, term, **options) -> tuple[list[float], FCN8VGG16]:
    history = fit(network, tiny_dataset(), [(1.0, term)], schedule_of(rounds=(2,), learning_rate=1e-3, round_steps=5),
                  lambda n: 0.0, 3, **options)
    return [r.losses["total"] for r in history.rounds], network


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_out_of_memory_is_answered_with_smaller_pieces(slices, monkeypatch, capsys):
    """The losses are those of whole batches."""
    monkeypatch.setattr("pointseg.train.autocast", lambda where: contextlib.nullcontext())
    losses, _ = fitted(tiny_network(False), point_term)
    found, _ = fitted(tiny_network(False), room_for(slices))
    assert found == pytest.approx(losses, rel=1e-4)
    assert f"{min(2, slices)} slices at a time" in capsys.readouterr().out
    assert fitted(tiny_network(False), point_term, micro_batch=2)[0] == pytest.approx(losses, rel=1e-4)


def test_with_batch_norm_activations_move_instead(capsys):
    """A batch's statistics are the whole batch's, so it is not divided; the same bits, running statistics included."""
    failed = []

    def once(step):
        value = point_term(step)
        if not failed:
            failed.append(1)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return value

    (losses, expected), (found, network) = fitted(tiny_network(), point_term), fitted(tiny_network(), once)
    assert found == losses
    assert all(torch.equal(x, network.state_dict()[k]) for k, x in expected.state_dict().items())
    assert "waits in the CPU's memory" in capsys.readouterr().out


def test_micro_batches_do_not_touch_batch_statistics():
    """Asked for by hand: the same bits, since a batch with batch norm is not divided."""
    (losses, expected), (found, network) = (fitted(tiny_network(), point_term, micro_batch=m) for m in (None, 2))
    assert found == losses
    assert all(torch.equal(x, network.state_dict()[k]) for k, x in expected.state_dict().items())


@pytest.mark.parametrize("batch_norm", [True, False], ids=["norm", "plain"])
def test_no_room_at_all(batch_norm):
    with pytest.raises(ScanError, match=r"out of memory \(CUDA out of memory.*coarser grid"):
        fitted(tiny_network(batch_norm), room_for(0))


# --- the schedule ---

def test_rates_are_divided_in_turn():
    """Adam on a constant slope moves by its rate in each step: twice 0.1, twice 0.01, once 0.001."""
    history, _, validate = fit_scripted([1] * 10, [0] * 5, schedule_of((1, 10, 10), (2, 2, 1), round_steps=2))
    assert [r.learning_rate for r in history.rounds] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
    assert [r.step for r in history.rounds] == [2, 4, 6, 8, 10]
    places = [0] + [state["value"].item() for state in validate.shown]
    assert np.diff(places) == pytest.approx([-0.2, -0.2, -0.02, -0.02, -0.002], rel=1e-3)


def test_a_rounds_loss_is_its_mean():
    history, _, _ = fit_scripted([1, 2, 3, 5], [0, 0], schedule_of(rounds=(2,), round_steps=2))
    assert [r.losses for r in history.rounds] == [{"term": 1.5, "total": 1.5}, {"term": 4, "total": 4}]


def test_patience_ends_a_stage():
    """Losses 5, 4 (best), 4.5, 4: two rounds without a new best end the first stage; 3, 9, 9 the second."""
    schedule = schedule_of((1, 10), (10, 10), patience=2)
    history, _, _ = fit_scripted([5, 4, 4.5, 4, 3, 9, 9, 1], [0] * 9, schedule)
    assert [r.losses["total"] for r in history.rounds] == pytest.approx([5, 4, 4.5, 4, 3, 9, 9])
    assert [r.learning_rate for r in history.rounds] == pytest.approx([0.1] * 4 + [0.01] * 3)


def test_the_best_loss_outlives_its_stage():
    """A second stage that never beats the first one's 1 ends after its patience, falling losses or not."""
    history, _, _ = fit_scripted([1, 2, 9, 8, 7], [0] * 9, schedule_of((1, 10), (2, 10), patience=3))
    assert [r.losses["total"] for r in history.rounds] == pytest.approx([1, 2, 9, 8, 7])


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_stops_after_best_losses_without_a_better_score(stop_after):
    """Every round brings a new best loss, the second one the best score: `stop_after` more, and training ends."""
    schedule = schedule_of((1, 10), (10, 10), stop_after=stop_after)
    history, _, _ = fit_scripted(range(99, 0, -1), [0.4, 0.5] + [0.3] * 20, schedule)
    assert len(history.rounds) == 2 + stop_after


def test_only_best_losses_count_towards_the_end():
    """Losses 5, 6, 7, 4, 8, 3: after the first round's score only 4 and 3 are new best losses."""
    history, _, _ = fit_scripted([5, 6, 7, 4, 8, 3, 2, 1], [0.5] + [0.3] * 20, schedule_of(stop_after=2))
    assert len(history.rounds) == 6


def test_the_best_weights_are_kept():
    """The first of equal scores, 0.7 in round 3."""
    scores = [0.1, 0.5, 0.7, 0.6, 0.7, 0.2]
    history, network, validate = fit_scripted(range(99, 0, -1), scores, schedule_of(rounds=(6,)))
    assert (history.best_step, history.best_validation) == (3, 0.7)
    assert network.value.item() == validate.shown[2]["value"].item() != validate.shown[-1]["value"].item()


def test_without_a_score_the_last_weights_stay():
    _, network, validate = fit_scripted([1, 1], [float("nan")] * 2, schedule_of(rounds=(2,)))
    assert network.value.item() == validate.shown[-1]["value"].item() != 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number(bad):
    with pytest.raises(FloatingPointError, match=r"training.*after 4 steps.*learning rate"):
        fit_scripted([1, 1, bad, 1], [0.5, 0.5], schedule_of(round_steps=2))


# --- training for real ---

def trained(noise: int = 0) -> tuple[list[float], FCN8VGG16]:
    network, dataset = tiny_network(), tiny_dataset()
    torch.rand(noise)  # what else the process drew
    history = fit(network, dataset, [(1.0, point_term), (0.1, consistency_term)],
                  schedule_of(rounds=(4,), learning_rate=3e-3, round_steps=10),
                  lambda n: validation_score(n, [tiny_scan(2)], "sagittal", 32), seed=7)
    return [r.losses["point_term"] for r in history.rounds] + [history.best_validation], network


def test_training_learns_and_repeats_itself():
    """The loss falls and squares are found; the same seed gives the same bits, whatever was drawn between."""
    (*losses, score), network = trained()
    assert losses[-1] < 0.5 * losses[0]
    assert score > 0.8
    (*losses_again, score_again), again = trained(noise=3)
    assert losses_again == losses and score_again == score
    state = again.state_dict()
    assert all((x == state[name]).all() for name, x in network.state_dict().items())


def numbers_of(count: int):
    """A data set whose batches are their items' numbers."""
    class Numbers:
        def __len__(self):
            return count

        def batch(self, numbers):
            return (torch.tensor(numbers),)
    return Numbers()


def test_batches_are_whole_epochs_in_random_order():
    """12 items in batches of 5: 5, 5, 2, each item once an epoch, numbered on; the seed decides the order."""
    def epochs(seed):
        batches = endless_batches(numbers_of(12), 5, seed)
        drawn = [[next(batches)[0] for _ in range(3)] for _ in range(2)]
        assert [[len(numbers) for numbers in epoch] for epoch in drawn] == [[5, 5, 2]] * 2
        return [torch.cat(epoch).tolist() for epoch in drawn]

    first, second = epochs(0)
    assert sorted(first) == list(range(12)) and sorted(second) == list(range(12, 24))
    assert [n - 12 for n in second] != first and epochs(0) == [first, second] and epochs(1)[0] != first


@pytest.mark.parametrize("start", [0, 1, 2, 3, 7])
def test_batches_can_start_anywhere(start):
    all_of_them, later = batch_numbers(12, 5, 3), batch_numbers(12, 5, 3, start)
    for _ in range(start):
        next(all_of_them)
    for _ in range(7):
        assert torch.equal(next(all_of_them), next(later))


def test_workers_change_nothing():
    """Batches made by two processes: the same ones in the same order, epoch after epoch; what fails there is told."""
    dataset = tiny_dataset()
    here, there = endless_batches(dataset, 5, 3), endless_batches(dataset, 5, 3, workers=2)
    for _ in range(7):
        assert all(torch.equal(x, y) for x, y in zip(next(here), next(there), strict=True))

    class Broken(SliceDataset):
        __getitems__ = None

        def __init__(self):
            pass

        def __len__(self):
            return 4

        def __getitem__(self, number):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        next(endless_batches(Broken(), 2, 0, workers=1))


@pytest.mark.parametrize("num_classes, expected", [(3, (1 / 2 * 2 / 3 + 2 / 4 + 0) / (1 / 2 + 1 + 1)),
                                                   (2, (2 / 3 + 4 / 5) / 2)])
def test_validation_score_by_hand(num_classes, expected):
    """Truth 0 0 1 2 by quarters of a scan, answers 0 1 1 1.  With two classes, 1 and 2 are vertebra alike.

    3 classes: Dice 2/3, 2/4 and 0, weights 1/2, 1, 1.  2 classes: Dice 2/3 and 4/5, weights 1 and 1.
    """
    mask = np.repeat(np.array([0, 0, 1, 2], np.uint8), 8)[:, None, None] * np.ones((1, 32, 2), np.uint8)
    scan = Prepared(np.zeros_like(mask), mask, (1.0, 1.0, 1.0), "quarters")

    class Answer(OneNumber):
        def forward(self, x):
            one = (torch.arange(32) >= 8).float()[:, None].expand(len(x), 1, 32, 32)
            return torch.cat([1 - one, one] + [torch.zeros_like(one)] * (num_classes - 2), 1) + self.value

    assert validation_score(Answer(), [scan, scan], "sagittal", 32) == pytest.approx(expected)
