"""Variants of constants in place of masked channels, for results/constants.py.

Those of gates begin with what that script has made: the gates after imitation, or the gates and constants that were
trained.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn

from prunegym import DynamicCNN
from prunegym.agents import train_agent
from prunegym.agents.baselines.static_masks import greedy_static, taylor_static
from prunegym.agents.rl.recipe_files import adjusted_recipe
from prunegym.models import Dataset, GatePolicy, MaskedCNN
from prunegym.models.gating.importance import channel_scores
from prunegym.models.gating.static_policy import StaticPolicy, deciding_macs, fixed_policy, rollout
from prunegym.models.masking.graph import Step, attribute_of
from prunegym.models.training import preparation
from prunegym.models.training.preparation import PrepareConfig, prepare
from prunegym.models.training.tuning import TuneConfig, tune

RATE = 0.03
"""Of the parameters from which constants are predicted, as a share of the gates' learning rate: with a rate of 1 an
image's constants change by tens of the learning rate in a step, and training diverges."""


EPISODES: int | None = None
"""Of PPO; None for those of the recipe."""


class PredictedConstants(GatePolicy):
    """Gates whose hidden layers also predict, for each image, what is added to the constants.

    Args:
        policy: The gates, which are copied; the predictions are 0 at first.
        masked: The CNN, which gets constants. Its readers use the predictions of the last decisions.
    """

    def __init__(self, policy: GatePolicy, masked: MaskedCNN) -> None:
        super().__init__(policy.features, policy.config["hidden"])  # type: ignore[arg-type]
        self.load_state_dict(policy.state_dict())
        widths = [decision.width for decision in self.decisions]
        hidden = [head[-1].in_features for head in self.heads]  # type: ignore[index]
        self.shifts = nn.ModuleList(nn.Linear(*sizes, bias=False) for sizes in zip(hidden, widths, strict=True))
        for shift in self.shifts:
            nn.init.zeros_(shift.weight)  # type: ignore[arg-type]
        self.macs += sum(one * other for one, other in zip(hidden, widths, strict=True))
        self.predicted: dict[int, Tensor] = {}
        self._widths = [gate.width for gate in masked.gates]
        masked.compensate(torch.zeros(masked.mask_size))
        masked._compensated = self._reading(masked)  # type: ignore[method-assign]

    def logits(self, decision: int, features: Tensor, penalty: Tensor | float | None = None) -> Tensor:  # noqa: ARG002
        """Return the gates' logits (batch, width), and keep the predictions of the decision."""
        head = self.heads[decision]
        hidden = head[:-1](features.to(head[0].weight.dtype))  # type: ignore[index]
        shifts = RATE * self.shifts[decision](hidden)
        gates = self.decisions[decision].gates
        parts = torch.split(shifts, [self._widths[gate] for gate in gates], 1)
        self.predicted |= dict(zip(gates, parts, strict=True))
        logits: Tensor = head[-1](hidden)  # type: ignore[index]
        return logits.float()

    def _reading(self, masked: MaskedCNN) -> Callable[[Step, Tensor, list[Tensor | None]], Tensor]:
        def compensated(step: Step, value: Tensor, masks: list[Tensor | None]) -> Tensor:
            if step.name not in masked.readers or masked.constants is None:
                return value
            reader, constants = masked.readers[step.name], masked.split(masked.constants)
            table = reader.table(
                attribute_of(masked.network, masked.graph[step.name].weight),
                [torch.ones_like(constants[gate]) for gate in reader.gates],
            )
            # The readers add (1 - bit) * table; with these bits, (1 - mask) * constant of the image.
            bits = [
                None if (mask := masks[gate]) is None else 1 - (1 - mask) * (constants[gate] + self.predicted[gate])
                for gate in reader.gates
            ]
            return value if bits.count(None) == len(bits) else reader.add(value, bits, table)

        return compensated


@torch.inference_mode()
def figures(masked: MaskedCNN, policy: GatePolicy, split: Dataset) -> tuple[dict[str, Any], Tensor]:
    """Measure a policy on all images of a split, with torch alone: other executions know no predicted constants.

    Returns:
        Figures as of :class:`prunegym.agents.Evaluation`, and whether each answer is right, (images,) bool.
    """
    right, dense, total, own = [], [], [], []
    for indices, images in split.batches(250, device=masked.device):
        run = rollout(masked, policy, images)
        spent = deciding_macs(masked, policy, run.mask)
        right.append(run.output.argmax(1) == split.labels[indices])
        dense.append(masked(images).argmax(1) == split.labels[indices])
        total.append(masked.cost.total_share(run.mask, spent))
        own.append(spent / masked.cost.total_macs)
    names = ("accuracy", "dense_accuracy", "total_mac_share", "policy_mac_share")
    means = (float(torch.cat(parts).double().mean()) for parts in (right, dense, total, own))
    return {**dict(zip(names, means, strict=True)), "images": len(split)}, torch.cat(right)


def predicted(
    masked: MaskedCNN, start: GatePolicy, train: Dataset, config: TuneConfig, teacher: Tensor, checkpoint: Path
) -> tuple[MaskedCNN, PredictedConstants]:
    """Train gates, constants and their predictions together; then shift the gates to their MAC target."""
    masked = copy.deepcopy(masked)
    with torch.random.fork_rng(devices=[]):
        policy = PredictedConstants(start, masked)
    tune(masked, policy, train, config, teacher=teacher, checkpoint=checkpoint)
    assert config.target is not None
    sample, low, high, applied = train.sample(1000), -8.0, 8.0, 0.0
    for _ in range(12):  # bisection of the offset: the larger it is, the more channels are kept
        middle = (low + high) / 2
        policy.rescale_logits(offset=middle - applied)
        applied = middle
        over = figures(masked, policy, sample)[0]["total_mac_share"] > config.target
        low, high = (low, middle) if over else (middle, high)
    return masked, policy


def scores_under_constants(masked: MaskedCNN, images: Tensor) -> Tensor:
    """Score channels as :func:`channel_scores`, by how far they are from the constants in their place.

    Returns:
        (batch, mask_size) float32.
    """
    assert masked.constants is not None
    zeros = channel_scores(masked, images)
    state = masked.begin(images, record=True)
    masked.finish(state)
    points, constants = state.points or {}, masked.split(masked.constants.detach())
    ratios = []
    for gate in range(len(masked.gates)):
        values = points[gate].float()
        away = (values - constants[gate][None, :, None, None]).square().mean((2, 3)).sqrt()
        ratios.append(away / values.square().mean((2, 3)).sqrt().clamp_min(1e-6))
    return zeros * torch.cat(ratios, 1)


def imitated(
    masked: MaskedCNN, train: Dataset, config: PrepareConfig, teacher: Tensor, folder: Path
) -> tuple[MaskedCNN, GatePolicy]:
    """Imitate a teacher that ranks channels under the constants that a CNN has; then train both on, as ever."""
    with mock.patch.object(preparation, "channel_scores", scores_under_constants):
        made, policy = prepare(masked, train, config, teacher=teacher, folder=folder)
    assert isinstance(policy, GatePolicy)
    return made, policy


def fixed(
    masked: MaskedCNN, kind: str, train: Dataset, config: TuneConfig, teacher: Tensor, checkpoint: Path
) -> tuple[MaskedCNN, StaticPolicy]:
    """Train constants for the mask of Taylor scores (``taylor``) or of greedy search (``greedy``)."""
    assert config.target is not None
    masked, search = copy.deepcopy(masked), {"taylor": taylor_static, "greedy": greedy_static}[kind]
    policy = fixed_policy(masked, search(masked, train, config.target).mask.float())
    config = dataclasses.replace(config, target_macs=1.0, train_gates=False)
    tune(masked, policy, train, config, teacher=teacher, checkpoint=checkpoint)
    return masked, policy


class TrainConstants(BaseCallback):
    """After each rollout of PPO, a step of Adam on the constants, with its images and masks."""

    def __init__(self, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.learning_rate = learning_rate

    def _on_training_start(self) -> None:
        self.simulator = self.training_env.get_attr("simulator")[0]
        self.constants = self.simulator.task.masked.constants
        self.adam = torch.optim.Adam([self.constants], self.learning_rate)

    def _on_step(self) -> bool:
        return True

    @torch.inference_mode(False)
    def _on_rollout_end(self) -> None:
        outcome = self.simulator._outcome  # of the episodes that have just ended
        masked, data, indices = outcome.masked, outcome.dataset, outcome.indices.clone()
        self.constants.requires_grad_(True)
        with torch.enable_grad():
            output = masked(data.batch(indices), outcome.mask.clone())
            loss = data.loss(output, indices)
            (self.constants.grad,) = torch.autograd.grad(loss, self.constants)
        self.constants.requires_grad_(False)
        self.adam.step()


def reinforced(
    model: DynamicCNN, splits: dict[str, Dataset], share: float, seed: int, folder: Path, *, train: bool
) -> DynamicCNN:
    """Train gates by PPO at a MAC budget, from gates with constants; the constants are trained too, or not."""
    settings = [(("callbacks",), ["constant_variants:TrainConstants"])] if train else []
    recipe = adjusted_recipe("refined", episodes=EPISODES, target_macs=share, settings=settings)
    masked = copy.deepcopy(model.masked)
    return train_agent(
        masked, model.info, splits["train"], splits["validation"], recipe, folder, policy=model.policy, seed=seed,
        resume=folder.exists(), progress=False,
    )  # fmt: skip
