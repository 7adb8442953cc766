"""How operations other than convolutions, linears and batch norms are written in ONNX: a table, as for gates."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from prunegym.errors import InvalidInputError
from prunegym.models.export.onnx_graph import GraphBuilder, Known
from prunegym.models.masking.graph import Graph, OutputOf, Step


@dataclasses.dataclass(frozen=True)
class Call:
    """A step that is being exported.

    Attributes:
        builder: Where nodes go.
        graph: The network.
        step: The step.
        module: Its module, for a step that calls one.
        names: Names of its arguments, for one that calls a function.
        values: What earlier steps have become.
        cut: Whether channels of its input may be missing.
    """

    builder: GraphBuilder
    graph: Graph
    step: Step
    module: nn.Module | None
    names: tuple[str, ...]
    values: dict[str, Known]
    cut: bool

    @property
    def x(self) -> Known:
        """Its first tensor."""
        return self.values[self.step.inputs[0]]

    @property
    def before(self) -> tuple[int, ...]:
        """Shape of its first tensor with all channels."""
        return self.graph[self.step.inputs[0]].shape

    def option(self, name: str, default: Any) -> Any:
        """Return an attribute of the module or an argument of the function by name."""
        if self.module is not None:
            return getattr(self.module, name, default)
        position = self.names.index(name) if name in self.names else len(self.step.args)
        return self.step.kwargs.get(name, self.step.args[position] if position < len(self.step.args) else default)

    def operand(self, argument: Any) -> Known:
        """Return a tensor or number among the arguments."""
        return self.values[argument.name] if isinstance(argument, OutputOf) else np.array(argument, np.float32)


@dataclasses.dataclass(frozen=True)
class Operator:
    """How to write an operation: a function from the call to its output, and the names of a function's arguments.

    ``channelwise``: it treats each channel by itself, and works whatever their number.
    """

    write: Callable[[Call], Known]
    names: tuple[str, ...] = ("input",)
    channelwise: bool = True


def find_operator(step: Step, network: nn.Module) -> Operator:
    """Return how a step is written.

    Raises:
        InvalidInputError: If the table does not have it.
    """
    key: Any = type(network.get_submodule(step.target)) if step.op == "module" else step.target
    if key in OPERATORS:
        return OPERATORS[key]
    name = getattr(key, "__name__", str(key))
    known = sorted({getattr(entry, "__name__", str(entry)) for entry in OPERATORS})
    raise InvalidInputError(
        f"The network calls {name!r} (step {step.name!r}), which the ONNX export cannot write. It knows Conv2d, "
        f"Linear, BatchNorm2d and: {', '.join(known)}. Use one of these, or leave the model in PruneGym's own format."
    )


def _node(kind: str, **attributes: Any) -> Callable[[Call], Known]:
    return lambda call: call.builder.op(kind, call.x, **attributes)


def _same(call: Call) -> Known:
    return call.x


def _clip(names: tuple[str, str], default: tuple[float, float]) -> Callable[[Call], Known]:
    def write(call: Call) -> Known:
        given = [call.option(name, None) for name in names]
        limits = [other if bound is None else bound for bound, other in zip(given, default, strict=True)]
        return call.builder.op("Clip", call.x, *(np.array(limit, np.float32) for limit in limits))

    return write


def _alpha(kind: str, option: str, default: float) -> Callable[[Call], Known]:
    return lambda call: call.builder.op(kind, call.x, alpha=float(call.option(option, default)))


def _gelu(call: Call) -> Known:
    return call.builder.op("Gelu", call.x, approximate=str(call.option("approximate", "none")))


def _silu(call: Call) -> Known:
    return call.builder.op("Mul", call.x, call.builder.op("Sigmoid", call.x))


def _softmax(kind: str) -> Callable[[Call], Known]:
    return lambda call: call.builder.op(kind, call.x, axis=int(call.option("dim", -1)))


def pair(value: int | tuple[int, ...] | list[int]) -> list[int]:
    """Return a size for height and width that may be given as one number."""
    return [value, value] if isinstance(value, int) else list(value)


def _pool(kind: str) -> Callable[[Call], Known]:
    def write(call: Call) -> Known:
        kernel, padding = pair(call.option("kernel_size", 1)), pair(call.option("padding", 0))
        stride = call.option("stride", None)
        attributes: dict[str, Any] = {
            "kernel_shape": kernel, "strides": pair(stride) if stride else kernel, "pads": padding * 2,
            "ceil_mode": int(call.option("ceil_mode", False)), "dilations": pair(call.option("dilation", 1)),
        }  # fmt: skip
        if kind == "AveragePool":
            attributes["count_include_pad"] = int(call.option("count_include_pad", True))
            if call.option("divisor_override", None) is not None:
                raise InvalidInputError("The ONNX export cannot write average pooling with divisor_override.")
        return call.builder.op(kind, call.x, **attributes)

    return write


def _adaptive_average(call: Call) -> Known:
    sizes = [old if new is None else new for old, new in _adaptive_sizes(call)]
    return call.builder.adaptive_average(call.x, call.before, sizes)


def _adaptive_max(call: Call) -> Known:
    if any(new != 1 for _, new in _adaptive_sizes(call)):
        raise InvalidInputError("The ONNX export can write adaptive max pooling to size 1 only.")
    return call.builder.op("GlobalMaxPool", call.x)


def _adaptive_sizes(call: Call) -> list[tuple[int, int | None]]:
    return list(zip(call.before[2:], pair(call.option("output_size", 1)), strict=True))


def _reshape(call: Call) -> Known:
    return call.builder.reshape(call.x, [1, -1] if call.cut else call.step.shape)


def _mean(call: Call) -> Known:
    dims = call.option("dim", call.option("axis", None))
    dims = list(range(len(call.before))) if dims is None else pair(dims) if not isinstance(dims, int) else [dims]
    return call.builder.op("ReduceMean", call.x, np.array(dims, np.int64), keepdims=int(call.option("keepdim", False)))


def _concat(call: Call) -> Known:
    parts = call.option("tensors", ())
    if isinstance(parts, OutputOf):
        raise InvalidInputError("The ONNX export cannot write a concatenation of what another operation split (chunk).")
    return call.builder.concat([call.operand(part) for part in parts], int(call.option("dim", 0)))


def _binary(kind: str) -> Callable[[Call], Known]:
    def write(call: Call) -> Known:
        first, second = (call.option(name, None) for name in ("input", "other"))
        if call.option("alpha", 1) != 1:
            raise InvalidInputError(f"The ONNX export cannot write {kind.lower()} with alpha.")
        return call.builder.op(kind, call.operand(first), call.operand(second))

    return write


def _pad(call: Call) -> Known:
    if call.option("mode", "constant") != "constant":
        raise InvalidInputError("The ONNX export can write padding with a constant only.")
    amounts = list(call.option("pad", call.option("padding", ())))
    begins, ends = [0] * len(call.before), [0] * len(call.before)
    for position in range(len(amounts) // 2):  # pairs, from the last dimension on
        begins[-1 - position], ends[-1 - position] = amounts[2 * position : 2 * position + 2]
    value = np.array(call.option("value", None) or 0.0, np.float32)
    return call.builder.op("Pad", call.x, np.array([*begins, *ends], np.int64), value)


def _getitem(call: Call) -> Known:
    index = call.step.args[1]
    index = index if isinstance(index, tuple) else (index,)
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *[slice(None)] * (len(call.before) - len(index) + 1), *index[at + 1 :])
    if not all(isinstance(part, slice) for part in index):
        raise InvalidInputError(
            f"The ONNX export can write slices only, not the index {index} (step {call.step.name})."
        )
    chosen = {axis: part.indices(call.before[axis]) for axis, part in enumerate(index) if part != slice(None)}
    if not chosen:
        return call.x
    starts, stops, steps = (np.array(column, np.int64) for column in zip(*chosen.values(), strict=True))
    return call.builder.op("Slice", call.x, starts, stops, np.array(list(chosen), np.int64), steps)


def _all(keys: Iterable[Any], entry: Operator) -> dict[Any, Operator]:
    return dict.fromkeys(keys, entry)


_MAX = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
_AVERAGE = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_ADAPTIVE = ("input", "output_size")
_BINARY = ("input", "other")
_DIM = ("input", "dim", "keepdim")

OPERATORS: dict[Any, Operator] = {
    **_all((nn.ReLU, F.relu, torch.relu, F.relu_, "relu", "relu_"), Operator(_node("Relu"))),
    **_all((nn.ReLU6, F.relu6), Operator(_clip(("", ""), (0.0, 6.0)))),
    **_all(
        (nn.LeakyReLU, F.leaky_relu),
        Operator(_alpha("LeakyRelu", "negative_slope", 0.01), ("input", "negative_slope")),
    ),
    **_all((nn.ELU, F.elu), Operator(_alpha("Elu", "alpha", 1.0), ("input", "alpha"))),
    **_all((nn.GELU, F.gelu), Operator(_gelu, ("input", "approximate"))),
    **_all((nn.SiLU, F.silu), Operator(_silu)),
    **_all((nn.Mish, F.mish), Operator(_node("Mish"))),
    **_all((nn.Hardswish, F.hardswish), Operator(_node("HardSwish"))),
    **_all((nn.Hardsigmoid, F.hardsigmoid), Operator(_node("HardSigmoid", alpha=1 / 6, beta=0.5))),
    **_all((nn.Tanh, torch.tanh, F.tanh, "tanh"), Operator(_node("Tanh"))),
    **_all((nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid"), Operator(_node("Sigmoid"))),
    **_all(
        (nn.Hardtanh, F.hardtanh), Operator(_clip(("min_val", "max_val"), (-1.0, 1.0)), ("input", "min_val", "max_val"))
    ),
    **_all((torch.clamp, "clamp"), Operator(_clip(("min", "max"), (-np.inf, np.inf)), ("input", "min", "max"))),
    **_all((nn.Softmax, F.softmax, torch.softmax, "softmax"), Operator(_softmax("Softmax"), ("input", "dim"), False)),
    **_all((nn.LogSoftmax, F.log_softmax), Operator(_softmax("LogSoftmax"), ("input", "dim"), False)),
    **_all(
        (nn.Identity, nn.Dropout, nn.Dropout2d, F.dropout, "contiguous"),
        Operator(_same),
    ),
    **_all((nn.MaxPool2d, F.max_pool2d), Operator(_pool("MaxPool"), _MAX)),
    **_all((nn.AvgPool2d, F.avg_pool2d), Operator(_pool("AveragePool"), _AVERAGE)),
    **_all((nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d), Operator(_adaptive_average, _ADAPTIVE)),
    **_all((nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d), Operator(_adaptive_max, _ADAPTIVE)),
    **_all((torch.mean, "mean"), Operator(_mean, _DIM)),
    **_all((nn.Flatten, torch.flatten, torch.reshape, torch.squeeze), Operator(_reshape)),
    **_all(("flatten", "view", "reshape", "squeeze"), Operator(_reshape)),
    **_all((torch.cat, torch.concat), Operator(_concat, ("tensors", "dim"))),
    **_all((operator.mul, torch.mul, torch.multiply, "mul"), Operator(_binary("Mul"), _BINARY)),
    **_all((operator.add, operator.iadd, torch.add, "add", "add_"), Operator(_binary("Add"), _BINARY, False)),
    **_all((operator.sub, torch.sub, "sub"), Operator(_binary("Sub"), _BINARY, False)),
    **_all((nn.ZeroPad2d, F.pad), Operator(_pad, ("input", "pad", "mode", "value"), False)),
    operator.getitem: Operator(_getitem, channelwise=False),
}
"""By the type of a module, a function, or the name of a tensor method."""
