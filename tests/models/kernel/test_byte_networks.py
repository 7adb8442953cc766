"""The kernel on bytes: random networks bit for bit, decisions and features, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prunegym.errors import InvalidInputError
from prunegym.models.kernel import GateHead, Pass, PlanBuilder, byte_variants
from prunegym.models.kernel.shared_library import ACTIVATIONS
from tests.models.kernel.byte_networks import ByteNetwork
from tests.models.kernel.test_kernel_operators import FUNCTIONS
from tests.models.skipping.skipping_networks import close

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not byte_variants(), reason="the compiled kernel was not built"),
]
each_byte_variant = pytest.mark.parametrize("variant", byte_variants())


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_random_networks_equal_numpy_bit_for_bit(first):
    for seed in range(first, first + 10):
        ByteNetwork(seed).check(byte_variants(), batch=1 + seed % 3)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1500, 100))
def test_hundreds_of_random_networks_equal_numpy_bit_for_bit(first):
    for seed in range(first, first + 100):
        ByteNetwork(seed).check(byte_variants(), batch=1 + seed % 3)


@each_byte_variant
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_activation_is_within_a_step_of_torch(variant, activation):
    torch.manual_seed(0)
    builder = PlanBuilder(5, 9, 11)
    codes, scales, bias = torch.randint(-127, 128, (6, 5, 3, 3)).to(torch.int8), torch.rand(6) / 2000, torch.randn(6)
    x = builder.to_bytes(builder.images, 0.02, signed=True)
    y = builder.byte_conv(x, codes, scales, bias, scale=0.03, signed=True, padding=1, activation=activation)
    images = torch.randn(4, 5, 9, 11).clamp(-2, 2)
    found, _ = builder.build(builder.to_floats(y), byte_variant=variant)(images, threads=1)
    seen = (images / 0.02).round() * 0.02
    meant = F.conv2d(seen.double(), codes.double() * scales[:, None, None, None], bias.double(), padding=1)
    meant = FUNCTIONS[activation](meant).clamp(-128 * 0.03, 127 * 0.03)
    assert (found.view_as(meant) - meant).abs().max() <= 0.03 * 0.51


@each_byte_variant
def test_images_in_any_layout_become_bytes(variant):
    builder = PlanBuilder(3, 5, 32)
    floats = builder.to_floats(builder.to_bytes(builder.images, 1 / 32, signed=True))
    plan = builder.build(floats, byte_variant=variant)
    cut = (torch.randint(-128, 128, (4, 4, 9, 48)) / 32)[1:, :3, 2:7, 7:39]
    for images in (
        cut,
        cut.contiguous(),
        cut.contiguous(memory_format=torch.channels_last),
        cut[:1].expand(3, 3, 5, 32),
    ):
        found, _ = plan(images, threads=1)
        assert torch.equal(found, images.flatten(1))


@each_byte_variant
@pytest.mark.parametrize("average", [True, False])
def test_a_policy_decides_on_bytes_as_on_floats(variant, average):
    torch.manual_seed(1)
    builder = PlanBuilder(6, 9, 10, gates=[6, 7])
    grid, features = 3, 6 * (9 + average)
    head = GateHead(
        torch.randn(features) / 9, torch.rand(features) / 2 + 0.2, torch.randn(5, features), torch.randn(5),
        torch.randn(7, 5), torch.randn(7), average=average, grid=grid,
    )  # fmt: skip
    weight, images = torch.randint(-127, 128, (7, 6, 1, 1)).to(torch.int8), torch.randn(8, 6, 9, 10)
    codes = torch.eye(6).mul(100).to(torch.int8)[:, :, None, None]
    x = builder.to_bytes(builder.images, 0.02, signed=True)
    x = builder.byte_conv(x, codes, torch.full((6,), 0.01), scale=0.02, signed=True, gate=0)
    builder.decide(1, x, head)
    y = builder.byte_conv(x, weight, torch.full((7,), 0.01), scale=0.1, signed=True, gate=1)
    masks = torch.rand(8, 13) < 0.6
    _, used = builder.build(builder.to_floats(y), byte_variant=variant)(images, masks, threads=1)
    seen = (images / 0.02).round().clamp(-128, 127) * 0.02 * masks[:, :6, None, None]
    raw = [F.adaptive_avg_pool2d(seen, grid).flatten(1)]
    raw = [seen.mean((2, 3)), *raw] if average else raw
    z = ((torch.cat(raw, 1) - head.mean) / head.std).clamp(-10, 10)
    logits = F.linear(F.relu(F.linear(z, head.weight1, head.bias1)), head.weight2, head.bias2)
    sure = logits.abs() > 1e-3
    assert sure.float().mean() > 0.9
    assert (used[:, 6:] == (logits > 0))[sure].all()


@each_byte_variant
def test_a_pass_shows_an_agent_features_of_bytes(variant):
    torch.manual_seed(2)
    builder = PlanBuilder(3, 8, 8, gates=[4])
    x = builder.to_bytes(builder.images, 0.02, signed=True)
    builder.look(x, torch.zeros(3), torch.ones(3))
    y = builder.byte_conv(x, torch.ones(4, 3, 3, 3, dtype=torch.int8), torch.ones(4), scale=9.0, signed=True, gate=0)
    images = torch.randn(5, 3, 8, 8)
    stopped = Pass(builder.build(builder.average(y), byte_variant=variant), 5)
    seen = (images / 0.02).round().clamp(-128, 127) * 0.02
    close(stopped.begin(images), seen.mean((2, 3)))
    outputs = stopped.advance(torch.tensor([[1, 0, 1, 0]]).expand(5, -1))
    bytes_ = (F.conv2d(seen, torch.ones(4, 3, 3, 3)) / 9).round().clamp(-128, 127)
    close(outputs, bytes_.mean((2, 3)) * 9 * torch.tensor([1.0, 0, 1, 0]))


def test_averages_of_large_maps_do_not_overflow():
    builder = PlanBuilder(1, 700, 1500)
    y = builder.average(builder.to_bytes(builder.images, 1.0, signed=False))
    found, _ = builder.build(y)(torch.full((1, 1, 700, 1500), 250.0), threads=1)
    np.testing.assert_allclose(found.numpy(), [[250.0]], rtol=1e-6)


class TestRefusals:
    def built(self):
        builder = PlanBuilder(3, 8, 8)
        return builder, builder.to_bytes(builder.images, 0.1, signed=False)

    def test_layers_without_a_form_on_bytes(self):
        builder, x = self.built()
        for layer in (
            lambda: builder.add(x),
            lambda: builder.concat([x]),
            lambda: builder.avg_pool(x, 2),
            lambda: builder.linear(x, torch.ones(2, 192)),
            lambda: builder.build(x),
        ):
            with pytest.raises(InvalidInputError, match="to_floats"):
                layer()

    def test_wrong_values(self):
        builder, x = self.built()
        codes, scales = torch.ones(2, 3, 1, 1, dtype=torch.int8), torch.ones(2)
        with pytest.raises(InvalidInputError, match="needs bytes"):
            builder.byte_conv(builder.images, codes, scales, scale=1.0, signed=False)
        with pytest.raises(InvalidInputError, match="must be int8"):
            builder.byte_conv(x, codes.float(), scales, scale=1.0, signed=False)
        with pytest.raises(InvalidInputError, match="must be int8"):
            builder.byte_conv(x, codes - 129, scales, scale=1.0, signed=False)
        with pytest.raises(InvalidInputError, match="scales"):
            builder.byte_conv(x, codes, scales[:1], scale=1.0, signed=False)
        with pytest.raises(InvalidInputError, match="scale"):
            builder.to_bytes(builder.images, 0.0, signed=False)
        with pytest.raises(InvalidInputError, match="bytes already"):
            builder.to_bytes(x, 1.0, signed=False)
        with pytest.raises(InvalidInputError, match="floats already"):
            builder.to_floats(builder.images)

    def test_an_unknown_variant_is_named(self):
        builder, x = self.built()
        with pytest.raises(InvalidInputError, match=r"'sse' cannot run here; these can: .*bytes4"):
            builder.build(builder.to_floats(x), byte_variant="sse")
