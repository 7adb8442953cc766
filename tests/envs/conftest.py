"""A CNN that has learned digits a little, so that some answers are right and some are wrong."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.zoo.network_registry import build


@pytest.fixture(scope="session")
def cnn():
    network, digits = build("simple-cnn", in_channels=1, image_size=8), load_dataset("digits")
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        rows = torch.randint(0, len(digits), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(network(digits.batch(rows)), digits.labels[rows]).backward()
        optimizer.step()
    return network.eval()
