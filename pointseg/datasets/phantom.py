"""Synthetic lumbar scans, so that everything here runs without patient data.

A parametric spine (T8..S4, so that there is always context above L1 and below L5) is built level by level along a
lordotic, slightly scoliotic curve, and painted back to front into the image: each structure is a signed distance in
millimetres, negative inside, taken in its own bounding box only, and turned into the share of each voxel it covers.
T12 and S1 look like their neighbours: which vertebra is L1 can only be told by counting.

The scans are meant to be as hard as real ones: intensities, texture, noise and shading are aggregates measured in and
around the masks of real scans, and `tests/test_phantom.py` holds the check that growing points by a watershed scores
as low here as on real MR scans.
"""

import hashlib
import json
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
from scipy import fft, ndimage
from tqdm.auto import tqdm

from pointseg.datasets.manifest import Case, write_manifest
from pointseg.scans.files import whole_file
from pointseg.scans.volumes import write_volume
from pointseg.volume import CLASSES, Geometry, Volume

MADE = "made.json"  # how the scans of a folder were made


@dataclass(frozen=True)
class Tissues:
    """One number per tissue, or the (low, high) range it is drawn from."""

    marrow: float
    cortex: float
    disc: float
    nucleus: float  # the core of the disc
    csf: float
    nerve: float  # cord and cauda equina
    vein: float  # the basivertebral vein, which enters the body from behind
    ligament: float  # and the dura
    muscle: float
    fat: float
    gut: float
    organ: float
    vessel: float  # dark where blood flows (MR)
    gas: float


# MR, relative to the marrow.  From the masks of MyoSegmenTUM (water), PLoS (T2) and USiegen (T1, TIRM), five scans
# or so each: disc = between two bodies; csf = 3..14 mm behind the bodies; muscle = 4..15 mm beside them; the rest
# (fat, gut, vessels, the finer parts) was read off pictures beside real ones, then checked on the 15 mm ring around
# the bodies (mean and spread) and on the gradient inside the bodies and at their edge.
#               marrow  cortex      disc        nucleus      csf         nerve       vein        ligament    muscle
#               fat         gut         organ      vessel      gas
WATER = Tissues((1, 1), (.3, .65), (1.25, 1.6), (1.4, 1.8), (1.5, 1.9), (1.2, 1.6), (1.2, 1.6), (.4, .8), (.95, 1.4),
                (.4, .9), (.8, 1.3), (.9, 1.5), (.4, 1.3), (.05, .3))
T2 = Tissues((1, 1), (.5, .85), (.6, .95), (.75, 1.4), (1.6, 2.0), (.9, 1.3), (1.1, 1.5), (.5, .8), (.65, .95),
             (1.3, 1.9), (.8, 1.2), (.7, 1.1), (.5, .8), (.3, .5))
T1 = Tissues((1, 1), (.3, .7), (.5, .75), (.55, .75), (.4, .6), (.55, .75), (.5, 1.3), (.3, .5), (.5, .85),
             (1.2, 1.9), (.5, .9), (.6, .9), (.2, .5), (.05, .3))
TIRM = Tissues((1, 1), (.4, .8), (.55, .9), (.7, 1.8), (2.0, 2.5), (1.2, 1.8), (1.3, 1.8), (.4, .7), (.6, 1.0),
               (.3, .9), (.5, 1.3), (.8, 1.4), (.3, .6), (.1, .4))


@dataclass(frozen=True)
class Sequence:
    """An MR sequence: tissue ranges, and how it looked in its source."""

    share: float  # of the phantoms
    tissues: Tissues
    marrow: tuple[float, float]  # mean grey value (0..255) of the eroded bodies
    texture: tuple[float, float]  # standard deviation within a body, relative to its mean
    noise: tuple[float, float]  # standard deviation, relative to the marrow; from differences of neighbouring voxels


SEQUENCES = {"water": Sequence(.45, WATER, (70, 96), (.09, .14), (.015, .035)),
             "T2": Sequence(.20, T2, (48, 65), (.03, .06), (.006, .02)),
             "T1": Sequence(.20, T1, (48, 64), (.10, .17), (.02, .05)),
             "TIRM": Sequence(.15, TIRM, (18, 40), (.14, .22), (.03, .07))}

# CT, in HU.  From one VerSe, one TotalSegmentator and one TPTBox scan: the eroded vertebrae have a mean of 62..130 HU
# (posterior elements included), discs 34..98, canal -14..9; noise 30..190, of which we take the lower part.
CT_TISSUES = Tissues((50, 200), (300, 700), (60, 100), (70, 110), (0, 25), (25, 45), (20, 60), (50, 90), (35, 70),
                     (-115, -85), (-20, 40), (30, 110), (35, 160), (-900, -500))
CT_TEXTURE = (.15, .35)
CT_NOISE_HU = (30, 140)
AIR_HU = -1000.0

LEVELS = ("T8", "T9", "T10", "T11", "T12", "L1", "L2", "L3", "L4", "L5", "S1", "S2", "S3", "S4")
FIRST_LUMBAR, FIRST_SACRAL = LEVELS.index("L1"), LEVELS.index("S1")
# Mean sizes in mm and tilts in degrees.  The real MR bodies have 25..43 ml and centres 32..41 mm apart; the tilt is
# that of the downward axis towards posterior, and falls out of the same centres.
HEIGHT_MM = (22, 22.5, 23.5, 24.5, 26, 27, 28, 28, 28, 28, 28, 23, 20, 18)
DEPTH_MM = (29, 30, 31, 31.5, 32, 33, 34, 34.5, 35, 35, 31, 22, 17, 14)
WIDTH_MM = (30, 31, 33, 36, 40, 42, 44, 46, 48, 50, 50, 38, 32, 28)
DISC_MM = (4, 4.5, 5, 5.5, 6.5, 7.5, 8.5, 9.5, 10.5, 9.5, 2.5, 2, 1.5, 1)  # below the level
TILT_DEG = (6, 0, -5, -10, -14, -16, -14, -8, 2, 17, 38, 46, 50, 44)
WEDGE_MM = (-1, -1, -1, -1, -1, -.5, 0, .5, 1, 3.5, 4, 1, 0, 0)  # front height minus back height


@dataclass(frozen=True)
class Vertebra:
    """One level.  axes: unit vectors u (down), v (backward), w (to the patient's left) as rows, in (z, y, x)."""

    label: int  # 1..5 for L1..L5, else 0
    lumbar_from: int  # levels below L1; negative in the thorax, 5 and more in the sacrum
    centre: np.ndarray  # (3,) mm
    axes: np.ndarray  # (3, 3)
    height: float
    depth: float
    width: float
    wedge: float  # mm, front height minus back height
    concavity: float  # mm, depth of each end plate's dish
    lip: float  # osteophytes, relative to the radius
    disc: float  # mm, below

    def at(self, u: float, v: float, w: float) -> np.ndarray:
        """Local (u, v, w) in mm, v from the *back wall* of the body -> world (z, y, x) in mm."""
        return self.centre + np.array([u, self.depth / 2 + v, w]) @ self.axes


Box = tuple[slice, slice, slice]
Shape = tuple[Box, np.ndarray]  # where to paint, and the signed distance there in mm


class Canvas:
    """The image under construction; painting is the only thing that changes it."""

    def __init__(self, shape: tuple[int, int, int], spacing_mm: float, rng: np.random.Generator):
        self.image = np.zeros(shape, np.float32)
        self.mask = np.zeros(shape, np.uint8)
        self.spacing_mm = spacing_mm
        # Three periodic cubes of unit variance, fine to coarse, cut out wherever texture is needed: cheaper than noise
        # for each tissue.  Filtered in Fourier space, which makes them periodic and costs the same for any width.
        n = int(80 / spacing_mm)
        white = rng.standard_normal((3, n, n, n), dtype=np.float32)
        blurred = (fft.irfftn(ndimage.fourier_gaussian(fft.rfftn(a), mm / spacing_mm, n=n), s=a.shape)
                   for a, mm in zip(white, (1.1, 4.0, 7.0)))
        self.grain, self.cloud, self.loops = (a / a.std() for a in blurred)

    def box(self, low_mm: np.ndarray, high_mm: np.ndarray) -> Box | None:
        """The voxels between two corners (z, y, x), or None if all lie outside."""
        low = np.maximum(np.floor(np.asarray(low_mm) / self.spacing_mm).astype(int), 0)
        high = np.minimum(np.ceil(np.asarray(high_mm) / self.spacing_mm).astype(int) + 1, self.image.shape)
        return tuple(slice(a, b) for a, b in zip(low, high)) if (low < high).all() else None

    def grid(self, box: Box) -> list[np.ndarray]:
        """Voxel centres in mm along z, y, x, as arrays that broadcast."""
        return [g.astype(np.float32) * np.float32(self.spacing_mm) for g in np.ogrid[box]]

    def texture(self, tile: np.ndarray, box: Box) -> np.ndarray:
        return tile[np.ix_(*(np.arange(s.start, s.stop) % len(tile) for s in box))]

    def mottled(self, box: Box, value: float, spread: float) -> np.ndarray:
        """value with fine and coarse texture of the relative standard deviation `spread`."""
        mix = .7 * self.texture(self.grain, box) + .7 * self.texture(self.cloud, box)
        return value * (1 + spread * mix)

    def paint(self, box: Box, distance_mm: np.ndarray, value, label: int | None = None):
        """Blend `value` (a number or an array over the box) in; a label is set where more than half is covered."""
        share = np.clip(.5 - distance_mm / np.float32(self.spacing_mm), 0, 1)  # partial volume
        view = self.image[box]
        view += share * (value - view)
        if label is not None:
            self.mask[box][share > .5] = label

    def tube(self, path: np.ndarray, radius_y, radius_x) -> Shape | None:
        """Box and distance of a tube, elliptic in each transverse slice, along a path (n, 3) from top to bottom."""
        z_path = np.maximum.accumulate(path[:, 0])
        reach = np.array([0, np.max(radius_y) + 2, np.max(radius_x) + 2])
        box = self.box(path.min(0) - reach, path.max(0) + reach)
        if box is None:
            return None
        z, y, x = self.grid(box)
        curves = [np.broadcast_to(c, z_path.shape) for c in (path[:, 1], path[:, 2], radius_y, radius_x)]
        y0, x0, ry, rx = (np.interp(z, z_path, c).astype(np.float32) for c in curves)
        return box, (np.sqrt(((y - y0) / ry) ** 2 + ((x - x0) / rx) ** 2) - 1) * np.minimum(ry, rx)

    def capsule(self, a: np.ndarray, b: np.ndarray, axes: np.ndarray, radii) -> Shape | None:
        """Box and distance of the segment a..b (world mm) thickened to `radii` along the three axes (rows)."""
        radii = np.asarray(radii, float)
        reach = np.sqrt(((axes * radii[:, None]) ** 2).sum(0)) + 2
        box = self.box(np.minimum(a, b) - reach, np.maximum(a, b) + reach)
        if box is None:
            return None
        shrink = (axes / radii[:, None]).astype(np.float32)  # in these coordinates the radius is 1
        start, way = (shrink @ a).astype(np.float32), (shrink @ (b - a)).astype(np.float32)
        z, y, x = self.grid(box)
        p = [z * s[0] + y * s[1] + x * s[2] - o for s, o in zip(shrink, start)]
        t = np.clip(sum(c * d for c, d in zip(p, way)) / max(float(way @ way), 1e-6), 0, 1)
        return box, (np.sqrt(sum((c - t * d) ** 2 for c, d in zip(p, way))) - 1) * radii.min().astype(np.float32)

    def frame(self, centre: np.ndarray, axes: np.ndarray, half: np.ndarray, hollow_mm: float):
        """A rounded cylinder along u with half axes `half`, its back wall hollow by hollow_mm at the canal.

        -> box, u, v, w (local mm), distance from the axis in mm, the same relative to the outline; None if outside.
        """
        reach = np.abs(axes * half[:, None]).sum(0) * 1.15 + 2
        box = self.box(centre - reach, centre + reach)
        if box is None:
            return None
        z, y, x = (g - np.float32(c) for g, c in zip(self.grid(box), centre))
        u, v, w = (z * a[0] + y * a[1] + x * a[2] for a in axes.astype(np.float32))
        _, half_v, half_w = half.astype(np.float32)
        dented = v + hollow_mm * np.exp(-(w / 9) ** 2) * np.clip(v / half_v, 0, 1)
        rho = (np.abs(dented / half_v) ** 2.5 + np.abs(w / half_w) ** 2.5) ** np.float32(.4) + np.float32(1e-4)
        return box, u, v, w, np.hypot(dented, w), rho


def make_phantom(seed: int, modality: str = "MR", spacing_mm: float = 1.0, sequence: str | None = None) -> Volume:
    """One synthetic scan of L1..L5, the same for the same arguments.

    modality: "MR" labels the bodies alone (0..255 as in the real sets), "CT" whole vertebrae (HU).
    spacing_mm: isotropic; 2 mm takes an eighth of the time and shows the same patient.
    sequence: of an MR scan, one of SEQUENCES; where not given, drawn among them.
    """
    if modality not in ("MR", "CT"):
        raise ValueError(f'modality is "MR" or "CT", not {modality!r}')
    # Three streams: the anatomy must not depend on how many random numbers the grid (and so the spacing) consumed.
    body, texture, scanner = (np.random.default_rng([seed, ("MR", "CT").index(modality), i]) for i in range(3))
    ct = modality == "CT"
    size_mm, spine = place(build_spine(body), ct, body)
    drawn = body.choice(list(SEQUENCES), p=[s.share for s in SEQUENCES.values()])
    protocol = SEQUENCES[sequence or drawn]
    tissues = Tissues(*(body.uniform(*r) for r in astuple(CT_TISSUES if ct else protocol.tissues)))
    spread = body.uniform(*(CT_TEXTURE if ct else protocol.texture))

    shape = tuple(int(round(mm / spacing_mm)) for mm in size_mm)
    canvas = Canvas(shape, spacing_mm, texture)
    paint_trunk(canvas, spine, tissues, AIR_HU if ct else 0.0, body)
    paint_canal(canvas, spine, tissues, body)
    own = body.spawn(2 * len(spine))  # one stream each: levels outside the scan draw nothing
    for vertebra in spine:
        paint_disc(canvas, vertebra, tissues, spread, own.pop())
    for vertebra in spine:
        paint_arch(canvas, vertebra, tissues, spread, ct)
    for vertebra in spine:
        paint_body(canvas, vertebra, tissues, spread, ct, own.pop())

    image = scan_ct(canvas, scanner) if ct else scan_mr(canvas, protocol, spine, scanner)
    spacing = (float(spacing_mm),) * 3
    geometry = Geometry.canonical(shape, spacing)
    return Volume(image, canvas.mask, spacing, f"phantom-{modality}-{seed}", modality, geometry)


def write_phantoms(folder: str | Path, count: int, seed: int = 0, modality: str = "MR", spacing_mm: float = 1.0,
                   sequence: str | None = "water") -> Path:
    """A dataset folder of synthetic patients, one scan each, of one sequence, as from one hospital.   -> folder

    Scans that lie there already, made in the same way by the same code, stay as they are.
    """
    folder, cases = Path(folder), []
    how = {"seed": seed, "modality": modality, "spacing_mm": spacing_mm, "sequence": sequence,
           "code": hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}
    known = folder / MADE
    if not (known.is_file() and known.read_bytes() == json.dumps(how).encode()):
        for i in range(count):
            for part in ("img", "vert"):
                (folder / f"synthetic-{modality.lower()}" / f"{i:03d}_{part}.nii.gz").unlink(missing_ok=True)
        with whole_file(known) as part:
            part.write_bytes(json.dumps(how).encode())
    for i in tqdm(range(count), "making synthetic scans", unit="scan"):
        source, case = f"synthetic-{modality.lower()}", f"{i:03d}"
        image, mask = (folder / source / f"{case}_{part}.nii.gz" for part in ("img", "vert"))
        if not (image.is_file() and mask.is_file()):
            write_volume(image, make_phantom(1000 * seed + i, modality, spacing_mm, sequence), mask)
        cases.append(Case(source, case, case, modality, image, mask, "vertebral bodies" if modality == "MR" else
                          "whole vertebrae", CLASSES[1:]))
    write_manifest(folder, cases)
    return folder


# ---------------------------------------------------------------------------------------------------------- anatomy

def build_spine(rng: np.random.Generator) -> list[Vertebra]:
    """T8..S4 along a random curve, in mm, from an arbitrary origin."""
    size = rng.normal(1.0, .05)
    lordosis, pitch = rng.uniform(.65, 1.3), rng.normal(0, 3)
    scoliosis = np.deg2rad(rng.choice([rng.uniform(0, 4), rng.uniform(6, 14)], p=[.85, .15])) * rng.choice([-1, 1])
    phase = rng.uniform(0, 2 * np.pi)
    porous, worn = rng.random() < .25, rng.random() < .35  # osteoporosis; degeneration: osteophytes and low discs
    broken = rng.integers(FIRST_LUMBAR - 2, FIRST_SACRAL) if rng.random() < .35 else -1
    spine, foot, last_axis = [], np.zeros(3), None
    for i in range(len(LEVELS)):
        jitter = rng.normal(1, .025, 4)
        height, depth, width, disc = size * jitter * (HEIGHT_MM[i], DEPTH_MM[i], WIDTH_MM[i], DISC_MM[i])
        disc *= rng.uniform(.45, 1) if worn and i >= FIRST_LUMBAR else rng.uniform(.9, 1.1)
        wedge, concavity = WEDGE_MM[i] + rng.normal(0, .7), rng.uniform(1.0, 2.4) + (rng.uniform(0, 2) if porous else 0)
        if i == broken:
            kind = rng.integers(3)  # wedge, crush, biconcave
            height *= (.85, rng.uniform(.55, .75), .95)[kind]
            wedge -= rng.uniform(5, 11) * (kind == 0)
            concavity += rng.uniform(2, 4.5) * (kind == 2)
        tilt = np.deg2rad(TILT_DEG[i] * lordosis + pitch + rng.normal(0, 1.2))
        lean = scoliosis * np.sin(i * .7 + phase) * (i < FIRST_SACRAL)
        u = np.array([np.cos(tilt) * np.cos(lean), np.sin(tilt) * np.cos(lean), np.sin(lean)])
        w = np.array([0, .8 * np.sin(lean), 1.0])  # a scoliotic vertebra also turns about its own axis
        w -= (w @ u) * u
        w /= np.linalg.norm(w)
        v = np.cross(w, u)
        axes = np.stack([u, v if v[1] > 0 else -v, w])
        if last_axis is not None:  # the disc bends half way between its two neighbours
            bend = u + last_axis
            foot = foot + bend / np.linalg.norm(bend) * spine[-1].disc
        centre = foot + u * height / 2
        foot, last_axis = centre + u * height / 2, u
        label = i - FIRST_LUMBAR + 1 if FIRST_LUMBAR <= i < FIRST_SACRAL else 0
        lip = rng.uniform(.03, .14) if worn else rng.uniform(0, .03)
        spine.append(Vertebra(label, i - FIRST_LUMBAR, centre, axes, height, depth, width, wedge, concavity, lip, disc))
    return spine


LONGEST_MM = 255.0  # of a scan: on 2 mm the largest slices then fit a network input of 128 px


def place(spine: list[Vertebra], ct: bool, rng: np.random.Generator) -> tuple[np.ndarray, list[Vertebra]]:
    """Choose a field of view (z, y, x in mm) and move the spine into it.

    The height of L3 in it spreads about as in MyoSegmenTUM (10.7 mm): position hints at the level, no more.
    """
    lumbar = spine[FIRST_LUMBAR:FIRST_SACRAL]
    top, bottom = lumbar[0].centre[0] - 18, lumbar[-1].centre[0] + 20
    room = min(rng.uniform(50, 90), LONGEST_MM - (bottom - top))
    size = np.array([bottom - top + room, rng.uniform(170, 225), rng.uniform(95, 127) if ct else rng.uniform(62, 90)])
    above = rng.uniform(.3, .7) * room
    if rng.random() < .04:  # a few scans cut L1 or L5
        above = rng.choice([-rng.uniform(2, 12), room + rng.uniform(2, 12)])
    middle = np.mean([v.centre for v in lumbar], axis=0)
    shift = np.array([above - top, size[1] * rng.uniform(.46, .6) - middle[1],
                      size[2] / 2 + rng.normal(0, .04 * size[2]) - middle[2]])
    return size, [replace(v, centre=v.centre + shift) for v in spine]


# --------------------------------------------------------------------------------------------------------- painting

def track(spine: list[Vertebra], v_mm: float, w_mm: float, smooth: float = 0.0) -> np.ndarray:
    """Where (0, v, w) of each level lies: (n, 3) in mm, top to bottom; `smooth` in levels."""
    points = np.array([vertebra.at(0, v_mm, w_mm) for vertebra in spine])
    if smooth:
        points[:, 1:] = ndimage.gaussian_filter1d(points[:, 1:], smooth, axis=0)
    return points


def fill(canvas: Canvas, shape, value: float, spread: float = .1) -> None:
    """Paint a (box, distance) from `Canvas.tube` or `Canvas.capsule`, unless it lies outside the scan."""
    if shape is not None:
        canvas.paint(*shape, canvas.mottled(shape[0], value, spread))


def paint_trunk(canvas: Canvas, spine: list[Vertebra], t: Tissues, air: float, rng: np.random.Generator) -> None:
    """Skin, fat, back muscles, abdomen with gut, gas and organs, psoas, aorta and vena cava."""
    everything = tuple(slice(0, n) for n in canvas.image.shape)
    z, y, x = canvas.grid(everything)
    fat_mm, size = rng.uniform(5, 28), rng.uniform(.85, 1.15)
    middle = track(spine, -15, 0, smooth=.7)
    tips_mm = np.interp(np.arange(len(spine)), [0, 7, 10, 13], [52, 64, 52, 42])  # spinous processes
    back = ndimage.gaussian_filter1d(middle[:, 1] + tips_mm + fat_mm, 1.5)
    back_y, middle_y = (ndimage.gaussian_filter1d(np.interp(z.ravel(), middle[:, 0], p), 12 / canvas.spacing_mm)
                        [:, None, None].astype(np.float32) for p in (back, middle[:, 1]))
    aside = x - np.float32(spine[FIRST_LUMBAR + 2].centre[2])
    skin = y - back_y - 5 * (1 - np.exp(-(aside / 22) ** 2)) + aside ** 2 / 260  # a furrow, then the flanks
    skin = np.maximum(skin, middle_y - rng.uniform(80, 140) - y)  # and the belly, mostly outside the scan
    fat = canvas.mottled(everything, t.fat, .08)
    canvas.paint(everything, skin, t.muscle)
    canvas.paint(everything, skin + 2, fat)
    streaks = canvas.texture(canvas.cloud, everything) + .4 * canvas.texture(canvas.grain, everything)
    fatty = np.clip(streaks - rng.uniform(.4, 1.6), 0, 1)  # fat within the muscle, more with age
    muscle = t.muscle * (1 + .10 * canvas.texture(canvas.grain, everything)) + fatty * (t.fat - t.muscle)
    canvas.paint(everything, skin + fat_mm, muscle)
    loops = np.clip(.5 + .5 * canvas.texture(canvas.loops, everything) + .15 * streaks[::-1, :, ::-1], 0, 1)
    abdomen = y - middle_y - 8 - aside ** 2 / 120
    canvas.paint(everything, np.maximum(abdomen, skin + fat_mm), t.fat + loops * (t.gut - t.fat))

    reach = np.array(canvas.image.shape) * canvas.spacing_mm
    front = middle[FIRST_LUMBAR:FIRST_SACRAL, 1].min() - 32
    turn = np.eye(3)
    for _ in range(rng.integers(8, 16)):  # bowel, some of it gas
        a = np.array([rng.uniform(0, reach[0]), rng.uniform(-10, max(front - 8, 0)), rng.uniform(0, reach[2])])
        value = t.gas if rng.random() < .35 else rng.uniform(min(t.gut, t.fat), max(t.gut, t.organ))
        fill(canvas, canvas.capsule(a, a + rng.normal(0, 14, 3), turn, rng.uniform(5, 13, 3)), value, .2)
    for side in (-1, 1):
        kidney = spine[FIRST_LUMBAR + 1].at(rng.normal(-12, 6), -12, side * size * 62)
        fill(canvas, canvas.capsule(kidney - [28, 0, 0], kidney + [28, 6, side * 8], turn, (22, 24, 22)), t.organ)
        fill(canvas, canvas.capsule(kidney - [14, 0, 0], kidney + [14, 0, 0], turn, (8, 8, 8)), t.fat)
        belly = np.interp(np.arange(len(spine)), [3, 5, 8, 13], [2, 6, 18, 24]) * size
        fill(canvas, canvas.tube(track(spine, -12, side * 34 * size, .5), belly, belly * .9), t.muscle, .12)
        crest = spine[FIRST_SACRAL].at(0, 4, side * 78)
        fill(canvas, canvas.capsule(crest - [30, 25, side * -12], crest + [30, 10, 0], turn, (10, 12, 7)), t.cortex, .2)
    liver = spine[FIRST_LUMBAR - 2].at(0, -60, -70)
    fill(canvas, canvas.capsule(liver - [30, 20, 0], liver + [35, 20, 0], turn, (40, 40, 45)), t.organ, .06)
    ends = np.interp(np.arange(FIRST_SACRAL), [FIRST_SACRAL - 3, FIRST_SACRAL - 1], [1, .1]) * size  # they divide at L4
    for v_mm, w_mm, flat in ((-46, 9, .9), (-44, -14, .7)):  # aorta, vena cava
        course = track(spine[:FIRST_SACRAL], v_mm * size, w_mm + rng.normal(0, 3), smooth=.7)
        fill(canvas, canvas.tube(course, 9 * flat * ends, 9 * ends), t.vessel)
    canvas.paint(everything, -skin, air)  # last, for what stuck out


def paint_canal(canvas: Canvas, spine: list[Vertebra], t: Tissues, rng: np.random.Generator) -> None:
    """Interspinous tissue, epidural fat, the dural sac, the cord down to about L1 and the nerve roots below."""
    def tube(v_mm: float, radius_y: float, radius_x: float, value: float, spread: float = .08, upto: int = 14) -> None:
        end = np.minimum(np.arange(upto, 0, -1) / 2, 1)  # tapers over the last two levels
        tilt = np.array([vertebra.axes[0, 0] for vertebra in spine[:upto]])
        course = track(spine[:upto], v_mm, 0, smooth=.3)
        fill(canvas, canvas.tube(course, radius_y * end / tilt, radius_x * end), value, spread)

    sac = rng.uniform(6.2, 7.8)
    tube(36, 15, 5, .5 * (t.fat + t.muscle), .25)
    tube(19, 5.5, 4, t.fat)
    tube(9, sac + 1.5, 11.5, t.fat, .1, upto=13)
    tube(9, sac + .7, 10.5, t.ligament, .1, upto=13)  # dura and ligament, a dark line
    tube(9, sac, 9.5, t.csf, .05, upto=12)
    conus = FIRST_LUMBAR + rng.integers(0, 2)
    tube(9.5, 4, 5, t.nerve, .04, upto=conus)
    tube(9 + .5 * sac, .4 * sac, 6, .5 * (t.nerve + t.csf), .12, upto=11)


def paint_disc(canvas: Canvas, vertebra: Vertebra, t: Tissues, spread: float, rng: np.random.Generator) -> None:
    """A lens that fills the dishes of both end plates, fibrous outside; the bodies are painted over it."""
    bulge, wet = rng.uniform(0, 2.5), rng.random() < .7
    middle = vertebra.at(vertebra.height / 2 + vertebra.disc / 2, -vertebra.depth / 2, 0)
    half = np.array([vertebra.disc / 2 + 4, vertebra.depth / 2 + bulge, vertebra.width / 2 + bulge])
    found = canvas.frame(middle, vertebra.axes, half, hollow_mm=0)
    if found is None:
        return
    box, u, v, w, radius, rho = found
    ring = radius * (1 - 1 / rho)
    fill(canvas, (box, np.maximum(ring, np.abs(u) - half[0])), t.disc, .6 * spread)
    radii = .5 * vertebra.disc + 1, .55 * half[1], .6 * half[2]
    core = np.sqrt((u / radii[0]) ** 2 + ((v + 1) / radii[1]) ** 2 + (w / radii[2]) ** 2) - 1
    fill(canvas, (box, core * .5 * vertebra.disc), t.nucleus if wet else t.disc, .6 * spread)
    if wet and rng.random() < .6:  # the cleft
        canvas.paint(box, np.maximum(core * 3, np.abs(u) - .7), .5 * (t.disc + t.nucleus))


def paint_arch(canvas: Canvas, vertebra: Vertebra, t: Tissues, spread: float, ct: bool) -> None:
    """Pedicles, articular, transverse and spinous processes, laminae; ribs in the thorax, wings on the sacrum."""
    d, s = vertebra.width / 48, vertebra.lumbar_from
    thorax, sacrum = s < 0, s >= 5
    parts = []  # (from, to, radii), in (u, v, w) with v from the back wall

    def both(a, b, radii) -> None:
        parts.extend((np.array(a) * (1, 1, side), np.array(b) * (1, 1, side), radii) for side in (-1, 1))

    both((-5, -5, 14.5 * d), (-4, 11, 15.5 * d), (7, 5, 4.2))  # pedicles
    if not sacrum:
        both((-2, 13, 16 * d), (-17, 13, 17.5 * d), (4, 4.5, 5.5))  # superior articular process
        both((2, 17, 14 * d), (22, 19, 12.5 * d), (4, 5, 5))  # inferior
    both((2, 14, 14 * d), (6, 25, 3), (9, 3.6, 3.6))  # laminae
    spinous = (24, 40, 0) if thorax else (8, 32, 0) if sacrum else (11, 50 - 2 * abs(s - 2), 0)
    parts.append((np.array((7, 25, 0)), np.array(spinous), (6 if sacrum or thorax else 9.5, 5, 3.4)))
    both((-3, 9, 17 * d), (-6, 14 + 4 * thorax, (30 if thorax else 40) * d), (5, 3.6, 5))  # transverse processes
    shapes = [(canvas.capsule(vertebra.at(*a), vertebra.at(*b), vertebra.axes, r), vertebra.label) for a, b, r in parts]
    wings = []
    if thorax:  # ribs
        wings = [((-6, 0, 20 * d), (4, 18, 55), (5, 4, 4)), ((4, 18, 55), (24, 4, 85), (5, 4, 4))]
    if sacrum:
        wings = [((0, -14, 20 * d), (4, 8, 44 - 5 * (s - 5)), (vertebra.height / 2, 11, 12))]
    for a, b, radii in wings:
        for side in (-1, 1):
            ends = (vertebra.at(*np.array(p) * (1, 1, side)) for p in (a, b))
            shapes.append((canvas.capsule(*ends, vertebra.axes, radii), 0))
    shapes = [(*shape, label) for shape, label in shapes if shape is not None]
    for box, distance, label in shapes:  # every shell before any inside, so that no wall is left where two parts meet
        canvas.paint(box, distance, t.cortex, label if ct else None)
    for box, distance, _ in shapes:
        canvas.paint(box, distance + 1.3, canvas.mottled(box, t.marrow, spread))


def paint_body(canvas: Canvas, vertebra: Vertebra, t: Tissues, spread: float, ct: bool,
               rng: np.random.Generator) -> None:
    """The vertebral body: a waisted, kidney-shaped box with dished end plates; then what disturbs its marrow."""
    half = np.array([vertebra.height, vertebra.depth, vertebra.width]) / 2
    found = canvas.frame(vertebra.centre, vertebra.axes, half, hollow_mm=2.5)
    if found is None:
        return
    box, u, v, w, radius, rho = found
    limit = half[0] - vertebra.wedge * v / (4 * half[1]) - vertebra.concavity * np.clip(1 - rho ** 2, 0, 1)
    height = np.clip(np.abs(u) / half[0], 0, 1)
    waist = 1 - .08 * (1 - height ** 2) + vertebra.lip * height ** 6 * np.clip(.3 - v / half[1], 0, 1)
    side, plate = radius * (1 - waist / rho), np.abs(u) - limit
    rim = np.hypot(np.maximum(side + 2.5, 0), np.maximum(plate + 2.5, 0))  # rounded with a radius of 2.5 mm
    distance = np.minimum(np.maximum(side, plate) + 2.5, 0) + rim - 2.5

    uneven = 1 + .5 * canvas.texture(canvas.cloud, box)  # a shell of varying thickness: edges leak in places
    shell = np.clip(uneven, .5, 2) if ct else np.clip(.8 * uneven, .05, 2)
    marrow = canvas.mottled(box, t.marrow * rng.normal(1, .25 * spread), spread)
    marrow += t.marrow * spread * rng.uniform(-1, 2) * np.clip(1 + plate / 6, 0, 1)  # other marrow near end plates
    canvas.paint(box, distance, t.cortex, vertebra.label)
    canvas.paint(box, distance + shell, marrow)

    def spot(centre, radii, value) -> None:
        gap = np.sqrt(sum(((c - o) / r) ** 2 for c, o, r in zip((u, v, w), centre, radii))) - 1
        canvas.paint(box, np.maximum(gap * min(radii), distance + 1), value)  # never leaves the body

    spot((rng.normal(0, 1), half[1] * .75, 0), (rng.uniform(1, 2.2), half[1] * rng.uniform(.4, .8), 3), t.vein)
    for _ in range(rng.poisson(.5)):  # haemangioma, fatty island, sclerosis
        spot(rng.uniform(-.6, .6, 3) * half, rng.uniform(2, 6, 3), t.marrow * rng.choice([.6, 1.4]))
    if rng.random() < .2:  # a Schmorl node: disc that broke through the end plate
        spot((rng.choice([-1, 1]) * half[0], rng.normal(0, 5), rng.normal(0, 6)), (5, 4, 4), t.disc)


# ------------------------------------------------------------------------------------------------------- acquisition

def slices(n: int, spacing_mm: float, thickness_mm: float, offset_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """What thick slices do along an axis of n voxels, as two matrices: (n, s) averages, (s, n) interpolates back."""
    at = (np.arange(n) + .5) * spacing_mm
    centres = np.arange(offset_mm, at[-1] + thickness_mm, thickness_mm)
    profile = np.exp(-.5 * ((at[:, None] - centres) / (.4 * thickness_mm)) ** 2)  # a box excited by a finite pulse
    linear = np.clip(1 - np.abs(at - centres[:, None]) / thickness_mm, 0, 1)
    return (profile / profile.sum(0)).astype(np.float32), (linear / linear.sum(0)).astype(np.float32)


def scan_mr(canvas: Canvas, sequence: Sequence, spine: list[Vertebra], rng: np.random.Generator) -> np.ndarray:
    """Thick sagittal slices, coil shading, Rician noise, interpolation, 8 bits."""
    gap, (nz, ny, nx) = canvas.spacing_mm, canvas.image.shape
    thickness = rng.uniform(3.3, 4.4)
    average, interpolate = slices(nx, gap, max(thickness, gap), rng.uniform(0, thickness))
    sharp = canvas.image @ average  # (z, y, s); from here on only as many slices as were acquired
    sharp = ndimage.gaussian_filter(sharp, (.5 / gap, .5 / gap, 0), truncate=3)
    z, y = (np.arange(n, dtype=np.float32)[:, None] * gap for n in (nz, ny))
    back = np.interp(z, *np.transpose([vertebra.centre[:2] for vertebra in spine]))
    coil = np.exp((y.T - back) / rng.uniform(60, 200))  # a surface coil under the back: dark belly
    wave = sum(rng.uniform(.02, .08) * np.cos(2 * np.pi * (z / rng.uniform(180, 500) + y.T / rng.uniform(150, 400))
                                              + rng.uniform(0, 2 * np.pi)) for _ in range(3))
    sharp *= (coil * (1 + wave))[:, :, None].astype(np.float32)
    noise = rng.uniform(*sequence.noise) * rng.standard_normal((2, *sharp.shape), dtype=np.float32)
    noisy = np.hypot(sharp + noise[0], noise[1]) @ interpolate
    return np.clip(np.round(noisy * rng.uniform(*sequence.marrow)), 0, 255).astype(np.float32)


def scan_ct(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Sometimes thick transverse slices; noise; whole HU."""
    gap, shape = canvas.spacing_mm, canvas.image.shape
    image, thickness = canvas.image, rng.choice([1.0, rng.uniform(1.5, 3.0)])
    noise = rng.uniform(*CT_NOISE_HU)
    if thickness > gap:
        average, interpolate = slices(shape[0], gap, thickness, rng.uniform(0, thickness))
        image = np.tensordot(average, image, (0, 0))
        image += noise * rng.standard_normal(image.shape, dtype=np.float32)
        image = np.tensordot(interpolate, image, (0, 0))
    else:
        image = image + noise * rng.standard_normal(shape, dtype=np.float32)
    return np.clip(np.round(image), -1024, 3071).astype(np.float32)
