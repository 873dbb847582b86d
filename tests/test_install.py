"""README's lines without make, and make where a path has spaces."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lines_without_make() -> list[str]:
    """The first block of code below README's heading."""
    below = (ROOT / "README.md").read_text(encoding="utf-8").split("## Without make")[1]
    return [line.strip() for line in re.search(r"\n((?:    .*\n)+)", below)[1].splitlines()]


def test_they_are_three_lines_that_install_the_lock():
    lines = lines_without_make()
    assert len(lines) == 3 and "-r requirements.lock" in lines[2]


@pytest.mark.posix
@pytest.mark.skipif("FRESH" not in os.environ, reason="takes minutes and the network: make fresh")
def test_readmes_lines_in_a_fresh_environment(tmp_path):
    """Run as they stand, in a copy of what the repository holds; then the command is there, from that copy."""
    copy = tmp_path / "a fresh copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "out", "__pycache__"))
    alone = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    script = "\n".join(["set -e", *lines_without_make(), "pointseg --help", "cd notebooks",
                        "python -c 'import pointseg, torch; print(pointseg.__file__)'"])
    done = subprocess.run(["sh", "-c", script], cwd=copy, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: pointseg" in done.stdout and done.stdout.endswith(f"{copy / 'pointseg' / '__init__.py'}\n")


@pytest.fixture
def copy(tmp_path) -> Path:
    """What make needs of the repository, in a path with odd characters, with a .venv that calls this Python."""
    folder = tmp_path / "my files, Bob's $HOME"
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("python", "nbgrader", "alembic"):
        program = folder / ".venv" / "bin" / name
        real = sys.executable if name == "python" else Path(sys.executable).with_name(name)
        program.write_text(f'#!/bin/sh\nexec "{real}" "$@"\n')
        program.chmod(0o755)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    course, assignment = Path("notebooks") / "course", Path("source") / "separation"
    shutil.copytree(ROOT / course / assignment, folder / course / assignment)
    for name in ("nbgrader_config.py", "assignments.py"):
        shutil.copy(ROOT / course / name, folder / course)
    (folder / ".venv" / ".installed").write_text(f"{folder}\n")
    return folder


@pytest.mark.posix
@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_course_in_a_path_with_spaces(copy):
    done = subprocess.run(["make", "course"], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (copy / "notebooks" / "course" / "release" / "separation" / "separation.ipynb").is_file()


@pytest.mark.posix
@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_takes_any_supported_python_and_names_what_it_looked_for(copy):
    (copy / ".venv" / ".installed").unlink()
    (copy / ".venv" / "bin" / "python").unlink()
    done = subprocess.run(["make", "run", "PYTHON=/no where/python"], cwd=copy, capture_output=True, text=True)
    assert done.returncode and "needs Python 3.11 to 3.14, found none as /no where/python" in done.stderr
    told = subprocess.run(["make", "-n", "run", "OS=Windows_NT"], cwd=copy, capture_output=True, text=True).stdout
    assert ".venv/Scripts/python -m pip install" in told and "python3.14" in told
