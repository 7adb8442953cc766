"""Normalisation of pixel values to a network's input."""

from __future__ import annotations

import dataclasses
import math
import numbers

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.validation import instance

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

FULL = {torch.uint8: 255.0, torch.uint16: 65_535.0}
"""Integer types of pixels, and the value of each that becomes 1."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of images per channel; integer pixels are first scaled to [0, 1].

    Attributes:
        mean: One number per channel.
        std: One positive number per channel.
        low: Smallest value of images that are floats.
        high: Largest value of images that are floats.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InvalidInputError: If a standard deviation is not above 0, a number is not finite, or the range is empty.
        """
        for name in ("mean", "std"):
            instance(name, getattr(self, name), (tuple, list), "Give one number per channel.")
        for value in (*self.mean, *self.std, self.low, self.high):
            instance("A number of the normalisation", value, numbers.Real)
        if not all(0 < value < math.inf for value in self.std) or not all(map(math.isfinite, self.mean)):
            raise InvalidInputError(
                f"Normalisation has means {self.mean} and standard deviations {self.std}; finite numbers are needed, "
                "and standard deviations above 0."
            )
        if not -math.inf < self.low < self.high < math.inf:
            raise InvalidInputError(
                f"Images range from {self.low} to {self.high}; two finite, increasing numbers are needed."
            )

    @property
    def of_own_range(self) -> bool:
        """Whether images are floats of another range than [0, 1], which image files cannot have."""
        return (self.low, self.high) != (0.0, 1.0)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images.

        Args:
            images: (batch, channels, height, width), uint8 in 0..255, uint16 in 0..65535, or float from low to high.

        Returns:
            float32, same shape, channels_last in memory, which makes convolutions on a CPU faster.
        """
        # (x - mean) / std, of pixels scaled to [0, 1] first.
        floats = images.float() / FULL[images.dtype] if images.dtype in FULL else images.float()
        mean = torch.tensor(self.mean, dtype=floats.dtype, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=floats.dtype, device=images.device).view(-1, 1, 1)
        return ((floats - mean) / std).contiguous(memory_format=torch.channels_last)

    def as_bytes(self, images: Tensor) -> Tensor:
        """Return images as uint8 in 0..255, for pictures."""
        if images.dtype == torch.uint8:
            return images
        full = FULL.get(images.dtype)
        shares = images.float() / full if full else (images.float() - self.low) / (self.high - self.low)
        return (shares.clamp(0, 1) * 255).round().to(torch.uint8)

    @classmethod
    def default(cls, channels: int, low: float = 0.0, high: float = 1.0) -> Normalisation:
        """Return ImageNet's for 3 channels, otherwise mean 0.5 and standard deviation 0.5.

        Images with another range than [0, 1] are not normalised.
        """
        if (low, high) != (0.0, 1.0):
            return cls((0.0,) * channels, (1.0,) * channels, low, high)
        return cls(IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else cls((0.5,) * channels, (0.5,) * channels)
