"""The mean reward of a recipe's own reward function, by which a run chooses its best actor."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from prunegym.agents.rl.recipe import Recipe
from prunegym.envs.rewards.outcome import Outcome
from prunegym.envs.rewards.reward import Reward, resolve_reward
from prunegym.models.data.dataset import Dataset
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.training.cnn_training import dense_logits


class OwnReward:
    """Measures the mean reward of masks over all images of a split.

    Args:
        reward: The reward.
        masked: The CNN.
        dataset: The images.
        penalty: lambda; None takes it from each call, for a policy of a range of lambdas.
    """

    def __init__(self, reward: Reward, masked: MaskedCNN, dataset: Dataset, penalty: float | None) -> None:
        self.reward, self.masked, self.dataset, self.penalty = reward, masked, dataset, penalty

    def __call__(self, masks: Tensor, logits: Tensor, penalty: float) -> float:
        """Return the mean reward.

        Args:
            masks: (images, mask_size) bool.
            logits: The CNN's output under them, (images, classes) float32.
            penalty: lambda, if the constructor got none.
        """
        device = self.masked.device
        mask = masks.float().to(device)
        price = penalty if self.penalty is None else self.penalty
        outcome = Outcome(
            logits=logits.to(device),
            labels=self.dataset.labels.to(device),
            indices=torch.arange(len(mask), device=device),
            mask=mask,
            kept=mask.double().sum(1),
            mac_share=self.masked.cost.mac_share(mask),
            penalty=torch.full((len(mask),), price, dtype=torch.float64, device=device),
            masked=self.masked,
            dataset=self.dataset,
            dense=lambda: self._dense.to(device, copy=True),
        )
        return float(self.reward(outcome).mean())

    @functools.cached_property
    def _dense(self) -> Tensor:
        return dense_logits(self.masked, self.dataset)


def own_reward(recipe: Recipe, masked: MaskedCNN, dataset: Dataset) -> OwnReward | None:
    """Return a function that measures a recipe's own reward.

    Args:
        recipe: The recipe. Its ``env_kwargs`` have the reward.
        masked: The CNN.
        dataset: The images.

    Returns:
        None for the reward ``macs`` with ``correct`` or ``probability``. Actors are then compared by
        correct - penalty * total MAC share, which includes the policy's MACs.
    """
    kwargs = recipe.env_kwargs
    reward, accuracy = kwargs.get("reward", "l0"), kwargs.get("accuracy", "correct")
    if reward == "macs" and accuracy in ("correct", "probability"):
        return None
    resolved = resolve_reward(reward, accuracy, masked, kwargs.get("latency_table"))
    penalty = resolved.default_penalty if kwargs.get("penalty") is None else kwargs["penalty"]
    return OwnReward(resolved, masked, dataset, float(penalty) if isinstance(penalty, float | int) else None)
