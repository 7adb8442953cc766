"""The transform and normalisation of a pretrained network, as torchvision and timm state them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prunegym.errors import InvalidInputError
from prunegym.models.data.normalisation import Normalisation
from prunegym.models.data.transform import Transform
from prunegym.models.zoo.libraries import statement


def pretrained_transform(source: Any) -> tuple[Transform, Normalisation]:
    """Return the transform and normalisation that a pretrained network needs.

    Args:
        source: torchvision's weights, such as ``MobileNet_V3_Small_Weights.DEFAULT``, or their ``transforms()``; a timm
            model, or its ``pretrained_cfg``; or a name such as ``timm:efficientnet_lite0``.

    Raises:
        InvalidInputError: If it is none of these, or does not crop from the middle.

    Example:
        >>> config = {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic",
        ...           "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        >>> str(pretrained_transform(config)[0])
        'shorter side 256, center crop 224x224, bicubic'
    """
    if isinstance(source, str):
        stated = statement(source)
        source = None if stated is None else stated.source
    source = getattr(source, "pretrained_cfg", source)
    if isinstance(source, Mapping) and "input_size" in source:
        return _of_timm(source)
    preset = source.transforms() if hasattr(source, "transforms") else source
    if hasattr(preset, "crop_size") and hasattr(preset, "resize_size"):
        return _of_torchvision(preset)
    raise InvalidInputError(
        f"A {type(source).__name__} does not say how images become inputs. Give torchvision's weights or a timm model, "
        "or image_size, resize and crop."
    )


def _of_timm(config: Mapping[str, Any]) -> tuple[Transform, Normalisation]:
    channels, height, width = config["input_size"]
    mode, share = config.get("crop_mode", "center"), config.get("crop_pct") or 0.875
    if mode not in ("center", "squash"):
        raise InvalidInputError(f"The timm model's crop_mode is {mode!r}; center or squash is needed.")
    interpolation = config.get("interpolation", "bicubic")
    if mode == "squash" and share == 1:
        transform = Transform((height, width), crop="none", interpolation=interpolation)
    else:
        # timm scales the crop's side by 1 / crop_pct.
        transform = Transform((height, width), math.floor(max(height, width) / share), interpolation=interpolation)
    return transform, _statistics(config["mean"], config["std"], channels)


def _of_torchvision(preset: Any) -> tuple[Transform, Normalisation]:
    height, width = (_side(preset.crop_size, place) for place in (0, -1))
    interpolation = getattr(preset.interpolation, "value", preset.interpolation)
    transform = Transform((height, width), _side(preset.resize_size, 0), interpolation=str(interpolation))
    return transform, _statistics(preset.mean, preset.std, len(preset.mean))


def _side(size: Any, place: int) -> int:
    return int(size[place] if isinstance(size, list | tuple) else size)


def _statistics(mean: Any, std: Any, channels: int) -> Normalisation:
    if len(mean) != channels:
        raise InvalidInputError(f"The network has {channels} input channels, but {len(mean)} means.")
    return Normalisation(tuple(map(float, mean)), tuple(map(float, std)))
