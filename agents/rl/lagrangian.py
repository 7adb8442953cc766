"""A MAC budget instead of a penalty: reinforcement learning adapts lambda until masks cost what is wanted."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping

from prunegym.envs.rewards.reward import FULL_MASK_COST
from prunegym.envs.task import Task
from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import Dataset
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.training.mac_target import TOLERANCE, meet_target, total_mac_share


@dataclasses.dataclass(frozen=True)
class Budget:
    """A total MAC share, the policy's MACs included, at which reinforcement learning begins and ends."""

    target_macs: float
    rate: float = 0.1
    """By how much the price of the full mask rises after each rollout that is above the target by a share of 1."""
    damping: float = 5.0
    """By how much the price is higher while that lasts. Without it lambda is far too high when the target is met, since
    the policy follows it late: on digits, from 0.98 to a target of 0.6, masks went down to 0.38 and did not recover."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 < self.target_macs <= 1:
            raise InvalidInputError(f"target_macs is {self.target_macs}; it must be above 0 and at most 1.")
        for name, value, usual in (("rate", self.rate, 0.1), ("damping", self.damping, 5.0)):
            if not 0 <= value < math.inf:
                raise InvalidInputError(f"{name} is {value}; a finite number of at least 0 is needed, e.g. {usual}.")


class DualAscent:
    """Adapts lambda: up while masks cost more than the target, down while they cost less, never below 0.

    Of max E[accuracy term] subject to E[MAC share] <= target, lambda is the Lagrange multiplier, and the difference is
    the gradient of the dual in it (Tessler et al. 2019). A term in proportion to the difference damps the sum of the
    steps (Stooke et al. 2020, "Responsive safety in reinforcement learning by PID Lagrangian methods").

    Args:
        budget: Target and rate.
        task: What is played; its lambda is where adaptation starts.

    Attributes:
        penalty: lambda as it is now.
        steady: lambda without damping, the sum of all steps.

    Raises:
        InvalidInputError: If the task's lambda is a range.
    """

    def __init__(self, budget: Budget, task: Task) -> None:
        if isinstance(task.penalty, tuple):
            raise InvalidInputError(
                f"The penalty is the range {task.penalty}, and there is a budget: for all lambdas there is no one "
                "budget. Leave the budget out, or give one penalty, from which it starts."
            )
        self.budget = budget
        self.penalty = self.steady = task.penalty
        # The lambda at which the full mask costs 1, so that one rate serves every unit of cost.
        self._unit = task.reward.default_penalty / FULL_MASK_COST

    def update(self, total_share: float) -> float:
        """Return lambda after a rollout whose masks had this mean total MAC share."""
        above = self._unit * (total_share - self.budget.target_macs)
        self.steady = max(0.0, self.steady + self.budget.rate * above)
        self.penalty = max(0.0, self.steady + self.budget.damping * above)
        return self.penalty

    def state(self) -> dict[str, float]:
        """Return what a checkpoint has to keep, plain JSON."""
        return {"penalty": self.penalty, "steady": self.steady}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from a checkpoint."""
        self.penalty, self.steady = state["penalty"], state["steady"]


class BudgetWarning(UserWarning):
    """A policy that no offset of its logits brings to its MAC budget."""


def shift_to_budget(
    masked: MaskedCNN, policy: GatePolicy, dataset: Dataset, budget: Budget, images: int = 1000
) -> None:
    """Shift a policy's logits, in place, so that its masks of so many images of a data set cost the budget."""
    meet_target(masked, policy, dataset, budget.target_macs, images=images, rounds=12)


def end_at_budget(masked: MaskedCNN, policy: GatePolicy, validation: Dataset, budget: Budget) -> float:
    """Shift a policy's logits, in place, to its budget on the whole validation split, of which labels are not seen.

    Returns:
        The total MAC share that it then has there, within :data:`TOLERANCE` of the budget unless there is a warning.
    """
    shift_to_budget(masked, policy, validation, budget, len(validation))
    share = total_mac_share(masked, policy, validation)
    if abs(share - budget.target_macs) > TOLERANCE:
        warnings.warn(
            f"The policy's total MAC share is {share:.3f}, not {budget.target_macs}, and no offset of its logits is "
            "nearer: the target is below what no mask can remove, or many images share one mask.",
            BudgetWarning,
            stacklevel=2,
        )
    return share
