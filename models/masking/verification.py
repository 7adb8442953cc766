"""Verification of gates: does masking a channel equal removing its filter?"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.models.masking.gates import Gate, Layout, layouts
from prunegym.models.masking.graph import BATCH, LIKE, Attribute, Graph, Step, attribute_of, first_values, runner
from prunegym.models.masking.operators import Kind

_TOLERANCE = 1e-4


def failing_gates(graph: Graph, network: nn.Module, gates: list[Gate]) -> list[tuple[Gate, str]]:
    """Return the gates that fail verification, each with the reason.

    For a random half of a gate's channels three outputs have to agree: with the channels masked; with the weights that
    read them set to zero; with the channels masked and their filters replaced by others.

    The weights are random at first. With a network's own weights (norms that start at zero, weights that fade with
    depth) hardly anything may reach the output, and then every gate would pass. The network's own weights are used
    for gates whose effect does not reach the output with random ones.

    Args:
        graph: The network's steps.
        network: In eval mode; not changed.
        gates: The gates to verify.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, *graph[graph.input].shape[1:], generator=generator)
    own = copy.deepcopy(network).float()
    found = layouts(graph, gates)
    channels = [torch.randperm(gate.width, generator=generator)[: (gate.width + 1) // 2] for gate in gates]
    reasons: list[str | None] = [_UNSEEN] * len(gates)
    for trial in (_randomised(graph, copy.deepcopy(own), generator), own):
        passing = _Pass(graph, trial, images)
        dense = passing.rest()
        for index, (gate, off) in enumerate(zip(gates, channels, strict=True)):
            if reasons[index] == _UNSEEN:
                passing.advance(graph.index[gate.producers[0]])
                readers, makers = ([graph[name] for name in names] for names in (gate.consumers, gate.producers))
                reading = [(_weight(trial, step), 1, columns(found[step.inputs[0]], index, off)) for step in readers]
                making = [(_weight(trial, step), 0, off) for step in makers]
                reasons[index] = _try(passing, dense, gate, off, reading, making)
        if _UNSEEN not in reasons:
            break
    return [(gate, reason) for gate, reason in zip(gates, reasons, strict=True) if reason is not None]


_UNSEEN = "its channels have no effect on the output"
_Places = tuple[Tensor, int, Tensor]
"""A weight, one of its dimensions, and indices along it."""


class _Pass:
    """A forward pass that stops at a step, and from there can be run to the output repeatedly."""

    def __init__(self, graph: Graph, network: nn.Module, images: Tensor) -> None:
        self.graph = graph
        self.runners = [runner(step, network) for step in graph.steps]
        self.last = {name: position for position, step in enumerate(graph.steps) for name in step.inputs}
        self.values = first_values(graph, images)
        self.position = 0

    def advance(self, position: int) -> None:
        """Run up to a step."""
        self.values = self._run(self.values, position)
        self.position = position

    def rest(self, point: str = "", mask: Tensor | None = None) -> Tensor:
        """Return the output (batch, ...), with the value at ``point`` multiplied by a mask (width,); the pass stays."""
        output: Tensor = self._run(dict(self.values), len(self.runners), point, mask)[self.graph.output]
        return output

    @torch.no_grad()
    def _run(self, values: dict[str, Any], end: int, point: str = "", mask: Tensor | None = None) -> dict[str, Any]:
        for position in range(self.position, end):
            step = self.graph.steps[position]
            value = self.runners[position](values)
            values[step.name] = value if step.name != point or mask is None else value * mask[:, None, None]
        kept = {self.graph.output, BATCH, LIKE}
        return {name: value for name, value in values.items() if name in kept or self.last.get(name, -1) >= end}


def _try(
    passing: _Pass, dense: Tensor, gate: Gate, off: Tensor, reading: list[_Places], making: list[_Places]
) -> str | None:
    """Return what is wrong with a gate, or None. The pass must stand before the gate's producer."""
    mask = torch.ones(gate.width).index_fill_(0, off, 0.0)
    masked = passing.rest(gate.point, mask)
    tolerance = _TOLERANCE * float(dense.abs().max())
    if not torch.isfinite(dense).all() or torch.allclose(masked, dense, rtol=0, atol=10 * tolerance):
        return _UNSEEN
    with _Changed(reading, 0.0):
        unread = passing.rest()
    if not torch.allclose(masked, unread, rtol=0, atol=tolerance):
        return "something besides its consumers depends on its channels"
    with _Changed(making, -3.0):
        other = passing.rest(gate.point, mask)
    if not torch.allclose(masked, other, rtol=0, atol=tolerance):
        return "its filters are used elsewhere too"
    return None


@torch.no_grad()
def _randomised(graph: Graph, network: nn.Module, generator: torch.Generator) -> nn.Module:
    """Give layers and norms random weights, at a scale at which signals neither fade nor grow."""
    for step in graph.steps:
        own = {key: attribute_of(network, a.path) for key, a in step.arguments.items() if isinstance(a, Attribute)}
        weight = own.get("weight")
        if step.operation == "batch_norm":
            for name in ("weight", "running_var"):
                if name in own:
                    own[name].uniform_(0.5, 1.5, generator=generator)
            for name in ("bias", "running_mean"):
                if name in own:
                    own[name].normal_(0, 0.3, generator=generator)
        elif weight is not None and weight.ndim > 1 and weight.is_floating_point():
            # He et al. 2015, equation 10: standard deviation sqrt(2 / inputs).
            weight.normal_(0, (2 / weight[0].numel()) ** 0.5, generator=generator)
            if "bias" in own:
                own["bias"].normal_(0, 0.2, generator=generator)
    return network


def columns(layout: Layout, gate: int, channels: Tensor) -> Tensor:
    """Return the indices (int64) of some of a gate's channels among the features of a value with that layout."""
    places, start = [], 0
    for block in layout:
        if block.gate == gate:
            first = start + channels * block.repeat
            places.append((first[:, None] + torch.arange(block.repeat)).flatten())
        start += block.width * block.repeat
    return torch.cat(places) if places else torch.zeros(0, dtype=torch.int64)


def _weight(network: nn.Module, step: Step) -> Tensor:
    assert step.kind in (Kind.CONV, Kind.DEPTHWISE, Kind.LINEAR)
    return attribute_of(network, step.weight).data


class _Changed:
    """Multiply rows or columns of weights by a factor, and restore them on exit."""

    def __init__(self, places: list[_Places], factor: float) -> None:
        self.places = places
        self.factor = factor

    def __enter__(self) -> None:
        self.saved = [weight.clone() for weight, _, _ in self.places]
        for weight, dimension, index in self.places:
            weight.index_copy_(dimension, index, weight.index_select(dimension, index) * self.factor)

    def __exit__(self, *exception: object) -> None:
        for (weight, _, _), saved in zip(self.places, self.saved, strict=True):
            weight.copy_(saved)
