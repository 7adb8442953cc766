"""Verification of gates: does masking a channel equal removing its filter?"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.models.masking.gates import Found
from prunegym.models.masking.graph import Attribute, Graph, attribute_of, first_values, runner

_TOLERANCE = 1e-4
_UNSEEN = "its channels have no effect on the output"


@torch.inference_mode(False)
@torch.enable_grad()
def failing_gates(graph: Graph, network: nn.Module, found: Found) -> dict[int, str]:
    """Return the gates that fail verification, each with the reason.

    For some random channels of each gate three outputs have to agree: with the channels masked; with zeros in their
    place in the inputs of layers; with the channels masked and random numbers in place of the outputs of their filters.
    All gates are tried at once, and one by one only if this fails.

    The weights are random at first. With a network's own weights (norms that start at zero, weights that decrease with
    depth), the effect of gates may hardly reach the output, and then every gate would pass. The network's own weights
    are used for gates whose effect does not reach the output with random ones.

    Args:
        graph: The network's steps.
        network: In eval mode; not changed.
        found: The gates to verify, and the bits of all values.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, *graph[graph.input].shape[1:], generator=generator)
    own = copy.deepcopy(network).float()
    unseen, wrong = set(range(len(found.gates))), dict[int, str]()
    for trial in (_randomised(graph, copy.deepcopy(own), generator), own):
        tried = _Trial(graph, trial, found, image, generator)
        seen = unseen & tried.seen()
        unseen -= seen
        if tried.fault(seen) is not None:
            wrong |= {gate: fault for gate in seen if (fault := tried.fault({gate})) is not None}
        if not unseen:
            break
    return wrong | dict.fromkeys(unseen, _UNSEEN)


class _Trial:
    """A network with some channels of each gate chosen to be off.

    Passes replace the values at points, at readers or at makers by others.
    """

    def __init__(
        self, graph: Graph, network: nn.Module, found: Found, image: Tensor, generator: torch.Generator
    ) -> None:
        self.graph, self.found, self.image = graph, found, image
        self.runners = [runner(step, network) for step in graph.steps]
        self.last = {name: position for position, step in enumerate(graph.steps) for name in step.inputs}
        parts = []
        for gate in found.gates:
            off = torch.zeros(gate.width)
            off[torch.randperm(gate.width, generator=generator)[: (gate.width + 7) // 8]] = 1
            parts.append(off)
        self.widths = [gate.width for gate in found.gates]
        self.off = torch.cat(parts)

    def seen(self) -> set[int]:
        """Return the gates whose mask has an effect on the output."""
        mask = torch.ones_like(self.off).requires_grad_()
        output = self._run(mask)
        if not torch.isfinite(output).all():
            return set()
        # All outputs at once, with different weights so that they do not cancel.
        weights = torch.linspace(0.5, 1.5, output.numel()).view(output.shape)
        if not output.requires_grad:
            return set()
        (gradient,) = torch.autograd.grad((output * weights).sum(), mask)
        scale = float(output.detach().abs().max())
        return {gate for gate, part in enumerate(torch.split(gradient, self.widths)) if part.abs().max() > 1e-6 * scale}

    def fault(self, gates: Collection[int]) -> str | None:
        """Return the problem that masking channels of some gates shows; None if there is none."""
        if not gates:
            return None
        chosen = torch.cat([torch.full((width,), float(gate in gates)) for gate, width in enumerate(self.widths)])
        off = self.off * chosen
        with torch.no_grad():
            masked = self._run(1 - off)
            scale = _TOLERANCE * float(masked.abs().max())
            if not torch.allclose(masked, self._run(None, reading=1 - off), rtol=0, atol=scale):
                return "something besides its consumers depends on its channels"
            if not torch.allclose(masked, self._run(1 - off, making=1 - 4 * off), rtol=0, atol=scale):
                return "its filters are used elsewhere too"
        return None

    def _run(self, mask: Tensor | None, reading: Tensor | None = None, making: Tensor | None = None) -> Tensor:
        """Return the output with factors (mask_size,) at points, on inputs of layers, and on their outputs."""
        values = first_values(self.graph, self.image)
        points = {point for gate in self.found.gates for point in gate.points}
        for position, step in enumerate(self.graph.steps):
            read = step.arguments.get("input")
            changed: dict[str, Any] = {}
            if reading is not None and step.name in self.found.reads and read is not None:
                changed[read.name] = self._scaled(values[read.name], read.name, reading)
            value = self.runners[position]({**values, **changed} if changed else values)
            if making is not None and step.name in self.found.makes:
                value = self._scaled(value, step.name, making)
            if mask is not None and step.name in points:
                value = self._scaled(value, step.name, mask)
            values[step.name] = value
            for name in step.inputs:
                if self.last[name] == position and name != self.graph.output:
                    values.pop(name, None)
        output: Tensor = values[self.graph.output]
        return output

    def _scaled(self, value: Tensor, name: str, factors: Tensor) -> Tensor:
        bits = self.found.values.get(name)
        return value if bits is None else value * bits.factors(factors[None], value)


@torch.no_grad()
def _randomised(graph: Graph, network: nn.Module, generator: torch.Generator) -> nn.Module:
    """Give layers and norms random weights, with a scale that keeps the size of signals constant."""
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
