"""The base class of execution paths, with their inputs and results, and a check of the results."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.gating.static_policy import Policy, StaticPolicy, greedy, rollout
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.program.layers import Program
from prunegym.models.skipping.program.lowering import UnsupportedError

Clock = Callable[[], float]
"""Returns seconds."""
Decide = Callable[[int, Tensor], Tensor]
"""Takes a gate's index and the map that its producer reads, (images, channels, height, width) with zeros in masked
channels; returns its bits (images, width) bool."""
DECIDE = "decide "
"""Prefix of the names of decisions among the parts of :meth:`ExecutionPath.timed`; the gate's index follows."""
TOLERANCE = 1e-3
"""Largest error in float32, as a share of the largest output. Rounding errors are a hundred times smaller."""
ROUNDINGS = 8
"""The same for other types, as a multiple of the type's rounding error (``torch.finfo(dtype).eps``)."""


class Executed(NamedTuple):
    """The result of a batch."""

    output: Tensor
    """The CNN's output (batch, ...)."""
    mask: Tensor
    """The masks that were used, (batch, mask_size) bool."""

    @classmethod
    def of(cls, parts: Iterable[Executed]) -> Executed:
        """Return the results of the parts of a batch as one result."""
        return cls(*map(torch.cat, zip(*parts, strict=True)))


class ExecutionPath(ABC):
    """One way of running a masked CNN. :data:`prunegym.models.skipping.skipping_cnn.PATHS` lists them all.

    A path that cannot run a network, or a policy, raises ``UnsupportedError`` when it is made. Its message says why.

    Args:
        program: The network.
        policy: Decides gate by gate; None: masks are given.

    Attributes:
        name: Its name for users.
        skips: Whether masked channels take no time. Such a path has :meth:`timed`.
        measured: Whether ``auto`` considers it.
        rounds: Whether its results differ from the masked CNN's by more than float32's rounding. Then it runs only
            where it is asked for by name.
        own_clock: Whether :meth:`timed` ignores the clock that it is given, and counts wall time.
    """

    name: ClassVar[str]
    skips: ClassVar[bool] = False
    measured: ClassVar[bool] = True
    rounds: ClassVar[bool] = False
    own_clock: ClassVar[bool] = False

    def __init__(self, program: Program, policy: GatePolicy | None = None) -> None:
        self.program, self.policy = program, policy

    @classmethod
    def make(cls, masked: MaskedCNN, program: Callable[[], Program], policy: GatePolicy | None) -> Self:  # noqa: ARG003
        """Return the path for a CNN.

        Args:
            masked: The CNN.
            program: Returns its program, or raises ``UnsupportedError``.
            policy: Decides gate by gate; None: masks are given.

        Raises:
            UnsupportedError: If the path cannot run this here.
        """
        return cls(program(), policy)

    @property
    def label(self) -> str:
        """The name, with the variant if there are several."""
        return self.name

    def forget(self) -> None:  # noqa: B027
        """Drop data that is stored for masks that may come again; most paths store nothing."""

    @abstractmethod
    def run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        """Run normalised images (batch, channels, height, width).

        Args:
            images: The images.
            mask: (batch, mask_size) bool; None lets the policy decide gate by gate.
            penalty: lambda, for a policy with a ``penalty_range``.
        """

    def timed(
        self, images: Tensor, mask: Tensor | None, penalty: float | None = None, clock: Clock = time.perf_counter
    ) -> dict[str, float]:
        """Run as :meth:`run` does, and return the seconds spent in each part of the work.

        Args:
            images: See :meth:`run`.
            mask: See :meth:`run`.
            penalty: See :meth:`run`.
            clock: Returns seconds.

        Returns:
            Seconds by the name of a layer of the program, :data:`DECIDE` and a gate's index, or another name.
        """
        raise NotImplementedError(f"The path {self.name!r} does not time its layers.")


def decides_gate_by_gate(policy: Policy | None) -> bool:
    """Whether each gate is decided from its own producer's input; otherwise masks are known before most layers run."""
    return isinstance(policy, GatePolicy) and all(len(decision.gates) == 1 for decision in policy.decisions)


def decide_first(masked: MaskedCNN, policy: Policy, images: Tensor, penalty: float | None) -> Tensor:
    """Return the masks (batch, mask_size) bool of a policy that decides all gates from the first producer's input."""
    if isinstance(policy, StaticPolicy):
        return (policy.mask_logits() > 0).expand(len(images), -1)
    reads = masked.begin(images).reads
    assert reads is not None
    return policy.logits(0, policy.features(0, reads), penalty) > 0


class MaskedPath(ExecutionPath):
    """The masked CNN itself: every channel is computed, then multiplied by its bit. The reference for the others."""

    name = "masked"
    measured = False  # the same network with norms folded is faster

    def __init__(self, masked: MaskedCNN, policy: Policy | None) -> None:
        self.masked, self.decider = masked, policy

    @classmethod
    def make(cls, masked: MaskedCNN, program: Callable[[], Program], policy: GatePolicy | None) -> Self:  # noqa: ARG003
        """Return the path; it can run every CNN, and needs no program."""
        return cls(masked, policy)

    def run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        """See :class:`ExecutionPath`."""
        if mask is not None:
            return Executed(self.masked(images, mask), mask)
        assert self.decider is not None
        done = rollout(self.masked, self.decider, images, greedy, penalty)
        return Executed(done.output, done.mask.bool())


def check_outputs(
    run: Callable[[Tensor, Tensor | None, float | None], Executed], masked: MaskedCNN, policy: GatePolicy | None = None
) -> None:
    """Run two images of noise, and the masked CNN on the same images and masks.

    Args:
        run: Takes images, masks and lambda, as :meth:`prunegym.models.skipping.program.path.ExecutionPath.run` does.
        masked: The network.
        policy: Decides the masks gate by gate; None: half of the channels are masked.

    Raises:
        UnsupportedError: If it fails, or gives other outputs than the masked CNN.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *masked.image_shape, generator=generator).to(masked.device, masked.dtype)
    mask = None if policy else (torch.rand(2, masked.mask_size, generator=generator) < 0.5).to(masked.device)
    # Under autocast the two would differ by its rounding.
    with torch.no_grad(), torch.autocast(masked.device.type, enabled=False):
        try:
            found = run(images, mask, None)
        except RuntimeError as error:
            raise UnsupportedError(f"It fails on this network: {' '.join(str(error).split())}") from error
        expected = masked(images, found.mask)
    check_close(found.output, expected)


def check_close(output: Tensor, expected: Tensor) -> None:
    """Raise ``UnsupportedError`` if an output differs by more than rounding from the masked CNN's."""
    if output.shape != expected.shape:
        shapes = f"{tuple(output.shape)}, the masked CNN {tuple(expected.shape)}"
        raise UnsupportedError(f"It gives outputs of shape {shapes}.")
    # The largest error over the largest output, max |y - y'| / max |y'|.
    difference = float((output - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    if not difference <= max(TOLERANCE, ROUNDINGS * torch.finfo(expected.dtype).eps):
        raise UnsupportedError(f"Its outputs differ from the masked CNN's by {difference:.2g} of the largest output.")
