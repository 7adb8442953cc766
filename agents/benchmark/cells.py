"""Cells of a suite: what is opened for them, and running one of them."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prunegym.agents.benchmark.inputs import moved, tables
from prunegym.agents.benchmark.suite import Point, Suite, SuiteTask, make_suite
from prunegym.agents.comparison.contest import Contest
from prunegym.agents.comparison.entries import SEED_MARK, Entry, as_entry, file_of, is_recipe, recipe_entry, split_label
from prunegym.agents.comparison.results import Result, slug
from prunegym.agents.comparison.straight_through import straight_through_entry
from prunegym.agents.rl.recipe import Recipe
from prunegym.agents.rl.recipe_files import adjusted_recipe, read_recipe
from prunegym.errors import InvalidInputError
from prunegym.models.catalog import open_split, open_trained
from prunegym.models.data.dataset import Dataset
from prunegym.models.storage.model_file import Bundle, read_model
from prunegym.models.training.cnn_training import StageReport
from prunegym.settings import Change
from prunegym.user_code import import_object
from prunegym.validation import choice, instance

AGENT_KEYS = ("agent", "name", "set", "targets", "epochs")
STRAIGHT_THROUGH = "straight-through"


class Cell(NamedTuple):
    """An agent with a seed, on a task at a point."""

    task: str
    point: Point
    agent: str
    seed: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.task}, {self.point.name}: {self.agent}, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where and how the cells of a suite run.

    Attributes:
        root: Folder of the benchmark.
        device: Torch device.
        trust_code: Also load agents of Stable-Baselines3, ``.zip``.
        files: Pairs of a path in the suite and where that file is on this machine, if elsewhere.
    """

    root: Path
    device: str = "cpu"
    trust_code: bool = False
    files: tuple[tuple[str, str], ...] = ()

    def of(self, path: str) -> str:
        """Return the path on this machine of a file that the suite names."""
        return dict(self.files).get(path, path)

    def moved(self, value: Any) -> Any:
        """Return a value with the paths on this machine, shown as in the suite; see :func:`inputs.moved`."""
        return moved(value, dict(self.files)) if self.files else value


def contest_of(suite: Suite, name: str, point: Point, place: Place) -> Contest:
    """Open a task at a point: its model, its images and its agents.

    Raises:
        PruneGymError: If a part cannot be opened, or parts do not fit; see :meth:`Contest.of`.
    """
    task = suite.tasks[name]
    models, parts = _opened(json.dumps(vars(task)), suite.seeds, place)
    reward = open_reward(task.reward, place)
    shown = {"reward": reward, "accuracy": task.accuracy, "penalty": point.penalty}
    own = {key: value for key, value in shown.items() if value is not None}
    described = {
        key: getattr(task, key)
        for key in ("model", "dataset", "split", "images", "train_images", "dense", "reward", "accuracy")
    }
    return Contest.of(
        [entry_of(agent, task, point, place) for agent in suite.agents_of(name)],
        models if SEED_MARK in task.model else models[suite.seeds[0]],
        parts["evaluated"],
        suite.seeds,
        train=parts["train"],
        validation=parts["validation"],
        reference=task.reference,
        share=point.budget,
        dense=None if task.dense is None else read_model(place.of(task.dense)).masked.network,
        device=place.device,
        root=place.root / slug(name) / point.name,
        penalty=task.penalty if point.penalty is None else point.penalty,
        reward=None if reward is None else Recipe(name="task", env_kwargs=own),
        described={"task": name, "point": point.name, "lambda": point.penalty, "budget": point.budget, **described},
        progress=False,
        shared=place.root / "shared",
    )


@functools.lru_cache(maxsize=1)  # all points of a task have the same
def _opened(settings: str, seeds: tuple[int, ...], place: Place) -> tuple[dict[int, Bundle], dict[str, Dataset]]:
    """Return the models by seed and the data sets of a task, given as JSON."""
    task = SuiteTask(**json.loads(settings))
    paths = {seed: place.of(file_of(task.model, seed)) for seed in seeds}
    where = None if task.dataset is None else place.of(task.dataset)
    bundles = {path: open_trained(path, where) for path in dict.fromkeys(paths.values())}
    info = next(iter(bundles.values())).info
    parts = {
        "evaluated": open_split(info, where, task.split, task.images),
        "train": open_split(info, where, "train", span=task.train_images),
        "validation": open_split(info, where, "validation"),
    }
    return {seed: bundles[path] for seed, path in paths.items()}, parts


def open_reward(reward: Any, place: Place | None = None) -> Any:
    """Return a task's reward: a name stays one, ``{module:Class: {argument: value}}`` becomes an object.

    Args:
        reward: As a suite has it.
        place: Where files in its arguments are, if elsewhere.

    Raises:
        InvalidInputError: If it has another form, or the class refuses its arguments.

    Example:
        >>> open_reward({"prunegym.envs.rewards.no_gradient:HardCap": {"cap": 0.15}})
        HardCap(cap=0.15)
    """
    if reward is None or isinstance(reward, str):
        return reward
    if isinstance(reward, Mapping) and len(reward) == 1:
        ((path, arguments),) = reward.items()
        if isinstance(path, str) and isinstance(arguments, Mapping):
            try:
                return import_object(path, "reward")(**(arguments if place is None else place.moved(arguments)))
            except TypeError as error:
                raise InvalidInputError(f"The reward {path!r} does not take {dict(arguments)}: {error}.") from error
    raise InvalidInputError(
        f"A reward is {reward!r}; a name, module:function or {{module:Class: {{argument: value}}}} is needed."
    )


def entry_of(agent: Any, task: SuiteTask, point: Point, place: Place) -> Entry:
    """Return the entry for an agent of a suite: recipes are changed to the task's environment, reward and point.

    Args:
        agent: As ``prunegym compare`` takes it, or a mapping with ``agent`` and any of ``name``, ``set`` (settings of a
            recipe by name, with dots), ``targets`` and ``epochs`` (MAC targets of ``straight-through``, and its
            passes over the training images for each).
        task: The task.
        point: The point.
        place: Where it runs.

    Raises:
        InvalidInputError: If the mapping has another form.
        PruneGymError: If the recipe, file or object cannot be read.
    """
    options = dict(agent) if isinstance(agent, Mapping) else {"agent": agent}
    for key in options:
        choice("setting of an agent:", key, AGENT_KEYS)
    if not isinstance(options.get("agent"), str):
        raise InvalidInputError(f"An agent is {agent!r}; a name, a file, or a mapping with agent: is needed.")
    label, thing = split_label(options["agent"])
    label = options.get("name", label)
    if label is not None and not isinstance(label, str):
        raise InvalidInputError(f"The name of an agent is {label!r}; text is needed. In YAML, put it in quotes.")
    given = instance("set of an agent", options.get("set") or {}, Mapping)
    settings = [(tuple(str(key).split(".")), value) for key, value in given.items()]
    if thing == STRAIGHT_THROUGH:
        targets = options.get("targets") or [0.5 if point.budget is None else point.budget]
        entry = straight_through_entry(targets, epochs=options.get("epochs"))
    elif is_recipe(thing):
        recipe = adjusted_recipe(
            place.of(thing), env=task.environment, reward=open_reward(task.reward, place), accuracy=task.accuracy,
            penalty=point.penalty, target_macs=point.budget, settings=_with_tables(settings, thing, given, place),
        )  # fmt: skip
        # Two entries with the same recipe and other settings train in separate folders.
        entry = recipe_entry(recipe if label is None else dataclasses.replace(recipe, name=label))
    else:
        entry = _agent_entry(thing, place)
    extra = {"set", "targets", "epochs"} - {STRAIGHT_THROUGH: {"targets", "epochs"}}.get(
        thing, {"set"} if is_recipe(thing) else set()
    )
    wrong = sorted(extra & set(options))
    if wrong:
        raise InvalidInputError(
            f"The agent {thing!r} has no {wrong[0]}:. set: is for recipes, targets: and epochs: for straight-through."
        )
    if entry.key is None and entry.seed_key is None:
        entry = dataclasses.replace(entry, key={"agent": thing})  # named by its path: a finished cell is not run again
    return entry if label is None else dataclasses.replace(entry, name=label)


def _agent_entry(thing: str, place: Place) -> Entry:
    """Return the entry of a baseline or an agent, with the name and the spec that it has where the suite is read."""
    if SEED_MARK not in thing or not thing.endswith(".safetensors"):
        entry = as_entry(place.of(thing), place.trust_code)
        return entry if entry.spec is None else dataclasses.replace(entry, name=thing, spec=thing)

    @functools.cache
    def own(seed: int) -> Entry:
        return as_entry(place.of(file_of(thing, seed)))

    return dataclasses.replace(
        as_entry(thing), make=lambda model, terms: own(model.seed).make(model, terms),
        seed_key=lambda seed: own(seed).key or {}, check=lambda model: own(model.seed).check(model),
    )  # fmt: skip


def _with_tables(settings: list[Change], recipe: str, given: Mapping[str, Any], place: Place) -> list[Change]:
    """Return changes of a recipe with the latency tables where they are: the recipe's own, and those of the changes."""
    if not place.files:
        return settings
    own = tables(read_recipe(place.of(recipe))[2])
    first, last = ([(key, place.moved(text)) for key, text in found] for found in (own, tables(given)))
    return [*first, *settings, *last]


def forget() -> None:
    """Forget what was opened: files may have changed since."""
    _opened.cache_clear()
    _contest.cache_clear()


@functools.lru_cache(maxsize=1)
def _contest(suite: str, name: str, task: str, point: Point, place: Place) -> Contest:
    return contest_of(make_suite(name, json.loads(suite)), task, point, place)


def run_cell(
    suite: Mapping[str, Any], name: str, cell: Cell, share: float, place: Place, report: StageReport | None = None
) -> Result:
    """Run a cell, or read its result if it is finished.

    Args:
        suite: :meth:`Suite.as_dict`.
        name: The suite's name.
        cell: The cell.
        share: The MAC share that baselines may spend, see :meth:`Contest.share_of`.
        place: Where it runs.
        report: Called with the stages of a training and their figures.
    """
    contest = _contest(json.dumps(suite), name, cell.task, cell.point, place)
    (entry,) = (entry for entry in contest.entries if entry.name == cell.agent)
    return contest.result(entry, cell.seed, share, report)


ERROR = "error.txt"
"""File of a failed cell: what it raised."""
