"""Whether a run is what its result says: agent, seed, lambda and reward; and whether it is a copy of another run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prunegym.agents.benchmark.records import Record
from prunegym.agents.benchmark.suite import Point
from prunegym.agents.benchmark.validation.reopening import task_recipe
from prunegym.agents.comparison.results import MODEL, slug
from prunegym.models.data.files.bounded_files import read_json
from prunegym.models.storage.run_folder import without_unused

CHECKPOINT = "checkpoint.safetensors"
"""In the folder of a training by a recipe: its end, with the state of its random numbers."""
WITHOUT_SEED = ("greedy-static", "taylor-static")
"""Trained baselines that give the same for all seeds."""


def run_of(record: Record) -> Mapping[str, Any]:
    """Return the content of the run's ``run.json``; empty if it cannot be read."""
    try:
        found = read_json(record.folder / "run.json", "record of a run")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {}


def contradictions(record: Record) -> list[str]:
    """Return what the cell of a result says that its configuration, its ``run.json`` or its folder does not.

    What these do not say, as in files of earlier versions, is not compared.
    """
    run = run_of(record)
    return [*_with_configuration(record), *_with_run(record, run), *_with_folder(record)]


def copies(records: Iterable[Record]) -> dict[Path, str]:
    """Return which runs have the agent of another seed, byte for byte, and why that cannot be, by folder.

    Only agents that learn with a seed count. Seeds give the same agent if there are no episodes or no gradient; then
    the random numbers in their checkpoints differ.
    """
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        if _learns_by_seed(record):
            groups.setdefault((record.where, record.agent, _digest(record.folder / MODEL)), []).append(record)
    found = {}
    for same in groups.values():
        for record in same:
            other = next((one for one in same if one.seed != record.seed and _same_end(one, record)), None)
            if other is not None:
                found[record.folder] = (
                    f"its {MODEL} is that of seed {other.seed} in {other.folder}, byte for byte, so one of the two is "
                    "a copy: remove it, or run that seed again"
                )
    return found


def _same_end(one: Record, other: Record) -> bool:
    """Return whether two trainings ended the same; one without a checkpoint says nothing else."""
    files = [record.folder / CHECKPOINT for record in (one, other)]
    return not all(file.is_file() for file in files) or _digest(files[0]) == _digest(files[1])


def _with_configuration(record: Record) -> Iterator[str]:
    cell, configuration = record.cell, record.configuration or {}
    for key, claimed in (("seed", record.seed), ("penalty", record.penalty)):
        if key in configuration and configuration[key] != claimed:
            yield f"{key} is {claimed}, and {configuration[key]} in its configuration"
    recipe = task_recipe(record)
    reward = None if recipe is None else recipe.as_dict()["env_kwargs"]
    if "reward" in configuration and _plain(configuration["reward"]) != _plain(reward):
        yield f"reward is {_plain(reward)}, and {_plain(configuration['reward'])} in its configuration"
    if "point" in cell:
        point = Point(cell.get("lambda"), cell.get("budget"))
        if cell["point"] != point.name:
            yield f"point is {cell['point']!r}, but its {point.name.replace('-', ' is ')}"
        if point.penalty not in (None, record.penalty):
            yield f"penalty is {record.penalty}, and {point.penalty} at its point"


def _plain(reward: Any) -> str:
    """Return a task's reward as text, without hashes of sources: a later version may have changed a comment."""
    return re.sub(r"#[0-9a-f]{8}", "", json.dumps(without_unused(reward), sort_keys=True))


def _with_run(record: Record, run: Mapping[str, Any]) -> Iterator[str]:
    settings = run.get("settings")
    settings = settings if isinstance(settings, Mapping) else {}
    for key, place in (("seed", run), ("seed", settings)):
        if place.get(key) not in (None, record.seed):
            yield f"seed is {record.seed}, and {place[key]} in its run.json"
            break
    entry, recipe = settings.get("entry"), settings.get("recipe")
    configured = (record.configuration or {}).get("entry")
    if isinstance(recipe, Mapping):
        entry = {"recipe": recipe}
    if isinstance(entry, str) and entry != record.agent:
        yield f"agent is {record.agent!r}, and {entry!r} in its run.json"
    if isinstance(entry, Mapping) and isinstance(configured, Mapping) and _plain(entry) != _plain(configured):
        yield "the settings of its agent are others than in its run.json"
    # A suite gives a recipe the agent's name. In a comparison, LABEL=RECIPE keeps the recipe's own.
    if isinstance(recipe, Mapping) and "task" in record.cell and recipe.get("name") not in (None, record.agent):
        yield f"agent is {record.agent!r}, and {recipe['name']!r} in its run.json"


def _with_folder(record: Record) -> Iterator[str]:
    names = [record.agent]
    recipe = ((record.configuration or {}).get("entry") or {}).get("recipe")
    if isinstance(recipe, Mapping) and "task" not in record.cell:
        names.append(str(recipe.get("name")))
    expected = [f"{slug(name)}-seed{record.seed}" for name in names]
    expected += [f"{name}-{slug(record.where.split)}" for name in expected]
    name = record.folder.absolute().name
    if name not in expected:
        usual = expected[len(names) - 1]
        yield f"its folder is called {name!r}, and that of {record.agent}, seed {record.seed}, is {usual!r}"


def _learns_by_seed(record: Record) -> bool:
    entry = (record.configuration or {}).get("entry")
    if not isinstance(entry, Mapping) or not (record.folder / MODEL).is_file():
        return False
    recipe, rival = entry.get("recipe"), entry.get("rival")
    if isinstance(recipe, Mapping):
        return recipe.get("n_episodes") != 0
    return "straight-through" in entry or (rival is not None and rival not in WITHOUT_SEED)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
