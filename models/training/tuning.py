"""Steps 3 and 5 of the article: gates trained through their sigmoids, alone or together with the CNN."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import Augment, Dataset
from prunegym.models.gating.static_policy import Policy, Rollout, StraightThrough, deciding_macs, greedy, rollout
from prunegym.models.masking.compensation import COMPENSATIONS
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.precision import new_tensors_in
from prunegym.models.training import cnn_training
from prunegym.models.training.mac_target import between, check_range, check_reachable, check_shares
from prunegym.settings import check_types
from prunegym.validation import choice, finite, share, typed, whole_number

CONSTANT_LEARNING_RATE = 5e-3
"""Peak learning rate of Adam for constants. With 2e-2 ResNet-20 lost a quarter of a point."""


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """Settings of training gates, and optionally the CNN, by gradient."""

    target_macs: float | Sequence[float] | None = None
    """Final total MAC share, the policy's MACs included; by default 0.5, unless ``sparsity`` is given.

    For a policy with a range of lambdas give two shares, for the lowest and the highest lambda. With one share only the
    middle of the range is trained."""
    epochs: float = 8.0
    batch_size: int = 128
    train_cnn: bool = True
    """False: the CNN stays frozen, and only the gates are refined."""
    train_gates: bool = True
    """False: the policy does not change, and the CNN, or the constants, adapt to it."""
    compensation: Literal["zero", "constant"] | None = None
    """``constant``: layers that read masked channels get learnt constants in their place, which are trained here. Those
    that a CNN has already are trained in any case. The default is zeros."""
    cnn_learning_rate: float = 0.05
    gate_learning_rate: float = 2e-3
    weight_decay: float = 5e-4
    distillation: float = 0.5
    """Weight (0 to 1) of the distance to the original network's outputs; the rest is the data set's loss."""
    anneal: float = 0.4
    """Share of the steps in which the MAC target falls from 1 to ``target_macs``."""
    over_weight: float = 60.0
    """Weight of the squared MAC share above the target."""
    under_weight: float = 5.0
    """Weight of the squared MAC share below it."""
    augment: Augment = True
    """``flip`` is best for a policy with a coarse grid, because test images are not shifted."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int | None = None
    """None: that of :class:`prunegym.models.PrepareConfig`."""
    sparsity: float | None = None
    """The article's method 5.2: lambda of loss = task + lambda ||M(x)||_1, the sum of an image's keep probabilities.

    So lambda is the price of a channel, as in reward ``l0``. It replaces the MAC target during training. If both are
    given, :func:`prunegym.models.prepare` shifts the logits to the MAC target afterwards."""

    def __post_init__(self) -> None:
        """Check the target and lambda."""
        check_types(self)
        if self.target_macs is None and self.sparsity is None:
            object.__setattr__(self, "target_macs", 0.5)
        if self.target_macs is not None:
            check_shares("target_macs", self.target_macs)
        whole_number("batch_size", self.batch_size)
        for name in ("epochs", "cnn_learning_rate", "gate_learning_rate"):
            finite(name, getattr(self, name), above=0)
        for name in ("distillation", "anneal"):
            share(name, getattr(self, name), zero=True)
        for name in ("weight_decay", "over_weight", "under_weight"):
            finite(name, getattr(self, name), 0)
        if self.compensation is not None:
            choice("compensation", self.compensation, COMPENSATIONS)
        choice("precision", self.precision, cnn_training.PRECISIONS)
        if self.seed is not None:
            whole_number("seed", self.seed, 0)
        if self.sparsity is not None and not isinstance(self.target_macs, float | int | None):
            raise InvalidInputError(
                "sparsity cannot be combined with two MAC targets. Give one target, or leave out sparsity."
            )
        if self.sparsity is not None:
            finite("sparsity", self.sparsity, 0, hint="It is lambda, the price of a channel, e.g. 0.01.")
        if self.sparsity is not None and not self.train_gates:
            raise InvalidInputError("sparsity prices what gates keep, but train_gates is False. Remove one of the two.")

    @property
    def target(self) -> float | None:
        """The final MAC share if it is one number; None if there is no target or one for each end of the range."""
        return self.target_macs if isinstance(self.target_macs, float | int) else None

    def at(self, position: float) -> TuneConfig:
        """Return the configuration for a lambda at a position (0 to 1) of its range."""
        return dataclasses.replace(self, target_macs=between(self.target_macs, position))


@new_tensors_in()
@typed
def tune(
    masked: MaskedCNN,
    policy: Policy,
    dataset: Dataset,
    config: TuneConfig,
    *,
    teacher: Tensor | None = None,
    checkpoint: Path | str | None = None,
    report: cnn_training.Report | None = None,
) -> None:
    """Train gates straight-through, in place, to a MAC target or with a price of channels; then freeze the CNN.

    Args:
        masked: The CNN. It gets constants, zeros at first, if the configuration asks for them.
        policy: Its gates. With two targets, a policy for a range of lambdas gets a random lambda at each step.
        dataset: Training images.
        config: The settings.
        teacher: The original network's logits for each image (count, classes); by default the CNN's before training.
        checkpoint: File written after each epoch. If it exists, training resumes from it.
        report: Called after each epoch with ``epoch``, ``loss`` and ``mac_share``.

    Raises:
        InvalidInputError: If the loss becomes NaN or infinite, or there are two targets, but the policy is for one
            lambda, or a target is below the MAC share of masks that switch off all channels.
    """
    check_range("target_macs", config.target_macs, policy)
    check_reachable("target_macs", config.target_macs, masked)
    dataset = dataset.augmenting(config.augment)
    dataset = cnn_training.answered(dataset, masked)
    if teacher is None and config.distillation > 0:
        teacher = cnn_training.dense_logits(masked, dataset)
    if config.train_cnn:
        masked.unfreeze()
        masked.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches_an_epoch = cnn_training.epoch_batches(len(dataset), config.batch_size, 0, 0)[0].shape[0]
    steps = max(1, round(config.epochs * batches_an_epoch))
    if config.compensation == "constant" and masked.constants is None:
        masked.compensate(torch.zeros(masked.mask_size))
    if masked.constants is not None:
        masked.constants.requires_grad_(True)
    training = _Training(masked, policy, config, steps)
    stored = cnn_training.Checkpoint(checkpoint, training.parts, config, {"CNN": masked, "training images": dataset})
    training.done = stored.restore()
    while training.done < steps:
        epoch = training.done // batches_an_epoch
        batches, generator = cnn_training.epoch_batches(len(dataset), config.batch_size, config.seed or 0, epoch)
        rows = []
        left = batches[: steps - training.done]
        for indices, images in dataset.stream(left, device=masked.device, augment=generator):
            target = None if teacher is None else teacher[indices]
            rows.append(training.step(dataset, indices, images, generator, target))
        _report_epoch(epoch, rows, report)
        stored.store(training.done)
    masked.freeze()


class _Training:
    """The CNN and its gates with their optimizers, trained step by step."""

    def __init__(self, masked: MaskedCNN, policy: Policy, config: TuneConfig, steps: int) -> None:
        self.masked, self.policy, self.config, self.steps = masked, policy, config, steps
        self.done, self.two_targets = 0, not isinstance(config.target_macs, float | int | None)
        self.optimizers: list[torch.optim.Optimizer] = []
        if config.train_cnn:
            self.optimizers.append(cnn_training.sgd(masked.network, config.cnn_learning_rate, config.weight_decay))
        if config.train_gates:
            self.optimizers.append(torch.optim.Adam(policy.parameters(), config.gate_learning_rate))
        if masked.constants is not None:
            self.optimizers.append(torch.optim.Adam([masked.constants], CONSTANT_LEARNING_RATE))
        self.schedules = [cnn_training.one_cycle(optimizer, steps) for optimizer in self.optimizers]
        self.parts: list[Any] = [masked, policy, *self.optimizers, *self.schedules]

    def step(
        self, dataset: Dataset, indices: Tensor, images: Tensor, generator: torch.Generator, teacher: Tensor | None
    ) -> tuple[float, float]:
        """Make one update on a batch; return its loss and its mean total MAC share."""
        config, device, penalty = self.config, self.masked.device, None
        if self.two_targets and self.policy.penalty_range is not None:
            position = float(torch.rand((), generator=generator))
            config, penalty = config.at(position), between(self.policy.penalty_range, position)
        noise = StraightThrough(generator) if config.train_gates else greedy
        with cnn_training.autocast(device, config.precision):
            run = rollout(self.masked, self.policy, images, noise, penalty)
        loss = _task_loss(run, dataset, indices, teacher, config)
        mac_share = self.masked.cost.total_share(run.mask, deciding_macs(self.masked, self.policy, run.mask)).mean()
        if config.train_gates:
            loss = loss + _cost_loss(run, mac_share, self.done / self.steps, config)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if config.train_cnn:
            nn.utils.clip_grad_norm_(self.masked.network.parameters(), 5.0)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
        self.done += 1
        return loss.item(), mac_share.item()


def _task_loss(run: Rollout, dataset: Dataset, indices: Tensor, teacher: Tensor | None, config: TuneConfig) -> Tensor:
    output = run.output.float()
    loss = dataset.loss(output, indices)
    if teacher is None or config.distillation == 0:
        return loss
    distance = dataset.objective.distance(output, teacher)
    return (1 - config.distillation) * loss + config.distillation * distance


def _cost_loss(run: Rollout, mac_share: Tensor, progress: float, config: TuneConfig) -> Tensor:
    if config.sparsity is not None:
        # lambda ||M(x)||_1, averaged over images (the article's method 5.2).
        return config.sparsity * torch.sigmoid(run.gate_logits.float()).sum(1).mean()
    assert config.target is not None
    # The target falls linearly from 1; the penalty is quadratic, and larger above the target than below.
    left = max(0.0, 1 - progress / config.anneal) if config.anneal else 0.0
    target = config.target + (1 - config.target) * left
    over, under = F.relu(mac_share - target), F.relu(target - mac_share)
    return config.over_weight * over.square() + config.under_weight * under.square()


def _report_epoch(epoch: int, rows: list[tuple[float, float]], report: cnn_training.Report | None) -> None:
    loss, share = (sum(values) / len(rows) for values in zip(*rows, strict=True))
    if not math.isfinite(loss):
        raise InvalidInputError(f"The loss became {loss} in epoch {epoch + 1}. Lower the learning rates.")
    if report is not None:
        report({"epoch": epoch + 1, "loss": loss, "mac_share": share})
