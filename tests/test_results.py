"""What the notebooks and READMEs say of a term or rule is what the committed results of the arena show."""

import json
import re
from pathlib import Path

import bench_terms
import nbformat
import pytest

from pointseg.report.compare import read_rows, verdict

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "notebooks" / "results"
CLAIM = re.compile(r"`([^`]+)` than `([^`]+)`[^*|]*?(?:\|[^|]*?)*?\*\*(helps|hurts|not shown)\*\*")  # also in a table
TEXTS = [*sorted((ROOT / "notebooks").glob("**/*.ipynb")), ROOT / "README.md", ROOT / "notebooks/README.md",
         ROOT / "tests/README.md"]


def text(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text()
    return "\n\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")


CLAIMS = sorted({(path.name, *claim) for path in TEXTS for claim in CLAIM.findall(text(path))})


@pytest.fixture(scope="module")
def shown() -> dict[str, tuple[str, str]]:
    """Of each line of the arena what it is compared with, and the word for it."""
    rows = [row for row in read_rows(RESULTS / "terms.csv") if row.part == "validation"]
    words = {}
    for title, line, answer, than in bench_terms.comparisons():
        if (line, answer) != than and (of_all := bench_terms.verdicts(rows, (line, answer), than)["all"]):
            words[title] = than[0], verdict(*of_all[1:])
    return words


def test_there_are_claims_about_each_term_of_the_thesis():
    told = {(name, title) for name, title, _, _ in CLAIMS}
    assert {("04_consistency_loss.ipynb", "PC"), ("05_separation_loss.ipynb", "PS"), ("06_extent_loss.ipynb", "PE"),
            ("README.md", "PCES")} <= told
    assert len({title for name, title in told if name.startswith("11_")}) >= 12


@pytest.mark.parametrize(("name", "title", "than", "word"), CLAIMS)
def test_the_word_is_that_of_the_results(name, title, than, word, shown):
    assert shown[title] == (than, word)


def test_results_say_how_they_were_made():
    about = json.loads((RESULTS / "about.json").read_text())
    assert set(about) == {path.name for path in RESULTS.glob("*.csv")}
    for name, of_file in about.items():
        rows = read_rows(RESULTS / name)
        assert of_file["folds"] == sorted({row.fold for row in rows}) and of_file["commit"] and of_file["machine"]
        assert all(row.part != "train" and row.matrix.shape in ((2, 2), (6, 6)) for row in rows)
        assert len({(r.line, r.repeat, r.fold, r.part, r.scan, r.answer) for r in rows}) == len(rows)
        if name == "terms.csv":
            assert {row.part for row in rows} == {"validation"}  # no line was compared on a test scan
