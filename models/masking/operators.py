"""What each operation does to channels: the table with which gates are found in any architecture."""

from __future__ import annotations

import operator
from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Kind(Enum):
    """What an operation does to a zero channel and to the order of channels."""

    CONV = "mixes all input channels into new ones (convolution without groups)"
    LINEAR = "mixes all input features into new ones"
    DEPTHWISE = "filters each channel by itself, and may add a bias"
    CHANNELWISE = "maps each channel by itself, and zero to something else (norm, sigmoid)"
    ACTIVATION = "maps each value by itself, and zero to zero (ReLU)"
    POOL = "maps each channel by itself, and zero to zero (pooling, dropout, resizing)"
    RESHAPE = "changes the shape without mixing channels (flatten)"
    MULTIPLY = "zero where one operand is zero"
    CONCAT = "concatenates channels"
    SIZE = "reads only the shape"
    OTHER = "anything else: no gate reaches through it"


_ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Tanh, nn.Hardtanh, nn.Softsign,
)  # fmt: skip
_POOLS: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Dropout2d,
    nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip
_CHANNELWISE_MODULES: tuple[type[nn.Module], ...] = (
    nn.BatchNorm2d, nn.InstanceNorm2d, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus,
)  # fmt: skip

_FUNCTIONS: dict[Any, Kind] = {
    **dict.fromkeys(
        (
            F.relu, torch.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.hardswish, torch.tanh,
            F.tanh, F.hardtanh,
        ),
        Kind.ACTIVATION,
    ),
    **dict.fromkeys(
        (
            F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.dropout, F.interpolate,
            torch.mean,
        ),
        Kind.POOL,
    ),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, F.hardsigmoid, F.softplus, torch.clamp), Kind.CHANNELWISE),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.squeeze), Kind.RESHAPE),
    **dict.fromkeys((operator.mul, torch.mul, torch.multiply), Kind.MULTIPLY),
    **dict.fromkeys((torch.cat, torch.concat), Kind.CONCAT),
}  # fmt: skip

_METHODS: dict[str, Kind] = {
    **dict.fromkeys(("relu", "relu_", "tanh"), Kind.ACTIVATION),
    **dict.fromkeys(("mean", "contiguous"), Kind.POOL),
    **dict.fromkeys(("sigmoid", "clamp"), Kind.CHANNELWISE),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze"), Kind.RESHAPE),
    "mul": Kind.MULTIPLY,
    **dict.fromkeys(("size", "dim", "numel"), Kind.SIZE),
}


_KNOWN = (nn.Conv2d, nn.Linear, nn.Flatten, *_CHANNELWISE_MODULES, *_ACTIVATIONS, *_POOLS)


def known_base(module: nn.Module) -> type[nn.Module] | None:
    """Return the class of torch.nn that a module is or is derived from, if this table has it."""
    base = next(cls for cls in type(module).__mro__ if cls.__module__.startswith("torch.nn.modules"))
    return base if base in _KNOWN else None


def is_its_base(module: nn.Module) -> bool:
    """Whether a module is of a class in the table, or of a subclass that changes nothing of what it computes."""
    base = known_base(module)
    if base is None or type(module) is base:
        return base is not None
    methods = ("forward", "_conv_forward", "__call__")
    if any(getattr(type(module), name, None) is not getattr(base, name, None) for name in methods):
        return False
    # A weight may be computed by a property, as torch.nn.utils.parametrize does.
    own = [cls for cls in type(module).__mro__ if not cls.__module__.startswith("torch.nn.modules")]
    values = [*module._parameters, *module._buffers, "weight", "bias"]
    computed = any(name in vars(cls) for cls in own[: own.index(object)] for name in values)
    return not computed and "forward" not in vars(module)


def kind_of_module(module: nn.Module, proven: bool = False) -> Kind:
    """Classify a module by its class in torch.nn.

    A subclass may compute something else: it is the kind of its base only if it inherits everything that computes, or
    if it is ``proven`` to do the same.
    """
    base = known_base(module) if proven or is_its_base(module) else None
    if isinstance(module, nn.Conv2d) and base is nn.Conv2d:
        if module.groups == 1:
            return Kind.CONV
        return Kind.DEPTHWISE if module.groups == module.in_channels == module.out_channels else Kind.OTHER
    if base is nn.Linear:
        return Kind.LINEAR
    if base in _CHANNELWISE_MODULES:
        return Kind.CHANNELWISE
    if base in _ACTIVATIONS:
        return Kind.ACTIVATION
    if base in _POOLS:
        return Kind.POOL
    return Kind.RESHAPE if base is nn.Flatten else Kind.OTHER


def kind_of_function(function: Callable[..., Any], args: tuple[Any, ...] = ()) -> Kind:
    """Classify a function that the graph calls; torch.fx traces ``x.shape`` as ``getattr(x, "shape")``."""
    if function is getattr and args[1] in ("shape", "ndim", "dtype", "device"):
        return Kind.SIZE
    return _FUNCTIONS.get(function, Kind.OTHER)


def kind_of_method(name: str) -> Kind:
    """Classify a tensor method that the graph calls."""
    return _METHODS.get(name, Kind.OTHER)
