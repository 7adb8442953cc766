"""A small trained CNN on digits, made once a session, for the tests of what builds on one."""

from __future__ import annotations

from collections.abc import Iterator

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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Inference on one thread, from one seed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)
