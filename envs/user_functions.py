"""Functions that users bring: found by import path, and checked at each call."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from prunegym.envs.outcome import Outcome
from prunegym.models.errors import InvalidInputError, PruneGymError, RewardError

LARGEST = 1e15
"""A reward's largest size. Algorithms sum the squares of many in float32, which ends at 3e38: weights would be NaN."""


def import_object(path: str, kind: str) -> Any:
    """Import ``"module:name"``; modules in the current folder are found too.

    Args:
        path: E.g. ``"mymodule:myfunction"``.
        kind: What it should be, for the error: ``"reward"``, ``"agent"``.

    Returns:
        The object.

    Raises:
        InvalidInputError: If the module cannot be imported or has no such name.

    Example:
        >>> import_object("torch.nn.functional:relu", "reward").__name__
        'relu'
    """
    module_name, _, name = path.partition(":")
    module = import_module(module_name, f"{kind} {path!r}")
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = ", ".join(key for key in vars(module) if not key.startswith("_"))
            raise InvalidInputError(f"The {kind} {path!r}: {module_name} has no {name!r}. It has: {public}.")
        found = getattr(found, part)
    return found


def import_module(name: str, what: str) -> ModuleType:
    """Import a module of the user's; those in the current folder are found too.

    Args:
        name: Of the module.
        what: It is imported for, for the error.

    Raises:
        InvalidInputError: If it cannot be imported.
    """
    try:
        with _current_folder_importable():
            return importlib.import_module(name)
    except Exception as error:  # whatever the user's module raises on import
        raise InvalidInputError(
            f"The {what} cannot be imported: {type(error).__name__}: {error}. "
            f"Looked in the installed packages and in {Path.cwd()}."
        ) from error


@contextlib.contextmanager
def _current_folder_importable() -> Iterator[None]:
    # An installed command has its own folder, not the current one, on the path.
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def name_of(function: object) -> str:
    """Return a name of a callable for messages and tables."""
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def described(function: object) -> str:
    """Return what tells a function from others: its name, a hash of its source, and an object's own numbers and texts.

    Args:
        function: A callable, or ``"module:name"`` of one.

    Example:
        >>> described("torch.nn.functional:silu").split("#")[0]
        'torch.nn.functional:silu'
    """
    name = function if isinstance(function, str) else f"{getattr(function, '__module__', '')}:{name_of(function)}"
    with contextlib.suppress(InvalidInputError):
        function = import_object(function, "function") if isinstance(function, str) else function
    if isinstance(function, functools.partial):
        return f"{described(function.func)} {function.args} {function.keywords}"
    plain = inspect.isroutine(function) or inspect.isclass(function)
    try:
        source = inspect.getsource(function if plain else type(function))  # type: ignore[arg-type]
    except (OSError, TypeError):
        source = ""
    own = {} if plain else vars(function) if hasattr(function, "__dict__") else {}
    settings = {
        key: described(value) if callable(value) else value
        for key, value in sorted(own.items())
        if callable(value) or isinstance(value, str | int | float | bool | None)
    }
    return f"{name}#{hashlib.sha256(source.encode()).hexdigest()[:8]}" + (f" {settings}" if settings else "")


def call_checked(kind: str, function: Callable[..., Any], outcome: Outcome, *arguments: Any) -> Tensor:
    """Call a function of an outcome, and see to it that it returns one finite number an episode.

    Args:
        kind: For the error: ``"reward"``, ``"accuracy term"``, ``"step cost"``.
        function: Called with the outcome and the arguments.
        outcome: Of a batch.
        arguments: Further arguments.

    Returns:
        (batch,) float64, on the device of the outcome.

    Raises:
        RewardError: If the function raises, or returns another shape or values that are not finite or far too large.
    """
    batch = len(outcome.mask)
    # A user's function that works in place must not change what happens next, nor what is reported.
    ours = str(getattr(function, "__module__", "")).startswith("prunegym.")
    try:
        returned = function(outcome if ours else outcome.copied(), *arguments)
        values = torch.as_tensor(returned, dtype=torch.float64, device=outcome.mask.device)
    except PruneGymError:
        raise
    except Exception as error:  # whatever the user's function raises
        raise RewardError(
            f"The {kind} {name_of(function)!r} raised {type(error).__name__}: {error}. It is called with an Outcome of "
            f"{batch} episodes and has to return a tensor of shape ({batch},)."
        ) from error
    if values.shape != (batch,):
        raise RewardError(
            f"The {kind} {name_of(function)!r} returned shape {tuple(values.shape)}; ({batch},) is needed, one number "
            "an episode. The tensors of an Outcome have the batch as their first dimension."
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
