"""Verification of gates: does masking a channel equal removing its filter?"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.errors import UntraceableModelError
from prunegym.models.masking.gates import Gate, Layout, layouts
from prunegym.models.masking.graph import Graph, Step, runner
from prunegym.models.masking.operators import Kind

_TOLERANCE = 1e-4


def failing_gates(graph: Graph, network: nn.Module, gates: list[Gate], example: Tensor) -> list[tuple[Gate, str]]:
    """Return the gates that fail verification, each with the reason.

    For a random half of a gate's channels three outputs have to agree: with the channels masked; with the weights that
    read them set to zero; with the channels masked and their filters replaced by others.

    The weights are random at first. With a network's own weights (norms that start at zero, weights that fade with
    depth) hardly anything may reach the output, and then every gate would pass. The network's own weights are used
    for gates whose effect does not reach the output with random ones.

    Args:
        graph: The traced network.
        network: In eval mode; not changed.
        gates: The gates to verify.
        example: (1, channels, height, width) float.

    Raises:
        UntraceableModelError: If the network does not take a batch of two, its output is random or depends on the
            other images of the batch, or the traced steps give another output than the network.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *example.shape[1:], generator=generator)
    own = copy.deepcopy(network).float()
    _check_batch(graph, own, images, type(network).__name__)
    found = layouts(graph, gates)
    channels = [torch.randperm(gate.width, generator=generator)[: (gate.width + 1) // 2] for gate in gates]
    reasons: list[str | None] = [_UNSEEN] * len(gates)
    for trial in (_randomised(copy.deepcopy(own), generator), own):
        passing = _Pass(graph, trial, images[:1])
        dense = passing.rest()
        if trial is not own:  # the random weights show what zeros among the network's own hide
            _check_same(graph, trial, images[:1], dense, type(network).__name__)
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
        self.values = {graph.input: images.clone()}
        self.position = 0

    def advance(self, position: int) -> None:
        """Run up to a step."""
        self.values = self._run(self.values, position)
        self.position = position

    def rest(self, point: str = "", mask: Tensor | None = None) -> Tensor:
        """Return the output (batch, ...), with the value at ``point`` multiplied by a mask (width,); the pass stays."""
        # In-place operations overwrite a copy; in it, values that are views of each other remain so.
        output: Tensor = self._run(copy.deepcopy(self.values), len(self.runners), point, mask)[self.graph.output]
        return output

    @torch.no_grad()
    def _run(self, values: dict[str, Any], end: int, point: str = "", mask: Tensor | None = None) -> dict[str, Any]:
        for position in range(self.position, end):
            step = self.graph.steps[position]
            value = self.runners[position](values)
            values[step.name] = value if step.name != point or mask is None else value * mask[:, None, None]
        kept = {self.graph.output}
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


def _check_batch(graph: Graph, network: nn.Module, images: Tensor, name: str) -> None:
    """Raise UntraceableModelError unless a network takes a batch, treats images separately, and is what was traced."""
    try:
        first, again = (_Pass(graph, network, images).rest() for _ in range(2))
        alone = _Pass(graph, network, images[:1]).rest()
    except Exception as error:
        raise UntraceableModelError(
            f"{name} takes one image but not a batch of two ({type(error).__name__}: {error}). Fixed sizes in forward "
            "are the usual reason: use x.flatten(1) or x.size(0)."
        ) from error
    if not torch.allclose(first, again, equal_nan=True):
        raise UntraceableModelError(
            f"{name} gives different outputs for the same images in eval mode. F.dropout without "
            "training=self.training is the usual reason."
        )
    _check_same(graph, network, images, first, name)
    if first.shape[1:] != alone.shape[1:] or not torch.allclose(first[:1], alone, 1e-3, 1e-4, equal_nan=True):
        raise UntraceableModelError(
            f"{name}'s output for an image depends on the other images in the batch, so images cannot have separate "
            "masks. A mean over the batch is the usual reason."
        )
    _check_same(graph, network, images[:1], alone, name)


@torch.no_grad()
def _output(network: nn.Module, images: Tensor) -> Tensor:
    """Return what a network gives for images, which it may overwrite."""
    output: Tensor = network(images.clone())
    return output


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal, but for rounding."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other)
    if one.shape != other.shape:
        return False
    finite = other[torch.isfinite(other)].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)


def _check_same(graph: Graph, network: nn.Module, images: Tensor, traced: Tensor, name: str) -> None:
    """Raise UntraceableModelError unless the traced steps give what the network itself gives for images.

    Args:
        graph: The traced steps.
        network: The network.
        images: (batch, channels, height, width).
        traced: What the steps gave.
        name: The network's, for messages.
    """
    if _same(traced, _output(network, images)):
        return
    raise UntraceableModelError(
        f"torch.fx traced other steps in {name} than it runs on a batch of {len(images)}: "
        f"{_first_difference(graph, network, images)}. A branch on the type of the input, an operation in place on a "
        "value that is also read by another name or as a view, or a counter in forward are the usual reasons: write "
        "forward without them (x = x + y in place of x += y), or mark the function with torch.fx.wrap."
    )


@torch.no_grad()
def _first_difference(graph: Graph, network: nn.Module, images: Tensor) -> str:
    """Say at which layer the traced steps first differ from the network's own pass."""
    calls: dict[str, list[tuple[Any, Any]]] = {}

    def remember(path: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls.setdefault(path, []).append(copy.deepcopy((args[0] if args else None, output)))

        return hook

    layers = {step.target for step in graph.steps if step.op == "module"}
    handles = [network.get_submodule(path).register_forward_hook(remember(path)) for path in sorted(layers)]
    try:
        network(images.clone())
    finally:
        for handle in handles:
            handle.remove()
    values: dict[str, Any] = {graph.input: images.clone()}
    before = "the input"
    for step in graph.steps:
        reads = copy.deepcopy(values.get(step.inputs[0])) if step.inputs else None
        values[step.name] = runner(step, network)(values)
        if step.op != "module":
            continue
        if not calls.get(step.target):
            return f"layer {step.target!r} is not called there"
        read, made = calls[step.target].pop(0)
        if not _same(reads, read):
            return f"between {before} and layer {step.target!r}, which reads other values"
        if not _same(values[step.name], made) and not list(network.get_submodule(step.target).children()):
            return f"layer {step.target!r} gives other values"
        before = f"layer {step.target!r}"
    return f"between {before} and the output"


def _randomised(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """Give convolutions, linears and norms random weights, at a scale at which signals neither fade nor grow."""
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                # He et al. 2015, equation 10: standard deviation sqrt(2 / inputs).
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
    weight = network.get_submodule(step.target).weight
    assert isinstance(weight, Tensor)
    return weight.data


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
