"""MAC targets: the offset on all logits, or the lambda, with which a policy meets a target."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import Dataset
from prunegym.models.gating.static_policy import Policy, deciding_macs
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.skipping_cnn import prefer_kernel
from prunegym.validation import finite, share, typed

TOLERANCE = 0.01
"""Largest accepted difference from the target, in total MAC share."""
REACH, FARTHEST = 5.0, 80.0
"""Largest offset that is tried first, and largest offset at all."""


@torch.inference_mode()
def total_mac_share(masked: MaskedCNN, policy: Policy, dataset: Dataset, penalty: float | None = None) -> float:
    """Return the mean total MAC share over a data set, policy included; ``penalty`` is the policy's lambda."""
    run = prefer_kernel(masked, policy)
    masks = torch.cat([run(images, None, penalty).mask for _, images in dataset.batches(device=masked.device)])
    return masked.cost.total_share(masks, deciding_macs(masked, policy, masks)).mean().item()


@typed
def meet_target(
    masked: MaskedCNN,
    policy: Policy,
    dataset: Dataset,
    target_macs: float,
    *,
    images: int = 1000,
    rounds: int = 10,
) -> float:
    """Shift a policy's logits, in place, so that its masks cost a given total MAC share.

    Training with noise meets the target with sampled masks. Inference uses the most likely masks, which have slightly
    different costs.

    Args:
        masked: The CNN.
        policy: Its gates.
        dataset: Images to measure on; labels are not used.
        target_macs: Total MAC share.
        images: Number of images.
        rounds: Halvings of the interval; 10 find the offset to within 0.01.

    Returns:
        The offset that was added.

    Raises:
        InvalidInputError: If the target is not above 0.
    """
    finite("target_macs", target_macs, above=0)
    sample = dataset.sample(images)
    reach = REACH
    offset = _bisect(masked, policy, sample, target_macs, rounds, reach)
    # After long imitation the logits are far from 0, and a small offset changes nothing.
    while abs(offset) > 0.9 * reach and reach < FARTHEST:
        if abs(total_mac_share(masked, policy, sample) - target_macs) <= TOLERANCE:
            break
        offset += _bisect(masked, policy, sample, target_macs, rounds, reach)
        reach *= 2
    return offset


def _bisect(
    masked: MaskedCNN,
    policy: Policy,
    sample: Dataset,
    target_macs: float,
    rounds: int,
    reach: float,
) -> float:
    # Bisection: the larger the offset, the more channels are kept. Offsets add up in the policy, so each step adds the
    # difference to the one before.
    low, high, applied = -reach, reach, 0.0
    for _ in range(rounds):
        middle = (low + high) / 2
        policy.rescale_logits(offset=middle - applied)
        applied = middle
        if total_mac_share(masked, policy, sample) > target_macs:
            high = middle
        else:
            low = middle
    policy.rescale_logits(offset=low - applied)
    return low


@typed
def penalty_for(
    masked: MaskedCNN, policy: Policy, dataset: Dataset, target_macs: float, *, images: int = 1000, rounds: int = 10
) -> float:
    """Return the lambda at which a policy for a range of lambdas has a given total MAC share.

    Args:
        masked: The CNN.
        policy: Gates that were trained for a range of lambdas. The larger lambda, the fewer MACs.
        dataset: Images to measure on; labels are not used.
        target_macs: Total MAC share (0 to 1). If no lambda reaches it, the nearest end of the range is returned.
        images: Number of images.
        rounds: Halvings of the range.

    Raises:
        InvalidInputError: If the policy was trained for one lambda only, or the target is not a share.
    """
    share("target_macs", target_macs)
    if policy.penalty_range is None:
        raise InvalidInputError(
            "The policy was trained for one lambda only. Train a policy for a range with the recipe dial, or shift "
            "this one with meet_target."
        )
    sample = dataset.sample(images)
    low, high = policy.penalty_range
    for end, beyond in ((low, float.__le__), (high, float.__ge__)):
        if beyond(total_mac_share(masked, policy, sample, end), target_macs):
            return end
    # Bisection again, but the larger lambda is, the fewer channels are kept.
    for _ in range(rounds):
        middle = (low + high) / 2
        if total_mac_share(masked, policy, sample, middle) > target_macs:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def check_shares(name: str, value: float | Sequence[float]) -> None:
    """Check a setting that is one share, or two shares for the lowest and the highest lambda.

    Raises:
        InvalidInputError: If it is neither, or a share is not above 0 and at most 1.
    """
    ends = value if isinstance(value, list | tuple) else None
    for number in (value,) if ends is None else ends:
        share(name, number)
    if ends is not None and len(ends) != 2:
        raise InvalidInputError(f"{name} is {value}; one share, or two for a range of lambdas, is needed.")


def check_range(name: str, value: float | Sequence[float] | None, policy: Policy) -> tuple[float, float] | None:
    """Check that a setting with two shares is for a policy with a range of lambdas; return the range, or None.

    Raises:
        InvalidInputError: If there are two shares, but the policy is for one lambda.
    """
    if policy.penalty_range is None and not isinstance(value, float | int | None):
        raise InvalidInputError(
            f"{name} is {value}, for a range of lambdas, but the policy is for one. Give one share, or the penalty as "
            "a range."
        )
    return policy.penalty_range


def check_reachable(name: str, value: float | Sequence[float] | None, masked: MaskedCNN) -> None:
    """Check that masks can cost as little as a MAC share, or two of them.

    Raises:
        InvalidInputError: If the layers that no gate reaches cost more.
    """
    if value is None:
        return
    least = masked.cost.fixed_macs / masked.cost.total_macs
    if min(value if isinstance(value, list | tuple) else [value]) < least:
        raise InvalidInputError(
            f"{name} is {value}, but {least:.3f} of the MACs cannot be skipped: no gate reaches them. Give a larger "
            'share, or use more gates (gates="all", or names of layers).'
        )


def between(value: float | Sequence[float] | None, position: float) -> float | None:
    """Interpolate between two ends at a position (0 to 1). A single number, or None, is returned unchanged."""
    if value is None or isinstance(value, float | int):
        return value
    low, high = value
    # Linear interpolation: low + (high - low) * position.
    return low + (high - low) * position
