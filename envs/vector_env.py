"""The batched environments for Gymnasium."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from typing_extensions import Unpack

from prunegym.envs.rendering import check_render_mode, render
from prunegym.envs.scalar_env import Action, read_options
from prunegym.envs.simulator import MaskSimulator, Observation, Snapshot
from prunegym.envs.task import TaskArguments, environment_task
from prunegym.validation import shape, whole_number

Array = npt.NDArray[Any]


class ChannelMaskVectorEnv(VectorEnv[Observation, Action, Array]):
    """``num_envs`` episodes of :class:`~prunegym.envs.ChannelMaskEnv` as one batch; see there for the task.

    All sub-environments move in lockstep: their episodes begin and end together, and take one batched forward pass.
    The autoreset mode is SAME_STEP: the step that ends the episodes returns the first observation of the next ones.
    Its ``infos`` have the end of the finished ones: ``final_obs`` (an array of dicts) and ``final_info`` (a dict of
    arrays).

    ``reset(seed=s)`` seeds the batch as a whole, and ``reset(options={"index": [...]})`` takes one index for each
    sub-environment. After a step that ended episodes, ``render`` shows the finished ones.

    Args:
        num_envs: Number of sub-environments.
        render_mode: ``rgb_array`` or None.
        **task: As for the scalar environment.

    Example:
        >>> import gymnasium as gym
        >>> import prunegym
        >>> envs = gym.make_vec("prunegym/ChannelMask-v0", num_envs=4, split="test")
        >>> observations, infos = envs.reset(seed=0, options={"index": [0, 1, 2, 3]})
        >>> actions = np.ones((4, envs.single_action_space.n))
        >>> observations, rewards, terminations, truncations, infos = envs.step(actions)
        >>> terminations.tolist(), infos["final_info"]["index"].tolist()
        ([True, True, True, True], [0, 1, 2, 3])
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }
    layerwise: ClassVar[bool] = False

    def __init__(self, num_envs: int = 1, render_mode: str | None = None, **task: Unpack[TaskArguments]) -> None:
        self.render_mode = check_render_mode(render_mode)
        self.task = environment_task(self.layerwise, task, "num_envs", "render_mode")
        self.num_envs = whole_number("num_envs", num_envs)
        self.single_observation_space = self.task.observation_space
        self.single_action_space = self.task.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.simulator = MaskSimulator(self.task, num_envs, np.random.default_rng())
        self._seeded = False
        self._shown: Snapshot | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode in every sub-environment.

        Raises:
            InvalidInputError: If the seed is not a whole number, or there is not one valid index for each
                sub-environment.
            UnknownNameError: For an unknown option.
        """
        if seed is not None:
            whole_number("seed", seed, 0, hint="One seed is for the whole batch.")
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            self.simulator.reseed(self.np_random)
            self._seeded = True
        index, penalty = read_options(options)
        if index is not None:
            shape("options['index']", np.asarray(index), (self.num_envs,), "Give a list: an index for each.")
        observation = self.simulator.reset(index, penalty)
        self._shown = self.simulator.snapshot() if self.render_mode else None
        return observation, self._everywhere(self.simulator.info())

    def step(self, actions: Action) -> tuple[Observation, Array, Array, Array, dict[str, Any]]:
        """Take a decision in every sub-environment; when that ends the episodes, the next ones begin.

        Raises:
            InvalidInputError: If actions have another shape or other values than 0 and 1.
            RewardError: If your reward function raises or returns bad values.
        """
        result = self.simulator.step(actions)
        observation, infos = result.observation, {}
        self._shown = self.simulator.snapshot() if self.render_mode else None
        if result.outcome is not None:
            final = np.empty(self.num_envs, dtype=object)
            final[:] = rows(observation, self.num_envs)
            summary = self._everywhere(result.outcome.summary())
            infos = self._everywhere({"final_obs": final, "final_info": summary})
            observation = self.simulator.reset()
        infos |= self._everywhere(self.simulator.info())
        over = np.full(self.num_envs, result.terminated)
        return observation, result.reward, over, np.zeros(self.num_envs, dtype=bool), infos

    def render(self) -> tuple[npt.NDArray[np.uint8], ...] | None:
        """Return a picture of each sub-environment."""
        if self._shown is None:
            return None
        return tuple(render(self.task, self._shown, row) for row in range(self.num_envs))

    def _everywhere(self, infos: dict[str, Any]) -> dict[str, Any]:
        """Add Gymnasium's ``_key`` to each key: which sub-environments have it, here all."""
        return infos | {f"_{key}": np.ones(self.num_envs, dtype=bool) for key in infos}


class LayerwiseChannelMaskVectorEnv(ChannelMaskVectorEnv):
    """``num_envs`` episodes of :class:`~prunegym.envs.LayerwiseChannelMaskEnv` as one batch, all at the same gate.

    See :class:`ChannelMaskVectorEnv` for the batch and the scalar environment for the task.
    """

    layerwise = True


def rows(observation: Observation, count: int) -> list[Observation]:
    """Return the observation of each sub-environment: views of arrays that are new at each step."""
    columns = list(observation.items())
    return [{name: array[row] for name, array in columns} for row in range(count)]
