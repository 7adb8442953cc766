"""Your own agents: imported by path, and checked at each call."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.evaluation.masks import Observation, Predictor
from prunegym.errors import InvalidInputError, PruneGymError
from prunegym.user_code import import_object


class AgentError(PruneGymError, ValueError):
    """An agent has no ``predict``, or its ``predict`` raised or returned something other than a batch of masks."""


def load_agent(path: str) -> Predictor:
    """Import an agent from an installed package or a file in the current folder.

    Args:
        path: ``"module:name"``. The name is that of an object with ``predict``, a class of such objects (it is
            instantiated without arguments), or a function ``observation -> action``.

    Returns:
        An object with ``predict``.

    Raises:
        InvalidInputError: If the path has no colon, or does not exist.
        AgentError: If the object is no agent.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise InvalidInputError(
            f"The agent {path!r} is no import path; 'module:name' is needed. For example, 'mymodule:MyAgent' is the "
            "class MyAgent in the file mymodule.py of the current folder."
        )
    return as_predictor(import_object(path, "agent"), path)


def as_predictor(agent: Any, name: str | None = None) -> Predictor:
    """Return an object with ``predict`` for an object, a class or a function; see :func:`load_agent`.

    Raises:
        AgentError: If it is none of these, or the class cannot be instantiated.
    """
    name = agent_name(agent) if name is None else name
    if inspect.isclass(agent):
        try:
            agent = agent()
        except Exception as error:  # whatever the user's constructor raises
            raise AgentError(
                f"The agent {name!r} is a class that cannot be instantiated without arguments: "
                f"{type(error).__name__}: {error}. Give an object, e.g. `agent = {name.rpartition(':')[2]}(...)` "
                "in its module."
            ) from error
    if callable(getattr(agent, "predict", None)):
        return agent  # type: ignore[no-any-return]
    if callable(agent):
        stated = {key: getattr(agent, key) for key in ("macs", "layerwise", "observation_space") if hasattr(agent, key)}
        return SimpleNamespace(predict=agent, __name__=agent_name(agent), **stated)
    raise AgentError(
        f"The agent {name!r} is a {type(agent).__name__} without a method `predict`. An agent is an object with "
        "`predict(observation) -> action`, a class of such objects, or a function `observation -> action`."
    )


def agent_name(agent: object) -> str:
    """Return the name of an agent for messages and tables."""
    return str(getattr(agent, "__name__", None) or type(agent).__name__)


class CheckedAgent:
    """Calls an agent's ``predict`` and checks what it returns.

    It passes ``deterministic=True``, ``state`` and ``episode_start`` if ``predict`` takes them. A Stable-Baselines3
    agent that was trained with ``VecNormalize`` gets normalised observations.

    Args:
        agent: An object with ``predict``.
    """

    def __init__(self, agent: Predictor) -> None:
        self.agent = agent
        self.name = agent_name(agent)
        try:
            self._parameters = set(inspect.signature(agent.predict).parameters)
        except (TypeError, ValueError):  # builtins have no signature
            self._parameters = set()
        normaliser = getattr(agent, "get_vec_normalize_env", lambda: None)()
        self._normaliser = normaliser if normaliser is not None and normaliser.norm_obs else None

    def __call__(self, observation: Observation, state: Any, first: bool, bits: int) -> tuple[NDArray[np.float32], Any]:
        """Return the agent's actions, and its state for the next decision.

        Args:
            observation: Arrays (batch, ...).
            state: The state from the previous decision; None at the first one.
            first: Whether this is the first decision of the episode.
            bits: Number of mask bits of a decision.

        Returns:
            (batch, bits) float32 of 0 and 1, and the state.

        Raises:
            AgentError: If the agent raises, or returns another shape or other values.
        """
        batch = len(next(iter(observation.values())))
        if self._normaliser is not None:
            observation = self._normaliser.normalize_obs(observation)
        offered = {"deterministic": True, "state": state, "episode_start": np.full(batch, first)}
        keywords = {name: value for name, value in offered.items() if name in self._parameters}
        try:
            returned = self.agent.predict(observation, **keywords)
            actions, state = returned if isinstance(returned, tuple) else (returned, None)
            array = np.asarray(actions.detach().cpu() if hasattr(actions, "detach") else actions, dtype=np.float32)
        except PruneGymError:
            raise
        except Exception as error:  # whatever the user's agent raises
            shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in observation.items())
            raise AgentError(
                f"The agent {self.name!r} raised {type(error).__name__}: {error}. Its predict is called with a dict of "
                f"arrays ({shapes}) and has to return actions of shape ({batch}, {bits})."
            ) from error
        self._check(array, batch, bits)
        return array, state

    def _check(self, actions: NDArray[np.float32], batch: int, bits: int) -> None:
        if actions.shape != (batch, bits):
            raise AgentError(
                f"The agent {self.name!r} returned actions of shape {actions.shape}; ({batch}, {bits}) is needed: a "
                "row for each image and a number for each mask bit."
            )
        wrong = (actions != 0) & (actions != 1)
        if wrong.any():
            row, bit = np.argwhere(wrong)[0]
            raise AgentError(
                f"The agent {self.name!r} returned {actions[row, bit]:.4g} for bit {bit} of image {row}; only 0 "
                "(channel off) and 1 (on) are allowed. Threshold probabilities, e.g. `probability > 0.5`."
            )
