"""A network of the user's own goes the whole way on the command line, by the name that its module registers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunegym.models import ZOO, DynamicCNN, load_dataset
from tests.commands.command_line import CNN, PREPARE, RL, as_json, fail, succeed

OWN = """
from torch import nn
from prunegym.models import register_network

class Mine(nn.Sequential):
    def __init__(self, num_classes, in_channels):
        body = nn.Conv2d(in_channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()
        super().__init__(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, num_classes))

register_network("own-network", Mine)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "own_network.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    ZOO.pop("own-network", None)


def test_from_training_to_prediction(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "own-network" in fail("train-cnn", "own-network", *CNN, "--out", own / "cnn")
    succeed(
        "--import", "own_network", "train-cnn", "own-network", *CNN, "--set", "learning_rate=0.05", "--out", own / "cnn"
    )
    succeed("prepare", own / "cnn/cnn.safetensors", *PREPARE, "--out", own / "prepared")
    succeed("train", own / "prepared/prepared.safetensors", *RL, "--out", own / "agent")
    figures = as_json("evaluate", own / "agent/model.safetensors")
    ZOO.pop("own-network")
    assert "register_network (--import MODULE)" in fail("evaluate", own / "agent/model.safetensors")
    monkeypatch.setenv("PRUNEGYM_IMPORT", "own_network")
    monkeypatch.delitem(sys.modules, "own_network")
    assert as_json("evaluate", own / "agent/model.safetensors") == figures
    labels = DynamicCNN.load(own / "agent/model.safetensors").predict(load_dataset("digits", "test").images[:8]).labels
    assert labels.shape == (8,)


def test_a_module_that_is_not_there() -> None:
    assert "module 'nowhere' cannot be imported" in fail("--import", "nowhere", "list")
