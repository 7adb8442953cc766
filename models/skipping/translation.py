"""From a part of a program to a plan of the compiled kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from prunegym.models.gating.features import MaskFeatures
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.kernel import Plan
from prunegym.models.skipping.layer_translation import Translation
from prunegym.models.skipping.program.layers import (
    Conv,
    Layer,
    Linear,
    Program,
)
from prunegym.models.skipping.program.lowering import UnsupportedError

TranslationFactory = Callable[[Program, GatePolicy | None, float | None, MaskFeatures | None], Translation]
SMALLEST = 0.01
"""Share of the multiply-accumulates that a segment of the kernel has at least; smaller ones are left to torch, for
values are copied at each change."""


class Segment(NamedTuple):
    """Layers in a row that the kernel runs, or torch.

    Attributes:
        layers: The layers.
        reads: Names of the values from outside.
        makes: Names of the values that are needed afterwards.
        why: Why the kernel does not run them; empty if it does.
    """

    layers: tuple[Layer, ...]
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    why: str

    @property
    def in_kernel(self) -> bool:
        """Whether the kernel runs them."""
        return not self.why


class Translated(NamedTuple):
    """A plan, and for each of its layers the name of the program's layer, :data:`DECIDE` and a gate, or another."""

    plan: Plan
    parts: tuple[str, ...]


def segments(program: Program, policy: GatePolicy | None = None) -> list[Segment]:
    """Cut a program into parts for the kernel and for torch.

    Args:
        program: The network.
        policy: Decides gate by gate; None: masks are given.

    Raises:
        UnsupportedError: If there is nothing for the kernel, or it does not support the images or the policy's
            features.
    """
    trial = Translation(program, policy, None)
    trial.read((program.input,))
    reasons = [trial.add(layer) for layer in program.layers]
    macs = [macs_of(program, layer) for layer in program.layers]
    runs: list[list[int]] = []
    for place, reason in enumerate(reasons):
        if runs and bool(reasons[runs[-1][-1]]) == bool(reason):
            runs[-1].append(place)
        else:
            runs.append([place])
    for run in runs:
        if not reasons[run[0]] and sum(macs[place] for place in run) < SMALLEST * sum(macs):
            for place in run:
                reasons[place] = "so small a part is faster in torch."
    if all(reasons):
        place = max(range(len(macs)), key=macs.__getitem__)
        why = next(reason for reason in reasons[: place + 1][::-1] if reason)
        raise UnsupportedError(f"There is no layer with weights for the kernel: {why}")
    found: list[Segment] = []
    start = 0
    for place in range(1, len(reasons) + 1):
        if place < len(reasons) and bool(reasons[place]) == bool(reasons[start]):
            continue
        found.append(_segment(program, start, place, next((why for why in reasons[start:place] if why), "")))
        start = place
    return found


def _segment(program: Program, start: int, end: int, why: str) -> Segment:
    layers = program.layers[start:end]
    made = {layer.name: None for layer in layers}
    reads = {name: None for layer in layers for name in layer.inputs if name not in made}
    later = {name for layer in program.layers[end:] for name in layer.inputs} | {program.output}
    return Segment(layers, tuple(reads), tuple(name for name in made if name in later), why)


def macs_of(program: Program, layer: Layer) -> int:
    """Return the multiply-accumulates of a layer for one image, with all channels."""
    if not isinstance(layer, Conv | Linear):
        return 0
    return layer.weight.numel() * math.prod(program.shapes[layer.name][1:])


def translate(
    program: Program,
    policy: GatePolicy | None = None,
    penalty: float | None = None,
    variant: str | None = None,
    looks: MaskFeatures | None = None,
) -> Translated:
    """Build the kernel's plan of a whole program; see :func:`translate_part`.

    Raises:
        UnsupportedError: If the kernel is not available, or does not support the policy's features or a layer.
    """
    found = segments(program, policy)
    unknown = next((segment for segment in found if not segment.in_kernel), None)
    if unknown is not None:
        raise UnsupportedError(unknown.why)
    return translate_part(program, found[0], policy, penalty, variant, looks)


def translate_part(
    program: Program,
    segment: Segment,
    policy: GatePolicy | None = None,
    penalty: float | None = None,
    variant: str | None = None,
    looks: MaskFeatures | None = None,
    translation: TranslationFactory = Translation,
) -> Translated:
    """Build the kernel's plan of a segment. It reads and returns whole masks, and whole values.

    Args:
        program: The network.
        segment: A part of it for the kernel.
        policy: Decides gate by gate; None: masks are given to the plan.
        penalty: lambda, for a policy with a ``penalty_range``.
        variant: Of the kernel; None for the best.
        looks: Features that an agent outside decides by; the plan then stops before each decision.
        translation: Makes what layers are added to; by default they compute in float32.

    Raises:
        UnsupportedError: If the kernel is not available, or does not support the policy's features.
    """
    work = translation(program, policy, penalty, looks)
    before = program.layers[: program.layers.index(segment.layers[0])]
    work.begun.update(gate for layer in before for gate in layer.starts)
    work.read(segment.reads)
    for layer in segment.layers:
        why = work.add(layer)
        if why:
            raise UnsupportedError(why)
    outputs = [work.value(name) for name in segment.makes]
    parts = (*work.parts, *("store outputs" for _ in outputs))
    return Translated(work.builder.build(outputs, variant), parts)
