"""Any folder of image and mask files, with what the mask's values mean given on the command line."""

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pointseg.datasets.importers.base import BODIES, LEVELS, NUMBERS, WHOLE, Found, LeftOut, Read, read_pair
from pointseg.scans.reading import SCAN_ENDINGS
from pointseg.scans.volumes import VERTEBRA, stem
from pointseg.volume import BACKGROUND, UNLABELLED, ScanError

SOURCE, EXTENTS = "folder", {"bodies": BODIES, "whole": WHOLE}
MEANINGS = {"background": BACKGROUND, "unlabelled": UNLABELLED, "vertebra": VERTEBRA, **NUMBERS}


@dataclass(frozen=True)
class Folder:
    """An importer like the modules beside this one.

    images, masks: patterns below the raw folder with one *, such as masks/*_seg.nii.gz or */mask.nii.gz; what the *
    stands for is the case, and pairs an image with its mask.  patient: a regular expression whose first group, in the
    case, names the patient; without one every case is a patient.
    """

    SOURCE: str
    MODALITY: str
    MASK_EXTENT: str
    images: str
    masks: str
    values: dict[int, int]  # of the masks -> VerSe's
    patient: str = ""

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Folder":
        """From the command line's options."""
        if not options.labels:
            raise ScanError("--labels is missing, expected what the masks' values mean, such as --labels 1=L1 2=L2")
        if not re.fullmatch(r"\w[\w.-]*", options.source or SOURCE):
            raise ScanError(f"--source: found {options.source!r}, expected letters, digits, dots, - and _")
        try:
            if options.patient and not re.compile(options.patient).groups:
                raise re.error("no group")
        except re.error as error:
            raise ScanError(f"--patient: found {options.patient!r} ({error}), expected a regular expression with a "
                            "group, such as (P[0-9]+)_") from None
        return cls(options.source or SOURCE, options.modality or "", EXTENTS[options.mask_extent or "whole"],
                   check_pattern("--images", options.images or "images/*"),
                   check_pattern("--masks", options.masks or "masks/*"), meanings(options.labels),
                   options.patient or "")

    @property
    def LAYOUT(self) -> str:  # noqa: N802, named as in the modules
        return f"{self.images} and {self.masks}"

    def find(self, raw: Path) -> Iterator[Found | LeftOut]:
        images, masks = self._files(raw, self.images), self._files(raw, self.masks)
        for case, paths in images.items():
            mine = masks.get(case, [])
            if len(paths) > 1 or len(mine) > 1:
                yield LeftOut(case, f"{', '.join(p.name for p in (paths if len(paths) > 1 else mine))}: several files "
                                    "of one name, expected one; rename or remove the others")
            elif not mine:
                yield LeftOut(case, f"{paths[0]}: has no mask {self.masks.replace('*', case)}")
            elif self.patient and not ((person := re.search(self.patient, case)) and person[1]):
                yield LeftOut(case, f"{paths[0]}: its name does not match --patient {self.patient}")
            else:
                yield Found(case, f"{self.SOURCE}-{person[1] if self.patient else case}", paths[0], (mine[0],))
        for case in sorted(set(masks) - set(images)):
            yield LeftOut(case, f"{masks[case][0]}: has no image {self.images.replace('*', case)}")

    def _files(self, raw: Path, pattern: str) -> dict[str, list[Path]]:
        before, after = pattern.split("*")
        found: dict[str, list[Path]] = {}
        for path in sorted(raw.glob(pattern)):
            if path.name.startswith(".") or not (path.is_dir() or path.name.lower().endswith(SCAN_ENDINGS)):
                continue
            case = path.relative_to(raw).as_posix().removeprefix(before).removesuffix(after)
            if not after and not path.is_dir():  # an open pattern leaves the ending open too
                case = stem(Path(case))
            found.setdefault(case, []).append(path)
        return found

    def read(self, found: Found) -> Read:
        return read_pair(found, self.values)


def meanings(pairs: Sequence[str]) -> dict[int, int]:
    """ "7=L1" -> {7: 20}; 0 is background where it is not given."""
    values, given = {0: BACKGROUND}, set()
    for pair in pairs:
        value, _, name = pair.partition("=")
        if not re.fullmatch(r"-?\d+", value) or name not in MEANINGS:
            raise ScanError(f"--labels: found {pair!r}, expected VALUE=NAME with a whole number and one of "
                            f"{', '.join(['background', 'unlabelled', 'vertebra', *LEVELS.values()])}")
        if int(value) in given:
            raise ScanError(f"--labels: found {value} twice, expected each value once; remove one")
        given.add(int(value))
        values[int(value)] = MEANINGS[name]
    if VERTEBRA in values.values() and set(values.values()) & set(LEVELS):
        raise ScanError("--labels: found vertebra beside named levels, expected one or the other")
    return values


def check_pattern(option: str, pattern: str) -> str:
    pattern = pattern.removeprefix("./")
    if pattern.count("*") != 1 or re.search(r"[?\[]", pattern) or Path(pattern).is_absolute() or \
            ".." in Path(pattern).parts:
        raise ScanError(f"{option}: found {pattern!r}, expected a path inside RAW_DIR with one * for the case, such as "
                        "images/*.nii.gz")
    return pattern
