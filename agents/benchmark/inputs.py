"""Files that a suite names: which they are, and how they are named where they are in another place, as on a node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prunegym.agents.benchmark.suite import Suite
from prunegym.agents.comparison.entries import SEED_MARK, file_of, is_recipe, split_label
from prunegym.agents.rl.recipe_files import read_recipe

TABLE = "latency_table"
"""Setting of a recipe that names a file."""
Table = tuple[tuple[str, ...], str]
"""Where a recipe names a latency table, cut at the dots, and the table's file."""


class Moved(str):
    """The path of a file on this machine. It is shown as the suite names it.

    Results are found again by a description of the reward and the recipe, which must be the same on every machine.

    Example:
        >>> path = Moved("/tmp/node/table.json", "table.json")
        >>> path == "/tmp/node/table.json", [path], f"{path}"
        (True, ['table.json'], 'table.json')
    """

    named: str

    def __new__(cls, here: str, named: str) -> Moved:
        """Keep both."""
        made = super().__new__(cls, here)
        made.named = named
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]  # __new__ takes two
        """For copies."""
        return str(self), self.named

    def __repr__(self) -> str:
        """Return the suite's text."""
        return repr(self.named)

    def __format__(self, form: str) -> str:
        """Return the suite's text."""
        return format(self.named, form)


def moved(value: Any, files: Mapping[str, str]) -> Any:
    """Return a value with the paths on this machine, at any depth.

    Args:
        value: Text, or lists and mappings of it; anything else stays.
        files: Where files are, by their path in the suite.
    """
    if isinstance(value, str):
        return Moved(files[value], value) if value in files else value
    if isinstance(value, Mapping):
        return {key: moved(one, files) for key, one in value.items()}
    return type(value)(moved(one, files) for one in value) if isinstance(value, list | tuple) else value


def input_files(suite: Suite) -> set[str]:
    """Return the files on this machine that a suite names.

    These are models, original CNNs, data archives, agents and recipes, latency tables of recipes, and files in the
    arguments of rewards.
    """
    named: set[str] = set()
    for name, task in suite.tasks.items():
        named |= {text for text in (task.model, task.dense, task.dataset) if text is not None}
        if isinstance(task.reward, Mapping):
            named.update(_texts(list(task.reward.values())))
        for agent in suite.agents_of(name):
            own = agent if isinstance(agent, Mapping) else {"agent": agent}
            thing = split_label(str(own.get("agent")))[1]
            named.add(thing)
            if is_recipe(thing):
                named.update(text for _, text in (*tables(read_recipe(thing)[2]), *tables(own.get("set") or {})))
    each = {file_of(text, seed) for text in named for seed in (suite.seeds if SEED_MARK in text else (0,))}
    return {text for text in each if Path(text).is_file()}


def tables(settings: Mapping[str, Any], within: tuple[str, ...] = ()) -> Iterator[Table]:
    """Yield the latency tables in settings of a recipe."""
    for key, value in settings.items():
        path = (*within, *str(key).split("."))
        if isinstance(value, Mapping):
            yield from tables(value, path)
        elif path[-1] == TABLE and isinstance(value, str):
            yield path, value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(one)
