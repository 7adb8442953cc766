"""The channels of each value that exist when the exported model runs, and weights that are cut to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from prunegym.models.export.onnx_graph import Array, GraphBuilder, Known
from prunegym.models.export.onnx_operators import OPERATORS
from prunegym.models.masking.graph import Graph, Step
from prunegym.models.masking.layouts import Layout
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.masking.operators import Kind


class Kept:
    """The kept channels of a gate, as indices.

    ONNX Runtime refuses a convolution without channels. So if no channel of a gate is kept, its first channel runs, and
    layers that read it use the weights of a zero slot, which comes after the gate's own channels.

    Attributes:
        produced: Filters that the producer runs, (kept,) int64.
        consumed: Positions of the weights of readers, (kept,) int64; ``width`` is the zero slot.
    """

    def __init__(self, builder: GraphBuilder, mask: Known, width: int) -> None:
        """Find the indices.

        Args:
            builder: The graph.
            mask: (width,) bool.
            width: Number of channels.
        """
        if not isinstance(mask, str):
            kept = np.flatnonzero(mask).astype(np.int64)
            self.consumed: Known = kept if len(kept) else np.array([width], np.int64)
            self.produced: Known = kept if len(kept) else np.array([0], np.int64)
            return
        bits = builder.op("Cast", mask, to=1)
        none = builder.op("Sub", np.ones(1, np.float32), builder.op("ReduceMax", bits, keepdims=1))
        found = builder.op("NonZero", builder.concat([bits, none]))
        self.consumed = builder.reshape(found, [-1])
        self.produced = builder.op("Mod", self.consumed, np.array([width], np.int64))


class Columns:
    """The channels of a value as indices into weights that have a zero slot after each gate that is cut.

    Attributes:
        index: (channels,) int64 into the weights of :meth:`extend`; None if all channels are there.
        size: Number of channels with the slots.
        real: Indices of the channels among them, without the slots: (channels,) int64.
    """

    def __init__(self, builder: GraphBuilder, layout: Layout, kept: Mapping[int, Kept]) -> None:
        self._layout, self._kept = layout, kept
        parts: list[Known] = []
        real: list[Array] = []
        self.size = 0
        for block in layout:
            own = np.arange(self.size, self.size + block.width, dtype=np.int64)
            real.append(own)
            if block.gate is not None and block.gate in kept:
                index, start = kept[block.gate].consumed, np.array([self.size], np.int64)
                if isinstance(index, str):
                    parts.append(index if self.size == 0 else builder.op("Add", index, start))
                else:
                    parts.append(index + start)
            else:
                parts.append(own)
            self.size += block.width + (block.gate in kept)
        self.real = np.concatenate(real)
        self.index = builder.concat(parts) if any(block.gate in kept for block in layout) else None

    def extend(self, array: Array, axis: int) -> Array:
        """Add a slot of zeros after the channels of each gate that is cut."""
        if self.index is None:
            return array
        shape = list(array.shape)
        shape[axis] = self.size
        wide = np.zeros(shape, array.dtype)
        place: list[Any] = [slice(None)] * array.ndim
        place[axis] = self.real
        wide[tuple(place)] = array
        return wide


def cut_gates(masked: MaskedCNN) -> frozenset[int]:
    """Return the gates whose channels can be left out; those of the others are multiplied by zero.

    A gate can be cut if every step that its channels pass treats them one by one, whatever their number.
    """
    graph, found = masked.graph, masked.found
    cut = set(range(len(masked.gates)))
    for index, gate in enumerate(masked.gates):
        first = graph[gate.producers[0]]
        if len(gate.producers) > 1 or len(gate.points) > 1 or first.kind is not Kind.CONV or not first.weight:
            cut.discard(index)
    for name in found.values:
        if name not in masked.layouts or len(masked.places.get(name, ())) > 1:
            cut -= found.gates_of(name)
    for step in graph.steps:
        for name in step.inputs:
            layout = masked.layouts.get(name, ())
            gates = {block.gate for block in layout if block.gate is not None}
            if gates and not _takes_any_number(graph, step, masked.layouts, layout):
                cut -= gates
    return frozenset(cut)


def _takes_any_number(graph: Graph, step: Step, layouts: Mapping[str, Layout], before: Layout) -> bool:
    if step.kind is Kind.CONV and step.weight:
        return True
    if step.kind is Kind.LINEAR:
        return len(graph[step.inputs[0]].shape) == 2 and len({block.repeat for block in before}) == 1
    if step.operation != "batch_norm" and (
        step.operation not in OPERATORS or not OPERATORS[step.operation].channelwise
    ):
        return False
    after = layouts.get(step.name, ())
    if step.kind is Kind.MULTIPLY:
        return all(layouts.get(name) == before for name in step.inputs) and after == before
    if step.kind is Kind.RESHAPE and len(step.shape) != 2:
        return False
    return {block.gate for block in before} <= {block.gate for block in after}
