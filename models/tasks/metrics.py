"""Metrics: the quality of each answer as one number to maximise. All take outputs and targets of a batch.

Rewards use them as accuracy terms, and evaluation averages them over images, so figures mean the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError

Metric = Callable[[Tensor, Tensor], Tensor]
"""Takes outputs (batch, ...) and targets (batch, ...); returns (batch,) numbers, larger is better."""


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 where the class is right, else 0: (batch,) float64.

    Args:
        outputs: (batch, classes).
        targets: (batch,) integers.
    """
    return (outputs.argmax(1) == targets).double()


def log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probability of the true class: (batch,) float64, at most 0."""
    return torch.log_softmax(outputs.double(), 1).gather(1, targets[:, None])[:, 0]


def probability(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the probability of the true class: (batch,) float64."""
    return log_likelihood(outputs, targets).exp()


def top5(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 where the true class is among the five largest outputs, else 0: (batch,) float64."""
    best = outputs.topk(min(5, outputs.shape[1]), 1).indices
    return (best == targets[:, None]).any(1).double()


def f1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each image's F1 score of several labels: (batch,) float64; 1 if no label is true or predicted.

    Args:
        outputs: (batch, classes) logits; a label is predicted where they are above 0.
        targets: (batch, classes) of 0 and 1.
    """
    given, true = outputs > 0, targets > 0.5
    hits, all_of_both = (given & true).sum(1), given.sum(1) + true.sum(1)
    return torch.where(all_of_both == 0, 1.0, 2 * hits.double() / all_of_both.clamp(min=1))


def labels_right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of right labels, predicted or not: (batch,) float64. Arguments are those of :func:`f1`."""
    return ((outputs > 0) == (targets > 0.5)).double().mean(1)


def all_labels_right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 where every label is right, else 0: (batch,) float64. Arguments are those of :func:`f1`."""
    return ((outputs > 0) == (targets > 0.5)).all(1).double()


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of each image's numbers, negated: (batch,) float64."""
    return -_differences(outputs, targets).square().mean(1)


def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean absolute error of each image's numbers, negated: (batch,) float64."""
    return -_differences(outputs, targets).abs().mean(1)


def _differences(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return (batch, numbers) float64; for one number per image, targets may be (batch,)."""
    return (outputs.double() - targets.double().reshape(outputs.shape)).reshape(len(outputs), -1)


def positions_right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of an image's positions whose class is right: (batch,) float64.

    Args:
        outputs: (batch, classes, height, width).
        targets: (batch, height, width) integers. Negative ones are ignored; an image with only negative ones has 1.
    """
    known = (targets >= 0).flatten(1)
    right = (outputs.argmax(1) == targets).flatten(1) & known
    count = known.sum(1)
    return torch.where(count == 0, 1.0, right.sum(1).double() / count.clamp(min=1))


def iou(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return intersection over union, averaged over the true and predicted classes of an image: (batch,) float64.

    Arguments are those of :func:`positions_right`.
    """
    classes = outputs.shape[1]
    known = (targets >= 0).flatten(1)[:, :, None]
    given = torch.nn.functional.one_hot(outputs.argmax(1).flatten(1), classes).bool() & known
    true = torch.nn.functional.one_hot(targets.long().clamp(min=0).flatten(1), classes).bool() & known
    both, either = (given & true).sum(1).double(), (given | true).sum(1)
    present = either > 0
    return torch.where(present, both / either.clamp(min=1), 0.0).sum(1) / present.sum(1).clamp(min=1)


def agreement(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of positions whose class is that of other outputs: (batch,) float64. Needs no labels.

    Args:
        outputs: (batch, classes) or (batch, classes, ...).
        targets: Other outputs of the same shape, those of the network with all channels on.

    Raises:
        InvalidInputError: If there is only one class, so that all outputs would agree.
    """
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        raise InvalidInputError(
            f"Agreement compares which of several outputs is the largest, but the outputs are {tuple(outputs.shape)}. "
            "Give another metric, e.g. squared_error."
        )
    agree = outputs.argmax(1) == targets.argmax(1)
    return agree.double().reshape(len(agree), -1).mean(1)


METRICS: dict[str, Metric] = {
    function.__name__: function
    for function in (
        correct, probability, log_likelihood, top5, f1, labels_right, all_labels_right, squared_error, absolute_error,
        positions_right, iou, agreement,
    )
}  # fmt: skip
SHARES = set(METRICS) - {"log_likelihood", "squared_error", "absolute_error"}
"""Metrics from 0 to 1. The others are at most 0; ``explained`` is at most 1; your functions may return any number."""
