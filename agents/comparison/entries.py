"""Entries of a comparison: recipes, the gates they start from, agents and baselines."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunegym.agents.baselines import static_masks as static
from prunegym.agents.baselines.literature import best_of_k, decore, gates_by_gradient
from prunegym.agents.comparison.checking import check_fits
from prunegym.agents.comparison.results import fingerprint
from prunegym.agents.evaluation.masks import Agent, Masks
from prunegym.agents.evaluation.predictors import agent_name, as_predictor, load_agent
from prunegym.agents.rl.lagrangian import gates_at_best_offset, gates_at_mac_share
from prunegym.agents.rl.recipe import Recipe, own_reward
from prunegym.agents.rl.recipe_files import as_recipe
from prunegym.agents.rl.trainer import train_agent, try_recipe
from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import Dataset
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.storage.model_file import Bundle
from prunegym.models.training.cnn_training import StageReport
from prunegym.validation import choice


@dataclasses.dataclass(frozen=True)
class Terms:
    """The budget of an entry, and the folder of the comparison.

    Attributes:
        share: Total MAC share of the reference, which is the budget of baselines; 1 for the reference itself.
        epochs: Passes over the training images of the reference, at least 5. Trained baselines get as many.
        penalty: lambda in the figure ``reward``.
        folder: Folder of the cell.
        progress: Whether trainings show a progress bar.
        reward: A recipe whose reward is the task's own; None if the figure ``reward`` is.
        report: Called with the stages of a training and their figures.
        shared: Folder of trainings that several tasks can use; None if there is only one.
    """

    share: float
    epochs: float
    penalty: float
    folder: Path
    progress: bool = True
    reward: Recipe | None = None
    report: StageReport | None = None
    shared: Path | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A row of a comparison.

    Attributes:
        name: Name in the table.
        make: Makes or trains the agent.
        key: Its settings as JSON. A stored result is reused if it has the same key; None never reuses one.
        seeded: Whether the agent depends on the seed.
        at_share: Whether it gets the reference's MAC share as its budget.
        as_long: Whether it is trained for as many images as the reference.
        passes: Returns how often its training uses each image, given the number of training images.
        run_name: Name of the folders of its training runs, for a recipe.
        seed_key: Replaces ``key`` if each seed has its own file.
        check: Raises an error if the agent cannot be made or evaluated on a model and its data. It is called for all
            entries before the first one is trained.
        spec: The text that names the entry, such as ``module:name``, for a result that is evaluated again.
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
    check: Callable[[Bundle], object] = lambda _model: None
    spec: str | None = None


def recipe_entry(recipe: Recipe | str | Path) -> Entry:
    """Train by a recipe, once for each seed. Interrupted training resumes."""
    settings = as_recipe(recipe)

    def make(model: Bundle, terms: Terms) -> DynamicCNN:
        folder = terms.folder
        return train_agent(
            copy.deepcopy(model.masked), model.info, model.data["train"], model.data["validation"], settings, folder,
            policy=model.policy, seed=model.seed, resume=(folder / "run.json").exists(), device=model.device,
            progress=terms.progress, report=terms.report,
        )  # fmt: skip

    def check(model: Bundle) -> None:
        try_recipe(settings, model.masked, model.data["train"], model.data["validation"], model.policy)

    return Entry(
        settings.name, make, {"recipe": settings.as_dict()}, seeded=True, passes=settings.passes,
        run_name=settings.name, check=check,
    )  # fmt: skip


def start_entry(shift: str | None = None) -> Entry:
    """Evaluate the gates of the model, which every recipe starts from.

    Args:
        shift: ``same-macs`` adds one offset to all logits so that the gates get the reference's MAC share;
            ``best-offset`` uses the offset with the highest reward on the validation split, the task's own if it has
            one; None changes nothing.

    Raises:
        UnknownNameError: If there is no such shift.
    """
    if shift is not None:
        choice("shift of the start's logits", shift, SHIFTS)

    def make(model: Bundle, terms: Terms) -> DynamicCNN:
        start = _own_gates(model)
        if shift == "same-macs":
            return gates_at_mac_share(start, model.data["evaluated"], terms.share)
        if shift is None:
            return start
        validation = model.data["validation"]
        measure = None if terms.reward is None else own_reward(terms.reward, model.masked, validation)
        return gates_at_best_offset(start, validation, terms.penalty, measure=measure)

    name = "start" if shift is None else f"start-{shift}"
    # Do not change the word "start" in the key: stored results are found by it.
    return Entry(name, make, {"start": None, "shift": shift}, at_share=shift == "same-macs", check=_own_gates)


def _own_gates(model: Bundle) -> DynamicCNN:
    if model.policy is None:
        raise InvalidInputError(
            "The model has no gates, so `start` has nothing to evaluate. Give --model a file that has gates: "
            "prepared.safetensors of `prunegym prepare`, or start.safetensors of `prunegym train`."
        )
    return DynamicCNN(model.masked, model.policy, model.info)


def agent_entry(agent: Any, name: str | None = None) -> Entry:
    """Evaluate a finished agent: a dynamic CNN, masks, a Stable-Baselines3 model, or your own object or function."""
    mark = fingerprint(agent)
    key = None if mark is None else {"agent": mark}
    if mark is None:
        agent = as_predictor(agent, name)
    return Entry(
        name or agent_name(agent), lambda _model, _terms: agent, key, check=lambda model: check_fits(agent, model)
    )


def files_entry(path: str) -> Entry:
    """Evaluate one model file for each seed: ``{seed}`` in the path is replaced by the seed."""

    @functools.cache
    def load(seed: int) -> DynamicCNN:
        return DynamicCNN.load(file_of(path, seed))

    return Entry(
        Path(path).stem, lambda model, _terms: load(model.seed), None, seeded=True,
        seed_key=lambda seed: {"agent": fingerprint(load(seed))},
        check=lambda model: check_fits(load(model.seed), model),
    )  # fmt: skip


def file_of(path: str, seed: int) -> str:
    """Return the path of the file for a seed."""
    return path.replace(SEED_MARK, str(seed))


def baseline_entry(name: str) -> Entry:
    """Make a baseline of :data:`BASELINES` at the reference's MAC share."""
    choice("baseline", name, static.BASELINES)
    return Entry(
        name, lambda model, terms: static.make_baseline(name, model, terms.share), {"baseline": name},
        seeded=name == "random", at_share=True,
    )  # fmt: skip


def trained_baseline_entry(name: str, epochs: float | None = None) -> Entry:
    """Train or search a baseline of :data:`TRAINED_BASELINES` at the reference's MAC share.

    Args:
        name: Static baselines for a frozen CNN are ``greedy-static``, ``taylor-static`` and ``learned-static``. Those
            for a prepared CNN are ``tuned-taylor`` and ``tuned-learned``; the model of the comparison must then be the
            original network. ``decore``, ``gates`` and ``sparse-gates`` are published methods on the frozen CNN, and
            ``best-of-16`` is an oracle.
        epochs: Passes over the training images, for baselines that train; by default as many as the reference.
    """
    choice("baseline", name, TRAINED_BASELINES)
    trained = name not in ("greedy-static", "taylor-static", "best-of-16")
    # Do not change the word in the key: stored results are found by it.
    key = {"rival": name, "epochs": epochs if trained else None}

    def make(model: Bundle, terms: Terms) -> Agent:
        return TRAINED_BASELINES[name](model, terms, terms.epochs if epochs is None else epochs)

    return Entry(
        name, make, key, seeded=name not in ("greedy-static", "taylor-static"), at_share=True,
        as_long=trained and epochs is None,
    )  # fmt: skip


def _searched(search: Callable[[MaskedCNN, Dataset, float], Masks]) -> Callable[[Bundle, Terms, float], Agent]:
    """Return a baseline whose mask is searched without training; its constants, if the model has some, are trained."""

    def make(model: Bundle, terms: Terms, epochs: float) -> Agent:
        masked, train = model.masked, model.data["train"]
        found = search(static.without_constants(masked), train, terms.share)
        return static.with_constants(found, masked, model.info, train, epochs=epochs, seed=model.seed)

    return make


def _described(make: Callable[..., Agent], **options: bool) -> Callable[[Bundle, Terms, float], Agent]:
    """Return a baseline that makes a dynamic CNN, and therefore needs the CNN's description."""
    return lambda model, terms, epochs: make(
        model.masked, model.info, model.data["train"], terms.share, epochs, seed=model.seed, **options
    )


TRAINED_BASELINES: dict[str, Callable[[Bundle, Terms, float], Agent]] = {
    "greedy-static": _searched(static.greedy_static),
    "taylor-static": _searched(static.taylor_static),
    "learned-static": lambda model, terms, epochs: static.learned_static(
        model.masked, model.info, model.data["train"], terms.share, epochs=epochs, seed=model.seed
    ),
    "decore": lambda model, terms, epochs: decore(
        model.masked, model.data["train"], terms.share, epochs=epochs, seed=model.seed
    ),
    "gates": _described(gates_by_gradient, sparse=False),
    "sparse-gates": _described(gates_by_gradient, sparse=True),
    "best-of-16": lambda model, terms, _epochs: best_of_k(
        model.masked, model.policy, model.data["evaluated"], terms.share, seed=model.seed, penalty=terms.penalty
    ),
    "tuned-taylor": _described(static.pruned_and_tuned, learned=False),
    "tuned-learned": _described(static.pruned_and_tuned, learned=True),
}
"""Baselines that train, search or draw masks, by name. Each takes the model, the terms and a number of epochs."""
SEED_MARK = "{seed}"
SHIFTS = ("same-macs", "best-offset")
STARTS = {"start": None, **{f"start-{shift}": shift for shift in SHIFTS}}
"""The names of entries of :func:`start_entry`, with the shift of each."""


def as_entry(thing: Any, trust_code: bool = False) -> Entry:
    """Return an entry for a name, a file or an object.

    Args:
        thing: An entry, a recipe or an agent; or a string. The string is the name of a baseline, ``start``,
            ``start-same-macs``, ``start-best-offset``, ``"module:name"`` of an agent, a model file (``{seed}`` in its
            path is replaced by each seed), or the name or file of a recipe. ``"label=..."`` before any of these
            changes its name in the table.
        trust_code: Also load agents of Stable-Baselines3, ``.zip``; see :func:`load_agent`.

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
        return dataclasses.replace(as_entry(text, trust_code), name=label)
    if text in static.BASELINES:
        return baseline_entry(text)
    if text in TRAINED_BASELINES:
        return trained_baseline_entry(text)
    if text in STARTS:
        return start_entry(shift=STARTS[text])
    if text.endswith(".safetensors"):
        return files_entry(text) if SEED_MARK in text else agent_entry(DynamicCNN.load(text), Path(text).stem)
    if ":" in text or text.endswith(".zip"):
        return dataclasses.replace(agent_entry(load_agent(text, trust_code), text), spec=text)
    return recipe_entry(thing)


def is_recipe(text: str) -> bool:
    """Return whether a string without a label names a recipe, and nothing else that :func:`as_entry` takes."""
    named = {*static.BASELINES, *TRAINED_BASELINES, *STARTS}
    return ":" not in text and text not in named and not text.endswith((".safetensors", ".zip"))


def split_label(text: str) -> tuple[str | None, str]:
    """Return the label of ``label=thing``, or None without one, and the thing."""
    label, found, thing = text.partition("=")
    if found and not (label.strip() and thing.strip()):
        raise InvalidInputError(f"The entry {text!r} has no name or nothing after it. Give LABEL=ENTRY, or ENTRY.")
    return (label.strip(), thing.strip()) if found else (None, text)
