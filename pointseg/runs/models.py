"""A trained model as one file: architecture, weights, and what is needed to apply and to score it honestly."""

from pathlib import Path

import torch

from pointseg.network import FCN8VGG16, device
from pointseg.predict import Model
from pointseg.runs.weights import check_tensors, read_torch, save_torch
from pointseg.scans.files import first_line, whole_file
from pointseg.slices import AXES
from pointseg.volume import ScanError

FORMAT = 1


def save_model(path: str | Path, model: Model) -> None:
    """Write a model; the file appears whole or not at all."""
    content = {"format": FORMAT, "architecture": model.network.config, "axis": model.axis, "grid_mm": model.grid_mm,
               "input_px": model.input_px, "profile": model.profile, "seed": model.seed, "split": model.split,
               "modalities": list(model.modalities),
               "weights": {k: v.cpu().contiguous() for k, v in model.network.state_dict().items()}}
    with whole_file(path) as part:
        save_torch(content, part)


def load_model(path: str | Path) -> Model:
    """Read a model onto the GPU where there is one.  Only data is read: a file that would run code is refused."""
    path = Path(path)
    if not path.is_file():
        raise ScanError(f"{path}: no such file; "
                        "expected a model that `pointseg table1` or `train` wrote; check the path")
    try:
        content = read_torch(path)
        if content["format"] != FORMAT:
            raise ScanError(f"{path}: found model format {content['format']}, expected {FORMAT}; train it again")
        if content["axis"] not in AXES:
            raise ScanError(f"{path}: found axis {content['axis']!r}, expected one of {', '.join(AXES)}; "
                            "train it again")
        with torch.device("meta"):  # without memory, until it is known that the file's weights fit
            network = FCN8VGG16(**content["architecture"])
        check_tensors(content["weights"], network.state_dict(), path.stat().st_size)
        network.load_state_dict(content["weights"], assign=True)
        model = Model(network.to(device(), memory_format=torch.channels_last).eval(), content["axis"],
                      content["grid_mm"], content["input_px"], content["profile"], content["seed"], content["split"],
                      tuple(content.get("modalities", ())))
    except ScanError:
        raise
    except Exception as error:  # whatever a damaged or foreign file makes of the reader
        raise ScanError(f"{path}: is not a model of this package or is damaged ({first_line(error)}); "
                        "expected a file that `pointseg table1` or `train` wrote") from None
    return model
