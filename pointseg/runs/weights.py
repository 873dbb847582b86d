"""Weights in files: what torch has saved, checked before it is used, and VGG16's ImageNet weights."""

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError

import torch
from torch import Tensor

from pointseg.network import FCN8VGG16
from pointseg.scans.files import Damaged, first_line
from pointseg.volume import ScanError


def save_torch(content: object, path: Path) -> None:
    """torch.save, whose word for a full disk is a RuntimeError."""
    try:
        torch.save(content, path)
    except RuntimeError as error:
        raise OSError(first_line(error)) from None


def read_torch(path: Path) -> object:
    """What torch.save wrote, onto the CPU.  Data alone is read: a file that would run code is refused.

    torch does not look at the checksums in its files; here they are checked.
    """
    if not path.stat().st_size:
        raise Damaged("it is empty")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as whole:
            if any(part.compress_type != zipfile.ZIP_STORED for part in whole.infolist()):
                raise Damaged("parts of it are compressed, which torch does not do")
            if wrong := whole.testzip():
                raise Damaged(f"the checksum of {wrong} is wrong")
    try:
        with warnings.catch_warnings():  # of how foreign files are pickled: they are refused, or are good
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:  # torch's advice is to load it all the same, code and all
        raise Damaged("it is no file of weights alone") from None


def check_tensors(found: Mapping, expected: Mapping, size_bytes: float = float("inf")) -> None:
    """Refuse (Damaged) parameters that are not those of a network, by name, or not numbers.

    expected: the network's own, by name; they may be on the `meta` device, so that a file cannot make us build a giant.
    size_bytes: of the file, which cannot hold more.
    """
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


def read_imagenet(path: Path | None = None) -> dict[str, Tensor]:
    """VGG16's ImageNet weights, as `network.load_vgg16` takes them.

    path: a file in torchvision's format, which may lack layers; without it torch.hub's, from its cache or downloaded
    there, when its hash is checked.
    """
    try:
        if path is None:
            state = torch.hub.load_state_dict_from_url(IMAGENET_URL, map_location="cpu", check_hash=True,
                                                       weights_only=True)
        else:
            state = read_torch(path)
    except (URLError, FileNotFoundError) as error:
        raise ScanError(f"{path or IMAGENET_URL}: ImageNet's weights cannot be had ({first_line(error)}), expected "
                        f"those of VGG16; {WITHOUT_IMAGENET}") from None
    except Exception as error:  # whatever a damaged or foreign file makes of the reader
        raise ScanError(f"{path or IMAGENET_URL}: is damaged or no file of weights ({first_line(error)}), expected "
                        f"torchvision's vgg16 parameters; {WITHOUT_IMAGENET}") from None
    with torch.device("meta"):
        own = FCN8VGG16(num_classes=2).state_dict()  # in full width, and without memory
    try:
        found = {name: _as_parameter(x, own[name]) for name, x in dict(state).items() if name in own}
        if not found:
            raise Damaged("it holds no parameter of VGG16, features.0.weight and so on")
        check_tensors(found, {name: own[name] for name in found})
    except (Damaged, ValueError, TypeError) as error:
        raise ScanError(f"{path or IMAGENET_URL}: {error}; expected torchvision's vgg16 parameters") from None
    return found


def _as_parameter(x: object, parameter: Tensor) -> object:
    """A fully connected layer's matrix in the shape of the same layer as a convolution, and halves as float32."""
    if not isinstance(x, Tensor) or x.numel() != parameter.numel() or not x.is_floating_point():
        return x
    return (x.reshape(parameter.shape) if x.ndim == 2 and parameter.ndim == 4 else x).to(parameter.dtype)
