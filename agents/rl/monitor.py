"""Progress, validation figures, checkpoints, and a warning if the policy collapses to one mask."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from tqdm import tqdm

from prunegym.agents.evaluation.masks import MaskCache, count_distinct, decide_on_the_way, penalised_accuracy
from prunegym.agents.rl.lagrangian import ROUNDS, DualAscent
from prunegym.agents.rl.mask_policy import MaskPolicy
from prunegym.agents.rl.recipe import OwnReward, Recipe, own_reward
from prunegym.agents.rl.run_state import noise_state, restore, restore_noise, state_of
from prunegym.models.data.dataset import Dataset
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.gating.static_policy import Policy, deciding_macs
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.skipping_cnn import prefer_kernel
from prunegym.models.storage.model_file import Bundle
from prunegym.models.storage.run_state import BROKEN, damaged, load_state, save_state
from prunegym.models.storage.weights import load_tensors, save_text
from prunegym.models.training.cnn_training import Report
from prunegym.models.training.mac_target import meet_target
from prunegym.validation import finite, whole_number


@dataclasses.dataclass(frozen=True)
class ValidationFigures:
    """Figures of a gate policy on the validation images."""

    accuracy: float
    total_mac_share: float
    reward: float
    """correct - penalty * total MAC share with deterministic masks; or the recipe's own reward."""
    distinct_masks: int
    conditional_share: float
    """Share of channels that are kept for 1 to 99 % of the images."""
    always_on_share: float
    """Share of channels that are kept for more than 99 % of the images."""
    always_off_share: float
    """Share of channels that are kept for less than 1 % of the images."""
    shuffled_accuracy: float
    """Accuracy with masks shuffled across images, measured on 1,000 images."""


@torch.inference_mode()
def validation_figures(
    masked: MaskedCNN,
    policy: Policy,
    dataset: Dataset,
    penalty: float,
    own_reward: OwnReward | None = None,
) -> ValidationFigures:
    """Evaluate a policy on all images of a data set, with the shuffled control on 1,000 of them.

    Args:
        masked: The CNN.
        policy: Its gates.
        dataset: The images.
        penalty: lambda in the reward. A policy for a range of lambdas gets it as input.
        own_reward: Measures the recipe's own reward, if it has one.
    """
    shown = None if policy.penalty_range is None else penalty
    run, device = prefer_kernel(masked, policy), masked.device
    masks, logits = decide_on_the_way(lambda images: run(images, None, shown), dataset, device)
    right = dataset.score(logits).float()
    accuracy = float(right.mean())
    share = masked.cost.total_share(masks, deciding_macs(masked, policy, masks)).mean().item()
    reward = float(penalised_accuracy(right.mean(), share, penalty))
    kept = masks.float().mean(0)  # of each channel, the share of images that keep it
    # In random order, because neighbours in a folder are often of one class.
    some = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:1000]
    cache = MaskCache(masked, dataset.subset(some))
    cache.add(masks[some], logits[some])
    shuffled = dataset.score(cache(masks[some.roll(1)]), some)
    lost = float((right[some] - shuffled.float()).sum())
    return ValidationFigures(
        accuracy=accuracy,
        total_mac_share=share,
        reward=reward if own_reward is None else own_reward(masks, logits, penalty),
        distinct_masks=count_distinct(masks),
        conditional_share=float(((kept > 0.01) & (kept < 0.99)).float().mean()),
        always_on_share=float((kept >= 0.99).float().mean()),
        always_off_share=float((kept <= 0.01).float().mean()),
        shuffled_accuracy=accuracy - lost / len(some),
    )


FIGURES = [field.name for field in dataclasses.fields(ValidationFigures)]


class CollapseWarning(UserWarning):
    """The policy gives all or nearly all images the same mask."""


@dataclasses.dataclass(eq=False, repr=False)
class TrainingMonitor(BaseCallback):
    """Shows progress, evaluates every few updates, keeps the best agent, writes checkpoints.

    The best agent has the highest reward of the recipe on validation images. For a range of lambdas, that is the mean
    of the rewards at its middle and at both ends.

    Attributes:
        bundle: The CNN, and ``validation`` images.
        recipe: The settings of the run.
        folder: Folder for checkpoints.
        progress: Whether to show a progress bar.
        report: Called with the figures of each evaluation.
        budget: Adapts lambda after each rollout. Policies are then shifted to the budget before they are evaluated.
        best: The best policy so far; None before training.
        checkpoint: File that a run resumes from.
    """

    bundle: Bundle
    recipe: Recipe
    folder: Path
    progress: bool = True
    report: Report | None = None
    budget: DualAscent | None = None

    def __post_init__(self) -> None:
        """Start without any figures."""
        super().__init__()
        self.checkpoint = self.folder / "checkpoint.safetensors"
        self.masked = self.bundle.masked
        self.validation = self.bundle.data["validation"].sample(self.recipe.eval_images)
        self.own_reward = own_reward(self.recipe, self.masked, self.validation)
        self.best: GatePolicy | None = None
        self.best_reward = -np.inf
        self.history: list[dict[str, Any]] = []
        self.updates = 0
        self._noise: Mapping[str, Any] | None = None
        self._episodes: list[tuple[float, float, float]] = []
        self._bar: Any = None

    def restore(self, algorithm: OnPolicyAlgorithm, total: int) -> None:
        """Read the checkpoint: restore the algorithm, the figures and the best policy.

        Args:
            algorithm: An algorithm of Stable-Baselines3, not trained yet.
            total: Timesteps of the whole run.

        Raises:
            InvalidInputError: If it is damaged, or of another run.
        """
        state = load_state(self.checkpoint)
        try:
            restore(algorithm, state["algorithm"], total)
            assert isinstance(algorithm.policy, MaskPolicy)
            self.best = algorithm.policy.gate_policy()
            load_tensors(self.best, state["best"], str(self.checkpoint))
            own = state["monitor"]
            self.best_reward = finite("best_reward", own["best_reward"])
            self.updates = whole_number("updates", own["updates"], 0)
            self.history = list(own["history"])
            if not self.history:
                raise ValueError("there are no figures")
            for row in self.history:
                for name in ("timesteps", "updates", *FIGURES):
                    finite(name, row[name])
            if self.budget is not None:
                self.budget.restore(own["budget"])
            self._noise = state["noise"]
            restore_noise(self._noise)  # to see that it can be restored when training begins
        except BROKEN as error:
            raise damaged(self.checkpoint, error) from error

    def _on_training_start(self) -> None:
        if self.budget is not None:
            self.training_env.env_method("set_penalty", self.budget.penalty)
        # disable=None shows no bar where the output is not a terminal.
        hidden = None if self.progress else True
        # Without the rate and with short counts, such as 691k, the bar and its figures fit into 80 columns.
        layout = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        total = self.locals["total_timesteps"]
        self._bar = tqdm(total=total, initial=self.num_timesteps, unit_scale=True, bar_format=layout, disable=hidden)
        if not self.history:
            self._evaluate()

    def _on_step(self) -> bool:
        self._bar.update(self.training_env.num_envs)
        if self.locals["dones"][0]:
            self._episodes += [
                (float(info["episode"]["r"]), float(info.get("correct", info.get("score"))), float(info["mac_share"]))
                for info in self.locals["infos"]
            ]
        return True

    def _on_rollout_end(self) -> None:
        if not self._episodes:
            return
        reward, correct, mac_share = np.mean(self._episodes, axis=0)
        self._episodes.clear()
        self._bar.set_postfix(reward=f"{reward:.3f}", accuracy=f"{correct:.3f}", macs=f"{mac_share:.3f}")
        for name, value in (("reward", reward), ("accuracy", correct), ("mac_share", mac_share)):
            self.logger.record(f"rollout/{name}", float(value))
        if self.budget is not None:
            assert isinstance(self.model.policy, MaskPolicy)
            policy_share = self.model.policy.actor.macs / self.masked.cost.total_macs
            penalty = self.budget.update(float(mac_share) + policy_share)
            self.training_env.env_method("set_penalty", penalty)
            self.logger.record("rollout/penalty", penalty)

    def _on_rollout_start(self) -> None:
        # SB3 has no callback after an update. At the start of a rollout, the update of the previous rollout is done. A
        # resumed run has already counted it.
        if self._noise is not None:
            restore_noise(self._noise)
            self._noise = None
        elif self.num_timesteps:
            self.updates += 1
            if self.updates % self.recipe.eval_every == 0:
                self._evaluate()

    def _on_training_end(self) -> None:
        self.updates += 1
        self._evaluate()
        self._bar.close()

    def _evaluate(self) -> None:
        assert isinstance(self.model.policy, MaskPolicy)
        actor = self.model.policy.gate_policy()
        if self.budget is not None:
            meet_target(self.masked, actor, self.validation, self.budget.budget.target_macs, rounds=ROUNDS)
        result = self._figures(actor, self.recipe.middle_penalty)
        row = {"timesteps": self.num_timesteps, "updates": self.updates, **dataclasses.asdict(result)}
        if actor.penalty_range is not None:
            low, high = (self._figures(actor, bound) for bound in actor.penalty_range)
            result = dataclasses.replace(result, reward=(low.reward + result.reward + high.reward) / 3)
            row |= {
                "reward": result.reward,
                "accuracy_at_lowest": low.accuracy, "total_mac_share_at_lowest": low.total_mac_share,
                "accuracy_at_highest": high.accuracy, "total_mac_share_at_highest": high.total_mac_share,
            }  # fmt: skip
        if self.budget is not None:
            row["penalty"] = self.budget.penalty
        self.history.append(row)
        for name, value in dataclasses.asdict(result).items():
            self.logger.record(f"eval/{name}", value)
        if result.reward > self.best_reward:
            self.best_reward = result.reward
            self.best = actor
        self._warn_of_collapse(result)
        self.save()
        if self.report is not None:
            self.report({**row, "total_timesteps": self.locals["total_timesteps"]})

    def _figures(self, actor: GatePolicy, penalty: float) -> ValidationFigures:
        return validation_figures(self.masked, actor, self.validation, penalty, self.own_reward)

    def _warn_of_collapse(self, result: ValidationFigures) -> None:
        # With few images, masks of other images may do as well by chance.
        interchangeable = len(self.validation) >= 1000 and result.shuffled_accuracy >= result.accuracy - 0.005
        if result.conditional_share < 0.01 or interchangeable:
            warnings.warn(
                f"The policy has become static: {result.distinct_masks} distinct masks, accuracy {result.accuracy:.3f} "
                f"and {result.shuffled_accuracy:.3f} with other images' masks. Start from imitation, lower the "
                "learning rate, or lower the penalty.",
                CollapseWarning,
                stacklevel=2,
            )

    def save(self) -> None:
        """Write a checkpoint to resume from."""
        assert isinstance(self.model, OnPolicyAlgorithm)
        assert self.best is not None
        own: dict[str, Any] = {"best_reward": self.best_reward, "history": self.history, "updates": self.updates}
        if self.budget is not None:
            own["budget"] = self.budget.state()
        state = {"algorithm": state_of(self.model), "noise": noise_state(), "best": self.best.state_dict()}
        save_state(self.checkpoint, {**state, "monitor": own})
        save_text(self.folder / "monitor.json", json.dumps(own))
