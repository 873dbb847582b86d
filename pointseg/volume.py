"""A scan as arrays on the canonical axes, and the grid it was stored on.

Arrays are (z, y, x): z cranial to caudal, y anterior to posterior, x patient right to left, so that the index grows
towards "LPI" (left, posterior, inferior).  A scan is turned there by permuting and flipping its own axes, never by
resampling: an oblique scan keeps its obliqueness, and a mask can be written back onto the very grid it came from.
All that works on scans sees them so; the order of files, (x, y, z), is met in `Geometry` and in `scans` alone.
"""

import itertools
from dataclasses import dataclass

import numpy as np

BACKGROUND = 0
UNLABELLED = 255  # ignored by the losses
CLASSES = ("background", "L1", "L2", "L3", "L4", "L5")
TEXT_MAX = 1200  # characters of a message
FAT_HU = -50
AIR_BELOW_HU = -300  # where a CT shows air, and MR has nothing


class ScanError(ValueError):
    """Input that cannot be used.  The message names the file, what was found, what was expected and the next step."""

    def __init__(self, message: str):
        """Of one line, not too long: what a file, its name or many files hold may not break it."""
        super().__init__(shortened(printable(message)))


def printable(text: str) -> str:
    """A text in one line, whatever a file's name may hold."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shortened(text: str) -> str:
    """A text without its middle, where it is too long to read: the name comes first, the next step last."""
    return text if len(text) <= TEXT_MAX else f"{text[: TEXT_MAX // 2]} [...] {text[-TEXT_MAX // 3 :]}"


@dataclass(frozen=True)
class Geometry:
    """A scan's own grid as stored, in the order of files (x, y, z) and patient space (LPS, mm)."""

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]  # 3 x 3, row by row; column j is the direction of index axis j

    @classmethod
    def canonical(cls, shape_zyx: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> "Geometry":
        """An axis-aligned LPI grid with its first voxel at 0.  Both arguments are (z, y, x)."""
        size, spacing = tuple(int(n) for n in shape_zyx[::-1]), tuple(float(s) for s in spacing_mm[::-1])
        return cls(size, spacing, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0))

    @property
    def axes(self) -> tuple[tuple[int, int, int], tuple[int, ...]]:
        """(order, flips): `np.flip(stored.transpose(order), flips)` is the canonical array."""
        toward_lpi = np.diag([1.0, 1.0, -1.0]) @ np.reshape(self.direction, (3, 3))  # cosine (L P I, index axis)
        # Of all six permutations the one closest to L, P, I: at 45 degrees, choosing axis by axis could take one twice.
        # Rounded, so that a tie is settled alike before and after a header's float32.
        best = max(itertools.permutations(range(3)),
                   key=lambda p: round(sum(abs(toward_lpi[i, p[i]]) for i in range(3)), 4))
        flips = tuple(2 - i for i in range(3) if toward_lpi[i, best[i]] < 0)
        return tuple(2 - j for j in best[::-1]), flips  # from x y z to the array's z y x

    @property
    def orientation(self) -> str:
        """Three letters, such as "LPI": where the stored x, y and z index grows to."""
        order, flips = self.axes
        toward = {order[axis]: letters[axis in flips] for axis, letters in enumerate(("IS", "PA", "LR"))}
        return toward[2] + toward[1] + toward[0]

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        """Shape of the canonical array."""
        return tuple(self.size[::-1][axis] for axis in self.axes[0])

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Spacing of the canonical array (z, y, x)."""
        return tuple(self.spacing[::-1][axis] for axis in self.axes[0])

    def to_mm(self, index_xyz: np.ndarray) -> np.ndarray:
        """Positions in patient space (n, 3) of voxel indices (n, 3)."""
        return index_xyz @ self._step_mm().T + self.origin

    def to_index(self, points_mm: np.ndarray) -> np.ndarray:
        """The inverse of `to_mm`: continuous indices (n, 3), x y z."""
        return (points_mm - self.origin) @ np.linalg.inv(self._step_mm()).T

    def _step_mm(self) -> np.ndarray:
        return np.reshape(self.direction, (3, 3)) * self.spacing

    def __str__(self) -> str:
        return (f"{' x '.join(map(str, self.size))} voxels of {' x '.join(f'{s:.4g}' for s in self.spacing)} mm, "
                f"{self.orientation}, from {', '.join(f'{o:.4g}' for o in self.origin)}")


@dataclass(frozen=True)
class Clicks:
    """Voxels of a scan that an expert has labelled one by one."""

    places: np.ndarray  # (N, 3) int32, z y x
    values: np.ndarray  # (N,) uint8, 0..5
    seconds: np.ndarray  # (N,) what each took, nan where not known
    stands_for_mm3: np.ndarray  # (N,) of a place that chance has chosen, 1 / its density; nan where the expert has

    def chosen(self, by_chance: bool) -> "Clicks":
        """Those whose places chance has chosen, or the expert."""
        of_kind = np.isfinite(self.stands_for_mm3) == by_chance
        return Clicks(*(x[of_kind] for x in vars(self).values()))


@dataclass(frozen=True)
class Volume:
    """A scan on the canonical axes, with its mask where there is one."""

    image: np.ndarray  # (z, y, x) int16 or float32, finite
    mask: np.ndarray | None  # (z, y, x) uint8, 0..5 or UNLABELLED
    spacing_mm: tuple[float, float, float]  # (z, y, x)
    name: str
    modality: str  # "CT", "MR" or "" for unknown
    geometry: Geometry  # the stored grid, where predictions go back to
    notes: tuple[str, ...] = ()  # what was done to the scan when it was read, or assumed
    clicks: Clicks | None = None


def sample_of(image: np.ndarray) -> np.ndarray:
    """Some 100,000 voxels, evenly spaced, which tell what all of them are like."""
    step = max(1, round((image.size / 1e5) ** (1 / 3)))
    return image[(slice(None, None, step),) * image.ndim]


def in_hounsfield_units(image: np.ndarray) -> bool:
    """Whether a CT's values can be HU, fat and air lying below 0: not so without rescaling, or with 1024 added."""
    some = sample_of(image)
    return np.count_nonzero(some < FAT_HU) > 0.001 * some.size
