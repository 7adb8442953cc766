"""Operations on whole tensors in ONNX: products, parts, resizing, attention. Channels that pass them are all there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from prunegym.errors import InvalidInputError
from prunegym.models.export.onnx_graph import Known

if TYPE_CHECKING:
    from prunegym.models.export.onnx_operators import Call


def _whole(*numbers: int) -> Known:
    return np.array(numbers, np.int64)


def _node(kind: str, *names: str, **attributes: Any) -> Callable[[Call], Known]:
    """Write a node of the arguments with these names."""
    return lambda call: call.builder.op(kind, *(call.operand(call.given[name]) for name in names), **attributes)


def _select(call: Call) -> Known:
    axis = call.given["dim"] % len(call.before)
    index = call.given["index"] % call.before[axis]
    return call.builder.op("Gather", call.x, np.array(index, np.int64), axis=axis)


def _parts(call: Call) -> Any:
    """Return the parts of a split as a list; the step that picks one follows."""
    axis, name = call.given.get("dim", 0) % len(call.before), call.step.operation
    whole = call.before[axis]
    if name == "unbind":
        return [call.builder.op("Gather", call.x, np.array(place, np.int64), axis=axis) for place in range(whole)]
    if name == "split_with_sizes":
        sizes = list(call.given["split_sizes"])
    else:
        size = -(-whole // call.given["chunks"]) if name == "chunk" else call.given["split_size"]
        sizes = list(size) if isinstance(size, list) else [size] * -(-whole // size)
    ends = np.minimum(np.cumsum(sizes), whole).tolist()
    starts = [0, *ends[:-1]]
    return [
        call.builder.op("Slice", call.x, _whole(start), _whole(end), _whole(axis))
        for start, end in zip(starts, ends, strict=True)
    ]


def _item(call: Call) -> Known:
    parts: Any = call.x
    found: Known = parts[call.given["index"]]
    return found


def _attention(call: Call) -> Known:
    given, builder = call.given, call.builder
    if given["attn_mask"] is not None or given["is_causal"] or given.get("enable_gqa"):
        raise InvalidInputError(f"The ONNX export cannot write attention with a mask or groups (step {call.step}).")
    query, key, value = (call.operand(given[name]) for name in ("query", "key", "value"))
    rank, width = len(call.before), call.before[-1]
    scale = np.array(given.get("scale") or width**-0.5, np.float32)
    turned = builder.op("Transpose", key, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = builder.op("MatMul", builder.op("Mul", query, scale), turned)
    return builder.op("MatMul", builder.op("Softmax", scores, axis=-1), value)


def _stack(call: Call) -> Known:
    axis, parts = call.given["dim"] % len(call.step.shape), call.given["tensors"]
    shape = [1 if place == axis else size for place, size in enumerate(call.step.shape)]
    return call.builder.concat([call.builder.reshape(call.operand(part), shape) for part in parts], axis)


def _expand(call: Call) -> Known:
    return call.builder.op("Expand", call.x, _whole(*call.step.shape))


def _norm_of_vectors(call: Call) -> Known:
    kind = {1: "ReduceL1", 2: "ReduceL2"}.get(call.given.get("ord", call.given.get("p", 2)))
    if kind is None:
        raise InvalidInputError(f"The ONNX export writes norms of order 1 and 2 (step {call.step}).")
    dims = call.given.get("dim")
    axes = range(len(call.before)) if dims is None else dims if isinstance(dims, list) else [dims]
    return call.builder.op(kind, call.x, _whole(*axes), keepdims=int(call.given.get("keepdim", False)))


def _resize(mode: str) -> Callable[[Call], Known]:
    def write(call: Call) -> Known:
        aligned = "align_corners" if call.given.get("align_corners") else "half_pixel"
        how: dict[str, Any] = {"coordinate_transformation_mode": aligned, "mode": mode}
        if mode == "nearest":
            how = {"coordinate_transformation_mode": "asymmetric", "mode": mode, "nearest_mode": "floor"}
        elif mode == "cubic":
            how["cubic_coeff_a"] = -0.75
        none = np.zeros(0, np.float32)
        return call.builder.op("Resize", call.x, none, none, _whole(*call.step.shape), **how)

    return write


def _group_norm(call: Call) -> Known:
    builder, given, groups = call.builder, call.given, call.given["num_groups"]
    rows = builder.reshape(call.x, [1, groups, -1])
    plain = np.ones(groups, np.float32), np.zeros(groups, np.float32)
    value: Known = builder.op("InstanceNormalization", rows, *plain, epsilon=float(given["eps"]))
    value = builder.reshape(value, call.before)
    shape = (-1, *[1] * (len(call.before) - 2))
    for kind, name in (("Mul", "weight"), ("Add", "bias")):
        if given[name] is not None:
            value = builder.op(kind, value, builder.reshape(call.operand(given[name]), shape))
    return value


def _shuffle(call: Call) -> Known:
    groups, shape = call.given["groups"], call.before
    rows = call.builder.reshape(call.x, [1, groups, shape[1] // groups, *shape[2:]])
    turned = call.builder.op("Transpose", rows, perm=[0, 2, 1, *range(3, len(shape) + 1)])
    return call.builder.reshape(turned, shape)


def _pixel_shuffle(call: Call) -> Known:
    return call.builder.op("DepthToSpace", call.x, blocksize=call.given["upscale_factor"], mode="CRD")


def _turned_sub(call: Call) -> Known:
    return call.builder.op("Sub", call.operand(call.given["other"]), call.operand(call.given["self"]))


TENSOR_OPERATORS: dict[str, Callable[[Call], Known]] = {
    "select": _select,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "unbind"), _parts),
    "getitem": _item,
    **dict.fromkeys(("matmul",), _node("MatMul", "self", "other")),
    **dict.fromkeys(("bmm", "mm"), _node("MatMul", "self", "mat2")),
    "scaled_dot_product_attention": _attention,
    "stack": _stack,
    **dict.fromkeys(("expand", "expand_as"), _expand),
    "linalg_vector_norm": _norm_of_vectors,
    "upsample_nearest2d": _resize("nearest"),
    "upsample_bilinear2d": _resize("linear"),
    "upsample_bicubic2d": _resize("cubic"),
    "group_norm": _group_norm,
    "channel_shuffle": _shuffle,
    "pixel_shuffle": _pixel_shuffle,
    "pow": _node("Pow", "self", "exponent"),
    "rsub": _turned_sub,
    "maximum": _node("Max", "self", "other"),
    "minimum": _node("Min", "self", "other"),
    **{name: _node(kind, "self") for name, kind in (
        ("sqrt", "Sqrt"), ("exp", "Exp"), ("log", "Log"), ("abs", "Abs"), ("neg", "Neg"), ("erf", "Erf"),
        ("reciprocal", "Reciprocal"), ("sin", "Sin"), ("cos", "Cos"), ("sign", "Sign"), ("softplus", "Softplus"),
    )},
}  # fmt: skip
"""By the name of the ATen operator."""
