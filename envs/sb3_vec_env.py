"""The batched environments for Stable-Baselines3."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from typing_extensions import Unpack

from prunegym.envs.interface import Action, MaskInterface, read_options, rows
from prunegym.envs.simulator import MaskSimulator, Observation
from prunegym.envs.task import TaskArguments
from prunegym.errors import InvalidInputError
from prunegym.registration import LAYERWISE
from prunegym.validation import array, choice, whole_number


class MaskVecEnv(MaskInterface, VecEnv):
    """``num_envs`` episodes as one batch for Stable-Baselines3, which take one batched forward pass.

    All sub-environments move in lockstep. Infos are empty until the step that ends the episodes. Then each has the
    scalar environment's entries, ``episode`` (as from SB3's Monitor), ``terminal_observation``, and ``is_success``,
    whose mean SB3 logs as ``rollout/success_rate``.

    Args:
        env_id: ``prunegym/ChannelMask-v0`` or ``prunegym/LayerwiseChannelMask-v0``.
        num_envs: Number of sub-environments; must be given.
        group: Number of neighbours that get the same image and lambda, for :class:`~prunegym.envs.GroupAdvantage`.
        seed: Seed of all randomness, from the first reset on.
        render_mode: ``rgb_array`` or None.
        **task: Arguments of the environment, as for ``gym.make``.

    Raises:
        UnknownNameError: For an unknown id.
        UnknownArgumentError: For an unknown argument.
        InvalidInputError: If a number is out of range, or :func:`~prunegym.envs.make_task` refuses an argument.

    Example:
        >>> from stable_baselines3 import PPO
        >>> from prunegym.envs import MaskVecEnv
        >>> env = MaskVecEnv("prunegym/ChannelMask-v0", num_envs=32, seed=0)
        >>> model = PPO("MultiInputPolicy", env, n_steps=2, batch_size=64).learn(64)
        >>> action, _ = model.predict(env.reset(), deterministic=True)
        >>> action.shape == (32, env.action_space.n)
        True
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int | None = None,
        group: int = 1,
        seed: int | None = None,
        render_mode: str | None = None,
        **task: Unpack[TaskArguments],
    ) -> None:
        layerwise = LAYERWISE[choice("environment", env_id, LAYERWISE)]
        if seed is not None:
            whole_number("seed", seed, 0)
        self._set_up(layerwise, task, render_mode, ("env_id", "num_envs", "group", "seed"))
        if num_envs is None:
            raise InvalidInputError("num_envs is missing; give the number of sub-environments, e.g. num_envs=32.")
        self.group = group
        self.simulator = MaskSimulator(self.task, num_envs, np.random.default_rng(seed), group)
        super().__init__(num_envs, self.task.observation_space, self.task.action_space)
        self._actions: Action = np.empty(0)
        self._start = time.time()

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the next reset.

        Raises:
            InvalidInputError: If the seed is not a whole number of at least 0.
        """
        return super().seed(None if seed is None else whole_number("seed", seed, 0))

    def reset(self) -> VecEnvObs:
        """Start an episode in every sub-environment, with the seed and options that were set before.

        Raises:
            InvalidInputError: If only some sub-environments have an option, or an index or lambda is out of range.
        """
        if self._seeds[0] is not None:
            self.simulator.reseed(np.random.default_rng(self._seeds[0]))
        index, penalty = self._read_options()
        self._reset_seeds()
        self._reset_options()
        observation = self._begin(index, penalty)
        self.reset_infos = _info_rows(self.simulator.info())
        self._show()
        return observation

    def step_async(self, actions: Action) -> None:
        """Keep the actions for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take a decision in every sub-environment; if that ends the episodes, the next ones begin.

        Raises:
            InvalidInputError: If actions have another shape or other values than 0 and 1.
            RewardError: If your reward function raises or returns bad values.
        """
        result = self.simulator.step(self._actions)
        self._returns += result.reward
        self._show()
        observation = result.observation
        infos: list[dict[str, Any]]
        if result.outcome is None:
            infos = [{} for _ in range(self.num_envs)]
        else:
            infos = self._final_infos(result.outcome.summary(), result.observation)
            observation = self._begin(None, None)
        dones = np.full(self.num_envs, result.terminated)
        return observation, result.reward.astype(np.float32), dones, infos

    def _begin(self, index: Any, penalty: Any) -> Observation:
        self._returns = np.zeros(self.num_envs)
        return self.simulator.reset(index, penalty)

    def _final_infos(self, summary: dict[str, npt.NDArray[Any]], last: Observation) -> list[dict[str, Any]]:
        infos = _info_rows(summary)
        length, elapsed = len(self.simulator.decisions), round(time.time() - self._start, 6)
        for info, value, observation in zip(infos, self._returns.tolist(), rows(last, self.num_envs), strict=True):
            info["episode"] = {"r": value, "l": length, "t": elapsed}
            info["terminal_observation"] = observation
            if "correct" in info:
                info["is_success"] = info["correct"]
        return infos

    def _read_options(self) -> tuple[Any, Any]:
        """Return the indices and the penalties from the list of options; None for those that are not given."""
        options = [read_options(options) for options in self._options]
        columns = []
        for name, values in zip(("index", "penalty"), zip(*options, strict=True), strict=True):
            given = [value for value in values if value is not None]
            if given and len(given) != self.num_envs:
                raise InvalidInputError(
                    f"{len(given)} sub-environments have {name!r} in their options. Give it to all "
                    f"{self.num_envs} or to none: their episodes begin together."
                )
            columns.append(array(f"Option {name!r}", given) if given else None)
        return columns[0], columns[1]

    def sampling_state(self) -> list[dict[str, Any]]:
        """Return the state from which the current episodes were drawn, see :meth:`MaskSimulator.sampling_state`."""
        return self.simulator.sampling_state()

    def restore_sampling(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Let the next reset start the same episodes; a seed that was set before is ignored."""
        self._reset_seeds()
        self.simulator.restore_sampling(state)

    def get_images(self) -> Sequence[npt.NDArray[np.uint8] | None]:
        """Return a picture of each sub-environment."""
        return self._pictures() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the batch, once for each sub-environment."""
        value = getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the batch as a whole.

        Raises:
            InvalidInputError: If there is no such attribute, or ``indices`` leaves out sub-environments.
        """
        if not hasattr(self, attr_name) or len(list(self._get_indices(indices))) != self.num_envs:
            raise InvalidInputError(
                f"{attr_name!r} cannot be set for sub-environments {indices}: they are one batch. Set it for all of "
                "them, and only an attribute that MaskVecEnv has."
            )
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the batch once, and return its result for each sub-environment."""
        result = getattr(self, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return True for SB3's Monitor, because infos have its entries, and False for other wrappers."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def _info_rows(columns: dict[str, npt.NDArray[Any]]) -> list[dict[str, Any]]:
    names, values = list(columns), [column.tolist() for column in columns.values()]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
