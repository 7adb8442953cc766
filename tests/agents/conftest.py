from __future__ import annotations

import pytest
import torch
from torch import nn

from prunegym.models import (
    CNNInfo,
    Dataset,
    DynamicCNN,
    GatePolicy,
    MaskedCNN,
    MaskFeatures,
    Normalisation,
    TrainConfig,
    build,
    load_dataset,
    train,
)


@pytest.fixture(scope="session")
def digits_cnn() -> nn.Module:
    """A small CNN trained for a few seconds; do not change it."""
    network = build("simple-cnn", 10, 1, 8)
    return train(network, load_dataset("digits"), TrainConfig(epochs=6, learning_rate=0.05, precision="float32"))


@pytest.fixture
def masked(digits_cnn: nn.Module) -> MaskedCNN:
    return MaskedCNN(digits_cnn, torch.zeros(1, 1, 8, 8))


@pytest.fixture
def dynamic(masked: MaskedCNN) -> DynamicCNN:
    """Per-input gates with random heads: they keep about half of the channels, others for each image."""
    digits = load_dataset("digits")
    features = MaskFeatures(masked).calibrate(masked, digits)
    torch.manual_seed(0)
    policy = GatePolicy(features, hidden=8, bias=0.5)
    for head in policy.heads:
        nn.init.normal_(head[2].weight, std=1.0)
    return DynamicCNN(masked, policy, CNNInfo.of("simple-cnn", digits))


@pytest.fixture(scope="session")
def few() -> Dataset:
    """Forty test images."""
    return load_dataset("digits", "test").subset(torch.arange(40))


class TwoChannels(nn.Module):
    """Channel k of the only gate is 1 everywhere for every image, and votes for class k."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.bias.fill_(1.0)
            self.fc.weight.copy_(torch.eye(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.relu(self.conv(images))).flatten(1))


@pytest.fixture
def two_channels() -> MaskedCNN:
    return MaskedCNN(TwoChannels(), torch.zeros(1, 1, 4, 4))


@pytest.fixture
def votes() -> Dataset:
    """Twelve images, three of four of class 0."""
    labels = torch.tensor([0, 0, 0, 1] * 3)
    images = torch.zeros(12, 1, 4, 4, dtype=torch.uint8)
    return Dataset("votes", "test", images, labels, ("a", "b"), Normalisation((0.5,), (0.5,)))
