"""Targets of a data set: checks, renumbering of classes, class weights."""

from __future__ import annotations

import collections
from collections.abc import Iterable

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.tasks.objective import KINDS, balanced_weights, kind_of
from prunegym.validation import shape


def check_targets(where: str, targets: Tensor, count: int, classes: tuple[str, ...], kind: str) -> None:
    """Check that targets are of a kind of :data:`~prunegym.models.tasks.objective.KINDS`.

    Args:
        where: The data set, for the message.
        targets: (count, ...).
        count: Number of images.
        classes: Names of the classes.
        kind: The kind that they should be.

    Raises:
        InvalidInputError: If they are of another kind, or a class is out of range.
    """
    if kind == "classes":
        shape(f"{where}: the label tensor", targets, (count,), "Give one integer per image.")
        if targets.dtype != torch.int64:
            raise InvalidInputError(f"{where}: labels are {targets.dtype}; int64 is needed.")
    elif len(targets) != count or (kind != "outputs" and kind_of(targets) != kind):
        raise InvalidInputError(
            f"{where}: targets are {targets.dtype} {tuple(targets.shape)} for {count} images; {KINDS[kind].targets} is "
            "needed."
        )
    if kind == "numbers" and not targets.isfinite().all():
        raise InvalidInputError(f"{where}: targets are not all finite. Remove or fix the images without a number.")
    if kind not in ("classes", "labels", "maps"):
        return
    low, high = int(targets.min()), int(targets.max())
    if kind == "labels" and (targets.shape[1] != len(classes) or low < 0 or high > 1):
        raise InvalidInputError(
            f"{where}: targets have {targets.shape[1]} columns of {low} to {high}; 0 and 1 are needed, in a column for "
            f"each of {len(classes)} classes."
        )
    if kind != "labels" and ((low < 0 and kind == "classes") or high >= len(classes)):
        raise InvalidInputError(
            f"{where}: labels range from {low} to {high}, but there are {len(classes)} classes, "
            f"so 0 to {len(classes) - 1} are allowed. Renumber the labels or name every class."
        )


def class_places(name: str, own: tuple[str, ...], classes: tuple[str, ...]) -> Tensor | None:
    """Return the number in ``classes`` of each of a data set's own classes, int64; None if they keep theirs.

    If one side has names and the other only numbers from 0, both are assumed to have the same order.

    Args:
        name: Name of the data set, for messages.
        own: Its classes.
        classes: The classes that a model was trained on.

    Raises:
        InvalidInputError: If the model does not have one of the classes, or a name fits several classes.
    """
    unknown = [one for one in own if one not in classes]
    numbered = tuple(map(str, range(max(len(classes), len(own)))))
    no_name_known = len(unknown) == len(own) and numbered[: len(classes)] == classes
    if no_name_known or (unknown and numbered[: len(own)] == own):
        if len(own) > len(classes):
            raise InvalidInputError(
                f"Data set {name!r} has {len(own)} classes, but the model has {len(classes)}. "
                "Remove the images of the other classes, or use a model that was trained on all of them."
            )
        return None
    if unknown:
        raise InvalidInputError(
            f"Data set {name!r} has class {unknown[0]!r}, which the model does not know; it knows "
            f"{', '.join(classes)}. Remove its images, rename it, or use a model that was trained on it."
        )
    both = collections.Counter(classes), collections.Counter(own)
    twice = [one for one in own if max(count[one] for count in both) > 1]
    if twice:
        raise InvalidInputError(
            f"Several classes are named {twice[0]!r}: {both[1][twice[0]]} in data set {name!r}, "
            f"{both[0][twice[0]]} in the model, whose classes are others or in another order. Give each class a "
            "different name, or list the classes in the model's order."
        )
    return torch.tensor([classes.index(one) for one in own])


def renumbered(targets: Tensor, kind: str, places: Tensor, count: int) -> Tensor:
    """Return targets with class ``i`` as number ``places[i]`` of ``count`` classes."""
    if kind == "classes":
        return places[targets]
    if kind == "labels":
        return targets.new_zeros(len(targets), count).index_copy_(1, places, targets)
    if kind == "maps":
        return torch.where(targets < 0, targets.long(), places[targets.long().clamp(min=0)])
    return targets


def weights_of(given: object, name: str, targets: Tensor, outputs: int, kind: str) -> tuple[float, ...]:
    """Return class weights.

    Args:
        given: A number for each class, or ``balanced``, which gives all classes the same total weight.
        name: Name of the data set.
        targets: (count, ...).
        outputs: Number of classes.
        kind: The kind of targets.

    Raises:
        InvalidInputError: If they are neither, or there are no classes to balance.
    """
    if given == "balanced" and kind in ("classes", "maps"):
        return balanced_weights(targets, outputs)
    if given == "balanced" and kind == "labels":  # images without the label for each image with it
        present = targets.double().mean(0)
        return tuple(((1 - present) / present.clamp(min=1 / len(targets))).tolist())
    weights = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else None
    if weights is None or len(weights) != outputs:
        raise InvalidInputError(
            f"class_weights are {given!r}; 'balanced' (if there are classes) or {outputs} numbers are needed, one for "
            f"each class of data set {name!r}."
        )
    return weights
