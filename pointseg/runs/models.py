"""A trained model as one file: architecture, weights, what is needed to apply it, and the split it was trained on.

A file holds one network, or three of one task, one an axis.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from pointseg.datasets.manifest import Case
from pointseg.network import FCN8VGG16, device
from pointseg.predict import Model, ThreeAxes
from pointseg.runs.weights import check_tensors, read_torch, save_torch
from pointseg.scans.files import Damaged, first_line, found_at, some_of, whole_file
from pointseg.slices import AXES
from pointseg.volume import CLASSES, ScanError

FORMAT = 1
THREE = "three"  # in the place of an axis
SANE = {"grid_mm": (0.1, 20), "input_px": (16, 4096)}


def save_model(path: str | Path, model: Model | ThreeAxes, split: Mapping[str, list[str]] | None = None,
               profile: str = "", seed: int = 0) -> None:
    """Write a model, and case names of its split by part; the file appears whole or not at all."""
    about = {"format": FORMAT, "profile": profile, "seed": seed, "split": dict(split or {})}
    if isinstance(model, ThreeAxes):
        about |= {"axis": THREE, "threshold": float(model.threshold),
                  "models": [_content(of_axis) for of_axis in (model.transverse, model.coronal, model.sagittal)]}
    else:
        about |= _content(model)
    with whole_file(path) as part:
        save_torch(about, part)


def _content(model: Model) -> dict:
    return {"architecture": model.network.config, "axis": model.axis, "grid_mm": model.grid_mm,
            "input_px": model.input_px, "modalities": list(model.modalities),
            "weights": {k: v.cpu().contiguous() for k, v in model.network.state_dict().items()}}


def load_model(path: str | Path) -> Model | ThreeAxes:
    """Read a model onto the GPU where there is one.  Only data is read: a file that would run code is refused."""
    return _read(Path(path))[0]


def load_split(path: str | Path) -> dict[str, list[str]]:
    """The case names of the split that a model in a file was trained on, by part."""
    return _read(Path(path))[1]


def cases_of_split(cases: Sequence[Case], split: Mapping[str, list[str]], part: str) -> list[Case]:
    """The cases that a model's split kept for `part`; an error where there are none of them."""
    names = split.get(part, [])
    if not (chosen := [case for case in cases if case.name in set(names)]):
        raise ScanError(f"found none of the model's {part} cases ({some_of(names) or 'none'}) in this folder; "
                        "expected the folder it was trained on, or --split all for scans it has never seen")
    return chosen


def _read(path: Path) -> tuple[Model | ThreeAxes, dict[str, list[str]]]:
    """A model and the case names of its split."""
    if not path.is_file():
        raise ScanError(f"{path}: {found_at(path, 'file')}, expected a model that `pointseg table1` or `train` wrote, "
                        "such as result.pt in table1's OUT; check the path")
    try:
        content = read_torch(path)
        if not isinstance(content, Mapping) or not {"format", "axis"} <= content.keys():
            raise Damaged("it holds something else")
        if content["format"] != FORMAT:
            raise ScanError(f"{path}: found model format {content['format']}, expected {FORMAT}; train it again")
        if content["axis"] not in (*AXES, THREE):
            raise ScanError(f"{path}: found axis {content['axis']!r}, expected one of {', '.join((*AXES, THREE))}; "
                            "train it again")
        if content["axis"] != THREE:
            return _model(content, path), dict(content["split"])
        models = [_model(of_axis, path) for of_axis in content["models"]]
        if [(m.axis, m.num_classes) for m in models] != [(axis, 2 if axis == "transverse" else len(CLASSES))
                                                        for axis in AXES] or len({m.grid_mm for m in models}) > 1:
            raise ScanError(f"{path}: found networks of {', '.join(m.axis for m in models)}, expected one of each of "
                            f"{', '.join(AXES)}, on one grid; train it again")
        if not 0 < (threshold := content["threshold"]) < 1:
            raise ScanError(f"{path}: found threshold {threshold}, expected one between 0 and 1; train it again")
        return ThreeAxes(*models, threshold), dict(content["split"])
    except ScanError:
        raise
    except Exception as error:  # whatever a damaged or foreign file makes of the reader
        raise ScanError(f"{path}: is not a model of this package or is damaged ({first_line(error)}); "
                        "expected a file that `pointseg table1` or `train` wrote") from None


def _model(content: Mapping, path: Path) -> Model:
    with torch.device("meta"):  # without memory, until it is known that the file's weights fit
        network = FCN8VGG16(**content["architecture"])
    check_tensors(content["weights"], network.state_dict(), path.stat().st_size)
    network.load_state_dict(content["weights"], assign=True)
    for name, (low, high) in SANE.items():
        if not isinstance(value := content[name], int | float) or not low <= value <= high:
            raise Damaged(f"its {name} is {value}, not {low:g} to {high:g}")
    if unknown := set(content.get("modalities", ())) - {"CT", "MR"}:
        raise Damaged(f"it learned from {some_of(sorted(map(str, unknown)))}, not CT and MR")
    return Model(network.to(device(), memory_format=torch.channels_last).eval(), content["axis"], content["grid_mm"],
                 content["input_px"], tuple(content.get("modalities", ())))
