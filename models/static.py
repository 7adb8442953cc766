"""Static masks, one for all images: channel scores, the cut at a MAC share, and gates that look at nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from prunegym.models.data.dataset import Dataset
from prunegym.models.features import MaskFeatures
from prunegym.models.gate_policy import StaticPolicy
from prunegym.models.masking.importance import at_mac_share, taylor_scores
from prunegym.models.masking.masked_cnn import MaskedCNN


def fixed_policy(masked: MaskedCNN, mask: Tensor) -> StaticPolicy:
    """Return a policy that gives every image the same mask: (mask_size,) of 0 and 1."""
    policy = StaticPolicy(MaskFeatures(masked)).to(next(masked.parameters()).device)
    with torch.no_grad():
        for channels, part in zip(policy.channels, masked.split(mask.float()), strict=True):
            channels.copy_(2 * part - 1)
    return policy


def static_start(masked: MaskedCNN, dataset: Dataset, target_macs: float, *, learned: bool) -> StaticPolicy:
    """Return the gates from which :func:`prunegym.models.preparation.prepare` makes a static rival.

    Args:
        masked: The CNN.
        dataset: Training images.
        target_macs: MAC share of the Taylor mask.
        learned: All channels on, to be learned; else the Taylor mask, the same share of each gate, to be kept.
    """
    if learned:
        return StaticPolicy(MaskFeatures(masked)).to(next(masked.parameters()).device)
    return fixed_policy(masked, at_mac_share(taylor_scores(masked, dataset), masked, target_macs, per_gate=True))
