"""What each ATen operator does to channels: one table for masks, costs, skipping and ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any


class Kind(Enum):
    """What an operation does to a zero channel and to the order of channels."""

    CONV = "mixes all input channels into new ones (convolution without groups)"
    LINEAR = "mixes all input features into new ones"
    DEPTHWISE = "filters each channel by itself, and may add a bias"
    GROUPED = "mixes groups of channels (grouped or transposed convolution)"
    CHANNELWISE = "maps each channel by itself, and zero to something else (norm, sigmoid)"
    ACTIVATION = "maps each value by itself, and zero to zero (ReLU)"
    POOL = "maps each channel by itself, and zero to zero (pooling, dropout, resizing)"
    RESHAPE = "changes the shape without mixing channels (flatten)"
    MULTIPLY = "zero where one operand is zero"
    CONCAT = "concatenates channels"
    OTHER = "anything else: no gate reaches through it"


def _all(kind: Kind, names: str) -> dict[str, Kind]:
    return dict.fromkeys(names.split(), kind)


OPERATORS: dict[str, Kind] = {
    **_all(Kind.CONV, "conv2d"),
    **_all(Kind.LINEAR, "linear"),
    **_all(Kind.GROUPED, "conv1d conv3d conv_transpose2d"),
    **_all(Kind.CHANNELWISE, "batch_norm instance_norm sigmoid hardsigmoid softplus clamp"),
    **_all(
        Kind.ACTIVATION,
        "relu relu6 leaky_relu prelu elu celu selu gelu silu mish hardswish tanh hardtanh abs neg sqrt square",
    ),
    **_all(
        Kind.POOL,
        "max_pool2d avg_pool2d adaptive_avg_pool2d dropout feature_dropout alpha_dropout feature_alpha_dropout mean "
        "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d amax sum clone "
        "contiguous alias detach",
    ),
    **_all(Kind.RESHAPE, "flatten view reshape _unsafe_view squeeze unsqueeze unflatten"),
    **_all(Kind.MULTIPLY, "mul"),
    **_all(Kind.CONCAT, "cat concat"),
}  # fmt: skip
"""By the name of the operator; what is not here is OTHER."""

IDENTITY = frozenset(
    ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "contiguous", "alias", "detach", "clone")
)
"""In eval mode these leave numbers as they are."""


def kind_of(
    operation: str, arguments: Mapping[str, Any], before: tuple[int, ...] = (), after: tuple[int, ...] = ()
) -> Kind:
    """Classify an operation.

    Args:
        operation: Its name.
        arguments: Its arguments.
        before: Shape of its first input.
        after: Shape of its output.
    """
    kind = OPERATORS.get(operation, Kind.OTHER)
    if kind is Kind.CONV and arguments["groups"] != 1:
        return Kind.DEPTHWISE if arguments["groups"] == before[1] == after[1] else Kind.GROUPED
    if operation in ("pad", "constant_pad_nd"):
        sides, constant = arguments["pad"], arguments.get("mode", "constant") == "constant"
        spatial = len(before) == 4 and not any(sides[4:])
        return Kind.POOL if spatial and not (constant and arguments.get("value")) else Kind.OTHER
    return kind
