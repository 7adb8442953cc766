"""Which dimension of an array of images is the channels."""

from __future__ import annotations

from collections.abc import Sequence

from prunegym.errors import InvalidInputError

USUAL = (1, 3, 4)
"""Channels of grey, RGB and RGBA images."""


def channels_are_last(shape: Sequence[int], what: str, channels: int | None = None) -> bool:
    """Say whether an image's channels are its last dimension, as Pillow and TensorFlow have them, or its first.

    Args:
        shape: Three sizes.
        what: The images, for the message.
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
