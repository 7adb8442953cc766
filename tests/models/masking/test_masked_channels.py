"""A masked channel is zero whatever stands in it; gradients are those of the product."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from prunegym.models.masking.forward_pass import mask_channels
from prunegym.models.masking.masked_cnn import MaskedCNN


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e38])
def test_a_masked_channel_is_zero(value: float) -> None:
    values = torch.randn(2, 3, 4, 4)
    values[:, 1] = value
    masked = mask_channels(values, torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 1.0]])[:, :, None, None])
    assert (masked[:, 1] == 0).all()
    assert torch.equal(masked[0, 0], values[0, 0])
    assert torch.equal(masked[0, 2], values[0, 2] / 2)


def test_outputs_and_gradients_are_those_of_the_product() -> None:
    torch.manual_seed(0)
    values, mask = torch.randn(4, 5, 3, 3, requires_grad=True), torch.rand(4, 5)
    mask[0, 1], mask[2], mask[3, 4] = 0, 1, 0
    mask.requires_grad_()
    product, masked = values * mask[:, :, None, None], mask_channels(values, mask[:, :, None, None])
    weights = torch.randn_like(product)
    assert torch.equal(product, masked)
    wanted = torch.autograd.grad((product * weights).sum(), (values, mask))
    for one, other in zip(torch.autograd.grad((masked * weights).sum(), (values, mask)), wanted, strict=True):
        torch.testing.assert_close(one, other)
    assert wanted[1][0, 1] != 0  # what straight-through training learns from


def test_gradients_of_gradients() -> None:
    values, mask = torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.rand(2, 3, 1, 1, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(mask_channels, (values.requires_grad_(), mask.requires_grad_()))


def test_a_network_whose_masked_channel_overflows() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].get_parameter("weight")[1] = 3e38
    masked = MaskedCNN(net.eval(), torch.zeros(1, 1, 1, 1))
    mask = torch.ones(1, masked.mask_size)
    images = torch.full((1, 1, 1, 1), 20.0)
    assert not masked(images, mask).isfinite().all()
    mask[0, 1] = 0
    with torch.no_grad():
        net[0].get_parameter("weight")[1] = 0  # a network without the channel
        net[0].get_parameter("bias")[1] = 0
    torch.testing.assert_close(masked(images, mask), net(images))
