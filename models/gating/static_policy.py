"""Gates that ignore the image: one mask for all images, learned or given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunegym.models.data.dataset import Dataset
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.gating.gate_policy import GatePolicy, check_penalty
from prunegym.models.masking.importance import at_mac_share, taylor_scores
from prunegym.models.masking.masked_cnn import MaskedCNN


class StaticPolicy(nn.Module):
    """The gates of the static baseline: one logit for each channel, so the same mask for every image.

    A logit is ``SCALE`` times its parameter. In a step of Adam a parameter moves by about the learning rate, but a
    logit of :class:`GatePolicy` by that times the sum of its hidden activations. With the scale both learn equally
    fast at the same learning rate.

    Args:
        features: Features of the policy that it is compared with; only their decisions are used.
        bias: Initial logits.
    """

    SCALE = 20.0
    macs = 0
    penalty_range = None

    def __init__(self, features: MaskFeatures, bias: float = 2.0) -> None:
        super().__init__()
        self.features = features
        self.decisions = features.decisions
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
"""Gates of either kind."""


def fixed_policy(masked: MaskedCNN, mask: Tensor) -> StaticPolicy:
    """Return a policy that gives every image the same mask: (mask_size,) of 0 and 1."""
    policy = StaticPolicy(MaskFeatures(masked)).to(masked.device)
    with torch.no_grad():
        for channels, part in zip(policy.channels, masked.split(mask.float()), strict=True):
            channels.copy_(2 * part - 1)
    return policy


def static_start(masked: MaskedCNN, dataset: Dataset, target_macs: float, *, learned: bool) -> StaticPolicy:
    """Return the gates from which :func:`prunegym.models.training.preparation.prepare` makes a static baseline.

    Args:
        masked: The CNN.
        dataset: Training images.
        target_macs: MAC share of the Taylor mask.
        learned: True: all channels on, to be learned. False: the Taylor mask, with the same share of each gate.
    """
    if learned:
        return StaticPolicy(MaskFeatures(masked)).to(masked.device)
    return fixed_policy(masked, at_mac_share(taylor_scores(masked, dataset), masked, target_macs, per_gate=True))
