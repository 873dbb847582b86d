"""UWSpine: CT with the centre of each vertebra (Glocker et al. 2013).   spine-N/patientNNNN/SCAN/SCAN.nii.gz + .lml

A .lml file has a line for each vertebra: id, name, x, y, z between tabs, in mm from the first voxel along the stored
axes; L1..L5 = 200, 210 .. 240.  Each centre becomes a click, with some in what no lumbar vertebra can reach: they
train.  To choose and to score identification by there is a mask: a ball around each centre, background as far off as
said, and UNLABELLED all else, also beyond the last vertebra where that is not L1 or L5.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pointseg.datasets.importers.base import LEVELS, LUMBAR, Found, LeftOut, Read, files_below, hide_ends, like
from pointseg.datasets.manifest import CENTROIDS
from pointseg.points import BACKGROUND_POINTS
from pointseg.scans.clicks import canonical_of
from pointseg.scans.reading import read_image
from pointseg.scans.volumes import VERSE_TO_CLASS, geometry_of, stem
from pointseg.volume import BACKGROUND, UNLABELLED, Clicks, ScanError

SOURCE, MODALITY, MASK_EXTENT = "uwspine", "CT", CENTROIDS
LAYOUT = "spine-N/CASE/SCAN/SCAN.nii.gz beside SCAN.lml"
NUMBERS = {200 + 10 * k: v for k, v in enumerate(LUMBAR)}
BALL_MM, BACKGROUND_MM = 5.0, 80.0  # from the centre: surely in the vertebral body; beyond the longest process


def find(raw: Path) -> Iterator[Found | LeftOut]:
    images = files_below(raw, "*.nii*")
    people = _people([_folders(p, raw) for p in images])
    for image, patient in zip(images, people, strict=True):
        points = image.with_name(stem(image) + ".lml")
        if points.is_file():
            yield Found(stem(image), f"{SOURCE}-{patient}", image, (points,))
        else:
            yield LeftOut(stem(image), f"{image}: has no {points.name}")


def _folders(image: Path, raw: Path) -> tuple[str, str]:
    """The outer and the inner folder of a scan below spine-N; without such folders its own name."""
    names = [part for part in image.relative_to(raw).parts[:-1] if not re.match("(?i)spine", part)] or [stem(image)]
    return names[0], names[-1]


def _people(names: list[tuple[str, str]]) -> list[str]:
    """Scans that share the outer or the inner folder's name are of one person."""
    group = {key: key for outer, inner in names for key in ((0, outer), (1, inner))}

    def root(key: tuple[int, str]) -> tuple[int, str]:
        while group[key] != key:
            key = group[key]
        return key

    for outer, inner in names:
        group[max(root((0, outer)), root((1, inner)))] = min(root((0, outer)), root((1, inner)))
    return [root((0, outer))[1] for outer, _ in names]


def read(found: Found) -> Read:
    stored = read_image(found.image)
    centres = read_centres(found.masks[0])
    mask = hide_ends(mask_of(stored.image, centres, found.masks[0]))
    return Read(stored.image, mask, as_stored=not stored.notes, clicks=clicks_of(mask, centres))


def read_centres(path: Path) -> dict[int, tuple[float, float, float]]:
    """Lumbar centres, x y z in mm, by VerSe's number."""
    centres = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        cells = [cell.strip() for cell in line.split("\t") if cell.strip()]
        if not cells or not cells[0].isdigit():  # the first line names the columns
            continue
        try:
            value, name, centre = int(cells[0]), cells[1], tuple(map(float, cells[2:5]))
        except (ValueError, IndexError):
            centre = ()
        if len(centre) != 3 or not all(map(math.isfinite, centre)):
            raise ScanError(f"{path}, line {number}: found {line!r}, expected id, name, x, y, z between tabs")
        if value in NUMBERS:
            if not name.upper().startswith(LEVELS[NUMBERS[value]]):
                raise ScanError(f"{path}, line {number}: id {value} is called {name}, expected "
                                f"{LEVELS[NUMBERS[value]]}")
            centres[NUMBERS[value]] = centre
    return centres


def mask_of(image: sitk.Image, centres: dict[int, tuple[float, float, float]], path: Path) -> sitk.Image:
    """Balls around centres (x, y, z in mm from the first voxel), far background, and UNLABELLED between."""
    size, spacing = np.array(image.GetSize()), np.array(image.GetSpacing())
    out = np.full(image.GetSize()[::-1], UNLABELLED, np.uint8)
    along = [np.arange(n) * s for n, s in zip(size, spacing, strict=True)]
    for v, centre in centres.items():
        if not all(-0.5 <= c / s <= n - 0.5 for c, s, n in zip(centre, spacing, size, strict=True)):
            raise ScanError(f"{path}: {LEVELS[v]} is at {', '.join(f'{c:g}' for c in centre)} mm, outside the image of "
                            f"{' x '.join(f'{e:.0f}' for e in size * spacing)} mm")
    x2, y2, z2 = ({v: (a - c[i]) ** 2 for v, c in centres.items()} for i, a in enumerate(along))
    for z, plane in enumerate(out):
        nearest = np.full(plane.shape, np.inf)
        for v in centres:
            squared = z2[v][z] + y2[v][:, None] + x2[v]
            plane[squared <= max(BALL_MM, spacing.max() * 0.87) ** 2] = v  # at least the nearest voxel
            np.minimum(nearest, squared, out=nearest)
        plane[nearest > BACKGROUND_MM**2] = BACKGROUND
    return like(image, out)


def clicks_of(mask: sitk.Image, centres: dict[int, tuple[float, float, float]]) -> Clicks:
    """The voxel of each centre, and for each five random ones that `mask` calls background, where it has so many."""
    values, rng = sitk.GetArrayViewFromImage(mask), np.random.default_rng(0)
    tried = rng.integers(values.shape, size=(1000, 3))  # of a large CT all background voxels would take gigabytes
    far = np.unique(tried[values[tuple(tried.T)] == BACKGROUND][:BACKGROUND_POINTS * len(centres)], axis=0)[:, ::-1]
    near = np.reshape(list(centres.values()), (-1, 3)) / mask.GetSpacing()
    near = np.rint(near).clip(0, np.array(mask.GetSize()) - 1)
    classes = [VERSE_TO_CLASS[v] for v in centres] + [BACKGROUND] * len(far)
    places = canonical_of(np.concatenate([near, far]).astype(np.int64), geometry_of(mask)).astype(np.int32)
    unknown = np.full(len(places), np.nan)
    return Clicks(places, np.array(classes, np.uint8), unknown, unknown)
