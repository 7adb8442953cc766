"""Networks by name: those of the zoo, of torchvision and timm, and yours as ``module:function``."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable

import torch
from torch import nn

from prunegym.errors import InvalidInputError
from prunegym.models.precision import new_tensors_in
from prunegym.models.zoo.libraries import library_network, library_of
from prunegym.models.zoo.networks import VGG, CifarResNet, MCifarNet, ResNet18, SimpleCNN
from prunegym.user_code import import_object
from prunegym.validation import choice, whole_number

MOST_CLASSES, LARGEST_SIDE = 1_000_000, 16_384
"""Limits of networks of the zoo; larger ones would not fit into memory."""

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
_OWN = frozenset(ZOO)
_CODE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
"""``module:function``."""
FORMS = ("timm:NAME", "torchvision:NAME", "module:function")
"""How networks are named that are not in the zoo."""


def is_code(name: object) -> bool:
    """Return whether a name is of your code, ``module:function``."""
    return isinstance(name, str) and library_of(name) is None and _CODE.fullmatch(name) is not None


def is_network(name: object) -> bool:
    """Return whether a name is of a network; whether a library or a module has it is seen when it is built."""
    return name in ZOO or library_of(name) is not None or is_code(name)


def is_known(name: str) -> bool:
    """Return whether a network may be built because a file names it: not if that would import your code first."""
    return name in ZOO or library_of(name) is not None


def network_constructor(name: str) -> Callable[..., nn.Module]:
    """Return what builds a network, and register it if it is your code, as a model file may name it from then on.

    Raises:
        UnknownNameError: If there is no such name.
        InvalidInputError: If your module cannot be imported, or has no such function.
        MissingDependencyError: If the library is not installed.
    """
    if library_of(name) is not None:
        return functools.partial(library_network, name)
    if name not in ZOO and is_code(name):
        found = import_object(name, "network")
        if not callable(found) or isinstance(found, nn.Module):
            raise InvalidInputError(
                f"The network {name!r} is a {type(found).__name__}; name a function or a class that builds one."
            )
        ZOO[name] = found
    return ZOO[choice("model", name, [*ZOO, *FORMS])]


def register_network(name: str, constructor: Callable[..., nn.Module]) -> None:
    """Add your network to the zoo, so that commands and :func:`prunegym.models.read_model` can build it by name.

    A model file has the network's name and weights but no code. Before you load it, import the module that registers
    the name; on the command line use ``--import MODULE``.

    Args:
        name: Name in commands and files. An earlier registration of the same name is replaced.
        constructor: Called by keyword with ``num_classes``, ``in_channels`` and, if it has this parameter,
            ``image_size`` (height of the images). Returns a network with new weights, whose output is logits (batch,
            num_classes).

    Raises:
        InvalidInputError: If the name is one of the built-in networks, or the constructor cannot be called like this.

    Example:
        >>> class Tiny(nn.Sequential):
        ...     def __init__(self, num_classes: int, in_channels: int) -> None:
        ...         pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ...         super().__init__(nn.Conv2d(in_channels, 8, 3), nn.ReLU(), *pool, nn.Linear(8, num_classes))
        >>> register_network("tiny", Tiny)
        >>> build("tiny", num_classes=3)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])
        >>> del ZOO["tiny"]
    """
    if name in _OWN:
        raise InvalidInputError(f"{name!r} is a built-in network of PruneGym. Give yours another name.")
    try:
        inspect.signature(constructor).bind(**_arguments(constructor, 10, 3, 32))
    except TypeError as error:
        raise InvalidInputError(
            f"The constructor of {name!r} cannot be called with num_classes and in_channels by name ({error}). Wrap "
            "it: register_network(name, lambda num_classes, in_channels: ...)."
        ) from error
    ZOO[name] = constructor


@new_tensors_in()
def build(
    name: str,
    num_classes: int | None = 10,
    in_channels: int = 3,
    image_size: int | tuple[int, int] = 32,
    seed: int = 0,
) -> nn.Module:
    """Build a network by name, with new weights. The global random state does not change.

    Args:
        name: A key of :data:`ZOO`; ``timm:NAME`` or ``torchvision:NAME`` of the installed package; or
            ``module:function``, your function or class, called by keyword with those of ``num_classes``,
            ``in_channels`` and ``image_size`` that it takes.
        num_classes: Outputs; None for the number that the network of a library, or yours, has by default.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels; one number for square ones.
        seed: Seed of the initial weights.

    Returns:
        The network, in training mode, float32 on the CPU.

    Raises:
        UnknownNameError: If there is no such name.
        InvalidInputError: If the network cannot run such images.
        MissingDependencyError: If torchvision or timm is needed and not installed.

    Example:
        >>> sum(p.numel() for p in build("resnet20").parameters())
        269722
    """
    constructor = network_constructor(name)
    height, width = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if num_classes is not None or name in _OWN:
        whole_number("num_classes", num_classes, 1, MOST_CLASSES)
    whole_number("in_channels", in_channels, 1, LARGEST_SIDE)
    for side in (height, width):
        whole_number("image_size", side, 1, LARGEST_SIDE)
    whole_number("seed", seed, 0)
    arguments = _arguments(constructor, num_classes, in_channels, height)
    arguments = _taken(constructor, arguments) if is_code(name) else arguments
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = constructor(**arguments)
    if not isinstance(network, nn.Module):
        raise InvalidInputError(f"{name!r} returned a {type(network).__name__}; a torch module is needed.")
    _check_image_size(name, network, (in_channels, height, width))
    return network


def _arguments(
    constructor: Callable[..., nn.Module], num_classes: int | None, in_channels: int, image_size: int
) -> dict[str, int]:
    """Return the keyword arguments of a constructor of the zoo."""
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    arguments["in_channels"] = in_channels
    sized = "image_size" in inspect.signature(constructor).parameters
    return {**arguments, "image_size": image_size} if sized else arguments


def _taken(constructor: Callable[..., nn.Module], arguments: dict[str, int]) -> dict[str, int]:
    """Return the arguments that your function takes."""
    parameters = inspect.signature(constructor).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    return {name: value for name, value in arguments.items() if name in {parameter.name for parameter in parameters}}


def _check_image_size(name: str, network: nn.Module, shape: tuple[int, int, int]) -> None:
    was_training = network.training
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, *shape))
    except RuntimeError as error:
        raise InvalidInputError(
            f"Model {name!r} does not take images of {'x'.join(map(str, shape))} ({error}). "
            "Use larger images, or square ones, or a network with less pooling, e.g. 'simple-cnn'."
        ) from error
    network.train(was_training)
