"""Run states: exact round trips, and files that are damaged or hostile, which never execute code."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from prunegym.errors import InvalidInputError, MissingDataError
from prunegym.models.storage.run_state import KEY, load_state, save_state

STATE = {
    "epoch": 3, "rate": 0.1, "huge": 2**127, "least": -0.0, "none": None, "yes": True, "names": ["a", ("b", 1)],
    "nested": {0: {"step": torch.tensor(2.5)}, "bytes": torch.arange(3, dtype=torch.uint8)}, "empty": {}, "nothing": (),
}  # fmt: skip


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and repr(one) == repr(other)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "run" / "state.safetensors"
    save_state(path, {"epoch": 2})
    save_state(path, STATE)
    assert _same(load_state(path), STATE)
    assert [file.name for file in path.parent.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_training_goes_on_exactly(tmp_path: Path, optimizer: type[torch.optim.Optimizer]) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        torch.manual_seed(0)
        network = nn.Linear(3, 1)
        steps = optimizer(network.parameters(), 0.1)  # type: ignore[call-arg]
        return network, steps, torch.optim.lr_scheduler.OneCycleLR(steps, 0.1, total_steps=9, cycle_momentum=False)

    def train(parts: tuple[nn.Module, torch.optim.Optimizer, Any], count: int) -> None:
        for _ in range(count):
            parts[1].zero_grad()
            parts[0](torch.ones(1, 3)).square().sum().backward()
            parts[1].step()
            parts[2].step()

    whole, first, second = made(), made(), made()
    train(whole, 8)
    train(first, 3)
    save_state(tmp_path / "state.safetensors", {"parts": [part.state_dict() for part in first]})
    for part, state in zip(second, load_state(tmp_path / "state.safetensors")["parts"], strict=True):
        part.load_state_dict(state)
    train(second, 5)
    assert torch.equal(second[0].weight, whole[0].weight)


def test_a_state_with_anything_else_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, {"epoch": 2})
    with pytest.raises(TypeError, match="function"):
        save_state(path, {"epoch": 3, "code": lambda: None})
    assert load_state(path) == {"epoch": 2}


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_no_code_runs(tmp_path: Path, form: str) -> None:
    path, mark = tmp_path / "state.safetensors", tmp_path / "mark"
    if form == "pickle":
        path.write_bytes(pickle.dumps(_Evil(mark)))
    else:
        torch.save({"state": _Evil(mark)}, path)
    with pytest.raises(InvalidInputError, match="damaged"):
        load_state(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", '{"dict": 3}', '{"dict": [[1]]}', '{"dict": [["a", {"tensor": "9"}]]}', '{"list": []}',
        '{"dict": [[{"list": []}, 1]]}', '{"dict": [["a", {"code": []}]]}', '{"dict": [], "list": []}', "9" * 5000,
        '{"list": [' * 100_000 + "]}" * 100_000,
    ],
)  # fmt: skip
def test_descriptions_that_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(safetensors.torch.save({"0": torch.zeros(2)}, {KEY: text}))
    with pytest.raises(InvalidInputError, match="Delete it"):
        load_state(path)


def test_files_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="Check the path"):
        load_state(tmp_path / "none.safetensors")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text(json.dumps({"a": 1}))
    (tmp_path / "weights").write_bytes(safetensors.torch.save({"0": torch.zeros(2)}))
    for name in ("folder", "pipe", "text", "weights"):
        with pytest.raises(InvalidInputError, match=name):
            load_state(tmp_path / name)
