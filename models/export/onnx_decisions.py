"""A gate policy in ONNX: features of a producer's input, a head, one bit per channel."""

from __future__ import annotations

import numpy as np
from torch import nn

from prunegym.models.export.onnx_channels import Columns
from prunegym.models.export.onnx_graph import GraphBuilder, Known, numpy_of
from prunegym.models.gating.features import CLIP, MaskFeatures
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.gating.static_policy import StaticPolicy


def decide(
    builder: GraphBuilder,
    policy: GatePolicy | StaticPolicy,
    decision: int,
    reads: Known,
    shape: tuple[int, ...],
    columns: Columns,
    penalty: Known | None,
) -> Known:
    """Write a decision.

    Args:
        builder: The graph.
        policy: The policy.
        decision: Index of its decision.
        reads: Input of the producer of the decision's first gate, (1, existing channels, height, width).
        shape: Its shape with all channels.
        columns: The existing channels.
        penalty: lambda, (1,) float32, for a policy with a range of lambdas.

    Returns:
        (width,) bool; for a static policy it is known at export.
    """
    if isinstance(policy, StaticPolicy):
        return numpy_of(policy.channels[decision]) > 0
    features = _features(builder, policy.features, decision, reads, shape, columns)
    if policy.penalty_range is not None:
        low, high = policy.penalty_range
        assert penalty is not None
        offset = builder.op("Sub", penalty, np.array([low], np.float32))
        scaled = builder.op("Mul", offset, np.array([2 / max(high - low, 1e-12)], np.float32))
        features = builder.concat([features, builder.op("Sub", scaled, np.ones(1, np.float32))])
    hidden: Known = builder.reshape(features, [1, -1])
    head = policy.heads[decision]
    assert isinstance(head, nn.Sequential)
    for layer in head:
        if isinstance(layer, nn.Linear):
            hidden = builder.op("Gemm", hidden, numpy_of(layer.weight), numpy_of(layer.bias), transB=1)
        else:
            hidden = builder.op("Relu", hidden)
    return builder.reshape(builder.op("Greater", hidden, np.zeros(1, np.float32)), [-1])


def _features(
    builder: GraphBuilder, features: MaskFeatures, decision: int, reads: Known, shape: tuple[int, ...], columns: Columns
) -> Known:
    def all_channels(pooled: Known, numbers: int) -> Known:
        return _all_channels(builder, pooled, numbers, columns)

    parts = [feature.onnx(builder, reads, shape, all_channels) for feature in features.kinds[decision]]
    mean, std = (numpy_of(features.get_buffer(f"{name}{decision}")) for name in ("mean", "std"))
    raw = builder.concat([builder.reshape(part, [-1]) for part in parts])
    standardised = builder.op("Div", builder.op("Sub", raw, mean), std)
    return builder.op("Clip", standardised, np.array(-CLIP, np.float32), np.array(CLIP, np.float32))


def _all_channels(builder: GraphBuilder, pooled: Known, numbers: int, columns: Columns) -> Known:
    """Put zeros where channels are missing: (1, channels that are there, ...) -> (channels, numbers)."""
    rows = builder.reshape(pooled, [-1, numbers])
    if columns.index is None:
        return rows
    places = builder.op("Unsqueeze", columns.index, np.array([1], np.int64))
    spread = builder.op("ScatterND", np.zeros((columns.size, numbers), np.float32), places, rows)
    return builder.gather(spread, columns.real, 0)
