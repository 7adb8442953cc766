"""The check that a graph computes the same as its network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.errors import UntraceableModelError
from prunegym.models.masking.graph import INPUT, Graph, first_values, runner
from prunegym.models.masking.recording.recorder import record
from prunegym.models.masking.recording.tracing import Output, picked


@torch.no_grad()
def run(graph: Graph, network: nn.Module, images: Tensor) -> Tensor:
    """Return the output of the steps for images (batch, channels, height, width)."""
    values = first_values(graph, images)
    for step in graph.steps:
        values[step.name] = runner(step, network)(values)
    output: Tensor = values[graph.output]
    return output


def check_same(graph: Graph, network: nn.Module, output: Output) -> None:
    """Compare the graph with the network on noise, twice, with batches of one and two.

    Raises:
        UntraceableModelError: If they differ, with the first step that differs; if the output is random; or if it
            depends on the other images of the batch.
    """
    name = type(network).__name__
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, *graph[graph.input].shape[1:], generator=generator)
    images = images.to(next(network.parameters(), images).dtype)
    outputs = []
    for batch in (images, images[:1], images):
        with torch.no_grad():
            wanted = picked(network(batch.clone()), output, name)
        got = run(graph, network, batch)
        outputs.append(wanted)
        if not same(got, wanted):
            if not same(run(graph, network, batch), got):
                _refuse_random(name)
            raise UntraceableModelError(
                f"The recorded steps of {name} differ from those that it runs on a batch of {len(batch)}: "
                f"{_first_difference(graph, network, batch)} differs. A counter in forward, a branch on the size of "
                "the batch, or numbers made outside of torch are the usual reasons: write forward without them."
            )
    if not torch.allclose(outputs[0], outputs[2], equal_nan=True):
        _refuse_random(name)
    if outputs[0].shape[1:] != outputs[1].shape[1:] or not torch.allclose(
        outputs[0][:1], outputs[1], 1e-3, 1e-4, equal_nan=True
    ):
        raise UntraceableModelError(
            f"{name}'s output for an image depends on the other images in the batch, so images cannot have separate "
            "masks. A mean over the batch is the usual reason."
        )


def _refuse_random(name: str) -> None:
    raise UntraceableModelError(
        f"{name} gives different outputs for the same images in eval mode. F.dropout without "
        "training=self.training is the usual reason."
    )


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal up to rounding."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    finite = other[torch.isfinite(other)].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)


@torch.no_grad()
def _first_difference(graph: Graph, network: nn.Module, images: Tensor) -> str:
    """Return the first step at which the graph differs from the network's own pass."""
    own = record(copy.deepcopy(network), images, keep=True)
    values = first_values(graph, images)
    for step in graph.steps:
        values[step.name] = runner(step, network)(values)
        if step.shape and step.target != INPUT and not same(values[step.name], own.values.get(step.name)):
            return f"step {step}"
    return "the output"
