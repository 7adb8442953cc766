"""What the ways of running a masked CNN have in common: where masks come from, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.gating.rollouts import greedy, rollout
from prunegym.models.gating.static_policy import StaticPolicy
from prunegym.models.masking.masked_cnn import MaskedCNN

Policy = GatePolicy | StaticPolicy
Decide = Callable[[int, Tensor], Tensor]
"""From a gate's index and the map that its producer reads, (images, channels, height, width) with zeros where channels
are masked, to its bits (images, width) bool."""


class Executed(NamedTuple):
    """What came of a batch."""

    output: Tensor
    """The CNN's output (batch, ...)."""
    mask: Tensor
    """The masks that were used, (batch, mask_size) bool."""


class Path(Protocol):
    """A way of running a masked CNN."""

    def run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        """Run normalised images (batch, channels, height, width).

        Args:
            images: The images.
            mask: (batch, mask_size) bool; None lets the policy decide gate by gate.
            penalty: lambda, for a policy with a ``penalty_range``.
        """
        ...


def decides_gate_by_gate(policy: Policy | None) -> bool:
    """Whether each gate is decided by what its own producer reads; else masks are known before most layers run."""
    return isinstance(policy, GatePolicy) and all(len(decision.gates) == 1 for decision in policy.decisions)


def decide_first(masked: MaskedCNN, policy: Policy, images: Tensor, penalty: float | None) -> Tensor:
    """Return the masks (batch, mask_size) bool of a policy that decides all gates by what the first one reads."""
    if isinstance(policy, StaticPolicy):
        return (policy.mask_logits() > 0).expand(len(images), -1)
    reads = masked.begin(images).reads
    assert reads is not None
    return policy.logits(0, policy.features(0, reads), penalty) > 0


def decide_as_given(mask: Tensor, widths: tuple[int, ...]) -> Decide:
    """Return a function that deals out masks (images, mask_size) that are known already."""
    parts = torch.split(mask, list(widths), dim=1)
    return lambda gate, _reads: parts[gate]


class MaskedPath:
    """The masked CNN itself: every channel is computed, then multiplied by its bit. The reference for the others."""

    def __init__(self, masked: MaskedCNN, policy: Policy | None) -> None:
        self.masked, self.policy = masked, policy

    def run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        """See :class:`Path`."""
        if mask is not None:
            return Executed(self.masked(images, mask), mask)
        assert self.policy is not None
        done = rollout(self.masked, self.policy, images, greedy, penalty)
        return Executed(done.output, done.mask.bool())
