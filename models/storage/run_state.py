"""Run states on disk: tensors as safetensors, other values as JSON in the same file. Reading never executes code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from prunegym.errors import InvalidInputError, MissingDataError
from prunegym.models.storage.weights import load_tensors, write_tensors

KEY = "prunegym-state"
BROKEN = (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError)
"""Errors of reading a damaged state, or of loading one that does not fit. RecursionError is a RuntimeError."""


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a run; a crash leaves no incomplete file.

    Args:
        path: The file, which ends in ``.safetensors``.
        state: Tensors, numbers, strings and None, in dicts, lists and tuples of any depth.

    Raises:
        TypeError: If there is anything else in it.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_plain(dict(state), tensors))
    write_tensors(path, tensors, {KEY: text})


def load_state(path: Path) -> dict[str, Any]:
    """Read a file of :func:`save_state`.

    Raises:
        MissingDataError: If there is no such file.
        InvalidInputError: If it is damaged, or another kind of file.
    """
    if not path.exists():
        raise MissingDataError(f"There is no checkpoint {path}. Check the path.")
    try:
        if not path.is_file():
            raise ValueError("no regular file")
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {})[KEY]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        state = _restored(json.loads(text), tensors)
        if not isinstance(state, dict):
            raise TypeError(f"a {type(state).__name__}")
    except BROKEN as error:
        raise damaged(path, error) from error
    return state


def damaged(path: Path, error: Exception) -> InvalidInputError:
    """Return the error for a state that cannot be read, or does not fit."""
    reason = next(iter(str(error).splitlines()), "")
    return InvalidInputError(
        f"{path} is damaged, or not a checkpoint of this run ({type(error).__name__}: {reason}). Delete it to start "
        "this stage again."
    )


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON; tensors are added to ``tensors`` and replaced by their names."""
    if isinstance(value, Tensor):
        tensors[str(len(tensors))] = value
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(value, Mapping):  # as pairs, since the keys of optimizers' states are numbers
        return {"dict": [[_plain(key, tensors), _plain(one, tensors)] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_plain(one, tensors) for one in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} is a {type(value).__name__}, which cannot be part of a run's state.")


def _restored(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_restored(key, tensors): _restored(one, tensors) for key, one in content}
    return {"list": list, "tuple": tuple}[kind](_restored(one, tensors) for one in content)


def load_part(part: Any, state: Mapping[str, Any]) -> None:
    """Load the state of a network, an optimizer or a schedule; one of ``BROKEN`` is raised if it does not fit."""
    if isinstance(part, nn.Module):
        load_tensors(part, state, "the network")
    elif isinstance(part, torch.optim.Optimizer):
        load_optimizer(part, state)
    else:
        _check_kinds(state, part.state_dict())
        part.load_state_dict(state)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimizer's state, with checks that torch does not make; raises one of ``BROKEN`` if it does not fit."""
    before = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, own in zip(optimizer.param_groups, before, strict=True):
        _check_kinds(group, own)
    for parameter, own in optimizer.state.items():
        for name, value in own.items():
            if isinstance(value, Tensor) and (value.shape not in (parameter.shape, ()) or not value.isfinite().all()):
                raise ValueError(f"{name} of the optimizer does not fit its parameters")


def _check_kinds(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Check that settings have the same names as the current ones, and values of the same kinds."""
    odd = [name for name in {**own, **state} if type(state.get(name)) is not type(own.get(name))]
    if odd:
        raise TypeError(f"{odd[0]} is {state.get(odd[0])!r}, not {own.get(odd[0])!r}")
