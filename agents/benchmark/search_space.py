"""The settings that a search tries: ranges and lists of values, by the name of the setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prunegym.errors import InvalidInputError
from prunegym.validation import choice, finite

if TYPE_CHECKING:
    from optuna.trial import Trial

Space = Mapping[str, Any]
SPACE: Space = {
    "hyperparameters.learning_rate": {"low": 1e-4, "high": 3e-3, "log": True},
    "hyperparameters.n_epochs": {"low": 1, "high": 4},
    "sharpen": {"low": 1.0, "high": 4.0},
    "n_minibatches": [1, 2, 4],
}
"""What is searched if nothing else is given: ranges with ``low``, ``high`` and ``log``, or lists of values."""


def check_space(space: Space) -> None:
    """Raise InvalidInputError if a space is not of ranges and lists."""
    if not isinstance(space, Mapping) or not space:
        raise InvalidInputError(f"The space is {space!r}; settings by name are needed, with a range or a list each.")
    for key, one in space.items():
        if isinstance(one, list) and one:
            continue
        if not isinstance(one, Mapping):
            raise InvalidInputError(f"{key} of the space is {one!r}; {{low: 0.1, high: 1.0}} or a list is needed.")
        for word in one:
            choice(f"word in the range of {key}:", word, ("low", "high", "log"))
        low, high = (finite(f"{word} of {key}", one.get(word)) for word in ("low", "high"))
        if low >= high or (one.get("log") and low <= 0):
            raise InvalidInputError(f"The range of {key} is {dict(one)}; low must be below high, and above 0 for log.")


def space_end(space: Space, which: int) -> dict[str, Any]:
    """Return one end of the space."""
    return {key: one[which] if isinstance(one, list) else one[("low", "high")[which]] for key, one in space.items()}


def suggested(trial: Trial, key: str, one: Any) -> Any:
    """Return a trial's value of a setting."""
    if isinstance(one, list):
        return trial.suggest_categorical(key, one)
    whole = all(isinstance(one[word], int) for word in ("low", "high"))
    suggest: Any = trial.suggest_int if whole else trial.suggest_float
    return suggest(key, one["low"], one["high"], log=bool(one.get("log")))
