"""Layers of a program and decisions of its gates in plain torch, for all torch paths."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from prunegym.models.gating.features import CLIP, MaskFeatures
from prunegym.models.gating.gate_policy import GatePolicy, check_penalty
from prunegym.models.masking.graph import BATCH, LIKE
from prunegym.models.skipping.program import layers as kinds
from prunegym.models.skipping.program.path import Decide, Executed, ExecutionPath
from prunegym.models.skipping.torch_paths.recorded import Examples, Recorded, depthwise

LAMBDAS = 4
"""Number of lambdas for which folded heads are stored."""


def first_values(program: kinds.Program, images: Tensor) -> dict[str, Any]:
    """Return the first values of a pass; maps have the layout channels_last."""
    images = images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images
    return {program.input: images, BATCH: len(images), LIKE: images[:0]}


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "sigmoid": torch.sigmoid,
    "silu": F.silu, "gelu": F.gelu,
}  # fmt: skip
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_, "relu6": lambda x: x.clamp_(0, 6), "sigmoid": torch.sigmoid_,
    **{name: functools.partial(getattr(F, name), inplace=True) for name in ("hardswish", "hardsigmoid", "silu")},
}  # fmt: skip


def activate(activation: str, y: Tensor) -> Tensor:
    """Return what an activation makes of numbers that nothing else reads."""
    return _IN_PLACE.get(activation, _FUNCTIONS.get(activation, lambda x: x))(y) if activation else y


def run_layer(layer: kinds.Layer, values: dict[str, Tensor]) -> Tensor:
    """Run a layer that does not depend on the kept channels."""
    if not layer.inputs:  # a weight that is computed, or that belongs to no layer
        return cast(kinds.Other, layer).run(values)
    x = values[layer.inputs[0]]
    if isinstance(layer, kinds.Linear):
        return linear(layer, values, layer.weight, layer.bias)
    if isinstance(layer, kinds.MaxPool):
        return activate(layer.activation, F.max_pool2d(x, layer.kernel, layer.stride, layer.padding, 1, layer.ceil))
    if isinstance(layer, kinds.AvgPool):
        return F.avg_pool2d(x, layer.kernel, layer.stride, layer.padding, layer.ceil, layer.padded)
    if isinstance(layer, kinds.Add):
        if len(layer.inputs) == 1:
            return _FUNCTIONS[layer.activation](x)
        return activate(layer.activation, x + values[layer.inputs[1]])
    if isinstance(layer, kinds.Scale):
        return x * values[layer.inputs[1]]
    if isinstance(layer, kinds.Average):
        return x.mean((2, 3), keepdim=True)
    if isinstance(layer, kinds.Subsample):
        after = layer.channels - x.shape[1] - layer.offset
        return F.pad(x[..., :: layer.stride[0], :: layer.stride[1]], (0, 0, 0, 0, layer.offset, after))
    if isinstance(layer, kinds.Concat):
        return torch.cat([values[name] for name in layer.inputs], 1)
    if isinstance(layer, kinds.Norm):
        return norm(layer, x, layer.scale, layer.shift)
    if isinstance(layer, kinds.Conv):
        return conv(layer, values, layer.weight, layer.bias)
    return cast(kinds.Other, layer).run(values)


def norm(layer: kinds.Norm, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Run a norm that could not be folded, with the factors (channels,) and offsets of the existing channels."""
    y = torch.addcmul(shift.to(x.dtype)[:, None, None], x, scale.to(x.dtype)[:, None, None])
    return activate(layer.activation, y)


def conv(
    layer: kinds.Conv, values: dict[str, Tensor], weight: Tensor, bias: Tensor, added: Tensor | None = None
) -> Tensor:
    """Run a convolution with given weights, and the operations that are fused into it.

    ``added`` (images, out) is added to its sums.
    """
    x = values[layer.inputs[0]]
    # The groups of a grouped convolution keep equally many channels; a depthwise one drops whole groups.
    if layer.groups > 1 and layer.weight.shape[1] == 1:
        y = depthwise(x, weight, bias, layer)
    else:
        y = F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    y = y if added is None else y.add_(added[:, :, None, None])
    return finish(y, layer, values)


def finish(y: Tensor, layer: kinds.Conv, values: dict[str, Tensor]) -> Tensor:
    """Run the operations that are fused into a convolution, in place."""
    if len(layer.inputs) > 1:
        y += values[layer.inputs[1]]
    return activate(layer.activation, y)


def linear(
    layer: kinds.Linear, values: dict[str, Tensor], weight: Tensor, bias: Tensor, added: Tensor | None = None
) -> Tensor:
    """Run a linear layer with given weights; ``added`` (images, out) is added to its output."""
    y = F.linear(values[layer.inputs[0]].flatten(1), weight, bias)
    y = y if added is None else y.add_(added)
    return activate(layer.activation, y)


class FoldedHead:
    """A gate's head, with standardisation and lambda in its first layer.

    On a small network each operation of a decision costs as much as a tenth of a convolution.

    Args:
        policy: Decides gate by gate.
        gate: Index of the gate.
        penalty: lambda, for a policy with a ``penalty_range``.
    """

    def __init__(self, policy: GatePolicy, gate: int, penalty: float | None) -> None:
        self.features: MaskFeatures = policy.features
        self.gate = gate
        mean, std = self.features.statistics(gate)
        weight, bias, last_weight, last_bias = policy.layers(gate, penalty)
        # W ((x - mean) / std) + b = (W / std) x + (b - (W / std) mean), and x is clipped instead of the quotient.
        folded = weight.double() / std.double()
        self.low, self.high = (mean - CLIP * std).float(), (mean + CLIP * std).float()
        self.weight, self.bias = folded.float(), (bias.double() - folded @ mean.double()).float()
        self.last_weight, self.last_bias = last_weight.float(), last_bias.float()

    def __call__(self, reads: Tensor) -> Tensor:
        """Return bits (batch, width) bool from the map that the producer reads (batch, channels, height, width)."""
        clipped = self.features.raw(self.gate, reads).float().clamp(self.low, self.high)
        hidden = F.linear(clipped, self.weight, self.bias).relu_()
        return F.linear(hidden, self.last_weight, self.last_bias) > 0


class Deciding:
    """The source of the bits of a call.

    Args:
        program: The network.
        policy: Decides gate by gate; None: masks are given.
    """

    def __init__(self, program: kinds.Program, policy: GatePolicy | None) -> None:
        self._program, self._policy = program, policy
        self._heads = functools.lru_cache(LAMBDAS)(self._fold)
        if policy is not None:
            self._heads(None)  # so that later changes of weights have no effect

    def start(self, mask: Tensor | None, penalty: float | None) -> Decide:
        """Return what sets each gate's bits: the mask (batch, mask_size) if it is given, otherwise the policy."""
        if mask is not None:
            parts = torch.split(mask, list(self._program.widths), dim=1)
            return lambda gate, _reads: parts[gate]
        heads = self._heads(penalty)
        return lambda gate, reads: heads[gate](reads)

    @torch.no_grad()
    def _fold(self, penalty: float | None) -> list[FoldedHead]:
        assert self._policy is not None
        if self._policy.penalty_range is None:
            check_penalty(None, penalty)
        return [FoldedHead(self._policy, gate, penalty) for gate in range(len(self._program.widths))]


def joined(bits: dict[int, Tensor], mask: Tensor | None) -> Tensor:
    """Return the masks that were used, (batch, mask_size) bool."""
    return mask if mask is not None else torch.cat([bits[gate] for gate in sorted(bits)], dim=1)


GROUP = 16
"""Images that run together if there are few weights: maps of more images do not fit into the cache, and each layer gets
new memory for them. With many weights it would cost more to read them again for each group."""
FEW_WEIGHTS = 1_000_000


class FullPath(ExecutionPath):
    """Computes every channel, with norms folded, and masks them. It is about as fast as the dense network.

    The pass of one image with a given mask is recorded.

    Maps and weights have the layout channels_last. Of the networks that were timed in both layouts, only VGG-16 and
    ResNet-18 with 64 images of 32x32 were faster in the other one, by a few per cent on an Intel Xeon.

    Args:
        program: The network.
        policy: Decides gate by gate; None: masks are given.
    """

    name = "full"

    def __init__(self, program: kinds.Program, policy: GatePolicy | None = None) -> None:
        super().__init__(program, policy)
        self._deciding = Deciding(program, policy)
        self._weights = {
            layer.name: layer.weight.contiguous(memory_format=torch.channels_last)
            for layer in program.layers
            if isinstance(layer, kinds.Conv)
        }
        self._in_groups = sum(weight.numel() for weight in self._weights.values()) <= FEW_WEIGHTS
        self._one = Recorded(lambda image, mask: self._run(image, mask, None).output, Examples(program))

    def run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        """See :class:`~prunegym.models.skipping.program.path.ExecutionPath`."""
        if len(images) == 1 and mask is not None and images.device.type == "cpu":
            return Executed(self._one(images, mask), mask)
        if len(images) <= GROUP or not self._in_groups or images.device.type != "cpu":
            return self._run(images, mask, penalty)
        groups = (slice(start, start + GROUP) for start in range(0, len(images), GROUP))
        return Executed.of(self._run(images[at], None if mask is None else mask[at], penalty) for at in groups)

    def _run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        """Run images together, layer by layer."""
        state = self.begin(images, mask, penalty)
        for layer, ending in zip(self.program.layers, self.program.ending, strict=True):
            state.run(layer)
            for name in ending:
                del state.values[name]
        return Executed(self.program.shaped(state.values[self.program.output]), joined(state.bits, mask))

    def begin(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> FullRun:
        """Return a run of a batch at its beginning."""
        # All gates at once: a small network's layers take little longer than the operations for one gate would.
        decide = self._deciding.start(None if mask is None else mask.to(images.dtype), penalty)
        return FullRun(self.program, self._weights, decide, images)


class FullRun:
    """A run of some images on its way.

    Attributes:
        values: By name.
        bits: Of the gates that are decided, (images, width).
    """

    def __init__(self, program: kinds.Program, weights: dict[str, Tensor], decide: Decide, images: Tensor) -> None:
        self.values = first_values(program, images)
        self.bits: dict[int, Tensor] = {}
        self._program, self._weights, self._decide = program, weights, decide

    def run(self, layer: kinds.Layer) -> None:
        """Run the next layer."""
        values, program = self.values, self._program
        for gate in layer.starts:
            self.bits[gate] = self._decide(gate, program.seen(gate, values[layer.inputs[0]]))
        added = None
        if isinstance(layer, kinds.Conv | kinds.Linear) and layer.constants is not None:
            added = layer.constants.added(self.bits)
        if isinstance(layer, kinds.Conv):
            value = conv(layer, values, self._weights[layer.name], layer.bias, added)
        elif isinstance(layer, kinds.Linear):
            value = linear(layer, values, layer.weight, layer.bias, added)
        else:
            value = run_layer(layer, values)
        for gate, places in program.points.get(layer.name, ()):
            if gate not in self.bits:  # decided elsewhere, from a mask that is given
                self.bits[gate] = self._decide(gate, value)
            factors = places.factors(self.bits[gate].to(value.dtype), value)
            # For a large map new memory costs more than the multiplication, so it is in place where the layer has
            # made the memory: an operation of the network's own may return what it was given.
            own = isinstance(layer, kinds.Conv | kinds.MaxPool | kinds.AvgPool | kinds.Add | kinds.Norm | kinds.Scale)
            value = value.mul_(factors) if own else value * factors
        values[layer.name] = value

    def used(self, mask: Tensor) -> Tensor:
        """Return masks (images, mask_size) with the bits that are decided here."""
        mask, start = mask.clone(), 0
        for gate, width in enumerate(self._program.widths):
            if gate in self.bits:
                mask[:, start : start + width] = self.bits[gate].bool()
            start += width
        return mask

    def learn(self, mask: Tensor, gates: Iterable[int]) -> None:
        """Take the bits of gates that were decided elsewhere."""
        parts = torch.split(mask, list(self._program.widths), dim=1)
        self.bits.update({gate: parts[gate] for gate in gates})
