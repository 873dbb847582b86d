"""The network of the thesis: VGG16 made fully convolutional, with skips at stride 16 and 8 (FCN8).

Simonyan and Zisserman 2015 (VGG16); Long, Shelhamer and Darrell 2015 (FCN).  Axis letters: B batch, C channels,
K classes, H height, W width.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
FULLY_CONNECTED = 4096
IMAGENET_MEAN, IMAGENET_STD = 0.449, 0.226  # of torchvision's inputs in 0..1, over its three colours: a slice has one
STRIDE = 32  # of the deepest feature map: inputs are multiples of it


_precision = {"mixed": True}  # of this process, as with torch's own settings of this kind


def set_mixed_precision(on: bool) -> None:
    """Off: float32 throughout, on every device."""
    _precision["mixed"] = on


def mixed_precision() -> bool:
    return _precision["mixed"]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(where: torch.device) -> AbstractContextManager:
    """bfloat16 where the hardware has it: half the bytes, and the range of float32, so losses need no scaling."""
    if where.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16, enabled=mixed_precision() and torch.cuda.is_bf16_supported())
    return torch.autocast("cpu", torch.bfloat16,
                          enabled=mixed_precision() and where.type == "cpu" and cpu_has_bfloat16())


def cpu_has_bfloat16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class WindowLinear(nn.Conv2d):
    """A convolution of odd kernel that pads by "same", as a matrix product: a row for each pixel's window.

    On VGG16's last, small maps the kernel outweighs them: 400 MB for 11 x 11 pixels.  A convolution would first bring
    it into an order of its own, in every step, which takes longer than the product.  The part of the kernel that meets
    padding alone, such as the outer 4 rows of 7 on a map of 2, is left out.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (min(k // 2, n - 1) for k, n in zip(self.kernel_size, x.shape[-2:], strict=True))
        y, x0 = (k // 2 for k in self.kernel_size)
        weight = self.weight[:, :, y - rows : y + rows + 1, x0 - columns : x0 + columns + 1]
        windows = F.pad(x, (columns, columns, rows, rows)).unfold(2, weight.shape[2], 1).unfold(3, weight.shape[3], 1)
        windows = windows.permute(0, 2, 3, 4, 5, 1).flatten(3)  # (B, H, W, window's rows * columns * channels)
        return F.linear(windows, weight.permute(0, 2, 3, 1).flatten(1), self.bias).permute(0, 3, 1, 2)


class Pool(nn.MaxPool2d):
    """The maximum of 2 x 2 pixels; without gradients as a maximum of halves, which keeps no index of each."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.shape[-2] % 2 or x.shape[-1] % 2:
            return super().forward(x)
        x = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
        return torch.maximum(x[..., ::2], x[..., 1::2])


class FCN8VGG16(nn.Module):
    """Logits for every pixel of a slice with its neighbours, in 0..1.   (B, 3, H, W) -> (B, K, H, W).

    Parameters carry torchvision's names (`vgg16`, with batch norm `vgg16_bn`), so its ImageNet weights load as they
    are.  Convolutions pad by "same"; the published code pads the input by 100 px, which takes 2.6 times as long.

    width       multiplies the number of channels of every layer; 1 is VGG16
    batch_norm  normalise after each convolution; needed to train from scratch
    finest_pool the shallowest pooling layer whose scores are added: 3 is FCN8.  A pool's stride is 2^pool pixels, so on
                a grid of 2 mm pool 2 has the 8 mm spacing that pool 3 has at 1 mm.
    """

    def __init__(self, num_classes: int, width: float = 1.0, batch_norm: bool = False, finest_pool: int = 3,
                 hidden: int = FULLY_CONNECTED):
        super().__init__()
        self.config = dict(num_classes=num_classes, width=width, batch_norm=batch_norm, finest_pool=finest_pool,
                           hidden=hidden)
        layers: list[nn.Module] = []
        channels, pool_channels = 3, []
        for block in VGG16_BLOCKS:
            for out in (int(c * width) for c in block):
                layers.append(nn.Conv2d(channels, out, 3, padding=1))
                layers += [nn.BatchNorm2d(out)] if batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                channels = out
            layers.append(Pool(2))
            pool_channels.append(channels)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(  # VGG16's fully connected layers as convolutions, under torchvision's indices
            WindowLinear(channels, hidden, 7, padding=3), nn.ReLU(inplace=True), nn.Dropout2d(),
            WindowLinear(hidden, hidden, 1), nn.ReLU(inplace=True), nn.Dropout2d())  # fmt: skip
        self.score = nn.Conv2d(hidden, num_classes, 1)
        self.skips = nn.ModuleDict(
            {f"pool{p}": nn.Conv2d(pool_channels[p - 1], num_classes, 1) for p in range(4, finest_pool - 1, -1)})

    def forward(self, x: Tensor) -> Tensor:
        size, pool, pooled = x.shape[-2:], 0, {}
        x = (x - IMAGENET_MEAN) / IMAGENET_STD
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                pool += 1
                pooled[f"pool{pool}"] = x
        scores = self.score(self.classifier(x))
        for name, skip in self.skips.items():
            skipped = skip(pooled[name])
            scores = F.interpolate(scores, skipped.shape[-2:], mode="bilinear", align_corners=False) + skipped
        scores = scores if scores.dtype == torch.float64 else scores.float()
        return F.interpolate(scores, size, mode="bilinear", align_corners=False)


def for_inference(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network as a function for many batches: (B, 3, H, W) on any device -> logits float32, where the network is.

    Its weights are brought into autocast's type and into order here, once, instead of for each batch.
    """
    where = next(network.parameters()).device
    with autocast(where):
        dtype = torch.get_autocast_dtype(where.type) if torch.is_autocast_enabled(where.type) else None  # as it is
    weights = {name: p.detach().to(dtype=dtype or p.dtype, memory_format=torch.channels_last)
               for name, p in network.named_parameters() if p.ndim == 4}
    network.eval()

    def apply(x: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(where):
            return functional_call(network, weights, x.to(where, memory_format=torch.channels_last)).float()
    return apply


def load_vgg16(network: FCN8VGG16, state: Mapping[str, Tensor]) -> list[str]:
    """Fill a full-width network without batch norm with VGG16's ImageNet weights.   -> names of layers not among them.

    state: as `runs.weights.read_imagenet` returns it.  Score layers start at zero (Long et al. section 4.3): VGG16's
    activations reach hundreds, and random scores of them would swamp the first steps.
    """
    own = network.state_dict()
    found = {name: x for name, x in state.items() if name in own}
    scores = {name: torch.zeros_like(x) for name, x in own.items() if name.startswith(("score.", "skips."))}
    network.load_state_dict(own | found | scores)
    return sorted({name.rpartition(".")[0] for name in own.keys() - found.keys() - scores.keys()})
