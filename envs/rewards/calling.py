"""Calls of your reward function, with checks of what it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prunegym.envs.rewards.outcome import Outcome
from prunegym.errors import PruneGymError, RewardError
from prunegym.user_code import name_of
from prunegym.validation import plain

LARGEST = 1e15
"""Largest size of a reward. Algorithms sum squares of rewards in float32: above 3e38, weights become NaN."""


def call_checked(kind: str, function: Callable[..., Any], outcome: Outcome, *arguments: Any) -> Tensor:
    """Call a function of an outcome, and check that it returns one finite number for each episode.

    Args:
        kind: Name for messages: ``"reward"``, ``"accuracy term"``, ``"step cost"``.
        function: Called with the outcome and the arguments.
        outcome: The outcome of a batch.
        arguments: Further arguments.

    Returns:
        (batch,) float64, on the device of the outcome.

    Raises:
        RewardError: If the function raises, or returns another shape, values that are not finite, or too large ones.
    """
    batch = len(outcome.mask)
    # Your function gets a copy, so that changes in place affect neither later steps nor infos.
    ours = str(getattr(function, "__module__", "")).startswith("prunegym.")
    try:
        returned = function(outcome if ours else outcome.copied(), *arguments)
        plain(f"What the {kind} {name_of(function)!r} returned", returned)
        values = torch.as_tensor(returned, dtype=torch.float64, device=outcome.mask.device)
    except PruneGymError:
        raise
    except Exception as error:  # whatever the user's function raises
        raise RewardError(
            f"The {kind} {name_of(function)!r} raised {type(error).__name__}: {error}. It is called with an Outcome of "
            f"{batch} episodes and must return a tensor of shape ({batch},)."
        ) from error
    if values.shape != (batch,):
        raise RewardError(
            f"The {kind} {name_of(function)!r} returned shape {tuple(values.shape)}; ({batch},) is needed, one number "
            "for each episode. The tensors of an Outcome have the batch as their first dimension."
        )
    wrong = ~(values.abs() <= LARGEST)  # NaN too
    if wrong.any():
        row = int(wrong.nonzero()[0])
        needed = "finite numbers are needed. Guard divisions and logarithms."
        if values[row].isfinite():
            needed = f"at most {LARGEST:g} is allowed: algorithms square it in float32. Scale it to about 1."
        raise RewardError(
            f"The {kind} {name_of(function)!r} returned {values[row].item()} for episode {row} of {batch}; {needed}"
        )
    return values
