"""Rewards: R = accuracy term - lambda * cost of the mask, by name or as a function of one's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from prunegym.envs.rewards.accuracy import AccuracyTerm, correct, resolve_accuracy
from prunegym.envs.rewards.calling import call_checked
from prunegym.envs.rewards.costs import REWARDS, CostReward, LatencyShare
from prunegym.envs.rewards.outcome import Outcome
from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.timing.latency_table import LatencyTable, open_table
from prunegym.user_code import import_object, name_of

FULL_MASK_COST = 0.5
"""With the default penalty the full mask costs this much: half of what a right answer earns."""


def blockdrop(outcome: Outcome) -> Tensor:
    """Return 1 - (kept share)^2 for a right answer and -penalty for a wrong one (BlockDrop: Wu et al. 2018).

    Of channels here, of residual blocks in the paper. lambda is its gamma: 1 in its first stage, which is the default.
    """
    share = outcome.kept / outcome.masked.mask_size
    return torch.where(correct(outcome) == 1, 1 - share.square(), -outcome.penalty)


LATENCY = "latency"
"""The cost that needs a table beside it."""
BLOCKDROP = "blockdrop"
"""A whole reward."""
REWARD_NAMES = (*REWARDS, LATENCY, BLOCKDROP)

RewardFunction = Callable[[Outcome], Tensor]


@dataclasses.dataclass(frozen=True)
class Reward:
    """A reward function and what an environment has to know of it.

    Attributes:
        name: As in tables.
        function: From an :class:`Outcome` to (batch,) numbers. If it also has ``step_cost(outcome_so_far, gate)`` ->
            (batch,), that much is paid after each gate, and the rest at the end.
        default_penalty: lambda where none is given.
    """

    name: str
    function: RewardFunction
    default_penalty: float

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

    def step_cost(self, outcome: Outcome, gate: int) -> Tensor:
        """Return the cost of a gate just decided, (batch,) float64; raises as the reward itself."""
        return call_checked("step cost", self.function.step_cost, outcome, gate)  # type: ignore[attr-defined]


def resolve_reward(
    reward: str | RewardFunction | Reward,
    accuracy: str | AccuracyTerm,
    masked: MaskedCNN,
    latency_table: LatencyTable | Path | str | None = None,
) -> Reward:
    """Return a reward, R = accuracy term - lambda * cost.

    The document writes R = L(W * M(x); D) - lambda ||M(x)||_0 with L a loss elsewhere. Maximised, that would reward
    errors, so L is read here as a performance: the accuracy term, which is larger the better the answer.

    Args:
        reward: ``l0`` (kept channels), ``l0_weights`` (weights with a kept input and output), ``macs`` (MAC share) or
            ``latency`` (share of the dense time, by ``latency_table``) or ``blockdrop`` (a whole reward,
            :func:`blockdrop`); a function from an :class:`Outcome` of a batch to (batch,) numbers, which is then the
            whole reward; or where such a function is found, ``"module:function"``.
        accuracy: The accuracy term of a named reward, see :func:`~prunegym.envs.rewards.accuracy.resolve_accuracy`.
        masked: The CNN, for the default penalty: the one at which the full mask costs 0.5.
        latency_table: Of :mod:`prunegym.models.timing.latency_table`, or its file; for the reward ``latency`` only.

    Raises:
        UnknownNameError: If there is no such name.
        InvalidInputError: If it is no function, ``accuracy`` or ``latency_table`` is given although it would be
            ignored, or the table is missing or another model's.
        MissingDataError: If there is no such table.

    Example:
        The document's network, 3-16-32, with half of each gate's channels. The answer is right, so R is
        1 - 24 * 0.5 / 48 for ``l0``; weights are 8 * 27 + 16 * 8 * 9 + 16 * 64 * 10 of 25,520; MACs are
        221,184 + 294,912 + 10,240 of 1,642,496.

        >>> import torch
        >>> from prunegym.models import build, load_dataset
        >>> masked = MaskedCNN(build("simple-cnn"), torch.zeros(1, 3, 32, 32))
        >>> mask = torch.cat([torch.ones(1, 8), torch.zeros(1, 8), torch.ones(1, 16), torch.zeros(1, 16)], 1)
        >>> for name in REWARDS:
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
    if (latency_table is None) == (reward == LATENCY):
        raise InvalidInputError(_table_advice(reward, latency_table))
    if isinstance(reward, Reward):
        return reward
    if isinstance(reward, str) and ":" in reward:
        return _of_function(import_object(reward, "reward"), reward, accuracy)
    if reward == BLOCKDROP:
        return dataclasses.replace(_of_function(blockdrop, reward, accuracy), default_penalty=1.0)
    if isinstance(reward, str):
        if reward not in REWARD_NAMES:
            raise UnknownNameError("reward", reward, [*REWARD_NAMES, "module:function"])
        cost = REWARDS[reward] if latency_table is None else LatencyShare(open_table(latency_table, masked))
        full = cost(masked, torch.ones(1, masked.mask_size, device=masked.device)).item()
        return Reward(reward, CostReward(resolve_accuracy(accuracy), cost), FULL_MASK_COST / full)
    return _of_function(reward, name_of(reward), accuracy)


def _table_advice(reward: object, table: object) -> str:
    if table is None:
        return (
            "The reward 'latency' needs latency_table=, a table or its file (--latency-table on the command line). "
            "Measure one on this machine: prunegym latency MODEL --out table.json"
        )
    return (
        f"latency_table is given, but the reward is {reward!r}, which would ignore it. Leave it out, or use the reward "
        "'latency'."
    )


def _of_function(function: object, name: str, accuracy: str | AccuracyTerm) -> Reward:
    if not callable(function):
        raise InvalidInputError(
            f"reward is {function!r}; a name ({', '.join(REWARD_NAMES)}), 'module:function' or a function from an "
            "Outcome to (batch,) numbers is needed."
        )
    if accuracy != "correct":  # the default
        raise InvalidInputError(
            f"The reward {name!r} is a function, so what it returns is the whole reward and accuracy={accuracy!r} "
            "would be ignored. Leave accuracy out, or use a named reward."
        )
    return Reward(name, function, FULL_MASK_COST)
