"""Which scans the notebooks read, and which models they take from disk."""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbclient.exceptions import CellExecutionError

from pointseg import lessons
from pointseg.datasets.manifest import Case, write_manifest
from pointseg.datasets.phantom import write_phantoms
from pointseg.losses import point_term
from pointseg.network import FCN8VGG16
from pointseg.predict import Model
from pointseg.train import History, Round
from pointseg.volume import ScanError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "notebooks"))
import execute  # noqa: E402


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Three sources of 2, 3 and 1 synthetic scans of 6 mm; one scan of the largest has a flaw."""
    folder = tmp_path_factory.mktemp("data")
    write_phantoms(folder, 1, spacing_mm=6.0)
    image, mask = (folder / f"synthetic-mr/000_{part}.nii.gz" for part in ("img", "vert"))
    cases = [Case(source, str(i), str(i), "MR", image, mask, flaw="copy" if (source, i) == ("b", 2) else "")
             for source, count in (("a", 2), ("b", 4), ("c", 1)) for i in range(count)]
    write_manifest(folder, cases)
    return folder


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(lessons, "OUT", tmp_path / "lessons")
    monkeypatch.delenv("POINTSEG_DATA", raising=False)


def test_a_folders_largest_source_without_flaws(few, monkeypatch):
    monkeypatch.setenv("POINTSEG_DATA", str(few))
    assert [c.name for c in lessons.lesson_cases()] == ["b/0", "b/1", "b/3"]
    assert [c.name for c in lessons.other_cases(count=1)] == ["a/0", "c/0"]
    assert lessons.lesson_volume().name == "b/0"
    monkeypatch.setattr(lessons, "COUNT", 2)  # no more than the time allows
    assert [c.name for c in lessons.lesson_cases()] == ["b/0", "b/1"]


def test_a_relative_folder_means_the_same_in_notebooks(few, tmp_path, monkeypatch):
    monkeypatch.setattr(lessons, "ROOT", few.parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POINTSEG_DATA", few.name)
    assert lessons.data_folder() == few
    monkeypatch.setenv("POINTSEG_DATA", "nowhere")
    with pytest.raises(ScanError, match="POINTSEG_DATA=nowhere: no such folder"):
        lessons.lesson_cases()


def test_a_folder_of_flawed_cases_is_named(few, tmp_path, monkeypatch):
    folder = shutil.copytree(few, tmp_path / "flawed")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(line + "copy" if line.endswith(",") else line
                                  for line in manifest.read_text().splitlines()) + "\n")
    monkeypatch.setenv("POINTSEG_DATA", str(folder))
    with pytest.raises(ScanError, match="found no case without a flaw"):
        lessons.lesson_cases()


def test_synthetic_scans_are_made_once_and_other_ones_are_of_other_patients(monkeypatch):
    monkeypatch.setattr(lessons, "COUNT", 2)
    monkeypatch.setattr(lessons, "SPACING_MM", 6.0)
    first = lessons.lesson_cases()
    made = first[0].image.stat().st_mtime_ns
    assert [c.name for c in first] == ["synthetic-water/000", "synthetic-water/001"]
    assert lessons.lesson_cases() == first and first[0].image.stat().st_mtime_ns == made
    others = lessons.other_cases(count=1)
    assert [c.source for c in others] == ["synthetic-t1", "synthetic-t2"]
    assert all(not np.array_equal(c.read().mask, first[0].read().mask) for c in others)


def small_model(seed):
    torch.manual_seed(seed)
    return (Model(FCN8VGG16(2, 1 / 16, True, 2, 8), "sagittal", 3.0, 64),
            History([Round(100, 1e-3, {"total": 0.5}, 0.7, 1.0)], 100, 0.7))


def test_a_model_is_trained_once_for_the_same_settings():
    trained = []

    def train(watch):
        assert watch.folder.parent == lessons.OUT  # where a training that is broken off goes on
        watch.folder.mkdir(parents=True)
        trained.append(1)
        return small_model(len(trained))

    labels = np.zeros((2, 2, 2), np.uint8)
    model, history = lessons._remember("sagittal", train, labels)
    again, history_again = lessons._remember("sagittal", train, labels.copy())
    assert len(trained) == 1 and history_again == history
    assert all(torch.equal(x, y) for x, y in zip(model.network.parameters(), again.network.parameters(), strict=True))
    os.utime(lessons.training_of("sagittal"), (0, 0))
    lessons._remember("sagittal", train, labels + 1)  # other labels
    assert len(trained) == 2 and lessons.training_of("sagittal").stat().st_mtime > 0


def test_nothing_old_is_read_after_a_change(monkeypatch):
    before = lessons._fingerprint("a")
    assert lessons._fingerprint("a") == before != lessons._fingerprint("b")
    monkeypatch.setattr(lessons, "LESSON", replace(lessons.LESSON, grid_mm=2.5))
    assert lessons._fingerprint("a") != before
    monkeypatch.undo()
    monkeypatch.setattr(lessons, "identity_of", lambda *modules: {"code": "other"})
    assert lessons._fingerprint("a") != before


def test_an_own_term_is_trained_anew_each_time(monkeypatch):
    calls = []
    monkeypatch.setattr(lessons, "train_weak", lambda *_, watch=None: calls.append(1) or small_model(0))
    for terms in ([(1.0, point_term)], [(1.0, point_term), (0.1, lambda step: step.logits.sum())]):
        for _ in range(2):
            lessons.weak_model(lessons.Scans([], []), "sagittal", terms)
    assert len(calls) == 3


def test_execute_keeps_pictures_and_drops_widgets(tmp_path, monkeypatch):
    pytest.importorskip("ipywidgets")
    path = tmp_path / "a.ipynb"
    source = ("import ipywidgets\nfrom pointseg.report.plot import Figure\n"
              "display(ipywidgets.IntSlider(), Figure((1, 1)))")
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["kept"], "execution": {"started": "today"}})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    monkeypatch.setattr(execute, "HERE", tmp_path)
    execute.execute(path)
    [cell] = nbformat.read(path, as_version=4).cells
    assert [list(o.data)[-1] for o in cell.outputs] == ["text/plain"] and "image/png" in cell.outputs[0].data
    assert cell.metadata == {"tags": ["kept"]} and cell.execution_count == 1


@pytest.mark.parametrize("source, found", [
    ("1 / 0", "ZeroDivisionError"), ("import warnings\nwarnings.warn('look')", "not saved, since it warns.*look")])
def test_execute_leaves_a_notebook_that_fails_or_warns_as_it_was(source, found, tmp_path):
    path = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    before = path.read_bytes()
    with pytest.raises((CellExecutionError, RuntimeError), match=f"(?s){found}"):
        execute.execute(path)
    assert path.read_bytes() == before
