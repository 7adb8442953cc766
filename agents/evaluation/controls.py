"""Do masks depend on their images? The static and the shuffled control."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from prunegym.models.masking.masked_cnn import MaskedCNN


def static_mask(masks: Tensor, masked: MaskedCNN) -> Tensor:
    """Return the static control's mask: per gate the channels kept most often, as many as are kept on average.

    Args:
        masks: (images, mask_size) bool.
        masked: The CNN with the gates.

    Returns:
        (mask_size,) bool. The average number is rounded to the nearest integer. Of channels that are kept equally often
        it takes the first ones.
    """
    control = torch.zeros(masked.mask_size, dtype=torch.bool)
    for share, part in zip(masked.split(masks.double().mean(0)), masked.split(control), strict=True):
        count = math.floor(share.sum().item() + 0.5)
        part[share.argsort(descending=True, stable=True)[:count]] = True
    return control


def derangement(count: int, seed: int = 0) -> Tensor:
    """Return a random permutation (count,) int64 in which no image keeps its place, unless there is only one."""
    cycle = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    # One cycle through all images: each gets the next one, so none gets itself.
    shuffled = torch.empty_like(cycle)
    shuffled[cycle] = cycle.roll(-1)
    return shuffled


def penalised_accuracy(correct: Tensor, total_mac_shares: Tensor | float, penalty: float) -> Tensor:
    """Return correct - penalty * total MAC share: accuracy, less what deciding and the masked CNN cost.

    It is the figure ``reward`` of tables and JSON. All agents are compared by it, whatever reward they were trained
    for. The reward of an environment is another one: it can be any function, and it leaves out the policy's MACs.

    Args:
        correct: (images,) bool, or accuracies.
        total_mac_shares: (images,) of masked CNN and policy, or their mean.
        penalty: lambda.

    Returns:
        (images,) float64.
    """
    return correct.double() - penalty * total_mac_shares


def count_distinct(masks: Tensor) -> int:
    """Return the number of different masks in (images, mask_size) bool."""
    return len({row.tobytes() for row in np.packbits(masks.numpy(), axis=1)})


def verdict(correct: Tensor, shuffled_correct: Tensor, distinct_masks: int) -> tuple[bool, str]:
    """Decide whether a policy is static: whether each image could get another image's mask.

    A policy is static if it has one mask, or if its masks work equally well on other images. Let b be the number of
    images that only their own mask gets right, and c the number that only another image's mask gets right. The two
    masks are equally good if b - c is within two standard errors, b - c <= 2 sqrt(b + c) (McNemar 1947).

    Args:
        correct: (images,) bool, right under the image's own mask.
        shuffled_correct: (images,) bool, right under another image's mask.
        distinct_masks: Number of different masks.

    Returns:
        Whether it is static, and a sentence for the table.

    Example:
        >>> right = torch.ones(100, dtype=torch.bool)
        >>> verdict(right, torch.arange(100) >= 30, 100)
        (False, "Per input: other images' masks lose 30.0 points, 5.5 standard errors.")
    """
    if distinct_masks == 1:
        return True, "Static: every image gets the same mask."
    only_own = int((correct & ~shuffled_correct).sum())
    only_other = int((~correct & shuffled_correct).sum())
    points = 100 * (only_own - only_other) / len(correct)
    # McNemar's statistic, (b - c) / sqrt(b + c), in standard errors.
    errors = (only_own - only_other) / max(math.sqrt(only_own + only_other), 1.0)
    if errors <= 2:
        return True, (
            f"Static in effect: other images' masks do as well ({-points:+.1f} points, within two standard errors), so "
            f"its {distinct_masks} masks do not depend usefully on the image."
        )
    return False, f"Per input: other images' masks lose {points:.1f} points, {errors:.1f} standard errors."
