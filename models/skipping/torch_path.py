"""Running a program in plain torch: with weights gathered for kept channels, or at full width with masks multiplied."""

from __future__ import annotations

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.models.gate_policy import GatePolicy
from prunegym.models.skipping.lowering import UnsupportedError
from prunegym.models.skipping.paths import Decide, Executed, decide_as_given, decide_by
from prunegym.models.skipping.program import Add, Average, Conv, Layer, Linear, MaxPool, Other, Program, Subsample

CACHED_FLOATS = 1 << 24
"""Sliced weights are kept up to this many numbers, 64 MiB in float32."""
TRACES = 4
"""Traces that are kept, one for each lambda."""


class FullPath:
    """Computes every channel, norms folded, and multiplies with masks: the dense network's speed, never much less.

    Args:
        program: The network.
        policy: Decides gate by gate; None: masks are given.
        channels_last: Memory layout of maps and weights.
    """

    def __init__(self, program: Program, policy: GatePolicy | None = None, *, channels_last: bool = False) -> None:
        self.program, self.policy = program, policy
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.weights = {
            layer.name: layer.weight.contiguous(memory_format=self._layout)
            for layer in program.layers
            if isinstance(layer, Conv)
        }

    def run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        """See :class:`prunegym.models.skipping.paths.Path`."""
        program, decide = self.program, _decide(self.program, self.policy, mask, penalty)
        values = {program.input: images.contiguous(memory_format=self._layout)}
        bits: dict[int, Tensor] = {}
        for layer, ending in zip(program.layers, program.ending, strict=True):
            if isinstance(layer, Conv):
                if layer.gate is not None:
                    bits[layer.gate] = decide(layer.gate, values[layer.inputs[0]])
                value = _conv(layer, values, self.weights[layer.name], layer.bias)
            else:
                value = run_layer(layer, values)
            gate = program.points.get(layer.name)
            if gate is not None:
                value = value * bits[gate].to(value.dtype)[:, :, None, None]
            values[layer.name] = value
            for name in ending:
                del values[name]
        return Executed(_shaped(values[program.output], program), _joined(bits, mask))


class TracedPath:
    """:class:`FullPath`, channels last, traced and frozen by torch, so that no Python runs between the layers.

    Args:
        program: The network.
        policy: Decides gate by gate; None: masks are given.

    Raises:
        UnsupportedError: If torch cannot trace the network.
    """

    def __init__(self, program: Program, policy: GatePolicy | None = None) -> None:
        self._full = FullPath(program, policy, channels_last=True)
        self._traced = functools.lru_cache(TRACES)(self._trace)
        try:
            self._traced(2 if policy is None else 1, None)
        except Exception as error:  # the tracer raises about anything, of its own and from the layers that it calls
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UnsupportedError(f"torch cannot trace the network: {reason}") from error

    def run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        """See :class:`prunegym.models.skipping.paths.Path`."""
        inputs = (images,) if mask is None else (images, mask)
        return Executed(*self._traced(len(inputs), penalty)(*inputs))

    def _trace(self, inputs: int, penalty: float | None) -> Callable[..., tuple[Tensor, Tensor]]:
        program = self._full.program
        images = torch.zeros(2, *program.shapes[program.input]).to(next(iter(self._full.weights.values())))
        mask = torch.ones(2, sum(program.widths), dtype=torch.bool, device=images.device)
        example = (images, mask)[:inputs]
        with warnings.catch_warnings():  # torch calls its tracer deprecated; it is still the fastest on small networks
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(_Traceable(self._full, penalty).eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
            frozen = cast("Callable[..., tuple[Tensor, Tensor]]", torch.jit.freeze(traced))
            for _ in range(2):  # torch optimises it in the first calls
                frozen(*example)
        return frozen


class _Traceable(nn.Module):
    """A path as the module that torch's tracer wants."""

    def __init__(self, path: FullPath, penalty: float | None) -> None:
        super().__init__()
        self._path, self._penalty = path, penalty
        self.policy = path.policy  # the tracer takes parameters of submodules, and no others that could be trained

    def forward(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        done = self._path.run(images, mask, self._penalty)
        return done.output, done.mask


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
        program, decide = self.program, _decide(self.program, self.policy, mask, penalty)
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
                values[layer.name] = _linear(layer, values, weight, bias)
            elif inside is not None and inside.count == 0:  # torch's pooling takes no empty map
                values[layer.name] = images.new_empty(len(images), 0, *program.shapes[layer.name][1:])
            else:
                values[layer.name] = run_layer(layer, values)
            for name in ending:
                del values[name]
        return Executed(_shaped(values[program.output], program), _joined(bits, mask))

    def _conv(self, layer: Conv, values: dict[str, Tensor], weight: Tensor, bias: Tensor) -> Tensor:
        """Convolve; torch refuses to make no channel, and of none it makes maps of the wrong shape."""
        if weight.shape[0] and weight.shape[1]:
            return _conv(layer, values, weight, bias)
        images = len(values[layer.inputs[0]])
        y = bias[None, :, None, None].expand(images, -1, *self.program.shapes[layer.name][1:])
        return _finish(y.clone(), layer, values)


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


def _decide(program: Program, policy: GatePolicy | None, mask: Tensor | None, penalty: float | None) -> Decide:
    if mask is not None:
        return decide_as_given(mask, program.widths)
    assert policy is not None
    return decide_by(policy, penalty)


def _spread(x: Tensor, kept: _Kept | None) -> Tensor:
    """Return a map of all channels, zeros where they are masked."""
    if kept is None or kept.index is None:
        return x
    return x.new_zeros(len(x), len(kept.bits), *x.shape[2:]).index_copy_(1, kept.index, x)


def _joined(bits: dict[int, Tensor], mask: Tensor | None) -> Tensor:
    return mask if mask is not None else torch.cat([bits[gate] for gate in sorted(bits)], dim=1)


def _shaped(value: Tensor, program: Program) -> Tensor:
    return value.reshape(value.shape[0], *program.shapes[program.output])


def run_layer(layer: Layer, values: dict[str, Tensor]) -> Tensor:
    """Run a layer that has the same form whatever is kept."""
    x = values[layer.inputs[0]]
    if isinstance(layer, Linear):
        return _linear(layer, values, layer.weight, layer.bias)
    if isinstance(layer, MaxPool):
        x = F.max_pool2d(x, layer.kernel, layer.stride, layer.padding)
        return x.relu_() if layer.relu else x
    if isinstance(layer, Add):
        if len(layer.inputs) == 1:
            return x.relu()
        x = x + values[layer.inputs[1]]
        return x.relu_() if layer.relu else x
    if isinstance(layer, Average):
        return x.mean((2, 3), keepdim=True)
    if isinstance(layer, Subsample):
        after = layer.channels - x.shape[1] - layer.offset
        return F.pad(x[:, :, :: layer.stride, :: layer.stride], (0, 0, 0, 0, layer.offset, after))
    return cast(Other, layer).run(values)


def _conv(layer: Conv, values: dict[str, Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    y = F.conv2d(values[layer.inputs[0]], weight, bias, layer.stride, layer.padding, layer.dilation)
    return _finish(y, layer, values)


def _finish(y: Tensor, layer: Conv, values: dict[str, Tensor]) -> Tensor:
    if len(layer.inputs) > 1:
        y += values[layer.inputs[1]]
    return y.relu_() if layer.relu else y


def _linear(layer: Linear, values: dict[str, Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    y = F.linear(values[layer.inputs[0]].flatten(1), weight, bias)
    return y.relu_() if layer.relu else y
