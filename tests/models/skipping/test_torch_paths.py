"""The torch ways of skipping: masking, groups of images, gathered weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunegym.models import (
    MaskedCNN,
    SkippingCNN,
    rollout,
)
from prunegym.models.skipping.program.lowering import lower
from prunegym.models.skipping.torch_paths.gather import GatherPath
from prunegym.models.skipping.torch_paths.recorded import Recorded
from prunegym.models.skipping.torch_paths.torch_layers import GROUP, FullPath
from tests.models.skipping.skipping_networks import (
    WAYS,
    Mixed,
    UserNet,
    close,
    policy_for,
    random_masks,
    zoo,
)
from tests.models.slicing import randomise


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["simple-cnn", "user", "resnet20"])
def test_single_images_and_batches_take_turns(way, name):
    """Nothing of one call shows in the next. All-off gates included."""
    masked = MaskedCNN(randomise(UserNet()), torch.zeros(1, 3, 32, 32)) if name == "user" else zoo(name)
    images, masks = torch.randn(6, 3, 32, 32), random_masks(masked)
    expected = masked(images, masks)
    fast = SkippingCNN(masked, execution=way)
    for rows in ([0], [1, 2, 3], [1], [2], [3], [4, 5, 0, 1], [4]):
        close(fast(images[rows], masks[rows]).output, expected[rows])


@pytest.mark.parametrize("decides", [False, True])
def test_groups_of_a_batch_are_one_batch(decides):
    """Also where the last group is one image."""
    masked = zoo("simple-cnn")
    policy = policy_for(masked) if decides else None
    fast = SkippingCNN(masked, policy, "full")
    for count in (GROUP + 1, 2 * GROUP, 2 * GROUP + 5):
        images, masks = torch.randn(count, 3, 32, 32), random_masks(masked, count)
        with torch.no_grad():
            used = rollout(masked, policy, images).mask.bool() if policy is not None else masks
        output, bits = fast(images, None if decides else masks)
        assert torch.equal(bits, used)
        close(output, masked(images, used))


def test_memory_that_others_read_is_not_masked_in_place():
    """Only what a layer of the program has made anew; a network's own operations may return what they were given."""
    mixed = MaskedCNN(randomise(Mixed(depthwise=False)), torch.zeros(1, 3, 24, 24), gates=["a", "c"])
    images = torch.randn(3, 3, 24, 24)
    before = images.clone()
    SkippingCNN(mixed, execution="full")(images, random_masks(mixed)[:3])
    assert torch.equal(images, before)


def test_masked_channels_are_exactly_zero():
    """Also where a bias is negative, or larger than anything that a convolution adds."""
    masked = zoo("m-cifarnet")
    norms = [module for module in masked.network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm, bias in zip(norms, (-3.0, 0.0, 3.0, 1e6) * 2, strict=True):
        nn.init.constant_(norm.bias, bias)
    program = lower(masked)
    mask = random_masks(masked)[3:4]
    for point, ((gate, _),) in program.points.items():
        cut = dataclasses.replace(program, output=point, output_shape=program.shapes[point])
        path = FullPath(cut)
        value = path.run(torch.randn(1, 3, 32, 32), mask, None).output
        off = ~masked.split(mask)[gate][0]
        assert not value[:, off].any()
        assert not value[:, off].isnan().any()


def test_gates_behind_other_activations():
    mixed = MaskedCNN(randomise(Mixed(depthwise=False)), torch.zeros(1, 3, 24, 24), gates=["a", "c"])
    images, masks = torch.randn(6, 3, 24, 24), random_masks(mixed)
    for way in SkippingCNN(mixed).available:
        fast = SkippingCNN(mixed, execution=way)
        for i in range(6):
            close(fast(images[i : i + 1], masks[i : i + 1]).output, mixed(images, masks)[i : i + 1])


def test_gathered_weights_lie_as_maps_do_when_their_mask_comes_again():
    masked = zoo("simple-cnn")
    path = GatherPath(lower(masked))
    images, masks = torch.randn(2, 3, 32, 32), (torch.rand(1, masked.mask_size) < 0.5).expand(2, -1)
    for again in (False, True):
        close(path.run(images, masks, None).output, masked(images, masks))
        weights = [weight for weight in path.gathered if weight.ndim == 4]
        assert len(weights) == 2
        assert all(weight.is_contiguous(memory_format=torch.channels_last) == again for weight in weights)


def test_a_gate_on_a_convolution_with_reflected_borders():
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(5, 4),
    )  # fmt: skip
    masked = MaskedCNN(network.eval(), torch.zeros(1, 3, 12, 12))
    images, masks = torch.randn(6, 3, 12, 12), random_masks(masked)
    close(SkippingCNN(masked, execution="torch")(images, masks).output, masked(images, masks))


@pytest.mark.parametrize("way", ["full", "torch"])
def test_under_autocast(way):
    """Maps are of another type than the weights, also than those that are kept for a mask that comes again."""
    masked = zoo("m-cifarnet")
    images, masks = torch.randn(2, 3, 32, 32), (torch.rand(1, masked.mask_size) < 0.5).expand(2, -1)
    fast, expected = SkippingCNN(masked, execution=way), masked(images, masks)
    for _ in range(2):
        close(fast(images, masks).output, expected)
    with torch.autocast("cpu", torch.bfloat16):
        close(fast(images, masks).output.float(), expected, 0.05)
    close(fast(images, masks).output, expected)


@pytest.mark.parametrize("name", ["simple-cnn", "resnet20", "m-cifarnet"])
def test_the_torch_path_computes_what_is_kept_and_no_more(name):
    """By torch's own counter, which counts two operations for each MAC."""
    masked = zoo(name)
    path, image = GatherPath(lower(masked)), torch.randn(1, 3, 32, 32)
    path.run(image, torch.ones(1, masked.mask_size, dtype=torch.bool), None)  # is recorded
    for mask in random_masks(masked):
        with FlopCounterMode(display=False) as counter:
            path.run(image, mask[None], None)
        assert counter.get_total_flops() == 2 * masked.cost.macs(mask[None]).item()


@pytest.mark.parametrize("path", [GatherPath, FullPath])
@pytest.mark.parametrize("name", ["resnet20", "m-cifarnet", "user", "depthwise"])
def test_the_pass_of_one_image_is_recorded(name, path):
    """One record serves all masks and images, and any number of kept channels, in place of what it is made of."""
    networks = {"user": (UserNet, 32), "depthwise": (lambda: Mixed(depthwise=True), 24)}
    if name in networks:
        make, size = networks[name]
        masked = MaskedCNN(randomise(make()), torch.zeros(1, 3, size, size))
    else:
        masked, size = zoo(name), 32
    recorded = path(lower(masked))
    images, masks = torch.randn(6, 3, size, size), random_masks(masked)
    expected = masked(images, masks)
    for i in (4, 0, 1, 2, 3, 4):
        close(recorded.run(images[i : i + 1], masks[i : i + 1], None).output, expected[i : i + 1])
    assert recorded._one.is_recorded
    assert path is FullPath or recorded._gathering.is_recorded


def test_what_cannot_be_recorded_runs_as_it_is():
    """An operation of the user's that TorchScript does not know, and one that does other things each time."""
    calls = []

    def counting(x):
        calls.append(1)
        return x + len(calls)

    def untraceable(x):
        if torch.jit.is_tracing():
            raise NotImplementedError("no trace")
        return 2 * x

    once = Recorded(counting, lambda: (torch.randn(3),))
    assert once(torch.zeros(3))[0] == len(calls)
    assert not once.is_recorded
    once = Recorded(untraceable, lambda: (torch.randn(3),))
    assert torch.equal(once(torch.ones(3)), torch.full((3,), 2.0))
    assert not once.is_recorded
