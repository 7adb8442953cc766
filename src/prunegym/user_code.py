"""Your code, named as ``module:function``: import it, name it, and fingerprint it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from prunegym.errors import InvalidInputError


def import_object(path: str, kind: str) -> Any:
    """Import ``"module:name"``, from installed packages or the current folder.

    Args:
        path: For example ``"mymodule:myfunction"``.
        kind: What it is used as, for the message: ``"reward"``, ``"agent"``.

    Returns:
        The object.

    Raises:
        InvalidInputError: If the module cannot be imported or does not have that name.

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
    """Import your module, from installed packages or the current folder.

    Args:
        name: The module's name.
        what: Description of the import, for the message.

    Raises:
        InvalidInputError: If it cannot be imported.
    """
    try:
        with _current_folder_importable():
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # your module may raise anything
        raise InvalidInputError(
            f"The {what} cannot be imported: {type(error).__name__}: {error}. "
            f"Looked in the installed packages and in {Path.cwd()}."
        ) from error


@contextlib.contextmanager
def _current_folder_importable() -> Iterator[None]:
    # Python puts the folder of an installed command on its path, not the current folder.
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def name_of(function: object) -> str:
    """Return the name of a callable, for messages and tables."""
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def described(function: object) -> str:
    """Return a fingerprint of a function: its name, a hash of its source, and an object's attributes (numbers, texts).

    Args:
        function: A callable, or its import path ``"module:name"``.

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
        if callable(value) or isinstance(value, str | int | float | bool | tuple | None)
    }
    return f"{name}#{hashlib.sha256(source.encode()).hexdigest()[:8]}" + (f" {settings}" if settings else "")
