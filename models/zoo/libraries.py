"""Networks of torchvision and timm by name, and what they say of the images that they take."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from prunegym.errors import InvalidInputError, MissingDependencyError, UnknownNameError

LIBRARIES = ("timm", "torchvision")
RENORMALISE = ("googlenet", "inception_v3")
"""Networks of torchvision whose public weights need ``transform_input``, and have more outputs in training."""


class Statement(NamedTuple):
    """What a library says of a network.

    Attributes:
        source: torchvision's weights or timm's configuration: size of images, crop, normalisation; None if unknown.
        classes: Names of the classes of its public weights; empty if unknown.
    """

    source: Any
    classes: tuple[str, ...]


def library_of(name: object) -> str | None:
    """Return the library that a network's name is of, such as ``timm`` for ``timm:resnet18``; None for other names."""
    prefix, colon, rest = name.partition(":") if isinstance(name, str) else ("", "", "")
    return prefix if prefix in LIBRARIES and colon and rest else None


def library_network(name: str, num_classes: int | None = None, in_channels: int = 3) -> nn.Module:
    """Build a network with new weights. Nothing is downloaded.

    Args:
        name: Such as ``timm:mobilenetv4_conv_small`` or ``torchvision:resnet50``.
        num_classes: Outputs; None for as many as the public weights have.
        in_channels: Channels of the images.

    Raises:
        MissingDependencyError: If the library is not installed, or does not fit the installed torch.
        UnknownNameError: If it has no such network.
        InvalidInputError: If the network cannot have so many input channels.
    """
    library, _, inner = name.partition(":")
    classes = {} if num_classes is None else {"num_classes": num_classes}
    if library == "timm":
        timm = imported("timm", name)
        _known(name, inner, timm.is_model(inner), timm.list_models)
        made: nn.Module = timm.create_model(inner, pretrained=False, in_chans=in_channels, **classes)
        return made
    models = imported("torchvision", name).models
    _known(name, inner, inner in models.list_models(module=models), lambda: models.list_models(module=models))
    if in_channels != 3:
        raise InvalidInputError(
            f"{name} takes images of 3 channels, not {in_channels}. Use a network of timm, which takes any number."
        )
    options = {"aux_logits": False, "transform_input": True} if inner in RENORMALISE else {}
    built: nn.Module = models.get_model(inner, weights=None, **classes, **options)
    return built


@functools.cache
def statement(name: str) -> Statement | None:
    """Return what a library says of a network; None if the name is not of a library.

    Raises:
        MissingDependencyError: If the library is not installed, or does not fit the installed torch.
        UnknownNameError: If it has no such network.
    """
    library, _, inner = name.partition(":")
    if library_of(name) is None:
        return None
    if library == "timm":
        timm = imported("timm", name)
        _known(name, inner, timm.is_model(inner), timm.list_models)
        config = timm.get_pretrained_cfg(inner)
        return Statement(None, ()) if config is None else Statement(config.to_dict(), _timm_classes(config))
    models = imported("torchvision", name).models
    _known(name, inner, inner in models.list_models(module=models), lambda: models.list_models(module=models))
    weights = getattr(models.get_model_weights(inner), "DEFAULT", None)
    return Statement(weights, tuple(weights.meta.get("categories", ())) if weights is not None else ())


def _timm_classes(config: Any) -> tuple[str, ...]:
    data = importlib.import_module("timm.data")
    subset = data.infer_imagenet_subset(config)
    if subset is None:
        return ()
    names = data.ImageNetInfo(subset)
    return tuple(names.index_to_description(index) for index in range(config.num_classes))


def _known(name: str, inner: str, is_there: bool, names: Callable[[], Iterable[str]]) -> None:
    if not is_there:
        raise UnknownNameError(f"network of {name.partition(':')[0]}", inner, _near(inner, names()))


def _near(name: str, names: Iterable[str]) -> list[str]:
    """Return the names that are like it: a library has more than a message can list."""
    known = list(names)
    return difflib.get_close_matches(name, known, n=8, cutoff=0.3) or known[:8]


def imported(library: str, name: str) -> ModuleType:
    """Import a library, for the network of that name.

    Raises:
        MissingDependencyError: If it is not installed, or does not fit the installed torch; the message has the
            command that repairs it.
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name not in LIBRARIES:
            raise
        raise MissingDependencyError(
            f"{name} is a network of {library}, and {error.name} is not installed. Install it: "
            "pip install 'prunegym[vision]'"
        ) from error
    except Exception as error:  # compiled for another torch, it fails in many ways, and again in others
        raise MissingDependencyError(
            f"{name} is a network of {library}, and the installed torchvision {_version('torchvision')} does not fit "
            f"torch {torch.__version__} ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). "
            f"Install the one that does: {_fitting()}"
        ) from error


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "(of an unknown version)"


def _fitting() -> str:
    """Return the command that installs the torchvision for this torch, of the same kind (CPU or CUDA)."""
    number, _, kind = torch.__version__.partition("+")
    major, minor = (int(part) for part in number.split(".")[:2])
    if major != 2:
        return "pip install --upgrade torch torchvision"
    index = f" --index-url https://download.pytorch.org/whl/{kind}" if kind else ""
    return f"pip install 'torchvision==0.{minor + 15}.*'{index}"  # 0.21 is for torch 2.6, 0.29 for 2.14
