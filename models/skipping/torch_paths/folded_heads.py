"""A policy's decisions with as few operations as they take: what is constant is folded into the weights."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from prunegym.models.gating.features import CLIP, MaskFeatures
from prunegym.models.gating.gate_policy import GatePolicy, check_penalty
from prunegym.models.skipping.program.layers import Program
from prunegym.models.skipping.program.path import Decide

LAMBDAS = 4
"""Values of lambda for which folded heads are kept."""


class FoldedHead:
    """A gate's head, with standardisation and lambda in its first layer.

    On a small network each operation of a decision costs as much as a tenth of a convolution.

    Args:
        policy: Decides gate by gate.
        gate: Index of the gate.
        penalty: lambda, for a policy with a ``penalty_range``.
    """

    def __init__(self, policy: GatePolicy, gate: int, penalty: float | None) -> None:
        self.features: MaskFeatures = policy.features
        self.gate = gate
        mean, std = self.features.statistics(gate)
        weight, bias, last_weight, last_bias = policy.layers(gate, penalty)
        # W ((x - mean) / std) + b = (W / std) x + (b - (W / std) mean), and x is clipped instead of the quotient.
        folded = weight.double() / std.double()
        self.low, self.high = (mean - CLIP * std).float(), (mean + CLIP * std).float()
        self.weight, self.bias = folded.float(), (bias.double() - folded @ mean.double()).float()
        self.last_weight, self.last_bias = last_weight.float(), last_bias.float()

    def __call__(self, reads: Tensor) -> Tensor:
        """Return bits (batch, width) bool from the map that the producer reads (batch, channels, height, width)."""
        clipped = self.features.raw(self.gate, reads).float().clamp(self.low, self.high)
        hidden = F.linear(clipped, self.weight, self.bias).relu_()
        return F.linear(hidden, self.last_weight, self.last_bias) > 0


class Deciding:
    """Where the bits of a call come from.

    Args:
        program: The network.
        policy: Decides gate by gate; None: masks are given.
    """

    def __init__(self, program: Program, policy: GatePolicy | None) -> None:
        self._program, self._policy = program, policy
        self._heads = functools.lru_cache(LAMBDAS)(self._fold)
        if policy is not None:
            self._heads(None)  # so that weights which change later are not seen

    def start(self, mask: Tensor | None, penalty: float | None) -> Decide:
        """Return what tells each gate's bits: the mask (batch, mask_size) that is given, else the policy."""
        if mask is not None:
            parts = torch.split(mask, list(self._program.widths), dim=1)
            return lambda gate, _reads: parts[gate]
        heads = self._heads(penalty)
        return lambda gate, reads: heads[gate](reads)

    @torch.no_grad()
    def _fold(self, penalty: float | None) -> list[FoldedHead]:
        assert self._policy is not None
        if self._policy.penalty_range is None:
            check_penalty(None, penalty)
        return [FoldedHead(self._policy, gate, penalty) for gate in range(len(self._program.widths))]


def joined(bits: dict[int, Tensor], mask: Tensor | None) -> Tensor:
    """Return the masks that were used, (batch, mask_size) bool."""
    return mask if mask is not None else torch.cat([bits[gate] for gate in sorted(bits)], dim=1)
