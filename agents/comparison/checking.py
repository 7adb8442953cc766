"""Checks before the first agent of a comparison trains: of models with their data, agents and rewards."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from prunegym.agents.evaluation.evaluator import evaluate
from prunegym.agents.evaluation.masks import Agent, decide_fixed, is_masks
from prunegym.agents.evaluation.predictors import PredictorOptions
from prunegym.agents.rl.recipe import Recipe, own_reward
from prunegym.errors import InvalidInputError
from prunegym.models.catalog import Model, resolve_model
from prunegym.models.checks import check_dense, check_masked
from prunegym.models.data.dataset import Dataset
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.storage.model_file import Bundle
from prunegym.models.training.cnn_training import answered


def check_fits(agent: Agent, model: Bundle) -> None:
    """Check that an agent fits the model and the images; your own decides for a few of them."""
    if isinstance(agent, DynamicCNN):
        check_masked(agent.masked, agent.info.adapt(model.data["evaluated"]))
    elif is_masks(agent):
        decide_fixed(agent, model.masked, model.data["evaluated"])  # type: ignore[arg-type]
    else:
        try:
            trial = copy.deepcopy(agent)  # an agent may draw random numbers
        except Exception:  # it may hold what cannot be copied
            trial = agent
        options = PredictorOptions(train=model.data["train"])
        evaluate(trial, model, model.data["evaluated"].sample(4), device=model.device, options=options)


def check_reward(recipe: Recipe, model: Bundle, penalty: float) -> None:
    """Measure a task's own reward on a few images."""
    for part in ("validation", "evaluated"):
        few = model.data[part].sample(4)
        measure = own_reward(recipe, model.masked, few)
        if measure is not None:
            images = few.batch(torch.arange(len(few)), device=model.masked.device)
            with torch.inference_mode():
                measure(torch.ones(len(few), model.masked.mask_size, dtype=torch.bool), model.masked(images), penalty)


def checked_models(
    model: Model | Mapping[int, Model],
    seeds: Sequence[int],
    data: Mapping[str, Dataset],
    dense: nn.Module | None,
    device: str,
) -> dict[int, Bundle]:
    """Return the model of each seed on the device, with images of its size and type."""

    def ready(given: Model) -> Bundle:
        one = resolve_model(given, lambda _info: data)
        one.masked.to(device)
        if one.policy is not None:
            one.policy.to(device)
        for part in one.data.values():
            check_masked(one.masked, part)
        if dense is not None:
            check_dense(dense, one.masked, one.data["evaluated"])
        judge = one.masked if dense is None else dense
        parts = {name: answered(part, judge) for name, part in one.data.items()}
        return dataclasses.replace(one, data=parts, device=device)

    if not isinstance(model, Mapping):
        return dict.fromkeys(seeds, ready(model))
    missing = [seed for seed in seeds if seed not in model]
    if missing:
        raise InvalidInputError(
            f"There is no model for seed {', '.join(map(str, missing))}, only for {', '.join(map(str, model))}. "
            "Give one for each seed, or one model for all."
        )
    return {seed: ready(model[seed]) for seed in seeds}
