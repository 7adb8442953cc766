"""The kernel on bfloat16: random networks beside torch, decisions and features, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from prunegym.errors import InvalidInputError
from prunegym.models.kernel import GateHead, Pass, PlanBuilder, bfloat16_variants
from tests.models.kernel.bfloat16_networks import Bfloat16Network
from tests.models.skipping.skipping_networks import close

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not bfloat16_variants(), reason="the compiled kernel was not built"),
]
each_variant = pytest.mark.parametrize("variant", bfloat16_variants())


@pytest.mark.parametrize("first", [0, 20])
def test_each_layer_of_random_networks_equals_torch_up_to_rounding(first):
    for seed in range(first, first + 20):
        Bfloat16Network(seed).check(bfloat16_variants(), batch=1 + seed % 3)


@pytest.mark.slow
def test_each_layer_of_hundreds_of_random_networks_equals_torch_up_to_rounding():
    for seed in range(1000, 1500):
        Bfloat16Network(seed).check(bfloat16_variants(), batch=1 + seed % 3)


@each_variant
def test_numbers_are_rounded_to_the_nearest_and_ties_to_even(variant):
    builder = PlanBuilder(3, 1, 16)
    plan = builder.build(builder.to_floats(builder.to_bfloat16(builder.images)), bfloat16_variant=variant)
    # 1 + n / 256 has one bit too many for odd n: every second of them is a tie.
    images = (1 + torch.arange(48.0) / 256).mul(torch.tensor([1.0, -3.0, 2.0**-100]).repeat(16)).view(1, 3, 1, 16)
    found, _ = plan(images, threads=1)
    assert torch.equal(found, images.bfloat16().float().flatten(1))


@each_variant
def test_a_policy_decides_on_bfloat16_as_on_floats(variant):
    torch.manual_seed(1)
    builder = PlanBuilder(6, 9, 10, gates=[6, 7])
    features = 6 * (9 + 1)
    head = GateHead(
        torch.randn(features) / 9, torch.rand(features) / 2 + 0.2, torch.randn(5, features), torch.randn(5),
        torch.randn(7, 5), torch.randn(7), average=True, grid=3,
    )  # fmt: skip
    images, masks = torch.randn(8, 6, 9, 10), torch.rand(8, 13) < 0.6
    x = builder.conv(builder.to_bfloat16(builder.images), torch.eye(6)[:, :, None, None], gate=0)
    builder.decide(1, x, head)
    y = builder.conv(x, torch.randn(7, 6, 1, 1), gate=1)
    _, used = builder.build(builder.to_floats(y), bfloat16_variant=variant)(images, masks, threads=1)
    seen = images.bfloat16().float() * masks[:, :6, None, None]
    raw = torch.cat([seen.mean((2, 3)), F.adaptive_avg_pool2d(seen, 3).flatten(1)], 1)
    z = ((raw - head.mean) / head.std).clamp(-10, 10)
    logits = F.linear(F.relu(F.linear(z, head.weight1, head.bias1)), head.weight2, head.bias2)
    sure = logits.abs() > 1e-3
    assert sure.float().mean() > 0.9
    assert (used[:, 6:] == (logits > 0))[sure].all()


@each_variant
def test_a_pass_shows_an_agent_features_of_bfloat16(variant):
    torch.manual_seed(2)
    builder = PlanBuilder(3, 8, 8, gates=[5])
    x, weight = builder.to_bfloat16(builder.images), torch.randn(5, 3, 3, 3).bfloat16().float()
    builder.look(x, torch.zeros(3), torch.ones(3))
    y = builder.conv(x, weight, gate=0)
    images = torch.randn(5, 3, 8, 8)
    stopped = Pass(builder.build(builder.average(y), bfloat16_variant=variant), 5)
    seen = images.bfloat16().float()
    close(stopped.begin(images), seen.mean((2, 3)))
    mask = torch.tensor([1.0, 0, 1, 0, 1])
    outputs = stopped.advance(mask.expand(5, -1))
    close(outputs, F.conv2d(seen, weight).bfloat16().float().mean((2, 3)) * mask, tolerance=2e-4)


class TestRefusals:
    def built(self):
        builder = PlanBuilder(4, 8, 8)
        return builder, builder.to_bfloat16(builder.images)

    def test_layers_without_a_form_on_bfloat16(self):
        builder, x = self.built()
        for layer in (
            lambda: builder.add(x),
            lambda: builder.concat([x]),
            lambda: builder.avg_pool(x, 2),
            lambda: builder.linear(x, torch.ones(2, 256)),
            lambda: builder.conv(x, torch.ones(4, 1, 3, 3), groups=4),
            lambda: builder.build(x),
        ):
            with pytest.raises(InvalidInputError, match="to_floats"):
                layer()

    def test_floats_beside_bfloat16(self):
        builder, x = self.built()
        weight = torch.ones(4, 4, 1, 1)
        for first, second in ((x, builder.images), (builder.images, x)):
            with pytest.raises(InvalidInputError, match="give both as floats, or neither"):
                builder.conv(first, weight, residual=second)
        with pytest.raises(InvalidInputError, match="bfloat16 already"):
            builder.to_bfloat16(x)
        with pytest.raises(InvalidInputError, match="bfloat16 already"):
            builder.to_bytes(x, 1.0, signed=False)
        with pytest.raises(InvalidInputError, match="needs bytes"):
            builder.byte_conv(x, torch.ones(4, 4, 1, 1, dtype=torch.int8), torch.ones(4), scale=1.0, signed=False)

    def test_an_unknown_variant_is_named(self):
        builder, x = self.built()
        with pytest.raises(InvalidInputError, match=r"bfloat16 variant 'sse' cannot run here; these can: .*pairs4"):
            builder.build(builder.to_floats(x), bfloat16_variant="sse")
