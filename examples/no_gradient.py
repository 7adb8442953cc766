"""Shared code of the examples of rewards without a gradient: straight-through gates, then PPO, and a comparison.

The baseline is gates trained by gradient, straight through their threshold, for several MAC targets. If the reward
gives training images different weights, it also trains on weighted images. Several offsets are added to the logits. Of
all gates and offsets, the pair with the highest mean reward on the validation images is used. PPO starts from these
gates, and its offset is chosen in the same way. PPO is also compared with the pair that is best on the test images,
which you could not choose in practice.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from prunegym import DynamicCNN, Outcome, load_dataset, load_recipe, make_task, shipped_model
from prunegym.agents.comparison.results import interval
from prunegym.agents.rl.trainer import build_algorithm, training_env
from prunegym.envs import MaskSimulator
from prunegym.models import Dataset, GatePolicy, TuneConfig, tune

Reward = Callable[[Outcome], Tensor]
OFFSETS = [0.25 * step for step in range(-12, 5)]


def rewards(model: DynamicCNN, policy: GatePolicy, dataset: Dataset, reward: Reward) -> Tensor:
    """Return the reward of a policy's most likely masks on each image, (images,) float64."""
    task = make_task(model.masked, dataset, reward=reward, penalty=0.0, layerwise=True, features=policy.features)
    simulator = MaskSimulator(task, len(dataset), np.random.default_rng(0))
    observation = simulator.reset(range(len(dataset)))
    total = torch.zeros(len(dataset), dtype=torch.float64)
    for index, decision in enumerate(policy.decisions):
        features = torch.from_numpy(observation["features"])[:, : policy.features.sizes[index]]
        bits = torch.ones(len(dataset), *task.action_space.shape)
        with torch.inference_mode():
            bits[:, : decision.width] = (policy.logits(index, features) > 0).float()
        result = simulator.step(bits)
        observation, total = result.observation, total + torch.from_numpy(result.reward)
    return total


def shifted(policy: GatePolicy, offset: float) -> GatePolicy:
    """Return a copy that keeps more channels, or fewer for a negative offset."""
    moved = copy.deepcopy(policy)
    moved.rescale_logits(offset=offset)
    return moved


def best(model: DynamicCNN, policies: Sequence[GatePolicy], dataset: Dataset, reward: Reward) -> GatePolicy:
    """Return the policy and offset with the highest mean reward on a data set."""
    tried = [shifted(policy, offset) for policy in policies for offset in OFFSETS]
    return max(tried, key=lambda policy: float(rewards(model, policy, dataset, reward).mean()))


def straight_through(model: DynamicCNN, images: Dataset, target: float, epochs: float, seed: int) -> GatePolicy:
    """Train the shipped model's gates by gradient for a MAC target; the weights of its CNN are frozen."""
    policy = copy.deepcopy(model.policy)
    assert isinstance(policy, GatePolicy)
    config = TuneConfig(target, epochs, 64, train_cnn=False, gate_learning_rate=5e-3, anneal=0.2, seed=seed)
    tune(model.masked, policy, images, config)
    return policy


def by_ppo(
    model: DynamicCNN, start: GatePolicy, train: Dataset, reward: Reward, episodes: int, seed: int
) -> GatePolicy:
    """Train a policy from given gates for the reward itself, with Stable-Baselines3's PPO."""
    recipe = load_recipe("digits")
    settings = recipe.hyperparameters | {"learning_rate": "lin_1.0e-3"}
    kwargs = {"reward": reward, "penalty": 0.0, "augment": True}
    recipe = dataclasses.replace(recipe, env_kwargs=kwargs, hyperparameters=settings, n_envs=512, group=8)
    env = training_env(model.masked, start, train, recipe, seed, "cpu")
    algorithm = build_algorithm(env, start, recipe, seed, "cpu")
    algorithm.learn(episodes * len(start.decisions))
    return algorithm.policy.gate_policy()  # type: ignore[operator,no-any-return]


def compare(
    reward: Reward, targets: Sequence[float], weights: Tensor | None = None, epochs: float = 16, episodes: int = 25600
) -> None:
    """Print the mean reward on the test images of both, and the difference with its 95 % interval over seeds.

    Args:
        reward: The reward.
        targets: MAC targets of the baseline.
        weights: The cost of an error for each class, (classes,). If given, the baseline is also trained on images that
            are drawn in proportion to it.
        epochs: Passes of the baseline over the training images, for each target.
        episodes: Number of PPO's episodes.
    """
    torch.set_num_threads(1)
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    model = shipped_model("digits")
    train, validation, test = (load_dataset("digits", split) for split in ("train", "validation", "test"))
    rows = []
    for seed in range(seeds):
        drawn = [train]
        if weights is not None:
            generator = torch.Generator().manual_seed(seed)
            drawn.append(train.subset(torch.multinomial(weights[train.labels], len(train), True, generator=generator)))
        gates = [straight_through(model, images, target, epochs, seed) for images in drawn for target in targets]
        baseline = best(model, gates, validation, reward)
        learned = best(model, [by_ppo(model, baseline, train, reward, episodes, seed)], validation, reward)
        found = (baseline, best(model, gates, test, reward), learned)
        rows.append([float(rewards(model, policy, test, reward).mean()) for policy in found])
        print(
            f"seed {seed}: straight-through {rows[-1][0]:.4f} (best on test {rows[-1][1]:.4f}), PPO {rows[-1][2]:.4f}"
        )
    table = np.array(rows).T
    for name, baseline_rewards in (("", table[0]), (" at its best on the test images", table[1])):
        gap = interval((table[2] - baseline_rewards).tolist())
        print(f"PPO - straight-through{name}: {gap.mean:+.4f} +- {gap.half_width or 0.0:.4f} over {seeds} seeds")
