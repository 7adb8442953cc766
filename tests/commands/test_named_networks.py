"""Networks of torchvision and timm by name, on a folder of photographs: the journey of docs/your-data.md."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import onnxruntime
import pytest
import torch
from PIL import Image

from prunegym.agents.benchmark.records import read_record
from prunegym.agents.comparison.results import load_masks
from prunegym.models import ZOO, DynamicCNN, MaskedCNN, build, load_dataset, read_model
from prunegym.models.data.pretrained import pretrained_transform
from prunegym.models.data.transform import Transform
from prunegym.models.named_networks import load_images
from tests import ROOT
from tests.commands.command_line import as_json, fail, run, succeed
from tests.models.stand_ins import NETWORK, install, uninstall

pytestmark = [
    pytest.mark.usefixtures("fresh_datasets"),
    pytest.mark.filterwarnings("ignore::prunegym.agents.rl.monitor.CollapseWarning"),
]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    install(tmp_path, monkeypatch)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    importlib.import_module("make_photos").make_photos(tmp_path / "photos", 80, sides=(24, 60))
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "photos"
    uninstall()
    for name in [name for name in ZOO if name.startswith(("own_code:", "own_sum:"))]:
        del ZOO[name]
        sys.modules.pop(name.partition(":")[0], None)


@pytest.mark.parametrize("name", ["torchvision:tiny", "timm:tiny"])
def test_the_journey(photos: Path, name: str) -> None:
    torch.save(build(name, None, image_size=24, seed=5).state_dict(), "weights.pth")
    shown = as_json("inspect", name, "--weights", "weights.pth")
    assert (len(shown["classes"]), shown["removable"]) == (6, 1.0)
    # Four classes instead of six: the last layer is trained from random weights.
    made = succeed("train-cnn", name, "--weights", "weights.pth", "--dataset", "photos", "--epochs", 1, "--out", "cnn")
    assert "10.weight, 10.bias get random weights" in made.stderr
    info = read_model("cnn/cnn.safetensors").info
    size = Transform((24, 24), 28, interpolation="bicubic") if name == "torchvision:tiny" else Transform((20, 20), 25)
    assert (info.architecture, info.num_classes, info.transform) == (name, 4, size)
    fast = "--epochs", 1, "--set", "imitation.steps=5", "--quiet"
    succeed("prepare", "cnn/cnn.safetensors", "--target-macs", 0.6, *fast, "--out", "prepared")
    rl = "--recipe", "prepared", "--episodes", 32, "--set", "n_envs=16", "--target-macs", 0.6, "--quiet"
    succeed("train", "prepared/prepared.safetensors", *rl, "--out", "agent")
    assert as_json("evaluate", "agent/model.safetensors", "--picture", "masks.png")["images"] == 16
    with Image.open("masks.png") as picture:
        assert picture.width > 100
    assert "--picture draws" in fail("evaluate", "cnn/cnn.safetensors", "--picture", "masks.png")
    photo = next((photos / "test").rglob("*.jpg"))
    predicted = as_json("predict", photo, "--model", "agent/model.safetensors")["images"][0]
    succeed("export", "agent/model.safetensors", "--out", "agent.onnx")
    # The export needs nothing of this package: images are resized as its own metadata say.
    session = onnxruntime.InferenceSession("agent.onnx")
    pixels = info.read_images([photo])
    logits = session.run(["logits"], {"images": pixels.numpy()})[0]
    assert info.classes[int(logits[0].argmax())] == predicted["label"]
    torch.testing.assert_close(
        torch.as_tensor(logits), DynamicCNN.load("agent/model.safetensors").predict(pixels).logits, rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_the_commands_of_the_page(photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """As ``make journey`` runs them with the real libraries: each in a process, the export without this package."""
    code = importlib.util.spec_from_file_location("journey", ROOT / ".ci/journey.py")
    script = importlib.util.module_from_spec(code)
    code.loader.exec_module(script)
    stand_ins = photos.parent / "stand-ins"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(stand_ins), *sys.path]))
    monkeypatch.setattr(script, "SIZE", 24)
    monkeypatch.setattr(script, "SHORTER", 28)
    monkeypatch.setitem(script.SMALLER, "train-cnn", "--epochs 1")
    monkeypatch.setitem(script.SMALLER, "prepare", "--epochs 1 --set imitation.steps=2")
    monkeypatch.setitem(script.SMALLER, "train", "--episodes 32 --set n_envs=16")
    monkeypatch.setitem(script.SMALLER, "evaluate", "--images 9")
    script.journey("torchvision:tiny", photos.parent)
    said = capsys.readouterr().out
    assert len(re.findall(r"^\$ prunegym ", said, flags=re.MULTILINE)) == 7
    assert re.search(r"class \d, \d+% of the channels kept", said)
    assert Path("runs/net/masks.png").exists()


def test_names_on_the_command_line(photos: Path) -> None:
    shown = as_json("inspect", "timm:tiny", "--dataset", "photos", "--image-size", "16", "--gates", "6")
    assert (shown["image_shape"], len(shown["classes"]), [gate["name"] for gate in shown["gates"]]) == (
        [3, 16, 16], 4, ["6"],
    )  # fmt: skip
    assert "--weights FILE" in fail("prepare", "timm:tiny", "--dataset", "photos", "--out", "x")
    assert "Did you mean 'tiny'" in fail("inspect", "timm:tin")
    (photos.parent / "own_code.py").write_text(f"{NETWORK}\ndef make(num_classes):\n    return Tiny(num_classes)\n")
    succeed("train-cnn", "own_code:make", "--dataset", "photos", "--image-size", "16", "--epochs", 1, "--out", "own")
    del ZOO["own_code:make"], sys.modules["own_code"]
    assert "--import own_code:make" in fail("inspect", "own/cnn.safetensors")
    succeed("--import", "own_code:make", "inspect", "own/cnn.safetensors")


@pytest.mark.filterwarnings("ignore::prunegym.errors.SkippingWarning")
def test_environments_give_images_as_the_library_does(photos: Path) -> None:
    for name in "torchvision:tiny", "timm:tiny":
        (transform, normalisation), data = pretrained_transform(name), load_dataset("photos", "train", like=name)
        env = gymnasium.make("prunegym/ChannelMask-v0", model=name, dataset="photos", observation="image")
        task = env.unwrapped.task
        assert (task.dataset.transform, task.dataset.normalisation) == (transform, normalisation)
        assert torch.equal(torch.from_numpy(env.reset(options={"index": 3})[0]["image"]), data.images[3])
        assert task.masked.output_shape == (4,)


def test_a_comparison_of_a_network_by_name_is_validated(photos: Path) -> None:
    """Weights, gates, sizes, loss and metric are those of the comparison when its agents are evaluated again."""
    torch.save(build("timm:tiny", 4, image_size=16, seed=5).state_dict(), "weights.pth")
    options = ["--weights", "weights.pth", "--dataset", "photos", "--image-size", "16", "--metric", "own_metric:chance"]
    (photos.parent / "own_metric.py").write_text(
        "def chance(outputs, targets):\n    return outputs.softmax(1).gather(1, targets[:, None])[:, 0]\n"
    )
    document = as_json(
        "compare", "l1", "--model", "timm:tiny", *options, "--gates", "0,6", "--seeds", 1, "--target-macs", 0.6,
        "--quiet", "--out", "compared",
    )  # fmt: skip
    network = build("timm:tiny", 4)
    network.load_state_dict(torch.load("weights.pth"))
    test = load_images("timm:tiny", "photos", "test", image_size=16)
    masked = MaskedCNN(network, test.batch(torch.arange(1)), gates=["0", "6"])
    mask = load_masks(next(Path("compared").rglob("masks.safetensors"))).mask
    with torch.inference_mode():
        chances = masked(test.batch(torch.arange(len(test))), mask.float().expand(len(test), -1)).softmax(1)
    expected = chances[torch.arange(len(test)), test.labels].mean().item()
    assert document["rows"][0]["figures"]["accuracy"]["mean"] == pytest.approx(expected, abs=1e-6)
    assert as_json("validate", "compared")["valid"]
    torch.save(build("timm:tiny", 4, seed=6).state_dict(), "weights.pth")
    assert run("validate", "compared").exit_code == 1


def test_a_comparison_weighs_classes_and_hides_the_path(photos: Path) -> None:
    torch.save(build("timm:tiny", 4, seed=5).state_dict(), "weights.pth")
    options = ["--model", "timm:tiny", "--weights", "weights.pth", "--dataset", "photos", "--image-size", "16"]
    rl = ["--episodes", "16", "--set", "n_envs=16", "--set", "imitation.steps=1", "--seeds", "1", "--quiet"]
    marks = {}
    for name, more in ("plain", []), ("weighted", ["--class-weights", "1,2,3,4", "--no-data-path"]):
        succeed("compare", "frozen", *options, *rl, *more, "--out", name)
        marks[name] = read_record(next(Path(name).rglob("result-test.json"))).configuration
        stored = read_model(next(Path(name).rglob("model.safetensors"))).info.data_path
        assert stored == (None if more else str(photos))
    assert {key for key, mark in marks["plain"].items() if mark != marks["weighted"][key]} == {"train"}
    assert as_json("validate", "weighted")["valid"]


def test_weights_of_a_network_by_name_are_made_smaller(photos: Path) -> None:
    torch.save(build("timm:tiny", None).state_dict(), "weights.pth")
    found = as_json("quantize", "timm:tiny", "--weights", "weights.pth", "--out", "small.safetensors")
    assert found["bytes_before"] == Path("weights.pth").stat().st_size
    assert read_model("small.safetensors").info.architecture == "timm:tiny"
    for command in ("predict", next(photos.rglob("*.jpg")), "--model"), ("finetune", "--out", "x"):
        assert "is a CNN without a gate policy" in fail(*command, "timm:tiny")


@pytest.mark.filterwarnings("default::prunegym.errors.CoverageWarning")
def test_inspect_warns_where_little_can_be_removed(photos: Path) -> None:
    (photos.parent / "own_sum.py").write_text(
        "from torch import nn\nclass Sum(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 1, 1)\n"
        "        self.d = nn.Conv2d(1, 8, 1)\n"
        "    def forward(self, x):\n        x = self.a(x).relu()\n        y = self.b(x).relu()\n"
        "        return (x + y + self.d(self.c(x + y))).mean((2, 3))\n"
    )
    result = succeed("inspect", "own_sum:Sum")
    assert "Masks can remove 5.41 % of the MACs at most, less than 20.00 %." in result.stderr
