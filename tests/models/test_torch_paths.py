"""The torch ways of skipping: masking by biases, groups of images, compact and full gates."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from skipping_networks import (
    WAYS,
    Mixed,
    UserNet,
    close,
    every_gate,
    policy_for,
    random_masks,
    zoo,
)
from slicing import randomise
from torch import nn

from prunegym.models import (
    MaskedCNN,
    SkippingCNN,
    rollout,
)
from prunegym.models.skipping import lower
from prunegym.models.skipping.full_path import GROUP, FullPath
from prunegym.models.skipping.gather_path import GatherPath
from prunegym.models.skipping.masking import Masking
from prunegym.models.skipping.mixing import mix

FORMS_OF_A_LAYER = list(itertools.product((False, True), repeat=2))


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["simple-cnn", "user", "resnet20"])
def test_single_images_and_batches_take_turns(way, name):
    """One image is masked by biases and more by factors; neither may be taken for the other. All-off gates included."""
    masked = MaskedCNN(randomise(UserNet()), torch.zeros(1, 3, 32, 32)) if name == "user" else zoo(name)
    images, masks = torch.randn(6, 3, 32, 32), random_masks(masked)
    expected = masked(images, masks)
    fast = SkippingCNN(masked, execution=way)
    for rows in ([0], [1, 2, 3], [1], [2], [3], [4, 5, 0, 1], [4]):
        close(fast(images[rows], masks[rows]).output, expected[rows])


@pytest.mark.parametrize("way", ["full", "full-channels-last"])
@pytest.mark.parametrize("decides", [False, True])
def test_groups_of_a_batch_are_one_batch(way, decides):
    """Also where the last group is one image, which is masked by biases."""
    masked = zoo("simple-cnn")
    policy = policy_for(masked) if decides else None
    fast = SkippingCNN(masked, policy, way)
    for count in (GROUP + 1, 2 * GROUP, 2 * GROUP + 5):
        images, masks = torch.randn(count, 3, 32, 32), random_masks(masked, count)
        with torch.no_grad():
            used = rollout(masked, policy, images).mask.bool() if policy is not None else masks
        output, bits = fast(images, None if decides else masks)
        assert torch.equal(bits, used)
        close(output, masked(images, used))


def test_memory_that_others_read_is_not_masked_in_place():
    """Only what a layer of the program has made anew; a network's own operations may return what they were given."""
    user = MaskedCNN(randomise(UserNet()), torch.zeros(1, 3, 32, 32))
    mixed = MaskedCNN(randomise(Mixed(depthwise=False)), torch.zeros(1, 3, 24, 24), gates=["a", "c"])
    assert Masking(lower(user)).in_place == every_gate(user)
    assert not Masking(lower(mixed)).in_place  # behind a sigmoid, and a SiLU
    images = torch.randn(3, 3, 24, 24)
    before = images.clone()
    SkippingCNN(mixed, execution="full")(images, random_masks(mixed)[:3])
    assert torch.equal(images, before)


@pytest.mark.parametrize("channels_last", [False, True])
def test_masked_channels_are_exactly_zero(channels_last):
    """Also where a bias is negative, or larger than anything that a convolution adds."""
    masked = zoo("m-cifarnet")
    norms = [module for module in masked.network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm, bias in zip(norms, (-3.0, 0.0, 3.0, 1e6) * 2, strict=True):
        nn.init.constant_(norm.bias, bias)
    program = lower(masked)
    assert Masking(program).by_bias == every_gate(masked)
    mask = random_masks(masked)[3:4]
    for point, gate in program.points.items():
        cut = dataclasses.replace(program, output=point, output_shape=program.shapes[point])
        path = FullPath(cut, channels_last=channels_last)
        value = path.run(torch.randn(1, 3, 32, 32), mask, None).output
        off = ~masked.split(mask)[gate][0]
        assert not value[:, off].any()
        assert not value[:, off].isnan().any()


def test_gates_that_no_bias_masks():
    """Behind other activations than ReLU, or where a sum is added."""
    mixed = MaskedCNN(randomise(Mixed(depthwise=False)), torch.zeros(1, 3, 24, 24), gates=["a", "c"])
    assert not Masking(lower(mixed)).by_bias
    assert Masking(lower(zoo("simple-cnn"))).by_bias == {0, 1}
    images, masks = torch.randn(6, 3, 24, 24), random_masks(mixed)
    for way in SkippingCNN(mixed).available:
        fast = SkippingCNN(mixed, execution=way)
        for i in range(6):
            close(fast(images[i : i + 1], masks[i : i + 1]).output, mixed(images, masks)[i : i + 1])


@pytest.mark.parametrize("name", ["simple-cnn", "user"])
def test_any_mix_of_compact_gates_gives_the_same(name):
    masked = MaskedCNN(randomise(UserNet()), torch.zeros(1, 3, 32, 32)) if name == "user" else zoo(name)
    program, policy = lower(masked), policy_for(masked)
    images, masks = torch.randn(6, 3, 32, 32), random_masks(masked)
    with torch.no_grad():
        expected = rollout(masked, policy, images)
    gates = every_gate(masked)
    for compact in itertools.chain.from_iterable(itertools.combinations(gates, n) for n in range(len(gates) + 1)):
        close(GatherPath(program, compact=frozenset(compact)).run(images, masks, None).output, masked(images, masks))
        output, used = GatherPath(program, policy, compact=frozenset(compact)).run(images, None, None)
        assert torch.equal(used, expected.mask.bool())
        close(output, expected.output)


@pytest.mark.parametrize("name", ["simple-cnn", "m-cifarnet", "user"])
def test_the_mix_is_the_fastest_by_the_table(name):
    """Against trying all mixes, with made-up times of each layer in each of its forms."""
    masked = MaskedCNN(UserNet(), torch.zeros(1, 3, 32, 32)) if name == "user" else zoo(name)
    program = lower(masked)
    times = {(layer.name, *form): float(torch.rand(())) for layer in program.layers for form in FORMS_OF_A_LAYER}

    def timed(compact):
        around = {layer.name: (program.gates.get(layer.inputs[0]), getattr(layer, "gate", None)) for layer in layers}
        return {name: times[name, inside in compact, outside in compact] for name, (inside, outside) in around.items()}

    layers = program.layers
    found = mix(program, timed)
    assert [way.gate for way in found] == sorted(every_gate(masked))
    mixes = itertools.chain.from_iterable(itertools.combinations(every_gate(masked), n) for n in range(len(found) + 1))
    best = min(sum(timed(set(one)).values()) for one in mixes)
    taken = {way.gate for way in found if way.compact}
    assert sum(timed(taken).values()) == pytest.approx(best)
    for way in found:
        difference = sum(timed(taken | {way.gate}).values()) - sum(timed(taken - {way.gate}).values())
        assert way.seconds_compact - way.seconds_full == pytest.approx(difference)
        assert way.compact == (difference <= 0)


def test_choices_name_what_each_gate_does():
    masked = zoo("simple-cnn")
    fast = SkippingCNN(masked)
    fast(torch.randn(1, 3, 32, 32), random_masks(masked)[4:5])
    (choice,) = fast.choices
    assert [way.layer for way in choice.gates] == [gate.name for gate in masked.gates]
    assert all(min(way.seconds_compact, way.seconds_full) > 0 for way in choice.gates)


def test_a_gate_on_a_convolution_that_no_path_knows():
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(5, 4),
    )  # fmt: skip
    masked = MaskedCNN(network.eval(), torch.zeros(1, 3, 12, 12))
    fast = SkippingCNN(masked)
    assert fast.available == ("masked",)
    assert fast.unavailable["torch"] == "Gate '0' is on a layer that is no plain convolution."
    images, masks = torch.randn(6, 3, 12, 12), random_masks(masked)
    close(fast(images, masks).output, masked(images, masks))


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
