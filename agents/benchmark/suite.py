"""Suites: tasks, agents, seeds and lambdas or budgets, from YAML or made in Python."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from prunegym.agents.comparison.results import slug
from prunegym.errors import InvalidInputError, MissingDataError, UnknownNameError
from prunegym.models.data.files.bounded_files import check_regular
from prunegym.settings import Loader, check_types, make_config, numbers
from prunegym.validation import choice, finite, instance, share, whole_number

FOLDER = Path(__file__).parents[1] / "suites"
MOST_CHARACTERS = 100_000
MOST_SEEDS, LAST_SEED, MOST_DIGITS = 10_000, 2**32 - 1, 12


class Point(NamedTuple):
    """Where the cells of a task are compared: at a lambda, at a MAC budget, or at what each recipe says itself."""

    penalty: float | None = None
    budget: float | None = None

    @property
    def name(self) -> str:
        """Name of the point's folder."""
        if self.penalty is not None:
            return f"lambda-{self.penalty:g}"
        return "default" if self.budget is None else f"budget-{self.budget:g}"


@dataclasses.dataclass(frozen=True)
class SuiteTask:
    """A model, a data set, an environment and a reward, at one or several lambdas or budgets."""

    model: str = "digits"
    """A shipped model or a model file; ``{seed}`` in its path takes one for each seed."""
    dataset: str | None = None
    """Name or path of the data set; by default the model's own."""
    split: str = "test"
    images: int | None = None
    """Evaluate on a random subset of this many images."""
    train_images: str | None = None
    """Train on this part of the training images, such as ``:40000``."""
    environment: str | None = None
    """Environment id, instead of the recipes' own."""
    reward: Any = None
    """A reward's name, ``module:function``, or {``module:Class``: {argument: value}}; by default each recipe's own."""
    accuracy: str | None = None
    """An accuracy term, instead of the recipes' own."""
    penalty: float = 0.5
    """lambda of the figure ``reward`` where neither ``penalties`` nor a recipe sets one."""
    penalties: Sequence[float] = ()
    """Train and evaluate at each of these lambdas."""
    budgets: Sequence[float] = ()
    """Train for each of these total MAC shares."""
    agents: Sequence[Any] = ()
    """Agents of this task, instead of the suite's."""
    reference: str | None = None
    """The agent that differences are counted from, and whose MACs baselines may spend; by default the first."""
    dense: str | None = None
    """File of the original CNN, if the model's CNN was trained further."""

    def __post_init__(self) -> None:
        """Check the types and the numbers."""
        check_types(self)
        finite("penalty of a task", self.penalty, 0)
        for one in self.penalties:
            finite("A lambda of a task", one, 0)
        for one in self.budgets:
            share("A budget of a task", one)
        names = [point.name for point in self.points]
        if len(set(names)) < len(names):
            raise InvalidInputError(f"A task has points {', '.join(names)}, one of them twice. Give each once.")
        if self.images is not None:
            whole_number("images of a task", self.images)

    @property
    def points(self) -> list[Point]:
        """The points at which agents are compared."""
        points = [*(Point(penalty=one) for one in self.penalties), *(Point(budget=one) for one in self.budgets)]
        return points or [Point()]


@dataclasses.dataclass(frozen=True)
class Suite:
    """A benchmark: each agent on each task, at each of its lambdas or budgets, with each seed.

    Example:
        >>> tasks = {"digits": SuiteTask(penalties=(0.2, 0.4))}
        >>> suite = Suite("mine", tasks, agents=["digits", "random"], seeds=(0, 1))
        >>> [point.name for point in suite.tasks["digits"].points], suite.agents_of("digits")
        (['lambda-0.2', 'lambda-0.4'], ['digits', 'random'])
    """

    name: str
    tasks: Mapping[str, SuiteTask]
    agents: Sequence[Any] = ()
    """Entries as ``prunegym compare`` takes them; or mappings with ``agent``, and ``name``, ``set`` or ``targets``."""
    seeds: Sequence[int] = (0, 1, 2)
    """Also ``"0:20"``, or a number of seeds, see :func:`read_seeds`; kept as a tuple."""

    def __post_init__(self) -> None:
        """Check that each task has agents, and that no two have the same folder."""
        object.__setattr__(self, "seeds", read_seeds(self.seeds))
        instance("tasks of a suite", self.tasks, Mapping, "Give SuiteTask objects by name.")
        for task in self.tasks.values():
            instance("A task of a suite", task, SuiteTask)
        _agent_list(self.name, self.agents)
        if not self.tasks:
            raise InvalidInputError(f"Suite {self.name!r} has no tasks. Give at least one, under tasks:.")
        try:
            json.dumps(self.as_dict())
        except TypeError as error:
            raise InvalidInputError(
                f"Suite {self.name!r} has a value that is not plain text or a number: {error}."
            ) from error
        folders = [slug(name) for name in self.tasks]
        twice = [name for name, folder in zip(self.tasks, folders, strict=True) if folders.count(folder) > 1]
        if twice:
            raise InvalidInputError(f"Tasks {', '.join(map(repr, twice))} would share a folder. Rename one of them.")
        for name in self.tasks:
            if not self.agents_of(name):
                raise InvalidInputError(f"Task {name!r} of suite {self.name!r} has no agents. Give some under agents:.")

    def agents_of(self, task: str) -> list[Any]:
        """Return the agents of a task."""
        return list(self.tasks[task].agents or self.agents)

    def as_dict(self) -> dict[str, Any]:
        """Return the suite as plain settings, which :func:`make_suite` reads."""
        return {
            "seeds": list(self.seeds),
            "agents": list(self.agents),
            "tasks": {
                name: {key: list(value) if isinstance(value, tuple) else value for key, value in vars(task).items()}
                for name, task in self.tasks.items()
            },
        }


def as_suite(suite: Suite | str | Path) -> Suite:
    """Return a suite, or read it.

    Args:
        suite: A suite, the name of one that comes with PruneGym (``digits``), or a YAML file.

    Raises:
        UnknownNameError: If there is no such suite, or it has an unknown setting.
        MissingDataError: If there is no such file.
        InvalidInputError: If the file is no YAML of the right form, or a value is wrong.
    """
    if isinstance(suite, Suite):
        return suite
    path = Path(suite)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{suite}.yaml"
        if not path.exists():
            raise UnknownNameError("suite", str(suite), sorted(file.stem for file in FOLDER.glob("*.yaml")))
    if not path.exists():
        raise MissingDataError(f"There is no suite {path}. Check the path.")
    try:
        text = check_regular(path, "suite").read_text(encoding="utf-8")
        if len(text) > MOST_CHARACTERS:
            raise InvalidInputError(f"{path} has more than {MOST_CHARACTERS:,} characters, too many for a suite.")
        content = yaml.load(text, Loader)  # noqa: S506  (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise InvalidInputError(f"{path} must have tasks:, agents: and seeds: at its top.")
    return make_suite(path.stem, content)


def make_suite(name: str, settings: Mapping[str, Any]) -> Suite:
    """Make a suite from its settings, as a file has them; see :func:`as_suite` for the errors."""
    for key in settings:
        choice(f"setting of suite {name!r}:", key, ("seeds", "agents", "tasks"))
    tasks = settings.get("tasks")
    if not isinstance(tasks, Mapping) or not all(isinstance(one, Mapping | None) for one in tasks.values()):
        raise InvalidInputError(f"Suite {name!r}: tasks is {tasks!r}; tasks by name, with their settings, are needed.")
    made = {
        str(task): make_config(SuiteTask, _with_numbers(own or {}, TASK_TEXTS), f"Suite {name!r}: {task}.")
        for task, own in tasks.items()
    }
    agents = _agent_list(name, settings.get("agents") or [])
    return Suite(name, made, _with_numbers(agents), read_seeds(settings.get("seeds", (0, 1, 2))))


AGENT_TEXTS = ("agent", "name")
TASK_TEXTS = ("model", "dataset", "split", "train_images", "environment", "accuracy", "reference", "dense")
"""Settings of agents and of tasks that are text: ``name: "16"`` stays text."""


def _with_numbers(given: Any, texts: Collection[str] = AGENT_TEXTS) -> Any:
    """Return a task, an agent or a list of agents. Texts such as 3e-1 become numbers, but names stay texts."""
    if isinstance(given, Mapping):
        agents = "agents" if texts is TASK_TEXTS else None
        return {
            key: one if key in texts else _with_numbers(one) if key == agents else numbers(one)
            for key, one in given.items()
        }
    return [_with_numbers(one) for one in given] if isinstance(given, list) else given


def _agent_list(suite: str, agents: Any) -> list[Any]:
    if not isinstance(agents, Sequence) or isinstance(agents, str):
        raise InvalidInputError(f"Suite {suite!r}: agents is {agents!r}; a list is needed.")
    return list(agents)


def read_seeds(seeds: Any) -> tuple[int, ...]:
    """Return seeds that are given as ``0:20``, as a number of seeds, or as a list.

    Example:
        >>> read_seeds("4:7"), read_seeds(2), read_seeds([1, 5])
        ((4, 5, 6), (0, 1), (1, 5))
    """
    first, colon, last = str(seeds).partition(":")
    if isinstance(seeds, str) and colon and _is_whole(first) and _is_whole(last) and int(first) < int(last):
        seeds = range(int(first), int(last))
    if isinstance(seeds, str) and _is_whole(seeds):
        seeds = int(seeds)
    if isinstance(seeds, Integral) and not isinstance(seeds, bool):
        return tuple(range(whole_number("The number of seeds", seeds, high=MOST_SEEDS)))
    if isinstance(seeds, Sequence) and seeds and not isinstance(seeds, str | bytes):
        whole_number("The number of seeds", len(seeds), high=MOST_SEEDS)
        found = tuple(whole_number("A seed", seed, 0, LAST_SEED) for seed in seeds)
        if len(set(found)) == len(found):
            return found
    raise InvalidInputError(f"seeds is {seeds!r}. Give FROM:TO, such as 0:20, a number of seeds, or a list of seeds.")


def _is_whole(text: str) -> bool:
    return text.isdecimal() and len(text) <= MOST_DIGITS
