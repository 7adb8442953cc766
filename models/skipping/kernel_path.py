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
from prunegym.models.skipping.program.path import DECIDE, Clock, Executed, ExecutionPath

KEPT_PLANS = 5

SHARED_FROM = 1e6
"""MACs of a network from which an image alone is shared among threads: they meet after each layer, which takes time."""


class Translated(NamedTuple):
    """A plan, and for each of its layers the name of the program's layer, :data:`DECIDE` and a gate, or another."""

    plan: Plan
    parts: tuple[str, ...]


class KernelPath(ExecutionPath):
    """Runs a program in the compiled kernel; masked channels are not computed.

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
        convolutions = (layer for layer in program.layers if isinstance(layer, Conv))
        macs = sum(layer.weight.numel() * math.prod(program.shapes[layer.name][1:]) for layer in convolutions)
        self._shared = macs >= SHARED_FROM

        # A policy for a range of lambdas has each one folded into its biases, so each has a plan; few are kept.
        # No reference to this object: it would keep the plans in memory until garbage is collected.
        @functools.lru_cache(KEPT_PLANS)
        def plan(decides: bool, penalty: float | None) -> Translated:
            return translate(program, policy if decides else None, penalty, variant)

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
        outputs, used = plan(images, mask, threads)
        return Executed(outputs.view(len(images), *self.program.output_shape), used)

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
        return dict(zip(parts, plan.timed(images, mask, threads).values(), strict=True))


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
    channels, height, width = program.shapes[program.input]
    try:
        builder = PlanBuilder(channels, height, width, program.widths)
    except InvalidInputError as error:
        raise UnsupportedError(f"The kernel does not take these images: {error}") from error
    values: dict[str, Value] = {program.input: builder.images}
    parts = ["load images"]
    stops = {} if looks is None else {decision.gates[0]: index for index, decision in enumerate(looks.decisions)}
    for layer in program.layers:
        try:
            if isinstance(layer, Conv) and layer.gate is not None and policy is not None:
                builder.decide(layer.gate, values[layer.inputs[0]], gate_head(policy, layer.gate, penalty))
                parts.append(f"{DECIDE}{layer.gate}")
            if looks is not None and isinstance(layer, Conv) and layer.gate in stops:
                stop = stops[layer.gate]
                builder.look(values[layer.inputs[0]], *looks.statistics(stop), **_in_kernel(looks, stop))
                parts.append(f"look {layer.gate}")
            values[layer.name] = _add(builder, layer, [values[name] for name in layer.inputs])
        except InvalidInputError as error:
            raise UnsupportedError(f"Layer {layer.label!r} is not in the kernel: {error}") from error
        parts.append(layer.name)
    output = values[program.output]
    if output.stride != 0 or output.gate is not None:
        raise UnsupportedError("The network returns a map, and the kernel vectors only.")
    return Translated(builder.build(output, variant), (*parts, "store outputs"))


def _add(builder: PlanBuilder, layer: Layer, inputs: list[Value]) -> Value:
    """Add a layer; raises InvalidInputError if the kernel has no such layer."""
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
        if layer.dilation != (1, 1):
            raise InvalidInputError(f"its dilation is {layer.dilation}.")
        stride, padding = _square(layer.stride), _square(layer.padding)
        return builder.conv(
            x, layer.weight, layer.bias, stride=stride, padding=padding, relu=layer.relu, gate=layer.gate,
            residual=second,
        )  # fmt: skip
    if isinstance(layer, MaxPool):
        kernel_size, stride, padding = map(_square, (layer.kernel, layer.stride, layer.padding))
        return builder.max_pool(x, kernel_size, stride, padding, relu=layer.relu)
    if isinstance(layer, Add):
        return builder.add(x, second, relu=layer.relu)
    if isinstance(layer, Subsample):
        return builder.subsample(x, _square(layer.stride), layer.channels, layer.offset)
    raise InvalidInputError("it is of another kind.")


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
