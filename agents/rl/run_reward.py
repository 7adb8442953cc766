"""The reward that a run is trained for, as a figure: what its actors are compared by where that is no standard one."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from prunegym.agents.rl.recipe import Recipe
from prunegym.envs.rewards.outcome import Outcome
from prunegym.envs.rewards.reward import Reward, resolve_reward
from prunegym.models.data.dataset import Dataset
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.training.tuning import dense_logits


class OwnReward:
    """The mean reward of masks, of every image of a split.

    Args:
        reward: The reward.
        masked: The CNN.
        dataset: The images.
        penalty: lambda; None: it is told with the masks, as for a policy of a range of them.
    """

    def __init__(self, reward: Reward, masked: MaskedCNN, dataset: Dataset, penalty: float | None) -> None:
        self.reward, self.masked, self.dataset, self.penalty = reward, masked, dataset, penalty

    def __call__(self, masks: Tensor, logits: Tensor, penalty: float) -> float:
        """Return the mean reward.

        Args:
            masks: (images, mask_size) bool.
            logits: The CNN's output under them, (images, classes) float32.
            penalty: lambda, if there is none for all.
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
    """Return what measures a recipe's own reward.

    Args:
        recipe: Its environment's arguments have the reward.
        masked: The CNN.
        dataset: The images.

    Returns:
        None where the reward is the MAC share's, of a right answer or its probability: actors are then compared by
        correct - penalty * total MAC share, which has the policy's MACs in it.
    """
    kwargs = recipe.env_kwargs
    reward, accuracy = kwargs.get("reward", "l0"), kwargs.get("accuracy", "correct")
    if reward == "macs" and accuracy in ("correct", "probability"):
        return None
    resolved = resolve_reward(reward, accuracy, masked, kwargs.get("latency_table"))
    penalty = kwargs.get("penalty")
    if penalty is None:
        penalty = resolved.default_penalty
    return OwnReward(resolved, masked, dataset, float(penalty) if isinstance(penalty, float | int) else None)


@torch.inference_mode()
def try_own_reward(recipe: Recipe, masked: MaskedCNN, dataset: Dataset) -> None:
    """Measure a recipe's own reward on a few images, so that a mistake shows now, not when imitation is over.

    Raises:
        RewardError: If a reward of the user's own fails on this split, or returns what is no reward.
    """
    few = dataset.sample(4)
    measure = own_reward(recipe, masked, few)
    if measure is None:
        return
    images = few.batch(torch.arange(len(few)), device=masked.device)
    measure(torch.ones(len(few), masked.mask_size, dtype=torch.bool), masked(images), recipe.middle_penalty)
