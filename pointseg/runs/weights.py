"""Weights in files: what torch has saved, checked before it is used, and VGG16's ImageNet weights."""

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn

from pointseg.scans.files import Damaged, first_line, hash_of
from pointseg.volume import ScanError


def save_torch(content: object, path: Path) -> None:
    """torch.save, whose word for a full disk is a RuntimeError."""
    import torch  # seconds, which commands that only read scans need not wait

    try:
        torch.save(content, path)
    except RuntimeError as error:
        raise OSError(first_line(error)) from None


def read_torch(path: Path) -> object:
    """What torch.save wrote, onto the CPU.  Data alone is read: a file that would run code is refused.

    torch does not look at the checksums in its files; here they are checked.
    """
    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as whole:
            if any(part.compress_type != zipfile.ZIP_STORED for part in whole.infolist()):
                raise Damaged("parts of it are compressed, which torch does not do")
            if wrong := whole.testzip():
                raise Damaged(f"the checksum of {wrong} is wrong")
    with warnings.catch_warnings():  # of how foreign files are pickled: they are refused, or are good
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def check_tensors(found: Mapping, expected: Mapping, size_bytes: float = float("inf")) -> None:
    """Refuse (Damaged) parameters that are not those of a network, by name, or not numbers.

    expected: the network's own, by name; they may be on the `meta` device, so that a file cannot make us build a giant.
    size_bytes: of the file, which cannot hold more.
    """
    import torch

    if not isinstance(found, Mapping) or found.keys() != expected.keys():
        raise Damaged("its parameters have other names")
    for name, value in found.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise Damaged(f"{name} is no array of numbers")
        if (value.shape, value.dtype) != (expected[name].shape, expected[name].dtype):
            raise Damaged(f"{name} is {tuple(value.shape)} {value.dtype}, expected {tuple(expected[name].shape)} "
                          f"{expected[name].dtype}")
    if sum(x.numel() * x.element_size() for x in found.values()) > size_bytes:
        raise Damaged("its parameters are larger than the file")
    if broken := [name for name, x in found.items() if not torch.isfinite(x).all()]:
        raise Damaged(f"{broken[0]} holds values that are not finite")


IMAGENET_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"  # the name ends in the file's hash
WITHOUT_IMAGENET = ("name a file with --imagenet FILE, or train from scratch with --imagenet none, which costs "
                    "accuracy and time")


def imagenet_file() -> Path:
    """VGG16's ImageNet weights in torch.hub's cache, downloaded there first where they are missing.

    The file's name ends in the hash of its content, which is checked at each use.
    """
    name = IMAGENET_URL.rpartition("/")[2]
    path, expected = Path(torch.hub.get_dir()) / "checkpoints" / name, name.rpartition("-")[2].removesuffix(".pth")
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(IMAGENET_URL, str(path), expected)
        except (URLError, OSError, RuntimeError) as error:  # RuntimeError: its hash is wrong
            raise ScanError(f"{IMAGENET_URL}: ImageNet weights cannot be had ({first_line(error)}); "
                            f"{WITHOUT_IMAGENET}") from None
    found = hash_of(path)
    if not found.startswith(expected):
        raise ScanError(f"{path}: its hash is {found[: len(expected)]}, expected {expected}: it is damaged or another "
                        "file; delete it, and it is downloaded again")
    return path


def load_imagenet(network: nn.Module, path: str | Path | None = None) -> list[str]:
    """Fill a full-width network without batch norm with VGG16's ImageNet weights.   -> names of layers it did not find.

    path: a file in torchvision's format; without it torch.hub's cache, or a download whose hash is checked.  VGG16's
    first two fully connected layers become convolutions; a file may lack them.  Score layers start at zero (Long et al.
    section 4.3): VGG16's activations reach hundreds, and random scores of them would swamp the first steps.
    """
    path = imagenet_file() if path is None else Path(path)
    if not path.is_file():
        raise ScanError(f"{path}: no such file, expected VGG16's ImageNet weights; {WITHOUT_IMAGENET}")
    own = network.state_dict()
    try:
        state = read_torch(path)
        if not isinstance(state, dict) or not own.keys() & state.keys():
            raise ScanError(f"{path}: holds no parameter of VGG16, expected features.0.weight and so on")
        found = {name: as_parameter(x, own[name]) for name, x in state.items() if name in own}
        check_tensors(found, {name: own[name] for name in found})
    except ScanError:
        raise
    except Damaged as error:
        raise ScanError(f"{path}: {error}; expected torchvision's vgg16 parameters, which fit the full width without "
                        "batch norm") from None
    except Exception as error:  # whatever a damaged or foreign file makes of the reader
        raise ScanError(f"{path}: is damaged or no file of weights ({first_line(error)}); "
                        "expected torchvision's vgg16 parameters") from None
    scores = {name for name in own if name.startswith(("score.", "skips."))}
    network.load_state_dict(own | found | {name: torch.zeros_like(own[name]) for name in scores})
    return sorted({name.rpartition(".")[0] for name in own.keys() - found.keys() - scores})


def as_parameter(x: object, parameter: Tensor) -> object:
    """A fully connected layer's matrix in the shape of the same layer as a convolution, and halves as float32."""
    if not isinstance(x, Tensor) or x.numel() != parameter.numel() or not x.is_floating_point():
        return x
    return (x.reshape(parameter.shape) if x.ndim == 2 and parameter.ndim == 4 else x).to(parameter.dtype)
