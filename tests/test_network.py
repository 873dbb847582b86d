"""FCN8 on VGG16: torchvision's names and weights, and the forward pass once more in plain functions."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pointseg.network import FCN8VGG16, Pool, WindowLinear, autocast, for_inference, load_vgg16
from pointseg.runs.weights import read_imagenet

WEIGHTS = Path(__file__).parents[2] / "shared" / "weights" / "vgg16_features_imagenet.pth"

# torchvision.models.vgg16().features: index, in and out channels of its 13 convolutions
VGG16 = ((0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256), (14, 256, 256),
         (17, 256, 512), (19, 512, 512), (21, 512, 512), (24, 512, 512), (26, 512, 512), (28, 512, 512))
VGG16_BN = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)  # vgg16_bn: the same, each with its norm at index + 1


def shapes_of(state, prefix: str = "features.") -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in state.items() if name.startswith(prefix)}


def expected_shapes(batch_norm: bool) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for (i, before, after), i_norm in zip(VGG16, VGG16_BN, strict=True):
        at = i_norm if batch_norm else i
        shapes |= {f"features.{at}.weight": (after, before, 3, 3), f"features.{at}.bias": (after,)}
        if batch_norm:
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"features.{at + 1}.{name}"] = (after,)
            shapes[f"features.{at + 1}.num_batches_tracked"] = ()
    return shapes


def small(num_classes: int = 6, **kwargs) -> FCN8VGG16:
    torch.manual_seed(0)
    network = FCN8VGG16(num_classes, width=1 / 16, hidden=24, **kwargs).eval()
    for name, x in network.state_dict().items():  # far from the start, where norms do nothing and signals vanish
        if name.endswith("running_mean"):
            x.normal_(0, 0.1)
        elif x.ndim == 1 and not name.endswith("bias"):  # a norm's gain and variance
            x.uniform_(0.5, 1.5)
        elif x.is_floating_point():
            x.normal_(0, (2 / x[0].numel()) ** 0.5)
    return network


@pytest.mark.parametrize("batch_norm", [False, True], ids=["vgg16", "vgg16_bn"])
def test_names_and_shapes_are_torchvisions(batch_norm):
    with torch.device("meta"):
        network = FCN8VGG16(6, batch_norm=batch_norm)
    assert shapes_of(network.state_dict()) == expected_shapes(batch_norm)
    assert shapes_of(network.state_dict(), "classifier.") == {  # torchvision's matrices over 512 maps of 7 x 7
        "classifier.0.weight": (4096, 512, 7, 7), "classifier.0.bias": (4096,),
        "classifier.3.weight": (4096, 4096, 1, 1), "classifier.3.bias": (4096,)}


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the ImageNet weights (../shared/weights) are not here")
def test_imagenets_weights_are_taken_and_what_the_file_lacks_is_named():
    """The file holds the convolutions alone."""
    state, network = torch.load(WEIGHTS, weights_only=True), FCN8VGG16(6, hidden=8)
    assert shapes_of(state) == expected_shapes(batch_norm=False)
    assert load_vgg16(network, read_imagenet(WEIGHTS)) == ["classifier.0", "classifier.3"]
    assert all(torch.equal(x, state[f"features.{name}"]) for name, x in network.features.state_dict().items())
    assert all((p == 0).all() for name, p in network.named_parameters() if name.startswith(("score", "skips")))


def oracle(state, x: torch.Tensor, batch_norm: bool, finest_pool: int) -> torch.Tensor:
    def conv(x, name, padding=0):
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), padding=padding)

    x = (x - 0.449) / 0.226  # torchvision's mean and standard deviation, the same for every channel
    i, pooled = 0, [x]
    for convolutions in (2, 2, 3, 3, 3):
        for _ in range(convolutions):
            x = conv(x, f"features.{i}", 1)
            if batch_norm:
                i += 1
                mean, var, gain, bias = (state[f"features.{i}.{name}"][:, None, None]
                                         for name in ("running_mean", "running_var", "weight", "bias"))
                x = (x - mean) / (var + 1e-5).sqrt() * gain + bias
            x = x.clamp(min=0)
            i += 2
        x = F.max_pool2d(x, 2)
        i += 1
        pooled.append(x)
    x = conv(conv(x, "classifier.0", 3).clamp(min=0), "classifier.3").clamp(min=0)
    x = conv(x, "score")
    for pool in range(4, finest_pool - 1, -1):
        x = F.interpolate(x, scale_factor=2, mode="bilinear") + conv(pooled[pool], f"skips.pool{pool}")
    return F.interpolate(x, scale_factor=2**finest_pool, mode="bilinear")


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("finest_pool", [2, 3, 4, 5])
def test_forward_equals_plain_functions(batch_norm, finest_pool):
    network, x = small(batch_norm=batch_norm, finest_pool=finest_pool), torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected = oracle(network.state_dict(), x, batch_norm, finest_pool)
        assert expected.std() > 0.1
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4 * expected.std().item())


@pytest.mark.parametrize("size, kernel", [((11, 11), 7), ((2, 5), 7), ((1, 1), 7), ((4, 3), 1)])
def test_a_window_product_is_a_convolution(size, kernel):
    """Value and gradients, also where the map is smaller than the kernel."""
    torch.manual_seed(0)
    layer, x = WindowLinear(5, 8, kernel, padding=kernel // 2), torch.randn(2, 5, *size, requires_grad=True)
    leaves = [x, layer.weight, layer.bias]
    expected = F.conv2d(x, layer.weight, layer.bias, padding=kernel // 2)
    weight = torch.randn_like(expected)
    for found, oracle in zip([layer(x), *torch.autograd.grad((layer(x) * weight).sum(), leaves)],
                             [expected, *torch.autograd.grad((expected * weight).sum(), leaves)], strict=True):
        torch.testing.assert_close(found, oracle, rtol=1e-4, atol=1e-5)


def test_pooling_is_the_same_with_and_without_gradients():
    for x in (torch.randn(2, 3, 8, 12), torch.randn(2, 3, 7, 5)):
        assert torch.equal(Pool(2)(x), F.max_pool2d(x, 2))
        with torch.no_grad():
            assert torch.equal(Pool(2)(x), F.max_pool2d(x, 2))


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "norm"])
def test_inference_equals_the_network(batch_norm):
    network, x = small(batch_norm=batch_norm), torch.rand(2, 3, 64, 96)
    with torch.inference_mode(), autocast(x.device):
        expected = network(x)
    found = for_inference(network)(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2 * expected.std().item())
