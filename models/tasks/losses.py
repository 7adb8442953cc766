"""Losses of training, and the matching distances to a teacher's outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Takes outputs (batch, ...), targets (batch, ...) and class weights (classes,) or None; returns the mean loss."""


def cross_entropy(outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the cross-entropy to classes, of images or of positions; negative targets do not count.

    Args:
        outputs: (batch, classes) or (batch, classes, height, width).
        targets: (batch,) or (batch, height, width) integers.
        weights: (classes,); outputs beyond them have weight 1.
    """
    targets = targets.long()
    if targets.ndim > 1:
        targets = targets.clamp(min=-1)
    if weights is not None:
        weights = F.pad(weights.to(outputs), (0, outputs.shape[1] - len(weights)), value=1.0)
    return F.cross_entropy(outputs, targets, weights, ignore_index=-1)


def binary_cross_entropy(outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the binary cross-entropy to several labels.

    Args:
        outputs: (batch, classes) logits.
        targets: (batch, classes) of 0 and 1.
        weights: (classes,); weight of a label that is present, where an absent label has weight 1.
    """
    return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs), pos_weight=_beside(weights, outputs))


def squared_error(outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean squared error of numbers, (batch, numbers) or, for one number, targets (batch,)."""
    error = F.mse_loss(outputs, targets.to(outputs).view_as(outputs), reduction="none")
    return (error if weights is None else error * weights.to(error)).mean()


def absolute_error(outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean absolute error of numbers, shaped as for :func:`squared_error`."""
    error = F.l1_loss(outputs, targets.to(outputs).view_as(outputs), reduction="none")
    return (error if weights is None else error * weights.to(error)).mean()


def soft_cross_entropy(outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the distance of class probabilities from a teacher's, with a gradient of the size of cross-entropy's.

    Args:
        outputs: (batch, classes, ...) logits.
        targets: The teacher's, same shape.
        weights: Not used.
    """
    del weights
    # Hinton et al. 2015 at temperature 2; the factor 4 keeps the size of the gradient.
    if outputs.ndim > 2:
        outputs, targets = (maps.movedim(1, -1).flatten(0, -2) for maps in (outputs, targets))
    return F.kl_div(F.log_softmax(outputs / 2, 1), F.softmax(targets / 2, 1), reduction="batchmean") * 4


def soft_binary_cross_entropy(outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the binary cross-entropy to a teacher's probabilities of several labels; logits (batch, classes)."""
    return F.binary_cross_entropy_with_logits(outputs, targets.sigmoid(), pos_weight=_beside(weights, outputs))


def _beside(weights: Tensor | None, outputs: Tensor) -> Tensor | None:
    return None if weights is None else weights.to(outputs)


LOSSES: dict[str, Loss] = {
    function.__name__: function
    for function in (
        cross_entropy, binary_cross_entropy, squared_error, absolute_error, soft_cross_entropy,
        soft_binary_cross_entropy,
    )
}  # fmt: skip
