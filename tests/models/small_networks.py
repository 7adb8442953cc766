"""A small CNN, the same masked, and images for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.zoo.networks import SimpleCNN
from tests.models.slicing import randomise

EXAMPLE = torch.zeros(1, 3, 32, 32)


def small(**more: object) -> tuple[nn.Module, MaskedCNN]:
    """Return a network of widths 4 and 6 on 8x8 images, its norms not trivial, and its MaskedCNN, in float64."""
    network = randomise(SimpleCNN(image_size=8, widths=(4, 6), batch_norm=True)).double()
    return network, MaskedCNN(network, torch.zeros(1, 3, 8, 8), **more)


def images(batch: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
