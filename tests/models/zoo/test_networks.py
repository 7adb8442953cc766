"""The zoo: every name builds, the architectures are those of the papers, bad arguments give our errors."""

from __future__ import annotations

import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunegym.errors import InvalidInputError, PruneGymError, UnknownNameError
from prunegym.models import MaskedCNN
from prunegym.models.zoo.network_registry import ZOO, build, register_network
from prunegym.models.zoo.networks import SimpleCNN


def conv(*widths: int, bias: bool = False, norm: bool = True) -> int:
    """Parameters of a chain of 3x3 convolutions."""
    pairs = itertools.pairwise(widths)
    return sum(9 * a * b + (b if bias else 0) + (2 * b if norm else 0) for a, b in pairs)


def resnet(blocks: int) -> int:
    """He et al. 2016, table 6: 6n + 2 layers, widths 16, 32 and 64; no parameters in the shortcuts."""
    return conv(3, 16, *([16] * 2 * blocks), *([32] * 2 * blocks), *([64] * 2 * blocks)) + 650


# For 10 classes and 3x32x32 images, summed from the published widths. He et al. round to 0.27M, 0.46M, 0.66M, 0.85M.
PARAMETERS = {
    "resnet20": resnet(3),
    "resnet32": resnet(5),
    "resnet44": resnet(7),
    "resnet56": resnet(9),
    # 11.69M with 1000 classes (torchvision's documentation has 11,689,512).
    "resnet18": 11_689_512 - 513 * 990,
    "simple-cnn": conv(3, 16, 32, bias=True, norm=False) + 32 * 8 * 8 * 10 + 10,
    "simple-cnn-wide": conv(3, 32, 64, 64) + 64 * 4 * 4 * 10 + 10,
    "vgg11": conv(3, 64, 128, 256, 256, 512, 512, 512, 512) + 5130,
    "vgg16": conv(3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512) + 5130,
    "m-cifarnet": conv(3, 64, 64, 128, 128, 128, 192, 192, 192) + 1930,
}


@pytest.mark.parametrize("name", ZOO)
def test_architecture(name: str) -> None:
    network = build(name)
    assert network.training
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]
    logits = network.eval()(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 10)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ZOO)
def test_other_channels_classes_and_sizes(name: str) -> None:
    network = build(name, num_classes=7, in_channels=1, image_size=40)
    assert network.eval()(torch.rand(3, 1, 40, 40)).shape == (3, 7)


@pytest.mark.parametrize(
    ("name", "convolutions"), [("resnet20", 19), ("resnet56", 55), ("vgg16", 13), ("vgg11", 8), ("resnet18", 20)]
)
def test_depth(name: str, convolutions: int) -> None:
    assert sum(isinstance(module, nn.Conv2d) for module in build(name).modules()) == convolutions


def test_feature_maps_shrink_as_published() -> None:
    """He et al. 2016, table 6: maps of 32, 16 and 8 pixels with 16, 32 and 64 channels."""
    network = build("resnet20")
    shapes = {}
    for stage in ("layer1", "layer2", "layer3"):
        layer = network.get_submodule(stage)
        layer.register_forward_hook(lambda _m, _i, output, stage=stage: shapes.update({stage: tuple(output.shape)}))
    network.eval()(torch.rand(1, 3, 32, 32))
    assert shapes == {"layer1": (1, 16, 32, 32), "layer2": (1, 32, 16, 16), "layer3": (1, 64, 8, 8)}


@pytest.mark.slow
def test_resnet18_has_the_published_macs_and_torchvisions_names() -> None:
    """1,814,073,344 MACs at 224x224: torchvision's documentation has 1.81 GFLOPS."""
    network = build("resnet18", num_classes=1000, image_size=224)
    masked = MaskedCNN(network, torch.zeros(1, 3, 224, 224))
    assert masked.cost.total_macs == 1_814_073_344
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, 224, 224))
    assert counter.get_total_flops() == 2 * 1_814_073_344
    assert [gate.width for gate in masked.gates] == [64, 64, 128, 128, 256, 256, 512, 512]
    names = network.state_dict().keys()
    assert {"conv1.weight", "bn1.running_var", "layer2.0.downsample.0.weight", "layer4.1.bn2.bias", "fc.bias"} <= names
    assert sum(p.numel() for p in network.parameters()) == 11_689_512
    assert len(names) == 122


def test_option_a_shortcut_pads_both_sides_with_zeros() -> None:
    images = torch.rand(2, 16, 8, 8)
    output = build("resnet20").get_submodule("layer2.0.shortcut")(images)
    assert output.shape == (2, 32, 4, 4)
    assert torch.equal(output[:, 8:24], images[:, :, ::2, ::2])
    assert not output[:, :8].any()
    assert not output[:, 24:].any()


def test_seed_decides_the_weights_and_nothing_else_does() -> None:
    before = torch.random.get_rng_state()
    first = build("simple-cnn", seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    again, other = build("simple-cnn", seed=3), build("simple-cnn", seed=4)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not any(torch.equal(a, c) for a, _, c in pairs)


def test_unknown_name() -> None:
    with pytest.raises(UnknownNameError) as caught:
        build("resnet-20")
    assert str(caught.value) == (
        "Unknown model 'resnet-20'. Did you mean 'resnet20'? Known: m-cifarnet, module:function, resnet18, "
        "resnet20, resnet32, resnet44, resnet56, simple-cnn, simple-cnn-wide, timm:NAME, torchvision:NAME, "
        "vgg11, vgg16."
    )
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, PruneGymError)


def test_unknown_name_far_from_all_gives_no_hint() -> None:
    assert str(UnknownNameError("reward", "@@@@", {"l0", "macs"})) == "Unknown reward '@@@@'. Known: l0, macs."


def test_errors_travel_between_processes() -> None:
    error = UnknownNameError("reward", "mac", {"l0", "macs"})
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is UnknownNameError
    assert str(copy) == str(error)


def test_images_too_small_for_the_poolings() -> None:
    with pytest.raises(InvalidInputError, match=r"Model 'vgg16' does not take images of 3x16x16 \(.*\)\. Use larger"):
        build("vgg16", image_size=16)
    with pytest.raises(
        InvalidInputError,
        match=r"^image_size is 7; a whole number of at least 8 is needed\. SimpleCNN pools 3 times by 2\. "
        r"Use larger images or fewer widths\.$",
    ):
        build("simple-cnn-wide", image_size=7)


def test_simple_cnn_takes_the_smallest_size_it_documents() -> None:
    network = SimpleCNN(image_size=8, widths=(4, 4, 4))
    assert network(torch.rand(1, 3, 8, 8)).shape == (1, 10)


def test_masked_channel_order_of_pooling_and_relu() -> None:
    """Max pooling before ReLU gives what ReLU before max pooling gives; the document draws the latter."""
    network = build("simple-cnn", image_size=16)
    images = torch.randn(2, 3, 16, 16)
    x = images
    for at in (0, 3):
        x = torch.nn.functional.max_pool2d(network.get_submodule(f"features.{at}")(x).clamp(min=0), 2)
    expected = x.flatten(1) @ network.get_parameter("linear.weight").T + network.get_parameter("linear.bias")
    torch.testing.assert_close(network(images), expected)


def test_a_network_of_ones_own() -> None:
    try:
        register_network(
            "mine", lambda num_classes, in_channels, image_size: SimpleCNN(num_classes, in_channels, image_size)
        )
        assert build("mine", 7, 1, 40).eval()(torch.rand(3, 1, 40, 40)).shape == (3, 7)
        register_network("mine", lambda num_classes, in_channels: SimpleCNN(num_classes, in_channels))
        assert build("mine", 7, 1).eval()(torch.rand(3, 1, 32, 32)).shape == (3, 7)
    finally:
        ZOO.pop("mine", None)
    with pytest.raises(InvalidInputError, match="'resnet20' is a built-in network of PruneGym"):
        register_network("resnet20", SimpleCNN)
    with pytest.raises(InvalidInputError, match="cannot be called with num_classes and in_channels by name"):
        register_network("mine", lambda classes: SimpleCNN(classes))
    assert "mine" not in ZOO
