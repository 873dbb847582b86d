"""Pictures: the colours and sizes asked for, whole files or none, and nothing drawn for what is not there."""

import io
import tracemalloc
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread
from scipy import ndimage

from pointseg.points import sample_points
from pointseg.report import plot
from pointseg.train import History, Round
from pointseg.volume import CLASSES, UNLABELLED

DATA = Path(__file__).parents[3] / "shared" / "data"
SPACING_MM = (2.0, 1.0, 3.0)  # (z, y, x)
RGB = [tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)) for colour in plot.COLOURS]


@pytest.fixture(autouse=True)
def no_warnings():
    """Matplotlib only warns when it is asked for something senseless, such as a contour without a level."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_name_in_any_script_and_with_signs_of_formulas(tmp_path):
    plot.save(plot.three_planes(grey(), spine(), SPACING_MM, title="腰椎 a$\\b_^$"), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def spine(shape=(50, 40, 16)) -> np.ndarray:
    """Five boxes L1..L5, one below the other."""
    labels = np.zeros(shape, np.uint8)
    for k in range(1, 6):
        labels[9 * k - 6 : 9 * k, 10:26, 5:12] = k
    return labels


def grey(shape=(50, 40, 16)) -> np.ndarray:
    return np.random.default_rng(0).normal(100, 30, shape).astype(np.float32)


def history(losses: list[float], rates: list[float], scores: list[float]) -> History:
    rounds = [Round(10 * i, rate, {"total": loss}, score, 0.0)
              for i, (loss, rate, score) in enumerate(zip(losses, rates, scores, strict=True), 1)]
    best = int(np.argmax(scores))
    return History(rounds, 10 * (best + 1), scores[best])


def rendered(figure: plot.Figure, path: Path) -> np.ndarray:
    """(H, W, 4) in 0..1, as written to disk; the size must be the figure's."""
    plot.save(figure, path)
    picture = imread(path)
    np.testing.assert_allclose(picture.shape[:2], figure.get_size_inches()[::-1] * plot.DPI, atol=1)
    return picture


def one_plane(labels: np.ndarray, path: Path, **options) -> np.ndarray:
    """(H, W, 3): the colour in the middle of each pixel of an overlay on an image of grey 0.5, 10 dots a pixel."""
    height, width = labels.shape
    figure = plot.Figure((width * 10 / plot.DPI, height * 10 / plot.DPI))
    ax = figure.add_axes((0, 0, 1, 1))
    plot.overlay(ax, np.full(labels.shape, 0.5), labels, (1.0, 1.0), window=(0, 1), outline=False, **options)
    return rendered(figure, path)[5::10, 5::10, :3]


def shares(picture: np.ndarray, colour: tuple[float, float, float]) -> float:
    """Share of dots of exactly this colour."""
    return float((np.abs(picture[..., :3] - colour) < 1.5 / 255).all(-1).mean())


@pytest.mark.parametrize("opacity", [0.0, 0.45, 1.0])
def test_overlay_mixes_the_class_colour_into_the_grey_and_leaves_background_and_unlabelled_grey(tmp_path, opacity):
    labels = np.array([[0, 1, 2, 3], [4, 5, UNLABELLED, 0]], np.uint8)
    expected = np.full((2, 4, 3), 0.5)
    for k in range(1, 6):
        expected[labels == k] = (1 - opacity) * 0.5 + opacity * np.array(RGB[k - 1])
    found = one_plane(labels, tmp_path / "a.png", opacity=opacity)
    np.testing.assert_allclose(found, expected, atol=2.5 / 255)


def test_binary_labels_take_none_of_the_levels_colours(tmp_path):
    found = one_plane(np.array([[0, 1, UNLABELLED]], np.uint8), tmp_path / "a.png", opacity=1, binary=True)
    vertebra = matplotlib.colors.to_rgb(plot.VERTEBRA_COLOUR)
    np.testing.assert_allclose(found, [[(0.5,) * 3, vertebra, (0.5,) * 3]], atol=2.5 / 255)
    assert min(np.abs(np.subtract(vertebra, other)).max() for other in RGB) > 0.1


def test_outline_runs_around_a_class_also_at_the_planes_edge_and_not_inside_it(tmp_path):
    figure = plot.Figure((1, 1))
    ax = figure.add_axes((0, 0, 1, 1))
    labels = np.zeros((20, 20), np.uint8)
    labels[:10, 5:15], labels[15:18, 5:15] = 2, UNLABELLED
    plot.overlay(ax, np.full((20, 20), 0.2), labels, (1.0, 1.0), opacity=0, window=(0, 1))
    picture = rendered(figure, tmp_path / "a.png")[..., :3]  # 6 dots a pixel
    coloured = (np.abs(picture - 0.2) > 0.05).any(-1)
    assert coloured[:3, 36:84].any(0).all()  # along the top edge of the picture
    assert coloured[57:63, 36:84].any(0).all() and coloured[6:54, 27:33].any(1).all()  # below, and at the left
    assert not coloured[6:54, 36:84].any() and not coloured[66:].any()  # neither inside nor around unlabelled voxels


def millimetre(ax) -> tuple[float, float]:
    """Inches that 1 mm takes down and across, from the axes' place in the figure and the picture they hold."""
    width, height = ax.get_position().size * ax.figure.get_size_inches()
    rows, columns = ax.images[0].get_array().shape[:2]
    return height / rows, width / columns


def test_three_planes_meet_in_the_centre_of_mass_in_one_scale(tmp_path):
    image = grey()
    labels = np.zeros(image.shape, np.uint8)
    labels[10:13, 20:25, 4:7] = 3  # centre 11, 22, 5
    figure = plot.three_planes(image, labels, SPACING_MM, title="a scan")
    rendered(figure, tmp_path / "deeper" / "planes.png")
    shown = {ax.get_title(): ax for ax in figure.axes}
    for name, plane, (rows_mm, columns_mm) in (("transverse", image[11], (1, 3)), ("coronal", image[:, 22], (2, 3)),
                                               ("sagittal", image[:, :, 5], (2, 1))):
        np.testing.assert_array_equal(shown[name].images[0].get_array(), plane)
        down, across = millimetre(shown[name])
        np.testing.assert_allclose((down / rows_mm, across / columns_mm), millimetre(shown["sagittal"])[1], rtol=1e-6)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["L1", "L2", "L3", "L4", "L5"]


def test_sides_follow_the_canonical_axes():
    """Rows grow to posterior or inferior, columns to left or posterior."""
    figure = plot.three_planes(grey(), spine(), SPACING_MM)
    placed = {ax.get_title(): {t.get_text(): t.xy for t in ax.texts} for ax in figure.axes}
    assert placed["transverse"] == {"R": (0, 0.5), "L": (1, 0.5), "A": (0.5, 1), "P": (0.5, 0)}
    assert placed["coronal"] == {"R": (0, 0.5), "L": (1, 0.5), "S": (0.5, 1), "I": (0.5, 0)}
    assert placed["sagittal"] == {"A": (0, 0.5), "P": (1, 0.5), "S": (0.5, 1), "I": (0.5, 0)}


def test_without_labels_the_planes_go_through_the_middle(tmp_path):
    image, empty = grey(), np.zeros((50, 40, 16), np.uint8)
    figure = plot.three_planes(image, empty, SPACING_MM)
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), image[:, :, 8])
    picture = rendered(figure, tmp_path / "a.png")[:-80]  # without the legend
    assert all(shares(picture, colour) == 0 for colour in RGB)
    nothing = plot.stages(image, {"points": np.full_like(empty, UNLABELLED), "truth": empty}, SPACING_MM)
    np.testing.assert_array_equal(nothing.axes[0].images[0].get_array(), image[:, :, 8])  # nothing to crop around
    rendered(nothing, tmp_path / "b.png")


def test_grey_values_are_spread_over_the_surroundings_of_the_labels():
    image = np.full((100, 100, 100), -1000.0)  # air, 2 mm voxels; the body is a ball of 70 mm
    ball = ndimage.distance_transform_edt(np.ones_like(image)) > 0
    ball &= sum((g - 50) ** 2 for g in np.ogrid[:100, :100, :100]) < 60**2
    image[ball] = np.random.default_rng(0).normal(60, 20, ball.sum())
    labels = np.zeros(image.shape, np.uint8)
    labels[48:53, 48:53, 48:53] = 1
    low, high = plot.three_planes(image, labels, (2.0, 2.0, 2.0)).axes[0].images[0].get_clim()
    assert -10 < low < 30 and 90 < high < 130
    low, high = plot.three_planes(np.zeros(labels.shape), labels, (2.0, 2.0, 2.0)).axes[0].images[0].get_clim()
    assert low < high  # an image without contrast


def test_stages_have_a_column_for_each_volume_and_a_row_for_each_plane(tmp_path):
    truth = spine()
    points = sample_points(truth, np.random.default_rng(0))
    predictions = {"points": points, "transverse": (truth > 0).astype(np.uint8), "pseudo_mask": truth, "truth": truth}
    figure = plot.stages(grey(), predictions, SPACING_MM, title="a scan")
    picture = rendered(figure, tmp_path / "a.png")
    assert picture.shape[1] <= 1600 and len(figure.axes) == 3 * 5
    grid = np.array(figure.axes).reshape(3, 5)
    assert [ax.get_title() for ax in grid[0]] == ["image", "points", "transverse", "pseudo mask", "truth"]
    assert [ax.get_ylabel() for ax in grid[:, 0]] == ["sagittal", "coronal", "transverse"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [*CLASSES[1:], "vertebra", "background point"]
    np.testing.assert_allclose([millimetre(ax) for ax in grid[0]], [millimetre(grid[0, 0])] * 5)
    np.testing.assert_allclose(millimetre(grid[0, 0])[0] / 2, millimetre(grid[2, 0])[0])  # z and y spacing
    plain = plot.stages(grey(), {"truth": truth}, SPACING_MM)
    assert [t.get_text() for t in plain.legends[0].get_texts()] == list(CLASSES[1:])


def test_points_within_two_slices_are_dots_in_their_classes_colour():
    truth = np.ones((30, 30, 30), np.uint8)  # fills the volume: no crop, centre 14 or 15
    points = np.full(truth.shape, UNLABELLED, np.uint8)
    centre = round((30 - 1) / 2)
    for offset, row, column, value in ((-3, 1, 2, 1), (-2, 3, 4, 2), (0, 5, 6, 0), (2, 7, 8, 5), (3, 9, 10, 4)):
        points[row, column, centre + offset] = value
    figure = plot.stages(np.zeros(truth.shape), {"points": points, "truth": truth}, (1.0, 1.0, 1.0))
    sagittal = figure.axes[1]
    dots = {tuple(xy): tuple(c.get_facecolor()[0, :3]) for c in sagittal.collections for xy in c.get_offsets().tolist()}
    assert dots == {(4, 3): RGB[1], (6, 5): (1, 1, 1), (8, 7): RGB[4]}  # x before y
    assert not figure.axes[0].collections  # the image alone


def test_stages_end_a_margin_outside_the_truth_and_points_move_along():
    truth = np.zeros((90, 80, 70), np.uint8)
    truth[40:51, 40:51, 30:41] = 1
    points = np.full(truth.shape, UNLABELLED, np.uint8)
    points[45, 45, 35] = 1
    figure = plot.stages(grey(truth.shape), {"points": points, "truth": truth}, (1.0, 1.0, 5.0))
    assert figure.axes[0].images[0].get_array().shape == (25 + 11 + 25, 25 + 11 + 25)
    assert figure.axes[3].get_ylabel() == "coronal"
    assert figure.axes[3].images[0].get_array().shape == (61, 5 + 11 + 5)
    (dot,) = [xy for c in figure.axes[1].collections for xy in c.get_offsets().tolist()]
    assert dot == [45 - 15, 45 - 15]


def test_curves_mark_the_best_validation_and_the_drops_of_the_rate(tmp_path):
    histories = {"result": history([3, 2, 1.5, 1.2], [1, 1, 0.1, 0.1], [0.2, 0.6, 0.5, 0.55]),
                 "reference": history([2, 1, 0.5, 0.4], [1, 0.1, 0.1, 0.01], [0.3, 0.4, 0.7, 0.6])}
    figure = plot.curves(histories)
    rendered(figure, tmp_path / "a.png")
    left, right = figure.axes
    assert left.get_yscale() == "log" and right.get_ylim() == (0, 1)
    lines = {kind: [line.get_xydata().tolist() for line in right.lines if line.get_marker() == kind] for kind in "|o"}
    assert lines["o"] == [[[20, 0.6]], [[30, 0.7]]]
    assert lines["|"] == [[[20, 0.6]], [[10, 0.3], [30, 0.7]]]  # the last round before each drop
    assert [t.get_text() for t in figure.legends[0].get_texts()][:2] == ["result", "reference"]


def test_curves_of_a_negative_loss_and_without_a_score(tmp_path):
    never = History([Round(10, 1.0, {"total": -0.5}, float("nan"), 0.0)])
    figure = plot.curves({"weak": history([1.0, -0.2], [1, 1], [0.1, 0.2]), "never": never})
    rendered(figure, tmp_path / "a.png")
    assert figure.axes[0].get_yscale() == "symlog"
    assert sum(line.get_marker() == "o" for line in figure.axes[1].lines) == 1
    rendered(plot.curves({"empty": History()}), tmp_path / "b.png")


def test_class_scores_give_each_value_a_bar_in_its_classes_colour_and_nan_none(tmp_path):
    nan = float("nan")
    figure = plot.class_scores({"result": [0.5, 0.6, nan, 0.8, 1.0], "pseudo_mask": [nan] * 5})
    rendered(figure, tmp_path / "a.png")
    (ax,) = figure.axes
    heights = [(bar.get_height(), bar.get_facecolor()[:3]) for bar in ax.patches if bar.get_height()]
    assert heights == [(0.5, RGB[0]), (0.6, RGB[1]), (0.8, RGB[3]), (1.0, RGB[4])]
    assert sorted(t.get_text() for t in ax.texts) == ["0.50", "0.60", "0.80", "1.00"] + 6 * ["n/a"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["result", "pseudo mask"] and ax.get_ylim() == (0, 1)


def test_confusion_is_in_percent_of_the_true_class(tmp_path):
    figure = plot.confusion(np.array([[90, 10, 0], [1, 3, 4], [0, 0, 0]]), ("background", "L1", "L2"))
    rendered(figure, tmp_path / "a.png")
    ax = figure.axes[0]
    texts = {t.get_position(): t.get_text() for t in ax.texts}  # (column, row)
    assert [[texts[c, r] for c in range(3)] for r in range(3)] == [
        ["90.0", "10.0", "0.0"], ["12.5", "37.5", "50.0"], ["n/a"] * 3]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("prediction", "truth")


@pytest.mark.parametrize("width_inch, width_px", [(5, 5 * plot.DPI), (20, plot.PAGE_PX)])
def test_notebooks_show_a_figure_no_wider_than_the_page_needs(width_inch, width_px):
    png = plot.Figure((width_inch, 2))._repr_png_()
    assert imread(io.BytesIO(png), format="png").shape[1] == width_px


def test_the_centre_is_found_without_a_list_of_all_voxels():
    """A list of indices takes 24 bytes a voxel: of a large CT more than the memory."""
    labels = np.ones((96, 128, 128), np.uint8)
    tracemalloc.start()
    try:
        plot.centre_of(labels)
        assert tracemalloc.get_traced_memory()[1] < 6 * labels.size
    finally:
        tracemalloc.stop()


def test_centre_by_hand():
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[1, 2, 3:6] = 2
    labels[3, 4, 1] = UNLABELLED
    assert plot.centre_of(labels) == [1, 2, 4]
    assert plot.centre_of(np.zeros((4, 5, 6), np.uint8)) == [2, 2, 3]
