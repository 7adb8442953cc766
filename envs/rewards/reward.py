"""Rewards: R = accuracy term - lambda * cost of the mask, by name, or your own function."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from prunegym.envs.rewards.accuracy import ACCURACY_TERMS, OF_CLASSES, AccuracyTerm, correct, metric, resolve_accuracy
from prunegym.envs.rewards.calling import call_checked
from prunegym.envs.rewards.costs import Cost, CostReward, LatencyShare, kept_channels, kept_weights, mac_share
from prunegym.envs.rewards.outcome import Outcome
from prunegym.errors import InvalidInputError, PenaltyWarning
from prunegym.models.data.dataset import Dataset
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.timing.latency_table import LatencyTable, open_table
from prunegym.user_code import import_object, name_of
from prunegym.validation import choice

FULL_MASK_COST = 0.5
"""Cost of all channels with the default penalty: half of what a right answer earns."""
TOO_EXPENSIVE = 10.0
"""If all channels cost more right answers than this, lambda was probably meant as the price of the whole network."""

RewardFunction = Callable[[Outcome], Tensor]


def blockdrop(outcome: Outcome) -> Tensor:
    """Return 1 - (kept share)^2 for a right answer and -penalty for a wrong one (BlockDrop: Wu et al. 2018).

    The share is that of channels here, and of residual blocks in the paper. lambda is the paper's gamma, which is 1 in
    its first stage.
    """
    share = outcome.kept / outcome.masked.mask_size
    # The paper's reward R(u), with u the mask.
    return torch.where(correct(outcome) == 1, 1 - share.square(), -outcome.penalty)


@dataclasses.dataclass(frozen=True)
class NamedReward:
    """A row of :data:`REWARDS`; exactly one of ``cost``, ``timed`` and ``whole`` is given.

    Attributes:
        cost: R = accuracy term - lambda * cost(mask).
        unit: The unit that lambda is the price of, e.g. ``channel``; empty if the cost is a share of the dense
            network's.
        timed: Makes the cost from a latency table.
        whole: The whole reward, without an accuracy term to choose.
        default_penalty: lambda of a whole reward. For a cost it is set so that all channels cost 0.5.
    """

    cost: Cost | None = None
    unit: str = ""
    timed: Callable[[LatencyTable], Cost] | None = None
    whole: RewardFunction | None = None
    default_penalty: float = FULL_MASK_COST


REWARDS = {
    "l0": NamedReward(kept_channels, unit="channel"),
    "l0_weights": NamedReward(kept_weights, unit="weight"),
    "macs": NamedReward(mac_share),
    "latency": NamedReward(timed=LatencyShare),
    "blockdrop": NamedReward(whole=blockdrop, default_penalty=1.0),
}
"""Every named reward. To add one, add a row."""


@dataclasses.dataclass(frozen=True)
class Reward:
    """A reward function and what an environment needs to know about it.

    Attributes:
        name: Name in tables.
        function: Takes an :class:`Outcome` and returns (batch,) numbers. If it also has
            ``step_cost(outcome_so_far, gate)`` -> (batch,), that cost is paid after each gate, and the rest at the end.
        default_penalty: lambda if none is given.
        unit: The unit that lambda is the price of, see :class:`NamedReward`; empty for a share and for your function.
    """

    name: str
    function: RewardFunction
    default_penalty: float
    unit: str = ""

    @property
    def gate_by_gate(self) -> bool:
        """Whether layer-by-layer environments pay costs at each step."""
        return hasattr(self.function, "step_cost")

    def __call__(self, outcome: Outcome) -> Tensor:
        """Return the whole reward of each episode, (batch,) float64.

        Raises:
            RewardError: If the function raises, or returns a wrong shape or values that are not finite or too large.
        """
        return call_checked("reward", self.function, outcome)

    def on(self, dataset: Dataset) -> Reward:
        """Return the reward for a data set.

        If the data set has other targets than classes, or a metric that you chose, the accuracy term is its metric.
        ``fidelity`` and your own accuracy term are kept.
        """
        function, objective = self.function, dataset.objective
        plain = objective.kind == "classes" and objective.metric is None
        if plain or not isinstance(function, CostReward) or function.accuracy not in OF_CLASSES:
            return self
        return dataclasses.replace(self, function=CostReward(metric, function.cost))

    def step_cost(self, outcome: Outcome, gate: int) -> Tensor:
        """Return the cost of the gate that was just decided, (batch,) float64; raises the errors of the reward."""
        return call_checked("step cost", self.function.step_cost, outcome, gate)  # type: ignore[attr-defined]

    def warn_if_too_expensive(self, penalty: float | tuple[float, float]) -> bool:
        """Warn if lambda, as the price of a channel or weight, makes all channels on cost over ten right answers.

        Args:
            penalty: lambda, or its range, whose middle is checked.

        Returns:
            Whether there was a warning. There is none for your own accuracy term, whose scale is unknown.
        """
        function = self.function
        named = isinstance(function, CostReward) and function.accuracy in ACCURACY_TERMS.values()
        price = sum(penalty) / 2 if isinstance(penalty, tuple) else penalty
        units = FULL_MASK_COST / self.default_penalty
        too_expensive = named and bool(self.unit) and price * units > TOO_EXPENSIVE
        if too_expensive:
            mean = " on average" if isinstance(penalty, tuple) else ""
            warnings.warn(
                f"penalty={penalty} with reward {self.name!r} is the price of each {self.unit}. All {units:,.0f} "
                f"{self.unit}s on cost {price * units:,.4g}{mean}, and a right answer earns at most 1. If you meant "
                f"the price of the whole network, pass reward='macs' with penalty={penalty}: all channels on then cost "
                f"{price:g}{mean}. The default for {self.name!r} is penalty={self.default_penalty:.4g}: all "
                f"{self.unit}s on cost {FULL_MASK_COST}.",
                PenaltyWarning,
                stacklevel=4,
            )
        return too_expensive


def resolve_reward(
    reward: str | RewardFunction | Reward,
    accuracy: str | AccuracyTerm,
    masked: MaskedCNN,
    latency_table: LatencyTable | Path | str | None = None,
) -> Reward:
    """Return a reward, R = accuracy term - lambda * cost.

    The article writes R = L(W * M(x); D) - lambda ||M(x)||_0, and elsewhere L is a loss. Maximising a loss would reward
    errors, so L is read here as a performance: the accuracy term, which is higher for better answers.

    Args:
        reward: ``l0`` (kept channels), ``l0_weights`` (weights whose input and output are kept), ``macs`` (MAC share),
            ``latency`` (share of the dense time, by ``latency_table``), or ``blockdrop`` (a whole reward, see
            :func:`blockdrop`). Or your function from an :class:`Outcome` of a batch to (batch,) numbers, which is
            then the whole reward, or its import path ``"module:function"``.
        accuracy: The accuracy term of a named reward, see :func:`~prunegym.envs.rewards.accuracy.resolve_accuracy`.
        masked: The CNN, for the default penalty: the one at which all channels on cost 0.5.
        latency_table: A table of :mod:`prunegym.models.timing.latency_table`, or its file; only for ``latency``.

    Raises:
        UnknownNameError: If there is no such name.
        InvalidInputError: If ``reward`` is not a function, if ``accuracy`` or ``latency_table`` would be ignored, or
            if the table is missing or belongs to another model.
        MissingDataError: If the table's file does not exist.

    Example:
        The article's network, 3-16-32, with half of each gate's channels. The answer is right, so R is
        1 - 24 * 0.5 / 48 for ``l0``; weights are 8 * 27 + 16 * 8 * 9 + 16 * 64 * 10 of 25,520; MACs are
        221,184 + 294,912 + 10,240 of 1,642,496.

        >>> import torch
        >>> from prunegym.models import build, load_dataset
        >>> masked = MaskedCNN(build("simple-cnn"), torch.zeros(1, 3, 32, 32))
        >>> mask = torch.cat([torch.ones(1, 8), torch.zeros(1, 8), torch.ones(1, 16), torch.zeros(1, 16)], 1)
        >>> for name in ("l0", "l0_weights", "macs"):
        ...     reward = resolve_reward(name, "correct", masked)
        ...     outcome = Outcome(
        ...         logits=torch.eye(10)[:1], labels=torch.tensor([0]), indices=torch.tensor([0]), mask=mask,
        ...         kept=mask.sum(1), mac_share=masked.cost.mac_share(mask),
        ...         penalty=torch.tensor([reward.default_penalty]), masked=masked,
        ...         dataset=load_dataset("digits", "test"), dense=lambda: torch.eye(10)[:1],
        ...     )
        ...     print(name, round(reward(outcome).item(), 6))
        l0 0.75
        l0_weights 0.772571
        macs 0.839776
    """
    named = REWARDS.get(reward, NamedReward()) if isinstance(reward, str) else NamedReward()
    if (latency_table is None) == (named.timed is not None):
        raise InvalidInputError(_table_advice(reward, latency_table))
    if isinstance(reward, Reward):
        return reward
    if isinstance(reward, str) and ":" in reward:
        return _of_function(import_object(reward, "reward"), reward, accuracy)
    if not isinstance(reward, str):
        return _of_function(reward, name_of(reward), accuracy)
    choice("reward", reward, [*REWARDS, "module:function"])
    if named.whole is not None:
        return _of_function(named.whole, reward, accuracy, named.default_penalty)
    cost = named.cost
    if named.timed is not None and latency_table is not None:
        cost = named.timed(open_table(latency_table, masked))
    assert cost is not None
    full = cost(masked, torch.ones(1, masked.mask_size, device=masked.device)).item()
    return Reward(reward, CostReward(resolve_accuracy(accuracy), cost), FULL_MASK_COST / full, named.unit)


def _table_advice(reward: object, table: object) -> str:
    if table is None:
        return (
            "The reward 'latency' needs latency_table=, a table or its file. "
            "Measure one on this machine: prunegym latency MODEL --out table.json"
        )
    return (
        f"latency_table is given, but the reward is {reward!r}, which does not use it. Leave it out, or use the reward "
        "'latency'."
    )


def _of_function(
    function: object, name: str, accuracy: str | AccuracyTerm, default_penalty: float = FULL_MASK_COST
) -> Reward:
    if not callable(function):
        raise InvalidInputError(
            f"reward is {function!r}; a name ({', '.join(REWARDS)}), 'module:function' or a function from an "
            "Outcome to (batch,) numbers is needed."
        )
    if accuracy != "correct":  # the default
        raise InvalidInputError(
            f"The reward {name!r} is a function, which returns the whole reward, so accuracy={accuracy!r} would be "
            "ignored. Leave accuracy out, or use a named reward."
        )
    return Reward(name, function, default_penalty)
