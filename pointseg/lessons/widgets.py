"""A scan to leaf through and a slice to label by hand, for notebooks.

Each shows a static figure first, which needs no kernel and so is there on a web page or on paper, then its widgets.
"""

import base64
import io
from collections.abc import Iterable

import anywidget
import ipywidgets
import numpy as np
import traitlets
from IPython.display import display

from pointseg.report import plot
from pointseg.report.plot import COLOURS, Figure, overlay
from pointseg.slices import AXES
from pointseg.volume import CLASSES, UNLABELLED

VIEW_PX = (480, 600)  # a plane fills this height or this width
PAGE_INCH = 8  # width of a static figure
DOTS = ("#FFFFFF", *COLOURS)  # of a point, by class


class SliceViewer:
    """Leaf through a scan and its labels along the three axes.

    image (z, y, x), labels (z, y, x) uint8 0..5 or UNLABELLED, spacing_mm (z, y, x).  Labels that are mostly UNLABELLED
    are points, and those of the slices next to it are shown too.
    """

    def __init__(self, image: np.ndarray, labels: np.ndarray | None = None,
                 spacing_mm: tuple[float, float, float] = (1, 1, 1)):
        self.image = np.asarray(image, np.float32)
        self.labels = np.zeros(self.image.shape, np.uint8) if labels is None else np.asarray(labels).astype(np.uint8)
        if self.image.ndim != 3 or self.image.shape != self.labels.shape:
            raise ValueError(f"image {self.image.shape} and labels {self.labels.shape}, expected one shape (z, y, x)")
        self.spacing_mm = spacing_mm
        self.points = plot.is_points(self.labels)
        self.centre = plot.centre_of(self.labels)
        self.window = plot.window_of(self.image, self.centre, spacing_mm)
        self.axis = ipywidgets.ToggleButtons(options=["sagittal", "coronal", "transverse"], description="axis")
        self.index = ipywidgets.IntSlider(description="slice")
        self.shown = ipywidgets.Checkbox(value=True, description="labels", indent=False)
        self.opacity = ipywidgets.FloatSlider(value=0.45, min=0, max=1, step=0.05, description="opacity")
        natural = {"align_self": "flex-start", "max_width": "100%"}  # else it is stretched to the page's width
        self.picture = ipywidgets.Image(format="png", layout=natural)
        self.caption = ipywidgets.HTML()
        self.widget = ipywidgets.VBox([
            self.axis, self.index, ipywidgets.HBox([self.opacity, self.shown]), self.picture, self.caption,
            ipywidgets.HTML(legend())])
        self._turn()
        self.axis.observe(self._turn, "value")
        for control in (self.index, self.shown, self.opacity):
            control.observe(self._draw, "value")

    @property
    def figure(self) -> Figure:
        """The planes through the labels' centre, as a picture without a kernel."""
        if self.points:
            figure = plot.stages(self.image, {"points": self.labels}, self.spacing_mm)
        else:
            figure = plot.three_planes(self.image, self.labels, self.spacing_mm)
        figure.set_size_inches(figure.get_size_inches() * PAGE_INCH / figure.get_figwidth())
        return figure

    def _ipython_display_(self) -> None:
        display(self.figure)
        display(self.widget)

    def _turn(self, _=None) -> None:
        axis = AXES[self.axis.value]
        with self.index.hold_trait_notifications():  # else the old slice is clipped to the new range, and drawn
            self.index.max = self.image.shape[axis] - 1
            self.index.value = self.centre[axis]
        self._draw()

    def _draw(self, _=None) -> None:
        plane, axis, at = self.axis.value, AXES[self.axis.value], self.index.value
        labels = self.labels.take(at, axis) if self.shown.value and not self.points else None
        points = (self.labels, axis, at) if self.shown.value and self.points else None
        self.picture.value = png_of(self.image.take(at, axis), labels, np.delete(self.spacing_mm, axis), self.window,
                                  self.opacity.value, points)
        left, right, top, bottom = plot.SIDES[plane]
        self.caption.value = (f"{plane} slice {at} of 0..{self.index.max}; left edge {left}, right {right}, "
                              f"top {top}, bottom {bottom}")


class ClickPicture(anywidget.AnyWidget):
    """A picture that writes down where it is clicked and, while it has the focus, which keys are pressed; shows dots.

    All places are fractions of the picture as it is shown, so its size on the screen does not matter.  `clicks` is a
    log that only grows: a busy kernel gets the latest state only, and a single click could be overwritten by the next,
    or a key by a click.  Each entry tells what was shown then, since a slow kernel changes the picture late.  A digit
    chooses the class of the next click, without asking the kernel.
    """

    _esm = """
    export default { render({ model, el }) {
      const [rows, columns] = model.get("shape");
      const box = document.createElement("div");
      const img = document.createElement("img");
      box.style.cssText = `position: relative; cursor: crosshair; width: ${model.get("width_px")}px; max-width: 100%;
                           aspect-ratio: ${model.get("ratio")}; user-select: none`;
      img.style.cssText = "display: block; width: 100%; height: 100%; max-width: none; margin: 0; padding: 0";
      img.draggable = false;
      const dots = document.createElement("div");  // click-through, in front of the picture
      dots.style.cssText = "position: absolute; inset: 0; pointer-events: none";
      box.append(img, dots);
      el.append(box);
      const drawPicture = () => { img.src = model.get("picture"); };
      const drawDots = () => dots.replaceChildren(...model.get("dots").map(([row, column, colour, opacity = 1]) => {
        const dot = document.createElement("div");
        dot.style.cssText = `position: absolute; box-sizing: border-box; width: 9px; height: 9px; border-radius: 50%;
                             border: 1px solid black; background: ${colour}; transform: translate(-50%, -50%);
                             opacity: ${opacity};
                             left: ${100 * (column + 0.5) / columns}%; top: ${100 * (row + 0.5) / rows}%`;
        return dot;
      }));
      const note = (row, column, what) => {
        model.set("clicks", [...model.get("clicks"), [row, column, what, Date.now() / 1000, model.get("shown")]]);
        model.save_changes();
      };
      const pixel = (at, start, length, count) =>
        Math.min(count - 1, Math.max(0, Math.floor((at - start) / length * count)));
      box.addEventListener("click", (event) => {
        const shown = box.getBoundingClientRect();  // after all of the page's scaling
        note(pixel(event.clientY, shown.top, shown.height, rows),
             pixel(event.clientX, shown.left, shown.width, columns), model.get("chosen"));
      });
      box.tabIndex = 0;
      box.dataset.lmSuppressShortcuts = "true";  // Notebook 7 takes z and 0 for its own before they come here
      box.style.outline = "none";
      box.addEventListener("mouseenter", () => box.focus({ preventScroll: true }));
      box.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        if (event.key >= "0" && event.key <= "5") {
          model.set("chosen", Number(event.key));
          model.save_changes();
        } else if (model.get("heard").includes(event.key)) {
          note(-1, -1, model.get("heard").indexOf(event.key));
        } else return;
        event.preventDefault();
        event.stopPropagation();
      });
      model.on("change:picture", drawPicture);
      model.on("change:dots", drawDots);
      drawPicture();
      drawDots();
      if (!model.get("began")) {
        model.set("began", Date.now() / 1000);
        model.save_changes();
      }
      return () => { model.off("change:picture", drawPicture); model.off("change:dots", drawDots); };
    } };
    """
    shape = traitlets.List().tag(sync=True)  # rows, columns
    ratio = traitlets.Float().tag(sync=True)  # width / height as shown
    width_px = traitlets.Int().tag(sync=True)
    picture = traitlets.Unicode().tag(sync=True)  # data URL
    dots = traitlets.List().tag(sync=True)  # [row, column, colour]
    chosen = traitlets.Int(1).tag(sync=True)  # class of the next click
    shown = traitlets.Int(0).tag(sync=True)  # what the picture is of, a number of one's own
    began = traitlets.Float(0).tag(sync=True)  # when it was first seen, on the clock of the clicks; 0: not yet
    heard = traitlets.List().tag(sync=True)  # keys that are written down
    clicks = traitlets.List().tag(sync=True)  # [row, column, class, seconds, shown]; of a key [-1, -1, its number, ..]


class PointPicker:
    """Label a slice with points by clicking, and see how long it takes.

    image_2d (H, W), spacing_mm (row, column), truth (H, W) uint8: the mask to compare with, hidden at first.
    scripted: clicks to start with, as for `script`.
    """

    def __init__(self, image_2d: np.ndarray, spacing_mm: tuple[float, float], truth: np.ndarray | None = None,
                 scripted: Iterable[tuple[int, int, int, float]] | None = None):
        self.image, self.spacing_mm, self.truth = np.asarray(image_2d, np.float32), spacing_mm, truth
        if self.image.ndim != 2 or (truth is not None and truth.shape != self.image.shape):
            raise ValueError(f"image {self.image.shape} and truth {np.shape(truth)}, expected one shape (row, column)")
        low, high = np.percentile(self.image, plot.WINDOW_PERCENTILES)
        self.window = float(low), float(max(high, low + 1e-6))
        self._clicked: list[tuple[int, int, int, float]] = []
        height, width = size_px(self.image.shape, spacing_mm)
        self.canvas = ClickPicture(shape=list(self.image.shape), ratio=width / height, width_px=width)
        self.choice = ipywidgets.ToggleButtons(options=CLASSES, value="L1", style={"button_width": "auto"})
        self.undo = ipywidgets.Button(description="undo")
        self.clear = ipywidgets.Button(description="clear")
        self.shown = ipywidgets.ToggleButton(description="show the mask", disabled=truth is None)
        self.status = ipywidgets.HTML()
        self.widget = ipywidgets.VBox([self.choice, self.canvas, ipywidgets.HBox([self.undo, self.clear, self.shown]),
                                       self.status, ipywidgets.HTML(legend())])
        ipywidgets.jsdlink((self.choice, "index"), (self.canvas, "chosen"))  # at once, without asking the kernel
        self.canvas.observe(self._click, "clicks")
        self.undo.on_click(lambda _: self._keep(self._clicked[:-1]))
        self.clear.on_click(lambda _: self._keep([]))
        self.shown.observe(self._draw, "value")
        self._draw()
        self._keep([])
        self.script(scripted or ())

    @property
    def points(self) -> list[tuple[int, int, int]]:
        """(row, column, class) in the order of the clicks."""
        return [click[:3] for click in self._clicked]

    @property
    def seconds_per_point(self) -> float:
        """Median time from one click to the next; nan with fewer than two."""
        times = [click[3] for click in self._clicked]
        return float(np.median(np.diff(times))) if len(times) > 1 else float("nan")

    @property
    def seconds(self) -> float:
        """From when the slice was seen to the last click, so with the time to look.  A script's clock starts at 0."""
        last = max((click[3] for click in self._clicked), default=float("nan"))
        return last - self.canvas.began if last >= self.canvas.began else last

    @property
    def labels(self) -> np.ndarray:
        """(H, W) uint8: the points' classes, UNLABELLED elsewhere.  Of two on one pixel the later counts."""
        labels = np.full(self.image.shape, UNLABELLED, np.uint8)
        for row, column, k in self.points:
            labels[row, column] = k
        return labels

    def script(self, clicks: Iterable[tuple[int, int, int, float]]) -> None:
        """Click without a mouse: (row, column, class, seconds), the way the browser reports its clicks."""
        new = [[int(row), int(column), int(k), float(seconds)] for row, column, k, seconds in clicks]
        for row, column, k, _ in new:
            if not (0 <= row < self.image.shape[0] and 0 <= column < self.image.shape[1] and 0 <= k < len(CLASSES)):
                raise ValueError(f"a click on row {row}, column {column} with class {k}, expected a pixel of "
                                 f"{self.image.shape} and a class 0..{len(CLASSES) - 1}")
        self.canvas.clicks = self.canvas.clicks + new

    @property
    def figure(self) -> Figure:
        """The slice with its points; without the mask, since whoever labels it next should not have seen that."""
        figure = Figure((PAGE_INCH, 5), layout="constrained")
        ax = figure.subplots()
        overlay(ax, self.image, np.zeros(self.image.shape, np.uint8), self.spacing_mm, window=self.window)
        plot.mark_points(ax, self.labels[None], 0, 0)
        plot.legend(figure, points=True)
        return figure

    def _ipython_display_(self) -> None:
        display(self.figure)
        display(self.widget)

    def _click(self, change: dict) -> None:
        self._keep(self._clicked + [tuple(click) for click in change["new"][len(change["old"]):]])

    def _keep(self, clicked: list[tuple[int, int, int, float]]) -> None:
        self._clicked = clicked
        self.canvas.dots = [[row, column, DOTS[k]] for row, column, k in self.points]
        pace = f", {self.seconds_per_point:.1f} s from one to the next" if len(clicked) > 1 else ""
        self.status.value = f"{len(clicked)} points{pace}"

    def _draw(self, _=None) -> None:
        png = png_of(self.image, self.truth if self.shown.value else None, self.spacing_mm, self.window)
        self.canvas.picture = "data:image/png;base64," + base64.b64encode(png).decode()


def size_px(shape: tuple[int, int], spacing_mm: tuple[float, float]) -> tuple[int, int]:
    """Height and width of a plane on the screen, a millimetre equally long in both."""
    extent_mm = np.multiply(shape, spacing_mm)
    return tuple(max(1, round(mm)) for mm in extent_mm * np.min(VIEW_PX / extent_mm))


def png_of(image: np.ndarray, labels: np.ndarray | None, spacing_mm: tuple[float, float], window: tuple[float, float],
           opacity: float = 0.45, points: tuple[np.ndarray, int, int] | None = None) -> bytes:
    """One plane (H, W) as a picture without a margin, with a mask (H, W) or with the points of a volume."""
    height, width = size_px(image.shape, spacing_mm)
    figure = Figure((width / 100, height / 100), dpi=100)
    ax = figure.add_axes((0, 0, 1, 1))
    overlay(ax, image, np.zeros(image.shape, np.uint8) if labels is None else labels, spacing_mm, opacity,
            window=window)
    if points:
        plot.mark_points(ax, *points)
    ax.set_aspect("auto")  # the figure has the right shape, up to a rounded pixel
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", pil_kwargs={"compress_level": 1})  # quick: it goes no further than the screen
    return buffer.getvalue()


def legend() -> str:
    return " ".join(f'<span style="color: {colour}; -webkit-text-stroke: 0.4px black">&#9632;</span> {name}'
                    for colour, name in zip(COLOURS, CLASSES[1:], strict=True))
