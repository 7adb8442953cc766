"""What can stand in a comparison: recipes, agents, baselines and rivals."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunegym.agents.baselines.cheap import BASELINES, make_baseline
from prunegym.agents.baselines.literature import best_of_k, decore, gates_by_gradient
from prunegym.agents.baselines.static_masks import greedy_static, learned_static, pruned_and_tuned, taylor_static
from prunegym.agents.comparison.results import fingerprint, slug
from prunegym.agents.evaluation.masks import Agent
from prunegym.agents.evaluation.user_agents import agent_name, as_predictor, load_agent
from prunegym.agents.rl.offsets import gates_at_best_offset, gates_at_mac_share
from prunegym.agents.rl.recipe import Recipe
from prunegym.agents.rl.recipe_files import as_recipe
from prunegym.agents.rl.trainer import train_agent
from prunegym.errors import InvalidInputError
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.storage.model_file import Bundle
from prunegym.validation import choice


@dataclasses.dataclass(frozen=True)
class Terms:
    """What an entry of a comparison may spend, and where it is made.

    Attributes:
        share: Total MAC share of the reference, which baselines get to spend; 1 for the reference itself.
        epochs: Passes over the training images that the reference took, at least 5, which learned baselines take too.
        penalty: lambda of the figure ``reward``.
        root: Folder of the comparison.
    """

    share: float
    epochs: float
    penalty: float
    root: Path

    def folder(self, name: str, seed: int) -> Path:
        """Return the folder of an entry's training run with a seed."""
        return self.root / "runs" / f"{slug(name)}-seed{seed}"


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A row of a comparison.

    Attributes:
        name: As in the table.
        make: Makes or trains the agent.
        key: What makes it, as JSON, by which a stored result is known again; None: results are never reused.
        seeded: Whether another seed gives another agent.
        at_share: Whether it is made for the reference's MAC share.
        as_long: Whether it is trained for as many images as the reference.
        passes: From the number of training images to how often its training looks at each.
        run_name: Name under which its training runs are kept, of a recipe.
        seed_key: In place of ``key`` where each seed is another file.
    """

    name: str
    make: Callable[[Bundle, Terms], Agent]
    key: dict[str, Any] | None
    seeded: bool = False
    at_share: bool = False
    as_long: bool = False
    passes: Callable[[int], float] = lambda _images: 0.0
    run_name: str | None = None
    seed_key: Callable[[int], dict[str, Any]] | None = None


def recipe_entry(recipe: Recipe | str | Path) -> Entry:
    """Train by a recipe, once for each seed; an interrupted training goes on."""
    settings = as_recipe(recipe)

    def make(model: Bundle, terms: Terms) -> DynamicCNN:
        folder = terms.folder(settings.name, model.seed)
        return train_agent(
            copy.deepcopy(model.masked), model.info, model.data["train"], model.data["validation"], settings, folder,
            policy=model.policy, seed=model.seed, resume=(folder / "run.json").exists(), device=model.device,
        )  # fmt: skip

    return Entry(
        settings.name, make, {"recipe": settings.as_dict()}, seeded=True, passes=settings.passes,
        run_name=settings.name,
    )  # fmt: skip


def start_entry(recipe: Entry | None = None, shift: str | None = None) -> Entry:
    """Evaluate the gates from which reinforcement learning started.

    Args:
        recipe: An entry of :func:`recipe_entry` that stands earlier in the comparison; None: the gates that came with
            the model, from which every recipe then starts.
        shift: None for the gates as they are; ``same-macs`` shifts their logits by one offset so that they spend as
            much as the reference; ``best-offset`` to the highest reward on the validation split.

    Raises:
        UnknownNameError: If there is no such shift.
        InvalidInputError: If the entry is none of a recipe.
    """
    if shift is not None:
        choice("shift of the start's logits", shift, SHIFTS)
    if recipe is not None and recipe.run_name is None:
        raise InvalidInputError(
            f"Entry {recipe.name!r} has no start: it is no recipe. Give one of recipe_entry, or None."
        )

    def make(model: Bundle, terms: Terms) -> DynamicCNN:
        start = _start_of(model, terms, recipe)
        if shift == "same-macs":
            return gates_at_mac_share(start, model.data["evaluated"], terms.share)
        return start if shift is None else _at_best_offset(start, model, terms)

    name = "start" if shift is None else f"start-{shift}"
    key = {"start": None if recipe is None else recipe.key, "shift": shift}
    return Entry(name, make, key, seeded=recipe is not None, at_share=shift == "same-macs")


def _at_best_offset(start: DynamicCNN, model: Bundle, terms: Terms) -> DynamicCNN:
    """Search once for all splits and seeds: it is a dozen passes over the validation images."""
    validation = model.data["validation"]
    inputs = "-".join(str(fingerprint(thing)) for thing in (start.policy, start.masked, validation))
    path = terms.root / "runs" / f"best-offset-{inputs}-{terms.penalty}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        gates_at_best_offset(start, validation, terms.penalty).save(path)
    return DynamicCNN.load(path, copy.deepcopy(model.masked.network), model.device)


def _start_of(model: Bundle, terms: Terms, recipe: Entry | None) -> DynamicCNN:
    if recipe is not None and recipe.run_name is not None:
        path = terms.folder(recipe.run_name, model.seed) / "start.safetensors"
        return DynamicCNN.load(path, copy.deepcopy(model.masked.network), model.device)
    if model.policy is None:
        raise InvalidInputError(
            "The model has no gates, so there is no start to evaluate: give the start.safetensors of a run of "
            "`prunegym train`, or a model of `prunegym prepare`, as --model."
        )
    return DynamicCNN(model.masked, model.policy, model.info)


def agent_entry(agent: Any, name: str | None = None) -> Entry:
    """Evaluate an agent as it is: a dynamic CNN, a Stable-Baselines3 model, an object or function with ``predict``."""
    mark = fingerprint(agent)
    key = None if mark is None else {"agent": mark}
    if mark is None:
        agent = as_predictor(agent, name)
    return Entry(name or agent_name(agent), lambda _model, _terms: agent, key)


def files_entry(path: str) -> Entry:
    """Evaluate for each seed another model file: ``{seed}`` in the path stands for the seed."""

    @functools.cache
    def load(seed: int) -> DynamicCNN:
        return DynamicCNN.load(file_of(path, seed))

    return Entry(
        Path(path).stem, lambda model, _terms: load(model.seed), None, seeded=True,
        seed_key=lambda seed: {"agent": fingerprint(load(seed))},
    )  # fmt: skip


def file_of(path: str, seed: int) -> str:
    """Return the path of a seed's file."""
    return path.replace(SEED_MARK, str(seed))


def baseline_entry(name: str) -> Entry:
    """Make a baseline of :data:`BASELINES` at the reference's MAC share."""
    choice("baseline", name, BASELINES)
    return Entry(
        name, lambda model, terms: make_baseline(name, model, terms.share), {"baseline": name},
        seeded=name == "random", at_share=True,
    )  # fmt: skip


def rival_entry(name: str, epochs: float | None = None) -> Entry:
    """Make a rival at the reference's MAC share.

    Args:
        name: ``greedy-static``, ``taylor-static``, ``learned-static`` (frozen track); ``tuned-taylor``,
            ``tuned-learned`` (prepared track: the model of the comparison must then be the original network);
            ``decore``, ``gates``, ``sparse-gates`` (other learners, the CNN frozen); ``best-of-16`` (an oracle).
        epochs: Passes over the training images, of those that train; by default as many as the reference took.
    """
    choice("rival", name, RIVALS)
    trained = name not in ("greedy-static", "taylor-static", "best-of-16")
    key = {"rival": name, "epochs": epochs if trained else None}

    def make(model: Bundle, terms: Terms) -> Agent:
        return RIVALS[name](model, terms, terms.epochs if epochs is None else epochs)

    return Entry(
        name, make, key, seeded=name not in ("greedy-static", "taylor-static"), at_share=True,
        as_long=trained and epochs is None,
    )  # fmt: skip


def _tuned(learned: bool) -> Callable[[Bundle, Terms, float], Agent]:
    def make(model: Bundle, terms: Terms, epochs: float) -> DynamicCNN:
        return pruned_and_tuned(
            model.masked, model.info, model.data["train"], terms.share, epochs, learned=learned, seed=model.seed
        )

    return make


def _gates(sparse: bool) -> Callable[[Bundle, Terms, float], Agent]:
    def make(model: Bundle, terms: Terms, epochs: float) -> DynamicCNN:
        return gates_by_gradient(
            model.masked, model.info, model.data["train"], terms.share, epochs, sparse=sparse, seed=model.seed
        )

    return make


RIVALS: dict[str, Callable[[Bundle, Terms, float], Agent]] = {
    "greedy-static": lambda model, terms, _epochs: greedy_static(model.masked, model.data["train"], terms.share),
    "taylor-static": lambda model, terms, _epochs: taylor_static(model.masked, model.data["train"], terms.share),
    "learned-static": lambda model, terms, epochs: learned_static(
        model.masked, model.data["train"], terms.share, epochs=epochs, seed=model.seed
    ),
    "decore": lambda model, terms, epochs: decore(
        model.masked, model.data["train"], terms.share, epochs=epochs, seed=model.seed
    ),
    "gates": _gates(sparse=False),
    "sparse-gates": _gates(sparse=True),
    "best-of-16": lambda model, terms, _epochs: best_of_k(
        model.masked, model.policy, model.data["evaluated"], terms.share, seed=model.seed, penalty=terms.penalty
    ),
    "tuned-taylor": _tuned(learned=False),
    "tuned-learned": _tuned(learned=True),
}
"""Rivals by name, each from the model, the terms and a number of epochs."""
SEED_MARK = "{seed}"
SHIFTS = ("same-macs", "best-offset")
STARTS = {"start": None, **{f"start-{shift}": shift for shift in SHIFTS}}
"""Names of :func:`start_entry`'s entries, with the shift of each."""


def as_entry(thing: Any) -> Entry:
    """Return an entry for whatever names or is one.

    Args:
        thing: An entry; a baseline's or rival's name; ``start``, ``start-same-macs`` or ``start-best-offset``;
            ``"module:name"`` of an agent; a model file, or with ``{seed}`` in its path one a seed; a recipe, its name
            or its file; ``"label=..."`` with any of these names, for another name in the table; else an agent.

    Example:
        >>> as_entry("no gates=keep-all").name
        'no gates'
    """
    if isinstance(thing, Entry):
        return thing
    if isinstance(thing, Recipe):
        return recipe_entry(thing)
    if not isinstance(thing, str | Path):
        return agent_entry(thing)
    label, text = split_label(str(thing))
    if label is not None:
        return dataclasses.replace(as_entry(text), name=label)
    if text in BASELINES:
        return baseline_entry(text)
    if text in RIVALS:
        return rival_entry(text)
    if text in STARTS:
        return start_entry(shift=STARTS[text])
    if text.endswith(".safetensors"):
        return files_entry(text) if SEED_MARK in text else agent_entry(DynamicCNN.load(text), Path(text).stem)
    return agent_entry(load_agent(text), text) if ":" in text else recipe_entry(thing)


def split_label(text: str) -> tuple[str | None, str]:
    """Return the label of ``label=thing``, None without one, and the thing."""
    label, found, thing = text.partition("=")
    return (label.strip(), thing.strip()) if found else (None, text)
