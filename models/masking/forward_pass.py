"""The forward pass in segments: it stops before each gate, and masks the channels there.

Masked channels are zero, even if their values are infinite or NaN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunegym import validation
from prunegym.errors import InvalidInputError
from prunegym.models.masking.gates import Found, Gate
from prunegym.models.masking.graph import Graph, Step, runner
from prunegym.models.masking.layouts import as_map, gate_map, places_of


class _Masked(torch.autograd.Function):
    """value * mask, but exactly 0 where the mask is 0, although 0 * inf is NaN. Gradients are those of the product."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, mask: Tensor) -> Tensor:
        return (value * mask).masked_fill_(mask == 0, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        value, mask = ctx.saved_tensors
        # The bit's own gradient stays the value where the bit is 0: straight-through training needs it.
        return gradient * mask, (gradient * value).sum_to_size(mask.shape)


def mask_channels(value: Tensor, mask: Tensor) -> Tensor:
    """Multiply values with their mask bits; a bit of 0 gives 0 even for infinite values and NaN.

    Args:
        value: A tensor of any shape.
        mask: Any numbers of the same type, in a shape that expands to the value's, e.g. (batch, channels, 1, 1).

    Returns:
        The product, with the value's shape and type, differentiable in both.
    """
    masked: Tensor = _Masked.apply(value, mask)  # type: ignore[no-untyped-call]
    return masked


@dataclasses.dataclass
class ForwardPass:
    """A forward pass of a batch that stops before the producer of each gate.

    Attributes:
        gate: Index of the next gate; ``len(masked.gates)`` when the pass is over.
        reads: Input of that gate's producer, (batch, channels, height, width); None when the pass is over.
        logits: The network's output (batch, ...) when the pass is over, otherwise None.
        points: If recorded, for each gate passed so far the channels before the mask, (batch, width, height, width).
    """

    gate: int
    reads: Tensor | None
    logits: Tensor | None
    values: dict[str, Tensor]
    masks: list[Tensor | None]
    points: dict[int, Tensor] | None


class Segments:
    """A network cut before the producer of each gate.

    Args:
        graph: Its steps.
        network: Its modules and weights.
        gates: Its gates, in the order in which their producers run.
        found: Where their bits are in the values.
    """

    def __init__(self, graph: Graph, network: nn.Module, gates: tuple[Gate, ...], found: Found) -> None:
        self.graph, self.gates = graph, gates
        self.places = places_of(gates, found.values)
        self._runners = [runner(step, network) for step in graph.steps]
        self._cuts = [0, *(graph.index[gate.producers[0]] for gate in gates), len(graph.steps)]
        last = {name: step for step, names in enumerate(s.inputs for s in graph.steps) for name in names}
        self._drop: list[list[str]] = [[] for _ in graph.steps]  # values that no later step reads
        for name, step in last.items():
            if name != graph.output:
                self._drop[step].append(name)

    def run(self, state: ForwardPass, compensated: Callable[[Step, Tensor, list[Tensor | None]], Tensor]) -> None:
        """Run a pass to the next gate, or to the output.

        Args:
            state: Changed in place.
            compensated: Adds to a step's output what replaces the masked channels that it reads.
        """
        values = state.values
        for position in range(self._cuts[state.gate + 1], self._cuts[state.gate + 2]):
            step = self.graph.steps[position]
            value = compensated(step, self._runners[position](values), state.masks)
            for point, bits in self.places.get(step.name, ()):
                mask = state.masks[point]
                if state.points is not None and point not in state.points:
                    state.points[point] = gate_map(value, bits, self.gates[point].width)
                if mask is not None:
                    value = mask_channels(value, bits.factors(mask.to(value.dtype), value))
            values[step.name] = value
            for name in self._drop[position]:
                del values[name]
        state.gate += 1
        if state.gate == len(self.gates):
            state.reads, state.logits = None, values[self.graph.output]
        else:
            state.reads = as_map(values[self.graph[self.gates[state.gate].producers[0]].inputs[0]])


def check_floats(images: Tensor) -> None:
    """Raise InvalidInputError unless images are a plain float tensor."""
    if not isinstance(validation.plain("The image tensor", images), Tensor) or not images.is_floating_point():
        given = images.dtype if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise InvalidInputError(
            f"The images are {given}; a float tensor, normalised, is needed, as dataset.batch(indices) returns it. "
            "DynamicCNN.predict takes images that are not normalised."
        )
