"""Progress, validation figures, checkpoints and a warning of collapse during training."""

from __future__ import annotations

import dataclasses
import json
import warnings
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
from prunegym.models.data.dataset import Dataset
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.gating.static_policy import Policy
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.skipping_cnn import prefer_kernel
from prunegym.models.storage.model_file import Bundle
from prunegym.models.storage.weights import save_state, save_text
from prunegym.models.training.cnn_training import Report
from prunegym.models.training.mac_target import meet_target


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
    """Share of channels that are kept for more images."""
    always_off_share: float
    """Share of channels that are kept for fewer images."""
    shuffled_accuracy: float
    """Accuracy with masks shuffled across images. The loss is measured on 1,000 images."""


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
        penalty: lambda of the reward. A policy for a range of lambdas observes it.
        own_reward: Measures the recipe's own reward, if it has one.
    """
    shown = None if policy.penalty_range is None else penalty
    run, device = prefer_kernel(masked, policy), masked.device
    masks, logits = decide_on_the_way(lambda images: run(images, None, shown), dataset, device)
    right = dataset.score(logits).float()
    accuracy = float(right.mean())
    share = masked.cost.total_share(masks, policy.macs).mean().item()
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


class CollapseWarning(UserWarning):
    """The policy gives all or nearly all images the same mask."""


@dataclasses.dataclass(eq=False, repr=False)
class TrainingMonitor(BaseCallback):
    """Shows progress, evaluates every few updates, keeps the best actor, writes checkpoints.

    The best actor has the highest reward of the recipe on validation images. For a range of lambdas, that is the mean
    of the rewards at its middle and at both ends.

    Attributes:
        bundle: The CNN, and ``validation`` images.
        recipe: The settings of the run.
        folder: Folder for checkpoints.
        progress: Whether to show a progress bar.
        report: Called with the figures of each evaluation.
        budget: Adapts lambda after each rollout. Actors are then shifted to the budget before they are evaluated.
        state_path: File for the state that Stable-Baselines3 does not store in its checkpoint.
    """

    bundle: Bundle
    recipe: Recipe
    folder: Path
    progress: bool = True
    report: Report | None = None
    budget: DualAscent | None = None

    def __post_init__(self) -> None:
        """Begin without any figures."""
        super().__init__()
        self.state_path = self.folder / "monitor.json"
        self.masked = self.bundle.masked
        self.validation = self.bundle.data["validation"].sample(self.recipe.eval_images)
        self.own_reward = own_reward(self.recipe, self.masked, self.validation)
        self.best_reward = -np.inf
        self.history: list[dict[str, Any]] = []
        self.updates = 0
        self._restored = False
        self._episodes: list[tuple[float, float, float]] = []
        self._bar: Any = None

    def restore(self) -> None:
        """Read the figures of a checkpoint; a ValueError or KeyError means that the file is damaged."""
        state = json.loads(self.state_path.read_text())
        self.best_reward, self.history, self.updates = state["best_reward"], state["history"], state["updates"]
        if self.budget is not None:
            self.budget.penalty, self.budget.steady = (state["budget"][key] for key in ("penalty", "steady"))
        self._restored = True

    def _on_training_start(self) -> None:
        if self.budget is not None:
            self.training_env.env_method("set_penalty", self.budget.penalty)
        # disable=None shows no bar where the output is no terminal.
        hidden = None if self.progress else True
        # Without the rate, and with counts like 691k, the bar and its figures fit 80 columns.
        layout = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        total = self.locals["total_timesteps"]
        self._bar = tqdm(total=total, initial=self.num_timesteps, unit_scale=True, bar_format=layout, disable=hidden)
        if not self.history or self.history[-1]["timesteps"] < self.num_timesteps:
            # At the start, or if a run ended between a checkpoint and its figures.
            assert isinstance(self.model, OnPolicyAlgorithm)
            self.updates = self.num_timesteps // (self.model.n_envs * self.model.n_steps)
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
        # SB3 has no callback after an update, but the previous rollout's update has just been made. A run that resumes
        # has already counted it.
        if self._restored:
            self._restored = False
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
            save_state(self.folder / "best_actor.pt", actor.state_dict())
        self._warn_of_collapse(result)
        self.save()
        if self.report is not None:
            self.report(row)

    def _figures(self, actor: GatePolicy, penalty: float) -> ValidationFigures:
        return validation_figures(self.masked, actor, self.validation, penalty, self.own_reward)

    def _warn_of_collapse(self, result: ValidationFigures) -> None:
        # On few images, other images' masks may be as good by chance.
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
        self.model.save(self.folder / "checkpoint.partial.zip", exclude=["_last_obs"])
        (self.folder / "checkpoint.partial.zip").replace(self.folder / "checkpoint.zip")
        state: dict[str, Any] = {"best_reward": self.best_reward, "history": self.history, "updates": self.updates}
        if self.budget is not None:
            state["budget"] = {"penalty": self.budget.penalty, "steady": self.budget.steady}
        save_text(self.state_path, json.dumps(state))
