"""From a masked CNN's traced graph to a :class:`Program`: one layer a step."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.errors import PruneGymError
from prunegym.models.masking.graph import OutputOf, Step, overwrites, runner
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.masking.operators import Kind, known_base
from prunegym.models.skipping.program.fusing import fuse
from prunegym.models.skipping.program.layers import (
    Add,
    Average,
    Conv,
    Layer,
    Linear,
    MaxPool,
    Norm,
    Other,
    Pair,
    Program,
    Subsample,
)


class UnsupportedError(PruneGymError):
    """A network, or a policy, that a skipping path cannot run; the message says which step and why."""


_ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELU = (F.relu, F.relu_, torch.relu, "relu", "relu_")
_MEAN = (torch.mean, "mean")
_BY_CHANNEL = {Kind.ACTIVATION, Kind.POOL, Kind.CHANNELWISE, Kind.MULTIPLY}
_BY_IMAGE = {*_BY_CHANNEL, Kind.DEPTHWISE, Kind.CONCAT}


def lower(masked: MaskedCNN) -> Program:
    """Translate a masked CNN in eval mode.

    Args:
        masked: The CNN. Folded weights are copies: what happens to its weights later is not seen.

    Returns:
        The program.

    Raises:
        UnsupportedError: If a step mixes images, or does something with a gate's channels that is not known here.
    """
    graph = masked.graph
    lowering = _Lowering(masked)
    for step in graph.steps:
        lowering.add(step)
    output = lowering.resolve(graph.output)
    layers = fuse(lowering.layers, output, set(lowering.gates))
    for layer in layers:
        if isinstance(layer, Norm):
            raise UnsupportedError(f"Layer {layer.label!r} is a batch norm that no convolution comes right before.")
    for gate in {*range(len(masked.gates))} - {layer.gate for layer in layers if isinstance(layer, Conv)}:
        raise UnsupportedError(f"Gate {masked.gates[gate].name!r} is on a layer that is no plain convolution.")
    points = {lowering.resolve(gate.point): index for index, gate in enumerate(masked.gates)}
    missing = points.keys() - {layer.name for layer in layers}
    if missing:
        raise UnsupportedError(f"The mask of a gate works at step {missing.pop()!r}, which was fused away.")
    shapes = {step.name: step.shape[1:] for step in graph.steps}
    widths = tuple(gate.width for gate in masked.gates)
    ended = shapes[graph.output]
    return Program(graph.input, output, tuple(layers), shapes, lowering.gates, widths, points, ended)


class _Lowering:
    """The layers so far, and what stands for steps that do nothing."""

    def __init__(self, masked: MaskedCNN) -> None:
        self.masked, self.graph = masked, masked.graph
        self.layers: list[Layer] = []
        self.gates: dict[str, int] = {}
        self._alias: dict[str, str] = {}
        self._producers = {gate.producers[0]: index for index, gate in enumerate(masked.gates)}

    def resolve(self, name: str) -> str:
        """Return the value that a name stands for."""
        return self._alias.get(name, name)

    def add(self, step: Step) -> None:
        """Translate a step."""
        if step.op == "input" or step.kind is Kind.SIZE:
            return
        if self._is_nothing(step):
            self._alias[step.name] = self.resolve(step.inputs[0])
            return
        if step.inputs and overwrites(step, self.masked.network) and self._others_read(step):
            raise UnsupportedError(f"{_described(step)} overwrites a value that another step reads.")
        layer = self._translate(step)
        self.layers.append(layer)
        gates = {self.gates.get(name) for name in layer.inputs}
        if isinstance(layer, Conv):
            gates = {layer.gate}
        elif isinstance(layer, Linear):
            gates = {None}
        if len(gates) > 1:
            raise UnsupportedError(f"{_described(step)} brings channels of a gate together with others.")
        gate = gates.pop()
        if gate is not None:
            self.gates[step.name] = gate

    def _is_nothing(self, step: Step) -> bool:
        """Whether a step leaves numbers as they are: dropout in eval mode, flattening each image."""
        if self._type(step) in (nn.Identity, nn.Dropout, nn.Dropout2d):
            return True
        if _function(step) is F.dropout:
            return _argument(step, 2, "training", True) is False
        if step.kind is Kind.RESHAPE and len(step.shape) == 2:
            return bool(step.shape[0] == self.graph[step.inputs[0]].shape[0])
        return bool(_function(step) == "contiguous")

    def _others_read(self, step: Step) -> bool:
        """Whether a step's input is read by others too, also under the names that steps without effect give it."""
        value = self.resolve(step.inputs[0])
        names = [value, *(name for name, own in self._alias.items() if own == value)]
        return any(user != step.name and user not in self._alias for name in names for user in self.graph.users[name])

    def _module(self, step: Step) -> nn.Module | None:
        return self.masked.network.get_submodule(step.target) if step.op == "module" else None

    def _type(self, step: Step) -> type[nn.Module] | None:
        """Return the class of torch.nn whose work a step's module does, also if it is of a subclass."""
        module = self._module(step)
        if module is None:
            return None
        return type(module) if step.kind is Kind.OTHER else known_base(module)

    def _translate(self, step: Step) -> Layer:
        module = self._module(step)
        head = (step.name, step.target if module is not None else step.name, self._inputs(step))
        shape = self.graph[step.inputs[0]].shape if step.inputs else ()
        if isinstance(module, nn.Conv2d) and step.kind is Kind.CONV and module.padding_mode == "zeros":
            return self._conv(step, module, head)
        if isinstance(module, nn.Linear) and step.kind is Kind.LINEAR and len(shape) == 2:
            bias = torch.zeros(len(module.weight)) if module.bias is None else module.bias
            return Linear(*head, module.weight.detach(), bias.detach().to(module.weight))
        if isinstance(module, nn.BatchNorm2d) and step.kind is Kind.CHANNELWISE:
            return _norm(module, head)
        if self._type(step) is nn.ReLU or _function(step) in _RELU:
            return Add(*head, relu=True)
        if len(step.shape) == 4 and self._is_sum(step):
            return Add(*head)
        if _averages(step, module, shape):
            return Average(*head)
        pool = _max_pool(step, module)
        if pool is not None:
            return MaxPool(*head, *pool)
        return _subsample(step, head, shape) or self._other(step, head)

    def _inputs(self, step: Step) -> tuple[str, ...]:
        """Return what a step reads, once for each time that it is read."""
        names = [argument.name for argument in step.args if isinstance(argument, OutputOf)] or step.inputs
        return tuple(self.resolve(name) for name in names)

    def _conv(self, step: Step, module: nn.Conv2d, head: tuple[str, str, tuple[str, ...]]) -> Conv:
        weight = module.weight.detach()
        bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach()
        same = module.padding == "same"
        if same and (max(module.stride) > 1 or any(size % 2 == 0 for size in module.kernel_size)):
            raise UnsupportedError(f"Layer {step.target!r} is a convolution with uneven padding.")
        spans = tuple(d * (k - 1) // 2 for k, d in zip(module.kernel_size, module.dilation, strict=True))
        padding = spans if same else (0, 0) if module.padding == "valid" else module.padding
        geometry = (cast(Pair, module.stride), cast(Pair, padding), cast(Pair, module.dilation))
        return Conv(*head, weight, bias, *geometry, gate=self._producers.get(step.name))

    def _is_sum(self, step: Step) -> bool:
        """Whether a step is the plain sum of two values of one shape."""
        if len(step.args) != 2 or step.kwargs or not all(isinstance(argument, OutputOf) for argument in step.args):
            return False
        return _function(step) in _ADD and all(self.graph[argument.name].shape == step.shape for argument in step.args)

    def _other(self, step: Step, head: tuple[str, str, tuple[str, ...]]) -> Other:
        module = self._module(step)
        known = step.kind in _BY_IMAGE or isinstance(module, nn.Conv2d) or self._is_sum(step)
        if not known or _function(step) in _MEAN or not step.inputs:
            raise UnsupportedError(f"{_described(step)}: {step.kind.value}.")
        if any(self.graph[name].op != "input" and not self.graph[name].shape for name in step.inputs):
            raise UnsupportedError(f"{_described(step)} reads something that is no tensor.")
        if any(name in self.gates for name in head[2]):
            stateless = module is None or not module.state_dict()
            shapes = {self.graph[name].shape for name in step.inputs}
            if step.kind not in _BY_CHANNEL or not stateless or len(step.shape) != 4 or len(shapes) > 1:
                raise UnsupportedError(f"{_described(step)} works on channels of a gate.")
        return Other(step.name, head[1], tuple(map(self.resolve, step.inputs)), self._runner(step))

    def _runner(self, step: Step) -> Callable[[dict[str, Tensor]], Tensor]:
        """Return the step's function of values under their names in the program, which drops steps without effect."""
        function = runner(step, self.masked.network)
        names = {name: self.resolve(name) for name in step.inputs}
        shapes = {name: self.graph[name].shape[1:] for name in names}

        def run(values: dict[str, Tensor]) -> Tensor:
            found = {name: values[own] for name, own in names.items()}
            # A flattened map is a map in the program. Behind a gate, where sizes differ, only maps come here.
            views = {
                name: value.reshape(value.shape[0], *shapes[name]) if value.ndim != len(shapes[name]) + 1 else value
                for name, value in found.items()
            }
            return cast(Tensor, function(views))

        return run


def _function(step: Step) -> Any:
    """Return the function or the name of the method that a step calls; None for a module, which may have any name."""
    return step.target if step.op in ("function", "method") else None


def _described(step: Step) -> str:
    """Return a step as a message names it."""
    if step.op == "module":
        return f"Layer {step.target!r}"
    return f"Step {step.name!r} ({getattr(step.target, '__name__', step.target)})"


def _norm(module: nn.BatchNorm2d, head: tuple[str, str, tuple[str, ...]]) -> Norm:
    if module.running_mean is None or module.running_var is None:
        raise UnsupportedError(f"Layer {head[1]!r} is a batch norm without running statistics: it mixes images.")
    scale = (module.running_var.double() + module.eps).rsqrt()
    scale = scale if module.weight is None else scale * module.weight.detach().double()
    shift = -module.running_mean.double() * scale
    return Norm(*head, scale, shift if module.bias is None else shift + module.bias.detach().double())


def _argument(step: Step, position: int, name: str, default: Any = None) -> Any:
    """Return an argument of a function or method call, given by place or by name."""
    return step.args[position] if len(step.args) > position else step.kwargs.get(name, default)


def _averages(step: Step, module: nn.Module | None, shape: tuple[int, ...]) -> bool:
    """Whether a step is the average over all pixels."""
    if len(shape) != 4:
        return False
    if _function(step) in _MEAN:
        dimensions = _argument(step, 1, "dim")
        return isinstance(dimensions, tuple | list) and {dimension % 4 for dimension in dimensions} == {2, 3}
    if type(module) is nn.AdaptiveAvgPool2d or _function(step) is F.adaptive_avg_pool2d:
        return step.shape[2:] == (1, 1)
    if type(module) is nn.AvgPool2d and _pair(module.padding) == (0, 0) and not module.divisor_override:
        return _pair(module.kernel_size) == shape[2:]
    return False


def _max_pool(step: Step, module: nn.Module | None) -> tuple[Pair, Pair, Pair] | None:
    """Return kernel, stride and padding of plain max pooling."""
    if type(module) is nn.MaxPool2d:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        kernel, stride, padding, dilation, *rest = (getattr(module, name) for name in names)
    elif _function(step) is F.max_pool2d:
        kernel, stride = _argument(step, 1, "kernel_size"), _argument(step, 2, "stride")
        padding, dilation = _argument(step, 3, "padding", 0), _argument(step, 4, "dilation", 1)
        rest = [_argument(step, 5, "ceil_mode", False), _argument(step, 6, "return_indices", False)]
    else:
        return None
    if any(rest) or _pair(dilation) != (1, 1):
        return None
    return _pair(kernel), _pair(stride or kernel), _pair(padding)


def _pair(value: int | tuple[int, ...]) -> Pair:
    return (value, value) if isinstance(value, int) else cast(Pair, tuple(value))


def _subsample(step: Step, head: tuple[str, str, tuple[str, ...]], shape: tuple[int, ...]) -> Subsample | None:
    """Recognise the halves of ResNet's option A shortcut: ``x[:, :, ::2, ::2]``, and zero channels beside others."""
    if len(shape) != 4 or len(step.shape) != 4:
        return None
    if _function(step) is operator.getitem:
        parts = step.args[1] if isinstance(step.args[1], tuple) else (step.args[1],)
        parts = (*parts, *[slice(None)] * (4 - len(parts)))
        if not all(isinstance(part, slice) and part.start in (None, 0) and part.stop is None for part in parts):
            return None
        steps = [part.step or 1 for part in parts]
        if steps[:2] == [1, 1] and steps[2] == steps[3]:
            return Subsample(*head, steps[2], shape[1], 0)
    elif _function(step) is F.pad:
        sides, mode = _argument(step, 1, "pad"), _argument(step, 2, "mode", "constant")
        zero = not _argument(step, 3, "value", 0)
        if mode == "constant" and zero and len(sides) == 6 and not any(sides[:4]) and min(sides[4:]) >= 0:
            return Subsample(*head, 1, step.shape[1], int(sides[4]))
    return None
