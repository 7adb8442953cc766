"""Trying each gate before it is trusted: does masking a channel equal removing its filter?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from prunegym.models.discovery import Gate, Layout, layouts
from prunegym.models.graph import Graph, Step, runner
from prunegym.models.operators import Kind


def failing_gates(graph: Graph, network: nn.Module, gates: list[Gate], example: Tensor) -> list[tuple[Gate, str]]:
    """Return the gates that do not hold, each with the reason.

    For half of a gate's channels, chosen at random, three outputs have to agree: with the channels masked; with the
    weights zeroed that read them; with the channels masked and the filters that make them replaced by others.

    Args:
        graph: The traced network.
        network: In eval mode; its weights are changed during the call and restored.
        gates: Candidates.
        example: (1, channels, height, width) float.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *example.shape[1:], generator=generator)
    found = layouts(graph, gates)
    failing = []
    for index, gate in enumerate(gates):
        off = torch.randperm(gate.width, generator=generator)[: (gate.width + 1) // 2]
        mask = torch.ones(gate.width).index_fill_(0, off, 0.0)
        masked = _run(graph, network, images, gate.point, mask)
        tolerance = 1e-4 * max(1.0, float(masked.abs().max()))
        with _changed(_reading_weights(graph, network, gate, index, found, off), 0.0):
            unread = _run(graph, network, images, "", mask)
        with _changed(_making_weights(graph, network, gate, off), -3.0):
            other = _run(graph, network, images, gate.point, mask)
        if not torch.allclose(masked, unread, rtol=0, atol=tolerance):
            failing.append((gate, "something besides its consumers depends on its channels"))
        elif not torch.allclose(masked, other, rtol=0, atol=tolerance):
            failing.append((gate, "its filters are used elsewhere too"))
    return failing


def columns(layout: Layout, gate: int, channels: Tensor) -> Tensor:
    """Return the places (int64) of some of a gate's channels among the features of a value with that layout."""
    places, start = [], 0
    for block in layout:
        if block.gate == gate:
            first = start + channels * block.repeat
            places.append((first[:, None] + torch.arange(block.repeat)).flatten())
        start += block.width * block.repeat
    return torch.cat(places) if places else torch.zeros(0, dtype=torch.int64)


def _reading_weights(
    graph: Graph, network: nn.Module, gate: Gate, index: int, found: dict[str, Layout], off: Tensor
) -> Iterator[tuple[Tensor, int, Tensor]]:
    for name in gate.consumers:
        step = graph[name]
        yield _weight(network, step), 1, columns(found[step.inputs[0]], index, off)


def _making_weights(graph: Graph, network: nn.Module, gate: Gate, off: Tensor) -> Iterator[tuple[Tensor, int, Tensor]]:
    for name in gate.producers:
        yield _weight(network, graph[name]), 0, off


def _weight(network: nn.Module, step: Step) -> Tensor:
    assert step.kind in (Kind.CONV, Kind.DEPTHWISE, Kind.LINEAR)
    weight = network.get_submodule(step.target).weight
    assert isinstance(weight, Tensor)
    return weight.data


class _changed:
    """Multiply rows or columns of weights by a factor, and restore them."""

    def __init__(self, places: Iterator[tuple[Tensor, int, Tensor]], factor: float) -> None:
        self.places = list(places)
        self.factor = factor

    def __enter__(self) -> None:
        self.saved = [weight.clone() for weight, _, _ in self.places]
        for weight, dimension, index in self.places:
            weight.index_copy_(dimension, index, weight.index_select(dimension, index) * self.factor)

    def __exit__(self, *_: object) -> None:
        for (weight, _, _), saved in zip(self.places, self.saved, strict=True):
            weight.copy_(saved)


def _run(graph: Graph, network: nn.Module, images: Tensor, point: str, mask: Tensor) -> Tensor:
    values = {graph.input: images}
    with torch.no_grad():
        for step in graph.steps:
            value = runner(step, network)(values)
            values[step.name] = value * mask.view(1, -1, 1, 1) if step.name == point else value
    return values[graph.output]
