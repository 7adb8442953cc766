"""Agents with ``predict``, run over a split on the environments' own simulator."""

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
    """More on the evaluation of agents with ``predict``.

    Attributes:
        features: What the agent looks at; None: those of its own gate policy, else the model's, else fresh ones that
            are calibrated on ``train``, as environments do.
        train: Training images for that; None: those of the data set that goes by the name, which has to be the same.
        agent_penalty: lambda shown to an agent that was trained for a range of them; None: that of the figure
            ``reward`` if it lies within, else the middle. An agent that was trained for one lambda is not shown any.
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
        agent: Object with ``predict``, or function.
        model: The CNN; of its data the ``evaluated`` images.
        layerwise: Gate by gate; None: as the agent says.
        batch_size: Images at a time.
        options: See there.
        penalty: lambda of the figure ``reward``.

    Raises:
        AgentError: If the agent fails, gives wrong actions, or was made for other observations.
    """
    caller, dataset = CheckedAgent(as_predictor(agent)), model.data["evaluated"]
    task = _task(caller, model, layerwise, options)
    simulator = MaskSimulator(task, min(batch_size, len(dataset)), np.random.default_rng(0))
    _check_spaces(caller, simulator)
    macs, notes = _stated_macs(caller.agent)
    flops: list[int] | None = [] if macs is None else None
    shown = shown_penalty(task.penalty if isinstance(task.penalty, tuple) else None, options.agent_penalty, penalty)
    masks: list[Tensor] = []
    logits: list[Tensor] = []
    for part in dataset.index_batches(batch_size):
        outcome = _episode(caller, simulator, part, shown, None if masks else flops)
        masks.append(outcome.mask.bool().cpu())
        logits.append(outcome.logits.float().cpu())
    if flops is not None:
        macs, notes = _counted_macs(sum(flops), len(masks[0]), caller)
    return Decided(torch.cat(masks), torch.cat(logits), float(macs or 0.0), notes)


def _episode(
    caller: CheckedAgent,
    simulator: MaskSimulator,
    part: Tensor,
    agent_penalty: float | None,
    flops: list[int] | None,
) -> Outcome:
    """Play an episode of each image; append the floating-point operations of each decision to ``flops``."""
    observation = simulator.reset(part, penalty=agent_penalty)
    (bits,) = simulator.action_space.shape
    state: Any = None
    outcome: Outcome | None = None
    first = True
    while outcome is None:
        counter = FlopCounterMode(display=False)  # one a decision: entering it again starts at 0
        with contextlib.nullcontext() if flops is None else counter:
            actions, state = caller(observation, state, first, bits)
        if flops is not None:
            flops.append(counter.get_total_flops())
        result = simulator.step(actions)
        observation, outcome, first = result.observation, result.outcome, False
    return outcome


def _task(caller: CheckedAgent, model: Bundle, layerwise: bool | None, options: PredictorOptions) -> Task:
    parts = _spaces(caller.agent)
    keys = set(parts)
    if layerwise is None:
        layerwise = "gate" in keys if keys else bool(getattr(caller.agent, "layerwise", False))
    return make_task(
        model=model,
        dataset=model.data["evaluated"],
        reward=_nothing,
        penalty=(float(parts["penalty"].low[0]), float(parts["penalty"].high[0])) if "penalty" in keys else None,
        observation="image" if "image" in keys else "features",
        layerwise=layerwise,
        device=model.masked.device,
        features=_features(caller.agent, model, layerwise, options),
    )


def _nothing(outcome: Outcome) -> Tensor:
    """Return no reward, (batch,): an evaluation needs none."""
    return torch.zeros_like(outcome.kept)


def _features(agent: Any, model: Bundle, layerwise: bool, options: PredictorOptions) -> MaskFeatures:
    gates = _gate_policy(agent)
    known = [options.features, None if gates is None else gates.features]
    known.append(None if model.policy is None else model.policy.features)
    for features in known:
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
    """Return the parts of the observation space that an agent says it was made for; empty if it says nothing."""
    return dict(getattr(getattr(agent, "observation_space", None), "spaces", {}))


def _check_spaces(caller: CheckedAgent, simulator: MaskSimulator) -> None:
    made_for = {key: part.shape for key, part in _spaces(caller.agent).items()}
    given = {key: part.shape for key, part in simulator.observation_space.spaces.items()}
    if made_for and made_for != given:
        raise AgentError(
            f"The agent {caller.name!r} was made for observations {made_for}; with this model they are {given}. "
            "Evaluate it on the model that it was trained on, with the same features."
        )


def _stated_macs(agent: Any) -> tuple[float | None, tuple[str, ...]]:
    gates = _gate_policy(agent)
    macs = getattr(agent, "macs", None) if gates is None else gates.macs
    return (None, ()) if macs is None else (float(macs), ())


def _counted_macs(flops: int, batch: int, caller: CheckedAgent) -> tuple[float, tuple[str, ...]]:
    macs = flops / 2 / batch
    if macs == 0:
        return 0.0, (
            f"The MACs of {caller.name!r} deciding are not known and are taken as 0; give it an attribute `macs`.",
        )
    return macs, (f"The MACs of {caller.name!r} deciding are those that torch counted in its predict.",)
