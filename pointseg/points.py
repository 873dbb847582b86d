"""Labels of single voxels and of single slices, drawn from a mask as an expert would set them, and what they cost.

Thesis, "Annotation points".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from pointseg.preprocess import Prepared, Scans
from pointseg.volume import BACKGROUND, CLASSES, UNLABELLED, Clicks, ScanError

POINTS_PER_INSTANCE, BACKGROUND_POINTS = 3, 5
FURTHER_POINTS = 6  # on an average slice of the thesis; at the sides it shows few vertebrae
SAGITTAL = 2
LAST = len(CLASSES) - 1  # L5
NEAR_MM, NEAR_SHARE = 40.0, 0.8  # of random places so many lie so near a vertebra's middle: its corners, and some room


@dataclass(frozen=True)
class Seconds:
    """What an expert takes to label an image.   The defaults are of photographs, Bearman et al. 2016."""

    mask: float = 239.7  # to outline all that it shows
    points: float = 22.1  # for one point a class
    further_point: float = 0.9


BEARMAN = Seconds()


@dataclass(frozen=True)
class Care:
    """How an expert clicks.   The default is a drawing lot: anywhere in a vertebra, never beside it, never wrong."""

    towards_middle: float = 0.0  # clicks as likely as the depth in mm below the vertebra's edge, to this power
    jitter_mm: float = 0.0  # standard deviation of where a click lands, along both directions of the slice
    wrong_levels: float = 0.0  # share of a vertebra's clicks that get the level above or below


PERFECT = Care()


class Points(Prepared):
    """A scan of which few voxels are labelled, so only these are kept; its `mask` is UNLABELLED elsewhere."""

    def __init__(self, scan: Prepared, places: np.ndarray, values: np.ndarray, weights: np.ndarray | None = None):
        """places (N, 3) int32, z y x; values (N,) uint8, 0..5; weights (N,): how many voxels each stands for, where
        chance has chosen the places, else None."""
        vars(self).update(scan=scan, places=places, values=values, weights=weights, spacing_mm=scan.spacing_mm,
                          name=scan.name, modality=scan.modality)

    @classmethod
    def of(cls, scan: Prepared, labels: np.ndarray) -> "Points":
        """labels (z, y, x) uint8, UNLABELLED but for the points"""
        known = labels != UNLABELLED
        return cls(scan, np.argwhere(known).astype(np.int32), labels[known])

    @property
    def image(self) -> np.ndarray:
        return self.scan.image

    @property
    def mask(self) -> np.ndarray:
        labels = np.full(self.scan.shape, UNLABELLED, np.uint8)
        labels[tuple(self.places.T)] = self.values
        return labels

    def along(self, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """Places (N, 3) with the axis first, slice by slice and row by row in each, and their values (N,)."""
        places = self.places[:, [axis, *(a for a in range(3) if a != axis)]]
        order = np.lexsort(places.T[::-1])
        return places[order], self.values[order]


def few_labels(scan: Prepared) -> Points | None:
    """The labels of a scan as `Points`, where fewer than half of its voxels have one; None for a mask."""
    if isinstance(scan, Points):
        return scan
    mask = scan.mask
    return Points.of(scan, mask) if np.count_nonzero(mask != UNLABELLED) < mask.size / 2 else None


def sample_points(mask: np.ndarray, rng: np.random.Generator, per_instance: int = POINTS_PER_INSTANCE,
                  background: int = BACKGROUND_POINTS, care: Care = PERFECT,
                  spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Random points on every sagittal slice: per_instance in each connected component of a class, and background.

    mask (z, y, x) uint8 0..5 or UNLABELLED -> labels (z, y, x) uint8, UNLABELLED but for the points.  The same points,
    seen along the other axes, label the transverse and coronal slices.  A component smaller than its points is labelled
    whole.  care, spacing_mm: how well the expert clicks, in mm.
    """
    labels = np.full(mask.shape, UNLABELLED, np.uint8)
    for x in range(mask.shape[SAGITTAL]):
        plane = mask[:, :, x]
        _draw(labels[:, :, x], plane == BACKGROUND, BACKGROUND, background, rng)
        for k in np.unique(plane[(plane != BACKGROUND) & (plane != UNLABELLED)]):
            components, count = ndimage.label(plane == k)
            for c in range(1, count + 1):
                _draw(labels[:, :, x], components == c, k, per_instance, rng, care, spacing_mm[:2])
    return labels


def _draw(labels: np.ndarray, where: np.ndarray, value: int, count: int, rng: np.random.Generator,
          care: Care = PERFECT, spacing_mm: tuple[float, float] = (1.0, 1.0)) -> None:
    candidates, likely = np.flatnonzero(where), None
    if care.towards_middle:
        depth = ndimage.distance_transform_edt(where, spacing_mm).flat[candidates] ** care.towards_middle
        likely = depth / depth.sum()
    chosen = rng.choice(candidates, min(count, len(candidates)), replace=False, p=likely)
    places = np.stack(np.unravel_index(chosen, labels.shape), 1)
    if care.jitter_mm:
        off = rng.normal(0, care.jitter_mm, places.shape) / spacing_mm
        places = np.clip(np.rint(places + off).astype(int), 0, np.array(labels.shape) - 1)
    values = np.full(len(places), value)
    if care.wrong_levels:
        beside = np.where(rng.random(len(places)) < 0.5, value - 1, value + 1)
        beside = np.where((beside > BACKGROUND) & (beside <= LAST), beside, 2 * value - beside)
        values = np.where(rng.random(len(places)) < care.wrong_levels, beside, values)
    labels[tuple(places.T)] = values


def sample_slices(mask: np.ndarray, rng: np.random.Generator, every: float) -> np.ndarray:
    """The mask of every so many sagittal slices, from a random one on; between them UNLABELLED.   every >= 1."""
    count = mask.shape[SAGITTAL]
    chosen = np.arange(rng.uniform(0, min(every, count)), count, every).astype(int)
    labels = np.full(mask.shape, UNLABELLED, np.uint8)
    labels[:, :, chosen] = mask[:, :, chosen]
    return labels


def draw_points(scans: Sequence[Prepared], seed: int, to_choose: bool = False) -> list[Points]:
    """Point labels for scans: an expert's where there are any, else drawn from their masks.

    to_choose: to choose or score by.  Then an expert's clicks will not do, since people click where it is easy, but
    places that chance has chosen will.
    """
    return [_points_of(scan, np.random.default_rng((seed, i)), to_choose) for i, scan in enumerate(scans)]


def _points_of(scan: Prepared, rng: np.random.Generator, to_choose: bool) -> Points:
    known = scan.clicks and scan.clicks.chosen(by_chance=to_choose)
    if known and len(known.values):
        weights = known.stands_for_mm3 / np.prod(scan.spacing_mm) if to_choose else None
        return Points(scan, known.places, known.values, weights)
    if scan.mask is None:
        raise ScanError(f"{scan.name}: found neither a mask nor " + (
            "classes of places that chance has chosen, expected one of them to choose and score by" if to_choose else
            "clicks, expected one of them to learn from") + "; label it, or leave it out")
    return Points.of(scan, sample_points(scan.mask, rng))


def draw_places(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], middles: np.ndarray, count: int,
                rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random places for an expert to name the class of, most of them near vertebrae, whose middles are about `middles`.

    middles (M, 3) z y x -> places (count, 3) int32, and of each how many mm3 it stands for: 1 / (count * its density).
    Whatever the middles, what such places tell is right on average (Horvitz and Thompson 1952); good ones make it
    more certain, and so does asking near each vertebra equally often (Owen and Zhou 2000).  The order is random, so
    who stops early has a smaller lot.
    """
    grid, balls, size = [np.arange(n) * s for n, s in zip(shape, spacing_mm, strict=True)], [], np.prod(shape)
    for middle in middles * np.array(spacing_mm):
        z, y, x = ((g - m) ** 2 for g, m in zip(grid, middle, strict=True))
        balls.append(np.flatnonzero(z[:, None, None] + y[:, None] + x < NEAR_MM**2))
    balls = [ball for ball in balls if len(ball)]
    share = NEAR_SHARE / max(1, len(balls))  # of each ball; of the whole scan what is left
    ends = share * np.arange(1, len(balls) + 1)
    which = rng.permutation(np.searchsorted(ends, (np.arange(count) + rng.random()) / count, side="right"))
    flat = np.array([rng.choice(balls[i]) if i < len(balls) else rng.integers(size) for i in which], int)
    density = np.full(count, (1 - share * len(balls)) / size)
    for ball in balls:
        density += share / len(ball) * np.isin(flat, ball)
    places = np.stack(np.unravel_index(flat, shape), 1).astype(np.int32)
    return places, np.prod(spacing_mm) / (count * density)


def is_checked(scan: Prepared) -> bool:
    """Whether a prediction of it can be scored: by a mask, or at places that chance has chosen."""
    return scan.mask is not None or (scan.clicks is not None and np.isfinite(scan.clicks.stands_for_mm3).any())


def draw_clicks(mask: np.ndarray, rng: np.random.Generator, **how) -> Clicks:
    """`sample_points`, whose further arguments it takes, as clicks on a scan's own grid."""
    labels = sample_points(mask, rng, **how)
    places = np.argwhere(labels != UNLABELLED).astype(np.int32)
    unknown = np.full(len(places), np.nan)
    return Clicks(places, labels[tuple(places.T)], unknown, unknown)


def draw_labels(scans: Scans, kind: str, seed: int, seconds: Seconds = BEARMAN) -> Scans:
    """What an expert might know of the training and validation scans, from their masks.

    kind: "points" on every sagittal slice; of masks, as many as the same minutes buy, the masks of evenly spaced
    "slices" or of "whole scans", at least of one; or "masks", all that there is.
    """
    return Scans(_labels_of(scans.train, kind, seed, seconds), _labels_of(scans.validation, kind, seed, seconds, True))


def _labels_of(scans: Sequence[Prepared], kind: str, seed: int, seconds: Seconds,
               to_choose: bool = False) -> list[Prepared]:
    if kind != "points" and (without := [scan.name for scan in scans if scan.mask is None]):
        raise ScanError(f"{', '.join(without[:3])}: found no mask, expected one for labels {kind!r}; take points")
    if kind == "masks":
        return list(scans)
    points = draw_points(scans, seed, to_choose)
    if kind == "points":
        return points
    every = max(1.0, labelling_seconds(scans, seconds) / (labelling_seconds(points, seconds) or np.inf))
    rng = np.random.default_rng((seed, len(scans)))
    if kind == "slices":
        return [Points.of(scan, sample_slices(scan.mask, rng, every)) for scan in scans]
    if kind != "whole scans":
        raise ScanError(f"labels: found {kind!r}, expected points, slices, whole scans or masks")
    return [scans[i] for i in sorted(rng.permutation(len(scans))[:max(1, round(len(scans) / every))])]


def draw_rivals(scans: Scans, seed: int, seconds: Seconds = BEARMAN) -> dict[str, Scans]:
    """What the time for points on all slices buys in masks; nothing where some scans have none."""
    kinds = ("slices", "whole scans") if has_masks(scans) else ()
    return {kind.replace(" ", "_"): draw_labels(scans, kind, seed, seconds) for kind in kinds}


def has_masks(scans: Scans) -> bool:
    """Whether all training and validation scans have one."""
    return all(scan.mask is not None for scan in (*scans.train, *scans.validation))


def unlabelled(scan: Prepared) -> Points:
    """A scan of which nothing is known."""
    return Points(scan, np.empty((0, 3), np.int32), np.empty(0, np.uint8))


def labelling_cost(further_points: float = FURTHER_POINTS, seconds: Seconds = BEARMAN) -> float:
    """Time to label an image with points as a share of the time for its full mask: 22.1 s with one point a class and
    0.9 s for each further point, against 239.7 s.   Bearman et al. 2016."""
    return (seconds.points + seconds.further_point * further_points) / seconds.mask


def labelling_seconds(labelled: Iterable[Prepared], seconds: Seconds = BEARMAN) -> float:
    """What the labels of scans take an expert: on each sagittal slice a mask, or points.

    Slices whose labels name no vertebra are free, whatever their kind: there is nothing to outline or to point at, and
    which slices those are is known from the first and the last that show one.
    """
    total = 0.0
    for scan in labelled:
        for plane in np.moveaxis(scan.mask, SAGITTAL, 0):
            values = plane[plane != UNLABELLED]
            if (values != BACKGROUND).any():
                of_points = seconds.points + seconds.further_point * (len(values) - len(np.unique(values)))
                total += seconds.mask if is_whole(len(values), plane.size) else min(seconds.mask, of_points)
    return total


def is_whole(labelled: int | np.ndarray, size: int) -> bool | np.ndarray:
    """Whether a slice with so many labelled pixels of all has a mask, not points."""
    return labelled > size / 2
