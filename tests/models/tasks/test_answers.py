"""What outputs say, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from prunegym.models.tasks.answers import answers

CLASSES = ("cat", "dog")


def test_a_class_with_its_probability() -> None:
    found, names, chances = answers("classes", torch.tensor([[0.0, math.log(3.0)], [2.0, 0.0]]), CLASSES)
    assert (found.tolist(), names) == ([1, 0], ["dog", "cat"])
    assert chances is not None
    assert chances[0].item() == pytest.approx(0.75)
    assert answers("classes", torch.tensor([[0.0, 0.0, 1.0]]), CLASSES)[1] == ["2"]
    assert answers("outputs", torch.tensor([[0.0, 0.0, 1.0]]), ())[1] == ["2"]


def test_numbers_labels_and_maps() -> None:
    assert answers("numbers", torch.tensor([[0.5, 12345.678]]), ())[1] == ["0.5, 1.235e+04"]
    assert answers("outputs", torch.tensor([[0.5]]), ())[1] == ["0.5"]
    found, names, chances = answers("labels", torch.tensor([[1.0, 2.0], [-1.0, -1.0]]), CLASSES)
    assert (found.tolist(), names, chances) == ([[1, 1], [0, 0]], ["cat, dog", "none"], None)
    maps = torch.zeros(1, 3, 2, 2)
    maps[0, 1, 0] = 1
    maps[0, 2, 1, 0] = 1
    found, names, _ = answers("maps", maps, CLASSES)
    assert found.tolist() == [[[1, 1], [2, 0]]]
    assert names[0].split(", ")[0] == "dog 50%"
    assert set(names[0].split(", ")[1:]) == {"cat 25%", "2 25%"}
