"""Devices by name, checked before anything is moved there."""

from __future__ import annotations

import torch

from prunegym.errors import InvalidInputError


def check_device(name: str | torch.device) -> torch.device:
    """Return a device that is there.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1`` and the like.

    Raises:
        InvalidInputError: If torch knows no such device, or this machine or this build of torch has none.

    Example:
        >>> check_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(f"device is {name!r}, which torch does not know. Give cpu, or cuda.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidInputError(
            f"device is {name!r}, but torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here. "
            "Give cpu, or install a CUDA build of torch on a machine with a GPU."
        )
    return device
