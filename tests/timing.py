"""Times side by side: ours, what a user would otherwise call, and the floor, in turn, so that all see the same machine.

A row is printed as it is measured and kept in out/bench.json, which every benchmark completes by its own rows.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import torch
from numba import njit, prange

from pointseg.scans.files import whole_file

BENCH = Path("out/bench.json")
LEAST_S = 0.2  # a sample repeats its call for so long


def seconds(function: Callable[[], object]) -> float:
    """The least time of the calls that fit into LEAST_S, at least two: what disturbs a call only makes it longer."""
    times = []
    while len(times) < 2 or sum(times) < LEAST_S:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def side_by_side(functions: dict[str, Callable[[], object]], rounds: int = 7,
                 warm_up: bool = True) -> dict[str, float]:
    """Median seconds of each, called in turn, round by round: a slow moment of the machine meets all of them."""
    if warm_up:
        for function in functions.values():
            function()
    samples = [{name: seconds(function) for name, function in functions.items()} for _ in range(rounds)]
    return {name: statistics.median(s[name] for s in samples) for name in functions}


@dataclass(frozen=True)
class Other:
    """What a user would otherwise call, and by how much ours is asked to be faster."""

    name: str
    call: Callable[[], object]
    asked: float | None = None


class Report:
    """The table of one benchmark."""

    def __init__(self, name: str):
        self.name, self.rows = name, []
        print(f"{'':<46}{'ours':>9}{'theirs':>9}{'faster':>9}{'asked':>7}{'floor':>9}{'over it':>9}{'asked':>7}")

    def row(self, title: str, ours: Callable[[], object], others: list[Other],
            floor: Callable[[], object] | None = None, most_over_floor: float | None = None, rounds: int = 7,
            warm_up: bool = True) -> None:
        """Measure ours, the others and the floor in turn, and print a line for each of the others."""
        calls = {"ours": ours} | {other.name: other.call for other in others} | ({"floor": floor} if floor else {})
        s = side_by_side(calls, rounds, warm_up)
        over = s["ours"] / s["floor"] if floor else None
        for other in others:
            ratio = s[other.name] / s["ours"]
            asked, most = (f"{x:g}x" if x else "" for x in (other.asked, most_over_floor))
            line = f"{title:<46}{in_unit(s['ours']):>9}{in_unit(s[other.name]):>9}{ratio:>8.1f}x{asked:>7}"
            line += f"{in_unit(s['floor']):>9}{over:>8.1f}x{most:>7}" if floor else " " * 25
            print(f"{line}  {other.name}", flush=True)
            self.add(title, against=other.name, seconds={"ours": s["ours"], "theirs": s[other.name]}, ratio=ratio,
                     asked=other.asked, floor=s.get("floor"), over_floor=over, most_over_floor=most_over_floor)

    def line(self, title: str, text: str, **values) -> None:
        """A measurement of another kind."""
        print(f"{title:<46}{text}", flush=True)
        self.add(title, **values)

    def add(self, title: str, **values) -> None:
        self.rows.append({"row": title} | values)
        known = json.loads(BENCH.read_text()) if BENCH.is_file() else {}
        with whole_file(BENCH) as part:
            part.write_text(json.dumps(known | {"machine": machine(), self.name: self.rows}, indent=1))


def machine() -> dict[str, object]:
    model = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                      if line.startswith("model name")), model)
    return {"processor": model, "cores": os.cpu_count(), "torch": torch.__version__, "numba": numba.__version__,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}


def in_unit(s: float) -> str:
    return f"{s * 1e6:.0f} us" if s < 1e-3 else f"{s * 1e3:.1f} ms" if s < 1 else f"{s:.1f} s"


@njit(parallel=True, cache=True)
def read(words):
    """The floor of whatever looks at each of these 64-bit words: nothing but loads, by all threads."""
    total = np.uint64(0)
    for i in prange(words.size):
        total += words[i]
    return total
