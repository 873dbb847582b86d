"""The network of the thesis: VGG16 made fully convolutional, with skips at stride 16 and 8 (FCN8).

Simonyan and Zisserman 2015 (VGG16); Long, Shelhamer and Darrell 2015 (FCN).  Axis letters: B batch, C channels,
K classes, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
FULLY_CONNECTED = 4096
STRIDE = 32  # of the deepest feature map: inputs are multiples of it


class FCN8VGG16(nn.Module):
    """Logits for every pixel of a slice with its neighbours.  (B, 3, H, W) -> (B, K, H, W).

    Parameters carry torchvision's names (`vgg16`, with batch norm `vgg16_bn`), so its ImageNet weights load as they
    are.  Convolutions pad by "same"; the published code pads the input by 100 px instead, which costs 2.6 times the time.

    width       multiplies the number of channels of every layer; 1 is VGG16
    batch_norm  normalise after each convolution; needed to train from scratch
    finest_pool the shallowest pooling layer whose scores are added: 3 is FCN8.  A pool's stride is 2^pool pixels, so on
                a grid of 2 mm pool 2 has the 8 mm spacing that pool 3 has at 1 mm.
    """

    def __init__(self, num_classes: int, width: float = 1.0, batch_norm: bool = False, finest_pool: int = 3,
                 hidden: int = FULLY_CONNECTED):
        super().__init__()
        self.config = dict(num_classes=num_classes, width=width, batch_norm=batch_norm, finest_pool=finest_pool, hidden=hidden)
        layers: list[nn.Module] = []
        channels, pool_channels = 3, []
        for block in VGG16_BLOCKS:
            for out in (int(c * width) for c in block):
                layers.append(nn.Conv2d(channels, out, 3, padding=1, bias=not batch_norm))
                layers += [nn.BatchNorm2d(out)] if batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                channels = out
            layers.append(nn.MaxPool2d(2))
            pool_channels.append(channels)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(  # VGG16's fully connected layers as convolutions, under torchvision's indices
            nn.Conv2d(channels, hidden, 7, padding=3), nn.ReLU(inplace=True), nn.Dropout2d(),
            nn.Conv2d(hidden, hidden, 1), nn.ReLU(inplace=True), nn.Dropout2d())  # fmt: skip
        self.score = nn.Conv2d(hidden, num_classes, 1)
        self.skips = nn.ModuleDict(
            {f"pool{p}": nn.Conv2d(pool_channels[p - 1], num_classes, 1) for p in range(4, finest_pool - 1, -1)})

    def forward(self, x: Tensor) -> Tensor:
        size, pool, pooled = x.shape[-2:], 0, {}
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                pool += 1
                pooled[f"pool{pool}"] = x
        scores = self.score(self.classifier(x))
        for name, skip in self.skips.items():
            skipped = skip(pooled[name])
            scores = F.interpolate(scores, skipped.shape[-2:], mode="bilinear", align_corners=False) + skipped
        return F.interpolate(scores.float(), size, mode="bilinear", align_corners=False)
