"""The zoo: networks by name, each name a constructor of :mod:`prunegym.models.networks` with its arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
from torch import nn

from prunegym.models.errors import InvalidInputError, UnknownNameError
from prunegym.models.networks import VGG, CifarResNet, MCifarNet, ResNet18, SimpleCNN

ZOO: dict[str, Callable[..., nn.Module]] = {
    "simple-cnn": SimpleCNN,
    "simple-cnn-wide": functools.partial(SimpleCNN, widths=(32, 64, 64), batch_norm=True),
    "resnet20": functools.partial(CifarResNet, 20),
    "resnet32": functools.partial(CifarResNet, 32),
    "resnet44": functools.partial(CifarResNet, 44),
    "resnet56": functools.partial(CifarResNet, 56),
    "resnet18": ResNet18,
    "vgg11": functools.partial(VGG, 11),
    "vgg16": functools.partial(VGG, 16),
    "m-cifarnet": MCifarNet,
}


def build(name: str, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, seed: int = 0) -> nn.Module:
    """Build a network of the zoo with fresh weights; the global random state is left as it was.

    Args:
        name: A key of :data:`ZOO`.
        num_classes: Outputs.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels.
        seed: Seed of the initial weights.

    Returns:
        The network, in training mode, float32 on the CPU.

    Raises:
        UnknownNameError: If there is no such name.
        InvalidInputError: If the images are too small for the network.

    Example:
        >>> sum(p.numel() for p in build("resnet20").parameters())
        269722
    """
    if name not in ZOO:
        raise UnknownNameError("model", name, ZOO)
    constructor = ZOO[name]
    arguments: dict[str, int] = {"num_classes": num_classes, "in_channels": in_channels}
    if "image_size" in inspect.signature(constructor).parameters:
        arguments["image_size"] = image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = constructor(**arguments)
    _check_image_size(name, network, in_channels, image_size)
    return network


def _check_image_size(name: str, network: nn.Module, in_channels: int, image_size: int) -> None:
    was_training = network.training
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, in_channels, image_size, image_size))
    except RuntimeError as error:
        raise InvalidInputError(
            f"Model {name!r} does not take images of {in_channels}x{image_size}x{image_size} ({error}). "
            "Use larger images or a network with fewer poolings, e.g. 'simple-cnn'."
        ) from error
    network.train(was_training)
