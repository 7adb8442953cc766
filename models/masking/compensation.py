"""Compensation: what the layers that read a masked channel get in its place, zero or a learnt constant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.masking.gates import Found
from prunegym.models.masking.graph import Graph, Step
from prunegym.models.masking.operators import IDENTITY, MIXING, Kind
from prunegym.validation import shape

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
        widths: How many bits each of these gates has.
        axis: Dimension of its outputs in what it makes, the batch counted.
        groups: Groups of the convolution.
    """

    step: str
    gates: tuple[int, ...]
    widths: tuple[int, ...]
    columns: Tensor
    axis: int
    groups: int

    def table(self, weight: Tensor, constants: Sequence[Tensor]) -> Tensor:
        """Return for each bit what its masked channel adds to the bias: the constant times the sum of its kernel.

        Args:
            weight: Of the layer, (out, inputs / groups, ...).
            constants: Of each of its gates, (width,).

        Returns:
            (bits of its gates, out), differentiable in both.
        """
        joined = torch.cat([*constants])
        taps = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
        if self.groups > 1:  # as of a convolution of all inputs, with zeros between the groups
            taps = torch.block_diag(*taps.chunk(self.groups))  # type: ignore[no-untyped-call]
        # One row more, for the inputs that have no constant.
        sums = taps.new_zeros(len(joined) + 1, len(taps))
        sums = sums.index_add(0, self.columns.to(taps.device) % len(sums), taps.T)[:-1]
        return joined[:, None] * sums

    def add(self, value: Tensor, masks: Sequence[Tensor | None], table: Tensor) -> Tensor:
        """Add to what the layer made (batch, ...) the constants of the channels that masks switch off.

        Args:
            value: The layer's output without them.
            masks: Of each of its gates (batch, width), any numbers; None keeps all channels.
            table: See :meth:`table`.

        Returns:
            Of the value's shape, differentiable in masks and table.
        """
        ones = value.new_ones(len(value), 1)
        given = zip(masks, self.widths, strict=True)
        kept = [ones.expand(-1, width) if mask is None else mask.to(ones.dtype) for mask, width in given]
        # bias += sum over masked channels of (constant x sum of that channel's kernel)
        added = (1 - torch.cat(kept, 1).to(table.dtype)) @ table
        out = added.shape[1]
        return value + added.view(len(value), *[out if place == self.axis else 1 for place in range(1, value.ndim)])


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
            widths = tuple(found.gates[gate].width for gate in chosen)
            made[name] = Reader(name, tuple(chosen), widths, columns, axis, step.arguments.get("groups", 1))
    return made, refused


def checked_constants(
    constants: Tensor, mask_size: int, readers: Mapping[str, Reader], refused: Mapping[tuple[str, str], str]
) -> Tensor:
    """Return constants, detached.

    Args:
        constants: What was given.
        mask_size: How many are needed.
        readers: As :func:`readers` returns them.
        refused: The same.

    Raises:
        InvalidInputError: If they have another shape or are not finite, or no layer can get them.
    """
    if not readers:
        reasons = "; ".join(f"{gate} in {layer}: {why}" for (gate, layer), why in refused.items())
        raise InvalidInputError(f"No layer can get constants for masked channels ({reasons}). Use zeros.")
    shape("The constants", constants, (mask_size,))
    if not torch.isfinite(constants).all():
        raise InvalidInputError("Some constants are NaN or infinite. Give finite numbers, zeros to begin with.")
    return constants.detach()


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
            return f"{step} is between, which {step.kind.value}"
        todo += before
    return None
