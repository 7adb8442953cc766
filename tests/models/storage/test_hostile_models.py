"""Model files, tables and records that someone made to do harm: each is refused by an error that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from prunegym.agents.evaluation.evaluator import evaluate
from prunegym.errors import InvalidInputError, PruneGymError
from prunegym.models import DynamicCNN, load_dataset
from prunegym.models.dynamic_cnn import shipped_path
from prunegym.models.storage.run_folder import begin_run
from prunegym.models.timing.latency_table import LatencyTable


def _written(path: Path, tensors: dict[str, Tensor], description: dict[str, Any] | str) -> Path:
    text = description if isinstance(description, str) else json.dumps(description)
    path.write_bytes(safetensors.torch.save(tensors, {"prunegym": text}))
    return path


def _shipped() -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = shipped_path("digits")
    with safetensors.safe_open(path, "pt") as file:
        return safetensors.torch.load_file(path), json.loads(file.metadata()["prunegym"])


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "complex": lambda weight: weight.to(torch.complex64),
    "NaN": lambda weight: weight * float("nan"),
    "infinite": lambda weight: weight + float("inf"),
    "of another shape": lambda weight: weight[:1].contiguous(),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights(tmp_path: Path, kind: str) -> None:
    tensors, description = _shipped()
    key = next(key for key in tensors if key.startswith("network") and tensors[key].ndim == 4)
    path = _written(tmp_path / "m.safetensors", tensors | {key: WEIGHTS[kind](tensors[key])}, description)
    with pytest.raises(InvalidInputError, match=r"m\.safetensors"):
        DynamicCNN.load(path)


@pytest.mark.parametrize(
    "info",
    [
        {"classes": list(range(10))}, {"classes": ["a"] * 9}, {"classes": "0123456789"}, {"num_classes": 10.5},
        {"num_classes": "10"}, {"image_shape": [1, 10**6, 10**6]}, {"image_shape": [1, 2**40, 8]},
        {"image_shape": [1, -8, 8]}, {"normalisation": {"mean": [float("nan")], "std": [1.0]}},
        {"normalisation": {"mean": [0.5], "std": [0.0]}}, {"architecture": "os:system"},
        {"metadata": {"dense_accuracy": []}}, {"metadata": {"dense_accuracy": {"digits/test": float("nan")}}},
        {"metadata": {"dense_accuracy": {"digits/test": "0.9"}}}, {"metadata": {"prepared_accuracy": 1}},
        {"metadata": {"dense_images": {"digits/test": 3}}}, {"metadata": {"dense_images": {"digits/test": "0"}}},
        {"metadata": {"history": 3}}, {"metadata": {"history": [{"step": "x"}]}}, {"metadata": {"splits": [None]}},
    ],
)  # fmt: skip
def test_descriptions(tmp_path: Path, info: dict[str, Any]) -> None:
    tensors, description = _shipped()
    path = _written(tmp_path / "m.safetensors", tensors, description | {"info": description["info"] | info})
    with pytest.raises(PruneGymError, match=r"m\.safetensors|has weights of 'os:system'"):
        DynamicCNN.load(path)


@pytest.mark.parametrize("value", [7.0, -0.1])
def test_an_accuracy_that_cannot_be(tmp_path: Path, value: float) -> None:
    tensors, description = _shipped()
    description["info"]["metadata"]["dense_accuracy"]["digits/test"] = value
    model = DynamicCNN.load(_written(tmp_path / "m.safetensors", tensors, description))
    with pytest.raises(InvalidInputError, match=rf"The metric 'correct' stored for digits/test is {value};"):
        evaluate(model, None, load_dataset("digits", "test"))


DEEP = {"deep": "[" * 100_000, "a long number": '{"format": ' + "9" * 6000 + "}", "nothing": ""}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_json_that_is_deep_or_long(tmp_path: Path, text: str) -> None:
    for name, read in (
        ("m.safetensors", DynamicCNN.load), ("t.json", LatencyTable.load),
        ("run.json", lambda path: begin_run(path.parent, {}, resume=True)),
    ):  # fmt: skip
        path = tmp_path / name
        if path.suffix == ".safetensors":
            _written(path, _shipped()[0], text)
        else:
            path.write_text(text)
        with pytest.raises(InvalidInputError, match=name.replace(".", r"\.")):
            read(path)  # type: ignore[operator]
