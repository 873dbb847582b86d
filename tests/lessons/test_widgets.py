"""Widgets: what is shown follows the controls, and a click lands on the pixel under it.  No browser here."""

import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ipywidgets")
pytest.importorskip("anywidget")

from pointseg.lessons.widgets import PointPicker, SliceViewer
from pointseg.report.plot import COLOURS
from pointseg.volume import UNLABELLED

SHAPE, SPACING_MM = (10, 20, 30), (4.0, 2.0, 1.0)  # (z, y, x): 40 x 40 x 30 mm
PNG = b"\x89PNG\r\n\x1a\n"
CLICKS = [(2, 3, 1, 10.0), (4, 5, 0, 11.0), (6, 7, 5, 14.0), (8, 9, 5, 14.5)]  # row, column, class, seconds


def block() -> np.ndarray:
    """L2 on slices z 2..5, y 8..15, x 20..27: its centre is 3.5, 11.5, 23.5."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:6, 8:16, 20:28] = 2
    return labels


def grey(shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, shape).astype(np.int16)


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def picker(**options) -> PointPicker:
    return PointPicker(grey((10, 20)), (2.0, 1.0), **options)


# --- SliceViewer ---

def test_the_viewer_starts_in_the_labels_centre():
    viewer = SliceViewer(grey(), block(), SPACING_MM)
    for axis, middle, last in (("sagittal", 24, 29), ("coronal", 12, 19), ("transverse", 4, 9)):  # half goes to even
        viewer.axis.value = axis
        assert (viewer.index.value, viewer.index.max) == (middle, last)
    viewer.index.value = 9
    viewer.axis.value = "coronal"  # from a short axis to a longer one and back
    viewer.axis.value = "transverse"
    assert (viewer.index.value, viewer.index.max) == (4, 9)


def test_every_control_redraws():
    viewer = SliceViewer(grey(), block(), SPACING_MM)
    seen = [viewer.picture.value]
    for control, value in ((viewer.axis, "transverse"), (viewer.index, 3), (viewer.opacity, 1.0),
                           (viewer.shown, False), (viewer.axis, "coronal")):
        control.value = value
        assert bytes(viewer.picture.value).startswith(PNG) and viewer.picture.value not in seen
        seen.append(viewer.picture.value)
    viewer.shown.value = True
    viewer.axis.value = "sagittal"
    viewer.opacity.value = 0.45
    assert viewer.picture.value == seen[0]


@pytest.mark.parametrize("axis, shape_mm", [("sagittal", (40, 40)), ("coronal", (40, 30)), ("transverse", (40, 30))])
def test_a_millimetre_is_equally_long_in_both_directions(axis, shape_mm):
    viewer = SliceViewer(grey(), block(), SPACING_MM)
    viewer.axis.value = axis
    height, width = pixels(viewer.picture.value).shape[:2]
    assert height / width == pytest.approx(shape_mm[0] / shape_mm[1], rel=0.01)


def test_labels_lie_where_they_belong():
    """Rows 2..5 of 10 and columns 8..15 of 20 are L2's colour, and nothing else is, up to the outline."""
    viewer = SliceViewer(np.zeros(SHAPE), block(), SPACING_MM)
    viewer.opacity.value = 1.0
    picture = pixels(viewer.picture.value)
    height, width = picture.shape[:2]
    rgb = [int(COLOURS[1][i : i + 2], 16) for i in (1, 3, 5)]
    rows, columns = np.nonzero(np.abs(picture - rgb).max(-1) < 40)
    assert [rows.min() / height, (rows.max() + 1) / height] == pytest.approx([0.2, 0.6], abs=0.01)
    assert [columns.min() / width, (columns.max() + 1) / width] == pytest.approx([0.4, 0.8], abs=0.01)


def test_points_are_dots_that_can_be_hidden():
    labels = np.full(SHAPE, UNLABELLED, np.uint8)
    empty = SliceViewer(np.zeros(SHAPE), labels, SPACING_MM)
    labels[4, 10, 15] = 3
    viewer = SliceViewer(np.zeros(SHAPE), labels, SPACING_MM)
    assert viewer.index.value == 15
    assert viewer.picture.value != empty.picture.value
    viewer.shown.value = False
    assert viewer.picture.value == empty.picture.value
    assert viewer.figure._repr_png_().startswith(PNG)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(10, 20, 30\) and labels \(10, 20, 29\)"):
        SliceViewer(grey(), block()[:, :, 1:])
    with pytest.raises(ValueError, match="expected one shape"):
        SliceViewer(grey()[0], block()[0])
    with pytest.raises(ValueError, match=r"\(10, 20\) and truth \(20, 10\)"):
        picker(truth=np.zeros((20, 10), np.uint8))


# --- PointPicker ---

def test_clicks_by_hand():
    """1, 3 and 0.5 s from one click to the next: 1 in the middle."""
    found = picker()
    assert found.points == [] and np.isnan(found.seconds_per_point) and (found.labels == UNLABELLED).all()
    found.script(CLICKS[:1])
    assert np.isnan(found.seconds_per_point)  # one click takes no time
    found.script(CLICKS[1:])
    assert found.points == [(2, 3, 1), (4, 5, 0), (6, 7, 5), (8, 9, 5)]
    assert found.seconds_per_point == 1.0
    assert found.labels.dtype == np.uint8 and found.labels.shape == (10, 20)
    assert {(r, c): found.labels[r, c] for r, c in np.argwhere(found.labels != UNLABELLED)} == {
        (2, 3): 1, (4, 5): 0, (6, 7): 5, (8, 9): 5}
    assert found.status.value.startswith("4 points, 1.0 s")


def test_the_browser_and_a_script_take_the_same_path():
    """The browser sends its whole log each time; several clicks may arrive at once."""
    clicked, scripted = picker(), picker(scripted=CLICKS)
    log = [list(click) for click in CLICKS]
    for state in (log[:1], log[:3], log):
        clicked.canvas.set_state({"clicks": state})  # what a message from the browser calls
    assert clicked.points == scripted.points and clicked.seconds_per_point == scripted.seconds_per_point
    assert clicked.canvas.dots == scripted.canvas.dots
    assert clicked.canvas.dots[:3] == [[2, 3, COLOURS[0]], [4, 5, "#FFFFFF"], [6, 7, COLOURS[4]]]


def test_the_time_counts_from_when_the_slice_was_seen():
    """A script's clock starts at 0, the browser's where the picture was drawn."""
    found = picker()
    assert np.isnan(found.seconds)
    found.script([(1, 1, 1, 12.0), (2, 2, 0, 14.0)])
    assert found.seconds == 14 and found.seconds_per_point == 2
    clicked = picker()
    clicked.canvas.set_state({"began": 1000.0, "clicks": [[1, 1, 1, 1012.0], [2, 2, 0, 1014.0]]})
    assert clicked.seconds == 14
    found.canvas.set_state({"began": 1000.0})  # seen after the script had run
    assert found.seconds == 14


def test_undo_and_clear():
    found = picker(scripted=CLICKS)
    found.undo.click()
    assert found.points == [(2, 3, 1), (4, 5, 0), (6, 7, 5)] and found.seconds_per_point == 2.0
    assert len(found.canvas.dots) == 3
    found.script([(0, 0, 2, 15.0)])  # the log still holds what was undone: it must not come back
    assert found.points[2:] == [(6, 7, 5), (0, 0, 2)]
    found.clear.click()
    found.undo.click()
    assert found.points == [] and found.canvas.dots == [] and (found.labels == UNLABELLED).all()
    found.script(CLICKS[:2])
    assert found.points == [(2, 3, 1), (4, 5, 0)]


def test_of_two_points_on_a_pixel_the_later_counts():
    assert picker(scripted=[(1, 1, 3, 0.0), (1, 1, 0, 1.0)]).labels[1, 1] == 0


@pytest.mark.parametrize("click", [(10, 0, 1, 0.0), (0, 20, 1, 0.0), (-1, 0, 1, 0.0), (0, 0, 6, 0.0)])
def test_a_click_beside_the_slice_is_refused(click):
    found = picker()
    with pytest.raises(ValueError, match=f"row {click[0]}, column {click[1]} with class {click[2]}"):
        found.script([(0, 0, 1, 0.0), click])
    assert found.points == []  # all or none


def test_the_picture_has_the_slices_shape_in_mm_and_hides_the_mask():
    """10 x 20 px of 2 x 1 mm are a square."""
    truth = np.zeros((10, 20), np.uint8)
    truth[3:6, 4:9] = 1
    found = picker(truth=truth)
    assert found.canvas.ratio == 1 and found.canvas.shape == [10, 20]
    hidden = found.canvas.picture
    assert hidden == picker().canvas.picture
    found.shown.value = True
    assert found.canvas.picture != hidden and found.canvas.picture.startswith("data:image/png;base64,")
    assert picker().shown.disabled and not found.shown.disabled


# --- what stays without a kernel ---

@pytest.mark.parametrize("make", [lambda: SliceViewer(grey(), block(), SPACING_MM), picker,
                                  lambda: picker(scripted=CLICKS, truth=np.zeros((10, 20), np.uint8))])
def test_a_static_picture_comes_first(make, monkeypatch):
    shown = []
    monkeypatch.setattr("pointseg.lessons.widgets.display", shown.append)
    widget = make()
    widget._ipython_display_()
    assert shown[0]._repr_png_().startswith(PNG) and shown[0].get_figwidth() == 8
    assert shown[1] is widget.widget


def test_the_static_picture_never_shows_the_mask():
    """Whoever labels the slice next would have seen the answer."""
    truth = np.zeros((10, 20), np.uint8)
    truth[3:6, 4:9] = 1
    with_mask, without = (picker(truth=t, scripted=CLICKS).figure for t in (truth, None))
    assert with_mask._repr_png_() == without._repr_png_()
