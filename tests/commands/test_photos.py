"""The journey of docs/your-data.md: a folder of photographs, through all commands, to a prediction and an export."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from prunegym.models import forget_datasets, read_model
from prunegym.models.data.transform import Transform
from tests import ROOT
from tests.commands.command_line import as_json, fail

pytestmark = pytest.mark.usefixtures("fresh_datasets")
SIZES = ["--image-size", "24", "--resize", "26"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    importlib.import_module("make_photos").make_photos(tmp_path / "photos", 80, sides=(24, 60))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def train_cnn(*more: str) -> None:
    options = ("--dataset", "photos", *SIZES, "--epochs", 1, "--out", "runs/cnn", "--quiet")
    as_json("train-cnn", "simple-cnn", *options, *more)


def test_a_model_keeps_the_sizes_and_the_place_of_its_photographs(photos: Path) -> None:
    train_cnn("--metric", "probability", "--class-weights", "balanced")
    info = read_model("runs/cnn/cnn.safetensors").info
    assert (info.transform, info.data_path, info.image_shape) == (Transform((24, 24), 26), str(photos), (3, 24, 24))
    assert (info.objective.metric, len(info.objective.class_weights or ())) == ("probability", 4)
    shown = as_json("inspect", "runs/cnn/cnn.safetensors")
    assert shown["transform"] == "shorter side 26, center crop 24x24, bilinear"
    assert shown["data_path"] == str(photos)
    found = as_json("evaluate", "runs/cnn/cnn.safetensors")
    assert found["images"] == 16
    assert found["accuracy"] == pytest.approx(info.metadata["dense_accuracy"]["photos/test"], abs=1e-6)
    moved = photos.rename(photos.parent / "moved")
    forget_datasets()
    assert "but is not there now" in fail("evaluate", "runs/cnn/cnn.safetensors")
    assert as_json("evaluate", "runs/cnn/cnn.safetensors", "--dataset", str(moved))["accuracy"] == found["accuracy"]


@pytest.mark.parametrize(("options", "message"), [
    (["--image-size", "big"], "HEIGHTxWIDTH"), (["--resize", "40"], "without image_size"),
    (["--image-size", "32", "--resize", "20"], "at least 32"), (["--image-size", "32", "--crop", "middle"], "center"),
    (["--image-size", "16", "--loss", "hinge"], "Unknown loss"),
    (["--image-size", "16", "--class-weights", "a,b"], "balanced"),
    (["--image-size", "16", "--class-weights", "1,2"], "one for each class"), ([], "--image-size"),
])  # fmt: skip
def test_options_that_do_not_fit_are_refused_before_training(photos: Path, options: list[str], message: str) -> None:
    assert message in fail("train-cnn", "simple-cnn", "--dataset", "photos", "--out", "runs/x", *options)


def test_a_network_of_the_zoo_is_inspected_for_a_size_or_a_folder(photos: Path) -> None:
    assert as_json("inspect", "resnet18", "--image-size", "64x48")["image_shape"] == [3, 64, 48]
    shown = as_json("inspect", "simple-cnn", "--dataset", "photos", *SIZES)
    assert (shown["image_shape"], len(shown["classes"])) == ([3, 24, 24], 4)
    assert "An option on images" in fail("inspect", "digits", "--image-size", "8")
