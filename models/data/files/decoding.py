"""One image file decoded to pixels: any format, mode and orientation that Pillow opens."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.data.files.bounded_files import check_expansion
from prunegym.models.data.transform import Transform

Source = Path | bytes
"""A file, or its content."""

UNREADABLE = (
    OSError, EOFError, RuntimeError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""Errors of Pillow for files that are not images, are damaged, or would fill the memory."""


def decode(source: Source, where: str, channels: int | None = None, transform: Transform | None = None) -> Tensor:
    """Decode the first frame of an image file, rotated according to its EXIF data.

    Args:
        source: The file.
        where: Its name, for the message.
        channels: 1 for grey or 3 for RGB; None for those of the file. Transparency is dropped.
        transform: Changes its size; None keeps the size.

    Returns:
        (channels, height, width) uint8.

    Raises:
        InvalidInputError: If it is not an image, or damaged.
    """
    with _opened(source, where) as image:
        return to_pixels(image, channels, transform)


def to_pixels(image: Image.Image, channels: int | None = None, transform: Transform | None = None) -> Tensor:
    """Return a Pillow image as (channels, height, width) uint8; arguments are those of :func:`decode`.

    Raises:
        ValueError: For 32 bits per pixel, whose range is unknown.
    """
    plain = eight_bits(image)
    mode = ("L" if plain.mode == "L" else "RGB") if channels is None else "L" if channels == 1 else "RGB"
    if "transparency" in plain.info and plain.mode == "P":  # Pillow warns of the direct way
        plain = plain.convert("RGBA")
    plain = ImageOps.exif_transpose(plain if plain.mode == mode else plain.convert(mode))
    pixels = np.array(plain if transform is None else transform(plain))
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def is_grey(source: Source, where: str) -> bool:
    """Whether an image file is grey: of 8 or 16 bits, without transparency. Only its header is read.

    Raises:
        InvalidInputError: If it is not an image.
    """
    with _opened(source, where) as image:
        return image.mode == "L" or _has_16_bits(image)


@contextlib.contextmanager
def _opened(source: Source, where: str) -> Iterator[Image.Image]:
    try:
        stored = len(source) if isinstance(source, bytes) else source.stat().st_size
        if stored == 0:
            raise ValueError("it is empty")
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            check_expansion(image.width * image.height * len(image.getbands()), stored)
            yield image
    except UNREADABLE as error:
        raise InvalidInputError(f"{where} cannot be read as an image ({error}).") from error


def eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of 16 bits per pixel reduced to its 8 highest bits; other images are returned unchanged.

    Pillow itself would clip the 16 bits instead of scaling them.

    Raises:
        ValueError: For 32 bits per pixel, whose range is unknown.
    """
    if _has_16_bits(image):
        made = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        made.info = image.info
        return made
    if image.mode in ("I", "F"):
        raise ValueError(f"it has 32 bits per pixel (mode {image.mode}); save it with 8 or 16")
    return image


def _has_16_bits(image: Image.Image) -> bool:
    # Pillow opens some 16-bit images as mode I, which is also the mode of 32 bits: PNG in version 10, PGM always.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
