"""Random changes of training images."""

from __future__ import annotations

import torch
from torch import Tensor


def random_shift_and_flip(images: Tensor, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift each image by up to ``pad`` pixels, filling with zeros, and mirror half of the images.

    Args:
        images: (batch, channels, height, width), any dtype.
        pad: Largest shift in pixels, in each direction.
        flip: Whether to mirror.
        generator: Source of the random numbers.

    Returns:
        A new tensor of the same shape and dtype.
    """
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    # A shift is a window of the padded image whose corner is drawn evenly from 0 to 2 * pad.
    top = torch.randint(0, 2 * pad + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * pad + 1, (count, 1), generator=generator)
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    batch = torch.arange(count).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
