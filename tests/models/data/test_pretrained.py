"""What pretrained networks say of their images: the forms that torchvision's and timm's documentation show."""

from __future__ import annotations

import enum
import types
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.data.normalisation import IMAGENET_MEAN, IMAGENET_STD, Normalisation
from prunegym.models.data.pretrained import pretrained_transform
from prunegym.models.data.transform import Transform
from tests.models.data.files.test_image_folders import photos

LITE0 = {  # timm.create_model("efficientnet_lite0").pretrained_cfg
    "input_size": (3, 224, 224), "crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic",
    "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "num_classes": 1000,
}  # fmt: skip


class Mode(enum.Enum):
    """As torchvision's InterpolationMode."""

    BILINEAR = "bilinear"


PRESET = types.SimpleNamespace(  # MobileNet_V3_Small_Weights.IMAGENET1K_V1.transforms()
    crop_size=[224], resize_size=[256], mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD), interpolation=Mode.BILINEAR
)


@pytest.mark.parametrize(("source", "filter_"), [
    (LITE0, "bicubic"), (PRESET, "bilinear"), (types.SimpleNamespace(transforms=lambda: PRESET), "bilinear"),
    (types.SimpleNamespace(pretrained_cfg=LITE0), "bicubic"),
])  # fmt: skip
def test_both_forms(source: Any, filter_: str) -> None:
    transform, normalisation = pretrained_transform(source)
    assert transform == Transform((224, 224), 256, interpolation=filter_)
    assert normalisation == Normalisation(IMAGENET_MEAN, IMAGENET_STD)


def test_the_real_ones_where_installed() -> None:
    torchvision = pytest.importorskip("torchvision")
    weights = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT
    assert pretrained_transform(weights)[0] == Transform((224, 224), 256)


def test_other_crops_and_things_are_refused() -> None:
    squashed = {**LITE0, "crop_mode": "squash", "crop_pct": 1.0}
    assert pretrained_transform(squashed)[0] == Transform((224, 224), crop="none", interpolation="bicubic")
    for wrong, message in (
        ({**LITE0, "crop_mode": "border"}, "crop_mode"), (nn.Identity(), "torchvision's weights or a timm model"),
        ({**LITE0, "mean": (0.5,)}, "1 means"),
    ):  # fmt: skip
        with pytest.raises(InvalidInputError, match=message):
            pretrained_transform(wrong)


@pytest.mark.usefixtures("fresh_datasets")
def test_a_folder_is_loaded_as_a_network_wants_it(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    config = {**LITE0, "input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    data = load_dataset("photos", "test", tmp_path, like=config)
    assert (data.transform, data.image_shape) == (Transform((16, 16), 18, interpolation="bicubic"), (3, 16, 16))
    assert data.normalisation == Normalisation((0.5,) * 3, (0.25,) * 3)
    with pytest.raises(InvalidInputError, match="like"):
        load_dataset("photos", "test", tmp_path, like=config, image_size=8)
