"""Results in the folders of benchmarks and comparisons: found, read, and put into tables."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prunegym.agents.comparison.results import BROKEN, Result
from prunegym.agents.comparison.table import TASK_REWARD, Comparison, paired, row_of
from prunegym.errors import InvalidInputError, MissingDataError
from prunegym.models.data.files.bounded_files import read_json

RESULTS = "result-*.json"


class Where(NamedTuple):
    """What the results in one table share."""

    task: str
    point: str
    split: str


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """A result in a file.

    Attributes:
        file: The file, in the folder of the run.
        cell: How the run's model, data and agent are found again.
        configuration: What the result depends on, with hashes; None for an agent that may depend on more.
    """

    file: Path
    cell: Mapping[str, Any]
    configuration: Mapping[str, Any] | None
    content: Mapping[str, Any] = dataclasses.field(repr=False)

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.file.parent

    @functools.cached_property
    def result(self) -> Result:
        """The result."""
        return Result.read(self.content)

    @property
    def where(self) -> Where:
        """Where it is in a table."""
        cell = self.cell
        task = cell.get("task") or f"{cell.get('dataset') or ''} {cell.get('model')}".strip()
        return Where(task, cell.get("point", "default"), cell.get("split", "test"))

    @property
    def agent(self) -> str:
        """Name of the agent."""
        return str(self.cell["agent"])

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self.cell["seed"])

    @property
    def terms(self) -> dict[str, Any]:
        """What all results in one table must have in common: images, lambda, reward and, unless seeds differ, model."""
        marks, cell = self.configuration or {}, self.cell
        named = {
            "data set": "dataset", "training images": "train", "validation images": "validation",
            "original CNN": "dense", "reward": "reward",
        }  # fmt: skip
        if not cell.get("model_of_seed", "{seed}" in str(cell.get("model"))):
            named |= {"model": "model", "gates": "policy"}
        terms = {name: marks.get(key) for name, key in named.items()}
        own = TASK_REWARD in self.result.figures
        return {**terms, "lambda": self.penalty, "reward's text": cell.get("reward"), f"figure {TASK_REWARD}": own}

    @property
    def penalty(self) -> float:
        """Lambda of the figure ``reward``."""
        return float(self.cell["penalty"])


def read_record(file: Path) -> Record:
    """Read a result's file.

    Raises:
        InvalidInputError: If it is damaged, or has no description of its cell, as files of earlier versions.
    """
    try:
        stored = read_json(file, "result")
        found = Record(file, stored["cell"], stored["configuration"], stored["result"])
        if not isinstance(found.configuration, Mapping | None):
            raise TypeError(f"its configuration is {found.configuration!r}")
        _ = found.result, found.agent, found.seed, found.penalty
    except (*BROKEN, AttributeError) as error:
        raise InvalidInputError(
            f"{file} is no result of this version, or it is damaged ({type(error).__name__}: {error}). Delete it, and "
            "run the benchmark again."
        ) from error
    return found


def read_records(folders: Iterable[Path | str]) -> list[Record]:
    """Read all results in some folders, in the order in which their files were named.

    Raises:
        MissingDataError: If there is no such folder, or none has a result.
        InvalidInputError: If a file is damaged.
    """
    roots = [Path(folder) for folder in folders]
    for folder in roots:
        if not folder.is_dir():
            raise MissingDataError(f"There is no folder {folder}. Give the --out of prunegym benchmark or compare.")
    files = sorted({file.resolve(): file for folder in roots for file in sorted(folder.rglob(RESULTS))}.values())
    if not files:
        raise MissingDataError(
            f"There are no results in {', '.join(map(str, roots))}. Run prunegym benchmark or compare first."
        )
    return [read_record(file) for file in files]


def grouped(records: Iterable[Record]) -> dict[Where, dict[str, dict[int, Record]]]:
    """Return records by place, agent and seed; of an agent that does not depend on the seed only the first.

    Raises:
        InvalidInputError: If two have the same place, agent and seed.
    """
    found: dict[Where, dict[str, dict[int, Record]]] = {}
    for record in records:
        seeds = found.setdefault(record.where, {}).setdefault(record.agent, {})
        first = next(iter(next(iter(found[record.where].values())).values()), record)
        other = [name for name, mark in record.terms.items() if first.terms[name] != mark]
        if other:
            raise InvalidInputError(
                f"{first.file} and {record.file} are of the same task, but of another {' and '.join(other)}, so they "
                "cannot be in one table. Give folders of one suite."
            )
        if record.seed in seeds:
            raise InvalidInputError(
                f"{seeds[record.seed].file} and {record.file} are both of {record.agent}, seed {record.seed}. Give "
                "folders that have each run once, or join them with prunegym merge."
            )
        seeds[record.seed] = record
    for agents in found.values():
        for agent, seeds in agents.items():
            if not any(record.cell.get("each") for record in seeds.values()):
                first_seed = min(seeds)  # parts of a suite on several machines have each made the same
                agents[agent] = {first_seed: seeds[first_seed]}
    return found


def comparison(
    where: Where, agents: Mapping[str, Mapping[int, Record]], reference: str | None = None
) -> Comparison | None:
    """Return the table of a place; None if its reference has no result.

    The seeds that count for an agent are those that the reference has too; without any, all, and no difference.

    Args:
        where: The place.
        agents: Its records by agent and seed.
        reference: What differences are counted from; by default the suite's reference.
    """
    first = next(iter(next(iter(agents.values())).values()))
    name = str(first.cell.get("reference", first.agent)) if reference is None else reference
    if name not in agents:
        return None
    known = {agent: {seed: record.result for seed, record in sorted(agents[agent].items())} for agent in agents}
    rows = []
    for agent in sorted(agents, key=lambda one: one != name):
        own, other = known[agent], known[name]
        each = [any(record.cell.get("each") for record in agents[one].values()) for one in (agent, name)]
        pairs = None if agent == name else paired(own, other, *each)
        if pairs and all(each):
            own = {seed: result for seed, result in own.items() if seed in other}
        rows.append(row_of(agent, own, pairs, first.penalty))
    return Comparison(f"{where.task}, {where.point}, {where.split}", name, tuple(known[name]), tuple(rows))


def comparisons(records: Sequence[Record]) -> dict[Where, Comparison]:
    """Return a table for each task, point and split."""
    found = {where: comparison(where, agents) for where, agents in grouped(records).items()}
    return {where: table for where, table in found.items() if table is not None}
