"""Whole scans through a network: every voxel back in its place, labels and probabilities alike, in little memory."""

import tracemalloc
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from pointseg.estimate import estimated_confusion
from pointseg.fusion import THRESHOLDS, choose_threshold, threshold_counts
from pointseg.kernels import resample_argmax
from pointseg.metrics import weighted_dice
from pointseg.network import FCN8VGG16
from pointseg.points import Points, sample_points
from pointseg.predict import Model, ThreeAxes
from pointseg.preprocess import Prepared
from pointseg.runs.models import load_model, load_split, save_model
from pointseg.slices import AXES


def scan_of(shape: tuple[int, int, int], seed: int = 0, spacing_mm=(1.0, 1.0, 1.0)) -> Prepared:
    return Prepared(np.random.default_rng(seed).integers(0, 256, shape, np.uint8), None, spacing_mm, "scan")


def decided(scores: np.ndarray, by: float = 1e-4) -> np.ndarray:
    """Where the best class leads by more than rounding can change.   (K, ...) -> (...)"""
    second, first = np.sort(scores, 0)[-2:]
    return first - second > by


class Echo(nn.Module):
    """Its logits are its input: the previous, the own and the next slice."""

    config = {"num_classes": 3}

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return 4 * self.gain * x


def echo(axis: str) -> Model:
    return Model(Echo(), axis, grid_mm=1.0, input_px=32)


@pytest.mark.parametrize("axis, crops", [("transverse", 5), ("coronal", 1), ("coronal", 5), ("coronal", 100),
                                         ("sagittal", 5)])
@pytest.mark.parametrize("shape", [(9, 20, 30), (50, 40, 45), (40, 10, 33), (64, 32, 63), (80, 32, 5)],
                         ids=["smaller", "larger", "mixed", "multiples", "more than twice"])
def test_predict_puts_every_voxel_back(shape, axis, crops, monkeypatch):
    """For a network that works pixel by pixel, slicing, cropping and averaging must leave no trace."""
    monkeypatch.setattr("pointseg.predict.BATCH_PX", crops * 32 * 32)  # so many at once
    scan, number = scan_of(shape, spacing_mm=(0.5, 1.0, 2.0)), AXES[axis]
    step = (2, 1, 1)[number]
    n = shape[number]
    neighbours = [[i if 0 <= i < n else i - offset for i in np.arange(n) + offset] for offset in (-step, 0, step)]
    logits = np.stack([scan.image.take(i, number) for i in neighbours]) / 255 * 4
    expected = np.exp(logits) / np.exp(logits).sum(0)
    found = echo(axis).probabilities(scan)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    labels = echo(axis).labels(scan)
    assert labels.dtype == np.uint8 and labels.flags.c_contiguous
    assert (labels == logits.argmax(0))[decided(logits)].all()


def test_predict_averages_logits_where_crops_overlap():
    """Crops at columns 0 and 16 of a slice of 48: a network that answers with its own column gives x, and x - 16."""
    class Columns(Echo):
        config = {"num_classes": 2}

        def forward(self, x):
            column = torch.arange(32.0).expand(len(x), 1, 32, 32) / 32
            return torch.cat([torch.zeros_like(column), column], 1)

    found = Model(Columns(), "sagittal", 1.0, 32).probabilities(scan_of((32, 48, 1)))[1, 0, :, 0]
    x = np.arange(48)
    mean = np.where(x < 16, x, np.where(x < 32, x - 8, x - 16)) / 32
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-mean)), atol=1e-5)


# --- without the probabilities' memory ---

@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("target", [(41, 33, 50), (13, 12, 9), (20, 24, 28), (20, 40, 7)],
                         ids=["finer", "coarser", "the same", "both"])
def test_segment_is_the_resampled_argmax(axis, target):
    scan = scan_of((20, 24, 28))
    probabilities = echo(axis).probabilities(scan)
    found = echo(axis).segment(scan, target)
    assert found.dtype == np.uint8 and found.shape == target and found.flags.c_contiguous
    expected = resample_argmax(probabilities, target)
    differ = found != expected
    assert differ.mean() < 1e-3  # in the order of sums alone, where two classes are equal to the last digit
    if target == scan.image.shape:
        assert (expected == probabilities.argmax(0)).all() and len(np.unique(expected)) == 3


@pytest.mark.parametrize("function", [
    lambda model, scan: model.labels(scan), lambda model, scan: model.segment(scan, (2 * len(scan.image), 64, 64)),
], ids=["labels", "segment"])
def test_memory_does_not_grow_with_the_number_of_slices(function, monkeypatch):
    """Beyond the result itself.  NumPy reports its arrays to tracemalloc; torch's are those of a batch."""
    monkeypatch.setattr("pointseg.predict.BATCH_PX", 4 * 32 * 32)

    def peak(count: int) -> int:
        scan = scan_of((count, 32, 32))
        function(echo("transverse"), scan)  # compile
        tracemalloc.start()
        try:
            result = function(echo("transverse"), scan)
            return tracemalloc.get_traced_memory()[1] - 2 * result.nbytes  # once as slices, once as a volume
        finally:
            tracemalloc.stop()

    few, many = peak(20), peak(400)
    assert many < few + 100_000 < 400 * 32 * 32 * 4 * 3  # the probabilities, to compare with


def test_a_network_keeps_its_weights_through_inference():
    """Inference has weights of its own in autocast's type; training goes on with the old ones."""
    torch.manual_seed(0)
    network = FCN8VGG16(3, width=1 / 16, hidden=8)
    before = {name: x.clone() for name, x in network.state_dict().items()}
    Model(network, "transverse", 1.0, 32).probabilities(scan_of((8, 32, 32)))
    assert all(torch.equal(x, before[name]) and x.dtype == torch.float32 for name, x in network.state_dict().items())
    assert all(p.requires_grad and not p.is_inference() for p in network.parameters())
    network(torch.rand(1, 3, 32, 32)).mean().backward()


def test_a_model_answers_alike_before_and_after_its_file(tmp_path):
    torch.manual_seed(0)
    model = Model(FCN8VGG16(6, width=1 / 16, hidden=8), "coronal", 1.0, 32, ("CT", "MR"))
    save_model(tmp_path / "model.pt", model, {"train": ["a/1"]})
    assert load_split(tmp_path / "model.pt") == {"train": ["a/1"]}
    again, scan = load_model(tmp_path / "model.pt"), scan_of((20, 24, 28))
    assert (again.axis, again.grid_mm, again.input_px, again.modalities) == ("coronal", 1.0, 32, ("CT", "MR"))
    assert not again.network.training and (again.labels(scan) == model.labels(scan)).all()
    assert (again.segment(scan, (10, 30, 28)) == model.segment(scan, (10, 30, 28))).all()
    assert (model.labels(scan) == model.probabilities(scan).argmax(0)).mean() > 0.999


# --- the score that training watches ---

@pytest.mark.parametrize("num_classes, expected", [(3, (1 / 2 * 2 / 3 + 2 / 4 + 0) / (1 / 2 + 1 + 1)),
                                                   (2, (2 / 3 + 4 / 5) / 2)])
def test_score_by_hand(num_classes, expected):
    """Truth 0 0 1 2 by quarters of a scan, answers 0 1 1 1.  With two classes, 1 and 2 are vertebra alike.

    3 classes: Dice 2/3, 2/4 and 0, weights 1/2, 1, 1.  2 classes: Dice 2/3 and 4/5, weights 1 and 1.
    """
    mask = np.repeat(np.array([0, 0, 1, 2], np.uint8), 8)[:, None, None] * np.ones((1, 32, 2), np.uint8)
    scan = Prepared(np.zeros_like(mask), mask, (1.0, 1.0, 1.0), "quarters")

    class Answer(Echo):
        config = {"num_classes": num_classes}

        def forward(self, x):
            one = (torch.arange(32) >= 8).float()[:, None].expand(len(x), 1, 32, 32)
            return torch.cat([1 - one, one] + [torch.zeros_like(one)] * (num_classes - 2), 1)

    assert Model(Answer(), "sagittal", 1.0, 32).score([scan, scan]) == pytest.approx(expected)


# --- three models that answer together ---

@dataclass
class Says:
    """In the place of a model: what it says of every voxel, or of each."""

    said: np.ndarray  # (K,) or (K, z, y, x)
    num_classes: int = 6

    def probabilities(self, scan: Prepared) -> np.ndarray:
        said = np.reshape(self.said, (len(self.said), *(np.shape(self.said)[1:] or (1, 1, 1))))
        return np.array(np.broadcast_to(said, (len(said), *scan.shape)), np.float32)


@pytest.mark.parametrize(("threshold", "vertebra"), [(0.5, 19 / 30), (0.4, 0.6 * 19 / (0.6 * 19 + 0.4 * 11)),
                                                     (0.6, 0.4 * 19 / (0.4 * 19 + 0.6 * 11))])
def test_three_axes_by_hand(threshold, vertebra):
    """P(vertebra) is (0.6 + 0.5 + 0.8) / 3 = 19 / 30, the levels share it as 0.8 to 0.5 of 1.3: 0.390 L1, 0.367 none.

    Another threshold weighs vertebra against background by 1 - threshold to threshold: with 0.6 background wins."""
    said, scan = ([0.4, 0.6], [0.5, 0.2, 0.3, 0, 0, 0], [0.2, 0.6, 0.2, 0, 0, 0]), scan_of((3, 4, 5))
    three = ThreeAxes(*map(Says, said), threshold)
    expected = [1 - vertebra, vertebra * 8 / 13, vertebra * 5 / 13, 0, 0, 0]
    found = three.probabilities(scan)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, Says(expected).probabilities(scan), atol=1e-6)
    assert (three.labels(scan) == (0 if threshold == 0.6 else 1)).all()


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_three_that_are_sure_give_numbers(threshold):
    """Of a level, of background, and of a vertebra whose level nobody knows."""
    none, second = [1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]
    for *said, expected in (([0, 1], second, second, 2), ([1, 0], none, none, 0), ([0, 1], none, none, 0)):
        assert (ThreeAxes(*map(Says, said), threshold).labels(scan_of((2, 2, 2))) == expected).all()


def test_a_threshold_decides_as_it_was_chosen():
    """Voxel by voxel, so the counts that chose it are those of the answers, counted or estimated; of equals 0.5 wins.
    Probabilities are such, whatever the threshold."""
    rng, models = np.random.default_rng(1), []
    mask = rng.integers(0, 6, (12, 11, 10)).astype(np.uint8)
    for k in (2, 6, 6):  # unsure ones, that lean towards the truth
        scores = rng.random((k, *mask.shape)) + 0.5 * (mask.clip(0, k - 1) == np.arange(k)[:, None, None, None])
        models.append(Says(scores / scores.sum(0)))
    three, scan = ThreeAxes(*models), Prepared(np.zeros(mask.shape, np.uint8), mask, (1.0,) * 3, "scan")
    for labelled in (scan, Points.of(scan, sample_points(mask, rng))):
        counts, scores = threshold_counts(three, labelled), []
        for threshold, of_threshold in zip(THRESHOLDS, counts, strict=True):
            chosen = replace(three, threshold=threshold)
            assert (of_threshold == estimated_confusion(labelled, chosen.labels(scan), 6)).all()
            np.testing.assert_allclose(chosen.probabilities(scan).sum(0), 1, atol=1e-5)
            assert (chosen.segment(scan, scan.shape) == chosen.labels(scan)).all()
            scores.append(chosen.score([labelled]))
        best, score = choose_threshold(three, [labelled, labelled])
        assert len(set(scores)) > 8 and best.threshold == THRESHOLDS[int(np.argmax(scores))]
        assert score == pytest.approx(max(scores)) == pytest.approx(weighted_dice(counts[np.argmax(scores)]))
    sure = ThreeAxes(Says([0, 1]), *[Says([0, 0, 1, 0, 0, 0])] * 2)
    assert choose_threshold(sure, [scan.with_mask(np.full_like(mask, 2))]) == (replace(sure, threshold=0.5), 1.0)


def test_three_axes_are_a_model():
    """Grid, classes and modalities are the sagittal one's; probabilities lie on the scan's axes."""
    three = ThreeAxes(*(Model(FCN8VGG16(k, width=1 / 16, hidden=8), axis, 2.0, 32, ("MR",))
                        for axis, k in zip(AXES, (2, 6, 6))), 0.4)
    scan = scan_of((9, 20, 30))
    assert (three.grid_mm, three.num_classes, three.modalities) == (2.0, 6, ("MR",))
    one, two, last = (m.probabilities(scan) for m in (three.transverse, three.coronal, three.sagittal))
    p = (one[1] + two[1:].sum(0) + last[1:].sum(0)) / 3
    expected = 0.6 * p / (0.6 * p + 0.4 * (1 - p)) * (two + last)[1:] / (two + last)[1:].sum(0)
    np.testing.assert_allclose(three.probabilities(scan)[1:], expected, atol=1e-5)
    assert three.segment(scan, (5, 9, 33)).shape == (5, 9, 33)
