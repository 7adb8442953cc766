"""The reward that a run is trained for, as a figure: what its actors are compared by where that is no standard one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from prunegym.agents.recipe import Recipe
from prunegym.envs.simulator import MaskSimulator
from prunegym.envs.task import Task, make_task
from prunegym.models.data import Dataset
from prunegym.models.gate_policy import GatePolicy
from prunegym.models.masked import MaskedCNN

OwnReward = Callable[[GatePolicy, float | None], float]
"""From an actor and lambda (None: the task's, of a range the middle) to the mean reward of its deterministic masks."""
BATCH = 512


def own_reward(
    recipe: Recipe, masked: MaskedCNN, policy: GatePolicy, dataset: Dataset, device: str = "cpu"
) -> OwnReward | None:
    """Return what measures a recipe's own reward on every image of a split.

    Args:
        recipe: Its environment's arguments have the reward.
        masked: The CNN.
        policy: Has the features that actors look at.
        dataset: The images.
        device: Where the CNN runs.

    Returns:
        None where the reward is the MAC share's, of a right answer or its probability: actors are then compared by
        correct - penalty * total MAC share, which has the policy's MACs in it.
    """
    kwargs = {key: value for key, value in recipe.env_kwargs.items() if key not in ("augment", "images")}
    if kwargs.get("reward", "l0") == "macs" and kwargs.get("accuracy", "correct") in ("correct", "probability"):
        return None
    layerwise = bool(policy.features.config["layerwise"])
    task = make_task(masked, dataset, layerwise=layerwise, features=policy.features, device=device, **kwargs)
    return lambda actor, penalty: mean_reward(task, actor, penalty)


@torch.inference_mode()
def mean_reward(task: Task, actor: GatePolicy, penalty: float | None = None) -> float:
    """Play each image of a task once, each channel kept whose logit is positive, and return the mean reward.

    Args:
        task: One lambda, or a range of them.
        actor: Looks at the task's features.
        penalty: lambda; None for the task's own, and for the middle of the range that the actor is for.
    """
    if penalty is None and actor.penalty_range is not None:
        penalty = sum(actor.penalty_range) / 2
    simulator = MaskSimulator(task, 1, np.random.default_rng(0))
    shown = None if actor.penalty_range is None else penalty
    total = 0.0
    for part in torch.split(torch.arange(len(task.dataset)), BATCH):
        observation = simulator.reset(part, penalty)
        for decision, size in enumerate(actor.features.sizes):
            features = torch.from_numpy(observation["features"][:, :size]).to(task.device)
            bits = actor.logits(decision, features, shown) > 0
            action = torch.zeros(len(part), *simulator.action_space.shape)
            action[:, : bits.shape[1]] = bits.float().cpu()
            result = simulator.step(action)
            observation, total = result.observation, total + float(result.reward.sum())
    return total / len(task.dataset)
