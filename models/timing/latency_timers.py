"""Timers of execution paths on one image, part by part, for measuring a latency table."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.gating.static_policy import Policy, StaticPolicy
from prunegym.models.masking.graph import Step
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.masking.operators import Kind
from prunegym.models.skipping.program.layers import Conv, Layer, Linear, Program
from prunegym.models.skipping.program.lowering import UnsupportedError, lower
from prunegym.models.skipping.program.path import DECIDE, Clock, ExecutionPath, decide_first, decides_gate_by_gate
from prunegym.models.skipping.skipping_cnn import PATHS
from prunegym.models.stopwatch import clock_for
from prunegym.validation import choice

CALL = "call"
"""The time in Python, before the first layer and after the last."""
Counts = tuple[float, ...]
"""(gates + 1,): channels for each kept channel of a gate, and those that always exist."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
TIMED = {path.name: path for path in PATHS if path.skips}
"""The execution paths that can be timed, by name."""


class Timer(Protocol):
    """Runs a masked CNN on one image, and times its parts.

    Attributes:
        name: Name of the execution.
        parts: Input and output channels of each part of the network.
    """

    name: str
    parts: dict[str, tuple[Counts, Counts]]

    def prepare(self, mask: Tensor) -> tuple[Callable[[], Mapping[str, float]], Callable[[], object]]:
        """Return for a mask (mask_size,) bool a function that times each part, and one that only runs."""

    def deciding(self, policy: GatePolicy) -> Callable[[], float]:
        """Return a function that runs one image with a policy, and returns the seconds of its decisions."""


class PathTimer:
    """Times an execution path; see :class:`Timer`.

    Data that the path stores for masks that come again exists before the clock starts.

    Args:
        kind: One of :data:`TIMED`.
        masked: The CNN.
        clock: Returns seconds; a path with its own clock counts wall time.

    Raises:
        InvalidInputError: If the path cannot run the network.
    """

    def __init__(self, kind: type[ExecutionPath], masked: MaskedCNN, clock: Clock = time.perf_counter) -> None:
        self._kind, self._masked, self._clock = kind, masked, clock
        self._image, self._program = masked_example(masked), _lowered(masked)
        self._path = self._made("network", None)
        self.name = self._path.label
        # Times that belong to no layer of the program, such as loading images, do not depend on the mask.
        every = torch.ones(1, masked.mask_size, dtype=torch.bool, device=self._image.device)
        nothing = (0.0,) * (len(masked.gates) + 1)
        parts = {CALL: (nothing, nothing)} | dict.fromkeys(self._path.timed(self._image, every), (nothing, nothing))
        layers = {layer.name: step_counts(masked, _step_of(masked, layer)) for layer in self._program.layers}
        self.parts = {name: layers.get(name, none) for name, none in parts.items()}

    def prepare(self, mask: Tensor) -> tuple[Callable[[], Mapping[str, float]], Callable[[], object]]:
        """See :class:`Timer`."""
        masks = mask[None].to(device=self._image.device, dtype=torch.bool)

        def run() -> object:
            return self._path.run(self._image, masks, None)

        def timed() -> dict[str, float]:
            start = self._clock()
            parts = self._path.timed(self._image, masks, None, self._clock)
            return {**parts, CALL: self._clock() - start - sum(parts.values())}

        for _ in range(2):  # when it runs again, gathered weights get the layout for masks that come again
            run()
        return timed, run

    def deciding(self, policy: GatePolicy) -> Callable[[], float]:
        """Time the path's own decisions, with all channels on.

        A policy that decides all gates at once runs before the path, on the input of the first gate's producer.

        Args:
            policy: The policy.

        Raises:
            InvalidInputError: If the path cannot run the policy.
        """
        if not decides_gate_by_gate(policy):
            return lambda: seconds_of(lambda: decide_first(self._masked, policy, self._image, None), self._clock)
        # The time depends on the channels kept before each gate, and the policy's masks for noise are not typical.
        generous = copy.deepcopy(policy)
        generous.rescale_logits(0, 1)
        path = self._made("policy", generous)

        def gate_by_gate() -> float:
            parts = path.timed(self._image, None, None, self._clock)
            return sum(seconds for name, seconds in parts.items() if name.startswith(DECIDE))

        return gate_by_gate

    def _made(self, what: str, policy: GatePolicy | None) -> ExecutionPath:
        try:
            return self._kind.make(self._masked, lambda: self._program, policy)
        except UnsupportedError as error:
            others = " or ".join(repr(name) for name in TIMED if name != self._kind.name)
            raise InvalidInputError(
                f"Execution {self._kind.name!r} cannot run this {what}: {error} Measure with execution {others}."
            ) from error


def _lowered(masked: MaskedCNN) -> Program:
    try:
        return lower(masked)
    except UnsupportedError as error:
        raise InvalidInputError(
            f"Masked channels of this network cannot be skipped, so there is nothing to measure: {error} Leave the "
            "gate out with MaskedCNN(..., gates=[...]), or use the reward 'macs'."
        ) from error


def seconds_of(work: Callable[[], object], clock: Clock) -> float:
    """Run a function and return the seconds that it took."""
    start = clock()
    work()
    return clock() - start


def clock_named(name: str, masked: MaskedCNN) -> Clock:
    """Return a clock of :data:`CLOCKS`; for a CNN on a CUDA device, one that waits for the GPU."""
    device = masked.device
    return clock_for(device) if device.type == "cuda" else CLOCKS[name]


def make_timer(execution: str, masked: MaskedCNN, clock: str = "wall") -> Timer:
    """Return the timer of an execution path by name.

    Args:
        execution: One of :data:`TIMED`.
        masked: The CNN.
        clock: One of :data:`CLOCKS`.

    Raises:
        UnknownNameError: If there is no such execution or clock.
        InvalidInputError: If the path cannot run the network, or has its own clock and another one is given.
    """
    kind = TIMED[choice("execution", execution, TIMED)]
    if choice("clock", clock, CLOCKS) != "wall" and kind.own_clock:
        raise InvalidInputError(f"Execution {execution!r} uses its own wall clock. Leave --clock out for it.")
    return PathTimer(kind, masked, clock_named(clock, masked))


def policy_timer(timer: Timer, policy: Policy) -> Callable[[], float]:
    """Return a function that gives the seconds in which a policy decides the mask of one image.

    Args:
        timer: Timer of the path that runs the CNN.
        policy: Its policy; a static one decides nothing.
    """
    return (lambda: 0.0) if isinstance(policy, StaticPolicy) else timer.deciding(policy)


def masked_example(masked: MaskedCNN) -> Tensor:
    """Return a normalised image of noise (1, channels, height, width) for a CNN, on its device."""
    shape = masked.graph[masked.graph.input].shape
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    return noise.to(masked.device)


def step_counts(masked: MaskedCNN, step: Step) -> tuple[Counts, Counts]:
    """Return the input and output channels of a step; if it treats channels one by one, they are its outputs."""
    gates = len(masked.gates)
    nothing = (0.0,) * (gates + 1)

    def counts(name: str) -> Counts:
        bits, shape = masked.found.values.get(name), masked.graph[name].shape
        index = torch.full((shape[1] if len(shape) > 1 else 1,), -1) if bits is None else bits.index
        return tuple(masked.found.counts(index).tolist())

    if step.kind in (Kind.CONV, Kind.LINEAR):
        return counts(step.inputs[0]), counts(step.name)
    sliced = [name for name in (step.name, *step.inputs) if any(counts(name)[:-1])]
    return nothing, counts(sliced[0]) if sliced else nothing


def _step_of(masked: MaskedCNN, layer: Layer) -> Step:
    """Return the step that reads a layer's input; its last step may be the sum or ReLU that was fused into it."""
    if isinstance(layer, Conv | Linear):
        return next(step for step in masked.graph.steps if layer.label in (step.layer, step.name))
    return masked.graph[layer.name]
