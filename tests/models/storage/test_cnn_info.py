"""What a model file says of its data: kept as it was, read from older files, and executed never."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prunegym.errors import InvalidInputError, MissingDataError
from prunegym.models.catalog import open_split
from prunegym.models.checks import check_output
from prunegym.models.data.dataset_registry import forget_datasets, load_dataset
from prunegym.models.data.normalisation import Normalisation
from prunegym.models.data.splits import from_arrays
from prunegym.models.data.transform import Transform
from prunegym.models.storage.cnn_info import CNNInfo, as_json, from_json
from prunegym.models.tasks.objective import Objective
from tests.models.data.files.test_image_folders import photos

IMAGES = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
LABELS = torch.arange(40) % 2


def info(**changes: object) -> CNNInfo:
    data = from_arrays((IMAGES, LABELS), (IMAGES, LABELS), name="mine")["train"]
    return dataclasses.replace(CNNInfo.of("mine", data, {"epochs": 3}), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [
    {}, {"transform": Transform((8, 8), 10), "data_path": "/there/photos"},
    {"objective": Objective("labels", class_weights=(1.0, 2.0), metric="f1")},
    {"objective": Objective("numbers", spread=3.0), "classes": ()},
    {"objective": Objective("outputs"), "classes": (), "num_classes": 0},
    {"normalisation": Normalisation((0.0,) * 3, (1.0,) * 3, -2.0, 5.0)},
])  # fmt: skip
def test_descriptions_are_kept(changes: dict[str, object]) -> None:
    there = info(**changes)
    assert from_json(json.loads(json.dumps(as_json(there)))) == there


def test_a_description_without_anything_new_is_that_of_older_versions() -> None:
    assert set(as_json(info())) == {
        "architecture", "num_classes", "image_shape", "normalisation", "classes", "dataset", "metadata",
    }  # fmt: skip
    assert set(as_json(info())["normalisation"]) == {"mean", "std"}


def test_a_function_named_in_a_file_is_not_called() -> None:
    raw = as_json(info(objective=Objective(loss="os:abort", metric="os:abort")))
    assert from_json(raw).objective == Objective()


def test_the_models_loss_and_metric_are_used_unless_the_data_has_its_own() -> None:
    trained = info(objective=Objective(metric="probability", class_weights=(1.0, 3.0)))
    data = from_arrays((IMAGES, LABELS), (IMAGES, LABELS))["test"]
    assert trained.adapt(data).objective == trained.objective
    assert trained.adapt(data.judged(metric="top5")).objective == Objective(metric="top5", class_weights=(1.0, 3.0))
    numbers = from_arrays((IMAGES, torch.rand(40)), (IMAGES, torch.rand(40)))["test"]
    with pytest.raises(InvalidInputError, match=r"trained for one class per image.*has numbers"):
        trained.adapt(numbers)


def test_the_accuracy_of_another_metric_is_another_figure() -> None:
    data = from_arrays((IMAGES, LABELS), (IMAGES, LABELS))["test"]
    measured = info().with_dense_accuracy({data: 0.5})
    assert measured.dense_accuracy(data) == 0.5
    assert measured.dense_accuracy(data.judged(metric="probability")) is None


@pytest.mark.parametrize(
    ("metric", "value"), [("log_likelihood", -3.5), (lambda outputs, _: 9 + 0 * outputs[:, 0], 9.0)]
)
def test_the_accuracy_of_a_metric_that_is_no_share(metric: Any, value: float) -> None:
    data = from_arrays((IMAGES, LABELS), (IMAGES, LABELS))["test"].judged(metric=metric)
    assert info().with_dense_accuracy({data: value}).dense_accuracy(data) == value


def test_metadata_of_your_own_is_free() -> None:
    assert info(metadata={"mine": [1], "epochs": "many"}).metadata == {"mine": [1], "epochs": "many"}
    with pytest.raises(InvalidInputError, match="Choose other names for your own notes"):
        info(metadata={"history": "mine"})


@pytest.mark.usefixtures("fresh_datasets")
def test_a_models_data_set_is_found_again_with_its_transform(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    train = load_dataset(str(tmp_path / "photos"), "train", image_size=16, resize=20)
    there = CNNInfo.of("mine", train)
    assert there.data_path == str(tmp_path / "photos")
    test = open_split(there, None, "test")
    assert (test.image_shape, test.transform, len(test)) == ((3, 16, 16), Transform((16, 16), 20), 8)
    moved = (tmp_path / "photos").rename(tmp_path / "moved")
    forget_datasets()
    with pytest.raises(MissingDataError, match=r"was at .*photos, but is not there now\. Give its new path.*--dataset"):
        open_split(there, None, "test")
    assert torch.equal(open_split(there, str(moved), "test").labels, test.labels)


def test_outputs_of_a_model_fit_its_targets() -> None:
    several = torch.nn.functional.one_hot(LABELS, 3)
    for targets, fits, other in (
        (LABELS, (5,), (1,)),
        (several, (3,), (4,)),
        (torch.rand(40), (1,), (2,)),
        (IMAGES[:, 0].long() % 3, (3, 8, 8), (3, 4, 4)),
    ):
        data = from_arrays((IMAGES, targets), (IMAGES, targets))["test"]
        check_output(data, fits)
        with pytest.raises(InvalidInputError, match="needed"):
            check_output(data, other)


def test_photographs_become_the_networks_pixels(tmp_path: Path) -> None:
    made = photos(tmp_path / "photos")
    files = [tmp_path / "photos/test/cat" / f"{number}.jpg" for number in range(4)]
    upright = [made[f"test/cat/{number}.jpg"] for number in range(4)]
    stretched = [image.resize((8, 8), Image.Resampling.BICUBIC) for image in upright]
    found = info().read_images(files)
    assert all(np.array_equal(one.permute(1, 2, 0), image) for one, image in zip(found, stretched, strict=True))
    own = info(transform=Transform((8, 8), 12))
    expected = load_dataset(str(tmp_path / "photos"), "test", image_size=8, resize=12).images[:4]
    assert torch.equal(own.read_images(files), expected)
    assert torch.equal(own.read_images([Image.open(file) for file in files]), expected)
    with pytest.raises(InvalidInputError, match="1 or 3 channels"):
        info(image_shape=(4, 8, 8)).read_images(files)
    with pytest.raises(MissingDataError, match="no image"):
        own.read_images([tmp_path / "none.jpg"])
