"""Callbacks and loggers of Stable-Baselines3 that a recipe names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger, make_output_format

from prunegym.errors import InvalidInputError
from prunegym.user_code import import_object
from prunegym.validation import choice

FORMATS = ("stdout", "log", "json", "csv")
"""Loggers of Stable-Baselines3 by name. TensorBoard is always written."""

Named = str | Mapping[str, Mapping[str, Any]]
"""``module:Class``, or ``{module:Class: {argument: value}}`` with arguments of its constructor."""


def check_named(kind: str, entries: Sequence[Named]) -> None:
    """Import the callbacks or loggers that a recipe names, to find mistakes before training starts.

    Args:
        kind: ``callback`` or ``logger``.
        entries: ``module:Class`` or {``module:Class``: arguments}; for loggers also a name in :data:`FORMATS`.

    Raises:
        UnknownNameError: For an unknown name of a logger.
        InvalidInputError: If a class cannot be imported, or is not one of Stable-Baselines3.
    """
    base: type[Any] = BaseCallback if kind == "callback" else KVWriter
    for entry in entries:
        path, _ = _split(kind, entry)
        if kind == "logger" and ":" not in path:
            choice("logger", path, [*FORMATS, "module:Class"])
            continue
        found = import_object(path, kind)
        if not isinstance(found, type) or not issubclass(found, base):
            raise InvalidInputError(
                f"The {kind} {path!r} is not a subclass of Stable-Baselines3's {base.__name__}. Give the module:Class "
                "of a subclass."
            )


def make_callbacks(entries: Sequence[Named]) -> list[BaseCallback]:
    """Make the callbacks of a recipe."""
    return [
        import_object(path, "callback")(**arguments) for path, arguments in (_split("callback", e) for e in entries)
    ]


def make_logger(entries: Sequence[Named], folder: Path, run: str) -> Logger:
    """Make a logger that writes TensorBoard's files and those of the loggers that a recipe names.

    Args:
        entries: See :func:`check_named`.
        folder: Folder of the run, for the files.
        run: Name of the run's folder within ``tensorboard``.
    """
    formats: list[KVWriter] = [make_output_format("tensorboard", str(folder / "tensorboard" / run))]
    for entry in entries:
        path, arguments = _split("logger", entry)
        made = import_object(path, "logger")(**arguments) if ":" in path else make_output_format(path, str(folder))
        formats.append(made)
    return Logger(str(folder), formats)


def _split(kind: str, entry: Named) -> tuple[str, Mapping[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and len(entry) == 1 and isinstance(next(iter(entry.values())), Mapping):
        return next(iter(entry.items()))
    raise InvalidInputError(f"A {kind} is {entry!r}; module:Class is needed, or {{module:Class: {{argument: value}}}}.")
