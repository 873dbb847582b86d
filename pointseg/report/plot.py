"""Pictures of scans, labels and scores, in one colour scheme.

Matplotlib's objects without pyplot: nothing global is touched, and every function returns its Figure.
"""

import csv
import io
import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from pointseg.kernels import reassemble_labels
from pointseg.points import BEARMAN
from pointseg.predict import Model
from pointseg.preprocess import Prepared
from pointseg.report.centres import plane_counts
from pointseg.report.compare import KINDS, REFERENCE, Curves
from pointseg.scans.files import whole_file
from pointseg.slices import AXES
from pointseg.train import History
from pointseg.volume import BACKGROUND, CLASSES, UNLABELLED, ScanError

# Okabe and Ito (2008).  In this order neighbouring vertebrae differ most, whichever kind of cone cell is missing.
COLOURS = ("#E69F00", "#56B4E9", "#D55E00", "#F0E442", "#009E73")  # L1..L5
VERTEBRA_COLOUR = "#CC79A7"  # any vertebra, where a model does not tell the level
MODEL_COLOURS = ("#004488", "#BB5566", "#997700", "#6699CC", "#000000")  # curves: none of the vertebrae's colours
HISTORY, IMAGES = "history.csv", "images"  # what a training writes: a line and a picture a round
DPI, WIDTH_INCH, HEIGHT_INCH = 120, 1600 / 120, 9.0  # the largest pictures: 1600 px wide, planes 1080 px high
PAGE_PX = 960  # widest picture in a notebook, whose file holds it: its page is hardly wider
POINT_SLICES = 2  # points on so many slices to either side are shown too: a single slice has few
MARGIN_MM = 25.0  # shown around the labels in `stages`
WINDOW_MM, WINDOW_PERCENTILES = 60.0, (0.5, 99.0)  # grey values are spread over what lies around the labels
RIM = [withStroke(linewidth=2, foreground="black")]  # so that light marks are seen on light tissue
SIDES = {"transverse": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}  # left, right, top and bottom of a plane


class Figure(matplotlib.figure.Figure):
    """Matplotlib's figure, shown by a notebook without pyplot."""

    def savefig(self, *arguments, **options) -> None:
        with warnings.catch_warnings():  # of letters that its font lacks: a scan may be named in any script
            warnings.filterwarnings("ignore", "Glyph .* missing")
            super().savefig(*arguments, **options)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=min(DPI, PAGE_PX / self.get_figwidth()))
        return buffer.getvalue()


def save(figure: matplotlib.figure.Figure, path: str | Path) -> None:
    """Write a PNG file, whole or not at all."""
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=DPI)


def overlay(ax: Axes, image: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, float], opacity: float = 0.45,
            outline: bool = True, binary: bool = False, window: tuple[float, float] | None = None) -> None:
    """One plane: image (H, W) in grey, labels (H, W) uint8 0..5 in colour; background and unlabelled are transparent.

    spacing_mm (row, column) sets the aspect.  binary: every label means "vertebra".  window: the grey values of black
    and white, by default the plane's lowest and highest.
    """
    low, high = window or (image.min(), image.max())
    ax.imshow(image, "gray", vmin=low, vmax=high, interpolation="bilinear")
    colours = np.zeros((256, 4))  # by label: red, green, blue, opacity
    for k in range(1, len(CLASSES)):
        colours[k] = *to_rgb(VERTEBRA_COLOUR if binary else COLOURS[k - 1]), opacity
    ax.imshow(colours[labels], interpolation="nearest")
    for k in np.unique(labels[_foreground(labels)]) if outline else ():
        inside = np.pad(labels == k, 1)  # so that the line closes at the plane's edge
        rows, columns = np.arange(-1, labels.shape[0] + 1), np.arange(-1, labels.shape[1] + 1)
        ax.contour(columns, rows, inside, [0.5], colors=[colours[k, :3]], linewidths=1)
    ax.set(xlim=(-0.5, labels.shape[1] - 0.5), ylim=(labels.shape[0] - 0.5, -0.5), xticks=[], yticks=[],
           aspect=spacing_mm[0] / spacing_mm[1])
    ax.spines[:].set_visible(False)


def slice_and_truth(model: Model, scan: Prepared) -> np.ndarray:
    """The middle slice of a scan's vertebrae as the model sees it, beside its labels.   -> pixels (H, W, 3) uint8"""
    axis = AXES[model.axis]
    at = centre_of(scan.mask)[axis]
    crops, corners = next(model.logits(scan, range(at, at + 1)))
    said = reassemble_labels(crops, corners, tuple(np.delete(scan.shape, axis).tolist()))[0]
    return pair(scan.image.take(at, axis), said, scan.mask.take(at, axis))


def pair(image: np.ndarray, labels: np.ndarray, truth: np.ndarray, zoom: int = 3) -> np.ndarray:
    """A slice with its prediction, and beside it with its labels.   all (H, W) -> pixels (H', W', 3) uint8

    Unlike `overlay` it takes no time worth speaking of, and draws transverse models' "vertebra" in L1's colour.
    """
    grey = np.repeat(image[..., None], 3, -1).astype(np.float32)
    colours = np.zeros((256, 4), np.float32)
    for k in range(1, len(CLASSES)):
        colours[k] = *(255 * np.array(to_rgb(COLOURS[k - 1]))), 0.45
    both = [grey * (1 - colours[x][..., 3:]) + colours[x][..., :3] * colours[x][..., 3:] for x in (labels, truth)]
    return np.concatenate(both, 1).astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)


def three_planes(volume_image: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, float, float],
                 title: str = "") -> Figure:
    """Transverse, coronal and sagittal plane through the labels' centre of mass, all in one scale.

    volume_image (z, y, x) CT or MR, labels (z, y, x) uint8 0..5; without labels through the centre of the image.
    """
    centre = centre_of(labels)
    window = window_of(volume_image, centre, spacing_mm)
    figure, axes = _in_one_scale([list(AXES)], np.array(labels.shape) * spacing_mm, title)
    for ax, (plane, axis) in zip(axes[0], AXES.items(), strict=True):
        overlay(ax, volume_image.take(centre[axis], axis), labels.take(centre[axis], axis),
                np.delete(spacing_mm, axis), window=window)
        ax.set_title(plane, fontsize=11)
        for side, x, y in zip(SIDES[plane], (0, 1, 0.5, 0.5), (0.5, 0.5, 1, 0), strict=True):
            ax.annotate(side, (x, y), (10 - 20 * x, 10 - 20 * y), xycoords="axes fraction", textcoords="offset points",
                        ha="center", va="center", color="white", path_effects=RIM)
    legend(figure)
    return figure


def stages(image: np.ndarray, predictions: dict[str, np.ndarray], spacing_mm: tuple[float, float, float],
           title: str = "", binary: Sequence[str] = ("transverse",)) -> Figure:
    """The procedure on one scan: a column for the image and each of its label volumes, a row for each plane.

    All (z, y, x).  The planes meet in the centre of the last entry's labels and end MARGIN_MM outside them; all have
    one scale.  Labels that are mostly UNLABELLED are shown as points; those named in `binary` hold 1 for any vertebra.
    """
    last = list(predictions.values())[-1]
    box = _box(last, spacing_mm)
    centre = centre_of(last[box])
    window = window_of(image[box], centre, spacing_mm)
    columns = {"image": np.zeros_like(last), **predictions}
    rows = ("sagittal", "coronal", "transverse")
    extent_mm = np.array(last[box].shape) * spacing_mm
    figure, axes = _in_one_scale([[plane] * len(columns) for plane in rows], extent_mm, title)
    for column, (name, labels) in enumerate(columns.items()):
        sparse = is_points(labels)
        shown = np.zeros_like(labels) if sparse else labels
        for ax, plane in zip(axes[:, column], rows, strict=True):
            axis, at = AXES[plane], centre[AXES[plane]]
            overlay(ax, image[box].take(at, axis), shown[box].take(at, axis), np.delete(spacing_mm, axis),
                    binary=name in binary, window=window)
            if sparse:
                mark_points(ax, labels[box], axis, at)
        axes[0, column].set_title(name.replace("_", " "), fontsize=11)
    for ax, plane in zip(axes[:, 0], rows, strict=True):
        ax.set_ylabel(plane, fontsize=11)
    legend(figure, vertebra=any(name in binary for name in predictions),
            points=any(is_points(labels) for labels in predictions.values()))
    return figure


def curves(histories: dict[str, History]) -> Figure:
    """Training loss and validation score of each model against the step."""
    figure = Figure((WIDTH_INCH * 0.9, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    lowest = np.inf
    for i, (name, history) in enumerate(histories.items()):
        colour, style = MODEL_COLOURS[i % len(MODEL_COLOURS)], ("-", "--")[i // len(MODEL_COLOURS) % 2]
        steps = np.array([r.step for r in history.rounds])
        rates = np.array([r.learning_rate for r in history.rounds])
        drops = np.flatnonzero(rates[1:] < rates[:-1])  # the last round with the higher rate
        for ax, values in ((left, np.array([r.losses["total"] for r in history.rounds])),
                           (right, np.array([r.validation for r in history.rounds]))):
            ax.plot(steps, values, style, color=colour, linewidth=1.5, label=name.replace("_", " "))
            ax.plot(steps[drops], values[drops], "|", color=colour, markersize=14)
        lowest = min([lowest, *(r.losses["total"] for r in history.rounds)])
        if np.isfinite(history.best_validation):
            right.plot(history.best_step, history.best_validation, "o", color=colour, markersize=7)
    if lowest > 0:
        left.set_yscale("log")
    else:
        left.set_yscale("symlog", linthresh=0.1)
    left.set(xlabel="step (batches)", ylabel="training loss, total", title="training")
    right.set(xlabel="step (batches)", ylabel="Dice_wi (0 to 1)", title="validation", ylim=(0, 1))
    for ax in (left, right):
        ax.grid(alpha=0.3)
    handles = left.get_legend_handles_labels()[0] + [
        Line2D([], [], linestyle="", marker="|", color="grey", markersize=14, label="learning rate divided"),
        Line2D([], [], linestyle="", marker="o", color="grey", markersize=7, label="best on validation scans")]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(7, len(handles)), frameon=False)
    return figure


def training(folder: str | Path) -> Figure:
    """What the trainings below a folder have come to, finished or not: two rows for each, from the files they write.

    Each loss term, the learning rate and the validation score against the step, and the newest picture: what the
    network sees on a validation slice, beside the truth.   See `runs.checkpoint`.
    """
    paths = sorted(Path(folder).glob(f"**/{HISTORY}"), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise ScanError(f"{folder}: found no {HISTORY}, expected a folder that table1 or train writes to; wait for "
                        "the first round, or check the path")
    figure = Figure((8, 5.6 * len(paths)), layout="constrained")
    for row, path in zip(figure.subplots(2 * len(paths), 2).reshape(len(paths), 4), paths, strict=True):
        with open(path, newline="", encoding="utf-8") as file:
            rounds = list(csv.DictReader(file))
        columns = {name: np.array([float(r[name]) for r in rounds]) for name in rounds[0]}
        steps, rates, scores = (columns.pop(name) for name in ("step", "learning_rate", "validation"))
        for (name, values), colour in zip(list(columns.items())[1:], itertools.cycle(MODEL_COLOURS)):  # [0]: seconds
            row[0].plot(steps, values, color=colour, label=name.replace("_", " "))
        row[0].set(ylabel="training loss")
        row[0].legend()
        row[1].step(steps, rates, where="pre", color=MODEL_COLOURS[0])
        row[1].set(ylabel="learning rate", yscale="log")
        row[2].plot(steps, scores, color=MODEL_COLOURS[0])
        row[2].set(ylabel="validation, Dice_wi", ylim=(0, 1))
        for ax in row[:3]:
            ax.set(xlabel="step")
            ax.grid(alpha=0.3)
        row[0].set_title(str(path.parent.relative_to(folder)) if path.parent != Path(folder) else path.parent.name,
                         parse_math=False)
        row[3].axis("off")
        if pictures := sorted((path.parent / IMAGES).glob("*.png")):
            row[3].imshow(imread(pictures[-1]))
            row[3].set_title(f"step {int(pictures[-1].stem)}: predicted, true")
    return figure


def class_scores(scores: dict[str, Sequence[float]]) -> Figure:
    """Dice of L1..L5 for each model: a group of bars a model, nan (a class in neither mask) written as "n/a"."""
    figure = Figure((min(WIDTH_INCH, 2 + 2.2 * len(scores)), 4), layout="constrained")
    ax = figure.subplots()
    for k, colour in enumerate(COLOURS):
        for group, values in enumerate(scores.values()):
            x, defined = group + 0.17 * (k - 2), np.isfinite(values[k])
            ax.bar(x, values[k] if defined else 0, 0.16, color=colour)
            ax.annotate(f"{values[k]:.2f}" if defined else "n/a", (x, values[k] if defined else 0), (0, 2),
                        textcoords="offset points", ha="center", fontsize=8)
    ax.grid(axis="y", alpha=0.3)
    ax.set_axisbelow(True)
    ax.set(ylim=(0, 1), ylabel="Dice (0 to 1)", xlim=(-0.5, len(scores) - 0.5))
    ax.set_xticks(range(len(scores)), [name.replace("_", " ") for name in scores])
    ax.spines[["top", "right"]].set_visible(False)
    legend(figure)
    return figure


def minutes(curves: Curves, times: Sequence[float] = (1, 2, 4)) -> Figure:
    """Dice_wi against labelling time for each kind of label, with 95 % bands, for outlines so many times as slow as
    Bearman's; last what to label: the colour of the kind that is best, the darker the more resamples agree."""
    figure = Figure((WIDTH_INCH, HEIGHT_INCH), layout="constrained")
    axes = figure.subplots(2, -(-(len(times) + 1) // 2)).ravel()
    colours = dict(zip(KINDS, ("#BB5566", "#E69F00", "#009E73", "#004488", "#000000"), strict=True))
    hours = next(iter(curves.rows.values()))[0].shown * BEARMAN.mask / 3600
    for ax, factor in zip(axes, times):
        for kind in curves.kinds:
            colour, (shares, dice) = colours[kind], curves.of_kind(kind, factor)
            low, high = np.quantile(dice[:, 1:], (0.025, 0.975), axis=1)
            ax.plot(100 * shares, dice[:, 0], "o-", color=colour, label=kind, markersize=4)
            ax.fill_between(100 * shares, low, high, color=colour, alpha=0.12, linewidth=0)
        if REFERENCE in curves.dice:
            ax.axhline(0.95 * curves.dice[REFERENCE][0], color="grey", linestyle=":", linewidth=1)
        ax.set(xscale="log", xlim=(0.25, 110), ylabel="Dice_wi (0 to 1)", xlabel="labelling time, % of full masks "
               f"({hours * factor:.0f} hours)", title=f"a mask of a slice takes {factor * BEARMAN.mask:.0f} s")
        ax.grid(alpha=0.3)
    axes[0].legend(title="dotted: 95 % of all masks", fontsize=9)
    ax, grid = axes[len(times)], np.geomspace(0.0025, 1, 200)
    for row, factor in enumerate(times):
        best = curves.best(grid, factor)
        for left, right, (kind, certainty) in zip(grid, grid[1:], best):
            if kind:
                ax.barh(row, 100 * (right - left), left=100 * left, height=0.7, color=colours[kind],
                        alpha=0.15 + 0.85 * certainty)
    ax.set_yticks(range(len(times)), [f"{factor * BEARMAN.mask:.0f} s a mask" for factor in times])
    ax.set(xscale="log", xlim=(0.25, 110), xlabel="labelling time, % of full masks",
           title="what to label: the best kind, the darker the surer")
    for ax in axes:
        ax.xaxis.set_major_formatter("{x:g}")
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def confusion(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Confusion matrix (K, K), rows truth, in percent of each true class; a class without voxels has an empty row."""
    figure = Figure((2.4 + 0.95 * len(names), 1 + 0.7 * len(names)), layout="constrained")
    ax = figure.subplots()
    total = matrix.sum(1, keepdims=True)
    percent = np.divide(100 * matrix, total, out=np.full(matrix.shape, np.nan), where=total > 0)
    picture = ax.imshow(percent, "Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(percent):
        ax.text(column, row, f"{value:.1f}" if np.isfinite(value) else "n/a", ha="center", va="center",
                color="white" if value > 60 else "black")
    ax.set_xticks(range(len(names)), names)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="prediction", ylabel="truth")
    figure.colorbar(picture, label="% of the true class's voxels")
    return figure


def _in_one_scale(planes: list[list[str]], extent_mm: np.ndarray, title: str) -> tuple[Figure, np.ndarray]:
    """A figure with axes (rows, columns) for these planes of a volume of extent_mm (z, y, x), a millimetre equally
    long in all of them.  Placed by hand: matplotlib's layouts fill each cell and so change the scale."""
    sizes_mm = np.array([[np.delete(extent_mm, AXES[plane]) for plane in row] for row in planes])
    rows_mm, columns_mm = sizes_mm[..., 0].max(1), sizes_mm[..., 1].max(0)
    left, top, bottom, gap = 0.35, 0.75 if title else 0.4, 0.5, 0.06  # inch
    inch_per_mm = min((WIDTH_INCH - left - gap * len(columns_mm)) / columns_mm.sum(), HEIGHT_INCH / rows_mm.sum())
    rows, columns = rows_mm * inch_per_mm + gap, columns_mm * inch_per_mm + gap  # inch
    width, height = max(8, left + columns.sum()), rows.sum() + top + bottom
    left += (width - left - columns.sum()) / 2
    figure = Figure((width, height))
    figure.text(0.5, 1 - 0.3 / height, title, ha="center", fontsize=12, parse_math=False)  # a name may hold $
    axes = np.empty(sizes_mm.shape[:2], object)
    for i, j in np.ndindex(axes.shape):
        h, w = sizes_mm[i, j] * inch_per_mm
        x = left + columns[:j].sum() + (columns[j] - w) / 2
        y = height - top - rows[:i].sum() - (rows[i] + h) / 2
        axes[i, j] = figure.add_axes((x / width, y / height, w / width, h / height))
    return figure, axes


def _foreground(labels: np.ndarray) -> np.ndarray:
    return (labels != BACKGROUND) & (labels != UNLABELLED)


def centre_of(labels: np.ndarray) -> list[int]:
    """Voxel nearest to the labels' centre of mass; that of the array where there are none."""
    counts = plane_counts(_foreground(labels))
    if not counts[0].any():
        return [n // 2 for n in labels.shape]
    return [round(float(np.average(np.arange(len(c)), weights=c))) for c in counts]


def is_points(labels: np.ndarray) -> bool:
    """Labels that are known in a minority of voxels: points, to be drawn as dots."""
    return np.mean(labels == UNLABELLED) > 0.5


def _box(labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[slice, ...]:
    """The labels' bounding box and MARGIN_MM around it; everything where there are none."""
    found = [np.flatnonzero(c) for c in plane_counts(_foreground(labels))]
    if not len(found[0]):
        return (slice(None),) * 3
    margin = np.ceil(MARGIN_MM / np.array(spacing_mm)).astype(int)
    return tuple(slice(max(f[0] - m, 0), f[-1] + m + 1) for f, m in zip(found, margin, strict=True))


def window_of(image: np.ndarray, centre: Sequence[int], spacing_mm: Sequence[float]) -> tuple[float, float]:
    """Grey values of black and white.  Taken near the centre, since air would spend half of a CT's on nothing."""
    reach = [round(WINDOW_MM / s) for s in spacing_mm]
    near = image[tuple(slice(max(0, c - r), c + r + 1) for c, r in zip(centre, reach, strict=True))]
    low, high = np.percentile(near, WINDOW_PERCENTILES)
    return float(low), float(max(high, low + 1e-6))


def mark_points(ax: Axes, labels: np.ndarray, axis: int, at: int) -> None:
    """Points (z, y, x) within POINT_SLICES of a plane, projected onto it."""
    near = np.moveaxis(labels, axis, 0)[max(0, at - POINT_SLICES) : at + POINT_SLICES + 1]
    for k in range(len(CLASSES)):
        _, rows, columns = np.nonzero(near == k)
        if k == BACKGROUND:
            ax.scatter(columns, rows, 14, "white", marker="x", linewidths=0.9, path_effects=RIM)
        else:
            ax.scatter(columns, rows, 10, COLOURS[k - 1], edgecolors="black", linewidths=0.3)


def legend(figure: Figure, vertebra: bool = False, points: bool = False) -> None:
    """One entry for each of L1..L5 below the figure's axes; on demand for "vertebra" and for background points."""
    handles = [Patch(color=colour, label=name) for colour, name in zip(COLOURS, CLASSES[1:], strict=True)]
    if vertebra:
        handles.append(Patch(color=VERTEBRA_COLOUR, label="vertebra"))
    if points:
        handles.append(Line2D([], [], linestyle="", marker="X", color="white", markeredgecolor="grey", markersize=8,
                              label="background point"))
    place = "outside lower center" if figure.get_layout_engine() else "lower center"
    figure.legend(handles=handles, loc=place, ncols=len(handles), frameon=False)
