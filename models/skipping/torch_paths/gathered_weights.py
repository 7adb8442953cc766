"""Weights gathered for the kept channels of a mask."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor

from prunegym.models.skipping.program.layers import Conv, Linear


class KeptChannels:
    """The kept channels of a gate.

    Attributes:
        bits: (width) bool.
        count: Number of kept channels.
        index: Their indices; None if all are kept.
        key: Tells masks apart.
    """

    def __init__(self, bits: Tensor) -> None:
        self.bits = bits
        index = bits.nonzero()[:, 0]
        self.count = len(index)
        self.index = None if self.count == len(bits) else index
        self.key = b"" if self.index is None else bits.cpu().numpy().tobytes()


class _Slice(NamedTuple):
    weight: Tensor
    bias: Tensor


class Slices:
    """Gathered weights by layer and masks, the latest used up to a size.

    Args:
        size: Numbers that are kept.
    """

    def __init__(self, size: int) -> None:
        self._size, self._used = size, 0
        self._whole: dict[str, Tensor] = {}
        self._lock = threading.Lock()  # one path may run in many threads of Python
        self._found: OrderedDict[tuple[str, bytes, bytes], _Slice] = OrderedDict()

    @property
    def weights(self) -> list[Tensor]:
        """The weights that are kept."""
        return [found.weight for found in self._found.values()]

    def clear(self) -> None:
        """Drop what was gathered."""
        with self._lock:
            self._found.clear()
            self._used = 0

    def _all(self, layer: Conv | Linear) -> Tensor:
        """Return all weights, a convolution's as maps are in memory; gathering is faster from the usual layout."""
        if layer.name not in self._whole:
            self._whole[layer.name] = _as_maps(layer.weight)
        return self._whole[layer.name]

    def get(
        self, layer: Conv | Linear, inside: KeptChannels | None, outside: KeptChannels | None
    ) -> tuple[Tensor, Tensor]:
        """Return weight and bias of a layer between the kept channels ``inside`` and ``outside``; None: all."""
        with self._lock:
            return self._get(layer, inside, outside)

    def _get(
        self, layer: Conv | Linear, inside: KeptChannels | None, outside: KeptChannels | None
    ) -> tuple[Tensor, Tensor]:
        key = (layer.name, b"" if inside is None else inside.key, b"" if outside is None else outside.key)
        if not key[1] and not key[2]:
            return self._all(layer), layer.bias
        if key in self._found:
            found = self._found.pop(key)
            # A mask that comes again may come often: then the layout of maps pays, to which torch would copy weights.
            self._found[key] = found._replace(weight=_as_maps(found.weight))
            return self._found[key]
        weight, bias = layer.weight, layer.bias
        if outside is not None and outside.index is not None:
            weight, bias = weight.index_select(0, outside.index), bias.index_select(0, outside.index)
        if inside is not None and inside.index is not None:
            repeat = weight.shape[1] // len(inside.bits)  # above 1 for the linear layer behind a flattened map
            if repeat == 1:
                weight = weight.index_select(1, inside.index)
            else:
                weight = weight.view(len(weight), -1, repeat).index_select(1, inside.index).flatten(1)
        self._keep(key, _Slice(weight, bias))
        return weight, bias

    def _keep(self, key: tuple[str, bytes, bytes], made: _Slice) -> None:
        """Keep what was gathered just now, and drop the longest unused while they are too many."""
        self._found[key] = made
        self._used += made.weight.numel()
        while self._used > self._size and len(self._found) > 1:
            _, old = self._found.popitem(last=False)
            self._used -= old.weight.numel()


def _as_maps(weight: Tensor) -> Tensor:
    """Return a convolution's weight in the layout of channels-last maps, and others as they are."""
    return weight.contiguous(memory_format=torch.channels_last) if weight.ndim == 4 else weight
