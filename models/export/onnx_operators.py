"""A table of operations other than convolutions, linears and batch norms, with how each is written in ONNX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from prunegym.errors import InvalidInputError
from prunegym.models.export.onnx_graph import GraphBuilder, Known, numpy_of
from prunegym.models.export.onnx_tensor_operators import TENSOR_OPERATORS
from prunegym.models.masking.graph import Attribute, Graph, OutputOf, Step, attribute_of
from prunegym.models.masking.operators import IDENTITY
from prunegym.models.skipping.program.folding import pair


@dataclasses.dataclass(frozen=True)
class Call:
    """A step that is being exported.

    Attributes:
        builder: The ONNX graph.
        graph: The network.
        network: Its parameters.
        step: The step.
        values: The exported values of earlier steps.
        cut: Whether channels of its input may be missing.
    """

    builder: GraphBuilder
    graph: Graph
    network: nn.Module
    step: Step
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

    @property
    def given(self) -> dict[str, Any]:
        """Its arguments."""
        return self.step.arguments

    def operand(self, argument: Any) -> Known:
        """Return a tensor or number among the arguments."""
        if isinstance(argument, OutputOf):
            return self.values[argument.name]
        if isinstance(argument, Attribute):
            return numpy_of(attribute_of(self.network, argument.path))
        return np.array(argument, np.float32)


@dataclasses.dataclass(frozen=True)
class Operator:
    """How to write an operation: a function from the call to its output.

    ``channelwise``: it treats each channel by itself, and works whatever their number.
    """

    write: Callable[[Call], Known]
    channelwise: bool = True


def find_operator(step: Step) -> Operator:
    """Return how a step is written.

    Raises:
        InvalidInputError: If the table does not have it.
    """
    if step.operation in OPERATORS:
        return OPERATORS[step.operation]
    raise unwritable([step])


def unwritable(steps: Sequence[Step]) -> InvalidInputError:
    """Return the error about steps that the table does not have; each operation is named once."""
    named = {step.operation: step for step in reversed(steps)}
    found = ", ".join(f"{name!r} (step {step})" for name, step in reversed(named.items()))
    return InvalidInputError(
        f"The network calls {found}, which cannot be exported to ONNX. Supported are conv2d, linear, batch_norm and: "
        f"{', '.join(sorted(OPERATORS))}. Use one of these, or keep the model as .safetensors."
    )


def _node(kind: str, **attributes: Any) -> Callable[[Call], Known]:
    return lambda call: call.builder.op(kind, call.x, **attributes)


def _same(call: Call) -> Known:
    return call.x


def _clip(low: str | float, high: str | float) -> Callable[[Call], Known]:
    """Clip to numbers, or to arguments with these names, which may be left out."""

    def write(call: Call) -> Known:
        bounds = [call.given[side] if isinstance(side, str) else side for side in (low, high)]
        ends = [end if bound is None else bound for bound, end in zip(bounds, (-np.inf, np.inf), strict=True)]
        return call.builder.op("Clip", call.x, *(np.array(end, np.float32) for end in ends))

    return write


def _alpha(kind: str, option: str) -> Callable[[Call], Known]:
    return lambda call: call.builder.op(kind, call.x, alpha=float(call.given[option]))


def _gelu(call: Call) -> Known:
    return call.builder.op("Gelu", call.x, approximate=str(call.given["approximate"]))


def _silu(call: Call) -> Known:
    return call.builder.op("Mul", call.x, call.builder.op("Sigmoid", call.x))


def _softmax(kind: str) -> Callable[[Call], Known]:
    return lambda call: call.builder.op(kind, call.x, axis=int(call.given["dim"]))


def _pool(kind: str) -> Callable[[Call], Known]:
    def write(call: Call) -> Known:
        given = call.given
        kernel, padding = list(pair(given["kernel_size"])), list(pair(given["padding"]))
        attributes: dict[str, Any] = {
            "kernel_shape": kernel, "strides": list(pair(given["stride"])) if given["stride"] else kernel,
            "pads": padding * 2, "ceil_mode": int(given["ceil_mode"]),
        }  # fmt: skip
        if kind == "AveragePool":
            attributes["count_include_pad"] = int(given["count_include_pad"])
            if given["divisor_override"] is not None:
                raise InvalidInputError("ONNX export does not support average pooling with divisor_override.")
        else:
            attributes["dilations"] = list(pair(given["dilation"]))
        return call.builder.op(kind, call.x, **attributes)

    return write


def _adaptive_average(call: Call) -> Known:
    sizes = [old if new is None else new for old, new in _adaptive_sizes(call)]
    return call.builder.adaptive_average(call.x, call.before, sizes)


def _adaptive_sizes(call: Call) -> list[tuple[int, int | None]]:
    return list(zip(call.before[2:], pair(call.given["output_size"]), strict=True))


def _reshape(call: Call) -> Known:
    return call.builder.reshape(call.x, [1, -1] if call.cut else call.step.shape)


def _reduce(kind: str) -> Callable[[Call], Known]:
    def write(call: Call) -> Known:
        dims = np.array([*(call.given.get("dim") or range(len(call.before)))], np.int64)
        return call.builder.op(kind, call.x, dims, keepdims=int(call.given.get("keepdim", False)))

    return write


def _concat(call: Call) -> Known:
    return call.builder.concat([call.operand(part) for part in call.given["tensors"]], int(call.given["dim"]))


def _binary(kind: str) -> Callable[[Call], Known]:
    def write(call: Call) -> Known:
        other = call.operand(call.given["other"])
        if call.given.get("alpha", 1) != 1:
            other = call.builder.op("Mul", other, np.array(call.given["alpha"], np.float32))
        if call.given.get("rounding_mode") is not None:
            raise InvalidInputError(f"The ONNX export cannot write a division that rounds (step {call.step}).")
        return call.builder.op(kind, call.operand(call.given["self"]), other)

    return write


def _pad(call: Call) -> Known:
    mode = {"replicate": "edge", "circular": "wrap"}.get(call.given.get("mode", "constant"), call.given.get("mode"))
    amounts = list(call.given["pad"])
    begins, ends = [0] * len(call.before), [0] * len(call.before)
    for position in range(len(amounts) // 2):  # pairs, from the last dimension on
        begins[-1 - position], ends[-1 - position] = amounts[2 * position : 2 * position + 2]
    value = np.array(call.given.get("value") or 0.0, np.float32)
    return call.builder.op("Pad", call.x, np.array([*begins, *ends], np.int64), value, mode=mode or "constant")


def _prelu(call: Call) -> Known:
    slope = call.operand(call.given["weight"])
    return call.builder.op("PRelu", call.x, call.builder.reshape(slope, [-1, *[1] * (len(call.before) - 2)]))


def _layer_norm(call: Call) -> Known:
    shape = call.given["normalized_shape"]
    sides = (call.given["weight"], call.given["bias"])
    scale, shift = (
        np.full(shape, empty, np.float32) if side is None else call.operand(side)
        for side, empty in zip(sides, (1.0, 0.0), strict=True)
    )
    return call.builder.op(
        "LayerNormalization", call.x, scale, shift, axis=-len(shape), epsilon=float(call.given["eps"])
    )


def _transposed(call: Call) -> Known:
    weight, bias = call.operand(call.given["weight"]), call.given["bias"]
    if not isinstance(call.given["weight"], Attribute):
        raise InvalidInputError(f"ONNX export does not support step {call.step}: its weight is computed.")
    inputs = [call.x, weight, *([] if bias is None else [call.operand(bias)])]
    padding = list(pair(call.given["padding"]))
    return call.builder.op(
        "ConvTranspose", *inputs, strides=list(pair(call.given["stride"])), pads=padding * 2,
        dilations=list(pair(call.given["dilation"])), group=call.given["groups"],
        output_padding=list(pair(call.given["output_padding"])),
    )  # fmt: skip


def _slice(call: Call) -> Known:
    axis = call.given["dim"] % len(call.before)
    start, stop, step = slice(call.given["start"], call.given["end"], call.given["step"]).indices(call.before[axis])
    return call.builder.op("Slice", call.x, *(np.array([number], np.int64) for number in (start, stop, axis, step)))


def _transpose(call: Call) -> Known:
    order = list(range(len(call.before)))
    if call.step.operation == "permute":
        order = [dim % len(order) for dim in call.given["dims"]]
    else:
        one, other = call.given["dim0"], call.given["dim1"]
        order[one], order[other] = order[other], order[one]
    return call.builder.op("Transpose", call.x, perm=order)


OPERATORS: dict[str, Operator] = {
    "relu": Operator(_node("Relu")),
    "relu6": Operator(_clip(0.0, 6.0)),
    "leaky_relu": Operator(_alpha("LeakyRelu", "negative_slope")),
    "elu": Operator(_alpha("Elu", "alpha")),
    "gelu": Operator(_gelu),
    "silu": Operator(_silu),
    "mish": Operator(_node("Mish")),
    "hardswish": Operator(_node("HardSwish")),
    "hardsigmoid": Operator(_node("HardSigmoid", alpha=1 / 6, beta=0.5)),
    "tanh": Operator(_node("Tanh")),
    "sigmoid": Operator(_node("Sigmoid")),
    "hardtanh": Operator(_clip("min_val", "max_val")),
    "clamp": Operator(_clip("min", "max")),
    "softmax": Operator(_softmax("Softmax"), False),
    "log_softmax": Operator(_softmax("LogSoftmax"), False),
    **dict.fromkeys(IDENTITY, Operator(_same)),
    "max_pool2d": Operator(_pool("MaxPool")),
    "avg_pool2d": Operator(_pool("AveragePool")),
    "adaptive_avg_pool2d": Operator(_adaptive_average),
    "mean": Operator(_reduce("ReduceMean")),
    "amax": Operator(_reduce("ReduceMax")),
    "sum": Operator(_reduce("ReduceSum")),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze"), Operator(_reshape)),
    "cat": Operator(_concat),
    "mul": Operator(_binary("Mul")),
    "add": Operator(_binary("Add"), False),
    "sub": Operator(_binary("Sub"), False),
    "div": Operator(_binary("Div"), False),
    **dict.fromkeys(("pad", "constant_pad_nd"), Operator(_pad, False)),
    "slice": Operator(_slice, False),
    "prelu": Operator(_prelu, False),
    "layer_norm": Operator(_layer_norm, False),
    "conv_transpose2d": Operator(_transposed, False),
    **dict.fromkeys(("permute", "transpose"), Operator(_transpose, False)),
    **{name: Operator(write, False) for name, write in TENSOR_OPERATORS.items()},
}
"""By the name of the ATen operator."""
