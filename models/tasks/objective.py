"""Objectives: the kind of a data set's targets, with their loss and metric."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError, PruneGymError
from prunegym.models.tasks.losses import LOSSES, squared_error
from prunegym.models.tasks.metrics import METRICS, Metric
from prunegym.user_code import described, import_object, name_of
from prunegym.validation import choice, finite


class Kind(NamedTuple):
    """One kind of targets: a description, and the default loss and metric."""

    targets: str
    loss: str
    metric: str
    distance: str
    """The loss of :data:`LOSSES` that compares outputs with a teacher's outputs."""


KINDS: dict[str, Kind] = {
    "classes": Kind("one class per image: integers (count,)", "cross_entropy", "correct", "soft_cross_entropy"),
    "labels": Kind(
        "several labels per image: 0 and 1, (count, classes)", "binary_cross_entropy", "f1", "soft_binary_cross_entropy"
    ),
    "numbers": Kind("numbers: floats (count,) or (count, numbers)", "squared_error", "explained", "squared_error"),
    "maps": Kind(
        "a class for each position: integers (count, height, width)",
        "cross_entropy",
        "positions_right",
        "soft_cross_entropy",
    ),
    "outputs": Kind(
        "outputs of the dense network: floats (count, ...)", "soft_cross_entropy", "agreement", "soft_cross_entropy"
    ),
}
"""Kinds of targets. ``outputs`` is for images without labels: the masked network learns to agree with the dense one."""


def kind_of(targets: Tensor) -> str:
    """Return the kind of targets, by their type and shape.

    Raises:
        InvalidInputError: If they are none of :data:`KINDS`.

    Example:
        >>> kind_of(torch.tensor([0, 2])), kind_of(torch.tensor([[0, 1, 1]])), kind_of(torch.tensor([0.5]))
        ('classes', 'labels', 'numbers')
    """
    if targets.is_floating_point() and targets.ndim in (1, 2):
        return "numbers"
    whole = not targets.is_floating_point() and not targets.is_complex()
    kinds = {1: "classes", 2: "labels", 3: "maps"}
    if not whole or targets.ndim not in kinds:
        known = "; ".join(kind.targets for kind in KINDS.values())
        raise InvalidInputError(f"Targets are {targets.dtype} of shape {tuple(targets.shape)}. Known are {known}.")
    return kinds[targets.ndim]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The kind of targets, and how a network's outputs are compared with them.

    Attributes:
        kind: A key of :data:`KINDS`.
        loss: A key of :data:`prunegym.models.tasks.losses.LOSSES`, ``"module:function"``, or a function of outputs and
            targets that returns the mean loss; by default that of the kind.
        metric: A key of :data:`prunegym.models.tasks.metrics.METRICS`, ``"explained"``, ``"module:function"``, or a
            function of outputs and targets that returns (batch,) numbers, larger is better; by default the kind's.
        class_weights: Weight of each class in the loss.
        spread: Variance of the training targets, for the metric ``explained``.
    """

    kind: str = "classes"
    loss: str | Callable[..., Tensor] | None = None
    metric: str | Metric | None = None
    class_weights: tuple[float, ...] | None = None
    spread: float = 1.0

    def __post_init__(self) -> None:
        """Check names and numbers.

        Raises:
            UnknownNameError: If the kind, the loss or the metric has an unknown name.
            InvalidInputError: If a class weight or the spread is not above 0.
        """
        choice("kind of targets", self.kind, KINDS)
        for kind, one, known in (("loss", self.loss, [*LOSSES]), ("metric", self.metric, [*METRICS, "explained"])):
            if isinstance(one, str) and ":" not in one:
                choice(kind, one, known)
            elif one is not None and not isinstance(one, str) and not callable(one):
                raise InvalidInputError(
                    f"{kind} is a {type(one).__name__}; a name ({', '.join(known)}), 'module:function' or a function "
                    "is needed."
                )
        for weight in self.class_weights or ():
            finite("A class weight", weight, 0.0)
        finite("spread", self.spread, above=0)

    def loss_of(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, on the outputs' device.

        Args:
            outputs: (batch, ...) of the network.
            targets: (batch, ...) of the data set.
        """
        loss = self.loss or KINDS[self.kind].loss
        targets = targets.to(outputs.device)
        if isinstance(loss, str) and ":" not in loss:
            weights = None if self.class_weights is None else torch.tensor(self.class_weights)
            return LOSSES[loss](outputs, targets, weights)
        function = import_object(loss, "loss") if isinstance(loss, str) else loss
        return cast(Tensor, function(outputs, targets))

    def distance(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean distance of outputs from a teacher's outputs of the same shape."""
        name = KINDS[self.kind].distance
        if outputs.ndim < 2 or (outputs.shape[1] == 1 and name == "soft_cross_entropy"):
            return squared_error(outputs, teacher.to(outputs))  # a softmax over one output is always 1
        return LOSSES[name](outputs, teacher.to(outputs), None)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the metric of each image: (batch,) float64, on the outputs' device; larger is better."""
        metric = self.metric or KINDS[self.kind].metric
        targets = targets.to(outputs.device)
        if metric == "explained":
            # 1 - error / variance: its mean over images is R squared, with the training targets' variance.
            return 1 + METRICS["squared_error"](outputs, targets) / self.spread
        if isinstance(metric, str):
            metric = METRICS[metric] if ":" not in metric else cast(Metric, import_object(metric, "metric"))
        return metric(outputs, targets).double()

    @torch.inference_mode(False)
    @torch.enable_grad()
    def check(self, output_shape: Sequence[int], targets: Tensor, network: str = "The network") -> None:
        """Check, before training, that loss and metric can be computed from outputs of a shape.

        Args:
            output_shape: Shape of the network's output for an image.
            targets: (count, ...) of a data set; the first two are tried.
            network: Name of the network in the message.

        Raises:
            InvalidInputError: If they cannot, if the loss is not one finite number, or if the metric is not one number
                per image.
        """
        few = targets[:2]
        outputs = torch.zeros(len(few), *output_shape, requires_grad=True)
        what = f"outputs {tuple(outputs.shape)} and targets {few.dtype} {tuple(few.shape)}"
        for kind, function, shape in (("loss", self.loss_of, ()), ("metric", self.score, (len(few),))):
            named = self.name(kind)
            try:
                found = function(outputs, few)
            except PruneGymError:
                raise
            except Exception as error:  # whatever torch or the user's function raises
                raise InvalidInputError(
                    f"{network} has {what}, to which the {kind} {named!r} does not fit ({_first_line(error)}). Choose "
                    f"another {kind}, or a network whose outputs fit targets that are {KINDS[self.kind].targets}."
                ) from error
            fine = isinstance(found, Tensor) and tuple(found.shape) == shape and bool(found.isfinite().all())
            if not fine:
                shown = f"{tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
                needed = "one finite number" if kind == "loss" else "one finite number per image"
                raise InvalidInputError(
                    f"The {kind} {named!r} returned {shown} for {what}; a tensor with {needed} is needed."
                )
        if not self.loss_of(outputs, few).requires_grad:
            raise InvalidInputError(
                f"The loss {self.name('loss')!r} has no gradient. Compute it with torch's functions."
            )

    def name(self, part: str) -> str:
        """Return the name of the ``loss`` or ``metric``; your function has the name ``module:function``."""
        own = getattr(self, part)
        if own is None:
            return str(getattr(KINDS[self.kind], part))
        return own if isinstance(own, str) else f"{getattr(own, '__module__', '')}:{name_of(own)}"

    def fingerprint(self) -> str:
        """Return a text that is different for another loss, metric or weight; your functions count by their source."""
        own = {part: getattr(self, part) for part in ("loss", "metric")}
        functions = {name: described(one) for name, one in own.items() if callable(one) or ":" in (one or "")}
        return f"{self.as_json()} {functions}"

    def as_json(self) -> dict[str, Any]:
        """Return it as plain JSON, with functions as names."""
        own = {part: self.name(part) for part in ("loss", "metric") if getattr(self, part) is not None}
        return {**dataclasses.asdict(self), **own}


def balanced_weights(targets: Tensor, classes: int) -> tuple[float, ...]:
    """Return weights that give all classes the same total weight, whatever their number of images or positions.

    Args:
        targets: (count,) or (count, height, width) integers; negative ones do not count.
        classes: Number of classes; one without images gets weight 0.
    """
    counts = targets[targets >= 0].long().bincount(minlength=classes).double()
    present = counts > 0
    weights = torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), 0.0)
    return tuple(weights.tolist())


def spread_of(targets: Tensor) -> float:
    """Return the variance of numbers (count,) or (count, numbers), averaged; 1 if they are all the same."""
    variance = float(targets.double().reshape(len(targets), -1).var(0, unbiased=False).mean())
    return variance if variance > 0 else 1.0


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
