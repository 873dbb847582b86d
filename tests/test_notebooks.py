"""The habits of the notebooks that can be checked without running them.   nbval runs them: see the Makefile."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COURSE = sorted((ROOT / "notebooks/course/source").glob("*/*.ipynb"))
HEADINGS = ["## The smallest example", "## The formula", "## The code", "## A picture", "## On a scan", "## Summary",
            "## Exercises"]
PLACES = re.compile(r"(?<![\w.])/(home|root|work|tmp|Users|usr)/")  # paths of the machine it was run on


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def text(path):
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def section(path, heading):
    """The text below a heading, up to the next one."""
    return re.search(rf"^{heading}$(.*?)(?=^#|\Z)", text(path), re.M | re.S).group(1)


def bullets(markdown):
    return re.findall(r"^(?:-|\d\.) ", markdown, re.M)


def name(path):
    return path.stem


every = pytest.mark.parametrize("path", LESSONS + COURSE, ids=name)
walk = pytest.mark.parametrize("path", LESSONS[1:], ids=name)


def test_the_walk_is_complete():
    assert [p.stem for p in LESSONS] == [
        "00_pointseg", "01_preprocessing", "02_point_annotations", "03_point_loss", "04_consistency_loss",
        "05_separation_loss", "06_extent_loss", "07_weak_training", "08_fusion", "09_pseudo_mask_training",
        "10_evaluation", "11_what_points_are_worth", "12_your_own_scans"]
    assert len(COURSE) >= 4


@every
def test_first_cell_is_complete(path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    title = f"# {path.stem[:2]}. " if path in LESSONS else "# Assignment"
    assert first.source.startswith(title)
    assert re.search(r"^\*\*Question\.\*\* .*\?", first.source, re.M | re.S)
    assert len(bullets(first.source.partition("**Goals.**")[2])) == 3
    for word in ("**Reads**", "**Writes**", "**Time**", "**Thesis**"):
        assert word in first.source
    assert "CPU cores" in first.source


@walk
def test_sections_stand_in_order(path):
    found = [line for line in text(path).splitlines() if line in HEADINGS]
    assert found == HEADINGS


@every
def test_it_ends_with_three_takeaways_and_exercises(path):
    assert len(bullets(section(path, "## Summary"))) == 3
    assert len(bullets(section(path, "## Exercises"))) >= 2


@every
def test_cells_are_few_and_short(path):
    cells = [[line for line in cell.source.splitlines() if line.strip()] for cell in code_cells(path)]
    assert len(cells) <= (15 if path.stem.startswith("00") else 25)
    assert max(map(len, cells)) <= 20
    assert max(len(line) for cell in cells for line in cell) <= 103  # longer ones are cut off on paper
    if path in LESSONS:
        assert sum(len(cell) < 7 for cell in cells) > len(cells) / 2


def test_no_function_is_defined_in_two_notebooks():
    where = {}
    for path in LESSONS + COURSE:
        for cell in code_cells(path):
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    where.setdefault(node.name, set()).add(path.stem)
    assert {function: paths for function, paths in where.items() if len(paths) > 1} == {}


@walk
def test_some_numbers_are_checked_and_no_cell_is_skipped(path):
    tags = [tag for cell in code_cells(path) for tag in cell.metadata.get("tags", ())]
    assert "nbval-check-output" in tags
    assert any("assert " in cell.source for cell in code_cells(path))
    assert set(tags) <= {"nbval-check-output"}  # nbval-skip, raises-exception and the like: what is run is what is read


@every
def test_saved_outputs_are_those_of_one_whole_run(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run notebooks/execute.py"
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", ()) for output in outputs)
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert path.stat().st_size < 2_000_000


@every
def test_nothing_names_the_machine(path):
    assert not PLACES.search("\n".join(cell.source for cell in read(path).cells))
    for cell in code_cells(path):
        for output in cell.outputs:
            assert not PLACES.search(output.get("text", "") + str(output.get("data", {}).get("text/plain", "")))


@every
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", text(path)):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@every
def test_readme_names_it(path):
    assert path.name in (ROOT / "README.md").read_text()
