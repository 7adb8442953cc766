"""Packed weights against torch's own convolution, and networks that have them against the masked forward pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from skipping_networks import close, random_masks, zoo
from torch import Tensor, nn

from prunegym.models import MaskedCNN, SkippingCNN
from prunegym.models.skipping import lower, packing
from prunegym.models.skipping.full_path import FullPath
from prunegym.models.skipping.gather_path import GatherPath
from prunegym.models.skipping.packing import PackedConv, packed
from prunegym.models.skipping.program import Conv

WITH_ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.manual_seed(0)


@WITH_ONEDNN
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 1), (5, 2, 2)])
def test_a_packed_convolution_is_that_of_torch(kernel: int, stride: int, padding: int, added: bool, relu: bool) -> None:
    weight, bias, x = torch.randn(96, 64, kernel, kernel), torch.randn(96), torch.randn(1, 64, 9, 9)
    inputs = ("x", "y") if added else ("x",)
    layer = Conv("conv", "conv", inputs, weight, bias, (stride,) * 2, (padding,) * 2, (1, 1), relu)
    other = torch.randn(96)
    with torch.inference_mode():
        found = PackedConv(layer, (64, 9, 9))(x.contiguous(memory_format=torch.channels_last), other)
    expected = F.conv2d(x, weight, other, stride, padding)
    # What is added comes before the ReLU, so that is left to the caller.
    close(found, expected.relu() if relu and not added else expected)


@WITH_ONEDNN
def test_large_convolutions_are_packed_once_for_all_paths() -> None:
    program = lower(zoo("vgg16"))
    large = {layer.name for layer in program.layers if isinstance(layer, Conv) and layer.weight.numel() >= 100_000}
    assert set(packed(program)) == large
    assert len(large) > 5
    assert GatherPath(program)._packed is packed(program)
    weights = FullPath(program, channels_last=True)._weights
    assert all(weights[name] is packed(program)[name] for name in large)


@WITH_ONEDNN
@pytest.mark.slow
@pytest.mark.parametrize("way", ["full-channels-last", "torch"])
@pytest.mark.parametrize("name", ["vgg16", "resnet18"])
def test_networks_with_packed_weights_give_the_masked_results(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    own = PackedConv.__call__

    def counted(self: PackedConv, x: Tensor, bias: Tensor) -> Tensor:
        calls.append(len(x))
        return own(self, x, bias)

    masked = zoo(name)
    images, masks = torch.randn(6, 3, 32, 32), random_masks(masked)
    expected = masked(images, masks)
    fast = SkippingCNN(masked, execution=way)
    monkeypatch.setattr(PackedConv, "__call__", counted)
    for rows in (slice(0, 1), slice(3, 4), slice(0, 6)):
        close(fast(images[rows], masks[rows]).output, expected[rows])
    assert set(calls) == ({1, 2} if way == "torch" else {1, 6})


@WITH_ONEDNN
@pytest.mark.parametrize("threads", [1, 2])
def test_gathered_weights_are_packed_when_their_mask_comes_again(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    own = PackedConv.__call__

    def counted(self: PackedConv, x: Tensor, bias: Tensor) -> Tensor:
        calls.append(len(x))
        return own(self, x, bias)

    masked = zoo("vgg16")
    program = lower(masked)
    path = GatherPath(program, compact=frozenset(range(len(masked.gates))))
    images, two = torch.randn(9, 3, 32, 32), torch.rand(2, masked.mask_size) < 0.5
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        large = len(packed(program))
        monkeypatch.setattr(PackedConv, "__call__", counted)
        # The number of images decides on the layout, so it changes from one time to the next.
        for images_of_first, expected_calls in ((4, []), (4, [4, 5]), (1, [1, 8]), (7, [2, 7])):
            masks = two[[0] * images_of_first + [1] * (9 - images_of_first)]
            calls.clear()
            close(path.run(images, masks, None).output, masked(images, masks))
            assert sorted(calls) == sorted(expected_calls * large)
    finally:
        torch.set_num_threads(before)


@WITH_ONEDNN
def test_a_weight_is_kept_once_for_each_layout() -> None:
    weight, bias = torch.randn(204, 512, 3, 3), torch.randn(204)
    layer = Conv("conv", "conv", ("x",), weight, bias, (1, 1), (1, 1), (1, 1), True)
    made = PackedConv(layer, (512, 2, 2))
    assert made.numel() == weight.numel()
    with torch.inference_mode():
        for images in (*range(1, 17), *range(1, 17)):
            x = torch.randn(images, 512, 2, 2).contiguous(memory_format=torch.channels_last)
            close(made(x, bias), F.conv2d(x, weight, bias, padding=1).relu())
    assert made.numel() <= 5 * weight.numel()
    assert made.weight.equal(weight)


@WITH_ONEDNN
def test_gathered_weights_are_not_packed_under_autocast() -> None:
    masked = zoo("vgg16")
    images, masks = torch.randn(2, 3, 32, 32), (torch.rand(1, masked.mask_size) < 0.5).expand(2, -1)
    path = GatherPath(lower(masked), compact=frozenset(range(len(masked.gates))))
    expected = masked(images, masks)
    for _ in range(2):
        close(path.run(images, masks, None).output, expected)
    with torch.autocast("cpu", torch.bfloat16):
        close(path.run(images, masks, None).output.float(), expected, 0.05)
    close(path.run(images, masks, None).output, expected)


@WITH_ONEDNN
@pytest.mark.parametrize("way", ["full-channels-last", "torch"])
def test_under_autocast_weights_are_not_packed(way: str) -> None:
    """Packed weights are float32, and autocast gives them maps of another type."""
    layers = nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 192, 3, padding=1), nn.ReLU()
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, 4)).eval()
    masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8))
    images, masks = torch.randn(1, 3, 8, 8), torch.ones(1, masked.mask_size, dtype=torch.bool)
    fast = SkippingCNN(masked, execution=way)
    with torch.autocast("cpu", torch.bfloat16):
        found = fast(images, masks).output
    close(found.float(), masked(images, masks.float()), 0.05)


@WITH_ONEDNN
def test_operators_that_mean_something_else_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    own = PackedConv.__call__
    monkeypatch.setattr(PackedConv, "__call__", lambda self, x, bias: 1.01 * own(self, x, bias))
    assert packed(lower(zoo("vgg16"))) == {}


def test_without_the_operators_weights_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not public, so another torch may lack them or take other arguments."""

    def other(*_arguments: object) -> Tensor:
        raise TypeError("takes 5 positional arguments")

    monkeypatch.setattr(packing.PackedConv, "__call__", other)
    masked = zoo("vgg16")
    fast = SkippingCNN(masked, execution="full-channels-last")
    images, masks = torch.randn(1, 3, 32, 32), random_masks(masked)[:1]
    assert packed(lower(masked)) == {}
    close(fast(images, masks).output, masked(images, masks))
