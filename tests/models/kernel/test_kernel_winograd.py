"""Winograd's algorithm in the compiled kernel: 3x3 convolutions of large maps, against torch on sliced weights."""

from __future__ import annotations

import pytest
import torch

from prunegym.models.kernel import PlanBuilder
from tests.models.kernel.test_kernel import conv_network, sliced_conv
from tests.models.skipping.skipping_networks import close, each_variant, kept_sets

pytestmark = pytest.mark.usefixtures("one_thread")

WIDE = (50, 61)  # channels enough that the path is taken


def wide_network(pixels, variant, *, channels=WIDE, relu=True, residual=True):
    """As test_kernel's network, but a 1x1 convolution to three channels makes the output small."""
    height, width = pixels
    first, second = channels
    w1, b1 = torch.randn(first, 3, 1, 1), torch.randn(first)
    w2, b2 = torch.randn(second, first, 3, 3), torch.randn(second)
    w3, w4 = torch.randn(second, 3, 1, 1), torch.randn(2, second, 1, 1)
    builder = PlanBuilder(3, height, width, gates=channels)
    x = builder.conv(builder.images, w1, b1, gate=0)
    add = builder.conv(builder.images, w3, gate=1) if residual else None
    y = builder.conv(builder.conv(x, w2, b2, padding=1, relu=relu, gate=1, residual=add), w4)
    plan = builder.build(builder.linear(y, torch.eye(2 * height * width)), variant)

    def expected(image, mask):
        kept1, kept2 = mask[:first], mask[first:]
        inner = sliced_conv(image, torch.ones(3, dtype=torch.bool), w1, b1, kept1)
        out = sliced_conv(inner, kept1, w2, b2, kept2, padding=1)
        if residual:
            out = out + sliced_conv(image, torch.ones(3, dtype=torch.bool), w3, torch.zeros(second), kept2)
        out = out.relu() if relu else out
        return torch.nn.functional.conv2d(out[None], w4)[0].flatten()

    return plan, expected


@each_variant
@pytest.mark.parametrize("pixels", [(14, 14), (16, 18), (12, 30), (28, 28), (32, 34), (48, 70), (6, 130)])
@pytest.mark.parametrize(("relu", "residual"), [(False, False), (True, True)])
def test_it_equals_torch_on_sliced_weights(variant, pixels, relu, residual):
    plan, expected = wide_network(pixels, variant, relu=relu, residual=residual)
    images = torch.randn(4, 3, *pixels)
    masks = kept_sets(4, list(WIDE))
    for image, mask, output in zip(images, masks, plan(images, masks, threads=1)[0], strict=True):
        close(output, expected(image, mask))


@each_variant
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7, 8, 9, 12, 13, 25, 50, 61])
def test_every_number_of_rows(variant, rows):
    plan, expected = wide_network((14, 14), variant)
    mask = torch.zeros(1, sum(WIDE), dtype=torch.bool)
    mask[:, 3:9] = True
    mask[0, WIDE[0] + torch.randperm(WIDE[1])[:rows]] = True
    image = torch.randn(1, 3, 14, 14)
    close(plan(image, mask)[0][0], expected(image[0], mask[0]))


@each_variant
@pytest.mark.parametrize("pixels", [(14, 14), (28, 30)])
def test_threads_share_output_channels_of_bands(variant, pixels):
    plan, _ = wide_network(pixels, variant)
    images, masks = torch.randn(1, 3, *pixels), torch.rand(1, sum(WIDE)) < 0.6
    alone = plan(images, masks, threads=1)[0]
    for _ in range(200):  # until the helpers are awake, and for as long as they could overwrite each other's rows
        for threads in (2, 3):
            assert torch.equal(plan(images, masks, threads=threads)[0], alone)


@each_variant
def test_what_was_there_before_does_not_show(variant):
    """Maps are used again for other images and masks: frames must stay zero."""
    plan, expected = wide_network((14, 14), variant)
    images, masks = torch.randn(8, 3, 14, 14), kept_sets(8, list(WIDE))
    for turn in range(3):
        for image, mask in zip(images.roll(turn, 0), masks, strict=True):
            close(plan(image[None], mask[None])[0][0], expected(image, mask))


@each_variant
def test_small_and_odd_maps_are_multiplied_as_before(variant):
    for pixels in ((15, 13), (14, 15), (12, 12)):
        plan, expected = conv_network((3, 1, 1, *pixels), WIDE, variant, relu=True, residual=True)
        images, masks = torch.randn(3, 3, *pixels), kept_sets(3, list(WIDE))
        for image, mask, output in zip(images, masks, plan(images, masks)[0], strict=True):
            close(output, expected(image, mask))
