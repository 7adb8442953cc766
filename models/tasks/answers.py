"""Answers: a network's outputs as classes, numbers and text."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

SHOWN = 3
"""Number of classes of a map that are named, the largest first."""


def answers(kind: str, outputs: Tensor, classes: Sequence[str]) -> tuple[Tensor, list[str], Tensor | None]:
    """Return the answers in a network's outputs.

    Args:
        kind: A key of :data:`prunegym.models.tasks.objective.KINDS`.
        outputs: The network's outputs, (batch, ...).
        classes: Names; other outputs have their number as name.

    Returns:
        The answers: (batch,) int64 the class, (batch, classes) int64 of 0 and 1 for several labels, (batch, numbers)
        for numbers, (batch, height, width) int64 for maps. A text for each image. The probability (batch,) of the
        class, None for other kinds.

    Example:
        >>> import torch
        >>> answers("labels", torch.tensor([[2.0, -1.0, 0.5], [-1.0, -1.0, -1.0]]), ("cat", "dog", "hat"))[1]
        ['cat, hat', 'none']
    """

    def name(index: int) -> str:
        return classes[index] if index < len(classes) else str(index)

    if kind == "labels":
        given = (outputs > 0).long()
        return given, [", ".join(name(at) for at in row.nonzero()[:, 0].tolist()) or "none" for row in given], None
    if kind == "numbers" or outputs.ndim < 2 or outputs.shape[1] == 1:
        rows = outputs.reshape(len(outputs), -1)
        return outputs, [", ".join(f"{value:.4g}" for value in row) for row in rows.tolist()], None
    best = outputs.argmax(1)
    if outputs.ndim == 2:
        chances = outputs.softmax(1).gather(1, best[:, None])[:, 0]
        return best, [name(at) for at in best.tolist()], chances
    texts = []
    for row in best.flatten(1):
        shares = row.bincount().double() / row.numel()
        largest = [at for at in shares.argsort(descending=True).tolist()[:SHOWN] if shares[at] > 0]
        texts.append(", ".join(f"{name(at)} {shares[at]:.0%}" for at in largest))
    return best, texts, None


def target_text(kind: str, target: Tensor, classes: Sequence[str]) -> str:
    """Return an image's target as a short text.

    Args:
        kind: A key of :data:`prunegym.models.tasks.objective.KINDS`.
        target: The target of one image.
        classes: Names.

    Example:
        >>> import torch
        >>> target_text("numbers", torch.tensor([0.5, 2.0]), ())
        '0.5, 2'
    """
    if kind == "classes":
        return classes[int(target)]
    if kind == "labels":
        return ", ".join(classes[at] for at in target.nonzero()[:, 0].tolist()) or "none"
    if kind == "maps":
        return ", ".join(classes[at] for at in sorted(set(target[target >= 0].tolist()))[:SHOWN])
    return ", ".join(f"{value:.3g}" for value in target.flatten().tolist()[:SHOWN])
