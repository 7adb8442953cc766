"""The compiled kernel against torch: each layer on physically sliced weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.kernel import GateHead, PlanBuilder
from tests.models.skipping.skipping_networks import close, each_variant, kept_sets

pytestmark = pytest.mark.usefixtures("one_thread")


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
    (2, 1, 1, 9, 11),  # wider than its input
    (2, 1, 1, 32, 33),
    (2, 1, 0, 9, 11),
    (2, 2, 1, 8, 9),
]


def conv_network(shape: tuple[int, ...], channels: tuple[int, int], variant: str, *, relu: bool, residual: bool):
    """A gated 1x1 convolution, the gated convolution under test, and a linear layer that passes every pixel on.

    Where that layer would hold a hundred million ones, the channels are summed to two before it.
    """
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
    sums = torch.randn(2, second, 1, 1) if second * height * width > 10_000 else None
    y = y if sums is None else builder.conv(y, sums)
    pixels = y.channels * y.height * y.width
    plan = builder.build(builder.linear(y, torch.eye(pixels)), variant)

    def expected(image: Tensor, mask: Tensor) -> Tensor:
        kept1, kept2 = mask[:first], mask[first:]
        every = torch.ones(3, dtype=torch.bool)
        inner = sliced_conv(image, every, w1, b1, kept1)
        out = sliced_conv(inner, kept1, w2, b2, kept2, **options)
        if residual:
            out = out + sliced_conv(image, every, w3, torch.zeros(second), kept2, **options)
        out = out.relu() if relu else out
        return (out if sums is None else F.conv2d(out[None], sums)[0]).flatten()

    return plan, expected


@each_variant
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "k{}s{}p{}-{}x{}".format(*s))
@pytest.mark.parametrize(("relu", "residual"), [(False, False), (True, True)])
def test_convolution_equals_torch_on_sliced_weights(variant, shape, relu, residual):
    plan, expected = conv_network(shape, (7, 13), variant, relu=relu, residual=residual)
    images = torch.randn(5, 3, *shape[3:])
    masks = kept_sets(5, [7, 13])
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
    ("kernel_size", "stride", "padding"), [(2, 1, 1), (2, 1, 0), (2, 2, 1), (1, 1, 0), (3, 1, 0), (4, 1, 2), (5, 2, 3)]
)
def test_what_reads_a_map_of_another_width_sees_zeros_around_it(variant, kernel_size, stride, padding):
    first, second = torch.randn(5, 3, kernel_size, kernel_size), torch.randn(6, 5, 3, 3)
    builder = PlanBuilder(3, 9, 11)
    x = builder.conv(builder.images, first, stride=stride, padding=padding)
    y = builder.conv(x, second, padding=1)
    plan = builder.build(builder.linear(y, torch.eye(y.channels * y.height * y.width)), variant)
    images = torch.randn(2, 3, 9, 11)
    inner = F.conv2d(images, first, stride=stride, padding=padding)
    close(plan(images)[0], F.conv2d(inner, second, padding=1).flatten(1))


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
    images, masks = torch.randn(4, 3, 5, 4), kept_sets(4, [20])
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


def test_builder_refuses_what_does_not_fit():
    builder = PlanBuilder(3, 8, 8, gates=[4])
    with pytest.raises(InvalidInputError, match=r"of shape \(4, 2, 3, 3\); \(out, 3, height, width\) is needed"):
        builder.conv(builder.images, torch.zeros(4, 2, 3, 3))
    with pytest.raises(InvalidInputError, match="Gate 0 does not fit 5 channels"):
        builder.conv(builder.images, torch.zeros(5, 3, 3, 3), gate=0)
    with pytest.raises(InvalidInputError, match="too small"):
        builder.conv(builder.max_pool(builder.images, 4), torch.zeros(4, 3, 7, 7), padding=1)
    x = builder.conv(builder.images, torch.zeros(4, 3, 3, 3), gate=0)
    with pytest.raises(InvalidInputError, match="Cannot add"):
        builder.add(x, builder.images)
    with pytest.raises(InvalidInputError, match="residual"):
        builder.conv(builder.images, torch.zeros(4, 3, 3, 3), residual=x)
    with pytest.raises(InvalidInputError, match="already in use"):
        builder.decide(0, x, random_heads([4], [4], True, 0)[0])
    with pytest.raises(InvalidInputError, match=r"\(outputs, 144\) is needed"):
        builder.linear(x, torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("stride", 0), ("stride", -1), ("stride", 1.0), ("stride", 2**40), ("padding", -1), ("padding", 1025),
     ("gate", -1), ("gate", 1), ("gate", True), ("gate", 0.0)],
)  # fmt: skip
def test_builder_refuses_numbers_out_of_range(setting, value):
    builder = PlanBuilder(3, 8, 8, gates=[4])
    with pytest.raises(InvalidInputError, match=f"(?i){setting}"):
        builder.conv(builder.images, torch.zeros(4, 3, 3, 3), **{setting: value})
    if setting == "gate":
        with pytest.raises(InvalidInputError, match="gate"):
            builder.linear(builder.images, torch.zeros(4, 192), gate=value)
        with pytest.raises(InvalidInputError, match="gate"):
            builder.decide(value, builder.images, random_heads([4], [3], True, 0)[0])
    elif value != 1025:
        with pytest.raises(InvalidInputError, match=setting):
            builder.max_pool(builder.images, 2, **{setting: value})
    if setting == "stride":
        with pytest.raises(InvalidInputError, match=setting):
            builder.subsample(builder.images, value, 8, 2)


def test_builder_refuses_sizes_and_settings_of_other_layers():
    for sizes in ((0, 8, 8), (3, 0, 8), (3, 8, -1), (3, 8, 8.0), (2**31, 8, 8), (3, 2**14, 2**14), (3, 2**40, 1)):
        with pytest.raises(InvalidInputError):
            PlanBuilder(*sizes)
    for widths in ([0], [-1], [1.5], [4, 2**31]):
        with pytest.raises(InvalidInputError, match="The width of gate"):
            PlanBuilder(3, 8, 8, gates=widths)
    builder = PlanBuilder(3, 8, 8, gates=[4])
    images, head = builder.images, random_heads([4], [3], True, 2)[0]
    for kernel_size, padding in ((0, 0), (-1, 0), (2, 2), (3, 2), (2.0, 0), (2**40, 0)):
        with pytest.raises(InvalidInputError):
            builder.max_pool(images, kernel_size, 1, padding)
    with pytest.raises(InvalidInputError, match="The kernel's side is 9"):
        builder.conv(images, torch.zeros(4, 3, 9, 9))
    for channels, offset in ((0, 0), (8, -1), (8, 2**40)):
        with pytest.raises(InvalidInputError):
            builder.subsample(images, 2, channels, offset)
    for grid in (-1, 1.0, 2**31):
        with pytest.raises(InvalidInputError, match="grid"):
            builder.look(images, torch.zeros(3), torch.ones(3), grid=grid)
        with pytest.raises(InvalidInputError, match="grid"):
            builder.decide(0, images, dataclasses.replace(head, grid=grid))
    with pytest.raises(InvalidInputError, match="number of features is 0"):
        builder.look(images, torch.zeros(0), torch.ones(0), average=False)
    for name in ("mean", "std", "weight1", "bias1", "weight2", "bias2"):
        wrong = torch.zeros(1, 2, 3) if name == "bias1" else getattr(head, name)[:-1]
        with pytest.raises(InvalidInputError, match=name):
            builder.decide(0, images, dataclasses.replace(head, **{name: wrong}))
    vector = builder.average(images)
    for layer in (
        lambda: builder.conv(vector, torch.zeros(4, 3, 1, 1)),
        lambda: builder.max_pool(vector, 1),
        lambda: builder.average(vector),
        lambda: builder.subsample(vector, 1, 8, 2),
    ):
        with pytest.raises(InvalidInputError, match="needs a map"):
            layer()


def test_builder_refuses_values_that_are_not_its_own():
    builder, other = PlanBuilder(3, 8, 8, gates=[4]), PlanBuilder(3, 8, 8, gates=[4])
    own, head = builder.images, random_heads([4], [3], True, 0)[0]
    later = other.conv(other.images, torch.zeros(3, 3, 1, 1))
    for x in (other.images, later, dataclasses.replace(own, index=-1), dataclasses.replace(own), None, 0):
        for layer in (
            lambda x: builder.conv(x, torch.zeros(4, 3, 1, 1)),
            lambda x: builder.conv(own, torch.zeros(3, 3, 1, 1), residual=x or 0),
            lambda x: builder.max_pool(x, 2),
            lambda x: builder.add(x),
            lambda x: builder.add(own, x or 0),
            lambda x: builder.subsample(x, 1, 8, 2),
            lambda x: builder.average(x),
            lambda x: builder.linear(x, torch.zeros(2, 192)),
            lambda x: builder.decide(0, x, head),
            lambda x: builder.look(x, torch.zeros(3), torch.ones(3)),
            lambda x: builder.build(x),
        ):
            with pytest.raises(InvalidInputError, match="is not a value of this builder"):
                layer(x)


def test_builder_refuses_weights_that_are_no_plain_numbers():
    builder = PlanBuilder(3, 8, 8)
    weight = torch.zeros(4, 3, 1, 1)
    for wrong in (weight.long(), weight.cfloat(), weight.to_sparse(), weight.to("meta"), weight.numpy(), None):
        with pytest.raises(InvalidInputError, match="a dense tensor of floating-point numbers is needed"):
            builder.conv(builder.images, wrong)
    with pytest.raises(InvalidInputError, match=r"The bias is of shape \(3,\); \(4,\) is needed"):
        builder.conv(builder.images, weight, torch.zeros(3))
