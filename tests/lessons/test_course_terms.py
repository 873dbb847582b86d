"""check_term: the package's terms pass, each kind of mistake is found and said.  bench: trains, compares, refuses."""

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pointseg.lessons import course
from pointseg.lessons.checks import INVARIANCES
from pointseg.lessons.course import Bench, Trained, bench, check_term, example_step
from pointseg.losses import (
    consistency_term,
    extent_term,
    moved_point_term,
    point_loss,
    point_term,
    separation_term,
)
from pointseg.volume import UNLABELLED


def softmax(step):
    return step.logits.softmax(1)


def overlap(step):
    return (1 - softmax(step).square().sum(1)).mean()


def undecided(step):  # README's
    p = softmax(step)
    return -(p * p.clamp_min(1e-6).log()).sum(1).mean()


def with_float32_of_its_own(step):
    ones = torch.ones(step.logits.shape[1])
    return torch.einsum("bkhw,k->bhw", softmax(step).square(), ones).mean()


def in_double_precision(step):
    return overlap(with_logits_of(step, step.logits.double()))


# --- a step to try terms on ---

def test_example_step_has_the_shapes_of_a_training_step():
    step = example_step(num_classes=4, batch=3, size=(20, 12))
    assert step.image.shape == (3, 3, 20, 12) and step.image.dtype == torch.float32
    assert step.labels.shape == (3, 20, 12) and step.labels.dtype == torch.uint8
    assert step.extent.shape == step.logits.shape == (3, 4, 20, 12) and step.extent.dtype == torch.bool
    assert step.logits.is_leaf and step.logits.requires_grad and step.moved_logits.requires_grad
    assert step.moved_logits.shape == step.move(step.logits).shape
    for labels, extent in zip(step.labels, step.extent, strict=True):
        assert [int((labels == k).sum()) for k in range(4)] == [5, 3, 3, 3]
        assert all(extent[k][labels == k].all() and not extent[k].all() for k in (1, 2, 3)) and extent[0].all()


# --- sound terms ---

@pytest.mark.parametrize("term, zero_gradient", [
    (point_term, ["unlabelled"]), (moved_point_term, ["unlabelled"]), (consistency_term, []), (separation_term, []),
    (extent_term, ["within extent", "background"]), (overlap, []), (undecided, []), (with_float32_of_its_own, []),
    (in_double_precision, [])], ids=lambda x: getattr(x, "__name__", ""))
def test_sound_terms_pass(term, zero_gradient):
    report = check_term(term, zero_gradient=zero_gradient, invariant=tuple(INVARIANCES))
    assert report.ok and report.failed == []
    assert all(sentence.startswith("ok: ") for sentence in report.sentences), report
    assert len(report.sentences) == 8 + len(zero_gradient) + len(INVARIANCES)


def test_a_region_of_ones_own():
    def right_half(step):
        return torch.arange(step.logits.shape[3]) >= step.logits.shape[3] // 2

    assert check_term(lambda s: overlap(with_left_half(s)), zero_gradient=[right_half]).ok
    [sentence] = check_term(overlap, zero_gradient=[right_half]).failed
    assert '"right_half"' in sentence


def with_left_half(step):
    return with_logits_of(step, step.logits[..., : step.logits.shape[3] // 2])


def with_logits_of(step, logits):
    other = replace(step)
    vars(other)["logits"] = logits
    return other


def test_a_term_may_be_flat_where_it_is_content():
    """A penalty between bounds has no gradient on some slices; that is no mistake as long as it has one on others."""
    def not_all_background(step):
        share = step.logits.softmax(1)[:, 0].mean((1, 2))
        return (share - 0.9).clamp(min=0).mean()

    assert check_term(not_all_background).ok


# --- planted mistakes ---

def not_written(step):
    raise NotImplementedError


def by_argmax(step):
    return (step.logits.argmax(1) == 0).float().mean()


def writes_labels(step):
    step.labels[step.labels == UNLABELLED] = 0
    return point_loss(step.logits, step.labels)


calls = count(1)


@pytest.mark.parametrize("term, words", [
    (not_written, "the term is not written yet"),
    (lambda logits: logits.softmax(1).square().mean(), "write `lambda step: f(step.logits)`"),
    (lambda step, labels, extent: overlap(step), "it raises TypeError: "),
    (lambda s: softmax(s).square().mean((1, 2, 3)), "it returns a tensor of shape (2,), expected one number"),
    (lambda s: overlap(s).item(), "it returns float, expected a tensor of one number"),
])
def test_no_number_is_one_sentence(term, words):
    [sentence] = check_term(term, invariant=tuple(INVARIANCES)).sentences
    assert sentence.startswith("WRONG: ") and words in sentence


@pytest.mark.parametrize("term, words", [
    (lambda s: (s.logits.exp() / s.logits.exp().sum(1, keepdim=True)).square().mean(),
     "its value is nan for logits of +-10000, expected a finite number"),
    (lambda s: -(softmax(s) * softmax(s).log()).mean(), "its value is nan for logits of +-10000"),
    (lambda s: softmax(s).diff(dim=1).square().sum(1).sqrt().mean(),
     "its gradient is not finite for logits of +-10000"),
    (lambda s: softmax(s)[:, 5].mean(), "it raises IndexError with 2 classes, as on transverse slices: "),
    (lambda s: sum(-s.logits.log_softmax(1)[:, k][s.labels == k].mean() for k in range(s.logits.shape[1])),
     "its value is nan where a class has no point"),
    (lambda s: F.cross_entropy(s.logits, s.labels.long(), ignore_index=UNLABELLED),
     "its value is nan where no pixel is labelled"),
    (by_argmax, "it has no gradient anywhere"), (lambda s: softmax(s).round().mean(), "it has no gradient anywhere"),
    (lambda s: (softmax(s) * softmax(s).detach()).mean(), "moving the logits a little changes the value"),
    (lambda s: (s.move(s.logits) - s.moved_logits.detach()).abs().mean(), "moving the logits a little changes"),
    (lambda s: (softmax(s).square() * torch.rand(s.logits.shape[-2:]).round()).mean(), "draw no random numbers"),
    (lambda s: overlap(s) * next(calls), "keep nothing from one call to the next"),
    (writes_labels, "it changes step.labels"),
])
def test_mistakes_are_found(term, words):
    report = check_term(term)
    assert not report.ok and any(words in sentence for sentence in report.failed), report
    assert all(sentence in str(report).splitlines() for sentence in report.failed)
    assert len(set(report.sentences)) == len(report.sentences)


@pytest.mark.parametrize("name, term, words", [
    ("flip", lambda s: s.logits.softmax(1)[:, 0, :, 0].mean(), "when slices are flipped"),
    ("rotation", lambda s: s.logits.softmax(1).diff(dim=-1).abs().mean(), "when slices are turned"),
    ("classes", lambda s: s.logits.softmax(1)[:, 1].mean(), "when L1..L5 swap names"),
    ("batch", lambda s: s.logits.softmax(1).square().sum(), "every slice twice: take means, not sums"),
])
def test_claims_of_invariance_are_tried(name, term, words):
    others = [other for other in INVARIANCES if other not in (name, "flip", "rotation")]
    assert check_term(term, invariant=others).ok
    [sentence] = check_term(term, invariant=[*others, name]).failed
    assert words in sentence


@pytest.mark.parametrize("term, region", [
    (overlap, "unlabelled"), (overlap, "within extent"), (extent_term, "unlabelled"), (point_term, "background"),
    (lambda s: s.moved_logits.sigmoid().mean(), "background")])
def test_gradients_where_none_should_be(term, region):
    assert check_term(term).ok
    [sentence] = check_term(term, zero_gradient=[region]).failed
    assert f'logits must not matter where "{region}" holds' in sentence


@pytest.mark.parametrize("term, words", [
    (lambda s: (s.logits.softmax(1) * torch.ones(s.logits.shape[-1])).mean(), "on the expected device"),
    (lambda s: overlap(s) if s.labels.sum().item() >= 0 else 0 * overlap(s), "item() cannot be called"),
], ids=["tensor on the CPU", "item"])
def test_what_a_gpu_would_mind_is_a_note(term, words):
    report = check_term(term)
    assert report.ok
    [note] = [sentence for sentence in report.sentences if sentence.startswith("note: on a GPU")]
    assert words in note


def test_unknown_claims_are_an_error():
    with pytest.raises(KeyError, match="mirror"):
        check_term(overlap, invariant=["mirror"])
    with pytest.raises(KeyError, match="everywhere"):
        check_term(overlap, zero_gradient=["everywhere"])


# --- the bench ---

@pytest.fixture
def short(monkeypatch):
    """The bench's own task, a few steps of it."""
    monkeypatch.setattr(course, "SCHEDULE", replace(course.SCHEDULE, divisors=(1,), rounds=(1,), round_steps=5))
    monkeypatch.setattr(course, "TRAIN", 2)
    monkeypatch.setattr(course, "VALIDATION", 1)
    for cached in (course.task, course.trained_once):
        cached.cache_clear()
    yield
    for cached in (course.task, course.trained_once):
        cached.cache_clear()


def test_bench_compares(short):
    """The same terms give the same score, others another; baselines are trained once."""
    same = bench(yours=[(1.0, point_term)], thesis=[(1.0, point_term), (0.1, separation_term)])
    assert list(same.trained) == ["points alone", "thesis", "yours"]
    points, thesis, yours = same.trained.values()
    assert (points.confusion == yours.confusion).all() and (points.confusion != thesis.confusion).any()
    other = bench(yours=[(1.0, point_term), (3.0, overlap)], thesis=[(1.0, point_term), (0.1, separation_term)])
    assert other.trained["points alone"] is points and other.trained["thesis"] is thesis
    assert (other.trained["yours"].confusion != points.confusion).any()
    assert len(str(other).splitlines()) == 8
    assert [ax.get_title() for ax in other.figure.axes] == ["image", "truth", "points alone", "thesis", "yours"]


def test_bench_refuses_in_sentences(monkeypatch):
    monkeypatch.setattr(course, "train", lambda terms: pytest.fail("it trained"))
    refused = bench(yours=[(1.0, point_term), (1.0, not_written), (1.0, by_argmax)], thesis=[(1.0, point_term)])
    assert refused.trained == {} and refused.figure is None
    assert "not_written: WRONG: the term is not written yet" in str(refused)
    assert "by_argmax: WRONG: it has no gradient anywhere" in str(refused)


def test_bench_says_that_a_training_diverged(short):
    diverged = bench(yours=[(float("inf"), overlap)], thesis=[(1.0, point_term)])
    assert diverged.figure is None and "the loss is" in str(diverged)


def test_table_by_hand():
    """Of 10 voxels of each class one is called background: Dice 2 * 9 / (10 + 9); background 2 * 10 / (10 + 15)."""
    confusion = np.diag([10, 9, 9, 9, 9, 9])
    confusion[1:, 0] = 1
    lines = str(Bench({"yours": Trained(confusion, [], 12.3)})).splitlines()
    assert [line.split() for line in lines[1:3]] == [["Dice_wi", "0.92"], ["Dice", "L1", "0.95"]]
    assert lines[-1].split() == ["seconds", "12"]
