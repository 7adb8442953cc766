"""Image files of many kinds, as people make them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunegym.errors import InvalidInputError
from prunegym.models.data.files.decoding import decode, is_grey
from tests.models.data.data_files import RANDOM, png

RGB = RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes, channels: int | None = None) -> np.ndarray:
    return decode(data, "it", channels).numpy().transpose(1, 2, 0)


@pytest.mark.parametrize(("kind", "options"), [
    ("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("WEBP", {"lossless": True}),
    ("TIFF", {"compression": "tiff_lzw"}),
])  # fmt: skip
def test_formats_without_loss(kind: str, options: dict[str, Any]) -> None:
    assert np.array_equal(pixels(saved(Image.fromarray(RGB), kind, **options)), RGB)
    assert not is_grey(saved(Image.fromarray(RGB), kind, **options), "it")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_keep_their_high_ones_in_either_colour(kind: str) -> None:
    deep = RANDOM.integers(0, 65_536, (6, 9), dtype=np.uint16)
    data = saved(Image.fromarray(deep), kind)
    assert is_grey(data, "it")
    assert np.array_equal(pixels(data)[:, :, 0], deep >> 8)
    assert np.array_equal(pixels(data, 3), np.repeat((deep >> 8)[:, :, None], 3, 2))


@pytest.mark.parametrize(("orientation", "turn"), [
    (2, lambda x: x[:, ::-1]), (3, lambda x: x[::-1, ::-1]), (4, lambda x: x[::-1]), (5, lambda x: x.swapaxes(0, 1)),
    (6, lambda x: np.rot90(x, -1)), (7, lambda x: np.rot90(x, 2).swapaxes(0, 1)), (8, lambda x: np.rot90(x)),
])  # fmt: skip
@pytest.mark.parametrize("array", [RGB, GREY, GREY.astype(np.uint16) * 257], ids=["RGB", "grey", "16 bits"])
def test_exif_orientation_is_applied(orientation: int, turn: Any, array: np.ndarray) -> None:
    image = Image.fromarray(array)
    exif = image.getexif()
    exif[0x112] = orientation
    expected = turn(array if array.dtype == np.uint8 else array >> 8)
    found = pixels(saved(image, "PNG", exif=exif))
    assert np.array_equal(found if array.ndim == 3 else found[:, :, 0], expected)


def test_palette_transparency_bilevel_cmyk_and_the_first_frame() -> None:
    colours = Image.fromarray(RGB).quantize(256)
    exact = np.asarray(colours.convert("RGB"))
    assert np.array_equal(pixels(saved(colours, "PNG")), exact)
    assert np.array_equal(pixels(saved(colours, "PNG", transparency=3)), exact)
    assert np.array_equal(pixels(saved(Image.fromarray(np.dstack([RGB, GREY])), "PNG")), RGB)
    assert np.array_equal(
        pixels(saved(Image.merge("LA", [Image.fromarray(GREY)] * 2), "PNG")), np.repeat(GREY[:, :, None], 3, 2)
    )
    bilevel = GREY > 128
    assert np.array_equal(pixels(saved(Image.fromarray(bilevel), "PNG"))[:, :, 1], bilevel * np.uint8(255))
    assert pixels(saved(Image.fromarray(RGB).convert("CMYK"), "JPEG")).shape == RGB.shape
    frames = [Image.new("RGB", (9, 6), colour) for colour in ("red", "blue")]
    gif = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(gif)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "data", [b"no image", png(RGB)[:60], b"", saved(Image.fromarray(GREY.astype(np.float32)), "TIFF")]
)
def test_what_cannot_be_read_is_named(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match=r"class/3\.png cannot be read as an image"):
        decode(data, "class/3.png")
