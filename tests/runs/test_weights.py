"""Hostile, damaged and wrong files of weights: refused in one line that names the file, and nothing in them is run."""

import copy
import gzip
import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import schedule_of, tiny_network

from pointseg.commands import main as cli
from pointseg.network import FCN8VGG16
from pointseg.predict import Model, ThreeAxes
from pointseg.preprocess import Prepared
from pointseg.runs.checkpoint import BEFORE, LAST, Checkpoints, check_fits, state_of
from pointseg.runs.models import load_model, load_split, save_model
from pointseg.runs.weights import read_imagenet, read_torch
from pointseg.slices import AXES
from pointseg.train import Training
from pointseg.volume import ScanError


class RunsCode:
    """Unpickled, it leaves a file behind."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch '{self.canary}'",)


class Evaluates(RunsCode):
    def __reduce__(self):
        return eval, (f"open({str(self.canary)!r}, 'w')",)


def network() -> FCN8VGG16:
    torch.manual_seed(0)
    return FCN8VGG16(2, width=1 / 16, hidden=8)


def good(folder: Path) -> tuple[Path, dict]:
    """A model file, and what it holds."""
    path = folder / "good.pt"
    save_model(path, Model(network(), "sagittal", 2.0, 192), {"train": ["a/1"]})
    return path, read_torch(path)


def rewritten(path: Path, change: Callable[[bytes, str], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with each part changed."""
    out = path.with_suffix(".zip")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name), name))
    return out.read_bytes()


FIRST = "features.0.weight"
PARAMETERS = {  # what becomes of good parameters
    "other names": lambda w: {f"x.{k}": v for k, v in w.items()},
    "one missing": lambda w: {k: v for k, v in w.items() if k != FIRST},
    "one more": lambda w: w | {"more": torch.zeros(1)},
    "wrong shape": lambda w: w | {FIRST: torch.zeros(3, 3)},
    "same size, another shape": lambda w: w | {FIRST: w[FIRST].permute(3, 2, 1, 0).contiguous()},
    "integers": lambda w: w | {FIRST: w[FIRST].to(torch.int32)},
    "complex": lambda w: w | {FIRST: w[FIRST].to(torch.complex64)},
    "not a number": lambda w: w | {FIRST: w[FIRST] * float("nan")},
    "infinite": lambda w: w | {FIRST: torch.full_like(w[FIRST], float("inf"))},
    "sparse": lambda w: w | {FIRST: w[FIRST].to_sparse()},
    "a word": lambda w: w | {FIRST: "weight"},
    "a list": lambda w: list(w.values()),
    "one value for all": lambda w: {k: torch.zeros(()).expand(v.shape) for k, v in w.items()},
}
FILES = {  # whole files; the argument is a good one's path, and one to leave behind where code was run
    "empty": lambda path, canary: b"",
    "text": lambda path, canary: b"these are no weights\n" * 50,
    "half": lambda path, canary: path.read_bytes()[: path.stat().st_size // 2],
    "without its end": lambda path, canary: path.read_bytes()[:-30],
    "gzipped": lambda path, canary: gzip.compress(path.read_bytes()),
    "pickle that calls": lambda path, canary: pickle.dumps(RunsCode(canary)),
    "pickle that evaluates": lambda path, canary: pickle.dumps({"format": 1, "weights": Evaluates(canary)}),
    "archive that calls": lambda path, canary: rewritten(
        path, lambda data, name: pickle.dumps(RunsCode(canary)) if name.endswith("data.pkl") else data),
    "code beside weights": lambda path, canary: _saved(path, {"weights": {FIRST: RunsCode(canary)}}),
    "old format that calls": lambda path, canary: _saved(path, [RunsCode(canary)],
                                                         _use_new_zipfile_serialization=False),
    "a whole network": lambda path, canary: _saved(path, network()),
    "a changed number": lambda path, canary: _flipped(path),
    "compressed": lambda path, canary: rewritten(path, lambda data, name: data, zipfile.ZIP_DEFLATED),
    "pickled numpy": lambda path, canary: _numpy(path, np.array([RunsCode(canary)], object)),
    "script": lambda path, canary: _script(path),
}


def _saved(path: Path, content: object, **options) -> bytes:
    torch.save(content, path.with_suffix(".tmp"), **options)
    return path.with_suffix(".tmp").read_bytes()


def _flipped(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as whole:
        largest = max(whole.infolist(), key=lambda part: part.file_size)
    content[largest.header_offset + 500] ^= 16
    return bytes(content)


def _numpy(path: Path, array: np.ndarray) -> bytes:
    np.save(path.with_suffix(".npy"), array)
    return path.with_suffix(".npy").read_bytes()


def _script(path: Path) -> bytes:
    with zipfile.ZipFile(path.with_suffix(".tmp"), "w") as script:  # as torch.jit writes them
        script.writestr("m/constants.pkl", b"\x80\x02).")
        script.writestr("m/data.pkl", b"\x80\x02}.")
        script.writestr("m/code/__torch__.py", b"import os")
        script.writestr("m/version", b"3\n")
    return path.with_suffix(".tmp").read_bytes()


@pytest.mark.parametrize("kind", FILES)
def test_hostile_files(tmp_path, capsys, kind):
    """As a model, as first weights: refused, in one line.  As checkpoints: named and passed over."""
    bad, canary = tmp_path / "bad.pt", tmp_path / "canary"
    bad.write_bytes(FILES[kind](good(tmp_path)[0], canary))
    for read in (load_model, read_imagenet):
        with pytest.raises(ScanError, match=r"bad\.pt.*expected"):
            read(bad)
    assert cli.main(["evaluate", str(bad), "--data", "nowhere"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"pointseg evaluate: {bad}")
    for name in (LAST, BEFORE):
        (tmp_path / name).write_bytes(bad.read_bytes())
    assert Checkpoints("training", tmp_path).read() is None
    said = capsys.readouterr().out
    assert f"{tmp_path / LAST}: is damaged" in said and f"{tmp_path / BEFORE}: is damaged" in said
    assert not canary.exists()


def test_what_is_no_model(tmp_path, capsys):
    """torch's advice is to load it all the same, code and all; a folder is there."""
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(gzip.compress(bytes(1000)))
    for path, said in ((scan, "is not a model of this package or is damaged (it is no file of weights alone)"),
                       (tmp_path, "found a folder, expected a model"),
                       (tmp_path / "gone.pt", "no such file, expected")):
        for command in (["segment", str(scan), "-o", str(tmp_path / "m.nii"), "--model"], ["evaluate", "--data", "x"]):
            assert cli.main([*command, str(path)]) == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert f"{path}: {said}" in line and "weights_only" not in line and len(line) < 400
    (tmp_path / "old.pth").write_bytes(pickle.dumps(RunsCode(tmp_path)))
    for path in (scan, tmp_path / "old.pth"):
        with pytest.raises(ScanError, match="no file of weights alone"):
            read_imagenet(path)


@pytest.mark.parametrize("kind", PARAMETERS)
def test_wrong_parameters_of_a_model(tmp_path, kind):
    content = good(tmp_path)[1]
    torch.save(content | {"weights": PARAMETERS[kind](copy.deepcopy(content["weights"]))}, tmp_path / "bad.pt")
    with pytest.raises(ScanError, match=r"bad\.pt.*expected"):
        load_model(tmp_path / "bad.pt")


@pytest.mark.parametrize(("change", "said"), [
    ({"grid_mm": 0}, "its grid_mm is 0, not 0.1 to 20"), ({"grid_mm": -1.0}, "grid_mm is -1"),
    ({"grid_mm": float("nan")}, "grid_mm is nan"), ({"grid_mm": "2"}, "grid_mm is 2"),
    ({"grid_mm": 1e-3}, "grid_mm is 0.001"), ({"input_px": 0}, "input_px is 0, not 16 to 4096"),
    ({"input_px": -32}, "input_px is -32"), ({"input_px": None}, "input_px is None"),
    ({"modalities": "CT"}, "learned from C, T, not CT and MR"), ({"format": 9}, "found model format 9, expected 1")])
def test_a_model_of_the_right_parameters_with_nonsense_beside_them(tmp_path, change, said):
    torch.save(good(tmp_path)[1] | change, tmp_path / "bad.pt")
    with pytest.raises(ScanError, match=rf"bad\.pt: .*{said}"):
        load_model(tmp_path / "bad.pt")


@pytest.mark.parametrize("content", [{"features.0.weight": torch.zeros(3)}, [1, 2], torch.zeros(3), {"format": 2}])
def test_what_holds_something_else(tmp_path, content):
    """A network of another package, our own checkpoint: no KeyError as a reason."""
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(ScanError, match=r"bad\.pt: is not a model .* or is damaged .it holds something else"):
        load_model(tmp_path / "bad.pt")
    (tmp_path / "bad.pt").write_bytes(b"")
    with pytest.raises(ScanError, match=r"bad\.pt: .*it is empty"):
        load_model(tmp_path / "bad.pt")


# --- ImageNet's weights ---

HARMLESS = {"one missing", "one more", "one value for all"}  # torchvision's file has a layer more, and may lack others


@pytest.mark.parametrize("kind", [k for k in PARAMETERS if k not in HARMLESS])
def test_wrong_parameters_of_imagenet(tmp_path, kind):
    path, right = tmp_path / "bad.pth", {FIRST: torch.rand(64, 3, 3, 3), "features.0.bias": torch.rand(64)}
    torch.save(PARAMETERS[kind](right), path)
    with pytest.raises(ScanError, match=r"bad\.pth.*expected torchvision's vgg16 parameters"):
        read_imagenet(path)


@pytest.mark.parametrize("damage", [False, True])
def test_a_download_is_checked_by_its_hash(tmp_path, monkeypatch, damage):
    """torch.hub's own download code, from a file in the server's place.  A fully connected layer's matrix and halves
    come in the network's shape and type."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    served, filters = tmp_path / "vgg16.pth", torch.rand(64, 3, 3, 3)
    torch.save({FIRST: filters, "classifier.3.weight": torch.eye(4096).half()}, served)
    digest = hashlib.sha256(served.read_bytes()).hexdigest()
    named = served.rename(tmp_path / f"vgg16-{'0' * 8 if damage else digest[:8]}.pth")
    monkeypatch.setattr("pointseg.runs.weights.IMAGENET_URL", named.as_uri())
    if damage:
        with pytest.raises(ScanError, match="invalid hash"):
            read_imagenet()
        return
    found = read_imagenet()
    assert torch.equal(found[FIRST], filters)
    assert torch.equal(found["classifier.3.weight"], torch.eye(4096).reshape(4096, 4096, 1, 1))


def test_without_a_file_or_the_internet_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("pointseg.runs.weights.IMAGENET_URL", (tmp_path / "missing-00000000.pth").as_uri())
    for path in (None, tmp_path / "none.pth"):
        with pytest.raises(ScanError, match=r"(missing|none).*--imagenet FILE.*--imagenet none"):
            read_imagenet(path)


# --- checkpoints ---

@pytest.mark.parametrize(("key", "value"), [
    ("step", -1), ("step", 4), ("history", {"rounds": [{"step": 1}]}), ("seconds", "long"), ("values", [1]),
    ("values", {"total": torch.zeros(3, 3)}), ("generator", torch.zeros(3)),
    ("optimizer", {"state": {0: {"exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)}}}),
    *(("network", change) for change in PARAMETERS.values()), *(("best_weights", change)
                                                              for change in PARAMETERS.values())])
def test_a_state_that_does_not_fit(tmp_path, capsys, key, value):
    """Of another network, or not what a training writes: named, and the one before it used."""
    network = tiny_network()
    training = Training(network, torch.optim.Adam(network.parameters()), schedule_of(round_steps=9), step=3,
                        values=[{"total": torch.zeros(())}] * 3)
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    training.optimizer.step()
    if value is PARAMETERS["one value for all"]:
        return  # right in every respect, if of little use
    keeper, state = Checkpoints("training", tmp_path), state_of(training)
    keeper.write(state)
    keeper.write(state | {key: value(dict(network.state_dict())) if callable(value) else value})
    found = keeper.read(lambda s: check_fits(s, training))
    assert found["step"] == 3 and found["best_weights"] is None and isinstance(found["values"], dict)
    assert f"{tmp_path / LAST}: is damaged" in capsys.readouterr().out


# --- models ---

def test_a_giant_is_not_built(tmp_path):
    """A file of a few kB that says its network has a width of a million: refused before memory is asked for."""
    path, content = good(tmp_path)
    content["architecture"] = content["architecture"] | {"hidden": 10**7}
    torch.save(content, path)
    with pytest.raises(ScanError, match=r"good\.pt.*classifier"):
        load_model(path)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in FCN8VGG16(**content["architecture"]).state_dict().items()}
    content["weights"] = {k: torch.zeros(()).expand(shape) for k, shape in shapes.items()}
    torch.save(content, path)
    with pytest.raises(ScanError, match="larger than the file"):
        load_model(path)


def three_axes(path: Path) -> ThreeAxes:
    """Three networks of different weights, saved."""
    models = []
    for seed, (axis, k) in enumerate(zip(AXES, (2, 6, 6))):
        torch.manual_seed(seed)
        models.append(Model(FCN8VGG16(k, width=1 / 16, hidden=8), axis, 2.0, 32, ("CT",)))
    save_model(path, three := ThreeAxes(*models, 0.35), {"test": ["a/1"]})
    return three


def test_three_networks_come_back_from_one_file(tmp_path):
    """Each on its axis, with the threshold, and they answer alike."""
    three, again = three_axes(tmp_path / "three.pt"), load_model(tmp_path / "three.pt")
    assert isinstance(again, ThreeAxes) and again.threshold == 0.35
    assert load_split(tmp_path / "three.pt") == {"test": ["a/1"]}
    for axis in AXES:
        one, other = getattr(three, axis), getattr(again, axis)
        assert (other.axis, other.grid_mm, other.input_px, other.modalities) == (axis, 2.0, 32, ("CT",))
        assert not other.network.training
        assert all(map(torch.equal, one.network.state_dict().values(), other.network.state_dict().values()))
    scan = Prepared(np.arange(6000).astype(np.uint8).reshape(10, 20, 30), None, (2.0,) * 3, "scan")
    assert np.array_equal(again.probabilities(scan), three.probabilities(scan))


@pytest.mark.parametrize("known", [{"modalities": ["MR"]}, {}], ids=["with modalities", "without"])
def test_a_file_of_before_still_loads(tmp_path, known):
    """What this package wrote when a file held one network, and before it knew modalities."""
    network, path = tiny_network(num_classes=6), tmp_path / "old.pt"
    torch.save({"format": 1, "architecture": network.config, "axis": "coronal", "grid_mm": 2.0, "input_px": 192,
                "profile": "classroom", "seed": 0, "split": {"test": ["a/1"]}, "weights": network.state_dict()} | known,
               path)
    model = load_model(path)
    assert (model.axis, model.grid_mm, model.input_px) == ("coronal", 2.0, 192)
    assert model.modalities == tuple(known.get("modalities", ())) and load_split(path) == {"test": ["a/1"]}
    assert all(torch.equal(x, model.network.state_dict()[k]) for k, x in network.state_dict().items())


@pytest.mark.parametrize(("change", "said"), [
    (lambda c: c | {"models": c["models"][:2]}, "found networks of transverse, coronal, expected one of each of"),
    (lambda c: c | {"models": c["models"][::-1]}, "found networks of sagittal, coronal, transverse, expected"),
    (lambda c: c | {"models": [c["models"][2] | {"axis": "transverse"}, *c["models"][1:]]}, "expected one of each of"),
    (lambda c: c | {"models": [c["models"][0], c["models"][0] | {"axis": "coronal"}, c["models"][2]]}, "one of each"),
    (lambda c: c | {"axis": "four"}, "found axis 'four', expected one of transverse, coronal, sagittal, three"),
    (lambda c: {k: v for k, v in c.items() if k != "models"}, "is damaged"),
    (lambda c: {k: v for k, v in c.items() if k != "threshold"}, "is damaged"),
    (lambda c: c | {"models": [c["models"][0] | {"grid_mm": 1.0}, *c["models"][1:]]}, "on one grid"),
    *((lambda c, t=t: c | {"threshold": t}, f"found threshold {t}") for t in (0.0, 1.0, -1, float("nan"))),
    *((lambda c, t=t: c | {"threshold": t}, "is damaged") for t in ("0.5", None)),
    (lambda c: c | {"models": [*c["models"][:2], c["models"][2] | {"weights": {}}]}, "is damaged"),
    (lambda c: c | {"models": "three"}, "is damaged")])
def test_damaged_and_mixed_up_threes(tmp_path, change, said):
    path = tmp_path / "three.pt"
    three_axes(path)
    torch.save(change(read_torch(path)), path)
    with pytest.raises(ScanError, match=r"three\.pt.*expected") as refused:
        load_model(path)
    assert said in str(refused.value) and "\n" not in str(refused.value)
