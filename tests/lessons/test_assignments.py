"""The folders of the assignments: none is missed, a new one fails until it is filled in, no mark is committed."""

import runpy
import shutil
import subprocess

import nbformat
import pytest
from assignments import COURSE, NAMES, is_graded, is_solution, source

MODULE = runpy.run_path(str(COURSE / "assignments.py"))
assignments, new = MODULE["assignments"], MODULE["new"]


@pytest.fixture
def course(tmp_path):
    """A course with one assignment."""
    shutil.copytree(COURSE / "source" / "separation", tmp_path / "source" / "separation")
    shutil.copy(COURSE / "template.ipynb", tmp_path)
    return tmp_path


def test_a_copied_folder_is_an_error(course):
    shutil.copytree(course / "source" / "separation", course / "source" / "entropy")
    with pytest.raises(ValueError, match=r"entropy: found separation.ipynb, expected entropy.ipynb alone"):
        assignments(course)
    (course / "source" / "entropy" / "separation.ipynb").unlink()
    with pytest.raises(ValueError, match="entropy: found no notebook"):
        assignments(course)


def test_a_new_one_is_found_and_fails_until_it_is_filled_in(course):
    path = new("entropy", course)
    assert [p.stem for p in assignments(course)] == ["entropy", "separation"]
    cells, names, passed = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"], {}, []
    for cell in cells:
        try:
            exec(cell.source, names)
            passed.append(cell)
        except Exception as error:
            assert "FILL IN" in str(error) or "not written yet" in str(error)
    assert not [c for c in passed if is_graded(c) or is_solution(c)] and "entropy_loss" in names
    assert sum(c.metadata.nbgrader.points for c in cells if is_graded(c)) == 10


@pytest.mark.parametrize("name", NAMES)
def test_it_is_filled_in(name):
    assert not [c.source for c in source(name).cells if "FILL IN" in c.source]


@pytest.mark.parametrize("name, words", [("separation", "exists already"), ("../entropy", "expected one like"),
                                         ("Entropy", "expected one like")])
def test_names_that_it_cannot_have(course, name, words):
    with pytest.raises(ValueError, match=words):
        new(name, course)


@pytest.mark.skipif(not (COURSE.parents[1] / ".git").exists(), reason="not a checkout: git ignores nothing")
@pytest.mark.parametrize("path, ignored", [
    ("grades.csv", True), ("gradebook.db", True), ("feedback/a/separation.html", True), ("submitted/a/x.ipynb", True),
    ("marks.xlsx", True), ("source/entropy/entropy.ipynb", False), ("assignments.py", False)])
def test_no_work_of_a_student_is_committed(path, ignored):
    done = subprocess.run(["git", "check-ignore", "-q", f"notebooks/course/{path}"], cwd=COURSE.parents[1])
    assert done.returncode == (0 if ignored else 1)
