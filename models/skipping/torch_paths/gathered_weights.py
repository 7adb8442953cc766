"""Weights gathered for the kept channels of a mask."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor

from prunegym.models.skipping.program.layers import Conv, Linear


class KeptChannels:
    """The kept channels of a gate.

    Attributes:
        bits: (width) bool.
        count: Number of kept channels.
        index: Their indices; None if all are kept.
        key: Identifies the mask.
    """

    def __init__(self, bits: Tensor) -> None:
        self.bits = bits
        index = bits.nonzero()[:, 0]
        self.count = len(index)
        self.index = None if self.count == len(bits) else index
        self.key = b"" if self.index is None else bits.cpu().numpy().tobytes()


class Slices:
    """Gathered weights by layer and masks; the most recently used ones are stored, up to a size.

    Args:
        layers: Layers whose weights are gathered.
        size: Largest number of stored weights.
    """

    def __init__(self, layers: Iterable[Conv | Linear], size: int) -> None:
        self._size, self._used = size, 0
        self._whole = {layer.name: _as_maps(layer.weight) for layer in layers}
        self._lock = threading.Lock()  # one path may run in many Python threads
        self._found: OrderedDict[tuple[str, bytes, bytes], tuple[Tensor, Tensor]] = OrderedDict()

    @property
    def weights(self) -> list[Tensor]:
        """The stored weights."""
        return [weight for weight, _ in self._found.values()]

    def clear(self) -> None:
        """Drop all stored weights."""
        with self._lock:
            self._found.clear()
            self._used = 0

    def get(
        self, layer: Conv | Linear, inside: KeptChannels | None, outside: KeptChannels | None
    ) -> tuple[Tensor, Tensor]:
        """Return weight and bias of a layer between the kept channels ``inside`` and ``outside``; None: all."""
        key = (layer.name, b"" if inside is None else inside.key, b"" if outside is None else outside.key)
        if not key[1] and not key[2]:
            return self._whole[layer.name], layer.bias
        with self._lock:
            if key in self._found:
                weight, bias = self._found.pop(key)
                # A mask that comes again may come often: with the layout of maps, torch makes no copy.
                weight = _as_maps(weight)
            else:
                weight, bias = _gathered(layer, inside, outside)
                self._used += weight.numel()
            self._found[key] = weight, bias  # the latest one; the least recently used ones are dropped
            while self._used > self._size and len(self._found) > 1:
                self._used -= self._found.popitem(last=False)[1][0].numel()
        return weight, bias


def _gathered(layer: Conv | Linear, inside: KeptChannels | None, outside: KeptChannels | None) -> tuple[Tensor, Tensor]:
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
            weight = weight.view(len(weight), -1, repeat).index_select(1, inside.index).flatten(1)
    return weight, bias


def _as_maps(weight: Tensor) -> Tensor:
    """Return a convolution's weight in the layout of channels-last maps, and others as they are."""
    return weight.contiguous(memory_format=torch.channels_last) if weight.ndim == 4 else weight
