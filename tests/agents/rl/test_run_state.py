"""The state of a run: an algorithm that resumes goes on exactly as one that never stopped."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from prunegym.agents.rl.mask_policy import MaskPolicy, new_gate_policy
from prunegym.agents.rl.run_state import noise_state, restore, restore_noise, state_of
from prunegym.envs.sb3_vec_env import MaskVecEnv
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.storage.run_state import BROKEN, load_state, save_state

STEPS = 2 * 32  # of a rollout: two decisions in each of 32 environments
TASKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "range of lambdas": {"reward": "macs", "penalty": (0.0, 1.0)},
    "augmented": {"augment": True},
    "in one step": {},
}


def _made(kind: type[OnPolicyAlgorithm], task: str) -> OnPolicyAlgorithm:
    name = "prunegym/ChannelMask-v0" if task == "in one step" else "prunegym/LayerwiseChannelMask-v0"
    images = load_dataset("digits", "train").part(":64")
    env = MaskVecEnv(name, 32, group=4, seed=3, model="simple-cnn", dataset=images, **TASKS[task])
    start = new_gate_policy(env)
    return kind(MaskPolicy, env, n_steps=STEPS // 32, seed=5, device="cpu", policy_kwargs={"gate_policy": start})


class _Noise(BaseCallback):
    """Restores the noise when training begins, after the environment's reset."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__()
        self.state = state

    def _on_training_start(self) -> None:
        restore_noise(self.state)

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", [PPO, pytest.param(A2C, marks=pytest.mark.slow)])
def test_an_algorithm_resumes_exactly(tmp_path: Path, kind: type[OnPolicyAlgorithm], task: str) -> None:
    path, rollouts = tmp_path / "state.safetensors", 12  # in eight, each image comes once
    whole = _made(kind, task).learn(rollouts * STEPS).policy.state_dict()
    part = _made(kind, task).learn(5 * STEPS)
    save_state(path, {"algorithm": state_of(part), "noise": noise_state()})
    torch.manual_seed(99)
    resumed, state = _made(kind, task), load_state(path)
    restore(resumed, state["algorithm"], rollouts * STEPS)
    resumed.learn((rollouts - 5) * STEPS, callback=_Noise(state["noise"]), reset_num_timesteps=False)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.policy.state_dict().items())
    assert not all(torch.equal(tensor, whole[name]) for name, tensor in part.policy.state_dict().items())


def test_noise_goes_on_exactly(tmp_path: Path) -> None:
    def draws() -> list[float]:
        old = [np.random.rand(), np.random.randn()]  # noqa: NPY002  (the generator that is restored)
        return [float(torch.rand(())), *old, random.random(), random.gauss(0, 1)]

    draws()
    save_state(tmp_path / "noise.safetensors", noise_state())
    expected = draws()
    draws()
    restore_noise(load_state(tmp_path / "noise.safetensors"))
    assert draws() == expected


WRONG: dict[str, Any] = {
    "timesteps": [-1, 1, 10**9, 1.5, "1", None],
    "updates": [-1, None],
    "policy": [{}, 3, {"actor": torch.zeros(1)}],
    "optimizer": [{}, [], {"state": {}, "param_groups": []}],
    "sampling": [{}, 3, [], [{}], [{"rng": {}, "left": torch.zeros(3, dtype=torch.int64), "shifts": None}]],
}


@pytest.mark.parametrize("key", WRONG)
def test_damaged_states_are_refused(key: str) -> None:
    algorithm = _made(PPO, "plain")
    algorithm.learn(STEPS)
    state = state_of(algorithm)
    for value in [*WRONG[key], None]:
        with pytest.raises(BROKEN):
            restore(algorithm, {**state, key: value}, 10 * STEPS)
    with pytest.raises(BROKEN):
        restore(algorithm, {one: value for one, value in state.items() if one != key}, 10 * STEPS)


def test_damaged_weights_optimizers_and_draws_are_refused() -> None:
    algorithm = _made(PPO, "plain")
    algorithm.learn(STEPS)
    state = state_of(algorithm)
    weights = {name: tensor.clone().fill_(float("nan")) for name, tensor in state["policy"].items()}
    drawn = [{**state["sampling"][0], "left": torch.tensor([10**9])}]
    moments = {0: {**state["optimizer"]["state"][0], "exp_avg": torch.zeros(3)}}
    optimizer = {**state["optimizer"], "state": {**state["optimizer"]["state"], **moments}}
    groups = [{**state["optimizer"]["param_groups"][0], "betas": "x"}]
    for changed in (
        {"policy": weights}, {"sampling": drawn}, {"optimizer": optimizer},
        {"optimizer": {**state["optimizer"], "param_groups": groups}},
    ):  # fmt: skip
        with pytest.raises(BROKEN):
            restore(algorithm, {**state, **changed}, 10 * STEPS)


@pytest.mark.parametrize("key", ["torch", "numpy", "python"])
def test_damaged_noise_is_refused(key: str) -> None:
    good = noise_state()
    for value in (torch.zeros(3), None, ("a", 1), 3):
        with pytest.raises(BROKEN):
            restore_noise({**good, key: value})
    restore_noise(good)
