"""A whole scan to label by hand in a notebook: clicks, outlines of some slices, or the classes of random places.

Everything is kept in a dataset folder as soon as it is there, and taken up again by the next `Labeller` of the same
scan: a kernel may stop at any moment.  At the end the folder trains: `pointseg table1 --data FOLDER`.
"""

import base64
from collections.abc import Iterable
from pathlib import Path

import ipywidgets
import numpy as np
from IPython.display import display
from skimage.draw import polygon

from pointseg.datasets.manifest import Case, add_to_manifest, read_manifest
from pointseg.lessons.widgets import DOTS, ClickPicture, legend, png_of, size_px
from pointseg.points import SAGITTAL, draw_places
from pointseg.report import plot
from pointseg.report.plot import Figure, overlay
from pointseg.scans.clicks import read_clicks, write_clicks
from pointseg.scans.outlines import numbered
from pointseg.scans.volumes import read_volume, stem, write_mask, write_volume
from pointseg.volume import BACKGROUND, CLASSES, UNLABELLED, Clicks, ScanError, Volume

KEYS = ("z", "n", "p", "Enter")  # undo, next slice, previous slice, close an outline; 0..5 choose a class
FAINT = 0.35
EVERY = 4
EVERY_COSTS = ("points on every 4th slice take 3.5% of the time for full masks and gave Dice_wi 0.76, on every slice "
               "14.1% and 0.78 (notebooks/results/minutes.csv)")
PAUSE_S = 120.0  # who takes longer for a click was not labelling


class Labeller:
    """Go through the slices of a scan that are worth labelling.

    scan: a file or DICOM folder.   folder: the dataset folder to write or to add to.   every: of the sagittal slices;
    the first is chosen by chance, from `seed`.   places: ask for the classes of so many random places instead, to
    choose and score by; needs a click or two in each vertebra first, which a `Labeller` without places has taken.
    outline: clicks are corners of an outline, which Enter closes.   patient: whose scan it is, the case's if "".
    """

    def __init__(self, scan: str | Path, folder: str | Path, every: int = EVERY, places: int = 0, outline: bool = False,
                 patient: str = "", seed: int = 0):
        scan, self.folder = Path(scan), Path(folder)
        self.volume: Volume = read_volume(scan)
        self.case = stem(scan) if scan.is_file() else scan.resolve().name
        self.patient, self.outline = patient or f"clicked-{self.case}", outline
        self.files = {kind: self.folder / "clicked" / f"{self.case}_{kind}" for kind in (
            "img.nii.gz", "points.csv", "vert.nii.gz")}
        self.rows: list[tuple[tuple[int, int, int], int, float, float]] = []  # place, class, seconds, mm3
        self.mask = np.full(self.volume.image.shape, UNLABELLED, np.uint8)
        self.corners: list[tuple[int, int]] = []
        self.drawn: list[tuple[int, np.ndarray]] = []  # slice, and its mask before the outline
        self._take_up()
        rng = np.random.default_rng(seed)
        count = self.volume.image.shape[SAGITTAL]
        self.slices = list(range(int(rng.integers(min(every, count))), count, every))
        self.asked = self._places(places, rng) if places else None
        self.at = 0
        self._since: float | None = None  # when the last click was, on the browser's clock
        self._build(says_costs=every == EVERY and not outline and not places)
        self._go(self._first_open())

    # --- what is kept

    def _take_up(self) -> None:
        if self.files["points.csv"].is_file():
            known, _ = read_clicks(self.files["points.csv"], self.volume.geometry)
            self.rows = [(tuple(p), int(v), float(s), float(mm3)) for p, v, s, mm3 in zip(
                known.places.tolist(), known.values, known.seconds, known.stands_for_mm3, strict=True)]
        if self.files["vert.nii.gz"].is_file():
            case, = (c for c in read_manifest(self.folder) if c.name == f"clicked/{self.case}")
            self.mask = case.read().mask

    def save(self) -> None:
        """Everything that is known, each file whole or not at all; the manifest last."""
        if not self.files["img.nii.gz"].is_file():
            write_volume(self.files["img.nii.gz"], self.volume)
        if self.rows:
            write_clicks(self.files["points.csv"], self.clicks, self.volume.geometry)
        else:
            self.files["points.csv"].unlink(missing_ok=True)
        slices = self.outlined
        if slices:
            labels = np.where(self.mask == UNLABELLED, BACKGROUND, self.mask)
            write_mask(self.files["vert.nii.gz"], labels, self.volume.geometry, verse=True)
        levels = sorted({v for _, v, _, _ in self.rows if v} | {int(v) for v in np.unique(self.mask) if 0 < v < 6})
        numbers = map(str, numbered(self.volume, SAGITTAL, slices))
        case = Case("clicked", self.case, self.patient, self.volume.modality, self.files["img.nii.gz"],
                    self.files["vert.nii.gz"] if slices else None, levels=tuple(CLASSES[k] for k in levels),
                    points=self.files["points.csv"] if self.rows else None,
                    labelled=" ".join(["sagittal", *numbers]) if slices else "")
        if slices or self.rows:
            add_to_manifest(self.folder, [case])

    @property
    def clicks(self) -> Clicks:
        places, values, seconds, mm3 = zip(*self.rows, strict=True)
        return Clicks(np.array(places, np.int32), np.array(values, np.uint8), np.array(seconds), np.array(mm3))

    @property
    def outlined(self) -> list[int]:
        """The slices that have an outline."""
        return np.flatnonzero((self.mask != UNLABELLED).any((0, 1))).tolist()

    @property
    def seconds(self) -> float:
        """What all clicks took together, as far as it is known."""
        return float(np.nansum([s for _, _, s, _ in self.rows]))

    # --- what is asked

    def _places(self, count: int, rng: np.random.Generator) -> list[tuple[tuple[int, int, int], float]]:
        middles = np.array([p for p, v, _, mm3 in self.rows if v and np.isnan(mm3)])
        if not len(middles):
            raise ScanError(f"{self.case}: found no click in a vertebra, expected one or two in each, near which most "
                            "places are asked for; label them first, without places")
        of_level = [middles[[v == k for _, v, _, mm3 in self.rows if v and np.isnan(mm3)]] for k in range(1, 6)]
        middles = np.array([m.mean(0) for m in of_level if len(m)])
        places, mm3 = draw_places(self.volume.image.shape, self.volume.spacing_mm, middles, count, rng)
        return [(tuple(p), float(m)) for p, m in zip(places.tolist(), mm3, strict=True)]

    def _first_open(self) -> int:
        """Where one stopped."""
        if self.asked:
            return sum(np.isfinite(mm3) for _, _, _, mm3 in self.rows)
        done = {p[SAGITTAL] for p, _, _, mm3 in self.rows if np.isnan(mm3)} | set(self.outlined)
        return next((i for i, x in enumerate(self.slices) if x not in done), 0)

    @property
    def place(self) -> tuple[int, int, int] | None:
        """The random place that is asked for."""
        return self.asked[self.at][0] if self.asked and self.at < len(self.asked) else None

    @property
    def x(self) -> int:
        """The sagittal slice that is shown."""
        return self.place[SAGITTAL] if self.place else self.slices[min(self.at, len(self.slices) - 1)]

    @property
    def shown(self) -> int:
        """What a click is for: a slice, or the number of a random place."""
        return self.at if self.asked else self.x

    # --- what is shown

    def _build(self, says_costs: bool) -> None:
        height, width = size_px(self.volume.image.shape[:2], self.volume.spacing_mm[:2])
        self.canvas = ClickPicture(shape=list(self.volume.image.shape[:2]), ratio=width / height, width_px=width,
                                   heard=list(KEYS))
        self.overview = ClickPicture(shape=list(self.volume.image.shape[:2]), ratio=width / height,
                                     width_px=width // 2)
        middle = self.volume.image[:, :, self.volume.image.shape[SAGITTAL] // 2]
        self.overview.picture = self._picture(middle, None)
        self.choice = ipywidgets.ToggleButtons(options=CLASSES, value="L1", style={"button_width": "auto"})
        buttons = {name: ipywidgets.Button(description=name) for name in ("previous", "next", "undo")}
        buttons["close"] = ipywidgets.Button(description="close the outline", disabled=not self.outline)
        self.buttons, self.status = buttons, ipywidgets.HTML()
        help_ = ipywidgets.HTML("keys, while the mouse is on the picture: 0 background, 1..5 = L1..L5, z undo, n next, "
                                "p previous" + (", Enter closes the outline" if self.outline else "")
                                + (f"<br>{EVERY_COSTS}" if says_costs else ""))
        self.widget = ipywidgets.VBox([self.choice, ipywidgets.HBox([self.canvas, self.overview]),
                                       ipywidgets.HBox(list(buttons.values())), self.status, help_,
                                       ipywidgets.HTML(legend())])
        ipywidgets.jslink((self.choice, "index"), (self.canvas, "chosen"))
        self.canvas.observe(self._clicked, "clicks")
        for name, key in (("previous", "p"), ("next", "n"), ("undo", "z"), ("close", "Enter")):
            buttons[name].on_click(lambda _, key=key: self.press(key))

    def _picture(self, plane: np.ndarray, labels: np.ndarray | None) -> str:
        low, high = map(float, np.percentile(plane, plot.WINDOW_PERCENTILES))
        png = png_of(plane.astype(np.float32), labels, self.volume.spacing_mm[:2], (low, max(high, low + 1)))
        return "data:image/png;base64," + base64.b64encode(png).decode()

    @property
    def figure(self) -> Figure:
        """The slice that is shown with its clicks, as a picture without a kernel."""
        figure = Figure((6.5, 5.5), layout="constrained")
        ax, plane = figure.subplots(), self.volume.image[:, :, self.x].astype(np.float32)
        window = tuple(map(float, np.percentile(plane, plot.WINDOW_PERCENTILES)))
        labels = self.mask[:, :, self.x]
        overlay(ax, plane, np.where(labels == UNLABELLED, BACKGROUND, labels), self.volume.spacing_mm[:2],
                window=window)
        dots = np.full((1, *plane.shape), UNLABELLED, np.uint8)
        for (z, y, x), v, _, mm3 in self.rows:
            if x == self.x and np.isnan(mm3):
                dots[0, z, y] = v
        plot.mark_points(ax, dots, 0, 0)
        ax.set_title(f"{self.case}, sagittal slice {self.x}", fontsize=11)
        plot.legend(figure, points=True)
        return figure

    def _ipython_display_(self) -> None:
        display(self.widget)  # first, so that it need not be looked for below
        display(self.figure)

    def _go(self, at: int) -> None:
        last = len(self.asked) if self.asked else len(self.slices) - 1
        self.at, self.corners, self._since = min(max(at, 0), last), [], None
        labels = self.mask[:, :, self.x]
        shown = np.where(labels == UNLABELLED, BACKGROUND, labels)
        self.canvas.picture = self._picture(self.volume.image[:, :, self.x], shown if shown.any() else None)
        self.canvas.shown = self.shown
        self._draw()

    def _draw(self) -> None:
        here = [[z, y, DOTS[v]] for (z, y, x), v, _, mm3 in self.rows if x == self.x and np.isnan(mm3)]
        before = [x for (_, _, x), _, _, mm3 in self.rows if x < self.x and np.isnan(mm3)]
        faint = [[z, y, DOTS[v], FAINT] for (z, y, x), v, _, mm3 in self.rows
                 if before and x == max(before) and np.isnan(mm3)]
        corners = [[row, column, DOTS[self.canvas.chosen]] for row, column in self.corners]
        asked = [[*self.place[:2], "#FF00FF"]] if self.place else []
        self.canvas.dots = asked if self.asked else faint + here + corners
        self.overview.dots = [[z, y, DOTS[v]] for (z, y, _), v, _, mm3 in self.rows if v and np.isnan(mm3)]
        if self.asked:
            done = f"place {self.at + 1} of {len(self.asked)}: which class is it?" if self.place else "all places named"
        else:
            done = f"slice {self.x} ({self.at + 1} of {len(self.slices)}): {len(here)} clicks"
        self.status.value = f"{done}; {len(self.rows)} clicks in all, {self.seconds:.0f} s"

    # --- what is done

    def _clicked(self, change: dict) -> None:
        for row, column, what, seconds, *shown in change["new"][len(change["old"]):]:
            if row < 0:
                self.press(KEYS[int(what)])
            else:
                self._click(int(row), int(column), int(what), float(seconds), shown[0] if shown else self.shown)

    def script(self, clicks: Iterable[tuple[int, int, int, float]]) -> None:
        """Click without a mouse: (row, column, class, seconds)."""
        self.canvas.clicks = [*self.canvas.clicks, *(list(click) for click in clicks)]

    def press(self, key: str) -> None:
        """z undo, n next, p previous, Enter: close the outline."""
        if key == "Enter" and self.outline:
            self._close()
        elif key == "z":
            self._undo()
        elif key in "np":
            self._go(self.at + (1 if key == "n" else -1))

    def _click(self, row: int, column: int, k: int, now: float, shown: int) -> None:
        """shown: what the expert saw, which a slow kernel may have left behind since; a click counts for that."""
        if (self.outline or self.asked) and shown != self.shown:
            return
        took = now - self._since if self._since is not None and now - self._since < PAUSE_S else np.nan
        self._since = now
        if self.outline:
            self.corners.append((row, column))
        elif self.asked:
            if not self.place:
                return
            self._note(self.place, k, took, self.asked[self.at][1])
            self._go(self.at + 1)
            self._since = now  # looking at the next place takes time, too
        else:
            self._note((row, column, shown), k, took, np.nan)
        self._draw()

    def _note(self, place: tuple[int, int, int], k: int, took: float, mm3: float) -> None:
        """A click corrects what was said of its voxel before: two classes there would be refused when it is read."""
        before = [(p, k if p == place else v, s, m) for p, v, s, m in self.rows if p != place or np.isfinite(m)]
        self.rows = [*before, (place, k, took, mm3)]
        self.save()

    def _undo(self) -> None:
        if self.corners:
            self.corners.pop()
        elif self.outline and self.drawn:
            x, before = self.drawn.pop()
            self.mask[:, :, x] = before
            self.save()
            return self._go(self.slices.index(x))
        elif not self.outline and self.rows and np.isfinite(self.rows[-1][3]) == bool(self.asked):
            place = self.rows.pop()[0]
            self.save()
            if self.asked or place[SAGITTAL] in self.slices:
                return self._go(self.at - 1 if self.asked else self.slices.index(place[SAGITTAL]))
        self._draw()

    def _close(self) -> None:
        """Fill the outline with the chosen class; the rest of the slice is background from now on."""
        if len(self.corners) > 2:
            plane = self.mask[:, :, self.x]
            self.drawn.append((self.x, plane.copy()))
            plane[plane == UNLABELLED] = BACKGROUND
            rows, columns = polygon(*zip(*self.corners, strict=True), plane.shape)
            plane[rows, columns] = self.canvas.chosen
            self.save()
        self._go(self.at)
