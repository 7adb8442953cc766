"""Agents with ``predict``, run over a split in the simulator of the environments."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from prunegym.agents.evaluation.masks import Decided, shown_penalty
from prunegym.agents.evaluation.user_agents import AgentError, CheckedAgent, as_predictor
from prunegym.envs.rewards.outcome import Outcome
from prunegym.envs.simulator import MaskSimulator
from prunegym.envs.task import Task, make_task
from prunegym.models.checks import check_images
from prunegym.models.data.dataset import Dataset
from prunegym.models.data.dataset_registry import other_split
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.storage.model_file import Bundle


@dataclasses.dataclass(frozen=True)
class PredictorOptions:
    """Settings for evaluating agents with ``predict``.

    Attributes:
        features: The features that the agent observes. By default those of its own gate policy, else the model's, else
            new ones calibrated on ``train``, as in the environments.
        train: Training images to calibrate features on. By default those of the data set with the same name.
        agent_penalty: The lambda that an agent observes if it was trained for a range of lambdas. By default that of
            the figure ``reward`` if it lies in the range, else the middle.
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
        layerwise: Whether the agent decides gate by gate; None asks the agent.
        batch_size: Images at a time.
        options: More settings.
        penalty: lambda of the figure ``reward``.

    Raises:
        AgentError: If the agent fails, returns wrong actions, or was made for other observations.
    """
    caller, dataset = CheckedAgent(as_predictor(agent)), model.data["evaluated"]
    task = _task(caller, model, layerwise, options)
    simulator = MaskSimulator(task, min(batch_size, len(dataset)), np.random.default_rng(0))
    made_for = {key: part.shape for key, part in _spaces(caller.agent).items()}
    given = {key: part.shape for key, part in simulator.observation_space.spaces.items()}
    if made_for and made_for != given:
        raise AgentError(
            f"The agent {caller.name!r} was made for observations {made_for}; with this model they are {given}. "
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
    return Decided(torch.cat(masks), torch.cat(logits), float(macs or 0.0), notes)


def _episode(
    caller: CheckedAgent, simulator: MaskSimulator, part: Tensor, agent_penalty: float | None, count: bool
) -> tuple[Outcome, int]:
    """Play an episode of each image, and with ``count`` count the floating-point operations of all decisions."""
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
        layerwise = "gate" in parts if parts else bool(getattr(caller.agent, "layerwise", False))
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
    return dict(getattr(getattr(agent, "observation_space", None), "spaces", {}))
