"""What commands are tried on: a CNN, the same prepared, an agent, and a user's own file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.command_line import CNN, PREPARE, RL, succeed

MINE = """
import numpy as np

def thrifty(outcome):
    right = (outcome.logits.argmax(1) == outcome.labels).double()
    return right - outcome.penalty * outcome.mac_share**2

def too_short(outcome):
    return thrifty(outcome)[:1]

class FirstHalf:
    layerwise = True
    macs = 0

    def predict(self, observation):
        bits = np.zeros((len(observation["features"]), 32), dtype=np.int8)
        bits[:, :16] = 1
        return bits

not_an_agent = 3
"""


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Modules that a test imports by ``--import`` are not imported by later tests."""
    before = os.environ.get("PRUNEGYM_IMPORT")
    yield
    os.environ.pop("PRUNEGYM_IMPORT", None)
    if before is not None:
        os.environ["PRUNEGYM_IMPORT"] = before


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CNN, the same prepared, and an agent trained on that."""
    folder = tmp_path_factory.mktemp("made")
    succeed("train-cnn", "simple-cnn", *CNN, "--set", "learning_rate=0.05", "--out", folder / "cnn")
    succeed("prepare", folder / "cnn/cnn.safetensors", *PREPARE, "--out", folder / "prepared")
    succeed("train", folder / "prepared/prepared.safetensors", *RL, "--out", folder / "agent")
    return folder


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file of the user's own."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path
