"""Gates that ignore the image, with one learned or given mask for all images; and a forward pass with any gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from prunegym.models.data.dataset import Dataset
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.gating.gate_policy import GatePolicy, check_penalty
from prunegym.models.gating.importance import at_mac_share, taylor_scores
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.precision import new_tensors_in
from prunegym.validation import bits, finite, shape, typed


class StaticPolicy(nn.Module):
    """The gates of the static baseline: one logit for each channel, which gives every image the same mask.

    A logit is ``SCALE`` times its parameter. In a step of Adam a parameter changes by about the learning rate, but a
    logit of :class:`GatePolicy` changes by the learning rate times the sum of its hidden activations. With the scale
    both learn equally fast at the same learning rate.

    Args:
        features: Features of the policy that it is compared with; only their decisions are used.
        bias: Initial logits.
    """

    SCALE = 20.0
    macs = 0
    penalty_range = None

    @new_tensors_in()
    @typed
    def __init__(self, features: MaskFeatures, bias: float = 2.0) -> None:
        super().__init__()
        self.features = features
        self.decisions = features.decisions
        finite("bias", bias)
        self.channels = nn.ParameterList(
            nn.Parameter(torch.full((decision.width,), bias / self.SCALE)) for decision in self.decisions
        )

    def logits(self, decision: int, features: Tensor, penalty: Tensor | float | None = None) -> Tensor:
        """Return the same logits (batch, width) for every image; features (batch, any) give the batch size."""
        check_penalty(None, penalty)
        logits: Tensor = self.channels[decision] * self.SCALE
        return logits.expand(len(features), -1)

    @torch.no_grad()
    def mask_logits(self) -> Tensor:
        """Return the logits of all decisions: (mask_size,) float32."""
        return torch.cat([channels * self.SCALE for channels in self.channels])

    @torch.no_grad()
    def rescale_logits(self, factor: float = 1.0, offset: float = 0.0) -> None:
        """Multiply all logits by a factor and add an offset, in place; a positive offset keeps more channels."""
        for channels in self.channels:
            channels.mul_(factor).add_(offset / self.SCALE)


Policy = GatePolicy | StaticPolicy
"""Gates of both kinds."""


def deciding_macs(masked: MaskedCNN, policy: Policy, mask: Tensor) -> Tensor:
    """Return the MACs of deciding the mask of an image and, where a CNN has them, of adding constants for it.

    A static policy's constants are in the biases already, so they cost nothing.

    Args:
        masked: The CNN.
        policy: Its gates.
        mask: (batch, mask_size), the masks that they chose.

    Returns:
        (batch,) float64.
    """
    if masked.constants is None or isinstance(policy, StaticPolicy):
        return torch.full((len(mask),), float(policy.macs), dtype=torch.float64, device=mask.device)
    return policy.macs + masked.cost.compensation_macs(mask)


@typed
def fixed_policy(masked: MaskedCNN, mask: Tensor) -> StaticPolicy:
    """Return a policy that gives every image the same mask: (mask_size,) of 0 and 1, else InvalidInputError."""
    bits("The mask", shape("The mask", mask, (masked.mask_size,)))
    policy = StaticPolicy(MaskFeatures(masked)).to(masked.device)
    with torch.no_grad():
        for channels, part in zip(policy.channels, masked.split(mask.float()), strict=True):
            channels.copy_(2 * part - 1)
    return policy


@typed
def static_start(masked: MaskedCNN, dataset: Dataset, target_macs: float, *, learned: bool) -> StaticPolicy:
    """Return gates for a static baseline, as an input of :func:`prunegym.models.training.preparation.prepare`.

    Args:
        masked: The CNN.
        dataset: Training images.
        target_macs: MAC share of the Taylor mask.
        learned: True: all channels on, to be learned. False: the Taylor mask, with the same share of each gate.
    """
    if learned:
        return StaticPolicy(MaskFeatures(masked)).to(masked.device)
    return fixed_policy(masked, at_mac_share(taylor_scores(masked, dataset), masked, target_macs, per_gate=True))


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


@typed
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
