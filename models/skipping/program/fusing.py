"""Fusing the layers of a program: norms and sums into convolutions, activations into what comes before."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence, Set as AbstractSet

from prunegym.models.skipping.program.layers import Add, Conv, Layer, Linear, MaxPool, Norm, Subsample


def fuse(
    layers: Sequence[Layer], output: str, gated: AbstractSet[str], points: AbstractSet[str] = frozenset()
) -> list[Layer]:
    """Fuse each layer into the one that makes its input, if nothing else reads that.

    Args:
        layers: The layers in the order in which they run.
        output: Name of the value that the network returns.
        gated: Names of the values that have masked channels.
        points: Names of the values to be masked, which are kept.

    Returns:
        Fewer layers, each at the position and with the name of its last part.
    """
    readers = Counter(name for layer in layers for name in layer.inputs)
    readers[output] += 1
    made: dict[str, Layer] = {}
    for layer in layers:
        for name in layer.inputs:
            before = made.get(name)
            if before is None or readers[name] > 1 or name in points:
                continue
            both = _fused(before, layer, name, gated)
            if both is not None:
                del made[name]
                layer = both
                break
        made[layer.name] = layer
    return list(made.values())


def _fused(before: Layer, layer: Layer, name: str, gated: AbstractSet[str]) -> Layer | None:
    """Return one layer that does the work of two, or None."""
    if isinstance(layer, Norm) and isinstance(before, Conv) and not before.activation and len(before.inputs) == 1:
        # s (W x + b) + t = (s W) x + (s b + t), in double so that only the result is rounded.
        scale = layer.scale.view(-1, 1, 1, 1)
        weight = (before.weight.double() * scale).to(before.weight.dtype)
        bias = (before.bias.double() * layer.scale + layer.shift).to(before.bias.dtype)
        constants = before.constants
        if constants is not None:
            table = (constants.table.double() * layer.scale).to(constants.table.dtype)
            constants = dataclasses.replace(constants, table=table)
        return dataclasses.replace(before, name=layer.name, weight=weight, bias=bias, constants=constants)
    if isinstance(layer, Add) and len(layer.inputs) == 1 and isinstance(before, Conv | MaxPool | Add | Linear | Norm):
        return None if before.activation else dataclasses.replace(before, name=layer.name, activation=layer.activation)
    if isinstance(layer, Add) and len(layer.inputs) == 2 and isinstance(before, Conv):
        if before.activation or len(before.inputs) > 1 or name in gated:
            return None
        (other,) = (value for value in layer.inputs if value != name)
        return dataclasses.replace(before, name=layer.name, inputs=(*before.inputs, other), activation=layer.activation)
    if isinstance(layer, Subsample) and isinstance(before, Subsample):
        stride = (before.stride[0] * layer.stride[0], before.stride[1] * layer.stride[1])
        offset = before.offset + layer.offset
        return dataclasses.replace(before, name=layer.name, stride=stride, channels=layer.channels, offset=offset)
    return None
