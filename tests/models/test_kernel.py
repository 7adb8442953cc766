"""The compiled kernel against torch: each layer on physically sliced weights, then whole networks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
import torch
import torch.nn.functional as F
from slicing import randomise
from torch import Tensor

from prunegym.models import MaskedCNN, kernel
from prunegym.models.errors import InvalidInputError, MissingDependencyError
from prunegym.models.kernel import GateHead, Plan, PlanBuilder, _library
from prunegym.models.skipping import lower, translate
from prunegym.models.zoo import build

needs_kernel = pytest.mark.skipif(not kernel.available(), reason=f"no compiled kernel: {kernel.unavailable_reason()}")
each_variant = pytest.mark.parametrize(
    "variant", kernel.variants() or [pytest.param("none", marks=pytest.mark.skip(reason=kernel.unavailable_reason()))]
)


@pytest.fixture(autouse=True)
def _deterministic():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max() + 1e-6


def random_masks(batch: int, widths: list[int]) -> Tensor:
    """Random kept sets; the first image keeps all, the second none of the first gate, the third nothing at all."""
    masks = torch.rand(batch, sum(widths)) < torch.rand(batch, 1)
    masks[0] = True
    if batch > 2:
        masks[1, : widths[0]] = False
        masks[2] = False
    return masks


def sliced_conv(x: Tensor, kept_in: Tensor, weight: Tensor, bias: Tensor, kept_out: Tensor, **options: int) -> Tensor:
    """conv2d on the kept channels alone; the others are zeros. torch does not take empty sets."""
    sliced = weight[kept_out][:, kept_in]
    if kept_out.sum() and kept_in.sum():
        y = F.conv2d(x[kept_in][None], sliced, bias[kept_out], **options)[0]
    else:
        shape = F.conv2d(x[None], weight, **options).shape
        y = bias[kept_out][:, None, None].expand(-1, *shape[2:])
    out = torch.zeros(len(weight), *y.shape[1:])
    out[kept_out] = y
    return out


SHAPES = [
    # kernel, stride, padding, height, width
    *((3, 1, 1, size, size) for size in (1, 2, 3, 4, 5, 7, 8, 9, 14, 16, 32)),
    *((3, 2, 1, size, size) for size in (2, 4, 7, 8, 9, 16, 32)),
    (3, 1, 0, 9, 12),
    (3, 2, 0, 10, 11),
    (3, 1, 1, 6, 37),
    (1, 1, 0, 4, 4),
    (1, 1, 0, 13, 17),
    (1, 2, 0, 9, 8),
    (7, 2, 3, 21, 18),
    (5, 1, 2, 8, 11),
    (3, 3, 1, 10, 10),
]


def conv_network(shape: tuple[int, ...], channels: tuple[int, int], variant: str, *, relu: bool, residual: bool):
    """A gated 1x1 convolution, the gated convolution under test, and a linear layer that passes every pixel on."""
    size, stride, padding, height, width = shape
    first, second = channels
    w1, b1 = torch.randn(first, 3, 1, 1), torch.randn(first)
    w2, b2 = torch.randn(second, first, size, size), torch.randn(second)
    builder = PlanBuilder(3, height, width, gates=channels)
    x = builder.conv(builder.images, w1, b1, gate=0)
    options = {"stride": stride, "padding": padding}
    w3 = torch.randn(second, 3, size, size)
    add = builder.conv(builder.images, w3, **options, gate=1) if residual else None
    y = builder.conv(x, w2, b2, **options, relu=relu, gate=1, residual=add)
    pixels = y.channels * y.height * y.width
    plan = builder.build(builder.linear(y, torch.eye(pixels)), variant)

    def expected(image: Tensor, mask: Tensor) -> Tensor:
        kept1, kept2 = mask[:first], mask[first:]
        every = torch.ones(3, dtype=torch.bool)
        inner = sliced_conv(image, every, w1, b1, kept1)
        out = sliced_conv(inner, kept1, w2, b2, kept2, **options)
        if residual:
            out = out + sliced_conv(image, every, w3, torch.zeros(second), kept2, **options)
        return (out.relu() if relu else out).flatten()

    return plan, expected


@each_variant
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "k{}s{}p{}-{}x{}".format(*s))
@pytest.mark.parametrize(("relu", "residual"), [(False, False), (True, True)])
def test_convolution_equals_torch_on_sliced_weights(variant, shape, relu, residual):
    plan, expected = conv_network(shape, (7, 13), variant, relu=relu, residual=residual)
    images = torch.randn(5, 3, *shape[3:])
    masks = random_masks(5, [7, 13])
    outputs, used = plan(images, masks, threads=1)
    assert torch.equal(used, masks)
    for image, mask, output in zip(images, masks, outputs, strict=True):
        close(output, expected(image, mask))


@each_variant
@pytest.mark.parametrize("rows", range(1, 26))
@pytest.mark.parametrize("pixels", [(2, 2), (4, 4), (3, 10), (9, 9)])
def test_every_number_of_rows(variant, rows, pixels):
    """Every tile height, on paths for 2x2 maps, for small maps and in place."""
    plan, expected = conv_network((3, 1, 1, *pixels), (6, 25), variant, relu=True, residual=False)
    masks = torch.zeros(1, 31, dtype=torch.bool)
    masks[:, :4] = True
    masks[0, 6 + torch.randperm(25)[:rows]] = True
    image = torch.randn(1, 3, *pixels)
    close(plan(image, masks)[0][0], expected(image[0], masks[0]))


@each_variant
@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 0), (3, 1, 1), (5, 2, 2), (2, 3, 1)]
)
@pytest.mark.parametrize("size", [5, 8, 33, 41])
def test_max_pooling(variant, kernel_size, stride, padding, size):
    builder = PlanBuilder(3, size, size)
    x = builder.max_pool(builder.images, kernel_size, stride, padding, relu=True)
    plan = builder.build(builder.linear(x, torch.eye(x.channels * x.height * x.width)), variant)
    images = torch.randn(2, 3, size, size)
    close(plan(images)[0], F.max_pool2d(images, kernel_size, stride, padding).relu().flatten(1))


@each_variant
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_sum_subsampling_and_average(variant, stride):
    builder = PlanBuilder(3, 11, 9)
    x = builder.subsample(builder.images, stride, 8, 2)
    plan = builder.build(builder.average(builder.add(x, builder.add(x, relu=True))), variant)
    images = torch.randn(2, 3, 11, 9)
    expected = F.pad(images[:, :, ::stride, ::stride], (0, 0, 0, 0, 2, 3))
    close(plan(images)[0], (expected + expected.relu()).mean((2, 3)))


@each_variant
def test_linear_layers_with_a_gate_between(variant):
    w1, b1, w2 = torch.randn(20, 3 * 5 * 4), torch.randn(20), torch.randn(6, 20)
    builder = PlanBuilder(3, 5, 4, gates=[20])
    x = builder.linear(builder.images, w1, b1, relu=True, gate=0)
    plan = builder.build(builder.linear(x, w2), variant)
    images, masks = torch.randn(4, 3, 5, 4), random_masks(4, [20])
    hidden = F.linear(images.flatten(1), w1, b1).relu() * masks
    close(plan(images, masks)[0], hidden @ w2.T)


def torch_decision(head: GateHead, x: Tensor) -> Tensor:
    """What a policy decides on maps (batch, channels, height, width), in plain torch: (batch, width) bool."""
    features = [x.mean((2, 3))] if head.average else []
    if head.grid:
        features.append(F.adaptive_avg_pool2d(x, head.grid).flatten(1))
    z = ((torch.cat(features, 1) - head.mean) / head.std).clamp(-10, 10)
    return F.linear(F.relu(F.linear(z, head.weight1, head.bias1)), head.weight2, head.bias2) > 0


def random_heads(widths: list[int], channels: list[int], average: bool, grid: int, hidden: int = 20) -> list[GateHead]:
    heads = []
    for width, into in zip(widths, channels, strict=True):
        features = into * (int(average) + grid**2)
        heads.append(
            GateHead(
                mean=torch.randn(features) / 10,
                std=torch.rand(features) / 10 + 0.02,  # small, so that some features are clipped
                weight1=torch.randn(hidden, features) / features**0.5,
                bias1=torch.randn(hidden),
                weight2=torch.randn(width, hidden) / hidden**0.5,
                bias2=torch.randn(width),
                average=average,
                grid=grid,
            )
        )
    return heads


@each_variant
@pytest.mark.parametrize(("average", "grid"), [(True, 0), (False, 4), (True, 3)])
@pytest.mark.parametrize("size", [8, 13])
def test_policy_decides_as_in_torch(variant, average, grid, size):
    heads = random_heads([12, 9], [3, 12], average, grid)
    w1, w2 = torch.randn(12, 3, 3, 3), torch.randn(9, 12, 3, 3)
    builder = PlanBuilder(3, size, size, gates=[12, 9])
    builder.decide(0, builder.images, heads[0])
    x = builder.conv(builder.images, w1, padding=1, relu=True, gate=0)
    builder.decide(1, x, heads[1])  # reads a map in which channels are absent
    x = builder.average(builder.conv(x, w2, padding=1, relu=True, gate=1))
    plan = builder.build(builder.linear(x, torch.eye(9)), variant)
    images = torch.randn(40, 3, size, size)
    outputs, masks = plan(images)
    first = torch_decision(heads[0], images)
    inner = F.conv2d(images, w1, padding=1).relu() * first[:, :, None, None]
    second = torch_decision(heads[1], inner)
    assert torch.equal(masks, torch.cat([first, second], 1))
    close(outputs, F.conv2d(inner, w2, padding=1).relu().mean((2, 3)) * second)


def zoo_network(name: str, size: int = 32, variant: str | None = None) -> tuple[MaskedCNN, Plan]:
    """A zoo network whose batch norms do something, and its plan."""
    masked = MaskedCNN(randomise(build(name, image_size=size)), torch.zeros(1, 3, size, size))
    return masked, translate(lower(masked), variant=variant).plan


def widths_of(masked: MaskedCNN) -> list[int]:
    return [gate.width for gate in masked.gates]


@each_variant
@pytest.mark.parametrize(
    "name", [pytest.param("vgg16", marks=pytest.mark.slow), "resnet20", "m-cifarnet", "simple-cnn"]
)
def test_whole_network(variant, name):
    masked, plan = zoo_network(name, variant=variant)
    for batch, threads in ((1, 1), (5, 2)):
        images, masks = torch.randn(batch, 3, 32, 32), random_masks(batch, widths_of(masked))
        close(plan(images, masks, threads)[0], masked(images, masks))


@needs_kernel
def test_groups_of_images_and_odd_sizes():
    """More images than pass the late layers together, a size whose poolings drop a row, and results per image."""
    masked, plan = zoo_network("vgg11", 45)
    images, masks = torch.randn(19, 3, 45, 45), random_masks(19, widths_of(masked))
    outputs, _ = plan(images, masks, threads=1)
    close(outputs, masked(images, masks))
    alone, _ = plan(images[17:18], masks[17:18])
    close(alone[0], outputs[17], 1e-5)


@needs_kernel
def test_images_and_masks_are_read_as_they_lie_in_memory():
    masked, plan = zoo_network("simple-cnn")
    images, masks = torch.randn(4, 3, 32, 32), random_masks(4, widths_of(masked))
    expected, _ = plan(images, masks)
    close(expected, masked(images, masks))
    layouts = {
        "channels last": images.contiguous(memory_format=torch.channels_last),
        "turned": images.transpose(2, 3).contiguous().transpose(2, 3),
        "every second": images.repeat_interleave(2, 0)[::2],
        "part of a larger one": F.pad(images, (3, 2, 1, 4))[:, :, 1:33, 3:35],
    }
    for given in layouts.values():
        assert torch.equal(given, images)
        assert torch.equal(plan(given, masks)[0], expected)
    assert torch.equal(plan(images[:1].expand(4, -1, -1, -1), masks[:1].expand(4, -1))[0][3], expected[0])
    outputs, used = plan(images, masks.T.contiguous().T)
    assert torch.equal(outputs, expected)
    assert torch.equal(used, masks)


@needs_kernel
@pytest.mark.parametrize("name", ["vgg11", "resnet20"])
def test_threads_share_an_image(name):
    masked, plan = zoo_network(name)
    images, masks = torch.randn(2, 3, 32, 32), random_masks(2, widths_of(masked))
    masks[1, :3] = False
    expected, _ = plan(images, masks, threads=1)
    for _ in range(5):
        assert torch.equal(plan(images, masks, threads=3)[0], expected)


@needs_kernel
def test_threads_that_fell_asleep_between_images_miss_nothing():
    masked, plan = zoo_network("resnet20")
    images, masks = torch.randn(1, 3, 32, 32), random_masks(1, widths_of(masked))
    expected, _ = plan(images, masks, threads=1)
    for pause in (0, 0, 1e-4, 3e-4, 2e-3) * 40:  # they linger for 200 microseconds: awake, about to sleep, asleep
        time.sleep(pause)
        assert torch.equal(plan(images, masks, threads=3)[0], expected)


@needs_kernel
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_threads_share_an_image_after_fork():
    """Threads do not survive a fork; the child must start its own."""
    program = """if True:
        import os, sys, torch
        from prunegym.models import MaskedCNN, build
        from prunegym.models.skipping import lower, translate
        program = lower(MaskedCNN(build("simple-cnn"), torch.zeros(1, 3, 32, 32)))
        plan = translate(program).plan
        images, masks = torch.randn(1, 3, 32, 32), torch.ones(1, 48)
        expected = plan(images, masks, threads=2)[0].tolist()
        idle = translate(program).plan
        idle(images, masks, threads=2)  # its team must not keep the child from ending
        child = os.fork()
        if child == 0:
            sys.exit(0 if plan(images, masks, threads=2)[0].tolist() == expected else 1)
        assert os.waitpid(child, 0)[1] == 0
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=120)


@needs_kernel
def test_several_threads_may_call_one_plan():
    masked, plan = zoo_network("resnet20")
    images, masks = torch.randn(4, 3, 32, 32), random_masks(4, widths_of(masked))
    expected, _ = plan(images, masks)
    results: list[Tensor] = []
    callers = [threading.Thread(target=lambda: results.append(plan(images, masks, 1)[0])) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 4
    assert all(torch.equal(result, expected) for result in results)


@needs_kernel
def test_times_of_layers():
    _, plan = zoo_network("simple-cnn")
    seconds = plan.timed(torch.randn(1, 3, 32, 32), torch.ones(1, plan.mask_size))
    assert list(seconds) == ["0 load", "1 conv", "2 max_pool", "3 conv", "4 max_pool", "5 linear", "6 store"]
    assert all(value > 0 for value in seconds.values())


@needs_kernel
def test_wrong_input_is_refused():
    _, plan = zoo_network("simple-cnn")
    images, masks = torch.zeros(2, 3, 32, 32), torch.ones(2, 48)
    assert plan(images[:0], masks[:0])[0].shape == (0, 10)
    with pytest.raises(InvalidInputError, match=r"float32 of shape \(batch, 3, 32, 32\) on the CPU is needed"):
        plan(images.double(), masks)
    with pytest.raises(InvalidInputError, match=r"Masks are of shape \(2, 47\); \(2, 48\) is needed"):
        plan(images, masks[:, 1:])
    with pytest.raises(InvalidInputError, match="values other than 0 and 1"):
        plan(images, masks / 2)
    with pytest.raises(InvalidInputError, match=r"Masks of shape \(2, 48\) are needed"):
        plan(images)


def test_builder_refuses_what_does_not_fit():
    builder = PlanBuilder(3, 8, 8, gates=[4])
    with pytest.raises(InvalidInputError, match=r"\(out, 3, k, k\) with k at most 7"):
        builder.conv(builder.images, torch.zeros(4, 2, 3, 3))
    with pytest.raises(InvalidInputError, match="Gate 0 on 5 channels"):
        builder.conv(builder.images, torch.zeros(5, 3, 3, 3), gate=0)
    with pytest.raises(InvalidInputError, match="too small"):
        builder.conv(builder.images, torch.zeros(4, 3, 7, 7), stride=1, padding=-1)
    x = builder.conv(builder.images, torch.zeros(4, 3, 3, 3), gate=0)
    with pytest.raises(InvalidInputError, match="A sum of"):
        builder.add(x, builder.images)
    with pytest.raises(InvalidInputError, match="residual"):
        builder.conv(builder.images, torch.zeros(4, 3, 3, 3), residual=x)
    with pytest.raises(InvalidInputError, match="already in use"):
        builder.decide(0, x, random_heads([4], [4], True, 0)[0])
    with pytest.raises(InvalidInputError, match=r"\(outputs, 144\) is needed"):
        builder.linear(x, torch.zeros(2, 4))
    with pytest.raises(InvalidInputError, match="vector that is not behind a gate"):
        builder.build(builder.average(x))


@needs_kernel
def test_unknown_variant():
    builder = PlanBuilder(3, 8, 8)
    with pytest.raises(InvalidInputError, match="Kernel variant 'mmx' cannot run here"):
        builder.build(builder.average(builder.images), "mmx")


def test_switched_off_it_says_so():
    """In a fresh process, since the library is loaded once."""
    program = (
        "from prunegym.models import kernel; print(kernel.available(), kernel.variants(), kernel.unavailable_reason())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PRUNEGYM_KERNEL": "off"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("False () it is switched off by the environment variable PRUNEGYM_KERNEL=off")


@needs_kernel
def test_a_library_of_another_version_is_not_called(monkeypatch):
    monkeypatch.setattr("prunegym.models.kernel._library.INTERFACE", 1)
    found, reason = _library._load.__wrapped__()
    assert found is None
    assert "belongs to another version of prunegym; build it again" in reason


def test_without_the_library_building_a_plan_names_the_cure(monkeypatch):
    monkeypatch.setattr("prunegym.models.kernel._library._load", lambda: (None, "it was not built"))
    builder = PlanBuilder(3, 8, 8)
    with pytest.raises(MissingDependencyError, match="The compiled kernel is not available: it was not built"):
        builder.build(builder.average(builder.images))
