"""The batched dynamics of all environments; scalar and vector environments are thin interfaces to it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunegym.envs.random_episodes import Indices, RandomEpisodes, as_numbers, check_indices, check_penalties
from prunegym.envs.rewards.outcome import Outcome
from prunegym.envs.task import Task
from prunegym.errors import InvalidInputError
from prunegym.models.skipping.stepwise import stepwise_pass
from prunegym.validation import bits, shape, whole_number

MOST_ENVS = 1_000_000
Observation = dict[str, npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class StepResult:
    """The result of a step of all sub-environments.

    Attributes:
        observation: See the environments; each array (num_envs, ...), in new memory.
        reward: (num_envs,) float64.
        terminated: Whether the episodes are over; they all end together.
        outcome: The finished episodes; None before the end.
    """

    observation: Observation
    reward: npt.NDArray[np.float64]
    terminated: bool
    outcome: Outcome | None


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The data for a picture of the sub-environments.

    Attributes:
        images: (num_envs, channels, height, width) uint8.
        labels: (num_envs,) int64.
        mask: (num_envs, mask_size) float32, 0 where nothing is decided yet.
        gates_decided: Number of gates that are decided.
        predictions: (num_envs,) int64 classes; None before the end, or if the network does not classify.
        mac_share: (num_envs,) float64, so far.
    """

    images: Tensor
    labels: Tensor
    mask: Tensor
    gates_decided: int
    predictions: Tensor | None
    mac_share: Tensor


class MaskSimulator:
    """Sub-environments in lockstep: all are at the same decision, and an episode takes one batched forward pass.

    Args:
        task: The task.
        num_envs: Number of sub-environments.
        rng: Source of all randomness.
        group: Number of neighbours that get the same image, augmentation and penalty.

    Attributes:
        indices: (num_envs,) int64, the current images within the split.
        penalty: (num_envs,) float64, the current lambdas.
        mask: (num_envs, mask_size) float32, the bits chosen so far.

    Raises:
        InvalidInputError: If ``num_envs`` is not a positive multiple of ``group``.

    Example:
        >>> from prunegym.envs import MaskSimulator, make_task
        >>> task = make_task("simple-cnn", "digits", layerwise=True)
        >>> simulator = MaskSimulator(task, num_envs=3, rng=np.random.default_rng(0))
        >>> {name: array.shape for name, array in simulator.reset([0, 1, 2]).items()}
        {'features': (3, 272), 'gate': (3, 2), 'cost': (3, 1)}
        >>> result = simulator.step(np.ones((3, 32)))
        >>> result.terminated, simulator.step(np.ones((3, 32))).terminated
        (False, True)
    """

    def __init__(self, task: Task, num_envs: int, rng: np.random.Generator, group: int = 1) -> None:
        self.task = task
        self.num_envs, self.group = whole_number("num_envs", num_envs, 1, MOST_ENVS), whole_number("group", group)
        if num_envs % group:
            raise InvalidInputError(f"num_envs is {num_envs}; a multiple of group, {group}, is needed.")
        self.decisions = task.decisions
        self.observation_space, self.action_space = task.observation_space, task.action_space
        self._pass = stepwise_pass(task.masked, task.features, task.execution)
        self._looked: Tensor | None = None
        self._decided = len(self.decisions)  # no episode is running
        self._sources: list[RandomEpisodes] = []
        self.reseed(rng)

    def reseed(self, *rngs: np.random.Generator | None) -> None:
        """Start a new epoch, with all randomness from one source, or from one for each sub-environment.

        Args:
            rngs: One, or ``num_envs``. In a list, None lets a sub-environment continue with its current source.
        """
        sources = self._sources if len(self._sources) == len(rngs) else [None] * len(rngs)
        self._sources = [
            old if rng is None and old is not None else self._episodes(rng)
            for old, rng in zip(sources, rngs, strict=True)
        ]

    def _episodes(self, rng: np.random.Generator | None) -> RandomEpisodes:
        return RandomEpisodes(self.task.dataset, bool(self.task.augment), rng or np.random.default_rng())

    @property
    def over(self) -> bool:
        """Whether no episode is running: all are over, or none has started."""
        return self._decided == len(self.decisions)

    @property
    def width(self) -> int:
        """Number of bits of the next action that are used; all bits if no episode is running."""
        return self.action_space.shape[0] if self.over else self.decisions[self._decided].width

    def sampling_state(self) -> list[dict[str, Any]]:
        """Return, as plain data, the state from which images, shifts and lambdas of the current episodes were drawn."""
        return self._drawn_from

    def restore_sampling(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Let the next reset start the episodes of this state. It raises the errors of RandomEpisodes.restore."""
        for source, one in zip(self._sources, state, strict=True):
            source.restore(one)

    @torch.inference_mode()
    def reset(
        self, indices: Indices | None = None, penalty: float | Tensor | None = None, rows: Tensor | None = None
    ) -> Observation:
        """Start an episode in every sub-environment.

        Args:
            indices: (any,) int, images within the split, counted from 0; ``num_envs`` becomes their number. By default
                images are random, and each comes once per epoch.
            penalty: lambda, one number or (num_envs,). By default that of the task; a random one if it is a range.
            rows: (some,) int64, start an episode only in these sub-environments; the others keep theirs. Then
                ``indices`` and ``penalty`` are for these sub-environments.

        Returns:
            The observation of all.

        Raises:
            InvalidInputError: If an index is out of range, lambda is outside the task's range, or with ``rows`` if a
                decision has been made.
        """
        if rows is not None and self._decided > 0:
            raise InvalidInputError(
                "Some of the sub-environments can be reset only before the first decision of their episodes: all move "
                "in lockstep. Reset all, or make the environment with vectorization_mode='sync'."
            )
        sources = self._sources if rows is None or len(self._sources) == 1 else [self._sources[row] for row in rows]
        self._drawn_from = [source.state() for source in sources]
        repeat = self.group if indices is None else 1
        each = (self.num_envs if rows is None else len(rows)) // self.group // len(sources)
        if indices is None:
            chosen = torch.cat([source.draw(each) for source in sources])
        else:
            chosen = check_indices(self.task.dataset, indices)
        parts = torch.split(chosen, len(chosen) // len(sources))
        raw = torch.cat([source.images(part) for source, part in zip(sources, parts, strict=True)])
        if penalty is None:
            penalty = self._draw_penalty(sources, len(chosen)).repeat_interleave(repeat)
        else:
            penalty = check_penalties(self.task.penalty, penalty, len(chosen) * repeat)
        chosen, raw = chosen.repeat_interleave(repeat), raw.repeat_interleave(repeat, 0)
        if rows is not None:
            chosen = self.indices.index_copy(0, rows, chosen)
            raw, penalty = self._raw.index_copy(0, rows, raw), self.penalty.cpu().index_copy(0, rows, penalty)
        return self._begin(chosen, raw, penalty)

    def _begin(self, indices: Tensor, raw: Tensor, penalty: Tensor) -> Observation:
        self.num_envs, device = len(indices), self.task.device
        self.indices, self.labels, self.penalty = indices, self.task.dataset.labels[indices], penalty.to(device)
        self._raw, self._images = raw, self.task.dataset.normalisation(raw.to(device))
        self.mask = torch.zeros(self.num_envs, self.task.masked.mask_size, device=device)
        self._mac_share = self.task.masked.spent_share(self.mask)
        self._paid = torch.zeros(self.num_envs, dtype=torch.float64, device=device)
        self._decided, self._looked = 0, self._pass.begin(self._images)
        return self._observe()

    @torch.inference_mode()
    def step(self, actions: npt.ArrayLike | Tensor) -> StepResult:
        """Decide one gate, or all of them, in every sub-environment.

        Args:
            actions: (num_envs, size of the action space) of 0 and 1, any dtype; bits past the decision's width are
                ignored.

        Returns:
            The result. After the last decision the observation's features and gate are zero.

        Raises:
            InvalidInputError: If actions have another shape or other values, or no episode is running.
            RewardError: If the reward function fails or returns bad values.
        """
        if self.over:
            raise InvalidInputError("No episode is running. Call reset() first.")
        decision = self.decisions[self._decided]
        decided = self._check_actions(actions, decision.width)
        widths = [self.task.masked.gates[gate].width for gate in decision.gates]
        for gate, part in zip(decision.gates, torch.split(decided, widths, 1), strict=True):
            self.task.masked.split(self.mask)[gate].copy_(part)
        self._mac_share = self.task.masked.spent_share(self.mask)
        self._looked = self._pass.advance(self.mask)
        self._decided += 1
        reward = self._pay(self.over, decision.gates[-1])
        return StepResult(self._observe(), reward.cpu().numpy(), self.over, self._outcome if self.over else None)

    def set_penalty(self, penalty: float) -> None:
        """Change lambda for later episodes, and for the current ones if no decision has been made in them yet.

        Raises:
            InvalidInputError: If the task's lambda is a range, or the new one is not a finite number of at least 0.
        """
        self.task.set_penalty(penalty)
        if self._decided == 0:
            self.penalty = torch.full_like(self.penalty, penalty)

    def info(self) -> dict[str, npt.NDArray[Any]]:
        """Return ``index`` and ``label`` of the current episodes, each (num_envs,) int64, in new memory."""
        return {"index": self.indices.numpy().copy(), "label": self.labels.numpy().copy()}

    def snapshot(self) -> Snapshot:
        """Return the data for a picture of the current episodes.

        Raises:
            InvalidInputError: Before the first reset.
        """
        if not hasattr(self, "_raw"):
            raise InvalidInputError("There is nothing to draw yet. Call reset() first.")
        gates = sum(len(decision.gates) for decision in self.decisions[: self._decided])
        predictions = self._outcome.predictions if self.over else None
        raw = self.task.dataset.normalisation.as_bytes(self._raw)
        return Snapshot(raw, self.labels, self.mask, gates, predictions, self._mac_share)

    def _pay(self, terminated: bool, gate: int) -> Tensor:
        """Return the rewards (num_envs,) of a step; over an episode they add up to the reward function's value."""
        if terminated or self.task.reward.gate_by_gate:
            self._outcome = self._make_outcome()
        if terminated:
            # The return without discount is R, so the last step pays what the steps before have not.
            return self.task.reward(self._outcome) - self._paid
        if not self.task.reward.gate_by_gate:
            return torch.zeros_like(self._paid)
        reward = -self.task.reward.step_cost(self._outcome, gate)
        self._paid += reward
        return reward

    def _make_outcome(self) -> Outcome:
        task, indices, images, logits = self.task, self.indices.to(self.task.device), self._images, self._pass.logits
        logits = self.mask.new_empty(self.num_envs, 0) if logits is None else logits
        return Outcome(
            logits=logits, labels=self.labels.to(task.device), indices=indices, mask=self.mask,
            kept=self.mask.double().sum(1), mac_share=self._mac_share, penalty=self.penalty, masked=task.masked,
            dataset=task.dataset, dense=functools.partial(task.dense_logits, indices, images),
        )  # fmt: skip

    def _observe(self) -> Observation:
        spaces = self.observation_space.spaces
        # NumPy, not torch: torch's threads keep spinning after an operation, on cores that the kernel needs.
        features = np.zeros((self.num_envs, *(spaces["features"].shape or ())), np.float32)
        if self._looked is not None:
            features[:, : self._looked.shape[1]] = self._looked.cpu().numpy()
        observation: Observation = {"features": features}
        if self.task.layerwise:
            gate = np.zeros((self.num_envs, len(self.decisions)), np.float32)
            gate[:, self._decided : self._decided + 1] = 1
            observation |= {"gate": gate, "cost": self._mac_share.float().cpu().numpy()[:, None]}
        if "penalty" in spaces:
            observation["penalty"] = self.penalty.float().cpu().numpy()[:, None]
        if "image" in spaces:
            observation["image"] = self._raw.numpy().astype(spaces["image"].dtype)
        return observation

    def _draw_penalty(self, sources: Sequence[RandomEpisodes], number: int) -> Tensor:
        wanted = self.task.penalty
        if not isinstance(wanted, tuple):
            return torch.full((number,), wanted, dtype=torch.float64)
        return torch.cat([source.penalties(*wanted, number // len(sources)) for source in sources])

    def _check_actions(self, actions: npt.ArrayLike | Tensor, width: int) -> Tensor:
        values = as_numbers("The action", actions)
        shape("The action", values, (self.num_envs, *self.action_space.shape), "Give a row for each sub-environment.")
        decided = values[:, :width].to(self.task.device, torch.float32)
        bits("The action", decided, "1 keeps a channel, 0 switches it off. Threshold or sample probabilities.")
        return decided
