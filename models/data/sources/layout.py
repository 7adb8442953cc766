"""Layout of arrays of images: which dimension is the channels, and the range of the values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.data.sources.lazy_images import LazyImages, MappedArray
from prunegym.validation import array, shape

USUAL = (1, 3, 4)
"""Channels of grey, RGB and RGBA images."""


def channels_are_last(shape: Sequence[int], what: str, channels: int | None = None) -> bool:
    """Return whether an image's channels are its last dimension, as in Pillow and TensorFlow, or its first.

    Args:
        shape: Three sizes.
        what: Name of the images, for the message.
        channels: The number of channels, if it is known.

    Raises:
        InvalidInputError: If it could be both.

    Example:
        >>> channels_are_last((224, 224, 3), "They"), channels_are_last((3, 224, 160), "They")
        (True, False)
    """
    first, middle, last = shape
    if channels is not None and first != last and channels in (first, last):
        return channels == last
    if middle == last:  # square, if the channels are first
        return False
    if first == middle:
        return True
    if (first in USUAL) != (last in USUAL):
        return last in USUAL
    if (first < min(middle, last)) != (last < min(first, middle)):
        return last < first
    raise InvalidInputError(
        f"{what} have the shape {tuple(shape)}, whose channels may be {first} or {last}. Give them as (channels, "
        "height, width), and a normalisation with a mean for each channel, which says how many there are."
    )


def as_images(given: Any, what: str, channels: int | None = None) -> Tensor | LazyImages:
    """Return images with channels first. Arrays that are mapped from a file stay there, float64 becomes float32.

    Args:
        given: A tensor, an array, or images that are read when they are needed.
        what: Name of the images, for messages.
        channels: The number of channels, if it is known.

    Raises:
        InvalidInputError: If they are not a four-dimensional array, or if the order of dimensions is not clear.
    """
    if isinstance(given, LazyImages):
        return given
    if isinstance(given, np.memmap):
        shape(what, given, ("count", "channels", "height", "width"))
        first = np.moveaxis(given, 3, 1) if channels_are_last(given.shape[1:], what, channels) else given
        return LazyImages(MappedArray(first))
    images = given if isinstance(given, Tensor) else torch.as_tensor(array(what, given))
    shape(what, images, ("count", "channels", "height", "width"))
    if channels_are_last(images.shape[1:], what, channels):
        images = images.movedim(3, 1).contiguous()
    return images.float() if images.dtype == torch.float64 else images


def value_range(images: Tensor | LazyImages, looked_at: int = 256) -> tuple[float, float]:
    """Return the smallest and largest value of floats; (0, 1) if all are within it, and for integers.

    Of images that are not in memory only some are read, so twice their range is returned.
    """
    if not images.dtype.is_floating_point or len(images) == 0:
        return 0.0, 1.0
    lazy = isinstance(images, LazyImages) and len(images) > looked_at
    some = images[torch.linspace(0, len(images) - 1, looked_at).long()] if lazy else images[:]
    low, high = float(some.min()), float(some.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    spare = (high - low) / 2 if lazy else 0.0
    return low - spare, max(high + spare, low + 1e-6)
