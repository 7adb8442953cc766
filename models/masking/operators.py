"""The effect of each ATen operator on channels: one table for masks, costs, skipping and ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any


class Kind(Enum):
    """The effect of an operation on a zero channel and on the order of channels."""

    CONV = "mixes all input channels into new ones (convolution without groups)"
    LINEAR = "mixes all input features into new ones"
    DEPTHWISE = "filters each channel by itself, and may add a bias"
    GROUPED = "mixes groups of channels into new ones"
    TRANSPOSED = "mixes all input channels into new ones (transposed convolution)"
    CHANNELWISE = "maps each channel by itself, and zero to something else (norm, sigmoid)"
    ACTIVATION = "maps each value by itself, and zero to zero (ReLU)"
    POOL = "maps each channel by itself, and zero to zero (pooling, resizing)"
    REDUCE = "sums up some dimensions, zero to zero"
    LARGEST = "takes the largest along some dimensions, of zeros zero"
    NORM = "divides by statistics over several channels"
    RESHAPE = "changes the shape and leaves the order (flatten)"
    LAYOUT = "moves, repeats or picks values (permute, slice)"
    MULTIPLY = "multiplies, which gives zero where one operand is zero"
    DIVIDE = "divides, which gives zero where the first operand is zero"
    ADD = "adds, which gives zero where both operands are zero"
    CONCAT = "concatenates values"
    OTHER = "is not known here, so no gate reaches through it"


MIXING = (Kind.CONV, Kind.LINEAR, Kind.GROUPED, Kind.TRANSPOSED)
"""These read a gate's channels and make new ones."""

_IDENTITY = "dropout feature_dropout alpha_dropout feature_alpha_dropout contiguous alias detach clone to _to_copy"
_NAMES: dict[Kind, str] = {
    Kind.CONV: "conv1d conv2d conv3d",
    Kind.LINEAR: "linear",
    Kind.TRANSPOSED: "conv_transpose1d conv_transpose2d conv_transpose3d",
    Kind.CHANNELWISE: "batch_norm instance_norm sigmoid hardsigmoid softplus clamp clamp_min clamp_max exp cos",
    Kind.ACTIVATION: "relu relu6 leaky_relu prelu elu celu selu gelu silu mish hardswish tanh hardtanh abs neg sqrt "
    f"square sin erf sign {_IDENTITY}",
    Kind.POOL: "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d "
    "_upsample_nearest_exact2d",
    Kind.REDUCE: "mean sum linalg_vector_norm norm",
    Kind.LARGEST: "amax amin",
    Kind.NORM: "layer_norm group_norm",
    Kind.RESHAPE: "flatten view reshape _unsafe_view squeeze unsqueeze unflatten view_as",
    Kind.LAYOUT: "permute transpose t numpy_T slice select expand expand_as repeat repeat_interleave index_select "
    "movedim pixel_shuffle pixel_unshuffle channel_shuffle flip roll narrow swapaxes",
    Kind.MULTIPLY: "mul multiply",
    Kind.DIVIDE: "div",
    Kind.ADD: "add sub rsub maximum minimum",
    Kind.CONCAT: "cat concat stack",
}
OPERATORS: dict[str, Kind] = {name: kind for kind, names in _NAMES.items() for name in names.split()}
"""The kind of each operator by name; operators that are not here are OTHER."""

IDENTITY = frozenset(_IDENTITY.split()) - {"to", "_to_copy"}
"""In eval mode these do not change values."""


def kind_of(operation: str, arguments: Mapping[str, Any], before: tuple[int, ...] = ()) -> Kind:
    """Classify an operation.

    Args:
        operation: Its name.
        arguments: Its arguments.
        before: Shape of its first input.
    """
    if operation in ("pad", "constant_pad_nd"):
        sides, constant = arguments["pad"], arguments.get("mode", "constant") == "constant"
        if constant and arguments.get("value"):
            return Kind.OTHER
        return Kind.POOL if len(before) == 4 and not any(sides[4:]) else Kind.LAYOUT if constant else Kind.OTHER
    kind = OPERATORS.get(operation, Kind.OTHER)
    if kind in (Kind.CONV, Kind.TRANSPOSED) and arguments["groups"] != 1:
        if kind is Kind.TRANSPOSED:
            return Kind.OTHER
        return Kind.DEPTHWISE if arguments["groups"] == before[1] else Kind.GROUPED
    if operation == "hardtanh" and not arguments["min_val"] <= 0 <= arguments["max_val"]:
        return Kind.CHANNELWISE
    if operation == "layer_norm" and len(arguments["normalized_shape"]) == len(before):
        return Kind.OTHER
    return kind
