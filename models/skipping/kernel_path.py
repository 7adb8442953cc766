"""Running a program, and a policy gate by gate, in the compiled kernel."""

from __future__ import annotations

import functools
import math
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models import kernel
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.kernel import GateHead, Plan, PlanBuilder, Value
from prunegym.models.skipping.program.layers import Add, Average, Conv, Layer, Linear, MaxPool, Pair, Program, Subsample
from prunegym.models.skipping.program.lowering import UnsupportedError
from prunegym.models.skipping.program.parts import columns_of, gates_of, part_of
from prunegym.models.skipping.program.path import DECIDE, Clock, Executed, ExecutionPath
from prunegym.models.skipping.torch_paths.torch_layers import FullPath

KEPT_PLANS = 5

SHARED_FROM = 1e6
"""MACs of a network from which an image alone is shared among threads: they meet after each layer, which takes time."""


class Translated(NamedTuple):
    """A plan, and for each of its layers the name of the program's layer, :data:`DECIDE` and a gate, or another."""

    plan: Plan
    parts: tuple[str, ...]


class _NotInKernelError(UnsupportedError):
    """A layer that the kernel does not know."""

    def __init__(self, layer: Layer, why: Exception) -> None:
        super().__init__(f"Layer {layer.label!r} is not in the kernel: {why}")
        self.layer = layer


class Segments(NamedTuple):
    """A program in three parts: what torch runs first, what the kernel runs, and what torch runs last."""

    head: Program | None
    middle: Program
    end: Program | None


def segments(program: Program, policy: GatePolicy | None = None, variant: str | None = None) -> Segments:
    """Find a part of a program that the kernel can run, one with many of the multiply-accumulates.

    Raises:
        UnsupportedError: If there is none.
    """
    macs = [
        layer.weight.numel() * math.prod(program.shapes[layer.name][1:]) if isinstance(layer, Conv | Linear) else 0
        for layer in program.layers
    ]

    def found(start: int, end: int) -> Segments:
        middle = part_of(program, start, end)
        if not sum(macs[start:end]):
            raise UnsupportedError("There is no layer with weights for the kernel.")
        if middle is None:
            return found(start + 1, end)
        try:
            translate(middle, policy, None, variant)
        except _NotInKernelError as error:
            place = program.layers.index(error.layer)
            cuts = [(start, place), (place + 1, end)]
            cuts.sort(key=lambda cut: -sum(macs[slice(*cut)]))
            for cut in cuts:
                try:
                    return found(*cut)
                except UnsupportedError:
                    continue
            raise
        head = part_of(program, 0, start) if start else None
        return Segments(head, middle, part_of(program, end, len(program.layers)) if end < len(program.layers) else None)

    return found(0, len(program.layers))


class KernelPath(ExecutionPath):
    """Runs a program in the compiled kernel; masked channels are not computed.

    What the kernel does not know runs in torch with every channel, before or after the part that it runs.

    Args:
        program: The network, float32 on the CPU.
        policy: Decides gate by gate in the kernel; None: masks are given.
        variant: Of the kernel; None for the best.

    Raises:
        UnsupportedError: If the kernel is not available, or lacks a layer or the policy's features.
    """

    name = "kernel"
    skips = True
    own_clock = True

    def __init__(self, program: Program, policy: GatePolicy | None = None, variant: str | None = None) -> None:
        super().__init__(program, policy)
        head, middle, end = segments(program, policy, variant)
        self._parts = [None if part is None else FullPath(part, policy) for part in (head, end)]
        self._middle, self._columns = middle, columns_of(middle)
        convolutions = (layer for layer in middle.layers if isinstance(layer, Conv))
        macs = sum(layer.weight.numel() * math.prod(program.shapes[layer.name][1:]) for layer in convolutions)
        self._shared = macs >= SHARED_FROM

        # A policy for a range of lambdas has each one folded into its biases, so each has a plan; few are kept.
        # No reference to this object: it would keep the plans in memory until garbage is collected.
        @functools.lru_cache(KEPT_PLANS)
        def plan(decides: bool, penalty: float | None) -> Translated:
            return translate(middle, policy if decides else None, penalty, variant)

        self._plan = plan
        self._plan(policy is not None, None)

    @property
    def label(self) -> str:
        """The name, and the variant of the kernel."""
        return f"{self.name}, {self._plan(self.policy is not None, None).plan.variant}"

    def run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        """See :class:`~prunegym.models.skipping.program.path.ExecutionPath`."""
        plan = self._plan(mask is None, penalty if mask is None else None).plan
        threads = None if self._shared or len(images) > 1 else 1
        if self._parts == [None, None]:
            outputs, used = plan(images, mask, threads)
            return Executed(outputs.view(len(images), *self.program.output_shape), used)
        used = torch.zeros(len(images), sum(self.program.widths), dtype=torch.bool) if mask is None else mask
        value = self._in_torch(0, images, mask, penalty, used)
        outputs, bits = plan(value, None if mask is None else mask[:, self._columns].contiguous(), threads)
        if mask is None:
            used[:, self._columns] = bits
        value = self._in_torch(1, outputs.view(len(images), *self._middle.output_shape), mask, penalty, used)
        return Executed(self.program.shaped(value), used)

    def _in_torch(self, place: int, value: Tensor, mask: Tensor | None, penalty: float | None, used: Tensor) -> Tensor:
        """Run the head (0) or the end (1), and note the bits that are decided there."""
        part = self._parts[place]
        if part is None:
            return value
        columns = columns_of(part.program)
        done = part.run(value, used if len(columns) == 0 else mask, penalty)
        if mask is None and len(columns):
            used[:, columns] = done.mask
        return done.output

    def timed(
        self,
        images: Tensor,
        mask: Tensor | None,
        penalty: float | None = None,
        clock: Clock = time.perf_counter,  # noqa: ARG002
    ) -> dict[str, float]:
        """See :class:`~prunegym.models.skipping.program.path.ExecutionPath`; several images run on one thread."""
        plan, parts = self._plan(mask is None, penalty if mask is None else None)
        threads = torch.get_num_threads() if self._shared and len(images) == 1 else 1
        if self._parts == [None, None]:
            return dict(zip(parts, plan.timed(images, mask, threads).values(), strict=True))
        used = torch.ones(1, sum(self.program.widths), dtype=torch.bool) if mask is None else mask
        started = time.perf_counter()
        value = self._in_torch(0, images, used, penalty, used)
        seconds = {"torch, before the kernel": time.perf_counter() - started}
        own = None if mask is None else mask[:, self._columns].contiguous()
        return seconds | dict(zip(parts, plan.timed(value, own, threads).values(), strict=True))


def translate(
    program: Program,
    policy: GatePolicy | None = None,
    penalty: float | None = None,
    variant: str | None = None,
    looks: MaskFeatures | None = None,
) -> Translated:
    """Build the kernel's plan of a program.

    Args:
        program: The network.
        policy: Decides gate by gate; None: masks are given to the plan.
        penalty: lambda, for a policy with a ``penalty_range``.
        variant: Of the kernel; None for the best.
        looks: Features that an agent outside decides by; the plan then stops before each decision.

    Raises:
        UnsupportedError: If the kernel is not available, or lacks a layer or the policy's features.
    """
    if not kernel.available():
        raise UnsupportedError(f"The compiled kernel is not available: {kernel.unavailable_reason()}.")
    if any(isinstance(layer, Conv | Linear) and layer.constants is not None for layer in program.layers):
        raise UnsupportedError("The kernel does not add constants of masked channels.")
    if len(program.shapes[program.input]) != 3:
        raise UnsupportedError("The kernel begins with maps.")
    channels, height, width = program.shapes[program.input]
    gates = gates_of(program)
    numbers = {gate: number for number, gate in enumerate(gates)}
    try:
        heads = {} if policy is None else {gate: gate_head(policy, gate, penalty) for gate in gates}
    except InvalidInputError as error:
        raise UnsupportedError(f"The policy is not in the kernel: {error}") from error
    try:
        builder = PlanBuilder(channels, height, width, tuple(program.widths[gate] for gate in gates))
    except InvalidInputError as error:
        raise UnsupportedError(f"The kernel does not take these images: {error}") from error
    values: dict[str, Value] = {program.input: builder.images}
    parts, made = ["load images"], set[int]()
    stops = {} if looks is None else {decision.gates[0]: index for index, decision in enumerate(looks.decisions)}
    for layer in program.layers:
        try:
            _check_gates(program, layer, made)
            if isinstance(layer, Conv) and layer.gate is not None and policy is not None:
                builder.decide(numbers[layer.gate], values[layer.inputs[0]], heads[layer.gate])
                parts.append(f"{DECIDE}{layer.gate}")
            if looks is not None and isinstance(layer, Conv) and layer.gate in stops:
                stop = stops[layer.gate]
                builder.look(values[layer.inputs[0]], *looks.statistics(stop), **_in_kernel(looks, stop))
                parts.append(f"look {layer.gate}")
            values[layer.name] = _add(builder, layer, [values[name] for name in layer.inputs], numbers)
        except InvalidInputError as error:
            raise _NotInKernelError(layer, error) from error
        parts.append(layer.name)
    output = values[program.output]
    if output.stride != 0 or output.gate is not None:
        raise UnsupportedError("The network returns a map, and the kernel vectors only.")
    return Translated(builder.build(output, variant), (*parts, "store outputs"))


def _add(builder: PlanBuilder, layer: Layer, inputs: list[Value], numbers: dict[int, int]) -> Value:
    """Add a layer; raises InvalidInputError if the kernel has no such layer."""
    if not inputs:
        raise InvalidInputError("it reads no value of the image, as where a weight is computed.")
    x, second = inputs[0], inputs[1] if len(inputs) > 1 else None
    own = layer.weight if isinstance(layer, Conv | Linear) else None
    if own is not None and (own.dtype != torch.float32 or own.device.type != "cpu"):
        raise InvalidInputError(f"its weights are {own.dtype} on {own.device}, not float32 on the CPU.")
    if isinstance(layer, Linear):
        return builder.linear(x, layer.weight, layer.bias, relu=layer.relu)
    if isinstance(layer, Average):
        return builder.average(x) if x.stride else x
    if x.stride == 0:
        raise InvalidInputError("it reads a vector, and the kernel has linear layers alone for those.")
    if isinstance(layer, Conv):
        if layer.dilation != (1, 1) or layer.groups > 1:
            raise InvalidInputError(f"its dilation is {layer.dilation}, its groups are {layer.groups}.")
        stride, padding = _square(layer.stride), _square(layer.padding)
        return builder.conv(
            x, layer.weight, layer.bias, stride=stride, padding=padding, relu=layer.relu, residual=second,
            gate=None if layer.gate is None else numbers[layer.gate],
        )  # fmt: skip
    if isinstance(layer, MaxPool):
        kernel_size, stride, padding = map(_square, (layer.kernel, layer.stride, layer.padding))
        return builder.max_pool(x, kernel_size, stride, padding, relu=layer.relu)
    if isinstance(layer, Add):
        return builder.add(x, second, relu=layer.relu)
    if isinstance(layer, Subsample):
        return builder.subsample(x, _square(layer.stride), layer.channels, layer.offset)
    raise InvalidInputError("it is of another kind.")


def _check_gates(program: Program, layer: Layer, made: set[int]) -> None:
    """Raise InvalidInputError unless the gates of a layer are made by one convolution each."""
    own = layer.gate if isinstance(layer, Conv) else None
    if layer.starts and layer.starts != (own,):
        raise InvalidInputError("its gate is on several layers, on a part of its channels or on a linear layer.")
    made.update(layer.starts)
    if {gate for gate, _ in program.points.get(layer.name, ())} - made:
        raise InvalidInputError("a gate that begins before it is masked there.")


def _square(pair: Pair) -> int:
    if pair[0] != pair[1]:
        raise InvalidInputError(f"rows and columns differ ({pair}).")
    return pair[0]


def gate_head(policy: GatePolicy, gate: int, penalty: float | None = None) -> GateHead:
    """Return what the kernel needs to decide a gate as the policy does.

    Args:
        policy: Decides gate by gate.
        gate: Index of the gate.
        penalty: lambda, for a policy with a ``penalty_range``.

    Raises:
        InvalidInputError: If the kernel does not know a feature.
    """
    features = policy.features
    return GateHead(*features.statistics(gate), *policy.layers(gate, penalty), **_in_kernel(features, gate))


def _in_kernel(features: MaskFeatures, decision: int) -> dict[str, Any]:
    """Return how the kernel computes the features of a decision."""
    found: dict[str, Any] = {"average": False, "grid": 0}
    for feature in features.kinds[decision]:
        found |= feature.kernel()
    return found
