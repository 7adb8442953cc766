"""What every test shares: one thread a process, and no data set remembered from another test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prunegym.models.data.dataset_registry import forget_datasets

torch.set_num_threads(1)


@pytest.fixture
def fresh_datasets() -> Iterator[None]:
    """Forget loaded data sets before and after: a test writes files of its own under well-known names."""
    forget_datasets()
    yield
    forget_datasets()


@pytest.fixture
def shared_data() -> Path:
    """The folder of large data files; skips where there is none."""
    folder = os.environ.get("PRUNEGYM_DATA")
    if not folder or not (Path(folder) / "cifar10-jpeg.tar.gz").is_file():
        pytest.skip("PRUNEGYM_DATA names no folder with cifar10-jpeg.tar.gz")
    return Path(folder)
