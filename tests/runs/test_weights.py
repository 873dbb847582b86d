"""Hostile, damaged and wrong files of weights: refused in one line that names the file, and nothing in them is run."""

import copy
import gzip
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_network

from pointseg.commands import main as cli
from pointseg.network import FCN8VGG16
from pointseg.predict import Model
from pointseg.runs.checkpoint import BEFORE, LAST, Checkpoints
from pointseg.runs.models import load_model, save_model
from pointseg.runs.weights import load_imagenet, read_torch
from pointseg.train import _check_fits
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
    save_model(path, Model(network(), "sagittal", 2.0, 192, "tiny", 0, {"train": ["a/1"]}))
    return path, read_torch(path)


def rewritten(path: Path, change: Callable[[bytes, str], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with each part changed."""
    out = path.with_suffix(".zip")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name), name))
    return out.read_bytes()


def tensors_changed(path: Path, content: dict, change: Callable[[dict], object]) -> None:
    """The same file with other parameters."""
    content = copy.deepcopy(content)
    content["weights"] = change(content["weights"])
    torch.save(content, path)


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
    "a bomb": lambda path, canary: _bomb(path),
    "numpy": lambda path, canary: _numpy(path),
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


def _bomb(path: Path) -> bytes:
    with zipfile.ZipFile(path.with_suffix(".tmp"), "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", bytes(50_000_000))
    return path.with_suffix(".tmp").read_bytes()


def _numpy(path: Path, array: np.ndarray | None = None) -> bytes:
    np.save(path.with_suffix(".npy"), np.zeros(3) if array is None else array)
    return path.with_suffix(".npy").read_bytes()


def _script(path: Path) -> bytes:
    with zipfile.ZipFile(path.with_suffix(".tmp"), "w") as script:  # as torch.jit writes them
        script.writestr("m/constants.pkl", b"\x80\x02).")
        script.writestr("m/data.pkl", b"\x80\x02}.")
        script.writestr("m/code/__torch__.py", b"import os")
        script.writestr("m/version", b"3\n")
    return path.with_suffix(".tmp").read_bytes()


@pytest.fixture
def hostile(tmp_path, request) -> tuple[Path, Path]:
    """The file that the test's parameter names, and the one that would be left behind."""
    path, content = good(tmp_path)
    bad, canary = tmp_path / "bad.pt", tmp_path / "canary"
    if request.param in FILES:
        bad.write_bytes(FILES[request.param](path, canary))
    else:
        tensors_changed(bad, content, PARAMETERS[request.param])
    return bad, canary


@pytest.mark.parametrize("hostile", [*FILES, *PARAMETERS], indirect=True)
def test_models(hostile, capsys):
    bad, canary = hostile
    with pytest.raises(ScanError) as refused:
        load_model(bad)
    assert str(bad) in str(refused.value) and "expected" in str(refused.value)
    assert cli.main(["evaluate", str(bad), "--data", "nowhere"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"pointseg evaluate: {bad}")
    assert not canary.exists()


@pytest.mark.parametrize("hostile", FILES, indirect=True)
def test_imagenet_files(hostile):
    bad, canary = hostile
    before = network().state_dict()
    own = network()
    with pytest.raises(ScanError) as refused:
        load_imagenet(own, bad)
    assert str(bad) in str(refused.value) and "expected" in str(refused.value)
    assert not canary.exists() and all(torch.equal(x, before[k]) for k, x in own.state_dict().items())


HARMLESS = {"one missing", "one more"}  # torchvision's file has a layer more, and may lack the fully connected ones


@pytest.mark.parametrize("kind", [k for k in PARAMETERS if k not in HARMLESS | {"one value for all"}])
def test_imagenet_parameters(tmp_path, kind):
    path = tmp_path / "bad.pth"
    torch.save(PARAMETERS[kind](network().state_dict()), path)
    with pytest.raises(ScanError, match=r"bad\.pth"):
        load_imagenet(network(), path)


@pytest.mark.parametrize("hostile", FILES, indirect=True)
def test_checkpoints(hostile, capsys):
    """Named, and passed over."""
    bad, canary = hostile
    folder = bad.parent / "training"
    folder.mkdir()
    for name in (LAST, BEFORE):
        (folder / name).write_bytes(bad.read_bytes())
    assert Checkpoints(folder).read() is None
    said = capsys.readouterr().out
    assert f"{folder / LAST}: is damaged" in said and f"{folder / BEFORE}: is damaged" in said
    assert not canary.exists()


def state_of(network: torch.nn.Module) -> dict:
    optimizer = torch.optim.Adam(network.parameters())
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "best_weights": None, "seconds": 1.0,
            "place": {"step": 3}, "values": {"total": torch.zeros(3)}, "generator": torch.get_rng_state(),
            "history": {"rounds": [], "best_step": 0, "best_validation": 0.0}}


@pytest.mark.parametrize(("key", "value"), [
    ("place", {"step": 3, "code": 1}), ("place", {"step": -1}), ("history", {"rounds": [{"step": 1}]}),
    ("values", {"total": torch.zeros(3, 3)}), ("generator", torch.zeros(3)), ("seconds", "long"), ("values", [1]),
    ("optimizer", {"state": {0: {"exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)}}}),
    *(("network", change) for change in PARAMETERS.values()), *(("best_weights", change)
                                                              for change in PARAMETERS.values())])
def test_a_state_that_does_not_fit(tmp_path, capsys, key, value):
    """Of another network, or not what a training writes: named, and the one before it used."""
    own = tiny_network()
    state = state_of(own)
    keeper = Checkpoints(tmp_path)
    keeper.write(state)
    bad = value(dict(own.state_dict())) if callable(value) else value
    if key in ("network", "best_weights") and value is PARAMETERS["one value for all"]:
        return  # right in every respect, if of little use
    keeper.write(state | {key: bad})
    found = keeper.read(lambda s: _check_fits(s, own))
    assert found["place"] == {"step": 3} and found["seconds"] == 1.0 and isinstance(found["values"], dict)
    assert f"{tmp_path / LAST}: is damaged" in capsys.readouterr().out


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


def test_a_good_model_is_read_as_it_was(tmp_path):
    path, content = good(tmp_path)
    model = load_model(path)
    assert all(torch.equal(x, content["weights"][k]) for k, x in model.network.state_dict().items())
    assert not model.network.training and all(p.requires_grad for p in model.network.parameters())
