"""Leaderboards: validated runs only, best first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from prunegym.agents.benchmark.records import Where, comparison, grouped, read_records
from prunegym.agents.benchmark.validation import why_left_out
from prunegym.agents.comparison.results import Interval
from prunegym.agents.comparison.table import TASK_REWARD, Row


@dataclasses.dataclass(frozen=True, eq=False)
class Board:
    """The validated agents of a task at a point, best first.

    Attributes:
        where: Task, point and split.
        rows: The agents' lines; differences and outcomes are counted from the best.
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
        # Each agent against itself first, to find the best one; then all against that.
        alone = [comparison(where, {name: agents[name]}, name) for name in agents]
        best = max((table.rows[0] for table in alone if table is not None), key=lambda row: rank(row).mean)
        table = comparison(where, agents, best.name)
        if table is not None:
            boards.append(Board(where, tuple(sorted(table.rows, key=lambda row: -rank(row).mean))))
    return boards, {str(folder): reason for folder, reason in left_out.items()}


def rank(row: Row) -> Interval:
    """Return the figure that agents are ranked by."""
    return row.figures[rank_key(row)]


def rank_key(row: Row) -> str:
    """Return the name of that figure: the task's own reward, or else ``reward``."""
    return TASK_REWARD if TASK_REWARD in row.figures else "reward"
