"""The state of reinforcement learning as plain data: a resumed run ends bit for bit like one that never stopped."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from prunegym.models.storage.run_state import load_optimizer
from prunegym.models.storage.weights import load_tensors
from prunegym.validation import whole_number


def state_of(algorithm: OnPolicyAlgorithm) -> dict[str, Any]:
    """Return the state of an algorithm and its environment between two rollouts.

    It does not include schedules, the rollout's buffer and its observations, which follow from the rest.
    """
    assert algorithm.env is not None
    policy = algorithm.policy
    return {
        "timesteps": algorithm.num_timesteps,
        "updates": algorithm._n_updates,
        "policy": policy.state_dict(),
        "optimizer": policy.optimizer.state_dict(),
        "sampling": algorithm.env.env_method("sampling_state", indices=0)[0],
    }


def restore(algorithm: OnPolicyAlgorithm, state: Mapping[str, Any], total: int) -> None:
    """Put a state of :func:`state_of` into a new algorithm with the same settings, which has not been trained.

    Args:
        algorithm: The algorithm, changed in place.
        state: Its state. If it is damaged or of another run, one of ``BROKEN`` is raised.
        total: Timesteps of the whole run.
    """
    assert algorithm.env is not None
    load_tensors(algorithm.policy, state["policy"], "its policy")
    load_optimizer(algorithm.policy.optimizer, state["optimizer"])
    rollout = algorithm.n_envs * algorithm.n_steps
    algorithm.num_timesteps = whole_number("timesteps", state["timesteps"], 0, total + rollout)
    if algorithm.num_timesteps % rollout:
        raise ValueError(f"timesteps are {algorithm.num_timesteps}, and a rollout has {rollout}")
    algorithm._n_updates = whole_number("updates", state["updates"], 0)
    algorithm.env.env_method("restore_sampling", state["sampling"], indices=0)


def noise_state() -> dict[str, Any]:
    """Return the states of the global random generators of torch, numpy and Python."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002  (the one that Stable-Baselines3 draws from)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    numpy = (name, torch.from_numpy(np.asarray(keys, np.int64)), *rest)
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": numpy, "python": random.getstate()}


def restore_noise(state: Mapping[str, Any]) -> None:
    """Put the states of :func:`noise_state` back; if they are damaged, one of ``BROKEN`` is raised."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(state["python"])
