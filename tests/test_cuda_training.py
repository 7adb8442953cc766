"""What trains, judges and writes models does so on a CUDA device, from gates that are fresh."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from prunegym.agents.baselines.static_masks import BASELINES
from prunegym.agents.comparison.comparing import compare
from prunegym.agents.comparison.entries import STARTS, TRAINED_BASELINES
from prunegym.agents.rl.finetuning import finetune
from prunegym.agents.rl.recipe import Recipe
from prunegym.agents.rl.recipe_files import load_recipe
from prunegym.agents.rl.trainer import train_agent
from prunegym.models import (
    Dataset,
    DynamicCNN,
    ImitationConfig,
    PrepareConfig,
    SimpleDynamicCNN,
    TuneConfig,
    as_dynamic_cnn,
    load_dataset,
    prepare,
    shipped_model,
)
from prunegym.models.export.onnx_model import export_onnx
from prunegym.models.timing.latency_measurement import measure
from prunegym.models.timing.latency_timers import make_timer
from prunegym.models.training.preparation import new_policy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device that torch can use")


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def digits(split: str, count: int | None = None) -> Dataset:
    data = load_dataset("digits", split)
    return data if count is None else data.subset(torch.arange(count))


def short(name: str = "digits") -> Recipe:
    return dataclasses.replace(load_recipe(name), n_envs=32, group=4, n_episodes=128, eval_every=2)


def test_features_are_calibrated_where_the_cnn_is() -> None:
    masked, train = shipped_model("digits").masked, digits("train")
    config = PrepareConfig()
    expected = new_policy(masked, train, config)
    found = new_policy(masked.cuda(), train, config)
    assert {tensor.device.type for tensor in found.state_dict().values()} == {"cuda"}
    for index in range(len(expected.decisions)):
        mean = f"mean{index}"
        assert torch.allclose(
            found.features.get_buffer(mean).cpu(), expected.features.get_buffer(mean), rtol=1e-2, atol=1e-2
        )


@pytest.mark.parametrize("train_cnn", [False, True])
def test_fresh_gates_are_prepared(train_cnn: bool, tmp_path: Path) -> None:
    masked, train = shipped_model("digits").masked.cuda(), digits("train")
    tuning = TuneConfig(0.5, 2.0, batch_size=64, train_cnn=train_cnn)
    config = PrepareConfig(ImitationConfig(40, mac_share=0.5), tuning)
    model = DynamicCNN(*prepare(masked, train, config, folder=tmp_path), shipped_model("digits").info)
    on_cuda = model.predict(digits("test").images[:200])
    assert float(on_cuda.mac_share.mean()) == pytest.approx(0.5, abs=0.1)
    model.save(tmp_path / "model.safetensors")
    on_cpu = DynamicCNN.load(tmp_path / "model.safetensors").predict(digits("test").images[:200])
    assert float((on_cpu.masks == on_cuda.masks.cpu()).float().mean()) > 0.999


def test_a_recipe_begins_from_a_cnn_without_gates(tmp_path: Path) -> None:
    model = shipped_model("digits")
    recipe = dataclasses.replace(short(), imitation=ImitationConfig(100, mac_share=0.6))
    trained = train_agent(
        model.masked, model.info, digits("train"), digits("validation"), recipe, tmp_path, device="cuda", progress=False
    )  # fmt: skip
    assert next(trained.parameters()).is_cuda


def test_everything_that_is_compared(tmp_path: Path) -> None:
    model, names = shipped_model("digits"), [*BASELINES, *TRAINED_BASELINES, *STARTS]
    table = compare([short(), *names], model, digits("test", 100), [0], out=tmp_path, device="cuda")
    assert [row.name for row in table.rows][1:] == names
    budget = {row.name: row.figures["total_mac_share"].mean for row in table.rows}
    assert budget["start-same-macs"] == pytest.approx(budget["digits"], abs=0.05)


def test_turns_of_cnn_and_policy(tmp_path: Path) -> None:
    tuning = TuneConfig(1.0, 1.0, train_gates=False, anneal=0.0)
    rows = finetune(
        shipped_model("digits"), digits("train"), digits("validation"), short(), tuning, tmp_path, rounds=1,
        dense=shipped_model("digits").masked.network, device="cuda", progress=False,
    )  # fmt: skip
    assert [row["stage"] for row in rows] == ["start", "turn 1, CNN", "turn 1, policy"]


def test_the_documents_gates() -> None:
    network = SimpleDynamicCNN(in_channels=1, image_size=8).eval().cuda()
    images = digits("train", 16)
    found = as_dynamic_cnn(network, digits("train")).predict(images.images).logits
    assert torch.allclose(found, network(images.batch(torch.arange(16), device="cuda")), rtol=1e-3, atol=1e-3)


def test_a_latency_table() -> None:
    masked = shipped_model("digits").masked.cuda()
    table = measure(masked, make_timer("torch", masked), rounds=1, validation_masks=2)
    assert table.seconds(torch.ones(1, masked.mask_size)).item() > 0


def test_files_are_those_of_the_cpu(tmp_path: Path) -> None:
    model = shipped_model("digits")
    for where in ("cpu", "cuda"):
        model.to(where)
        export_onnx(model, tmp_path / f"{where}.onnx")
        model.save(tmp_path / f"{where}.safetensors")
    assert (tmp_path / "cuda.onnx").read_bytes() == (tmp_path / "cpu.onnx").read_bytes()
    assert (tmp_path / "cuda.safetensors").read_bytes() == (tmp_path / "cpu.safetensors").read_bytes()
