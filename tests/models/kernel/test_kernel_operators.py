"""Operators of common networks in the compiled kernel, against torch on the masked maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models.kernel import GateHead, PlanBuilder
from prunegym.models.kernel.shared_library import ACTIVATIONS
from tests.models.skipping.skipping_networks import close, each_variant, kept_sets

pytestmark = pytest.mark.usefixtures("one_thread")
FUNCTIONS = {
    "": lambda x: x, "relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid, "silu": F.silu, "gelu": F.gelu,
}  # fmt: skip


def gated(channels: int, height: int, width: int, more: tuple[int, ...] = ()):
    """A builder with a map of some channels behind gate 0, and what that map is."""
    weight, bias = torch.randn(channels, 3, 1, 1), torch.randn(channels)
    builder = PlanBuilder(3, height, width, gates=(channels, *more))
    x = builder.conv(builder.images, weight, bias, gate=0)

    def map_of(images: Tensor, masks: Tensor) -> Tensor:
        return F.conv2d(images, weight, bias) * masks[:, :channels, None, None]

    return builder, x, map_of


DEPTHWISE = [
    # kernel, stride, padding, dilation, height, width
    *((3, 1, 1, 1, size, size) for size in (1, 2, 3, 7, 14, 17, 33)),
    *((3, 2, 1, 1, size, size) for size in (2, 7, 14, 33)),
    *((5, 1, 2, 1, size, size) for size in (3, 7, 14, 40)),
    *((5, 2, 2, 1, size, size) for size in (5, 7, 28)),
    (7, 1, 3, 1, 9, 12),
    (3, 1, 2, 2, 12, 9),
    (3, 2, 3, 3, 11, 13),
    (3, 3, 0, 1, 10, 11),
    (2, 1, 1, 1, 9, 11),
    (2, 5, 0, 1, 9, 11),
    (1, 1, 0, 1, 6, 7),
]


@each_variant
@pytest.mark.parametrize("shape", DEPTHWISE, ids=lambda s: "k{}s{}p{}d{}-{}x{}".format(*s))
@pytest.mark.parametrize("activation", ["relu6", "silu"])
def test_depthwise_convolutions(variant, shape, activation):
    size, stride, padding, dilation, height, width = shape
    builder, x, map_of = gated(9, height, width)
    weight, bias = torch.randn(9, 1, size, size), torch.randn(9)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": 9}
    y = builder.conv(x, weight, bias, **options, activation=activation, gate=0)
    # A 3x3 convolution behind it reads the frame, which must be zeros.
    last = torch.randn(4, 9, 3, 3)
    plan = builder.build([y, builder.conv(y, last, padding=1)], variant)
    images, masks = torch.randn(5, 3, height, width), kept_sets(5, [9])
    inner = FUNCTIONS[activation](F.conv2d(map_of(images, masks), weight, bias, **options)) * masks[..., None, None]
    outputs = plan(images, masks, 1)[0].split([inner[0].numel(), 4 * inner[0, 0].numel()], 1)
    close(outputs[0], inner.flatten(1))
    close(outputs[1], F.conv2d(inner, last, padding=1).flatten(1))
    assert not outputs[0].view_as(inner)[~masks].any()


@each_variant
@pytest.mark.parametrize(
    ("kernel_size", "options"),
    [
        ((1, 3), {"padding": (0, 1)}), ((3, 1), {"padding": (1, 0)}), ((1, 7), {"padding": (0, 3)}),
        ((5, 2), {"padding": (2, 1)}), ((3, 2), {"stride": 2}), ((2, 3), {"padding": (1, 0)}),
        ((3, 3), {"padding": 2, "dilation": 2}), ((3, 3), {"padding": 6, "dilation": 6}),
        ((3, 5), {"padding": (3, 9), "dilation": 3, "stride": 2}), ((3, 3), {"dilation": 4, "stride": 3}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("groups", [1, 4])
def test_rectangular_dilated_and_grouped_convolutions(variant, kernel_size, options, groups):
    builder, x, map_of = gated(8, 13, 18, (12,))
    weight, bias = torch.randn(12, 8 // groups, *kernel_size), torch.randn(12)
    y = builder.conv(x, weight, bias, **options, groups=groups, activation="hardswish", gate=1)
    plan = builder.build(y, variant)
    images, masks = torch.randn(5, 3, 13, 18), kept_sets(5, [8, 12])
    made = F.hardswish(F.conv2d(map_of(images, masks), weight, bias, **options, groups=groups))
    close(plan(images, masks, 1)[0], (made * masks[:, 8:, None, None]).flatten(1))


@each_variant
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pixels", [(2, 2), (6, 6), (5, 17), (16, 16)])
def test_activations_of_all_paths(variant, activation, pixels):
    """Of convolutions on maps of all sizes, Winograd's among them, behind a residual sum; of sums; of linear layers."""
    builder = PlanBuilder(48, *pixels)
    weight, bias = torch.randn(48, 48, 3, 3) / 10, torch.randn(48)
    x = builder.conv(builder.images, weight, bias, padding=1, activation=activation, residual=builder.images)
    y = builder.add(x, builder.images, activation=activation)
    into = torch.randn(5, 48) / 3
    plan = builder.build([x, y, builder.linear(builder.average(y), into, activation=activation)], variant)
    images, function = 3 * torch.randn(3, 48, *pixels), FUNCTIONS[activation]
    first = function(F.conv2d(images, weight, bias, padding=1) + images)
    second = function(first + images)
    found = plan(images, threads=1)[0].split([first[0].numel(), second[0].numel(), 5], 1)
    for actual, expected in zip(found, (first, second, function(second.mean((2, 3)) @ into.T)), strict=True):
        close(actual, expected.flatten(1))


@each_variant
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_exact_to_rounding(variant, activation):
    numbers = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e30, -300.0, -90, 90, 300, 1e30, 1e-30, -0.0])])
    builder = PlanBuilder(1, 1, len(numbers))
    plan = builder.build(builder.add(builder.images, activation=activation), variant)
    expected = FUNCTIONS[activation](numbers.double())
    error = (plan(numbers.view(1, 1, 1, -1))[0][0] - expected).abs()
    assert (error <= 1e-6 + 1e-6 * expected.abs()).all()


@each_variant
@pytest.mark.parametrize("pool", ["max", "average", "average of pixels"])
@pytest.mark.parametrize(("kernel_size", "stride", "padding"), [(3, 2, 0), (3, 2, 1), (2, 2, 0), (3, 1, 1), (5, 3, 2)])
@pytest.mark.parametrize("size", [6, 7, 13, 40])
def test_poolings_with_and_without_windows_that_reach_out(variant, pool, kernel_size, stride, padding, size):
    for ceil_mode in (False, True):
        builder, x, map_of = gated(5, size, size + 1)
        options = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}
        if pool == "max":
            y = builder.max_pool(x, kernel_size, **options, relu=True)
        else:
            y = builder.avg_pool(x, kernel_size, **options, count_include_pad=pool == "average")
        images, masks = torch.randn(4, 3, size, size + 1), kept_sets(4, [5])
        values = map_of(images, masks)
        if pool == "max":
            expected = F.max_pool2d(values, kernel_size, **options).relu()
        else:
            expected = F.avg_pool2d(values, kernel_size, **options, count_include_pad=pool == "average")
        close(builder.build(y, variant)(images, masks, 1)[0], expected.flatten(1))


@each_variant
def test_values_side_by_side_behind_a_norm(variant):
    """As in a DenseNet: whole channels, those of a gate, and a part of those of another, then a norm and ReLU."""
    builder, x, map_of = gated(7, 6, 11, (5,))
    weight = torch.randn(5, 3, 3, 3)
    y = builder.conv(builder.images, weight, padding=1, gate=1)
    index = [-1] * 3 + [*range(7)] + [*range(7, 12)]
    space = builder.space(index)
    scale, shift, last = torch.rand(15) + 0.5, torch.randn(15), torch.randn(4, 15, 3, 3)
    z = builder.concat([builder.images, x, y], scale, shift, activation="relu", gate=space)
    w = builder.concat([builder.images, x, y], gate=space)
    outputs = [builder.conv(z, last, padding=1), builder.expand(w), builder.average(builder.expand(z))]
    plan = builder.build(outputs, variant)
    images, masks = torch.randn(6, 3, 6, 11), kept_sets(6, [7, 5])
    parts = [images, map_of(images, masks), F.conv2d(images, weight, padding=1) * masks[:, 7:, None, None]]
    joined = torch.cat(parts, 1)
    bits = torch.cat([torch.ones(6, 3), masks], 1)[..., None, None]
    normed = (joined * scale[:, None, None] + shift[:, None, None]).relu() * bits
    found = plan(images, masks, 1)[0].split([4 * 66, 15 * 66, 15], 1)
    close(found[0], F.conv2d(normed, last, padding=1).flatten(1))
    assert torch.equal(found[1].view_as(joined)[bits.expand_as(joined) == 0], torch.zeros(int((bits == 0).sum() * 66)))
    close(found[1], joined.flatten(1))
    close(found[2], normed.mean((2, 3)))


@each_variant
@pytest.mark.parametrize("pixels", [(7, 7), (1, 5), (20, 31)])
def test_squeeze_and_excitation(variant, pixels):
    builder, x, map_of = gated(20, *pixels, (6,))
    w1, b1, w2, b2 = torch.randn(6, 20), torch.randn(6), torch.randn(20, 6), torch.randn(20)
    inner = builder.linear(builder.average(x), w1, b1, activation="silu", gate=1)
    factors = builder.linear(inner, w2, b2, activation="sigmoid", gate=0)
    plan = builder.build(builder.scale(x, factors), variant)
    images, masks = torch.randn(5, 3, *pixels), kept_sets(5, [20, 6])
    values = map_of(images, masks)
    expected = F.silu(values.mean((2, 3)) @ w1.T + b1) * masks[:, 20:]
    close(plan(images, masks, 1)[0], (values * (expected @ w2.T + b2).sigmoid()[..., None, None]).flatten(1))


@each_variant
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 17), (70, 300), (401, 33)])
def test_linear_layers_read_kept_inputs_alone(variant, inputs, outputs):
    builder, x, map_of = gated(inputs, 2, 3)
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
    plan = builder.build(builder.linear(builder.average(x), weight, bias, activation="gelu"), variant)
    images, masks = torch.randn(5, 3, 2, 3), kept_sets(5, [inputs])
    close(plan(images, masks, 1)[0], F.gelu(map_of(images, masks).mean((2, 3)) @ weight.T + bias))


@each_variant
@pytest.mark.parametrize("outputs", [1, 17, 160])
@pytest.mark.parametrize(("pixels", "groups"), [((2, 2), 1), ((3, 5), 1), ((7, 6), 3), ((9, 9), 1), ((16, 16), 1)])
def test_biases_that_depend_on_masked_channels(variant, pixels, groups, outputs):
    """Of two gates, in a convolution of each path, and in a linear layer after it."""
    outputs *= groups
    builder, x, map_of = gated(48, *pixels, (outputs,))
    weight, table = torch.randn(outputs, 48 // groups, 3, 3), torch.randn(48, outputs)
    bias, both = torch.randn(outputs), torch.randn(48 + outputs, 5)
    last = torch.randn(5, outputs)
    y = builder.conv(x, weight, builder.compensate(bias, table, 0), padding=1, groups=groups, relu=True, gate=1)
    biases = builder.compensate(None, both, builder.space(range(48 + outputs)))
    plan = builder.build(builder.linear(builder.average(y), last, biases), variant)
    for threads, batch in ((1, 5), (3, 1), (2, 34)):
        images, masks = torch.randn(batch, 3, *pixels), kept_sets(batch, [48, outputs])
        off = 1 - masks.float()
        inner = F.conv2d(map_of(images, masks[:, :48]), weight, bias, padding=1, groups=groups)
        inner = (inner + (off[:, :48] @ table)[:, :, None, None]).relu() * masks[:, 48:, None, None]
        close(plan(images, masks, threads)[0], inner.mean((2, 3)) @ last.T + off @ both)


@each_variant
def test_a_policy_decides_from_a_vector(variant):
    """The gate of a squeezing layer: its features are the averages themselves, for the grid four times."""
    builder, x, map_of = gated(6, 4, 5, (8,))
    vector = builder.average(x)
    size = 6 * 5
    head = GateHead(
        torch.randn(size), torch.rand(size) + 0.5, torch.randn(9, size), torch.randn(9), torch.randn(8, 9),
        torch.randn(8), True, 2,
    )  # fmt: skip
    builder.decide(1, vector, head)
    weight = torch.randn(8, 6)
    plan = builder.build(builder.linear(vector, weight, gate=1), variant)
    images = torch.randn(6, 3, 4, 5)
    outputs, masks = plan(images, kept_sets(6, [6, 8]), 1)
    average = map_of(images, masks[:, :6]).mean((2, 3))
    features = torch.cat([average, average[:, :, None].expand(-1, -1, 4).flatten(1)], 1)
    hidden = (((features - head.mean) / head.std).clamp(-10, 10) @ head.weight1.T + head.bias1).relu()
    logits = hidden @ head.weight2.T + head.bias2
    assert torch.equal(masks[:, 6:], logits > 0)
    close(outputs, average @ weight.T * masks[:, 6:])


@each_variant
def test_several_inputs_and_outputs(variant):
    """Maps and vectors come in with all channels, of which kept ones are read, and go out with all channels."""
    builder = PlanBuilder(3, 5, 6, gates=(4, 7))
    second, vector = builder.input(4, 5, 6, gate=0), builder.input(7, gate=1)
    weight = torch.randn(4, 3, 3, 3)
    y = builder.conv(builder.images, weight, padding=1, gate=0, residual=second)
    plan = builder.build([y, vector, builder.images], variant)
    images, maps, vectors, masks = (
        torch.randn(9, 3, 5, 6),
        torch.randn(9, 4, 5, 6),
        torch.randn(9, 7),
        kept_sets(9, [4, 7]),
    )
    assert plan.inputs == ((3, 5, 6), (4, 5, 6), (7,))
    found = plan([images, maps, vectors], masks, 2)[0].split([120, 7, 90], 1)
    close(found[0], ((F.conv2d(images, weight, padding=1) + maps) * masks[:, :4, None, None]).flatten(1))
    assert torch.equal(found[1], vectors * masks[:, 4:])
    assert torch.equal(found[2], images.flatten(1))
    with pytest.raises(InvalidInputError, match="2 inputs; the plan reads 3"):
        plan([images, maps], masks)
    with pytest.raises(InvalidInputError, match=r"Input 1 is of shape \(9, 7\)"):
        plan([images, vectors, maps], masks)
    with pytest.raises(InvalidInputError, match="give as many of each"):
        plan([images, maps, vectors[:3]], masks)


def test_the_builder_refuses_what_does_not_fit_together():
    builder = PlanBuilder(4, 8, 8, gates=(4, 6))
    x = builder.conv(builder.images, torch.zeros(4, 4, 3, 3), padding=1, gate=0)
    vector = builder.average(builder.images)
    for groups in (3, 0, -1, 2.0):
        with pytest.raises(InvalidInputError, match="groups"):
            builder.conv(builder.images, torch.zeros(4, 2, 1, 1), groups=groups)
    for dilation in (0, 2**40, 1.5):
        with pytest.raises(InvalidInputError, match="dilation"):
            builder.conv(builder.images, torch.zeros(4, 4, 1, 1), dilation=dilation)
    with pytest.raises(InvalidInputError, match="too small"):
        builder.conv(builder.images, torch.zeros(4, 4, 3, 3), dilation=5)
    with pytest.raises(UnknownNameError, match="activation"):
        builder.conv(builder.images, torch.zeros(4, 4, 1, 1), activation="mish")
    with pytest.raises(InvalidInputError, match="cannot be concatenated"):
        builder.concat([x, vector])
    with pytest.raises(InvalidInputError, match="other mask bits"):
        builder.concat([x, builder.images])
    with pytest.raises(InvalidInputError, match="a vector like"):
        builder.scale(x, vector)
    for index in ([10], [-2], [0.0]):
        with pytest.raises(InvalidInputError, match="mask bit"):
            builder.space(index)
    assert builder.space(range(4, 10)) == 1
    with pytest.raises(InvalidInputError, match="Gate 2 does not fit 4 channels"):
        builder.conv(builder.images, torch.zeros(4, 4, 1, 1), gate=builder.space([0, 1, 2]))
    with pytest.raises(InvalidInputError, match=r"The table is of shape \(6, 2\)"):
        builder.compensate(None, torch.zeros(6, 2), 0)
    with pytest.raises(InvalidInputError, match="always there"):
        builder.compensate(None, torch.zeros(2, 2), builder.space([0, -1]))
    with pytest.raises(InvalidInputError, match="There is no gate 9"):
        builder.compensate(None, torch.zeros(2, 2), 9)
    biases = builder.compensate(None, torch.zeros(4, 2), 0)
    with pytest.raises(InvalidInputError, match="a vector of 4 channels is needed"):
        builder.conv(x, torch.zeros(4, 4, 1, 1), biases)
    with pytest.raises(InvalidInputError, match="not a value of this builder"):
        PlanBuilder(4, 8, 8).conv(builder.images, torch.zeros(2, 4, 1, 1), biases)
