"""Running images through a CNN while a policy decides its gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from prunegym.models.gating.static_policy import Policy
from prunegym.models.masking.masked_cnn import MaskedCNN

Choose = Callable[[Tensor], Tensor]
"""Maps the logits of a decision (batch, width) to its mask bits (batch, width) float."""


def greedy(logits: Tensor) -> Tensor:
    """Keep the channels with a positive logit."""
    return (logits > 0).to(logits.dtype)


class StraightThrough:
    """Choose bits and pass the gradient through the sigmoid (Bengio et al. 2013; Gumbel noise: Maddison et al. 2017).

    Args:
        generator: Source of the noise; None decides without noise.
        temperature: Temperature of the sigmoid; the noise is scaled with it.
    """

    def __init__(self, generator: torch.Generator | None = None, temperature: float = 1.0) -> None:
        self.generator = generator
        self.temperature = temperature

    def __call__(self, logits: Tensor) -> Tensor:
        """Return bits (batch, width) with the gradient of the sigmoid."""
        if self.generator is not None:
            uniform = torch.rand(logits.shape, generator=self.generator).to(logits.device).clamp(1e-6, 1 - 1e-6)
            # Logistic noise, the difference of two Gumbel variables: log u - log(1 - u) of uniform u.
            logits = logits + torch.log(uniform) - torch.log1p(-uniform)
        soft = torch.sigmoid(logits / self.temperature)
        # soft - soft.detach() is exactly 0; (1 + soft) - soft.detach() need not be exactly 1 in floats.
        return (soft > 0.5).to(soft.dtype) + (soft - soft.detach())


class Rollout(NamedTuple):
    """Results of a batch that ran through a CNN while a policy decided its gates."""

    output: Tensor
    """The CNN's output (batch, ...)."""
    mask: Tensor
    """(batch, mask_size) float."""
    gate_logits: Tensor
    """(batch, mask_size) float."""


def rollout(
    masked: MaskedCNN,
    policy: Policy,
    images: Tensor,
    choose: Choose = greedy,
    penalty: Tensor | float | None = None,
) -> Rollout:
    """Run images through a CNN, deciding each gate before its producer runs.

    Args:
        masked: The CNN.
        policy: Decides the gates. No gradient flows from it into the CNN through its features.
        images: (batch, channels, height, width) float, normalised.
        choose: How logits become bits.
        penalty: lambda, for a policy with a ``penalty_range``.

    Returns:
        Output, mask and logits.
    """
    state = masked.begin(images)
    masks, logits = [], []
    for index, decision in enumerate(policy.decisions):
        assert state.reads is not None
        logits.append(policy.logits(index, policy.features(index, state.reads.detach()), penalty))
        masks.append(choose(logits[-1]))
        widths = [masked.gates[gate].width for gate in decision.gates]
        for part in torch.split(masks[-1], widths, dim=1):
            masked.advance(state, part)
    return Rollout(masked.finish(state), torch.cat(masks, 1), torch.cat(logits, 1))
