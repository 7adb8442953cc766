"""The transform, by Pillow's own steps, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models.data.transform import Transform
from tests.models.data.data_files import RANDOM


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (300, 300), (250, 1000), (57, 31)])
def test_resize_256_crop_224_is_what_torchvision_documents(width: int, height: int) -> None:
    image = photo(width, height)
    # torchvision.transforms.Resize(256): int(256 * long / short); CenterCrop(224): int(round((side - 224) / 2.0)).
    short, long = min(width, height), max(width, height)
    other = int(256 * long / short)
    resized = image.resize((256, other) if width <= height else (other, 256), Image.Resampling.BILINEAR)
    left, top = round((resized.width - 224) / 2), round((resized.height - 224) / 2)
    expected = resized.crop((left, top, left + 224, top + 224))
    assert np.array_equal(Transform.of(224, 256)(image), expected)  # type: ignore[misc]


@pytest.mark.parametrize(("width", "height"), [(640, 480), (31, 57), (20, 20), (7, 900)])
@pytest.mark.parametrize("size", [20, (12, 30), (30, 12)])
def test_without_resize_the_image_just_covers_the_crop(width: int, height: int, size: int | tuple[int, int]) -> None:
    transform = Transform.of(size)
    assert transform is not None
    inner = transform._resized(height, width)
    wanted = transform.image_size
    assert inner[0] >= wanted[0]
    assert inner[1] >= wanted[1]
    assert inner[0] == wanted[0] or inner[1] == wanted[1]
    assert abs(inner[0] / inner[1] - height / width) <= (height / width) / min(inner) + 1 / inner[1]
    assert transform(photo(width, height)).size == wanted[::-1]


def test_no_crop_stretches_and_a_fitting_image_is_not_touched() -> None:
    image = photo(40, 30)
    expected = image.resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(Transform((16, 16), crop="none", interpolation="bicubic")(image), expected)
    assert Transform((30, 40))(image) is image


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "whole number"),
        ({"image_size": (4, 5, 6)}, r"\(height, width\)"),
        ({"image_size": 224, "resize": 200}, "at least 224"),
        ({"image_size": 224, "resize": 256, "crop": "none"}, "Leave one out"),
        ({"image_size": None, "crop": "center"}, "without image_size"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Transform.of(**options)


def test_unknown_names_are_refused_and_no_option_is_no_transform() -> None:
    with pytest.raises(UnknownNameError, match="center"):
        Transform((4, 4), crop="centre")
    with pytest.raises(UnknownNameError, match="bilinear"):
        Transform((4, 4), interpolation="linear")
    assert Transform.of(None) is None
    assert str(Transform((224, 224), 256)) == "shorter side 256, center crop 224x224, bilinear"
