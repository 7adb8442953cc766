"""Compensation: what the layers that read a masked channel get in its place, zero or a learnt constant."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from prunegym.models.masking.gates import Found
from prunegym.models.masking.graph import Graph, Step
from prunegym.models.masking.operators import IDENTITY, MIXING, Kind

COMPENSATIONS = ("zero", "constant")
"""``zero``: a masked channel is a removed filter. ``constant``: its readers see a learnt number instead."""

_KEEPING = (Kind.POOL, Kind.LARGEST, Kind.RESHAPE, Kind.LAYOUT, Kind.CONCAT)
"""Of a channel that is the same number everywhere, these make the same number."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """A layer whose bias grows by the constants of the masked channels that it reads.

    Attributes:
        step: Name of its step.
        gates: The gates whose channels it reads and whose constants it gets, in order.
        columns: For each of its inputs the place of its bit among those of these gates; -1 for an input without.
        axis: Dimension of its outputs in what it makes, the batch counted.
        groups: Groups of the convolution.
    """

    step: str
    gates: tuple[int, ...]
    columns: Tensor
    axis: int
    groups: int

    def sums(self, weight: Tensor, bits: int) -> Tensor:
        """Return for each bit the sum of the kernels that read its channels.

        Args:
            weight: Of the layer, (out, inputs / groups, ...).
            bits: Number of bits of its gates.

        Returns:
            (bits, out), differentiable in the weight.
        """
        taps = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
        if self.groups > 1:  # as of a convolution of all inputs, with zeros between the groups
            taps = torch.block_diag(*taps.chunk(self.groups))  # type: ignore[no-untyped-call]
        table = taps.new_zeros(bits + 1, len(taps))  # the last row takes the inputs that have no constant
        return table.index_add(0, self.columns.to(taps.device) % (bits + 1), taps.T)[:-1]

    def added(self, weight: Tensor, off: Sequence[Tensor], constants: Sequence[Tensor]) -> Tensor:
        """Return what is added to the layer's output.

        Args:
            weight: Of the layer.
            off: 1 - mask of each of its gates, (batch, width).
            constants: Of each of its gates, (width,).

        Returns:
            (batch, out), differentiable in masks, constants and the weight.
        """
        joined = torch.cat([*constants])
        # bias += sum over masked channels of (constant x sum of that channel's kernel)
        return torch.cat([*off], 1) @ (joined[:, None] * self.sums(weight, len(joined)))


def readers(graph: Graph, found: Found) -> tuple[dict[str, Reader], dict[tuple[str, str], str]]:
    """Find the layers that get the constants of masked channels.

    Args:
        graph: The network's steps.
        found: Its gates.

    Returns:
        The readers by their step; and for each gate and layer that reads it without its constants, by name, the reason.
    """
    starts = _starts(found)
    made: dict[str, Reader] = {}
    refused: dict[tuple[str, str], str] = {}
    for name, index in found.reads.items():
        step = graph[name]
        if step.kind not in MIXING:
            continue
        chosen = []
        for gate in sorted(set(_owners(found)[index[index >= 0]].tolist())):
            why = _why_not(graph, found, step, gate)
            if why is None:
                chosen.append(gate)
            else:
                refused[found.gates[gate].name, step.layer] = why
        if chosen:
            axis = len(step.shape) - 1 if step.kind is Kind.LINEAR else 1
            columns = torch.full_like(index, -1)
            place = 0
            for gate in chosen:
                width = found.gates[gate].width
                own = (index >= starts[gate]) & (index < starts[gate] + width)
                columns[own] = index[own] - starts[gate] + place
                place += width
            made[name] = Reader(name, tuple(chosen), columns, axis, step.arguments.get("groups", 1))
    return made, refused


def _starts(found: Found) -> list[int]:
    starts = [0]
    for gate in found.gates:
        starts.append(starts[-1] + gate.width)
    return starts


def _owners(found: Found) -> Tensor:
    return torch.cat([torch.full((gate.width,), number) for number, gate in enumerate(found.gates)])


def _why_not(graph: Graph, found: Found, reader: Step, gate: int) -> str | None:
    """Return why a layer cannot get a gate's constants; None if it can."""
    if reader.kind is Kind.TRANSPOSED:
        return "it is a transposed convolution, of which a pixel reads some taps only"
    if not reader.weight:
        return "its weights are computed as the network runs"
    todo = [reader.arguments["input"].name]
    while todo:
        name = todo.pop()
        step = graph[name]
        if name in found.gates[gate].points:
            continue
        before = [one for one in step.inputs if gate in found.gates_of(one)]
        if not before or not (step.kind in _KEEPING or step.operation in (*IDENTITY, "mean")):
            return f"{step} stands between, which {step.kind.value}"
        todo += before
    return None
