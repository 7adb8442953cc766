"""A small trained CNN on digits, made once a session, for the tests of what builds on one."""

from __future__ import annotations

import pytest
import torch

from prunegym.models import Dataset, MaskedCNN, TrainConfig, build, load_dataset, train


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits", "train")


@pytest.fixture(scope="session")
def digits_cnn(digits: Dataset) -> torch.nn.Module:
    network = build("simple-cnn", in_channels=1, image_size=8)
    return train(network, digits, TrainConfig(epochs=12, batch_size=64, learning_rate=0.05))


@pytest.fixture
def digits_masked(digits_cnn: torch.nn.Module, digits: Dataset) -> MaskedCNN:
    return MaskedCNN(digits_cnn, digits.batch(torch.arange(1)))
