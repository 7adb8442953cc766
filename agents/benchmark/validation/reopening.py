"""Opening a result again: its model, its images and the agent that its run saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from prunegym.agents.benchmark.cells import open_reward
from prunegym.agents.benchmark.records import Record
from prunegym.agents.comparison.entries import file_of
from prunegym.agents.comparison.results import MASKS, MODEL, load_masks
from prunegym.agents.evaluation.masks import Agent
from prunegym.agents.evaluation.predictors import load_agent
from prunegym.agents.rl.recipe import Recipe, own_reward
from prunegym.errors import InvalidInputError, MissingDataError
from prunegym.models.catalog import open_split, open_trained, with_options
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.storage.model_file import Bundle

OPTIONS = (("image_size", "resize", "crop", "interpolation"), ("loss", "metric"), ("weights", "gates"))
"""Options of ``prunegym compare`` that a result keeps if they are given: of images, of what counts, of networks."""


def open_cell(record: Record, device: str = "cpu") -> Bundle:
    """Open the model of a result, and its images.

    Raises:
        InvalidInputError: If the result does not say which model, as that of ``compare`` with objects in Python.
        PruneGymError: If the model or its images are not there.
    """
    cell = record.cell
    if not isinstance(cell.get("model"), str):
        raise InvalidInputError(
            f"{record.file} does not say which model and data it was made with: it was made in Python, from objects. "
            "Only runs of prunegym benchmark and prunegym compare can be opened again."
        )
    where, transform, judged, network = (cell.get("dataset"), *(_given(cell, names) for names in OPTIONS))
    stored = open_trained(file_of(cell["model"], record.seed), where, **network, **transform)
    stored = with_options(stored, where, **judged, **transform)
    data = {
        "evaluated": open_split(stored.info, where, cell.get("split", "test"), cell.get("images")),
        "train": open_split(stored.info, where, "train", span=cell.get("train_images")),
    }
    stored.masked.to(device)
    return dataclasses.replace(stored, data=data, seed=record.seed, device=device)


def _given(cell: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    found = {name: cell[name] for name in names if cell.get(name) is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def saved_agent(record: Record, trust_code: bool = False) -> Agent:
    """Load the agent that a run saved: a dynamic CNN, fixed masks, or an object by its import path.

    Raises:
        MissingDataError: If there is none.
    """
    model, masks = record.folder / MODEL, record.folder / MASKS
    if model.exists():
        return DynamicCNN.load(model)
    if masks.exists():
        return load_masks(masks)
    if isinstance(record.cell.get("spec"), str):
        return load_agent(record.cell["spec"], trust_code)
    raise MissingDataError(f"{record.folder} has neither {MODEL} nor {MASKS}, so its agent cannot be evaluated again.")


def task_recipe(record: Record) -> Recipe | None:
    """Return a recipe with the task's own reward; None if it has none."""
    reward = open_reward(record.cell.get("reward"))
    if reward is None:
        return None
    kwargs = {"reward": reward, "accuracy": record.cell.get("accuracy"), "penalty": record.cell.get("lambda")}
    return Recipe(name="task", env_kwargs={key: value for key, value in kwargs.items() if value is not None})


def task_reward(record: Record, model: Bundle, masks: Tensor, logits: Tensor) -> float | None:
    """Return the mean of the task's own reward under masks (images, mask_size); None if it has none."""
    recipe = task_recipe(record)
    measure = None if recipe is None else own_reward(recipe, model.masked, model.data["evaluated"])
    return None if measure is None else measure(masks, logits, record.penalty)
