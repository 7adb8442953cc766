"""Trying each gate before it is trusted: does masking a channel equal removing its filter?"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from prunegym.models.discovery import Gate, Layout, layouts
from prunegym.models.errors import UntraceableModelError
from prunegym.models.graph import Graph, Step, runner
from prunegym.models.operators import Kind

_TOLERANCE = 1e-4


def failing_gates(graph: Graph, network: nn.Module, gates: list[Gate], example: Tensor) -> list[tuple[Gate, str]]:
    """Return the gates that do not hold, each with the reason.

    For half of a gate's channels, chosen at random, three outputs have to agree: with the channels masked; with the
    weights zeroed that read them; with the channels masked and the filters that make them replaced by others. They
    are tried with weights drawn at random, since in a network as it comes (norms that start at zero, weights that fade
    with depth) hardly anything may reach the output, so that any gate would seem to hold; and with the network's own
    weights where the random ones show nothing either.

    Args:
        graph: The traced network.
        network: In eval mode; not changed.
        gates: Candidates.
        example: (1, channels, height, width) float.

    Raises:
        UntraceableModelError: If the network does not take a batch of two, or its output is random.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *example.shape[1:], generator=generator)
    own = copy.deepcopy(network).float()
    _check_batch(graph, own, images, type(network).__name__)
    found = layouts(graph, gates)
    trials = [(_randomised(copy.deepcopy(own), generator), generator.get_state()), (own, generator.get_state())]
    failing = []
    for index, gate in enumerate(gates):
        reason: str | None = None
        for trial, state in trials:
            draw = torch.Generator()
            draw.set_state(state)
            off = torch.randperm(gate.width, generator=draw)[: (gate.width + 1) // 2]
            reason = _try(graph, trial, images, gate, index, off, found)
            if reason != _UNSEEN:
                break
        if reason is not None:
            failing.append((gate, reason))
    return failing


_UNSEEN = "nothing that its channels do reaches the output"


def _try(
    graph: Graph, network: nn.Module, images: Tensor, gate: Gate, index: int, off: Tensor, found: dict[str, Layout]
) -> str | None:
    """Return what is wrong with a gate, or None."""
    mask = torch.ones(gate.width).index_fill_(0, off, 0.0)
    dense = _run(graph, network, images, "", mask)
    masked = _run(graph, network, images, gate.point, mask)
    tolerance = _TOLERANCE * float(dense.abs().max())
    if not torch.isfinite(dense).all() or torch.allclose(masked, dense, rtol=0, atol=10 * tolerance):
        return _UNSEEN
    with _changed(_reading_weights(graph, network, gate, index, found, off), 0.0):
        unread = _run(graph, network, images, "", mask)
    if not torch.allclose(masked, unread, rtol=0, atol=tolerance):
        return "something besides its consumers depends on its channels"
    with _changed(_making_weights(graph, network, gate, off), -3.0):
        other = _run(graph, network, images, gate.point, mask)
    if not torch.allclose(masked, other, rtol=0, atol=tolerance):
        return "its filters are used elsewhere too"
    return None


def _check_batch(graph: Graph, network: nn.Module, images: Tensor, name: str) -> None:
    """Raise UntraceableModelError unless the network takes a batch and gives the same output twice."""
    try:
        outputs = [_run(graph, network, images, "", images) for _ in range(2)]
    except Exception as error:
        raise UntraceableModelError(
            f"{name} takes one image but no batch of two ({type(error).__name__}: {error}). Sizes that are written into "
            "forward are the usual reason: use x.flatten(1) or x.size(0)."
        ) from error
    if not torch.allclose(*outputs, equal_nan=True):
        raise UntraceableModelError(
            f"{name} gives different outputs for the same images in eval mode. F.dropout without "
            "training=self.training is the usual reason."
        )


def _randomised(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw the weights of convolutions, linears and norms anew, at a scale at which signals neither fade nor grow."""
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.normal_(0, (2 / layer.weight[0].numel()) ** 0.5, generator=generator)
                if layer.bias is not None:
                    layer.bias.normal_(0, 0.2, generator=generator)
            elif isinstance(layer, nn.BatchNorm2d):
                for tensor in (layer.weight, layer.running_var):
                    if tensor is not None:
                        tensor.uniform_(0.5, 1.5, generator=generator)
                for tensor in (layer.bias, layer.running_mean):
                    if tensor is not None:
                        tensor.normal_(0, 0.3, generator=generator)
    return network


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


def _making_weights(
    graph: Graph, network: nn.Module, gate: Gate, off: Tensor
) -> Iterator[tuple[Tensor, int, Tensor]]:
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
    values = {graph.input: images.clone()}
    with torch.no_grad():
        for step in graph.steps:
            value = runner(step, network)(values)
            values[step.name] = value * mask.view(1, -1, 1, 1) if step.name == point else value
    return values[graph.output]
