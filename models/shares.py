"""MAC shares that a stage of training ends at: one, or one at each end of a range of lambdas."""

from __future__ import annotations

from collections.abc import Sequence

from prunegym.errors import InvalidInputError


def check_shares(name: str, value: float | Sequence[float], most: int = 2) -> None:
    """Check a setting that is a share, or two of them for the lowest and the highest lambda.

    Args:
        name: Of the setting.
        value: What was given.
        most: How many shares are allowed.

    Raises:
        InvalidInputError: If it has another form, or a share is not above 0 and at most 1.
    """
    shares = list(value) if isinstance(value, list | tuple) else [value]
    numbers = [share for share in shares if isinstance(share, float | int) and not isinstance(share, bool)]
    if len(numbers) < len(shares):
        raise InvalidInputError(f"{name} is {value!r}; a number above 0 and at most 1 is needed.")
    for share in numbers:
        if not 0 < share <= 1:
            raise InvalidInputError(f"{name} is {share}; it must be above 0 and at most 1.")
    if isinstance(value, list | tuple) and not len(shares) == most == 2:
        allowed = "one share, or two for a range of lambdas, is needed" if most == 2 else "one share is needed"
        raise InvalidInputError(f"{name} is {value}; {allowed}.")


def share_at(value: float | Sequence[float] | None, position: float) -> float | None:
    """Return the share for a lambda at a position (0 to 1) of its range."""
    if value is None or isinstance(value, float | int):
        return value
    low, high = value
    return low + (high - low) * position
