"""What makes two runs the same: the syntax of the code that they rest on, and the libraries' versions."""

import shutil
from pathlib import Path

import pytest

from pointseg.runs import identity
from pointseg.runs.identity import code_hash, identity_of


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A copy of the package, to be edited."""
    copy = shutil.copytree(identity.PACKAGE, tmp_path / "package")
    monkeypatch.setattr(identity, "PACKAGE", copy)
    return copy


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


def test_what_says_the_same_is_the_same(package):
    """A comment, a docstring, white space, and a module that has no part in it."""
    before = code_hash("procedure")
    edit(package / "losses.py", '"""', '"""Other words.  ')
    edit(package / "fusion.py", "    return smooth(", "    # why\n\n    return smooth(")
    edit(package / "lessons" / "widgets.py", "PAGE_INCH", "ANOTHER")
    assert code_hash("procedure") == before


@pytest.mark.parametrize(("file", "text", "other"), [
    ("losses.py", ".abs()", ".square()"),  # imported by the module itself
    ("kernels.py", "CLAHE_LEVELS = 1 << 14", "CLAHE_LEVELS = 1 << 13"),  # by one that it imports
    ("volume.py", "UNLABELLED = 255", "UNLABELLED = 254"), ("points.py", "PER_INSTANCE, BACKGROUND_POINTS = 3, 5",
                                                            "PER_INSTANCE, BACKGROUND_POINTS = 3, 6")])
def test_what_can_change_a_result_is_another(package, file, text, other):
    before = code_hash("procedure")
    edit(package / file, text, other)
    assert code_hash("procedure") != before


def test_folders_count(package):
    """What a scan is read by counts for a prepared scan, the model's part does not; a folder's own code is run too."""
    before, of_models = code_hash("datasets.manifest"), code_hash("procedure")
    edit(package / "scans" / "volumes.py", "0.01", "0.02")
    assert code_hash("datasets.manifest") != before
    before = code_hash("datasets.manifest")
    (package / "datasets" / "__init__.py").write_text("1 + 1")
    assert code_hash("datasets.manifest") != before
    edit(package / "train.py", "import", "import os\nimport")
    assert code_hash("procedure") != of_models


def test_an_import_inside_a_function_counts(package):
    (package / "fusion.py").write_text("def f():\n    from pointseg import metrics\n")
    before = code_hash("fusion")
    edit(package / "metrics.py", "2 * hits", "3 * hits")
    assert code_hash("fusion") != before


def test_another_library_is_another_identity(monkeypatch):
    before = identity_of("fusion")
    assert before == identity_of("fusion") and before["torch"]
    monkeypatch.setattr(identity, "version", lambda name: "3.0" if name == "torch" else "1.0")
    assert identity_of("fusion")["torch"] == "3.0" and identity_of("fusion")["code"] == before["code"]
