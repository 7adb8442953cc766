"""Accuracy terms: the quality of the masked CNN's answer to each image, as one number to maximise."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from prunegym.envs.rewards.outcome import Outcome
from prunegym.errors import InvalidInputError, RewardError
from prunegym.models.tasks import metrics
from prunegym.user_code import import_object
from prunegym.validation import choice

AccuracyTerm = Callable[[Outcome], Tensor]


def correct(outcome: Outcome) -> Tensor:
    """Return 1 where the class is right, else 0: (batch,) float64."""
    return metrics.correct(_class_logits(outcome, "correct"), outcome.labels)


def log_likelihood(outcome: Outcome) -> Tensor:
    """Return the log-probability of the true class: (batch,) float64, at most 0."""
    return metrics.log_likelihood(_class_logits(outcome, "log_likelihood"), outcome.labels)


def probability(outcome: Outcome) -> Tensor:
    """Return the probability of the true class: (batch,) float64."""
    return metrics.probability(_class_logits(outcome, "probability"), outcome.labels)


def fidelity(outcome: Outcome) -> Tensor:
    """Return 1 where the class is that of the dense CNN, else 0: (batch,) float64. Needs no labels.

    For outputs (batch, classes, ...) it is the share of positions that agree.
    """
    return metrics.agreement(outcome.logits, outcome.dense_logits)


def metric(outcome: Outcome) -> Tensor:
    """Return the data set's own metric, see :class:`prunegym.models.tasks.objective.Objective`: (batch,) float64."""
    return outcome.dataset.objective.score(outcome.logits, outcome.labels)


ACCURACY_TERMS: dict[str, AccuracyTerm] = {
    "correct": correct,
    "log_likelihood": log_likelihood,
    "probability": probability,
    "fidelity": fidelity,
    "metric": metric,
}
OF_CLASSES = (correct, log_likelihood, probability)
"""Terms for one class per image. With other targets, or a metric that you chose, ``metric`` replaces them."""


def resolve_accuracy(accuracy: str | AccuracyTerm) -> AccuracyTerm:
    """Return an accuracy term.

    Args:
        accuracy: A key of :data:`ACCURACY_TERMS`, ``"module:function"``, or a function from an
            :class:`~prunegym.envs.Outcome` of a batch to (batch,) numbers.

    Raises:
        UnknownNameError: If there is no such name.
        InvalidInputError: If it is not a function.
    """
    if isinstance(accuracy, str) and ":" in accuracy:
        accuracy = import_object(accuracy, "accuracy term")
    if isinstance(accuracy, str):
        return ACCURACY_TERMS[choice("accuracy term", accuracy, ACCURACY_TERMS)]
    if not callable(accuracy):
        raise InvalidInputError(
            f"accuracy is {accuracy!r}; a name ({', '.join(ACCURACY_TERMS)}), 'module:function' or a function from an "
            "Outcome to (batch,) numbers is needed."
        )
    return accuracy


def _class_logits(outcome: Outcome, name: str) -> Tensor:
    logits = outcome.logits
    if logits.ndim != 2 or logits.shape[1] <= int(outcome.labels.max()):
        raise RewardError(
            f"The accuracy term {name!r} needs an output (batch, classes) with a class for each label up to "
            f"{int(outcome.labels.max())}; this network's is {tuple(logits.shape)}. Pass your own function as "
            "accuracy=, from an Outcome to (batch,) numbers."
        )
    return logits
