"""The assignments in notebooks/course, the answers to them in lessons/answers, and an answer graded in this process."""

import ast
import runpy
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from torch import Tensor

COURSE = Path(__file__).parents[1] / "notebooks" / "course"
ANSWERS = Path(__file__).parent / "lessons" / "answers"
HIDDEN = "### BEGIN HIDDEN TESTS"
assignments = runpy.run_path(str(COURSE / "assignments.py"))["assignments"]
NAMES = [path.stem for path in assignments()]


def is_solution(cell: NotebookNode) -> bool:
    return cell.metadata.get("nbgrader", {}).get("solution", False)


def is_graded(cell: NotebookNode) -> bool:
    return cell.metadata.get("nbgrader", {}).get("grade", False)


def source(name: str) -> NotebookNode:
    return nbformat.read(COURSE / "source" / name / f"{name}.ipynb", as_version=4)


def solution(name: str) -> str:
    [cell] = [c.source for c in source(name).cells if is_solution(c)]
    return cell


def answers(name: str) -> tuple[list, dict[str, str]]:
    """Right answers, and by the words of the check's message the solution with a mistake in it."""
    path, correct = ANSWERS / f"{name}.py", solution(name)
    assert path.is_file(), f"tests/lessons/answers/{name}.py: no such file, expected answers to the assignment"
    planted = runpy.run_path(str(path))
    wrong = {}
    for words, changes in planted["WRONG"].items():
        wrong[words] = correct
        for old, new in changes.items():
            assert old in wrong[words], f"{name}, {words}: the solution does not contain {old}"
            wrong[words] = wrong[words].replace(old, new)
    return planted["RIGHT"], wrong


@cache
def cells(name: str) -> tuple[dict, list[NotebookNode]]:
    """What is defined before the cell to fill in, and the cells from there on to the last check."""
    code, names = [c for c in source(name).cells if c.cell_type == "code"], {}
    first = next(i for i, c in enumerate(code) if is_solution(c))
    last = max(i for i, c in enumerate(code) if is_graded(c))
    with redirect_stdout(StringIO()):
        for cell in code[:first]:
            exec(cell.source, names)
    return names, code[first : last + 1]


def grade(name: str, answer) -> tuple[float, list[tuple[str, bool]]]:
    """The answer, a function or the source of its cell, in the checks: as nbgrader does it, without a kernel.

    -> points, and of each check that fails its message, and whether the student sees it fail
    """
    names, code = cells(name)
    names = {key: x.clone() if isinstance(x, Tensor) else x for key, x in names.items()}  # an answer may write into it
    points, failed = 0, []
    with redirect_stdout(StringIO()):
        with suppress(Exception):  # of the call that follows the function
            exec(code[0].source if callable(answer) else answer, names)
        if callable(answer):
            [asked] = [node.name for node in ast.parse(code[0].source).body if isinstance(node, ast.FunctionDef)]
            names[asked] = answer
        for cell in code[1:]:
            visible, _, hidden = cell.source.partition(HIDDEN)
            for part in (visible, hidden):
                try:
                    exec(part, names)
                except Exception as error:
                    failed.append((str(error), part == visible))
                    break
            else:
                points += cell.metadata.nbgrader.points if is_graded(cell) else 0
    return points, failed
