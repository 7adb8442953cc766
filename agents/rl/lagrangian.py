"""A MAC budget instead of a fixed penalty: lambda adapts to it during training, an offset of the logits afterwards."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunegym.agents.evaluation.masks import decide_on_the_way, penalised_accuracy
from prunegym.envs.rewards.reward import FULL_MASK_COST
from prunegym.envs.task import Task
from prunegym.models.data.dataset import Dataset
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.gating.static_policy import deciding_macs, rollout
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.skipping_cnn import prefer_kernel
from prunegym.models.storage.weights import read_weights, write_tensors
from prunegym.models.training.mac_target import TOLERANCE, meet_target, total_mac_share
from prunegym.validation import finite, share, typed

OFFSETS = tuple(0.2 * step for step in range(-14, 11))
"""Offsets that are tried for a reward that is not ``macs``, in standard deviations of the logits."""
Measure = Callable[[Tensor, Tensor, float], float]
"""See :data:`prunegym.agents.rl.recipe.OwnReward`."""
ROUNDS = 12
"""Halvings of the interval, when a policy's logits are shifted to its budget."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """A total MAC share, with the policy's MACs. Reinforcement learning starts and ends there."""

    target_macs: float
    rate: float = 0.1
    """How much the price of the full mask rises per rollout, for a MAC share that is 1 above the target."""
    damping: float = 5.0
    """How much higher the price is as long as the MAC share is above the target. The policy reacts late, so without
    damping lambda is far too high when masks reach the target. On digits, masks that began at 0.98 fell past the
    target of 0.6 to 0.38, and did not recover."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        share("target_macs", self.target_macs, hint="It is a total MAC share, for example 0.6.")
        finite("rate", self.rate, 0, hint="A usual value is 0.1.")
        finite("damping", self.damping, 0, hint="A usual value is 5.")


class DualAscent:
    """Adapts lambda: up while masks cost more than the target, down while they cost less, never below 0.

    In the problem max E[accuracy term] subject to E[MAC share] <= target, lambda is the Lagrange multiplier. The MAC
    share minus the target is the gradient of the dual problem in lambda (Tessler et al. 2019). A term proportional to
    this difference damps oscillations (Stooke et al. 2020, "Responsive safety in reinforcement learning by PID
    Lagrangian methods").

    Args:
        budget: Target, rate and damping.
        task: The task. Adaptation starts at its lambda, which is one number.

    Attributes:
        penalty: The current lambda.
        steady: lambda without damping: its start plus all steps.
    """

    def __init__(self, budget: Budget, task: Task) -> None:
        assert not isinstance(task.penalty, tuple)  # a recipe with a budget has no range
        self.budget = budget
        self.penalty = self.steady = task.penalty
        # The lambda at which the full mask costs 1, so that one rate suits rewards in any unit of cost.
        self._unit = task.reward.default_penalty / FULL_MASK_COST

    def update(self, total_share: float) -> float:
        """Return lambda after a rollout whose masks had this mean total MAC share."""
        # Integral and proportional part of Stooke et al. (2020): steady += rate * e, penalty = steady + damping * e.
        above = self._unit * (total_share - self.budget.target_macs)
        self.steady = max(0.0, self.steady + self.budget.rate * above)
        self.penalty = max(0.0, self.steady + self.budget.damping * above)
        return self.penalty

    def state(self) -> dict[str, float]:
        """Return the state for a checkpoint, as plain JSON."""
        return {"penalty": self.penalty, "steady": self.steady}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from the state of a checkpoint."""
        self.penalty, self.steady = (finite(name, state[name], 0) for name in ("penalty", "steady"))


class BudgetWarning(UserWarning):
    """No offset of the policy's logits brings it to its MAC budget."""


def end_at_budget(masked: MaskedCNN, policy: GatePolicy, validation: Dataset, budget: Budget) -> float:
    """Shift a policy's logits, in place, to its budget on the whole validation split. Labels are not used.

    Returns:
        The total MAC share there, within :data:`TOLERANCE` of the budget unless there is a warning.
    """
    meet_target(masked, policy, validation, budget.target_macs, images=len(validation), rounds=ROUNDS)
    spent = total_mac_share(masked, policy, validation)
    if abs(spent - budget.target_macs) > TOLERANCE:
        warnings.warn(
            f"The policy's total MAC share is {spent:.3f}, not {budget.target_macs}, and no offset of its logits comes "
            "closer. Either the target is below the fixed MACs, or many images share one mask.",
            BudgetWarning,
            stacklevel=2,
        )
    return spent


@typed
def gates_at_mac_share(agent: DynamicCNN, dataset: Dataset, share: float) -> DynamicCNN:
    """Shift a dynamic CNN's gate logits until it uses a given share of the MACs.

    Use it to compare gates before and after reinforcement learning at the same cost. The offset is exact to 0.01, and
    at most 1,000 images are measured.

    Args:
        agent: Masked CNN and gates; not changed.
        dataset: Images to measure on, if possible those that you evaluate on. Labels are not used.
        share: Total MAC share, with the policy's MACs.

    Returns:
        The same CNN with a shifted copy of the gates.
    """
    finite("share", share, above=0)
    policy = copy.deepcopy(agent.policy)
    meet_target(agent.masked, policy, dataset, share)
    return DynamicCNN(agent.masked, policy, agent.info)


@torch.no_grad()
@typed
def gates_at_best_offset(
    agent: DynamicCNN, dataset: Dataset, penalty: float, *, step: float = 0.15, measure: Measure | None = None
) -> DynamicCNN:
    """Shift a dynamic CNN's gate logits by the offset with the highest reward, correct - penalty * total MAC share.

    Compare an agent with the gates that it started from at this offset. The difference shows what reinforcement
    learning adds that a single offset does not. The search goes up step by step until two steps in a row do not help,
    then down in the same way, and finally tries half a step on each side of the best offset. For a reward of another
    kind all of :data:`OFFSETS` are tried.

    Args:
        agent: Masked CNN and gates; not changed.
        dataset: Labelled images to choose on, such as the validation split.
        penalty: lambda.
        step: Distance between two offsets, in standard deviations of the agent's logits.
        measure: Returns the mean of another reward; None for correct - penalty * total MAC share.

    Returns:
        The same CNN with a shifted copy of the gates.
    """
    finite("penalty", penalty, 0)
    if measure is not None:
        return best_of_offsets(agent, dataset, penalty, measure)[1]
    unit = step * _deviation(agent, dataset)
    rewards = {0.0: _reward(agent, dataset, *_decided(agent, dataset), penalty)}

    def try_at(steps: float) -> None:
        moved = _shifted(agent, steps * unit)
        rewards[steps] = _reward(moved, dataset, *_decided(moved, dataset), penalty)

    def best() -> float:
        return max(rewards, key=lambda steps: rewards[steps])

    for side in (1.0, -1.0):
        steps = side
        while abs(steps - best()) <= 2:
            try_at(steps)
            steps += side
    middle = best()
    for steps in (middle - 0.5, middle + 0.5):
        try_at(steps)
    return _shifted(agent, best() * unit)


@torch.no_grad()
def best_of_offsets(
    agent: DynamicCNN, dataset: Dataset, penalty: float, measure: Measure | None, stored: Path | None = None
) -> tuple[float, DynamicCNN]:
    """Shift a dynamic CNN's gate logits by the one of :data:`OFFSETS` with the highest mean reward on a split.

    All are tried: a reward without a gradient may be flat around the gates, so that a search by steps stops at once.

    Args:
        agent: Masked CNN and gates; not changed.
        dataset: Labelled images to choose on.
        penalty: lambda.
        measure: Returns the mean reward; None for correct - penalty * total MAC share.
        stored: File that keeps the masks and outputs at all offsets, for other rewards on the same gates and images:
            the CNN is run once for all of them. The caller names it by the gates and the images. None keeps nothing.

    Returns:
        The reward, and the same CNN with a shifted copy of the gates.
    """
    unit = _deviation(agent, dataset)
    shifted = [_shifted(agent, steps * unit) for steps in OFFSETS]
    if stored is None or not stored.exists():
        decided = [_decided(moved, dataset) for moved in shifted]
        if stored is not None:
            packed = [torch.from_numpy(np.packbits(masks.numpy(), axis=1)) for masks, _ in decided]
            write_tensors(
                stored, {"masks": torch.stack(packed), "logits": torch.stack([logits for _, logits in decided])}
            )
    else:
        tensors = read_weights(stored)
        bits = np.unpackbits(tensors["masks"].numpy(), axis=2, count=agent.masked.mask_size).astype(bool)
        decided = list(zip(torch.from_numpy(bits), tensors["logits"], strict=True))
    rewards = [_reward(moved, dataset, *done, penalty, measure) for moved, done in zip(shifted, decided, strict=True)]
    best = max(range(len(shifted)), key=rewards.__getitem__)
    return rewards[best], shifted[best]


def _deviation(agent: DynamicCNN, dataset: Dataset) -> float:
    """Return the standard deviation of the gates' logits over some images."""
    some = dataset.batch(torch.arange(min(250, len(dataset))), device=agent.masked.device)
    return rollout(agent.masked, agent.policy, some).gate_logits.std().item()


def _shifted(agent: DynamicCNN, offset: float) -> DynamicCNN:
    policy = copy.deepcopy(agent.policy)
    policy.rescale_logits(offset=offset)
    return DynamicCNN(agent.masked, policy, agent.info)


def _decided(agent: DynamicCNN, dataset: Dataset) -> tuple[Tensor, Tensor]:
    run = prefer_kernel(agent.masked, agent.policy)
    return decide_on_the_way(run, dataset, agent.masked.device)


def _reward(
    agent: DynamicCNN, dataset: Dataset, masks: Tensor, logits: Tensor, penalty: float, measure: Measure | None = None
) -> float:
    if measure is not None:
        return measure(masks, logits, penalty)
    shares = agent.masked.cost.total_share(masks, deciding_macs(agent.masked, agent.policy, masks))
    return penalised_accuracy(dataset.score(logits), shares, penalty).mean().item()
