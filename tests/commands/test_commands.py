"""The whole procedure in under a minute, and what its commands promise about each other."""

import dataclasses
import itertools
import json
import re
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny import MODELS, QUICK, TINY, weights_in

from pointseg import procedure, profiles
from pointseg.commands import main as cli
from pointseg.datasets.manifest import read_manifest
from pointseg.datasets.phantom import write_phantoms
from pointseg.datasets.split import prepare_split, split_cases
from pointseg.estimate import known_truth
from pointseg.kernels import confusion_matrix
from pointseg.losses import point_term
from pointseg.points import draw_labels, draw_points
from pointseg.preprocess import Scans
from pointseg.report.scores import Evaluation, summary, text_of
from pointseg.scans.files import write_image
from pointseg.scans.volumes import to_own_geometry
from pointseg.slices import AXES
from pointseg.volume import CLASSES, UNLABELLED, ScanError


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A finished `table1` on coarse synthetic scans, with the tiny profile in the classroom's place."""
    folder = tmp_path_factory.mktemp("run")
    write_phantoms(folder / "scans", 7, seed=1, spacing_mm=3.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(profiles.PROFILES, "classroom", TINY)
        assert cli.main(["table1", "--data", str(folder / "scans"), "--out", str(folder)]) == 0
    return folder


def test_table1_writes_all_it_promises(run_folder):
    table = json.loads((run_folder / "table1.json").read_text())
    for name in (*MODELS, "slices", "whole_scans", "pseudo_mask", "pseudo_mask_train", "watershed"):
        assert 0 <= table[name] <= 1
    assert table["ratio"] == pytest.approx(table["result"] / table["reference"])
    sagittal = {arm: table[f"{arm}_sagittal"] for arm in ("result", "reference")}
    assert table["thesis_way"] == sagittal | {"ratio": pytest.approx(sagittal["result"] / sagittal["reference"])}
    costs = table["labelling_costs"]
    assert list(costs) == ["result", "reference", "slices", "whole_scans"] and costs["reference"] == 1
    assert 0.12 < costs["result"] == table["labelling_cost"] < 0.16 and abs(costs["slices"] - costs["result"]) < 0.05
    assert table["labels"] == "points" and table["label_seconds"]["mask"] == 239.7
    assert table["profile"] == "tiny" and table["seed"] == 0 and table["seconds"] > 0 and table["peak_rss_mb"] > 0
    cases = [case for part in table["split"].values() for case in part]
    assert sorted(cases) == sorted(c.name for c in read_manifest(run_folder / "scans"))
    for arm, threshold in table["thresholds"].items():
        if arm in ("result", "reference"):  # the three networks, transverse first, and how sure they must be
            of_axes = [weights_in(run_folder / f"{arm}_{axis}.pt")[:-1] for axis in AXES]
            expected = [*itertools.chain(*of_axes), torch.tensor(threshold)]
            assert all(map(torch.equal, weights_in(run_folder / f"{arm}.pt"), expected))
    for file in (*(f"{m}.pt" for m in MODELS), "stages.png", "curves.png", "per_class.png", "confusion.png"):
        assert (run_folder / file).stat().st_size > 1000
    assert not [f for f in run_folder.iterdir() if f.name.startswith(".")]


@pytest.mark.parametrize("name", MODELS)
def test_evaluate_gives_the_number_of_table1(run_folder, tmp_path, name):
    arguments = ["evaluate", str(run_folder / f"{name}.pt"), "--data", str(run_folder / "scans"), "--split", "test"]
    assert cli.main([*arguments, "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    table = json.loads((run_folder / "table1.json").read_text())
    assert {"dice_wi", "dice_wi_prepared", "per_class", "per_source", "per_case", "confusion", "cases"} <= set(scores)
    assert scores["dice_wi"] == table[name]
    assert scores["dice_wi_prepared"] == table["prepared"][name]
    assert scores["per_class"] == table["per_class"][name]
    assert scores["cases"] == table["split"]["test"] == list(scores["per_case"])
    truth = np.array(scores["confusion"]).sum(1)
    assert truth.tolist() == [c["voxels"] for c in scores["per_class"].values()]


@pytest.mark.parametrize(("arguments", "said"), [
    (["table1", "--data", "nowhere"], "nowhere"),
    (["table1", "--data", "DATA", "--terms", "CE"], "expected P"),
    (["table1", "--data", "DATA", "--source", "verse"], "synthetic"),
    (["table1", "--source", "verse"], "--data"),
    (["evaluate", "missing.pt", "--data", "DATA"], "missing.pt"),
    (["evaluate", "DATA/manifest.csv", "--data", "DATA"], "manifest.csv"),
    (["segment", "missing.nii.gz", "--model", "MODEL", "-o", "OUT/mask.nii.gz"], "missing.nii.gz"),
    (["table1", "--data", "DATA", "--imagenet", "none"], "--profile thesis"),
    (["table1", "--data", "DATA", "--profile", "thesis", "--imagenet", "no.pth"], "no.pth"),
    (["table1", "--data", "DATA", "--out", "DATA/manifest.csv/x"], "cannot be written to"),
    (["segment", "DATA/synthetic-mr/000_img.nii.gz", "--model", "TWO", "-o", "OUT/mask.nii.gz"], "transverse.pt"),
])
def test_bad_input_is_one_line_that_says_what(run_folder, tmp_path, capsys, arguments, said):
    names = {"DATA": str(run_folder / "scans"), "MODEL": str(run_folder / "result.pt"), "OUT": str(tmp_path),
             "TWO": str(run_folder / "transverse.pt")}
    for key, value in names.items():
        arguments = [a.replace(key, value) for a in arguments]
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"pointseg {arguments[0]}:") and said in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("error", "where"), [
    (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ..."), "GPU"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory ..."), "machine"),
    (MemoryError(), "machine")])
def test_no_room_in_memory_is_one_line_that_says_what_to_do(error, where, run_folder, tmp_path, capsys, monkeypatch):
    def no_room(*_):
        raise error

    monkeypatch.setattr("pointseg.train.training_step", no_room)
    assert cli.main(["train", "--data", str(run_folder / "scans"), "-o", str(tmp_path / "m.pt")]) == 1
    [said] = [line for line in capsys.readouterr().err.split("\n") if "pointseg train: " in line]
    assert said.startswith("pointseg train: ")  # in a line of its own, below the training's bar
    assert f"the {where} is out of memory" in said and "--batch" in said


def test_evaluation_by_hand():
    """Two cases of one source: 1 of 4 background and 1 of 2 L1 voxels are wrong; L2..L5 are nowhere."""
    own = np.zeros((2, 6, 6), int)
    own[0, 0, :2], own[1, 0, 0], own[1, 1, :2] = (1, 1), 2, (1, 1)
    cases = {f"a/{i}": {"own": m.tolist(), "prepared": (2 * m).tolist(), "found_mm": {"L1": 4.0, "L2": None}}
             for i, m in enumerate(own)}
    cases["b/0"] = {"own": [], "prepared": [], "found_mm": {"L3": 8.0}}  # centroids alone
    found = summary(Evaluation(CLASSES, cases))
    assert found["confusion"][:2] == [[3, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]] and found["cases"] == list(cases)
    assert found["dice_wi"] == found["dice_wi_prepared"] == pytest.approx((0.75 / 4 + 0.5 / 2) / (1 / 4 + 1 / 2))
    assert found["per_class"]["L1"] == {"precision": 0.5, "recall": 0.5, "dice": 0.5, "iou": 1 / 3, "voxels": 2}
    assert found["per_class"]["L2"]["dice"] is None and found["absent_classes"] == ["L2", "L3", "L4", "L5"]
    assert found["per_source"] == {"a": found["dice_wi"]} and found["per_case"]["a/0"] == pytest.approx(2 / 3)
    assert found["identified"] == 3 / 5
    said = text_of(json.loads(json.dumps(found)))
    for words in ("Dice_wi 0.583 in the scans' own geometry, 0.583 on the prepared grid, 2 scans", "L1 ", "0.333",
                  "no scan shows it: L2, L3, L4, L5", "3 of 5 vertebrae identified (60%), 5.3 mm off on average"):
        assert words in said


ONCE = dataclasses.replace(TINY, weak=dataclasses.replace(QUICK, divisors=(1,), rounds=(1,), round_steps=2))


@pytest.mark.parametrize("letters", ["P", "PC", "PCES"])
def test_every_ablation_of_the_terms_trains_and_so_does_a_term_of_ones_own(run_folder, letters):
    scans, seen = prepare_split(split_cases(read_manifest(run_folder / "scans")), TINY), []

    def own_term(step):
        seen.append(step)
        return point_term(step)

    terms = [*procedure.terms_named(letters, TINY), (0.1, own_term)]
    _, history = procedure.train_weak(draw_labels(scans, "points", 0), "sagittal", ONCE, 0, terms)
    named = {"P": {"point_term"}, "C": {"moved_point_term", "consistency_term"}, "E": {"extent_term"},
             "S": {"separation_term"}}
    losses = history.rounds[0].losses
    assert set(losses) == {"own_term", "total"}.union(*(named[letter] for letter in letters))
    assert np.isfinite(list(losses.values())).all()
    assert ((seen[0].labels > 0) & (seen[0].labels < 6)).any() and not seen[0].extent[:, 1:].all()


def test_terms_are_named_by_letters():
    named = {term.__name__: weight for weight, term in procedure.terms_named("PCES", profiles.CLASSROOM)}
    assert named == {"point_term": 1.0, "moved_point_term": 1.0, "consistency_term": 0.3, "separation_term": 0.1,
                     "extent_term": 1.0}
    for wrong in ("PX", "CE", "PP", ""):
        with pytest.raises(ScanError, match="terms: found"):
            procedure.terms_named(wrong, profiles.CLASSROOM)


# --- masks that do not know everything ---

@pytest.fixture(scope="module")
def imported(run_folder, tmp_path_factory):
    """The synthetic scans as two public datasets would have them: with centroids alone, and without levels."""
    folder = tmp_path_factory.mktemp("imported")
    for k, case in enumerate(read_manifest(run_folder / "scans")):
        volume = case.read()
        image, mask = (to_own_geometry(x, volume.geometry) for x in (volume.image.astype(np.int16), volume.mask))
        scan = folder / "uw" / "spine-1" / f"patient{k}" / f"{k}" / f"{k}.nii.gz"
        write_image(scan, image)
        stored = sitk.GetArrayFromImage(mask)
        lines = ["id\tname\tx\ty\tz"]
        for c in np.unique(stored[stored > 0]):
            mm = np.argwhere(stored == c).mean(0)[::-1] * image.GetSpacing()
            lines.append(f"{190 + 10 * c}\tL{c}_center\t" + "\t".join(f"{x:.2f}" for x in mm))
        scan.with_name(f"{k}.lml").write_text("\n".join(lines))
        write_image(folder / "plos" / f"Img_{k:02d}.nii", image)
        write_image(folder / "plos" / f"Img_{k:02d}_Labels.nii", mask > 0)
    shutil.copytree(run_folder / "scans", folder / "data")
    for name, raw in (("uwspine", "uw"), ("plos", "plos")):
        assert cli.main(["import", name, str(folder / raw), str(folder / "data")]) == 0
    return folder / "data"


def test_centroids_train_models_and_score_identification(run_folder, imported, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(profiles.PROFILES, "classroom", TINY)
    data = ["--data", str(imported), "--source", "uwspine"]
    assert cli.main(["table1", *data, "--out", str(tmp_path)]) == 1
    assert "found neither a mask among the test scans" in capsys.readouterr().err
    model = str(tmp_path / "m.pt")
    assert cli.main(["train", "--axis", "coronal", *data, "-o", model]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", model, *data, "--json", str(tmp_path / "scores.json")]) == 0
    assert re.search(r"(?m)^\d+ of 35 vertebrae identified.*7 scans with centroids alone", capsys.readouterr().out)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["dice_wi"] is None and len(scores["identified_mm"]) == len(scores["cases"]) == 7
    assert cli.main(["evaluate", str(run_folder / "transverse.pt"), *data]) == 1
    assert "centroids alone" in capsys.readouterr().err


def test_masks_without_levels_train_and_score_two_classes(run_folder, imported, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(profiles.PROFILES, "classroom", TINY)
    data, model = ["--data", str(imported), "--source", "plos"], str(tmp_path / "m.pt")
    assert cli.main(["train", "--axis", "transverse", *data, "-o", model]) == 0
    assert cli.main(["evaluate", model, *data, "--split", "test", "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert 0 <= scores["dice_wi"] <= 1 and scores["identified"] is None
    for command in (["evaluate", str(run_folder / "result.pt")], ["train", "--axis", "sagittal"]):
        assert cli.main([*command, *data]) == 1
        assert "tells L1 from L2" in capsys.readouterr().err


def test_sources_with_and_without_levels_side_by_side(run_folder, imported, tmp_path, capsys):
    assert cli.main(["evaluate", str(run_folder / "reference.pt"), "--data", str(imported), "--json",
                     str(tmp_path / "scores.json")]) == 0
    assert "7 of 21 cases (plos) do not tell L1 from L2" in capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert list(scores["per_source"]) == ["synthetic-mr"] and len(scores["identified_mm"]) == 14


def test_unlabelled_voxels_neither_teach_nor_count(run_folder):
    """Half of each scan is hidden: no point lies there, no loss is taken there, no score counts it."""
    split = split_cases(read_manifest(run_folder / "scans"))
    scans = []
    for scan in prepare_split(split, TINY).train:
        mask = scan.mask.copy()
        mask[: len(mask) // 2] = UNLABELLED
        scans.append(dataclasses.replace(scan, mask=mask))
    for labels in [p.mask for p in draw_points(scans, 0)]:
        assert (labels[: len(labels) // 2] == UNLABELLED).all() and (labels != UNLABELLED).any()
    two = known_truth(scans[0].mask, 2)
    assert set(np.unique(two)) == {0, 1, UNLABELLED} and (two[: len(two) // 2] == UNLABELLED).all()
    everywhere = np.ones_like(two)
    assert confusion_matrix(two, everywhere, 2).sum() == (two != UNLABELLED).sum()
    model, _ = procedure.train_full(Scans(scans, scans[:1]), "sagittal", TINY, 0)
    assert model.modalities == ("MR",)
