"""Wrappers that subtract from each return a baseline from other masks of the same image."""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from prunegym.errors import InvalidInputError
from prunegym.validation import typed


class _GroupWrapper(VecEnvWrapper):
    """Keeps the returns of the current episodes, to compare those of a group."""

    @typed
    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.group = int(venv.get_attr("group")[0]) if venv.has_attr("group") else 1
        if self.group < 2:
            raise InvalidInputError(
                f"{type(self).__name__} needs several masks for each image, but the group is {self.group}. "
                "Make the environment with MaskVecEnv(..., group=8) or another number of at least 2."
            )
        self._returns = np.zeros(self.num_envs)

    def reset(self) -> VecEnvObs:
        """Start episodes."""
        self._returns = np.zeros(self.num_envs)
        return self.venv.reset()


class GroupAdvantage(_GroupWrapper):
    """Subtract from each episode's last reward the mean return of the other masks of the same image.

    The agent then learns from differences between masks, not between images. The mean leaves out the episode's own
    return (Kool et al. 2019), so the expected gradient does not change. ``info["episode"]`` keeps the true return.

    Args:
        venv: A :class:`~prunegym.envs.MaskVecEnv` with ``group`` of at least 2, wrapped or not.

    Raises:
        InvalidInputError: If its group is smaller.

    Example:
        >>> from prunegym.envs import GroupAdvantage, MaskVecEnv
        >>> env = GroupAdvantage(MaskVecEnv("prunegym/ChannelMask-v0", num_envs=8, group=4, seed=0))
        >>> _ = env.reset()
        >>> rewards = env.step(np.random.default_rng(0).integers(0, 2, (8, env.action_space.n)))[1]
        >>> bool(abs(rewards.reshape(2, 4).sum(1)).max() < 1e-6)
        True
    """

    def step_wait(self) -> VecEnvStepReturn:
        """Return the rewards; at the end of episodes the group's baseline is subtracted."""
        observation, rewards, dones, infos = self.venv.step_wait()
        return observation, self._paid(rewards, bool(dones.any())), dones, infos

    def _paid(self, rewards: npt.NDArray[np.float32], over: bool) -> npt.NDArray[np.float32]:
        """Add a step's rewards to the returns, and return them; at the end without the mean return of the others."""
        self._returns += rewards
        if not over:
            return rewards
        returns = self._returns.reshape(-1, self.group)
        # The leave-one-out mean over the group's K masks: (sum - own) / (K - 1).
        others = (returns.sum(1, keepdims=True) - returns) / (self.group - 1)
        self._returns = np.zeros(self.num_envs)
        paid: npt.NDArray[np.float32] = (rewards - others.reshape(-1)).astype(np.float32)
        return paid


class Greedy(Protocol):
    """A policy of Stable-Baselines3."""

    def predict(self, observation: Any, *, deterministic: bool) -> tuple[npt.NDArray[Any], Any]:
        """From observations to (actions, state)."""


class SelfCritical(_GroupWrapper):
    """Subtract from each episode's last reward the return of the policy's own most likely masks of the same image.

    The self-critical baseline of BlockDrop (Wu et al. 2018; Rennie et al. 2017). The first sub-environment of each
    group takes the policy's deterministic action instead of the given one. Its rewards are 0, so that the agent learns
    nothing from given actions that were not taken. ``info["episode"]`` keeps the true returns.

    Args:
        venv: A :class:`~prunegym.envs.MaskVecEnv` with ``group`` of at least 2, wrapped or not.

    Raises:
        InvalidInputError: If its group is smaller.

    Example:
        >>> from stable_baselines3 import A2C
        >>> from prunegym.envs import MaskVecEnv, SelfCritical
        >>> env = SelfCritical(MaskVecEnv("prunegym/ChannelMask-v0", num_envs=8, group=2, reward="blockdrop", seed=0))
        >>> agent = A2C("MultiInputPolicy", env, n_steps=1)
        >>> env.follow(agent.policy)
        >>> agent.learn(16).num_timesteps
        16
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self._policy: Greedy | None = None
        self._observation: dict[str, npt.NDArray[Any]] = {}

    def follow(self, policy: Greedy) -> None:
        """Use the most likely masks of this policy, which is the one in training, as the baseline."""
        self._policy = policy

    def reset(self) -> VecEnvObs:
        """Start episodes."""
        self._observation = cast(dict[str, npt.NDArray[Any]], super().reset())
        return self._observation

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Act; the first of each group takes the policy's deterministic action.

        Raises:
            InvalidInputError: Before :meth:`follow`.
        """
        if self._policy is None:
            raise InvalidInputError("SelfCritical has no policy for its baseline. Call env.follow(agent.policy) first.")
        first = {name: values[:: self.group] for name, values in self._observation.items()}
        actions = np.array(actions)
        actions[:: self.group] = self._policy.predict(first, deterministic=True)[0]
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Return the rewards; at the end of episodes the return of the most likely masks is subtracted."""
        observation, rewards, dones, infos = self.venv.step_wait()
        self._observation = cast(dict[str, npt.NDArray[Any]], observation)
        self._returns += rewards
        if dones.any():
            rewards = rewards - np.repeat(self._returns[:: self.group], self.group).astype(np.float32)
            self._returns = np.zeros(self.num_envs)
        rewards = np.array(rewards)
        rewards[:: self.group] = 0
        return observation, rewards, dones, infos
