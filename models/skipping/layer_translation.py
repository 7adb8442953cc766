"""A plan of the compiled kernel that grows by a program's layers, one by one."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models import kernel
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.kernel import GateHead, PlanBuilder, Value
from prunegym.models.skipping.program import layers as kinds
from prunegym.models.skipping.program.lowering import UnsupportedError
from prunegym.models.skipping.program.path import DECIDE


class Translation:
    """A plan that grows layer by layer."""

    def __init__(
        self,
        program: kinds.Program,
        policy: GatePolicy | None,
        penalty: float | None,
        looks: MaskFeatures | None = None,
    ) -> None:
        if not kernel.available():
            raise UnsupportedError(f"The compiled kernel is not available: {kernel.unavailable_reason()}.")
        if len(program.shapes[program.input]) != 3:
            raise UnsupportedError("The kernel begins with maps.")
        self.program, self.policy, self.looks = program, policy, looks
        gates = range(len(program.widths))
        try:
            self.heads = {} if policy is None else {gate: gate_head(policy, gate, penalty) for gate in gates}
        except InvalidInputError as error:
            raise UnsupportedError(f"The policy is not in the kernel: {error}") from error
        self.stops = {} if looks is None else {d.gates[0]: index for index, d in enumerate(looks.decisions)}
        self.values: dict[str, Value] = {}
        self.parts: list[str] = []
        self._readers = Counter(name for layer in program.layers for name in layer.inputs)
        self._readers[program.output] += 1
        self._concats: dict[str, kinds.Concat] = {}  # not yet added: the norm behind them may be done at once
        self.begun: set[int] = set()
        self._owners = [gate for gate, width in enumerate(program.widths) for _ in range(width)]

    def read(self, names: Sequence[str]) -> None:
        """Begin with the values that are given; the first is a map."""
        try:
            self.builder = PlanBuilder.without_images(self.program.widths)
            for name in names:
                self._give(name)
                self.parts.append("load images" if name == self.program.input else f"load {name}")
        except InvalidInputError as error:
            raise UnsupportedError(f"The kernel does not take these images: {error}") from error

    def _give(self, name: str) -> None:
        shape = self.program.shapes[name]
        if len(shape) in (1, 3):
            flat = shape[:1] if shape[1:] == (1, 1) and name != self.program.input else shape
            channels, height, width = flat if len(flat) == 3 else (flat[0], 0, 0)
            self.values[name] = self.builder.input(channels, height, width, self._space(name))

    def add(self, layer: kinds.Layer) -> str:
        """Add a layer, or return why the kernel does not run it; its value is then one that is given."""
        try:
            self._decide(layer)
            self._add(layer)
        except InvalidInputError as error:
            with contextlib.suppress(InvalidInputError):  # then what reads it is for torch, too
                self._give(layer.name)
            return f"Layer {layer.label!r} is not in the kernel: {error}"
        return ""

    def _note(self, part: str) -> None:
        """Note what the last layers of the plan do."""
        self.parts += [part] * (self.builder.size - len(self.parts))

    def _decide(self, layer: kinds.Layer) -> None:
        """Add what decides the gates that begin with a layer, and check that all others that it masks have begun."""
        program = self.program
        self.begun.update(layer.starts)
        for gate in layer.starts:
            if self.policy is None and gate not in self.stops:
                continue
            x = self._seen(layer.inputs[0])
            if program.reads[gate] != (x.channels, x.height, x.width):
                raise InvalidInputError("a policy sees what it reads in another shape.")
            if self.policy is not None:
                self.builder.decide(gate, x, self.heads[gate])
                self._note(f"{DECIDE}{gate}")
            if self.looks is not None:
                stop = self.stops[gate]
                self.builder.look(x, *self.looks.statistics(stop), **_in_kernel(self.looks, stop))
                self._note(f"look {gate}")
        if layer.name in program.points and layer.name not in program.spaces:
            raise InvalidInputError("masked channels are made there, and then zeroed.")
        if layer.name in program.spaces:
            bits = program.indices[program.spaces[layer.name]].tolist()
            if not {self._owners[bit] for bit in bits if bit >= 0} <= self.begun:
                raise InvalidInputError("a gate that begins after it is masked there.")

    def _space(self, name: str) -> int | None:
        place = self.program.spaces.get(name)
        return None if place is None else self.builder.space(self.program.indices[place].tolist())

    def _seen(self, name: str) -> Value:
        """Return a value as it was made: as a policy reads it, for example."""
        return self.value(name)

    def value(self, name: str) -> Value:
        """Return a value; a concatenation that waited for a norm is added now."""
        if name in self._concats:
            self.values[name] = self._joined(self._concats.pop(name), name)
            self._note(name)
        if name not in self.values:
            raise InvalidInputError("it reads no value of the image, as where a weight is computed.")
        return self.values[name]

    def _joined(self, layer: kinds.Concat, name: str, norm: kinds.Norm | None = None) -> Value:
        parts = [self._like(name, self.value(part)) for part in layer.inputs]
        if norm is None:
            return self.builder.concat(parts, gate=self._space(name))
        scale, shift = norm.scale.float(), norm.shift.float()
        return self.builder.concat(parts, scale, shift, activation=norm.activation, gate=self._space(name))

    def _like(self, name: str, x: Value) -> Value:
        """Return a value with all of its channels if a value that is made of it has all."""
        return self.builder.expand(x) if name not in self.program.spaces and x.gate is not None else x

    def _add(self, layer: kinds.Layer) -> None:
        """Add a layer; raises InvalidInputError if the kernel has no such layer."""
        if isinstance(layer, kinds.Concat) and len(self.program.shapes[layer.name]) == 3:
            self._concats[layer.name] = layer
            if self._readers[layer.name] > 1:
                self.value(layer.name)
            return
        own = layer.weight if isinstance(layer, kinds.Conv | kinds.Linear) else None
        if own is not None and (own.dtype != torch.float32 or own.device.type != "cpu"):
            raise InvalidInputError(f"its weights are {own.dtype} on {own.device}, not float32 on the CPU.")
        if not isinstance(layer, kinds.Norm) or layer.inputs[0] not in self._concats:
            for name in layer.inputs:
                self._seen(name)
        self.values[layer.name] = (
            self._weighted(layer) if isinstance(layer, kinds.Conv | kinds.Linear) else self._other(layer)
        )
        self._note(layer.name)

    def _weighted(self, layer: kinds.Conv | kinds.Linear) -> Value:
        x, gate, bias = self.value(layer.inputs[0]), self._space(layer.name), self._bias(layer)
        if isinstance(layer, kinds.Linear):
            return self.builder.linear(x, layer.weight, bias, activation=layer.activation, gate=gate)
        second = None
        if len(layer.inputs) > 1:
            second = self._like(layer.name, self.value(layer.inputs[1]))
        if x.stride == 0:
            if layer.weight.shape[2:] != (1, 1) or layer.groups > 1 or second is not None:
                raise InvalidInputError("it reads a vector, with a kernel, groups or a sum.")
            return self.builder.linear(x, layer.weight.flatten(1), bias, activation=layer.activation, gate=gate)
        return self.builder.conv(
            x, layer.weight, bias, stride=square(layer.stride), padding=layer.padding,
            dilation=square(layer.dilation), groups=layer.groups, activation=layer.activation, gate=gate,
            residual=second,
        )  # fmt: skip

    def _bias(self, layer: kinds.Conv | kinds.Linear) -> Tensor | Value:
        """Return a layer's bias; with constants, what it is under the masks of the gates that have begun."""
        if layer.constants is None:
            return layer.bias
        if not set(layer.constants.gates) <= self.begun:
            raise InvalidInputError("a gate that begins after it has constants there.")
        bits = [bit for bit, gate in enumerate(self._owners) if gate in layer.constants.gates]
        return self.builder.compensate(layer.bias, layer.constants.table, self.builder.space(bits))

    def _other(self, layer: kinds.Layer) -> Value:
        if isinstance(layer, kinds.Norm) and layer.inputs[0] in self._concats:
            return self._joined(self._concats.pop(layer.inputs[0]), layer.name, layer)
        builder, inputs = self.builder, [self._like(layer.name, self.value(name)) for name in layer.inputs]
        x = inputs[0]
        if isinstance(layer, kinds.Norm):
            scale, shift = layer.scale.float(), layer.shift.float()
            return builder.concat([x], scale, shift, activation=layer.activation, gate=x.gate)
        if isinstance(layer, kinds.Average):
            return builder.average(x) if x.stride else x
        if isinstance(layer, kinds.Add):
            return builder.add(x, *inputs[1:], activation=layer.activation)
        if isinstance(layer, kinds.Scale):
            return builder.scale(x, inputs[1])
        if isinstance(layer, kinds.MaxPool):
            window = [square(pair) for pair in (layer.kernel, layer.stride, layer.padding)]
            return builder.max_pool(x, *window, ceil_mode=layer.ceil, activation=layer.activation)
        if isinstance(layer, kinds.AvgPool):
            window = [square(pair) for pair in (layer.kernel, layer.stride, layer.padding)]
            return builder.avg_pool(x, *window, ceil_mode=layer.ceil, count_include_pad=layer.padded)
        if isinstance(layer, kinds.Subsample):
            return builder.subsample(x, square(layer.stride), layer.channels, layer.offset)
        raise InvalidInputError("it is of another kind.")


def square(pair: kinds.Pair) -> int:
    """Return the one number of both axes."""
    if pair[0] != pair[1]:
        raise InvalidInputError(f"rows and columns differ ({pair}).")
    return pair[0]


def gate_head(policy: GatePolicy, gate: int, penalty: float | None = None) -> GateHead:
    """Return what the kernel needs to decide a gate as the policy does.

    Args:
        policy: Decides gate by gate.
        gate: Index of the gate.
        penalty: lambda, for a policy with a ``penalty_range``.

    Raises:
        InvalidInputError: If the kernel does not know a feature.
    """
    features = policy.features
    return GateHead(*features.statistics(gate), *policy.layers(gate, penalty), **_in_kernel(features, gate))


def _in_kernel(features: MaskFeatures, decision: int) -> dict[str, Any]:
    """Return how the kernel computes the features of a decision."""
    found: dict[str, Any] = {"average": False, "grid": 0}
    for feature in features.kinds[decision]:
        found |= feature.kernel()
    return found
