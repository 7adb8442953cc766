"""Translates a masked CNN's traced graph to a :class:`Program`, one layer for each step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError, PruneGymError
from prunegym.models.masking.graph import BATCH, INPUT, LIKE, Attribute, OutputOf, Step, leaves, runner
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.masking.operators import IDENTITY, Kind
from prunegym.models.skipping.program.folding import constant, padding_of, pair, scale_and_shift
from prunegym.models.skipping.program.fusing import fuse
from prunegym.models.skipping.program.layers import (
    ACTIVATIONS,
    Add,
    Average,
    AvgPool,
    Concat,
    Constants,
    Conv,
    Layer,
    Linear,
    MaxPool,
    Norm,
    Other,
    Program,
    Scale,
    Subsample,
)
from prunegym.models.skipping.program.spaces import find_spaces


class UnsupportedError(PruneGymError):
    """A network, or a policy, that a skipping path cannot run; the message says which step and why."""


_BY_CHANNEL = {Kind.ACTIVATION, Kind.POOL, Kind.REDUCE, Kind.LARGEST, Kind.CHANNELWISE, Kind.MULTIPLY, Kind.DIVIDE}


def lower(masked: MaskedCNN) -> Program:
    """Translate a masked CNN in eval mode. A step that is not known here becomes a layer that torch runs.

    Args:
        masked: The CNN. Folded weights are copies, so later changes of its weights have no effect.

    Returns:
        The program.

    Raises:
        UnsupportedError: If a batch norm has no running statistics, or a convolution a weight that is computed.
    """
    graph = masked.graph
    lowering = _Lowering(masked)
    for step in graph.steps:
        lowering.add(step)
    output = lowering.resolve(graph.output)
    points = {lowering.resolve(name): places for name, places in masked.places.items()}
    layers = fuse(lowering.layers, output, set(masked.found.values), points.keys())
    shapes = {step.name: step.shape[1:] for step in graph.steps}
    widths = tuple(gate.width for gate in masked.gates)
    spaces, indices = find_spaces(layers, masked)
    reads = tuple(masked.read_shape(gate) for gate in range(len(widths)))
    return Program(
        graph.input, output, tuple(layers), shapes, spaces, indices, widths, reads, points, shapes[graph.output]
    )


class _Lowering:
    """The layers so far, and replacements for steps that do nothing."""

    def __init__(self, masked: MaskedCNN) -> None:
        self.masked, self.graph = masked, masked.graph
        self.layers: list[Layer] = []
        self._alias: dict[str, str] = {}
        self._starts: dict[str, tuple[int, ...]] = {}
        for index, gate in enumerate(masked.gates):
            self._starts[gate.producers[0]] = (*self._starts.get(gate.producers[0], ()), index)

    def resolve(self, name: str) -> str:
        """Return the value for a name."""
        return self._alias.get(name, name)

    def add(self, step: Step) -> None:
        """Translate a step."""
        if step.target == INPUT:
            return
        if self._is_nothing(step):
            self._alias[step.name] = self.resolve(step.inputs[0])
            return
        layer = self._translate(step)
        if self.masked.constants is not None and step.name in self.masked.readers:
            if not isinstance(layer, Conv | Linear):
                raise UnsupportedError(f"{step} adds constants of masked channels, but is not a plain layer.")
            layer = dataclasses.replace(layer, constants=self._constants(step))
        self.layers.append(dataclasses.replace(layer, starts=self._starts.get(step.name, ())))

    def _is_nothing(self, step: Step) -> bool:
        """Whether a step does not change numbers: dropout in eval mode, flattening of each image."""
        if step.operation in IDENTITY:
            return True not in (step.arguments.get("train"), step.arguments.get("training"))
        if step.operation == "adaptive_avg_pool2d" and step.shape[1:] == self.graph[step.inputs[0]].shape[1:]:
            return True
        if step.kind is Kind.RESHAPE and len(step.shape) == 2:
            before = self.graph[step.inputs[0]].shape if step.inputs else ()  # none if a weight is computed
            return bool(before) and bool(step.shape[0] == before[0])
        return False

    def _translate(self, step: Step) -> Layer:
        if step.operation in ("conv2d", "linear") and not step.weight:
            raise UnsupportedError(f"The weights of {step.name!r} are computed as the network runs.")
        if not step.inputs or any(not self.graph[name].shape for name in step.inputs):
            return self._other(step, (step.name, step.name, self._inputs(step)))
        head = (step.name, step.layer if self._is_layer(step) else step.name, self._inputs(step))
        shape = self.graph[step.inputs[0]].shape
        if step.operation == "conv2d" and step.weight and self._pads_evenly(step):
            return self._conv(step, head)
        if step.kind is Kind.LINEAR and step.weight and len(shape) == 2:
            weight, bias = self._constant(step, "weight"), self._constant(step, "bias")
            assert weight is not None
            return Linear(*head, weight, torch.zeros(len(weight)).to(weight) if bias is None else bias)
        if step.operation == "batch_norm" and step.arguments["training"] is not True and len(shape) == 4:
            return Norm(*head, *self._scale_and_shift(step))
        activation = _activation(step)
        if activation and self.graph[head[2][0]].shape == shape:  # not of a map that is flattened
            return Add(*head, activation=activation)
        factors = self._factors(step)
        if factors is not None:
            return Scale(*head[:2], factors)
        if len(step.shape) == 4 and self._is_sum(step):
            return Add(*head)
        if _averages(step, shape):
            return Average(*head)
        pool = _pool(step)
        if pool is not None:
            return dataclasses.replace(pool, name=head[0], label=head[1], inputs=head[2])
        return _subsample(step, head, shape) or self._other(step, head)

    def _constants(self, step: Step) -> Constants:
        reader = self.masked.readers[step.name]
        return Constants(reader.gates, self.masked.constants_of(step.name).detach())

    def _is_layer(self, step: Step) -> bool:
        """Whether a step is the work of one module, whose path is then the step's label."""
        return bool(step.layer) and not self.masked.network.get_submodule(_module_path(step))._modules

    def _constant(self, step: Step, name: str) -> Tensor | None:
        try:
            return constant(self.masked.network, step, name)
        except InvalidInputError as error:
            raise UnsupportedError(str(error)) from error

    def _scale_and_shift(self, step: Step) -> tuple[Tensor, Tensor]:
        try:
            return scale_and_shift(self.masked.network, step)
        except InvalidInputError as error:
            raise UnsupportedError(str(error)) from error

    def _inputs(self, step: Step) -> tuple[str, ...]:
        """Return the values that a step reads, as often as it reads them."""
        return tuple(self.resolve(part.name) for part in leaves(step.arguments) if isinstance(part, OutputOf))

    def _conv(self, step: Step, head: tuple[str, str, tuple[str, ...]]) -> Conv:
        weight, bias = self._constant(step, "weight"), self._constant(step, "bias")
        assert weight is not None
        before, _ = padding_of(step, tuple(weight.shape[2:]))
        geometry = (pair(step.arguments["stride"]), pair(before), pair(step.arguments["dilation"]))
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        return Conv(*head, weight, bias, *geometry, groups=step.arguments["groups"])

    def _pads_evenly(self, step: Step) -> bool:
        weight = self._constant(step, "weight")
        assert weight is not None
        before, after = padding_of(step, tuple(weight.shape[2:]))
        return before == after and (step.arguments["padding"] != "same" or max(step.arguments["stride"]) == 1)

    def _factors(self, step: Step) -> tuple[str, str] | None:
        """Return a map and its factors, (batch, channels, 1, 1), if a step multiplies them."""
        parts = [step.arguments.get("self"), step.arguments.get("other")]
        if step.operation != "mul" or len(step.shape) != 4 or not all(isinstance(part, OutputOf) for part in parts):
            return None
        names = [part.name for part in parts if isinstance(part, OutputOf)]
        names.sort(key=lambda name: self.graph[name].shape != step.shape)
        fits = [self.graph[name].shape for name in names] == [step.shape, (*step.shape[:2], 1, 1)]
        return (self.resolve(names[0]), self.resolve(names[1])) if fits and step.shape[2:] != (1, 1) else None

    def _is_sum(self, step: Step) -> bool:
        """Whether a step is the plain sum of two values of one shape."""
        parts = [step.arguments.get("self"), step.arguments.get("other")]
        if step.operation != "add" or step.arguments.get("alpha", 1) != 1:
            return False
        return all(isinstance(part, OutputOf) and self.graph[part.name].shape == step.shape for part in parts)

    def _other(self, step: Step, head: tuple[str, str, tuple[str, ...]]) -> Layer:
        names = tuple(dict.fromkeys(map(self.resolve, step.inputs)))
        channels = step.operation == "cat" and len(step.shape) == 4 and step.arguments["dim"] % 4 == 1
        if channels and not _has_attributes(step):
            return Concat(*head)
        by_channel = step.kind in _BY_CHANNEL and not _has_attributes(step) and len(step.shape) == 4
        return Other(step.name, head[1], names, self._runner(step), by_channel)

    def _runner(self, step: Step) -> Callable[[dict[str, Tensor]], Tensor]:
        """Return the step's function of values under their names in the program, which drops steps without effect."""
        function = runner(step, self.masked.network)
        names = {name: self.resolve(name) for name in step.inputs}
        shapes = {name: self.graph[name].shape[1:] for name in names}

        def run(values: dict[str, Tensor]) -> Tensor:
            found = {name: values[own] for name, own in names.items()}
            # A flattened map is a map in the program. With masked channels, where sizes differ, only maps come here.
            views: dict[str, Any] = {
                name: value.reshape(value.shape[0], *shapes[name])
                if isinstance(value, Tensor) and value.ndim != len(shapes[name]) + 1
                else value
                for name, value in found.items()
            }
            return cast(Tensor, function(views | {BATCH: values[BATCH], LIKE: values[LIKE]}))

        return run


def _has_attributes(step: Step) -> bool:
    return any(isinstance(part, Attribute) for part in leaves(step.arguments))


def _module_path(step: Step) -> str:
    return step.layer if not step.weight else step.weight.rpartition(".")[0]


def _averages(step: Step, shape: tuple[int, ...]) -> bool:
    """Whether a step is the average over all pixels."""
    if len(shape) != 4:
        return False
    if step.operation == "mean":
        dimensions = step.arguments.get("dim")
        return dimensions is not None and {dimension % 4 for dimension in dimensions} == {2, 3}
    if step.operation == "adaptive_avg_pool2d":
        return step.shape[2:] == (1, 1)
    if step.operation == "avg_pool2d":
        given = step.arguments
        return (
            pair(given["padding"]) == (0, 0)
            and not given["divisor_override"]
            and (pair(given["kernel_size"]) == shape[2:])
        )
    return False


def _activation(step: Step) -> str:
    """Return the name of an activation that layers may end with, or nothing."""
    given = step.arguments
    if step.operation == "hardtanh" and (given["min_val"], given["max_val"]) == (0, 6):
        return "relu6"
    if step.operation == "gelu" and given.get("approximate", "none") != "none":
        return ""
    return step.operation if step.operation in ACTIVATIONS else ""


def _pool(step: Step) -> MaxPool | AvgPool | None:
    """Return the pooling that a step is, without a name; None if it is none that is known."""
    given = step.arguments
    if step.operation not in ("max_pool2d", "avg_pool2d") or len(step.shape) != 4:
        return None
    window = (pair(given["kernel_size"]), pair(given["stride"] or given["kernel_size"]), pair(given["padding"]))
    if step.operation == "avg_pool2d":
        padded = bool(given["count_include_pad"])
        return None if given["divisor_override"] else AvgPool("", "", (), *window, bool(given["ceil_mode"]), padded)
    return MaxPool("", "", (), *window, bool(given["ceil_mode"])) if pair(given["dilation"]) == (1, 1) else None


def _subsample(step: Step, head: tuple[str, str, tuple[str, ...]], shape: tuple[int, ...]) -> Subsample | None:
    """Recognise the parts of ResNet's option A shortcut: ``x[:, :, ::2, ::2]``, and zero channels added to others."""
    if len(shape) != 4 or len(step.shape) != 4:
        return None
    if step.operation == "slice":
        dim, start, end, stride = (step.arguments[name] for name in ("dim", "start", "end", "step"))
        whole = start in (None, 0) and (end is None or (isinstance(end, int) and end >= shape[dim]))
        if whole and dim % 4 in (2, 3):
            strides = (stride, 1) if dim % 4 == 2 else (1, stride)
            return Subsample(*head, strides, shape[1], 0)
    elif step.operation in ("pad", "constant_pad_nd"):
        sides, mode = step.arguments["pad"], step.arguments.get("mode", "constant")
        zero = not step.arguments.get("value")
        if mode == "constant" and zero and len(sides) == 6 and not any(sides[:4]) and min(sides[4:]) >= 0:
            return Subsample(*head, (1, 1), step.shape[1], int(sides[4]))
    return None
