"""Ways of running a masked CNN on one image, timed part by part: what a latency table is measured with."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.gating.static_policy import StaticPolicy
from prunegym.models.masking.gates import channel_counts
from prunegym.models.masking.graph import Step
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.masking.operators import Kind
from prunegym.models.skipping.kernel_path import shares_an_image, translate
from prunegym.models.skipping.program.layers import Conv, Layer, Linear, Program
from prunegym.models.skipping.program.lowering import UnsupportedError, lower
from prunegym.models.skipping.program.path import decide_first, decides_gate_by_gate
from prunegym.models.skipping.torch_paths.gather import GatherPath
from prunegym.models.stopwatch import clock_for

CALL = "call"
"""The part that is spent in Python, before the first layer and after the last."""
Clock = Callable[[], float]
Counts = tuple[float, ...]
"""(gates + 1,): channels for each kept channel of a gate, and those that are always there."""


class Timer(Protocol):
    """A way of running a masked CNN on one image, whose parts can be timed.

    Attributes:
        name: Of the execution.
        parts: For each part of the network the channels that it reads and makes.
    """

    name: str
    parts: dict[str, tuple[Counts, Counts]]

    def prepare(self, mask: Tensor) -> tuple[Callable[[], Mapping[str, float]], Callable[[], object]]:
        """Return for a mask (mask_size,) bool a function that times each part, and one that just runs."""


@runtime_checkable
class DecidingTimer(Protocol):
    """A timer whose way of running has its own way of deciding."""

    def deciding(self, policy: GatePolicy) -> Callable[[], float]:
        """Return a function that runs one image with a policy, and returns the seconds of deciding all its gates."""


class TorchTimer:
    """The torch path, its weights gathered before: what a mask costs that comes again, or is known beforehand.

    Raises:
        InvalidInputError: If the path cannot run the network.
    """

    name = "torch"

    def __init__(self, masked: MaskedCNN, clock: Clock = time.perf_counter) -> None:
        self._image, self._clock = masked_example(masked), clock
        program = _lowered(masked)
        self._path = GatherPath(program)
        self.parts = _parts(masked, program, [layer.name for layer in program.layers])

    def prepare(self, mask: Tensor) -> tuple[Callable[[], Mapping[str, float]], Callable[[], object]]:
        """Gather the weights; see :class:`Timer`."""
        masks = mask[None].to(device=self._image.device, dtype=torch.bool)

        def run() -> object:
            return self._path.run(self._image, masks, None)

        for _ in range(2):  # the second time they get the layout of weights that come again
            run()
        return _with_call(lambda: self._path.timed(self._image, masks, self._clock), self._clock), run


class KernelTimer:
    """The compiled kernel: it skips masked channels as it goes.

    Raises:
        MissingDependencyError: If the kernel is not built.
        InvalidInputError: If it lacks a layer of the network.
    """

    def __init__(self, masked: MaskedCNN) -> None:
        self._masked, self._image = masked, masked_example(masked).contiguous()
        self._program = _lowered(masked)
        try:
            self._plan = translate(self._program).plan
        except UnsupportedError as error:
            raise InvalidInputError(
                f"The compiled kernel cannot run this network: {error} Measure with execution 'torch'."
            ) from error
        self.name = f"kernel, {self._plan.variant}"
        first, *names, last = self._plan.layers
        nothing = _nothing(masked)
        self.parts = {first: nothing, **_parts(masked, self._program, names), last: nothing}

    def prepare(self, mask: Tensor) -> tuple[Callable[[], Mapping[str, float]], Callable[[], object]]:
        """See :class:`Timer`."""
        masks = mask[None]
        timed = _with_call(lambda: self._plan.timed(self._image, masks, self._threads()), time.perf_counter)
        return timed, (lambda: self._plan(self._image, masks, self._threads()))

    def _threads(self) -> int:
        """Return on how many threads the kernel runs one image of the network."""
        return torch.get_num_threads() if shares_an_image(self._program) else 1

    def deciding(self, policy: GatePolicy) -> Callable[[], float]:
        """Time the kernel's own deciding, with all channels on as the policy in torch is; see :class:`DecidingTimer`.

        A policy that decides all gates at once runs in torch, on what the first gate's producer reads, before the
        kernel does; that is what is timed then.

        Raises:
            InvalidInputError: If the policy looks at features that the kernel lacks.
        """
        if not decides_gate_by_gate(policy):
            return _seconds_of(lambda: decide_first(self._masked, policy, self._image, None), time.perf_counter)
        # What a gate looks at depends on the channels kept before it, and how a policy treats noise says little.
        generous = copy.deepcopy(policy)
        generous.rescale_logits(0, 1)
        try:
            plan, labels = translate(self._program, generous)
        except UnsupportedError as error:
            raise InvalidInputError(
                f"The compiled kernel cannot run this policy: {error} Measure with execution 'torch'."
            ) from error
        decides = [label.startswith("decide ") for label in labels]
        return lambda: sum(itertools.compress(plan.timed(self._image, None, self._threads()).values(), decides))


def _lowered(masked: MaskedCNN) -> Program:
    try:
        return lower(masked)
    except UnsupportedError as error:
        raise InvalidInputError(
            f"Masked channels of this network cannot be left out, so there is no time to measure: {error} Leave the "
            "gate out with MaskedCNN(..., gates=[...]), or use the reward 'macs'."
        ) from error


def _parts(masked: MaskedCNN, program: Program, names: Sequence[str]) -> dict[str, tuple[Counts, Counts]]:
    """Return what :attr:`Timer.parts` has of a program's layers, under other names, and of the call around them."""
    layers = zip(names, program.layers, strict=True)
    return {CALL: _nothing(masked), **{name: step_counts(masked, _step_of(masked, layer)) for name, layer in layers}}


def _nothing(masked: MaskedCNN) -> tuple[Counts, Counts]:
    counts = (0.0,) * (len(masked.gates) + 1)
    return counts, counts


def _with_call(timed: Callable[[], dict[str, float]], clock: Clock) -> Callable[[], dict[str, float]]:
    """Add to the times of layers what is spent before and after them."""

    def run() -> dict[str, float]:
        start = clock()
        parts = timed()
        return {**parts, CALL: clock() - start - sum(parts.values())}

    return run


EXECUTIONS = ("torch", "kernel")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def clock_named(name: str, masked: MaskedCNN) -> Clock:
    """Return a clock of :data:`CLOCKS`; for a CNN on a CUDA device one that waits for what it was asked to do."""
    device = masked.device
    return clock_for(device) if device.type == "cuda" else CLOCKS[name]


def make_timer(execution: str, masked: MaskedCNN, clock: str = "wall") -> Timer:
    """Return the timer of an execution by name: ``torch`` or ``kernel``.

    Raises:
        UnknownNameError: If there is none of that name, or no such clock.
        InvalidInputError: If the kernel is asked for the time of the processor.
    """
    if execution not in EXECUTIONS:
        raise UnknownNameError("execution", execution, EXECUTIONS)
    if clock not in CLOCKS:
        raise UnknownNameError("clock", clock, CLOCKS)
    if execution == "torch":
        return TorchTimer(masked, clock_named(clock, masked))
    if clock != "wall":
        raise InvalidInputError("The compiled kernel has a wall clock of its own. Leave --clock out for it.")
    return KernelTimer(masked)


def policy_timer(
    timer: Timer, masked: MaskedCNN, policy: GatePolicy | StaticPolicy, clock: Clock = time.perf_counter
) -> Callable[[], float]:
    """Return a function that gives the seconds in which a policy decides the mask of one image.

    Args:
        timer: The way of running; one without ``deciding`` leaves the policy to torch.
        masked: The CNN.
        policy: Its policy; a static one decides nothing.
        clock: For a policy in torch.
    """
    if isinstance(policy, StaticPolicy):
        return lambda: 0.0
    if isinstance(timer, DecidingTimer):
        return timer.deciding(policy)
    state, reads = masked.begin(masked_example(masked)), {}
    while state.reads is not None:
        reads[state.gate] = state.reads
        masked.advance(state, None)

    def decide() -> None:
        for index, decision in enumerate(policy.decisions):
            _ = policy.logits(index, policy.features(index, reads[decision.gates[0]])) > 0

    return _seconds_of(decide, clock)


def _seconds_of(run: Callable[[], object], clock: Clock) -> Callable[[], float]:
    def timed() -> float:
        start = clock()
        run()
        return clock() - start

    return timed


def masked_example(masked: MaskedCNN) -> Tensor:
    """Return a normalised image of noise (1, channels, height, width) that a CNN takes, where the CNN is."""
    shape = masked.graph[masked.graph.input].shape
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    return noise.to(masked.device)


def step_counts(masked: MaskedCNN, step: Step) -> tuple[Counts, Counts]:
    """Return the channels that a step reads and makes; one that treats them one by one counts as making them."""
    gates = len(masked.gates)
    nothing = (0.0,) * (gates + 1)

    def counts(name: str) -> Counts:
        return tuple(channel_counts(masked.layouts.get(name, ()), gates).tolist())

    if step.kind in (Kind.CONV, Kind.LINEAR):
        return counts(step.inputs[0]), counts(step.name)
    sliced = [name for name in (step.name, *step.inputs) if any(counts(name)[:-1])]
    return nothing, counts(sliced[0]) if sliced else nothing


def _step_of(masked: MaskedCNN, layer: Layer) -> Step:
    """Return the step that reads what a layer reads: its last one may be the sum or ReLU that was fused into it."""
    if isinstance(layer, Conv | Linear):
        return next(step for step in masked.graph.steps if layer.label in (step.target, step.name))
    return masked.graph[layer.name]
