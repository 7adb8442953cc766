"""Weights gathered for the kept channels of a mask."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable

import torch
from torch import Tensor

from prunegym.models.skipping.program.layers import Conv, Linear


class KeptChannels:
    """The kept channels of a gate.

    Args:
        bits: (width) bool.
        always: Whether there is an index, and no key, whatever the bits are: for a pass that is recorded.

    Attributes:
        bits: (width) bool.
        count: Number of kept channels.
        index: Their indices; None if all are kept.
        key: Identifies the mask.
    """

    def __init__(self, bits: Tensor, always: bool = False) -> None:
        self.bits = bits
        index = bits.nonzero()[:, 0]
        self.count = len(index)
        self.index = index if always or self.count < len(bits) else None
        self.key = b"" if always or self.index is None else bits.cpu().numpy().tobytes()


class Slices:
    """Gathered weights by masks; the most recently used ones are stored, up to a size.

    Args:
        layers: Layers whose weights are gathered.
        size: Largest number of stored weights.
    """

    def __init__(self, layers: Iterable[Conv | Linear], size: int) -> None:
        self._size, self._used = size, 0
        self._whole = {layer.name: _as_maps(layer.weight) for layer in layers}
        self._lock = threading.Lock()  # one path may run in many Python threads
        self._found: OrderedDict[Hashable, tuple[Tensor, ...]] = OrderedDict()

    @property
    def weights(self) -> list[Tensor]:
        """The stored weights and biases."""
        return [one for found in self._found.values() for one in found]

    def clear(self) -> None:
        """Drop all stored weights."""
        with self._lock:
            self._found.clear()
            self._used = 0

    def get(
        self, layer: Conv | Linear, inside: KeptChannels | None, outside: KeptChannels | None
    ) -> tuple[Tensor, ...]:
        """Return weight and bias of a layer between the kept channels ``inside`` and ``outside``; None: all."""
        key = (layer.name, b"" if inside is None else inside.key, b"" if outside is None else outside.key)
        if not key[1] and not key[2]:
            return self._whole[layer.name], layer.bias
        return self.stored(key, lambda: gathered(layer, inside, outside))

    def stored(self, key: Hashable, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return the weights that are stored under a key, or else make and store them."""
        with self._lock:
            if key in self._found:
                # A mask that comes again may come often: with the layout of maps, torch makes no copy.
                found = tuple(map(_as_maps, self._found.pop(key)))
            else:
                found = make()
                self._used += _size(found)
            self._found[key] = found  # the latest one; the least recently used ones are dropped
            while self._used > self._size:
                self._used -= _size(self._found.popitem(last=False)[1])
        return found


def _size(weights: Iterable[Tensor]) -> int:
    return sum(one.numel() for one in weights)


def gathered(layer: Conv | Linear, inside: KeptChannels | None, outside: KeptChannels | None) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a layer for the kept channels."""
    # Gathering from torch's default layout is faster than from the layout of maps.
    weight, bias = layer.weight, layer.bias
    if outside is not None and outside.index is not None:
        weight, bias = weight.index_select(0, outside.index), bias.index_select(0, outside.index)
    if inside is not None and inside.index is not None:
        if isinstance(layer, Conv) and layer.groups > 1:  # depthwise, or each group keeps the same channels
            if weight.shape[1] > 1:
                weight = weight.index_select(1, inside.index[inside.index < weight.shape[1]])
            return weight, bias
        # Above 1 for a linear layer after a flattened map, where each channel has this many adjacent numbers.
        repeat = weight.shape[1] // len(inside.bits)
        if repeat == 1:
            weight = weight.index_select(1, inside.index)
        else:
            weight = torch.unflatten(weight, 1, (-1, repeat)).index_select(1, inside.index).flatten(1)
    return weight, bias


def _as_maps(weight: Tensor) -> Tensor:
    """Return a convolution's weight in the layout of channels-last maps, and others as they are."""
    return weight.contiguous(memory_format=torch.channels_last) if weight.ndim == 4 else weight
