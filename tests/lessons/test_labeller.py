"""Labelling a whole scan by script: what is on disk is what was clicked, whenever one stops."""

from pathlib import Path

import numpy as np
import pytest
from folds import ORDERED

pytest.importorskip("ipywidgets")
pytest.importorskip("anywidget")

from pointseg.datasets.manifest import read_manifest
from pointseg.datasets.phantom import write_phantoms
from pointseg.lessons.labeller import EVERY, EVERY_COSTS, Labeller
from pointseg.points import draw_labels
from pointseg.preprocess import Scans, prepare
from pointseg.report.compare import Curves, read_rows
from pointseg.scans.clicks import read_clicks
from pointseg.volume import UNLABELLED, ScanError


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return read_manifest(write_phantoms(tmp_path_factory.mktemp("scans"), 1, 0, spacing_mm=4.0))[0]


def on_disk(folder):
    case, = read_manifest(folder)
    clicks = case.read().clicks
    return [(*place, value) for place, value in zip(clicks.places.tolist(), clicks.values.tolist(), strict=True)]


def test_three_slices_with_undo_and_a_restart(case, tmp_path):
    labeller = Labeller(case.image, tmp_path, every=4, seed=1)
    first, second, third = labeller.slices[:3]
    labeller.script([(10, 12, 1, 100.0), (11, 12, 2, 103.0)])
    assert on_disk(tmp_path) == [(10, 12, first, 1), (11, 12, first, 2)]  # after every click
    labeller.press("n")
    labeller.script([(20, 8, 5, 110.0), (21, 8, 0, 111.5), (22, 8, 0, 112.0)])
    assert len(labeller.canvas.dots) == 5 and [len(d) for d in labeller.canvas.dots] == [4, 4, 3, 3, 3]  # faint first
    labeller.press("z")
    kept = [(10, 12, first, 1), (11, 12, first, 2), (20, 8, second, 5), (21, 8, second, 0)]
    assert on_disk(tmp_path) == kept
    again = Labeller(case.image, tmp_path, every=4, seed=1)  # the kernel has died
    assert again.x == third and again.rows[0][:2] == ((10, 12, first), 1)
    again.script([(30, 9, 3, 5.0)])
    assert on_disk(tmp_path) == [*kept, (30, 9, third, 3)]
    seconds = read_clicks(read_manifest(tmp_path)[0].points, again.volume.geometry)[0].seconds
    assert np.isnan(seconds[0]) and seconds[1] == 3.0 and seconds[3] == 1.5


def test_the_tool_tells_what_its_default_costs_as_the_results_have_it(case, tmp_path):
    rows = read_rows(Path(__file__).parents[2] / "notebooks" / "results" / "minutes.csv")
    curves = Curves([row for row in rows if row.answer == ORDERED])
    at, all_of = (f"{curves.share(line):.1%} {{}}{curves.dice[line][0]:.2f}".format
                  for line in (f"points: every {EVERY}th slice", "points: every slice"))
    expected = (f"points on every {EVERY}th slice take {at('of the time for full masks and gave Dice_wi ')}, "
                f"on every slice {all_of('and ')} (notebooks/results/minutes.csv)")
    assert expected in Labeller(case.image, tmp_path).widget.children[-2].value
    assert EVERY_COSTS not in Labeller(case.image, tmp_path, every=6).widget.children[-2].value


def test_a_click_on_a_click_corrects_it_and_undoing_all_leaves_no_file(case, tmp_path):
    labeller = Labeller(case.image, tmp_path)
    labeller.script([(10, 12, 1, 0.0), (10, 12, 2, 1.0)])
    assert [v for *_, v in on_disk(tmp_path)] == [2]
    labeller.press("z")
    labeller.press("z")  # nothing is left to undo
    assert not labeller.files["points.csv"].exists() and not labeller.rows


def test_keys_and_buttons_move_between_slices_and_stop_at_the_ends(case, tmp_path):
    labeller = Labeller(case.image, tmp_path, every=6)
    labeller.press("p")
    assert labeller.at == 0
    labeller.canvas.clicks = [[-1, -1, 1, 1.0, 0], [-1, -1, 1, 2.0, 0]]
    assert labeller.at == 2 and f"slice {labeller.slices[2]} (3 of" in labeller.status.value
    labeller.buttons["previous"].click()
    assert labeller.at == 1
    for _ in range(30):
        labeller.press("n")
    assert labeller.at == len(labeller.slices) - 1
    labeller.choice.value = "L4"
    assert labeller.choice.index == 4


def test_outlines_make_a_mask_of_these_slices_alone(case, tmp_path):
    labeller = Labeller(case.image, tmp_path, every=4, outline=True)
    labeller.canvas.chosen = 3
    labeller.script([(5, 5, 3, 0.0), (5, 15, 3, 1.0), (15, 15, 3, 2.0), (15, 5, 3, 3.0)])
    assert not labeller.files["vert.nii.gz"].exists()
    labeller.press("Enter")
    x = labeller.slices[0]
    mask = read_manifest(tmp_path)[0].read().mask
    assert (mask[5:16, 5:16, x] == 3).all() and (mask[:, :, x] == 3).sum() == 121
    assert (np.delete(mask, x, 2) == UNLABELLED).all() and (mask[:, :, x] != UNLABELLED).all()
    labeller.press("n")
    labeller.script([(20, 5, 4, 9.0), (20, 9, 4, 9.5)])
    labeller.press("Enter")  # two corners are no outline
    again = Labeller(case.image, tmp_path, every=4, outline=True)
    assert again.outlined == [x] and again.x == labeller.slices[1]
    labeller.press("n")
    labeller.script([(20, 5, 4, 9.0), (20, 9, 4, 9.5), (25, 9, 4, 9.7)])
    labeller.press("Enter")
    labeller.press("z")
    assert labeller.outlined == [x]


def test_random_places_are_asked_after_clicks_and_choose(case, tmp_path):
    with pytest.raises(ScanError, match="found no click in a vertebra"):
        Labeller(case.image, tmp_path, places=5)
    truth = case.read().mask
    labeller, middles = Labeller(case.image, tmp_path), [np.argwhere(truth == k).mean(0) for k in range(1, 6)]
    x = labeller.x
    labeller.script([(round(z), round(y), k, 2.0 * k) for k, (z, y, _) in enumerate(middles, 1)])
    asker = Labeller(case.image, tmp_path, places=40)
    for n in range(15):
        assert f"place {n + 1} of 40" in asker.status.value and len(asker.canvas.dots) == 1
        asker.script([(0, 0, int(truth[asker.place]), 10.0 + n)])  # wherever one clicks: only the class counts
    asker.press("z")
    asker = Labeller(case.image, tmp_path, places=40)
    assert asker.at == 14
    while asker.place:
        asker.script([(0, 0, int(truth[asker.place]), 50.0)])
    asker.script([(0, 0, 1, 60.0)])  # all are named: a further click is none
    volume = read_manifest(tmp_path)[0].read()
    chance = volume.clicks.chosen(by_chance=True)
    assert len(chance.values) == 40 and (truth[tuple(chance.places.T)] == chance.values).all()
    assert len(volume.clicks.chosen(by_chance=False).values) == 5 and {p[2] for p in labeller.clicks.places} == {x}
    scan = prepare(volume, 4.0)
    labelled = draw_labels(Scans([scan], [scan]), "points", 0)
    assert len(labelled.train[0].values) == 5 and labelled.validation[0].weights is not None
    within = np.prod(volume.spacing_mm) * truth.size
    assert 0.3 * within < chance.stands_for_mm3.sum() < 3 * within


def test_an_answer_that_contradicts_a_click_corrects_it(case, tmp_path):
    """Two classes on one voxel would be refused when the folder is read."""
    Labeller(case.image, tmp_path).script([(10, 12, 1, 0.0), (30, 12, 4, 1.0)])
    asker = Labeller(case.image, tmp_path, places=2)
    asker.asked[0] = (asker.rows[0][0], asker.asked[0][1])  # chance asks for the very voxel
    asker.script([(0, 0, 2, 5.0)])
    assert [v for _, v, _, _ in Labeller(case.image, tmp_path).rows] == [4, 2]
    labeller = Labeller(case.image, tmp_path)
    labeller.script([(*asker.asked[0][0][:2], 3, 9.0, asker.asked[0][0][2])])
    assert sorted(v for _, v, _, _ in Labeller(case.image, tmp_path).rows) == [3, 4]


def test_a_busy_kernel_attributes_clicks_to_what_the_expert_saw(case, tmp_path):
    """Click, next, click before the new slice is there, click on it, undo: all arrive at once."""
    labeller = Labeller(case.image, tmp_path, every=4, seed=1)
    first, second = labeller.slices[:2]
    labeller.canvas.set_state({"clicks": [
        [10, 12, 1, 1.0, first], [-1, -1, 1, 2.0, first], [11, 12, 2, 3.0, first], [20, 8, 3, 4.0, second],
        [21, 8, 4, 5.0, second], [-1, -1, 0, 6.0, second]]})
    assert on_disk(tmp_path) == [(10, 12, first, 1), (11, 12, first, 2), (20, 8, second, 3)] and labeller.x == second
    asker = Labeller(case.image, tmp_path, places=5)
    asker.canvas.set_state({"clicks": [[0, 0, 1, 1.0, 0], [0, 0, 2, 1.2, 0], [0, 0, 3, 9.0, 1]]})  # a double click
    assert [v for _, v, _, mm3 in asker.rows if np.isfinite(mm3)] == [1, 3] and asker.at == 2
