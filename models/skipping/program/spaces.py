"""The values of a program that may be without their masked channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunegym.models.masking.gates import Bits
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.program.layers import (
    Add,
    Average,
    AvgPool,
    Concat,
    Conv,
    Layer,
    Linear,
    MaxPool,
    Norm,
    Other,
    Scale,
    Subsample,
)


def find_spaces(layers: Sequence[Layer], masked: MaskedCNN) -> tuple[dict[str, int], tuple[Tensor, ...]]:
    """Return the space of each value that may be without channels, and the mask positions of each space's channels.

    A layer makes such a value if it treats channels one by one, or has weights that can be cut, and if its inputs are
    such values of fitting spaces or have no masked channels.

    Args:
        layers: The program's layers.
        masked: The CNN.
    """
    spaces, indices = dict[str, int](), list[Tensor]()
    numbers: dict[tuple[int, ...], int] = {}

    def number(index: Tensor) -> int:
        key = tuple(index.tolist())
        if key not in numbers:
            numbers[key] = len(indices)
            indices.append(index)
        return numbers[key]

    start = 0
    for gate in masked.gates:
        number(torch.arange(start, start + gate.width))
        start += gate.width
    for layer in layers:
        bits = masked.found.values.get(layer.name)
        if bits is None or bits.axis != 1 or not _may_lack(layer, bits, spaces, indices, masked):
            continue
        spaces[layer.name] = number(bits.index)
    return spaces, tuple(indices)


def _may_lack(layer: Layer, bits: Bits, spaces: dict[str, int], indices: list[Tensor], masked: MaskedCNN) -> bool:
    """Whether a layer can make a value without its masked channels."""
    graph, found = masked.graph, masked.found.values
    index = bits.index

    def whole(name: str) -> bool:
        """Whether a value has masked channels in it."""
        return name not in spaces and name in found

    def alike(name: str) -> bool:
        return name in spaces and torch.equal(indices[spaces[name]], index)

    first = layer.inputs[0]
    if isinstance(layer, Conv):
        if layer.groups == 1 or layer.weight.shape[1] > 1:
            return len(layer.inputs) == 1 or alike(layer.inputs[1])
        if first not in spaces:
            return False
        repeat = len(index) // len(indices[spaces[first]])
        return torch.equal(indices[spaces[first]].repeat_interleave(repeat), index)
    if isinstance(layer, Linear):
        return True
    if isinstance(layer, Concat):
        return not any(whole(name) for name in layer.inputs)
    if isinstance(layer, Norm | MaxPool | AvgPool | Average | Add | Scale):
        return all(alike(name) for name in layer.inputs)
    if isinstance(layer, Subsample):
        return alike(first) and layer.channels == len(index)
    if not isinstance(layer, Other) or not layer.by_channel:
        return False
    others = [name for name in layer.inputs if not alike(name)]
    shared = all(name not in found and len(graph[name].shape) == 4 and graph[name].shape[1] == 1 for name in others)
    return shared and len(others) < len(layer.inputs)
