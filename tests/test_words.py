"""A notebook uses a word of the field only where it is explained: there, earlier, or by a link to the glossary."""

import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
GLOSSARY = NOTEBOOKS / "00_pointseg.ipynb"
LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"))
TERMS = {term: re.compile(pattern) for term, pattern in {
    "sagittal": r"[Ss]agittal", "coronal": r"[Cc]oronal", "transverse": r"[Tt]ransverse", "voxel": r"\b[Vv]oxels?\b",
    "level": r"(?<!grey )\b[Ll]evels?\b(?!=)", "processes": r"(?<!--)\bprocesses\b(?! of)", "logits": r"\b[Ll]ogits?\b",
    "Dice_wi": r"Dice_wi|Dice}_{wi|weighted Dice", "weak model": r"\b[Ww]eak models?\b",
    "pseudo mask": r"\b[Pp]seudo[ _]masks?\b", "reference": r"\b[Rr]eference\b", "rival": r"\b[Rr]ivals?\b",
    "LESSON": r"\bLESSON\b", "synthetic-water": r"\bsynthetic-water\b", "arena": r"\barena\b"}.items()}
LINK = re.compile(r"\[([^\]]*)\]\((?:00_pointseg\.ipynb)?#Words\)")


def unexplained(cells: list) -> list[str]:
    """Terms whose first use, in text or code, no bold word or link in that cell or before it explains."""
    missing = []
    for term, pattern in TERMS.items():
        first = next((i for i, cell in enumerate(cells) if pattern.search(cell.source)), None)
        if first is not None:
            texts = [cell.source for cell in cells[:first + 1] if cell.cell_type == "markdown"]
            explained = [x for text in texts for x in (*re.findall(r"\*\*([^*]+)\*\*", text), *LINK.findall(text))]
            if not any(pattern.search(x) for x in explained):
                missing.append(term)
    return missing


def words() -> str:
    text = next(c.source for c in nbformat.read(GLOSSARY, as_version=4).cells if "\n## Words\n" in c.source)
    return text.partition("\n## Words\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("term", TERMS)
def test_the_glossary_explains_it(term):
    assert any(TERMS[term].search(x) for x in re.findall(r"\*\*([^*]+)\*\*", words()))


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_words_are_explained_before_they_are_used(path):
    assert unexplained(nbformat.read(path, as_version=4).cells) == []


@pytest.mark.parametrize(("sources", "missing"), [
    (["Dice_wi is 0.5"], ["Dice_wi"]),
    (["**Dice_wi** is a mean", "Dice_wi is 0.5"], []),
    (["[Dice_wi](00_pointseg.ipynb#Words) is 0.5"], []),
    (["Dice_wi is 0.5", "[Dice_wi](00_pointseg.ipynb#Words)"], ["Dice_wi"]),  # too late
    (["[coronal](00_pointseg.ipynb#Words)", "Dice_wi is 0.5"], ["Dice_wi"])])  # of another word
def test_what_is_missed_and_what_is_not(sources, missing):
    assert unexplained([nbformat.v4.new_markdown_cell(source) for source in sources]) == missing
