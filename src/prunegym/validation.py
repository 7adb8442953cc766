"""Checks of what users pass. Each names what was given, what is allowed and, where possible, how to fix it.

All of them return the value, so that a check and its use fit in one expression.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, get_args, get_type_hints

from prunegym.errors import InvalidInputError, UnknownNameError

if TYPE_CHECKING:
    import numpy.typing as npt

Given = ParamSpec("Given")
Returned = TypeVar("Returned")
Value = TypeVar("Value")
Arrays = TypeVar("Arrays")
"""A tensor or an array."""
PATH = {Path, str, NoneType}
"""The hint of a path is made of these."""


def whole_number(name: str, value: Any, low: int = 1, high: int | None = None, hint: str = "") -> int:
    """Check a whole number; NumPy's integers are allowed, booleans are not.

    Args:
        name: Name of the setting, as the user knows it.
        value: What was given.
        low: The smallest allowed number.
        high: The largest; None for no limit.
        hint: A sentence that says how to fix it.

    Raises:
        InvalidInputError: If it is not a whole number, or out of range.

    Example:
        >>> whole_number("batch_size", 128)
        128
        >>> whole_number("batch_size", 0)
        Traceback (most recent call last):
            ...
        prunegym.errors.InvalidInputError: batch_size is 0; a whole number of at least 1 is needed.
    """
    fine = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not fine or value < low or (high is not None and value > high):
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise _refused(f"{name} is {value!r}; a whole number {span} is needed.", hint)
    return int(value)


def instance(name: str, value: Value, kind: type | tuple[type, ...], hint: str = "") -> Value:
    """Check that a value is an instance of a class, or of one of several classes.

    A class may say in ``HINT`` how to get one; a given ``hint`` is used instead.

    Raises:
        InvalidInputError: If it is not.

    Example:
        >>> instance("dataset", 3, str, "Give its name.")
        Traceback (most recent call last):
            ...
        prunegym.errors.InvalidInputError: dataset is a int; a str is needed. Give its name.
    """
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        needed = " or ".join("None" if one is NoneType else one.__name__ for one in kinds)
        needed = f"a {needed}" if len(kinds) == 1 else needed
        hint = hint or " ".join(getattr(one, "HINT", "") for one in kinds).strip()
        raise _refused(f"{name} is a {type(value).__name__}; {needed} is needed.", hint)
    return value


def typed(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """Check, at each call, the arguments whose type hints are paths, classes of PruneGym, torch and the like, or None.

    Numbers, words and functions are left to the other checks.
    """
    signature = inspect.signature(function)

    @functools.cache
    def classes() -> dict[str, tuple[type, ...]]:
        hints = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(function).items() if name != "return"}
        paths = {name: (*kinds, os.PathLike) for name, kinds in hints.items() if Path in kinds and {*kinds} <= PATH}
        return paths | {name: kinds for name, kinds in hints.items() if all(map(_is_checked, kinds))}

    @functools.wraps(function)
    def checked(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
        given: Mapping[str, Any] = {}
        with contextlib.suppress(TypeError):  # Python's own message says which argument is missing or too many
            given = signature.bind(*args, **kwargs).arguments
        for name, kinds in classes().items():
            if name in given:
                instance(name, given[name], kinds)
        return function(*args, **kwargs)

    return checked


def _is_checked(kind: Any) -> bool:
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return False
    return kind is NoneType or kind.__module__.partition(".")[0] in ("prunegym", "torch", "stable_baselines3")


def yes_or_no(name: str, value: Any) -> bool:
    """Check that a value is True or False.

    Raises:
        InvalidInputError: If it is not.
    """
    if not isinstance(value, bool):
        raise _refused(f"{name} is {value!r}; True or False is needed.", "")
    return value


def finite(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above: float | None = None, hint: str = ""
) -> float:
    """Check a finite number.

    Args:
        name: Name of the setting.
        value: What was given.
        low: The smallest allowed number.
        high: The largest.
        above: If given, the number must be larger than this.
        hint: A sentence that says how to fix it.

    Raises:
        InvalidInputError: If it is not a number, NaN, infinite, or out of range.
    """
    fine = isinstance(value, numbers.Real) and not isinstance(value, bool) and _is_finite(value)
    if not fine or not low <= value <= high or (above is not None and value <= above):
        bounds = [f"above {above:g}"] if above is not None else [f"of at least {low:g}"] if low > -math.inf else []
        bounds += [f"at most {high:g}"] if high < math.inf else []
        span = f"{' and '.join(bounds)} " if bounds else ""
        raise _refused(f"{name} is {value!r}; a finite number {span}is needed.", hint)
    return float(value)


def share(name: str, value: Any, *, zero: bool = False, hint: str = "") -> float:
    """Check a share: above 0, or with ``zero`` from 0, and at most 1.

    Raises:
        InvalidInputError: If it is not.
    """
    return finite(name, value, 0.0, 1.0, above=None if zero else 0.0, hint=hint)


def choice(kind: str, name: Any, allowed: Iterable[str]) -> str:
    """Check that a name is one of the allowed names; the message suggests the nearest.

    Raises:
        UnknownNameError: If it is not.
    """
    known = list(allowed)
    if not isinstance(name, str) or name not in known:
        raise UnknownNameError(kind, name, known)
    return name


def plain(name: str, value: Arrays, hint: str = "") -> Arrays:
    """Check that a tensor or an array is dense and holds real numbers; other objects are left to later checks.

    Raises:
        InvalidInputError: If it is sparse, complex, quantised, nested, without values, or holds no numbers.
    """
    dtype = getattr(value, "dtype", None)
    odd = {
        "nested": getattr(value, "is_nested", False),
        "sparse": str(getattr(value, "layout", "torch.strided")) != "torch.strided",
        "quantised": getattr(value, "is_quantized", False),
        "on the device 'meta', which has no values": getattr(value, "is_meta", False),
        "complex": "complex" in str(dtype),
        f"of type {dtype}": getattr(dtype, "kind", "f") not in "biufcOU",
    }
    for kind, found in odd.items():
        if found:
            raise _refused(f"{name} is {kind}; a dense array or tensor of real numbers is needed.", hint)
    return value


def array(name: str, value: Any, hint: str = "") -> npt.NDArray[Any]:
    """Return a list, a tensor or an array as an array of real numbers that torch accepts.

    It is copied if its bytes are in another order than this machine's, if it runs backwards, or if it is read-only.

    Raises:
        InvalidInputError: If it is none: lists of several lengths, words, and what :func:`plain` refuses.
    """
    import numpy as np

    given = plain(name, value, hint)
    try:
        made = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _refused(f"{name} is not an array ({error}).", hint) from error
    if plain(name, made, hint).dtype.kind not in "biuf":
        raise _refused(f"{name} is of type {made.dtype}; an array of numbers is needed.", hint)
    fine = made.dtype.isnative and made.flags.writeable and all(step >= 0 for step in made.strides)
    return made if fine else np.array(made, made.dtype.newbyteorder("="), order="C")


def shape(name: str, value: Arrays, expected: Sequence[int | str], hint: str = "") -> Arrays:
    """Check the shape of a tensor or an array, and that it holds ordinary numbers.

    Args:
        name: Name of the argument, as the message begins; for example "Images".
        value: What was given.
        expected: A size for each dimension. A word means any size, and the same size each time it is used.
        hint: A sentence that says how to fix it.

    Raises:
        InvalidInputError: If it has no shape or another one, or fails :func:`plain`.
    """
    given = getattr(plain(name, value, hint), "shape", None)
    sizes: dict[str, int] = {}
    fine = given is not None and len(given) == len(expected) and all(
        size == (sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted)
        for size, wanted in zip(given, expected, strict=True)
    )  # fmt: skip
    if not fine:
        found = f"a {type(value).__name__}" if given is None else f"of shape {_tuple(given)}"
        raise _refused(f"{name} is {found}; {_tuple(expected)} is needed.", hint)
    return value


def is_whole_mask(mask: Any, batch: int, size: int) -> bool:
    """Whether a mask is a dense bool tensor (batch, size) on the CPU: it needs none of the checks.

    For a small network they take as long as a few of its layers.
    """
    import torch

    return (
        isinstance(mask, torch.Tensor)
        and mask.dtype == torch.bool
        and mask.is_cpu
        and not mask.is_nested
        and mask.layout == torch.strided
        and mask.shape == (batch, size)
    )


def bits(name: str, values: Any, hint: str = "") -> Any:
    """Check that a tensor or an array has only the values 0 and 1; booleans are allowed.

    Raises:
        InvalidInputError: If it has another value; the message names the first one.
    """
    plain(name, values, hint)
    wrong = (values != 0) & (values != 1)
    if wrong.any():
        first = values[wrong].flatten()[0].item()
        raise _refused(f"{name} has the value {first:.4g}; only 0 and 1 are allowed.", hint)
    return values


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def _refused(text: str, hint: str) -> InvalidInputError:
    return InvalidInputError(f"{text} {hint}".rstrip())


def _tuple(sizes: Iterable[int | str]) -> str:
    texts = [str(size) for size in sizes]
    return f"({', '.join(texts)}{',' if len(texts) == 1 else ''})"
