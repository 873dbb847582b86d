"""Who trains, who validates, who tests: splits of cases by patient."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tqdm.auto import tqdm

from pointseg.datasets.manifest import PARTS, Case
from pointseg.preprocess import Prepared, Scans, prepare
from pointseg.profiles import Profile
from pointseg.scans.files import some_of
from pointseg.volume import ScanError

SIXTHS = (4, 1, 1)  # of the patients, for training, test, validation: the order in which a tie is settled


@dataclass(frozen=True)
class Split:
    """Cases of disjoint sets of patients."""

    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]


def cases_with_levels(cases: Sequence[Case]) -> list[Case]:
    """Leave out cases whose vertebrae have no level, saying so: they can serve models of two classes alone."""
    named = [c for c in cases if c.names_levels]
    if nameless := len(cases) - len(named):
        sources = ", ".join(sorted({c.source for c in cases if not c.names_levels}))
        if not named:
            raise ScanError(f"{sources}: found no case that tells L1 from L2, expected some; such cases can serve "
                            "2-class models alone: train --axis transverse, and evaluate it")
        print(f"{nameless} of {len(cases)} cases ({sources}) do not tell L1 from L2 and are left out")
    return named


def split_cases(cases: Sequence[Case], seed: int = 0) -> Split:
    """Split 4/6, 1/6, 1/6 by patient, each source on its own.

    Depends on the seed and the set of cases, not on their order, and a source's split not on the other sources, with
    one exception: a part left empty in the end takes a patient from the largest.  Patients who cannot be scored, since
    they have clicks alone, train.
    """
    patients = sorted({(c.source, c.patient) for c in cases})  # the same name in two sources is two people
    if len(patients) < 3:
        raise ScanError(f"found {len(patients)} patients, expected at least 3, one each for training, validation and "
                        "test; add scans of other patients")
    unchecked = {(c.source, c.patient) for c in cases if not c.is_checked}
    parts: list[list[tuple[str, str]]] = [[], [], []]
    for source in sorted({source for source, _ in patients}):
        rest = [p for p in patients if p[0] == source]
        random.Random(f"{seed} {source}").shuffle(rest)  # seeded by text: alike on every machine, unlike hash()
        rest.sort(key=lambda p: p not in unchecked)  # these first, and else as shuffled
        train = max(largest_remainder(len(rest), SIXTHS)[0], sum(p in unchecked for p in rest))
        for part, count in zip(parts, (train, *largest_remainder(len(rest) - train, SIXTHS[1:])), strict=True):
            part.extend(rest[:count])
            del rest[:count]
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    train, test, validation = (tuple(sorted((c for c in cases if (c.source, c.patient) in part), key=lambda c: c.name))
                               for part in parts)
    return Split(train, validation, test)


def published_split(cases: Sequence[Case]) -> Split:
    """The split that the sources publish, which the manifest's column "part" holds."""
    if without := [c.name for c in cases if not c.part]:
        raise ScanError(f"found {len(without)} of {len(cases)} cases without a published part ({', '.join(without[:3])}"
                        f"{', ...' if len(without) > 3 else ''}), expected one for each; take only sources that "
                        "publish their split, or leave out --published-split")
    parts = [tuple(sorted((c for c in cases if c.part == part), key=lambda c: c.name)) for part in PARTS]
    if empty := [part for part, chosen in zip(PARTS, parts, strict=True) if not chosen]:
        raise ScanError(f"found no case in the published {' and '.join(empty)} part, expected one in each; "
                        "add the rest of the dataset, or leave out --published-split")
    for a, b in itertools.combinations(parts, 2):
        if both := {(c.source, c.patient) for c in a} & {(c.source, c.patient) for c in b}:
            raise ScanError(f"found patients in two parts of the published split ({', '.join(p for _, p in both)}), "
                            "expected each in one; correct the manifest, or leave out --published-split")
    return Split(*parts)


def largest_remainder(total: int, weights: Sequence[int]) -> list[int]:
    """Whole numbers that sum to `total` in proportion to the weights: the floors, then one more to each of the largest
    remainders, ties to the first.  3 by (4, 1, 1) is 2, 1/2, 1/2, so [2, 1, 0]."""
    counts = [total * w // sum(weights) for w in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: -(total * weights[i] % sum(weights)))
    for i in by_remainder[:total - sum(counts)]:
        counts[i] += 1
    return counts


def split_without_flaws(cases: Sequence[Case], seed: int, published: bool = False, two_classes: bool = False) -> Split:
    """Leave out cases with a known flaw, saying so, and split the others by patient, or as their sources publish it.

    Cases whose vertebrae have no level are left out too, except where two classes are asked for.
    """
    flawed = [c for c in cases if c.flaw]
    if flawed:
        print(f"{len(flawed)} of {len(cases)} cases have a known flaw and are left out: "
              + some_of([f"{c.name} ({c.flaw})" for c in flawed], "; ", most=20))
    usable = [c for c in cases if not c.flaw]
    if not two_classes:
        usable = cases_with_levels(usable)
    return published_split(usable) if published else split_cases(usable, seed)


def names_of(split: Split) -> dict[str, list[str]]:
    """Case names by part, as models and tables keep them."""
    return {part: [c.name for c in getattr(split, part)] for part in ("train", "validation", "test")}


def read_and_prepare(case: Case, grid_mm: float) -> Prepared:
    volume = case.read()
    for note in volume.notes:
        tqdm.write(f"{case.name}: {note}")
    return prepare(volume, grid_mm)


def prepare_split(split: Split, profile: Profile, prepare_case: Callable[..., Prepared] = read_and_prepare) -> Scans:
    """Read and prepare all cases of a split."""
    parts = (split.train, split.validation, split.test)
    with tqdm(total=sum(map(len, parts)), desc="preparing", unit="scan") as bar:
        def prepared(case) -> Prepared:
            scan = prepare_case(case, profile.grid_mm)
            bar.update()
            return scan

        return Scans(*([prepared(case) for case in part] for part in parts))
