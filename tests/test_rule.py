"""What may import what, as pointseg/__init__.py says: the lesson knows nothing of the folders, a folder none above."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pointseg

PACKAGE = Path(pointseg.__file__).parent
FOLDERS = ["commands", "lessons", "runs", "report", "datasets", "scans"]  # each may import those after it


def imported(path: Path) -> set[str]:
    """The folders that a module imports, anywhere in it and in any form."""
    package, names = ["pointseg", *path.relative_to(PACKAGE).parent.parts], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            base = ".".join(filter(None, (start, node.module)))
            names |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
                "import_module", "__import__"):
            names |= {f"{a.value}." for a in ast.walk(node) if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return {name.split(".")[1] for name in names if name.startswith("pointseg.")} & set(FOLDERS)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_lesson_imports_no_folder_and_a_folder_none_above_it(path):
    place = path.relative_to(PACKAGE).parts
    if len(place) == 1:
        assert imported(path) == (set() if place != ("__main__.py",) else {"commands"})
    else:
        assert imported(path) <= set(FOLDERS[FOLDERS.index(place[0]):])


@pytest.mark.parametrize("line", ["import pointseg.runs.run", "from pointseg import runs", "from . import runs as r",
                                  "from .runs import run", "def f():\n    from pointseg.runs.run import Run",
                                  "import_module('pointseg.runs.run')", "importlib.import_module('pointseg.runs')"])
def test_every_form_of_import_is_seen(line, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path: line)
    assert imported(PACKAGE / "new.py") == {"runs"}


def test_the_procedure_loads_no_reader_and_no_plots():
    code = "import sys, pointseg.procedure; print({'SimpleITK', 'pydicom', 'nibabel', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
