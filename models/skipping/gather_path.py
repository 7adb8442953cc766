"""Running a program in plain torch with weights gathered for kept channels, so that smaller convolutions run."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from prunegym.models.gate_policy import GatePolicy
from prunegym.models.skipping.paths import Executed
from prunegym.models.skipping.program import Conv, Linear, Program
from prunegym.models.skipping.torch_layers import conv, decider, finish, joined, linear, run_layer, shaped

CACHED_FLOATS = 1 << 24
"""Sliced weights are kept up to this many numbers, 64 MiB in float32."""


class GatherPath:
    """Removes masked channels: weights are gathered for images with equal masks, so that smaller convolutions run.

    It pays on large maps, where gathering weights is cheap beside convolving, and where few masks serve many images.

    Args:
        program: The network.
        policy: Decides gate by gate; None: masks are given.
        cached: Numbers of gathered weights that are kept for the next time that a mask comes.
    """

    def __init__(self, program: Program, policy: GatePolicy | None = None, cached: int = CACHED_FLOATS) -> None:
        self.program, self.policy = program, policy
        self._slices = _Slices(cached)

    def forget(self) -> None:
        """Drop the gathered weights."""
        self._slices.clear()

    def run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        """See :class:`prunegym.models.skipping.paths.Path`."""
        if mask is None:  # what an image reads after the first gate depends on its mask, so each one goes alone
            done = [self._run(images[i : i + 1], None, penalty) for i in range(len(images))]
            return Executed(torch.cat([one.output for one in done]), torch.cat([one.mask for one in done]))
        if len(images) == 1:
            return self._run(images, mask, penalty)
        distinct, group_of = torch.unique(mask, dim=0, return_inverse=True)
        if len(distinct) == 1:
            return Executed(self._run(images, mask[:1], penalty).output, mask)
        output: Tensor | None = None
        order = group_of.argsort()
        for rows in torch.split(order, torch.bincount(group_of).tolist()):
            done_rows = self._run(images[rows], mask[rows[:1]], penalty).output
            if output is None:
                output = done_rows.new_empty(len(images), *done_rows.shape[1:])
            output[rows] = done_rows
        assert output is not None
        return Executed(output, mask)

    def _run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        """Run images that share one mask (1, mask_size), or one image whose mask is decided on the way."""
        program, decide = self.program, decider(self.program, self.policy, mask, penalty)
        values = {program.input: images}
        bits: dict[int, Tensor] = {}
        kept: dict[int, _Kept] = {}
        for layer, ending in zip(program.layers, program.ending, strict=True):
            source = program.gates.get(layer.inputs[0])
            inside = None if source is None else kept[source]
            if isinstance(layer, Conv):
                if layer.gate is not None:
                    x = values[layer.inputs[0]]
                    bits[layer.gate] = decide(layer.gate, x if mask is not None else _spread(x, inside))
                    kept[layer.gate] = _Kept(bits[layer.gate][0])
                outside = None if layer.gate is None else kept[layer.gate]
                weight, bias = self._slices.get(layer, inside, outside)
                values[layer.name] = self._conv(layer, values, weight, bias)
            elif isinstance(layer, Linear) and inside is not None:
                weight, bias = self._slices.get(layer, inside, None)
                values[layer.name] = linear(layer, values, weight, bias)
            elif inside is not None and inside.count == 0:  # torch's pooling takes no empty map
                values[layer.name] = images.new_empty(len(images), 0, *program.shapes[layer.name][1:])
            else:
                values[layer.name] = run_layer(layer, values)
            for name in ending:
                del values[name]
        return Executed(shaped(values[program.output], program), joined(bits, mask))

    def _conv(self, layer: Conv, values: dict[str, Tensor], weight: Tensor, bias: Tensor) -> Tensor:
        """Convolve; torch refuses to make no channel, and of none it makes maps of the wrong shape."""
        if weight.shape[0] and weight.shape[1]:
            return conv(layer, values, weight, bias)
        images = len(values[layer.inputs[0]])
        y = bias[None, :, None, None].expand(images, -1, *self.program.shapes[layer.name][1:])
        return finish(y.clone(), layer, values)


class _Kept:
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


class _Slices:
    """Gathered weights by layer and masks, the latest used up to a size."""

    def __init__(self, size: int) -> None:
        self._size, self._used = size, 0
        self._found: OrderedDict[tuple[str, bytes, bytes], tuple[Tensor, Tensor]] = OrderedDict()

    def clear(self) -> None:
        self._found.clear()
        self._used = 0

    def get(self, layer: Conv | Linear, inside: _Kept | None, outside: _Kept | None) -> tuple[Tensor, Tensor]:
        """Return weight and bias of a layer between the kept channels ``inside`` and ``outside``; None: all."""
        key = (layer.name, b"" if inside is None else inside.key, b"" if outside is None else outside.key)
        if not key[1] and not key[2]:
            return layer.weight, layer.bias
        found = self._found.get(key)
        if found is not None:
            self._found.move_to_end(key)
            return found
        weight, bias = layer.weight, layer.bias
        if outside is not None and outside.index is not None:
            weight, bias = weight.index_select(0, outside.index), bias.index_select(0, outside.index)
        if inside is not None and inside.index is not None:
            repeat = weight.shape[1] // len(inside.bits)  # above 1 for the linear layer behind a flattened map
            if repeat == 1:
                weight = weight.index_select(1, inside.index)
            else:
                weight = weight.view(len(weight), -1, repeat).index_select(1, inside.index).flatten(1)
        self._found[key] = (weight, bias)
        self._used += weight.numel()
        while self._used > self._size and len(self._found) > 1:
            _, (old, _) = self._found.popitem(last=False)
            self._used -= old.numel()
        return weight, bias


def _spread(x: Tensor, kept: _Kept | None) -> Tensor:
    """Return a map of all channels, zeros where they are masked."""
    if kept is None or kept.index is None:
        return x
    return x.new_zeros(len(x), len(kept.bits), *x.shape[2:]).index_copy_(1, kept.index, x)
