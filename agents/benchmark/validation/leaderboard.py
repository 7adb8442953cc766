"""Leaderboards: validated runs only, best first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from prunegym.agents.benchmark.records import Where, comparison, grouped, read_records
from prunegym.agents.benchmark.validation.validating import why_left_out
from prunegym.agents.comparison.results import Interval
from prunegym.agents.comparison.table import DIFFERENCES, TASK_REWARD, Row


@dataclasses.dataclass(frozen=True, eq=False)
class Board:
    """The validated agents of a task at a point, best first.

    Attributes:
        where: Task, point and split.
        rows: The agents' lines. Figures are over all seeds of an agent, and so is the order; differences and outcomes
            are counted from the best, over the seeds that both have.
    """

    where: Where
    rows: tuple[Row, ...]


def leaderboard(folders: Iterable[Path | str]) -> tuple[list[Board], dict[str, str]]:
    """Rank the validated runs in some folders, by the task's own reward or else by the figure ``reward``.

    A stored validation counts only while the hashes of all files of the run are those that it was made with, and only
    if you made it: ``prunegym validate`` seals it with your key. Seeds that are copies of one
    training are left out too.

    Args:
        folders: Folders of ``prunegym benchmark`` or ``prunegym compare``, or of single runs.

    Returns:
        The boards, and why each of the other runs is left out, by its folder.

    Raises:
        MissingDataError: If a folder is missing, or none has a result.
        InvalidInputError: If a result is damaged, or two are of the same task, point, agent and seed.
    """
    records = read_records(folders)
    left_out = why_left_out(records)
    trusted = [record for record in records if record.folder not in left_out]
    boards = []
    for where, agents in grouped(trusted).items():
        # Each agent against itself first: these figures are over all of its seeds, and they alone make the order.
        alone = [comparison(where, {name: agents[name]}, name) for name in agents]
        ranked = sorted((table.rows[0] for table in alone if table is not None), key=lambda row: -rank(row).mean)
        table = comparison(where, agents, ranked[0].name)
        if table is not None:
            pairs = {row.name: row for row in table.rows}
            boards.append(Board(where, tuple(_against_best(row, pairs[row.name]) for row in ranked)))
    return boards, {str(folder): reason for folder, reason in left_out.items()}


def _against_best(row: Row, pair: Row) -> Row:
    """Return an agent's line with the differences and the outcome of its comparison with the best."""
    return dataclasses.replace(row, **{key: getattr(pair, key) for key in DIFFERENCES}, outcome=pair.outcome)


def rank(row: Row) -> Interval:
    """Return the figure that agents are ranked by."""
    return row.figures[rank_key(row)]


def rank_key(row: Row) -> str:
    """Return the name of that figure: the task's own reward, or else ``reward``."""
    return TASK_REWARD if TASK_REWARD in row.figures else "reward"
