"""The transform, which brings images of any size to the size of a network's input. It is stored with the model."""

from __future__ import annotations

import dataclasses
from typing import Any

from PIL import Image

from prunegym.errors import InvalidInputError
from prunegym.validation import choice, whole_number

CROPS = ("center", "none")
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
LARGEST_SIDE = 16_384


@dataclasses.dataclass(frozen=True)
class Transform:
    """Resize, then crop. Values of pixels become inputs by the :class:`~prunegym.models.Normalisation`.

    Attributes:
        image_size: (height, width) of the result.
        resize: Length of the shorter side before the crop, with the ratio of the sides kept; None for the smallest
            that covers ``image_size``.
        crop: ``center`` cuts ``image_size`` from the middle. ``none`` stretches the image instead.
        interpolation: One of Pillow's filters, in small letters.

    Example:
        >>> Transform.of(224, resize=256)(Image.new("RGB", (640, 480))).size
        (224, 224)
    """

    image_size: tuple[int, int]
    resize: int | None = None
    crop: str = "center"
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        """Check sizes and names.

        Raises:
            InvalidInputError: If a size is not a whole number above 0, or the crop is larger than the resized image.
            UnknownNameError: For an unknown crop or interpolation.
        """
        if not isinstance(self.image_size, tuple | list) or len(self.image_size) != 2:
            raise InvalidInputError(f"image_size is {self.image_size!r}; a number or (height, width) is needed.")
        height, width = (whole_number("image_size", side, 1, LARGEST_SIDE) for side in self.image_size)
        object.__setattr__(self, "image_size", (height, width))
        choice("crop", self.crop, CROPS)
        choice("interpolation", self.interpolation, INTERPOLATIONS)
        if self.resize is None:
            return
        whole_number("resize", self.resize, 1, LARGEST_SIDE)
        if self.crop == "none":
            raise InvalidInputError("resize is the shorter side before a crop, but crop is 'none'. Leave one out.")
        if self.resize < max(height, width):
            raise InvalidInputError(
                f"resize is {self.resize}, less than the crop of {height}x{width} that is cut from it. Give at least "
                f"{max(height, width)}."
            )

    @classmethod
    def of(
        cls,
        image_size: int | tuple[int, int] | None = None,
        resize: int | None = None,
        crop: str | None = None,
        interpolation: str | None = None,
    ) -> Transform | None:
        """Return the transform for options; an option of None means the default. Without any option, return None.

        Raises:
            InvalidInputError: If there are other options but no ``image_size``.
        """
        others = {"resize": resize, "crop": crop, "interpolation": interpolation}
        given: dict[str, Any] = {name: value for name, value in others.items() if value is not None}
        if image_size is None:
            if given:
                raise InvalidInputError(f"{next(iter(given))} is given without image_size. Give the final size too.")
            return None
        return cls((image_size, image_size) if isinstance(image_size, int) else image_size, **given)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return an image, which is already upright, at ``image_size``."""
        height, width = self.image_size
        inner = self._resized(image.height, image.width)
        if (image.height, image.width) != inner:
            image = image.resize(inner[::-1], Image.Resampling[self.interpolation.upper()])
        if inner == self.image_size:
            return image
        top, left = round((inner[0] - height) / 2), round((inner[1] - width) / 2)
        return image.crop((left, top, left + width, top + height))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width before the crop."""
        wanted = self.image_size
        if self.crop == "none":
            return wanted
        if self.resize is not None:
            shorter = min(height, width)
            return self.resize * height // shorter, self.resize * width // shorter
        if wanted[0] * width >= wanted[1] * height:  # the height decides
            return wanted[0], wanted[0] * width // height
        return wanted[1] * height // width, wanted[1]

    def __str__(self) -> str:
        """Return a description, e.g. ``shorter side 256, center crop 224x224, bilinear``."""
        size = "x".join(map(str, self.image_size))
        if self.crop == "none":
            return f"stretched to {size}, {self.interpolation}"
        shorter = f"shorter side {self.resize}" if self.resize is not None else "scaled to cover"
        return f"{shorter}, {self.crop} crop {size}, {self.interpolation}"
