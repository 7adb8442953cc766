"""SkippingCNN: a masked CNN, with or without its policy, run by the path that is fastest on this machine."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.gating.gate_policy import GatePolicy, check_penalty
from prunegym.models.gating.static_policy import Policy
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.bfloat16_path import Bfloat16Path
from prunegym.models.skipping.int8_path import Int8Path
from prunegym.models.skipping.kernel_path import KernelPath
from prunegym.models.skipping.program.lowering import UnsupportedError, lower
from prunegym.models.skipping.program.path import (
    Executed,
    ExecutionPath,
    MaskedPath,
    check_outputs,
    decide_first,
    decides_gate_by_gate,
)
from prunegym.models.skipping.torch_paths.gather import GatherPath
from prunegym.models.skipping.torch_paths.torch_layers import FullPath
from prunegym.models.skipping.translation import macs_of
from prunegym.models.stopwatch import clock_for, settle
from prunegym.validation import bits, choice, shape

PATHS: tuple[type[ExecutionPath], ...] = (KernelPath, GatherPath, FullPath, MaskedPath, Int8Path, Bfloat16Path)
"""All execution paths. To add one, write its class and name it here."""

EXECUTIONS = ("auto", *(path.name for path in PATHS))
"""Names of the execution paths: ``kernel`` and ``torch`` skip masked channels; ``full`` computes all channels, with
norms folded; ``masked`` is :class:`MaskedCNN` itself; ``int8`` is ``kernel`` with convolutions on bytes, for which a
network is calibrated first; ``bfloat16`` is ``kernel`` with convolutions on bfloat16; ``auto`` takes the fastest of the
first three, measured on the first images."""

_MEASURED_IMAGES = 32
SHORTFALL = 0.2
"""Share of the multiply-accumulates from which it is said that they are computed for all channels."""


def prefer_kernel(masked: MaskedCNN, policy: Policy | None = None) -> SkippingCNN:
    """Return a CNN that runs in the kernel, or as :class:`MaskedCNN` if the kernel cannot; nothing is measured."""
    try:
        return SkippingCNN(masked, policy, KernelPath.name)
    except InvalidInputError:
        return SkippingCNN(masked, policy, MaskedPath.name)


class SkippingCNN:
    """Runs a masked CNN so that masked channels cost as little time as possible.

    All paths give the results of ``masked(images, mask)``, or of ``rollout(masked, policy, images)``, up to rounding.
    It is for inference: no gradients, eval mode. Weights are copied when it is created, so later changes are ignored.

    Args:
        masked: The CNN.
        policy: Decides the masks; None: they are given with the images.
        execution: One of :data:`EXECUTIONS`.

    Attributes:
        execution: The execution that was given.
        unavailable: For each path that cannot run this network here, the reason.
        choices: The path that ``auto`` chose for each size of batch, with the times.

    Raises:
        UnknownNameError: If there is no such execution.
        InvalidInputError: If the path cannot run this network here.

    Example:
        >>> from prunegym.models import build
        >>> masked = MaskedCNN(build("simple-cnn"), torch.zeros(1, 3, 32, 32))
        >>> fast = SkippingCNN(masked)
        >>> fast(torch.zeros(2, 3, 32, 32), torch.ones(2, 48)).output.shape
        torch.Size([2, 10])
    """

    def __init__(self, masked: MaskedCNN, policy: Policy | None = None, execution: str = "auto") -> None:
        self.execution = choice("execution", execution, EXECUTIONS)
        self.masked, self.policy = masked, policy
        self._shape, self._dtype = masked.image_shape, masked.dtype
        self.choices: list[ExecutionChoice] = []
        self.unavailable: dict[str, str] = {}
        self._gate_by_gate = decides_gate_by_gate(policy)
        self._paths: dict[str, ExecutionPath] = {}
        # A policy that decides all gates at once runs before the path; gate by gate it is part of the path.
        inside = policy if isinstance(policy, GatePolicy) and self._gate_by_gate else None
        program = functools.cache(functools.partial(lower, masked))
        for kind in PATHS:
            if execution != kind.name and (execution != "auto" or kind.rounds):
                continue
            try:
                path = kind.make(masked, program, inside)
                if kind is not MaskedPath and not kind.rounds:  # the reference itself, or too coarse to compare
                    check_outputs(path.run, masked, inside)
                self._paths[kind.name] = path
            except UnsupportedError as error:
                self.unavailable[kind.name] = str(error)
        if not self._paths:
            raise InvalidInputError(
                f"Execution {execution!r} cannot run this network here: {self.unavailable[execution]} "
                f"Use {MaskedPath.name!r}, or 'auto', which takes the fastest path that works."
            )

    @property
    def available(self) -> tuple[str, ...]:
        """Names of the paths that can run this network here."""
        return tuple(self._paths)

    def __call__(self, images: Tensor, mask: Tensor | None = None, penalty: float | None = None) -> Executed:
        """Run images.

        Args:
            images: (batch, channels, height, width) float, normalised, of the size that the CNN was built for.
            mask: (batch, mask_size) of 0 and 1, any dtype; None lets the policy decide, or without one keeps all.
            penalty: lambda, for a policy with a ``penalty_range``.

        Returns:
            The output (batch, ...) and the masks that were used.

        Raises:
            InvalidInputError: If a shape is wrong, a mask has other values, or the policy is not for this lambda.
        """
        self._check(images, mask)
        if penalty is not None and self.policy is not None:
            check_penalty(self.policy.penalty_range, penalty)
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self._run(images, mask, penalty)
        return self._run(images, mask, penalty)

    def _run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        if mask is None and self.policy is None:
            mask = torch.ones(len(images), self.masked.mask_size, dtype=torch.bool, device=images.device)
        elif mask is None and self.policy is not None and not self._gate_by_gate:  # all at once, before the path
            mask = decide_first(self.masked, self.policy, images, penalty)
        if mask is not None and (mask.dtype != torch.bool or mask.device != images.device):
            mask = mask.to(device=images.device, dtype=torch.bool)
        if len(images) == 0:
            return MaskedPath(self.masked, self.policy).run(images, mask, penalty)
        return self._paths[self.way(images, mask, penalty)].run(images, mask, penalty)

    @property
    def shortfall(self) -> str:
        """What keeps much of the network from being skipped, as a sentence; empty if little does."""
        kernel = self._paths.get(KernelPath.name)
        if not isinstance(kernel, KernelPath):
            if any(path.skips for path in self._paths.values()):
                return ""
            return f"No masked channel is skipped: {' '.join(self.unavailable.values())}"
        macs = {layer.name: macs_of(kernel.program, layer) for layer in kernel.program.layers}
        outside = {part.why: sum(macs[layer.name] for layer in part.layers) for part in kernel.segments if part.why}
        share = sum(outside.values()) / max(sum(macs.values()), 1)
        if share < SHORTFALL:
            return ""
        why = max(outside, key=outside.__getitem__)
        return f"{share:.0%} of the multiply-accumulates are computed for all channels, in torch. {why}"

    def path(self, name: str) -> ExecutionPath:
        """Return an available path by name."""
        return self._paths[name]

    def way(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> str:
        """Return the name of the path for a batch; ``auto`` measures if it has not done so for such a batch."""
        if self.execution != "auto":
            return self.execution
        size = min(len(images), _MEASURED_IMAGES)
        part = None if mask is None else mask[:size]
        masks = distinct(part)
        key = (size.bit_length(), torch.get_num_threads(), masks.bit_length())
        for earlier in self.choices:
            if earlier.key == key:
                return earlier.execution
        measured = {name: path for name, path in self._paths.items() if path.measured}
        self.choices.append(fastest_path(measured or self._paths, images[:size], part, penalty, masks))
        return self.choices[-1].execution

    def _check(self, images: Tensor, mask: Tensor | None) -> None:
        if not isinstance(images, Tensor) or images.dtype != self._dtype:
            given = images.dtype if isinstance(images, Tensor) else f"a {type(images).__name__}"
            raise InvalidInputError(f"Images are {given}; a tensor of normalised {self._dtype} is needed.")
        if images.shape[1:] != self._shape:  # the check itself takes longer, and a small network microseconds
            shape("Images", images, ("batch", *self._shape), "That is the size that the CNN was masked for.")
        if mask is not None:
            self.masked.check_mask(mask, len(images))
        if mask is not None and mask.dtype != torch.bool:
            bits("The mask", mask, "1 keeps a channel, 0 skips it.")


ROUNDS = 5
LONG = 0.2
"""Seconds. If the fastest path takes longer, it is run once after its warm-up, which is precise enough."""


Key = tuple[int, int, int]
"""Powers of two of the batch, threads, powers of two of the distinct masks."""


@dataclasses.dataclass(frozen=True)
class ExecutionChoice:
    """The path that was chosen for batches of a size, and the reason.

    Attributes:
        execution: The name of the path.
        seconds: The shortest time of each path, for one call with ``images`` images. Slow paths were run only once.
        images: Number of images in the measurement.
        threads: Threads of torch at that time.
        masks: Number of distinct masks of these images; 0 if the path decides the masks.
    """

    execution: str
    seconds: Mapping[str, float]
    images: int
    threads: int
    masks: int

    @property
    def key(self) -> Key:
        """The batches that the choice is for."""
        return self.images.bit_length(), self.threads, self.masks.bit_length()

    @property
    def reason(self) -> str:
        """The reason as one line of text."""
        ranked = sorted(self.seconds, key=self.seconds.__getitem__)
        times = ", ".join(f"{name} {1e3 * self.seconds[name]:.3g} ms" for name in ranked)
        return f"{self.execution} is the fastest of: {times} ({self.images} images, {self.threads} threads)"


def fastest_path(
    paths: Mapping[str, ExecutionPath], images: Tensor, mask: Tensor | None, penalty: float | None, masks: int
) -> ExecutionChoice:
    """Time all paths on some images.

    Args:
        paths: The paths by name.
        images: (batch, channels, height, width) float.
        mask: (batch, mask_size) bool, or None if the paths decide.
        penalty: lambda, for a policy that takes one.
        masks: See :attr:`ExecutionChoice.masks`.

    Returns:
        The fastest.
    """
    seconds: dict[str, list[float]] = {}
    for name, path in paths.items():
        path.run(images, mask, penalty)  # warms up
        seconds[name] = _times(path, images, mask, penalty, 1)
    best = min(values[0] for values in seconds.values())
    close = [name for name, values in seconds.items() if values[0] < min(2 * best, LONG)]
    for name in close if len(close) > 1 else ():
        seconds[name] += _times(paths[name], images, mask, penalty, ROUNDS)
    # The minimum, not the median: other work on the machine only adds to a time.
    shortest = {name: min(values) for name, values in seconds.items()}
    fastest = min(shortest, key=shortest.__getitem__)
    return ExecutionChoice(fastest, shortest, len(images), torch.get_num_threads(), masks)


def distinct(mask: Tensor | None) -> int:
    """Return the number of different masks (batch, mask_size) bool; 0 for None.

    Each row is compared by one number, a sum of random numbers over the kept channels. This runs for each batch, and
    comparing all bits would take longer.
    """
    if mask is None or len(mask) < 2:
        return 0 if mask is None else 1
    numbers = torch.rand(mask.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return len(torch.unique(mask.double() @ numbers.to(mask.device)))


def _times(path: ExecutionPath, images: Tensor, mask: Tensor | None, penalty: float | None, rounds: int) -> list[float]:
    if not images.is_cuda:
        settle(lambda: path.run(images, mask, penalty))
    clock, seconds = clock_for(images.device), []
    for _ in range(rounds):
        path.forget()  # the next images have other masks, so weights gathered for these must not speed up the next run
        start = clock()
        path.run(images, mask, penalty)
        seconds.append(clock() - start)
    return seconds
