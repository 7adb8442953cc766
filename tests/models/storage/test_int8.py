"""int8 weights: exact numbers by hand, small files, and models that are as good as before."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

from prunegym.errors import InvalidInputError
from prunegym.models import (
    CNNInfo,
    DynamicCNN,
    MaskedCNN,
    build,
    fixed_policy,
    load_dataset,
    read_model,
    shipped_model,
    write_model,
)
from prunegym.models.dynamic_cnn import shipped_path
from prunegym.models.storage.weights import dequantize, dequantized, quantize, quantized_state
from tests import ROOT

CIFAR = ROOT / "results/cifar10-jpeg/frozen.safetensors"


def figures(model: DynamicCNN, split: str = "test") -> tuple[float, float]:
    """Accuracy and mean MAC share on a split."""
    data = load_dataset(model.info.dataset, split)
    found = [model.predict(part) for part in data.images.split(500)]
    right = torch.cat([part.labels for part in found]) == data.labels
    return right.double().mean().item(), torch.cat([part.mac_share for part in found]).mean().item()


def test_numbers_by_hand() -> None:
    weight = torch.tensor([[[[2.54, -1.27]]], [[[0.0, 0.0]]], [[[-1e-30, 5e-31]]]])
    whole, scale = quantize(weight)
    assert whole.dtype == torch.int8
    assert whole.flatten(1).tolist() == [[127, -64], [0, 0], [-127, 64]]  # 63.5 goes to the even neighbour
    torch.testing.assert_close(scale, torch.tensor([0.02, 1.0, 1e-30 / 127]))
    torch.testing.assert_close(dequantize(whole, scale)[0, 0, 0], torch.tensor([2.54, -1.28]))


def test_every_weight_is_within_half_a_step_and_a_second_time_changes_nothing() -> None:
    weight = torch.randn(32, 16, 3, 3) * torch.logspace(-3, 1, 32).view(-1, 1, 1, 1)
    whole, scale = quantize(weight)
    again = dequantize(whole, scale)
    assert ((weight - again).abs().flatten(1).amax(1) <= 0.5001 * scale).all()
    assert torch.equal(quantize(again)[0], whole)


def test_what_is_quantised_and_what_is_not() -> None:
    network = build("resnet20")
    state = quantized_state(network)
    whole = {name for name, tensor in state.items() if tensor.dtype == torch.int8}
    layers = (nn.Conv2d, nn.Linear)
    assert whole == {f"{name}.weight" for name, layer in network.named_modules() if isinstance(layer, layers)}
    assert torch.equal(state["bn1.running_var"], network.state_dict()["bn1.running_var"])
    assert "bn1.num_batches_tracked" not in state
    restored = dequantized(state, "a test")
    assert set(restored) == {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}


def test_the_shipped_model_is_a_quarter_of_the_size_and_as_good(tmp_path: Path) -> None:
    model, path = shipped_model("digits"), tmp_path / "small.safetensors"
    model.save(path, int8=True)
    assert path.stat().st_size <= 0.3 * shipped_path("digits").stat().st_size
    small = DynamicCNN.load(path)
    (accuracy, macs), (small_accuracy, small_macs) = figures(model), figures(small)
    assert small_accuracy >= accuracy - 0.003
    assert abs(small_macs - macs) < 0.005
    assert small.info == model.info
    images = load_dataset("digits", "test").images[:20]
    small.save(path, int8=True)
    assert torch.equal(DynamicCNN.load(path).predict(images).masks, small.predict(images).masks)


@pytest.mark.slow
def test_the_cifar_model_is_as_good(shared_data: Path, tmp_path: Path) -> None:
    model, path = DynamicCNN.load(CIFAR), tmp_path / "small.safetensors"
    model.save(path, int8=True)
    assert path.stat().st_size <= 0.3 * CIFAR.stat().st_size
    assert figures(DynamicCNN.load(path).skip())[0] >= figures(model.skip())[0] - 0.003


def test_masks_and_export_compose(tmp_path: Path) -> None:
    """A quantised CNN under a mask is the quantised CNN with those channels zero; a static mask is kept as it was."""
    masked, info = shipped_model("digits").masked, shipped_model("digits").info
    mask = (torch.arange(masked.mask_size) % 3 > 0).float()
    path = tmp_path / "static.safetensors"
    DynamicCNN(masked, fixed_policy(masked, mask), info).save(path, int8=True)
    loaded = DynamicCNN.load(path)
    images = load_dataset("digits", "test").images[:6]
    prediction = loaded.predict(images)
    assert torch.equal(prediction.masks.float(), mask.expand(6, -1))
    network = build("simple-cnn-wide", in_channels=1, image_size=8)
    network.load_state_dict(dequantized(quantized_state(masked.network), "a test"), strict=False)
    expected = MaskedCNN(network, info.example())(loaded.prepare_images(images), mask.expand(6, -1))
    torch.testing.assert_close(prediction.logits, expected)


def test_a_cnn_without_a_policy(tmp_path: Path) -> None:
    digits = load_dataset("digits", "test")
    network = build("simple-cnn", 10, 1, 8)
    write_model(tmp_path / "cnn.safetensors", network, CNNInfo.of("simple-cnn", digits), int8=True)
    loaded = read_model(tmp_path / "cnn.safetensors")
    assert loaded.policy is None
    images = digits.batch(torch.arange(4))
    torch.testing.assert_close(loaded.masked(images), network.eval()(images), atol=0.02, rtol=0.02)


def test_a_float_file_stays_readable_for_older_versions_and_int8_says_that_it_is_newer(tmp_path: Path) -> None:
    model = shipped_model("digits")
    for int8, number in ((False, 1), (True, 2)):
        model.save(tmp_path / "model.safetensors", int8)
        with safe_open(tmp_path / "model.safetensors", "pt") as file:
            assert f'"format": {number}' in file.metadata()["prunegym"]


@pytest.mark.parametrize("damage", ["missing", "wrong"])
def test_damaged_scales(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    shipped_model("digits").save(path, int8=True)
    tensors = safetensors.torch.load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    name = "network.features.0.weight_scale"
    if damage == "missing":
        del tensors[name]
    else:
        tensors[name] = tensors[name][:-1].clone()
    safetensors.torch.save_file(tensors, path, metadata)
    found = "none" if damage == "missing" else r"scales of shape \(31,\)"
    with pytest.raises(
        InvalidInputError,
        match=rf"int8 weight 'network\.features\.0\.weight' of shape \(32, 1, 3, 3\) has {found}; one scale for",
    ):
        DynamicCNN.load(path)


@pytest.mark.slow
def test_the_benchmark_says_what_int8_weights_cost(tmp_path: Path) -> None:
    model, path = tmp_path / "mine.safetensors", tmp_path / "found.json"
    shipped_model("digits").save(model)
    script = [sys.executable, ROOT / "benchmarks/int8.py", model, "--images", "50", "--rounds", "1", "--json", path]
    shown = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert re.search(r"size ratio 0\.28\d \(bar 0\.3\)", shown)
    (found,) = json.loads(path.read_text())["results"]
    assert found["met"]
    assert found["images"] == 50
    assert found["float32"]["bytes"] == model.stat().st_size
    assert found["size_ratio"] == found["int8"]["bytes"] / found["float32"]["bytes"]
    assert found["same_prediction"] >= 0.98
    assert found["time_ratio"] == found["int8"]["seconds"] / found["float32"]["seconds"] > 0
