"""The batched environments for Gymnasium."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor
from typing_extensions import Unpack

from prunegym.envs.interface import Action, MaskInterface, read_options, rows
from prunegym.envs.simulator import MOST_ENVS, MaskSimulator, Observation
from prunegym.envs.task import TaskArguments
from prunegym.errors import InvalidInputError
from prunegym.validation import array, choice, shape, whole_number

Array = npt.NDArray[Any]


class ChannelMaskVectorEnv(MaskInterface, VectorEnv[Observation, Action, Array]):
    """``num_envs`` episodes of :class:`~prunegym.envs.ChannelMaskEnv` as one batch; see there for the task.

    All sub-environments move in lockstep: their episodes begin and end together, and take one batched forward pass.

    ``autoreset_mode`` says when the next episodes begin, as in Gymnasium's ``SyncVectorEnv``:

    - ``SameStep`` (the default): the step that ends the episodes returns the first observation of the next ones. Its
      ``infos`` have the end of the finished ones: ``final_obs`` (an array of dicts) and ``final_info`` (a dict of
      arrays).
    - ``NextStep``: that step returns the last observation and info. The next one ignores its actions and begins new
      episodes with reward 0. Gymnasium's vector wrappers of observations need this mode. With episodes of one step,
      every second step only begins new episodes.
    - ``Disabled``: call ``reset`` at the end.

    ``reset(seed=s)`` seeds the batch as a whole: each image comes once per epoch, as in ``MaskVecEnv(seed=s)``.
    ``reset(seed=[s0, s1, ...])`` gives each sub-environment the images of a scalar environment with that seed. So
    Gymnasium's ``SyncVectorEnv`` with seed s has the images of this class with seeds [s, s + 1, ...].

    ``reset(options={"index": [...]})`` takes one index for each sub-environment, ``options={"penalty": ...}`` one
    lambda, or one for each. ``options={"reset_mask": bools}`` resets only some sub-environments, before their first
    decision. After a step that ended episodes, ``render`` shows the finished ones.

    Args:
        num_envs: Number of sub-environments.
        render_mode: ``rgb_array`` or None.
        autoreset_mode: An ``AutoresetMode`` of Gymnasium or its value.
        **task: Arguments of the scalar environment.

    Attributes:
        autoreset_mode: The mode, as in ``metadata["autoreset_mode"]``.

    Example:
        >>> import gymnasium as gym
        >>> import prunegym
        >>> envs = gym.make_vec("prunegym/ChannelMask-v0", num_envs=4, split="test")
        >>> observations, infos = envs.reset(seed=0, options={"index": [0, 1, 2, 3]})
        >>> actions = np.ones((4, envs.single_action_space.n))
        >>> observations, rewards, terminations, truncations, infos = envs.step(actions)
        >>> terminations.tolist(), infos["final_info"]["index"].tolist()
        ([True, True, True, True], [0, 1, 2, 3])

        >>> envs = gym.make_vec("prunegym/ChannelMask-v0", num_envs=4, autoreset_mode="NextStep")
        >>> gym.wrappers.vector.FlattenObservation(envs).reset(seed=0)[0].shape
        (4, 17)
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }
    layerwise: ClassVar[bool] = False

    def __init__(
        self,
        num_envs: int = 1,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        **task: Unpack[TaskArguments],
    ) -> None:
        if not isinstance(autoreset_mode, AutoresetMode):
            autoreset_mode = AutoresetMode(
                choice("autoreset mode", autoreset_mode, [mode.value for mode in AutoresetMode])
            )
        self.autoreset_mode = autoreset_mode
        self.metadata = self.metadata | {"autoreset_mode": autoreset_mode}
        self._set_up(self.layerwise, task, render_mode, ("num_envs", "autoreset_mode"))
        self.num_envs = whole_number("num_envs", num_envs, 1, MOST_ENVS)
        self.single_observation_space = self.task.observation_space
        self.single_action_space = self.task.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.simulator = MaskSimulator(self.task, num_envs, self.np_random)
        self._ended = False

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode in every sub-environment, or in those of ``options["reset_mask"]``.

        Args:
            seed: One for the batch, or a list with one for each sub-environment. In a list, None keeps the current
                random state.
            options: ``index``, ``penalty`` and ``reset_mask``, see the class.

        Raises:
            InvalidInputError: If the seed is not a whole number or a list of them, if there is not one valid index for
                each sub-environment, or if a part of them cannot be reset now.
            UnknownNameError: For an unknown option.
        """
        index, penalty = read_options(options, "reset_mask")
        some = self._rows_to_reset(options)
        self._reseed(seed, some)
        if index is not None:
            hint = "Give a list: an index for each."
            index = shape("options['index']", array("options['index']", index, hint), (self.num_envs,), hint)
        if some is not None:
            index = index if index is None else index[some]
            if isinstance(penalty, list | tuple | np.ndarray):
                penalty = shape("options['penalty']", array("options['penalty']", penalty), (self.num_envs,))[some]
        observation = self.simulator.reset(index, penalty, some)
        self._ended = False
        self._show()
        return observation, self._known(self.simulator.info(), some)

    def step(self, actions: Action) -> tuple[Observation, Array, Array, Array, dict[str, Any]]:
        """Take a decision in every sub-environment; the class describes what happens after the last one.

        Raises:
            InvalidInputError: If actions have another shape or other values than 0 and 1.
            RewardError: If your reward function raises or returns bad values.
        """
        never = np.zeros(self.num_envs, dtype=bool)
        if self._ended and self.autoreset_mode is AutoresetMode.NEXT_STEP:
            observation, infos = self.reset()
            return observation, np.zeros(self.num_envs), never, never.copy(), infos
        result = self.simulator.step(actions)
        observation, infos = result.observation, {}
        self._ended = result.terminated
        self._show()
        if result.outcome is None:
            infos = self._known(self.simulator.info())
        else:
            infos = self._known(result.outcome.summary())
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                final = np.empty(self.num_envs, dtype=object)
                final[:] = rows(observation, self.num_envs)
                infos = self._known({"final_obs": final, "final_info": infos})
                observation = self.simulator.reset()
                infos |= self._known(self.simulator.info())
        return observation, result.reward, np.full(self.num_envs, result.terminated), never, infos

    def render(self) -> tuple[npt.NDArray[np.uint8], ...] | None:
        """Return a picture of each sub-environment."""
        pictures = self._pictures()
        return None if pictures is None else tuple(pictures)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of the batch once, or read an attribute; return the result for each sub-environment.

        Example:
            >>> envs = ChannelMaskVectorEnv(num_envs=2, reward="macs", penalty=0.5)
            >>> envs.call("set_penalty", 0.3)
            (None, None)
            >>> envs.get_attr("penalty")
            (0.3, 0.3)
        """
        value = getattr(self, name)
        result = value(*args, **kwargs) if callable(value) else value
        return result if name == "render" else (result,) * self.num_envs

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of the batch, once for each sub-environment."""
        return (getattr(self, name),) * self.num_envs

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of the batch, for example ``penalty``; of a list, all values must be equal.

        Raises:
            InvalidInputError: If there is no such attribute, or values differ: sub-environments are one batch.
        """
        given = list(values) if isinstance(values, (list, tuple)) else [values]
        if not hasattr(self, name) or len(given) not in (1, self.num_envs) or any(one != given[0] for one in given):
            raise InvalidInputError(
                f"{name!r} cannot be set to {values!r}: sub-environments are one batch. Set one value for all, and "
                "only "
                f"an attribute that {type(self).__name__} has."
            )
        setattr(self, name, given[0])

    def _reseed(self, seed: Any, some: Tensor | None) -> None:
        hint = "Give one for the batch, or a list: one for each sub-environment."
        if not isinstance(seed, list | tuple | np.ndarray):
            super().reset(seed=None if seed is None else whole_number("seed", seed, 0, hint=hint))
            if seed is not None:
                self.simulator.reseed(self.np_random)
            return
        shape("seed", np.asarray(seed, dtype=object), (self.num_envs,), hint)
        asked = range(self.num_envs) if some is None else some.tolist()
        self.simulator.reseed(*(
            None if one is None or row not in asked else seeding.np_random(whole_number("seed", one, 0))[0]
            for row, one in enumerate(seed)
        ))  # fmt: skip

    def _rows_to_reset(self, options: dict[str, Any] | None) -> Tensor | None:
        """Return the sub-environments to reset; None for all."""
        wanted = (options or {}).get("reset_mask")
        if wanted is None:
            return None
        hint = "Give a bool for each sub-environment."
        wanted = shape("options['reset_mask']", array("options['reset_mask']", wanted, hint), (self.num_envs,), hint)
        if wanted.dtype != bool or not wanted.any():
            raise InvalidInputError(f"options['reset_mask'] is {wanted}; bools are needed, and at least one True.")
        return None if wanted.all() else torch.from_numpy(wanted.nonzero()[0])

    def _known(self, infos: dict[str, Any], rows: Tensor | None = None) -> dict[str, Any]:
        """Add Gymnasium's ``_key`` to each key: which sub-environments have it, by default all."""
        has = np.full(self.num_envs, rows is None)
        if rows is not None:
            has[rows] = True
        return infos | {f"_{key}": has.copy() for key in infos}


class LayerwiseChannelMaskVectorEnv(ChannelMaskVectorEnv):
    """``num_envs`` episodes of :class:`~prunegym.envs.LayerwiseChannelMaskEnv` as one batch, all at the same gate.

    See :class:`ChannelMaskVectorEnv` for the batch and the scalar environment for the task.
    """

    layerwise = True
