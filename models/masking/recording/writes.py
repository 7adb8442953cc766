"""Writes in place as steps that make new values."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prunegym.models.masking.graph import OutputOf, Step

MODES = {
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), "train"),
    "batch_norm": "training",
}
"""Operators that differ in training mode, and the argument that says which it is."""

SAME = {*MODES, "alias", "detach", "contiguous", "to", "view_as", "positive", "real"}
SHAPED = {"view", "reshape", "flatten", "unflatten", "_unsafe_view", "squeeze", "unsqueeze"}


def put_back(step: Step, base: OutputOf, part: OutputOf, whole: Tensor) -> OutputOf | tuple[str, dict[str, Any]] | None:
    """Return the step that writes a changed view back into its base; None if it is not known here.

    Args:
        step: The step that made the view.
        base: The tensor that it was made from.
        part: The changed view.
        whole: The tensor of ``base``.
    """
    operation = step.operation
    if operation in SAME:
        return part
    if operation in SHAPED:
        return "aten::reshape", {"self": part, "shape": list(whole.shape)}
    if operation == "transpose":
        return step.target, {**step.arguments, "self": part}
    if operation == "permute":
        dims = [dim % whole.ndim for dim in step.arguments["dims"]]
        return step.target, {"self": part, "dims": [dims.index(place) for place in range(len(dims))]}
    if operation in ("slice", "select"):
        place = {key: value for key, value in step.arguments.items() if key != "self"}
        return f"aten::{operation}_scatter", {"self": base, "src": part, **place}
    return None


def replaced(argument: Any, name: str, fresh: Any) -> Any:
    """Return an argument with another value in place of a step's output."""
    if isinstance(argument, dict):
        return {key: replaced(value, name, fresh) for key, value in argument.items()}
    if isinstance(argument, list):
        return [replaced(value, name, fresh) for value in argument]
    return fresh if isinstance(argument, OutputOf) and argument.name == name else argument
