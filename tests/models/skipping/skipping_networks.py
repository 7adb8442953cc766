"""Networks, policies and masks that the tests of skipping execution share."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.models import (
    ZOO,
    GatePolicy,
    MaskedCNN,
    MaskFeatures,
    build,
    kernel,
)
from prunegym.models.skipping.skipping_cnn import PATHS
from tests.models.slicing import randomise

needs_kernel = pytest.mark.skipif(not kernel.available(), reason=f"no compiled kernel: {kernel.unavailable_reason()}")
each_variant = pytest.mark.parametrize(
    "variant", kernel.variants() or [pytest.param("none", marks=pytest.mark.skip(reason=kernel.unavailable_reason()))]
)
NAMED = [path.name for path in PATHS if not path.rounds]
WAYS = [pytest.param(way, marks=needs_kernel if way == "kernel" else ()) for way in NAMED]
SLOW = {"resnet18", "resnet32", "resnet44", "resnet56", "vgg11", "vgg16"}
NETWORKS = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in ZOO]


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max() + 1e-6


def random_masks(masked: MaskedCNN, batch: int = 6) -> Tensor:
    """Random kept sets; all on, all off, one gate off, and two images with equal masks among them."""
    masks = torch.rand(batch, masked.mask_size) < torch.rand(batch, 1)
    masks[0] = True
    masks[1] = False
    masks[2, : masked.gates[0].width] = False
    masks[3, -masked.gates[-1].width :] = False
    masks[5] = masks[4]
    return masks


def kept_sets(batch: int, widths: list[int]) -> Tensor:
    """Random kept sets; the first image keeps all, the second none of the first gate, the third nothing at all."""
    masks = torch.rand(batch, sum(widths)) < torch.rand(batch, 1)
    masks[0] = True
    if batch > 2:
        masks[1, : widths[0]] = False
        masks[2] = False
    return masks


def zoo(name: str, size: int = 32) -> MaskedCNN:
    return MaskedCNN(randomise(build(name, image_size=size)), torch.zeros(1, 3, size, size))


def policy_for(masked: MaskedCNN, **options) -> GatePolicy:
    """A policy whose decisions depend on the image, about half of the channels on."""
    names = ("layerwise", "grid", "feature_size")
    feature_options = {key: options.pop(key) for key in names if key in options}
    policy = GatePolicy(MaskFeatures(masked, **feature_options), hidden=16, bias=0.0, **options)
    policy.rescale_logits(50.0)
    return policy.eval()


class UserNet(nn.Module):
    """A residual network with what people write: projection shortcuts, in-place sums, dropout, flatten by view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.a = nn.Conv2d(8, 12, 3, padding="same", bias=False)
        self.norm_a = nn.BatchNorm2d(12)
        self.b = nn.Conv2d(12, 16, 3, 2, 1)
        self.norm_b = nn.BatchNorm2d(16)
        self.short = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        self.c = nn.Conv2d(16, 10, 1)
        self.d = nn.Conv2d(10, 16, 3, 1, 1)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16 * 16, 20)
        self.last = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        y = self.norm_b(self.b(torch.relu(self.norm_a(self.a(x)))))
        y += self.short(x)
        x = F.relu(y, inplace=True)
        x = self.relu(torch.add(x, self.d(self.c(x).relu())))
        x = F.dropout(x, 0.3, self.training)
        x = self.drop(self.relu(self.head(x.view(x.size(0), -1))))
        return self.last(x)


class Mixed(nn.Module):
    """What only torch runs: other activations, a depthwise convolution, squeeze-and-excitation, concatenation."""

    def __init__(self, depthwise: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, (3, 5), padding=(1, 2))
        self.side = nn.Conv2d(3, 6, 3, padding=1, groups=3)
        self.c, self.d = nn.Conv2d(12, 9, 3, dilation=2), nn.Conv2d(9, 7, 3)
        self.depthwise = nn.Conv2d(9, 9, 3, groups=9) if depthwise else nn.Identity()
        self.squeeze = nn.Conv2d(7, 7, 1)
        self.last = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.b(torch.sigmoid(self.a(x)))
        y = torch.cat([torch.tanh(inner * inner), F.gelu(self.side(x))], 1)
        y = self.d(self.depthwise(F.avg_pool2d(F.silu(self.c(y)), 2)))
        y = y * torch.sigmoid(self.squeeze(y.mean((2, 3), keepdim=True)))
        return self.last(y.mean((2, 3)))
