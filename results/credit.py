r"""Credit by gate: groups that branch at a gate, beside groups that choose a whole mask each, from the same gates.

A group of eight masks of an image plays the bits of its first member up to a gate that is drawn at random, and parts
from there on: differences of their returns are owed to the bits from that gate on (VinePPO, Kazemnejad et al. 2024).
Both sides are stock PPO with the recipe's settings, from the same gates at their best offset, and see as many images.

Also, how much of the variance of a return within a group is that of the MACs: knowing their expectation exactly,
instead of sampling it, cannot remove more.

    python results/credit.py runs/cifar/refined/start.safetensors --recipe refined --seeds 0 --json credit.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from prunegym import DynamicCNN, load_dataset, shipped_model
from prunegym.agents import evaluate
from prunegym.agents.comparison.results import interval
from prunegym.agents.rl.lagrangian import gates_at_best_offset
from prunegym.agents.rl.recipe import Recipe
from prunegym.agents.rl.recipe_files import adjusted_recipe
from prunegym.agents.rl.trainer import build_algorithm, training_env
from prunegym.envs import GroupAdvantage
from prunegym.models import Dataset, GatePolicy
from prunegym.models.storage.run_folder import command_line, machine


class BranchAtGate(GroupAdvantage):
    """Members of a group take the first one's bits before a gate, drawn at random for each group and episode.

    The steps before the gate end an episode of their own, with rewards of 0, so that PPO learns nothing from actions
    that were given but not taken. From the gate on, each return loses the mean of the others'.
    """

    def __init__(self, venv: VecEnv, seed: int) -> None:
        super().__init__(venv)
        self._rng = np.random.default_rng(seed)
        self._gates = len(venv.get_attr("simulator")[0].decisions)
        self._begin()

    def _begin(self) -> None:
        self._at = 0
        self._branch = np.repeat(self._rng.integers(self._gates, size=self.num_envs // self.group), self.group)

    def reset(self) -> VecEnvObs:
        """Start episodes."""
        self._begin()
        return super().reset()

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Act; before the branch, as the first of the group."""
        first = np.repeat(actions[:: self.group], self.group, axis=0)
        self.venv.step_async(np.where((self._at < self._branch)[:, None], first, actions))

    def step_wait(self) -> VecEnvStepReturn:
        """Return rewards from the branch on, less the mean of the others' in the last step."""
        observation, rewards, dones, infos = self.venv.step_wait()
        together = self._at < self._branch
        over = bool(dones.any())
        rewards = self._paid(np.where(together, 0, rewards).astype(np.float32), over)
        if over:
            self._begin()
        else:
            self._at += 1
            dones = dones | (together & (self._at == self._branch))
        return observation, rewards, dones, infos


class Curve(BaseCallback):
    """Keeps the gates' accuracy - lambda * total MACs on validation images, every so many episodes."""

    def __init__(self, start: DynamicCNN, split: Dataset, penalty: float, every: int) -> None:
        super().__init__()
        self.start, self.split, self.penalty, self.every, self.rows = start, split, penalty, every, list[Any]()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        steps = self.num_timesteps // len(self.start.policy.decisions)
        if steps % self.every == 0:
            self.measure(steps)

    def measure(self, episodes: int) -> None:
        """Add a row."""
        policy = self.model.policy.gate_policy()  # type: ignore[operator]
        self.rows.append({"episodes": episodes, **measured(self.start, policy, self.split, self.penalty)})


def measured(start: DynamicCNN, policy: GatePolicy, split: Dataset, penalty: float) -> dict[str, float]:
    """Return accuracy, total MAC share, and the reward of both."""
    found = evaluate(DynamicCNN(start.masked, policy, start.info), None, split)
    reward = found.accuracy - penalty * found.total_mac_share
    return {"accuracy": found.accuracy, "total_mac_share": found.total_mac_share, "reward": reward}


def train(
    start: DynamicCNN, splits: dict[str, Dataset], recipe: Recipe, seed: int, *, branch: bool, every: int
) -> dict[str, Any]:
    """Train one side with a seed, and return its curve on the validation images and its figures on the test images."""
    assert isinstance(start.policy, GatePolicy)
    env = training_env(start.masked, start.policy, splits["train"], recipe, seed, "cpu")
    assert isinstance(env, GroupAdvantage)
    algorithm = build_algorithm(BranchAtGate(env.venv, seed) if branch else env, start.policy, recipe, seed, "cpu")
    penalty = recipe.middle_penalty
    curve = Curve(start, splits["validation"], penalty, every)
    algorithm.learn(recipe.n_episodes * len(start.policy.decisions), curve)
    curve.measure(recipe.n_episodes)
    policy = algorithm.policy.gate_policy()  # type: ignore[operator]
    return {"curve": curve.rows, "test": measured(start, policy, splits["test"], penalty)}


def variances(start: DynamicCNN, train: Dataset, recipe: Recipe) -> dict[str, float]:
    """Return the variance within a group of the accuracy term, of lambda * MACs, and of their difference."""
    assert isinstance(start.policy, GatePolicy)
    env = training_env(start.masked, start.policy, train, recipe, 0, "cpu")
    algorithm = build_algorithm(env, start.policy, recipe, 0, "cpu")
    returns, costs = [], []
    observation = env.reset()
    while len(returns) < 8:
        with torch.inference_mode():
            actions, *_ = algorithm.policy(algorithm.policy.obs_to_tensor(observation)[0])
        observation, _, dones, infos = env.step(actions.numpy())
        if dones.all():
            returns.append([info["episode"]["r"] for info in infos])
            costs.append([recipe.middle_penalty * info["mac_share"] for info in infos])
    groups = [np.array(values).reshape(-1, recipe.group) for values in (returns, costs)]
    paid, cost = groups
    within = {"accuracy_term": paid + cost, "macs": cost, "return": paid}
    return {name: float(values.var(axis=1, ddof=1).mean()) for name, values in within.items()}


def main() -> None:
    """Train both sides with each seed that is not in the document yet, and write it after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="its gates are where PPO begins: a model file, or a shipped model")
    parser.add_argument("--recipe", default="refined")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--episodes", type=int, help="images; those of the recipe by default")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(sys.argv[1:])
    torch.set_num_threads(1)
    recipe = adjusted_recipe(options.recipe, episodes=options.episodes)
    model = DynamicCNN.load(options.model) if Path(options.model).exists() else shipped_model(options.model)
    names = ("train", "validation", "test")
    splits = {name: model.info.adapt(load_dataset(model.info.dataset, name)) for name in names}
    start = gates_at_best_offset(model, splits["validation"], recipe.middle_penalty)
    every = max(recipe.n_envs, recipe.n_episodes // 6 // recipe.n_envs * recipe.n_envs)
    document: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    if not document:
        document = {
            "command": command_line(), "machine": machine(), "variance": variances(start, splits["train"], recipe),
            "start": {name: measured(start, start.policy, splits[name], recipe.middle_penalty) for name in names[1:]},
            "rows": [],
        }  # fmt: skip
    for seed in options.seeds:
        if seed in [row["seed"] for row in document["rows"]]:
            continue
        sides = {}
        for name, branch in (("group", False), ("branch", True)):
            begun = time.process_time()
            sides[name] = train(start, splits, recipe, seed, branch=branch, every=every)
            sides[name]["seconds"] = time.process_time() - begun
            print(seed, name, sides[name]["test"], flush=True)
        document["rows"].append({"seed": seed, **sides})
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    options.json.write_text(json.dumps({**document, **summary(document)}, indent=1) + "\n")


def summary(document: dict[str, Any]) -> dict[str, Any]:
    """Return the rewards on the test images over seeds, and what branching and PPO gain, paired by seed."""
    group, branch = ([row[name]["test"]["reward"] for row in document["rows"]] for name in ("group", "branch"))
    start = document["start"]["test"]["reward"]
    found = {
        "group": group,
        "branch": branch,
        "group_minus_start": [one - start for one in group],
        "branch_minus_group": [one - other for one, other in zip(branch, group, strict=True)],
    }
    share = document["variance"]["macs"] / document["variance"]["return"]
    return {"macs_share_of_variance": share, **{name: vars(interval(values)) for name, values in found.items()}}


if __name__ == "__main__":
    main()
