"""``predict``, ``export``, ``quantize``, ``latency`` and ``profile`` with a trained agent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from prunegym.models import DynamicCNN, load_dataset
from tests.commands.command_line import RL, as_json, fail, succeed
from tests.models.skipping.skipping_networks import needs_kernel

# Settings that take seconds make weak agents.
pytestmark = pytest.mark.filterwarnings("ignore::prunegym.agents.rl.monitor.CollapseWarning")


def test_predict_reads_image_files(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load_dataset("digits", "test").images[:2]
    files = [tmp_path / f"{index}.png" for index in range(2)]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image[0].numpy()).save(file)
    model = made / "agent/model.safetensors"
    document = as_json("predict", *files, "--model", model)
    expected = DynamicCNN.load(model).predict(images)
    assert [row["label"] for row in document["images"]] == expected.names
    assert [row["macs"] for row in document["images"]] == [int(macs) for macs in expected.macs]
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30)).save("colour.jpg")
    assert "colour.jpg" in succeed("predict", "colour.jpg", "--model", model).stdout


def test_export_writes_what_onnx_runtime_runs(made: Path, tmp_path: Path) -> None:
    model, path = made / "agent/model.safetensors", tmp_path / "model.onnx"
    document = as_json("export", model, "--out", path)
    assert document.pop("time_over_dense") > 0
    assert document["bytes"] == path.stat().st_size
    assert document["gates_cut"] == document["gates"] == 2
    images = load_dataset("digits", "test").images[:5]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = [session.run(["logits"], {"images": image[None]})[0] for image in images.numpy()]
    expected = DynamicCNN.load(model).predict(images)
    torch.testing.assert_close(torch.from_numpy(np.concatenate(found)), expected.logits, atol=1e-4, rtol=1e-4)
    shown = succeed("export", made / "cnn/cnn.safetensors", "--dense", "--pixels", "unit", "--out", path).stdout
    assert "images (1, 1, 8, 8) float32" in shown
    assert "CNN without a gate policy. Export it with" in fail("export", made / "cnn/cnn.safetensors", "--out", path)
    assert "--dense keeps all channels" in fail("export", model, "--dense", "--mask-input", "--out", path)
    assert "Unknown pixels 'int8'. Did you mean 'uint8'?" in fail("export", model, "--pixels", "int8", "--out", path)


def test_quantize_writes_a_smaller_file_that_every_command_takes(made: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.safetensors"
    document = as_json("quantize", "digits", "--out", small)
    assert document["bytes"] == small.stat().st_size
    assert document["ratio"] == document["bytes"] / document["bytes_before"] < 0.3
    before, after = as_json("evaluate", "digits"), as_json("evaluate", small)
    assert after["accuracy"] > before["accuracy"] - 0.003
    assert after["dense_accuracy"] == before["dense_accuracy"]  # losses are counted from the original network
    assert as_json("inspect", small)["metadata"]["history"][-1]["step"] == "quantize, int8 weights"
    assert "small.safetensors" in succeed("quantize", made / "cnn/cnn.safetensors", "--out", small).stdout
    assert "There is no model file none.safetensors" in fail("quantize", "none.safetensors", "--out", small)


def test_places_that_cannot_be_written(made: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for command, name in (("export", "model.onnx"), ("quantize", "small.safetensors")):
        message = fail(command, made / "agent/model.safetensors", "--out", tmp_path / "file" / name)
        assert f"{tmp_path / 'file'}" in message
        assert "Choose another path." in message


def test_latency_is_measured_trained_for_and_evaluated(made: Path, tmp_path: Path) -> None:
    model, table = made / "prepared/prepared.safetensors", tmp_path / "table.json"
    document = as_json("latency", model, "--out", table, "--rounds", "2", "--threads", "1")
    assert document["execution"] == "torch"
    assert document["dense_seconds"] > 0
    assert document["policy_seconds"] > 0
    assert "error end to end" in succeed("latency", model, "--out", table, "--rounds", "2").stdout
    assert as_json("evaluate", model, "--latency", table)["latency_share"] > 0
    shown = succeed("evaluate", model, "--latency", table).stdout
    assert "estimated from the latency table" in " ".join(shown.split())
    line = ["train", model, *RL, "--reward", "latency"]
    succeed(*line, "--set", f"env_kwargs.latency_table={table}", "--out", tmp_path / "run")
    assert (tmp_path / "run/model.safetensors").is_file()
    assert "needs latency_table=" in fail(*line, "--out", tmp_path / "other")
    assert "Unknown execution 'kernl'. Did you mean 'kernel'?" in fail(
        "latency", model, "--out", table, "--execution", "kernl"
    )


def test_profile_tells_times_what_is_taken_and_why(made: Path) -> None:
    document = as_json("profile", made / "agent/model.safetensors", "--rounds", "1", "--batch", "2")
    assert document["taken"] in document["skipping"]
    assert document["taken"] in document["reason"]
    assert {"torch", "full", "masked"} <= document["skipping"].keys()
    assert {"eager", "norm folded", "channels_last", "traced, frozen"} <= document["dense"].keys()
    assert min(document["ratios"].values()) > 0
    assert min(value for name, value in document["ratios"].items() if name.startswith("dense")) == 1
    assert {"processor", "threads", "torch", "kernel"} <= document["machine"].keys()
    assert 0 < document["mac_share"] < 1.1
    if document["layers_of"] == "kernel":
        layers = [row["layer"] for row in document["layers"]]
        assert "decide features.0" in layers
        assert layers[0] == "load images"
        assert layers[-1] == "store outputs"
    bare = as_json("profile", "simple-cnn", "--rounds", "1", "--dataset", "digits")
    assert bare["image_shape"] == [1, 8, 8]
    assert bare["masks"] == "given"
    assert 0.3 <= bare["kept_share"] <= 0.7
    shown = succeed("profile", "simple-cnn", "--rounds", "1").stdout
    assert "the fastest of" in shown


def test_too_many_threads_are_refused():
    message = fail("profile", "digits", "--threads", 99999999999)
    assert "--threads is 99999999999; a whole number from 1 to 1024 is needed." in message


@needs_kernel
def test_quantize_calibrates_for_int8(tmp_path: Path) -> None:
    path = tmp_path / "digits-int8.safetensors"
    assert as_json("quantize", "digits", "--out", path, "--calibrate", "--images", 200)["calibrated"]
    document = as_json("evaluate", path, "--execution", "int8", "--images", 200)
    assert document["accuracy"] > 0.95
    assert "calibrate" in fail("evaluate", "digits", "--execution", "int8")
    assert "int8" in as_json("profile", "simple-cnn", "--int8", "--rounds", 1)["skipping"]
