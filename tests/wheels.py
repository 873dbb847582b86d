"""Has every package of requirements.lock a wheel, for each Python and system that we support, and is none missing?

    python tests/wheels.py [--python 3.12 ...] [--system windows ...]

pip finds the wheels and reads what each requires: nothing is installed, it takes minutes and the network.  But pip
judges "on Windows" and "below Python 3.12" by the machine it runs on: those are judged here, for the one asked about.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path(__file__).parents[1] / "requirements.lock"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
SYSTEMS = {  # what pip calls it, and what packages ask for
    "linux": ([f"manylinux_2_{n}_x86_64" for n in range(28, 4, -1)] + ["manylinux2014_x86_64"],
              {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"}),
    "macos": (["macosx_14_0_arm64", "macosx_14_0_universal2"],
              {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"}),
    "windows": (["win_amd64"],
                {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"})}


def pinned(environment: dict[str, str]) -> list[Requirement]:
    """The lock's lines that count in an environment."""
    lines = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    return [r for r in map(Requirement, lines) if not r.marker or r.marker.evaluate(environment)]


def found_wheels(python: str, system: str, wanted: list[Requirement]) -> list[dict]:
    """What pip's report says of each wheel that it would install."""
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder) / "names.txt"
        names.write_text("\n".join(f"{r.name}{r.specifier}" for r in wanted))
        platforms = [a for name in SYSTEMS[system][0] for a in ("--platform", name)]
        done = subprocess.run([sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed",
                               "--only-binary=:all:", "--python-version", python, *platforms, "--target", folder,
                               "--quiet", "--report", "-", "-r", str(names)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"Python {python}, {system}: {done.stderr.strip()}")
    return [item["metadata"] for item in json.loads(done.stdout)["install"]]


def missing(wheels: list[dict], environment: dict[str, str]) -> list[str]:
    """What these require but the lock does not pin, or pins otherwise.

    What is required in one exact version needs no line, nor do the CUDA libraries of torch's build for Linux.
    """
    versions, wrong = {canonicalize_name(w["name"]): w["version"] for w in wheels}, []
    for wheel in wheels:
        for r in map(Requirement, wheel.get("requires_dist", [])):
            if r.marker and not r.marker.evaluate(environment | {"extra": ""}):
                continue
            known = versions.get(canonicalize_name(r.name))
            exact = [s.operator for s in r.specifier] == ["=="] or (wheel["name"], r.name[:4]) == ("torch", "cuda")
            if not exact and (known is None or not r.specifier.contains(known, prereleases=True)):
                wrong.append(f"{wheel['name']} requires {r}, found {known or 'no line'}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="+", choices=PYTHONS, default=PYTHONS)
    parser.add_argument("--system", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    options, failed = parser.parse_args(), False
    for python in options.python:
        for system in options.system:
            environment = SYSTEMS[system][1] | {"python_version": python, "python_full_version": f"{python}.0",
                                                "implementation_name": "cpython",
                                                "platform_python_implementation": "CPython"}
            wheels = found_wheels(python, system, pinned(environment))
            wrong = missing(wheels, environment)
            failed |= bool(wrong)
            print(f"Python {python}, {system}: {len(wheels)} wheels" + "".join(f"\n    {w}" for w in wrong), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
