"""Networks of torchvision and timm by name, on a folder of photographs: the journey of docs/your-data.md."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
import torch
from PIL import Image

from prunegym.models import ZOO, DynamicCNN, build, read_model
from prunegym.models.data.transform import Transform
from tests import ROOT
from tests.commands.command_line import as_json, fail, succeed
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
