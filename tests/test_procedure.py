"""What an arm learns from: the points' arm needs no mask before the test, and labels of any kind will do."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tiny import QUICK, TINY, tiny_scan

from pointseg.fusion import just_make
from pointseg.points import Points, draw_labels, unlabelled
from pointseg.predict import ThreeAxes
from pointseg.preprocess import Prepared, Scans
from pointseg.procedure import Outcome, learn, run
from pointseg.slices import AXES

ONCE = replace(QUICK, divisors=(1,), rounds=(2,), round_steps=5)
PROFILE = replace(TINY, weak=ONCE, full=ONCE)


class Unread(Prepared):
    """A scan whose mask nobody may read."""

    def __init__(self, scan: Prepared):
        vars(self).update({name: x for name, x in vars(scan).items() if name != "mask"})

    @property
    def mask(self) -> np.ndarray:
        raise AssertionError(f"the mask of {self.name} was read")


@pytest.fixture(scope="module")
def scans() -> Scans:
    named = [replace(tiny_scan(seed), name=f"tiny/{seed}", modality="MR") for seed in range(6)]
    return Scans(named[:3], named[3:5], named[5:])


@pytest.fixture(scope="module")
def with_masks(scans) -> Outcome:
    return run(scans, PROFILE, rivals={})


@pytest.mark.parametrize("take_away", [lambda scan: replace(scan, mask=None), Unread], ids=["gone", "unread"])
def test_the_points_arm_needs_no_mask(scans, with_masks, take_away):
    """Points of scans whose masks are gone, or raise when they are read, give what `run` gives with the masks there,
    bit by bit: weights, thresholds, courses, and pseudo masks of training and test scans."""
    known = draw_labels(scans, "points", 0)
    bare = Scans(*([Points(take_away(p.scan), p.places, p.values) for p in part]
                   for part in (known.train, known.validation)))
    found = learn(bare, [unlabelled(take_away(scan)) for scan in scans.test], PROFILE, 0)
    assert list(found.models) == [*AXES, "weak", *(f"result_{axis}" for axis in AXES), "result"]
    assert found.smoothing == with_masks.smoothing
    for name, model in found.models.items():
        other = with_masks.models[name]
        if isinstance(model, ThreeAxes):
            assert model.threshold == other.threshold
        else:
            assert all(map(torch.equal, model.network.state_dict().values(), other.network.state_dict().values()))
            assert found.histories[name].best_validation == with_masks.histories[name].best_validation
    assert list(found.pseudo) == list(with_masks.pseudo) == [f"tiny/{i}" for i in (0, 1, 2, 5)]
    for name, scan in found.pseudo.items():
        assert np.array_equal(scan.mask, with_masks.pseudo[name].mask) and scan.mask.any()


def test_the_guard_can_fail(scans):
    """A training or a validation scan whose own mask is read is found."""
    labelled = draw_labels(scans, "points", 0)
    for known in (replace(labelled, train=list(map(Unread, scans.train))),
                  replace(labelled, validation=list(map(Unread, scans.validation)))):
        with pytest.raises(AssertionError, match=r"the mask of tiny/\d was read"):
            learn(known, [], PROFILE, 0)


@pytest.mark.parametrize("kind", ["points", "slices", "whole scans", "masks"])
def test_any_labels_two_rounds_and_a_rival(scans, kind):
    """The second round's models learn from what the first round's three say; each arm chooses by labels of its own."""
    learned: dict[str, Scans] = {}

    def keep(name, make):
        if isinstance(make, partial) and isinstance(make.args[0], Scans):
            learned[name] = make.args[0]
        return just_make(name, make)

    labelled, rival = draw_labels(scans, kind, 0), draw_labels(scans, "slices", 1)
    outcome = run(scans, PROFILE, labelled=labelled, keep=keep, rounds=2, rivals={"slices": rival})
    assert outcome.labelled == {"result": labelled, "reference": scans, "slices": rival}
    expected = {"weak": (labelled, lambda s: s.mask), "round1": (labelled, lambda s: outcome.pseudo[s.name].mask),
                "result": (labelled, outcome.models["round1"].labels), "reference": (scans, lambda s: s.mask),
                "slices": (rival, lambda s: s.mask)}
    names = {arm: [axis if arm == "weak" else f"{arm}_{axis}" for axis in AXES] for arm in expected}
    assert set(outcome.models) == {*names, *sum(names.values(), [])} and set(outcome.histories) == set(learned)
    for arm, (known, mask_of) in expected.items():
        three, models = outcome.models[arm], [outcome.models[name] for name in names[arm]]
        assert [three.transverse, three.coronal, three.sagittal] == models
        assert [(m.axis, m.num_classes, m.modalities) for m in models] == [
            (axis, 2 if axis == "transverse" else 6, ("MR",)) for axis in AXES]
        for by in (learned[name] for name in names[arm]):
            assert by.validation is known.validation
            assert all(np.array_equal(s.mask, mask_of(like)) for s, like in zip(by.train, known.train, strict=True))
    assert set(outcome.pseudo) == {s.name for s in (*labelled.train, *scans.test)}
