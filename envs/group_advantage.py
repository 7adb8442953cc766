"""A baseline of other masks of the same image, for stock SB3 algorithms."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from prunegym.models.errors import InvalidInputError


class GroupAdvantage(VecEnvWrapper):
    """Subtract from each episode's last reward the mean return of the other masks of the same image.

    What is left to learn from are differences between masks, not between images. The mean leaves the episode's own
    return out (Kool et al. 2019), so the gradient's expectation does not change. ``info["episode"]`` keeps the true
    return.

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

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.group = int(venv.get_attr("group")[0]) if venv.has_attr("group") else 1
        if self.group < 2:
            raise InvalidInputError(
                f"GroupAdvantage needs several masks of an image, but the group is {self.group}. "
                "Make the environment with MaskVecEnv(..., group=8), say."
            )
        self._returns = np.zeros(self.num_envs)

    def reset(self) -> VecEnvObs:
        """Start episodes."""
        self._returns = np.zeros(self.num_envs)
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Return the rewards, and at the end of episodes less the group's baseline."""
        observation, rewards, dones, infos = self.venv.step_wait()
        self._returns += rewards
        if dones.any():
            returns = self._returns.reshape(-1, self.group)
            others = (returns.sum(1, keepdims=True) - returns) / (self.group - 1)
            rewards = (rewards - others.reshape(-1)).astype(np.float32)
            self._returns = np.zeros(self.num_envs)
        return observation, rewards, dones, infos
