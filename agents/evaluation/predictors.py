"""Agents with ``predict``, such as yours: loaded, checked, and run over a split in the simulator."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from prunegym.agents.evaluation.masks import Decided, Observation, Predictor, shown_penalty
from prunegym.agents.evaluation.sb3_files import load_sb3
from prunegym.envs.rewards.outcome import Outcome
from prunegym.envs.simulator import MaskSimulator
from prunegym.envs.task import Task, make_task
from prunegym.errors import InvalidInputError, PruneGymError
from prunegym.models.checks import check_images
from prunegym.models.data.dataset import Dataset
from prunegym.models.data.dataset_registry import other_split
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.storage.model_file import Bundle
from prunegym.user_code import import_object
from prunegym.validation import plain, yes_or_no


@dataclasses.dataclass(frozen=True)
class PredictorOptions:
    """Settings for evaluating agents with ``predict``.

    Attributes:
        features: The features that the agent observes. By default those of its gate policy, or else of the model, or
            else new ones calibrated on ``train``, as in the environments.
        train: Training images to calibrate features on. By default those of the data set with the same name.
        agent_penalty: The lambda that an agent observes if it was trained for a range of lambdas. By default the one
            in the figure ``reward`` if it is in the range, else the middle.
    """

    features: MaskFeatures | None = None
    train: Dataset | None = None
    agent_penalty: float | None = None


def decide_by_prediction(
    agent: Any,
    model: Bundle,
    layerwise: bool | None,
    batch_size: int,
    options: PredictorOptions,
    penalty: float = 0.5,
) -> Decided:
    """Let an agent decide the masks of a split, each image once.

    Args:
        agent: An object with ``predict``, or a function.
        model: The CNN, with the ``evaluated`` images.
        layerwise: Whether the agent decides gate by gate; with None the agent says it.
        batch_size: Images at a time.
        options: More settings.
        penalty: lambda in the figure ``reward``.

    Raises:
        AgentError: If the agent fails, returns wrong actions, or was trained on other observations.
    """
    caller, dataset = CheckedAgent(as_predictor(agent)), model.data["evaluated"]
    task = _task(caller, model, layerwise, options)
    simulator = MaskSimulator(task, min(batch_size, len(dataset)), np.random.default_rng(0))
    made_for = {key: part.shape for key, part in _spaces(caller.agent).items()}
    given = {key: part.shape for key, part in simulator.observation_space.spaces.items()}
    if made_for and made_for != given:
        raise AgentError(
            f"The agent {caller.name!r} was trained on observations {made_for}, but this model gives {given}. "
            "Evaluate it on the model and the features that it was trained with."
        )
    gates = _gate_policy(caller.agent)
    macs = getattr(caller.agent, "macs", None) if gates is None else gates.macs
    notes: tuple[str, ...] = ()
    shown = shown_penalty(task.penalty if isinstance(task.penalty, tuple) else None, options.agent_penalty, penalty)
    masks: list[Tensor] = []
    logits: list[Tensor] = []
    for part in dataset.index_batches(batch_size):
        outcome, flops = _episode(caller, simulator, part, shown, count=macs is None)
        masks.append(outcome.mask.bool().cpu())
        logits.append(outcome.logits.float().cpu())
        if macs is None:
            macs = flops / 2 / len(part)  # torch counts a multiply-accumulate as two operations
            how = "were counted by torch in its predict"
            if macs == 0:
                how = "are unknown and count as 0; give it an attribute `macs`"
            notes = (f"The MACs that {caller.name!r} needs to decide {how}.",)
    return Decided(torch.cat(masks), torch.cat(logits), macs or 0.0, notes)


def _episode(
    caller: CheckedAgent, simulator: MaskSimulator, part: Tensor, agent_penalty: float | None, count: bool
) -> tuple[Outcome, int]:
    """Play an episode of each image; with ``count``, count the floating-point operations of all decisions."""
    observation = simulator.reset(part, penalty=agent_penalty)
    (bits,) = simulator.action_space.shape
    state: Any = None
    outcome: Outcome | None = None
    first, flops = True, 0
    while outcome is None:
        counter = FlopCounterMode(display=False)  # a new one for each decision: entering one again resets it
        with counter if count else contextlib.nullcontext():
            actions, state = caller(observation, state, first, bits)
        flops += counter.get_total_flops()
        result = simulator.step(actions)
        observation, outcome, first = result.observation, result.outcome, False
    return outcome, flops


def _task(caller: CheckedAgent, model: Bundle, layerwise: bool | None, options: PredictorOptions) -> Task:
    parts = _spaces(caller.agent)
    if layerwise is None:
        stated = yes_or_no(f"layerwise of the agent {caller.name!r}", getattr(caller.agent, "layerwise", False))
        layerwise = "gate" in parts if parts else stated
    return make_task(
        model=model,
        dataset=model.data["evaluated"],
        reward=lambda outcome: torch.zeros_like(outcome.kept),  # an evaluation needs no reward
        penalty=(float(parts["penalty"].low[0]), float(parts["penalty"].high[0])) if "penalty" in parts else None,
        observation="image" if "image" in parts else "features",
        layerwise=layerwise,
        device=model.masked.device,
        features=_features(caller.agent, model, layerwise, options),
    )


def _features(agent: Any, model: Bundle, layerwise: bool, options: PredictorOptions) -> MaskFeatures:
    for owner in (options, _gate_policy(agent), model.policy):
        features: MaskFeatures | None = getattr(owner, "features", None)
        if features is not None and features.config["layerwise"] == layerwise:
            return features
    masked, dataset, train = model.masked, model.data["evaluated"], options.train
    if train is None:
        train = other_split(dataset, "train", "options=PredictorOptions(train=...)")
    check_images(train, dataset.image_shape)
    train = dataclasses.replace(train, normalisation=dataset.normalisation)
    return MaskFeatures(masked, layerwise).to(masked.device).calibrate(masked, train)


def _gate_policy(agent: Any) -> Any:
    getter = getattr(getattr(agent, "policy", None), "gate_policy", None)
    return getter() if callable(getter) else None


def _spaces(agent: object) -> dict[str, Any]:
    """Return the parts of an agent's observation space; empty if it has none."""
    space = getattr(agent, "observation_space", None)
    if space is not None and not isinstance(space, spaces.Dict):
        raise AgentError(
            f"The agent {agent_name(agent)!r} has an observation_space that is a {type(space).__name__}; a "
            "gymnasium.spaces.Dict is needed, as env.observation_space, or none for the model's own features."
        )
    return {} if space is None else dict(space.spaces)


class AgentError(PruneGymError, ValueError):
    """An agent has no ``predict``, or its ``predict`` raised or returned something other than a batch of masks."""


def load_agent(path: str, trust_code: bool = False) -> Predictor:
    """Import an agent from an installed package or a file in the current folder, or load one of Stable-Baselines3.

    Args:
        path: A file of PPO or A2C that ends in ``.zip``, or ``"module:name"``: the name of an object with ``predict``,
            of a class of such objects (made without arguments), or of a function ``observation -> action``.
        trust_code: Load a ``.zip``. It is a pickle: whoever made it can run any code on your machine.

    Returns:
        An object with ``predict``.

    Raises:
        InvalidInputError: If the path has no colon, or does not exist, or is a ``.zip`` without ``trust_code``.
        AgentError: If the object is not an agent.
    """
    if path.endswith(".zip"):
        return load_sb3(Path(path), trust_code)
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise InvalidInputError(
            f"The agent {path!r} is not of the form 'module:name'. For example, 'mymodule:MyAgent' is the "
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
            what = f"The action of agent {self.name!r}"
            plain(what, actions)
            array = plain(what, np.asarray(actions.detach().cpu() if hasattr(actions, "detach") else actions))
            array = array.astype(np.float32)
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
