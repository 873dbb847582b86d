"""What students are handed of notebooks/course, and how nbgrader grades it: as `assignments.grade` does.

The solution of each assignment is handed in, and one of its wrong answers.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from assignments import COURSE, NAMES, answers, grade, is_graded, is_solution, solution
from nbformat import NotebookNode

pytest.importorskip("nbgrader", reason="nbgrader is not installed: pip install '.[course]'")
nbclient = pytest.importorskip("nbclient")

from nbgrader.api import Gradebook  # noqa: E402
from nbgrader.apps import NbGraderAPI  # noqa: E402
from traitlets.config import PyFileConfigLoader  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Object of type:sqlalchemy.exc.SAWarning")  # nbgrader's own


@dataclass
class Course:
    """One assignment in a course folder of its own."""

    folder: Path
    assignment: str
    api: NbGraderAPI

    def notebook(self, *parts: str) -> NotebookNode:
        return nbformat.read(self.path(*parts), as_version=4)

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts, self.assignment, f"{self.assignment}.ipynb")

    def hand_in(self, student: str, answer: str) -> None:
        """The student's copy with one cell filled in, without the bench: it takes long and is not graded."""
        notebook = self.notebook("release")
        notebook.cells = [c for c in notebook.cells if c.cell_type != "code" or "bench(" not in c.source]
        [cell] = [c for c in notebook.cells if is_solution(c)]
        cell.source = answer
        path = self.path("submitted", student)
        path.parent.mkdir(parents=True)
        nbformat.write(notebook, path)


def error_of(cell: NotebookNode) -> str:
    """The message of the error that a cell ended in, empty where it ran."""
    return next((f"{o.ename}: {o.evalue}" for o in cell.get("outputs", []) if o.output_type == "error"), "")


def hidden_lines(source: str) -> list[str]:
    """Lines of code between BEGIN and END markers, without the very short ones that may stand anywhere."""
    lines, inside = [], False
    for line in source.splitlines():
        if "### BEGIN" in line or "### END" in line:
            inside = "### BEGIN" in line
        elif inside and len(line.strip()) > 16:
            lines.append(line.strip())
    return lines


def points(notebook: NotebookNode) -> list[float]:
    return [c.metadata.nbgrader.points for c in notebook.cells if is_graded(c)]


@pytest.fixture(scope="module", params=NAMES)
def course(request, tmp_path_factory) -> Course:
    """The assignment, released: what students are handed lies in release/."""
    folder, assignment = tmp_path_factory.mktemp("course"), request.param
    shutil.copytree(COURSE / "source" / assignment, folder / "source" / assignment)
    config = PyFileConfigLoader("nbgrader_config.py", path=str(COURSE)).load_config()
    config.CourseDirectory.root = str(folder)
    config.NbGrader.logfile = str(folder / "nbgrader.log")
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{path}"  # nbgrader calls alembic
    try:
        api = NbGraderAPI(config=config)
        done = api.generate_assignment(assignment)
        assert done["success"], done.get("log") or done
        yield Course(folder, assignment, api)
    finally:
        os.environ["PATH"] = path


def test_points_sum_to_ten(course):
    source = course.notebook("source")
    assert sum(points(source)) == 10 and len(points(source)) >= 3
    assert any("### BEGIN HIDDEN TESTS" in c.source for c in source.cells if is_graded(c))
    assert sum(map(is_solution, source.cells)) == 1


def test_students_get_no_solution(course):
    released = "\n".join(c.source for c in course.notebook("release").cells)
    secret = [line for c in course.notebook("source").cells for line in hidden_lines(c.source)]
    assert secret and [line for line in secret if line in released] == []
    assert "### BEGIN" not in released


def test_students_copy_fails_only_where_it_must(course):
    """The cell to fill in and the graded ones fail as not written yet; every other cell runs, the bench says no."""
    notebook = course.notebook("release")
    nbclient.NotebookClient(notebook, timeout=600, allow_errors=True, kernel_name="python3",
                            resources={"metadata": {"path": str(course.path("release").parent)}}).execute()
    code = [c for c in notebook.cells if c.cell_type == "code"]
    failing, expected = [c.id for c in code if error_of(c)], [c.id for c in code if is_solution(c) or is_graded(c)]
    assert failing == expected, [error_of(c) for c in code if error_of(c) and c.id not in expected]
    assert "NotImplementedError" in error_of(next(c for c in code if is_solution(c)))
    said = [o.text for c in code if "bench(" in c.source for o in c.outputs if o.get("name") == "stdout"]
    assert len(said) == 1 and "not written yet" in said[0]


@pytest.mark.parametrize("student", ["solution", "wrong"])
def test_nbgrader_grades_alike(course, student):
    wrong = answers(course.assignment)[1].values()
    answer = solution(course.assignment) if student == "solution" else next(iter(wrong))
    course.hand_in(student, answer)
    done = course.api.autograde(course.assignment, student)
    assert done["success"], done.get("log") or done
    with Gradebook(f"sqlite:///{course.folder}/gradebook.db") as gradebook:
        score = gradebook.find_submission(course.assignment, student).score
    graded = [c for c in course.notebook("autograded", student).cells if is_graded(c)]
    expected, failed = grade(course.assignment, answer)
    assert score == expected and (score == 10) == (student == "solution")
    assert [error_of(c).partition(": ")[2] for c in graded if error_of(c)] == [message for message, _ in failed]
