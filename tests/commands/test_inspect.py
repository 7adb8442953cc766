"""``list``, ``inspect``, ``demo``, and errors of any command."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from prunegym.models import DynamicCNN
from tests.commands.command_line import as_json, fail, succeed

# Settings that take seconds make weak agents.
pytestmark = pytest.mark.filterwarnings("ignore::prunegym.agents.rl.monitor.CollapseWarning")


def test_module_runs_as_a_command_and_lists_commands() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "prunegym", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for command in (
        "list",
        "inspect",
        "train-cnn",
        "prepare",
        "train",
        "finetune",
        "evaluate",
        "compare",
        "predict",
        "export",
    ):
        assert f" {command} " in shown


def test_list_has_every_kind_of_name() -> None:
    document = as_json("list")
    assert list(document) == [
        "networks", "data_sets", "shipped_models", "rewards", "accuracy_terms", "recipes", "environments",
    ]  # fmt: skip
    assert document["environments"] == ["prunegym/ChannelMask-v0", "prunegym/LayerwiseChannelMask-v0"]
    assert "resnet20" in succeed("list").stdout


def test_inspect_tells_gates_prices_and_rejected_convolutions() -> None:
    document = as_json("inspect", "resnet20")
    assert document["gates"][0] == {"name": "layer1.0.conv1", "width": 16, "price": 294_912}
    assert document["mask_size"] == sum(gate["width"] for gate in document["gates"]) == 336
    assert document["total_macs"] > document["fixed_macs"] > 0
    assert set(document["rejected"]) >= {"conv1", "layer3.2.conv2"}
    assert "layer1.0.conv1" in succeed("inspect", "resnet20").stdout


def test_inspect_builds_a_network_for_a_data_set(made: Path) -> None:
    assert as_json("inspect", "simple-cnn", "--dataset", "digits")["image_shape"] == [1, 8, 8]
    document = as_json("inspect", made / "agent/model.safetensors")
    assert [entry["step"] for entry in document["metadata"]["history"]] == [
        "train-cnn", "prepare, gates", "train, digits",
    ]  # fmt: skip
    assert set(document["metadata"]["dense_accuracy"]) == {"digits/validation", "digits/test"}


def test_errors_are_one_line_that_says_what_would_be_right(made: Path, tmp_path: Path) -> None:
    cnn, out = made / "cnn/cnn.safetensors", tmp_path / "out"
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    assert "Unknown model 'simple-cn'. Did you mean 'simple-cnn'?" in fail("inspect", "simple-cn")
    assert "Unknown model 'vgg15'. Did you mean 'vgg1" in fail("train-cnn", "vgg15", "--out", out)
    assert "Did you mean 'digits'?" in fail("train-cnn", "simple-cnn", "--dataset", "digit", "--out", out)
    message = fail("train-cnn", "simple-cnn", "--set", "precision=half", "--out", out)
    assert "precision is 'half'; 'auto' or 'float32' or 'bfloat16' is needed." in message
    assert "is a CNN without a gate policy" in fail("finetune", cnn, "--out", out)
    assert "is a CNN without a gate policy" in fail("predict", broken, "--model", cnn)
    assert "cannot be read as an image" in fail("predict", broken, "--model", made / "agent/model.safetensors")
    assert "There is no image gone.png." in fail("predict", "gone.png", "--model", made / "agent/model.safetensors")
    assert "--images is 601; a whole number from 1 to 600 is needed. digits/test has 600 images." in fail(
        "evaluate", cnn, "--images", "601"
    )
    assert "leave out --static and --frozen" in fail("prepare", cnn, "--taylor", "--frozen", "--out", out)
    assert "not a folder. Give the folder" in fail("evaluate", cnn, "--data-root", tmp_path / "nowhere")
    assert not out.exists()


@pytest.mark.slow
def test_demo_twice_in_one_folder(tmp_path: Path) -> None:
    command = ["demo", "--episodes", "256", "--quiet", "--out", tmp_path / "demo"]
    for _ in range(2):
        document = as_json(*command)
    assert list(document["results"])[:3] == ["PPO", "gates before PPO", "keep all"]
    assert len(document["predictions"]) == 8
    with Image.open(tmp_path / "demo/masks.png") as picture:
        assert picture.size[0] > 500
    assert DynamicCNN.load(tmp_path / "demo/model.safetensors").info.dataset == "digits"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["evaluate", "digits", "--device", "foo"], "device is 'foo', which torch does not know"),
        (["evaluate", "digits", "--device", "cuda:99"], "sees \\d+ CUDA devices here"),
        (["evaluate", "digits", "--penalty", "inf"], "a finite number is needed"),
        (["inspect", "digits", "--dataset", "digits"], "--dataset is only for a network by name"),
        (["prepare", "digits", "--epochs", "0", "--frozen", "--out", "x"], "--epochs 0 stops after imitation"),
        (["export", "digits", "--out", "x.safetensors"], "cannot be an ONNX file"),
        (["latency", "digits", "--out", "x.safetensors"], "cannot be a table"),
        (["quantize", "digits", "--out", "x.bin"], "must end in .safetensors"),
    ],
)
def test_what_would_do_nothing_or_harm_is_refused(
    command: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(message, fail(*command))
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    message = fail("train-cnn", "simple-cnn", "--dataset", "digits", "--epochs", "1", "--out", tmp_path / "taken")
    assert "cannot be created" in message


def test_a_demo_leaves_what_other_commands_made(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "agent", tmp_path / "agent")
    assert "has results of another command" in fail("demo", "--out", tmp_path / "agent")
    assert (tmp_path / "agent/model.safetensors").read_bytes() == (made / "agent/model.safetensors").read_bytes()
