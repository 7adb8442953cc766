"""``leaderboard``: validated runs, best first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunegym.commands.options import JsonFlag
from prunegym.commands.output import Table, emit


def leaderboard(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders of benchmarks or of runs.")],
    as_json: JsonFlag = False,
) -> None:
    """Rank validated runs; the others are left out, and you are told why. See prunegym validate."""
    from prunegym.agents.benchmark.validation.leaderboard import leaderboard as rank_runs, rank
    from prunegym.commands.compare import interval_text

    boards, left_out = rank_runs(folders)
    tables = []
    for board in boards:
        rows = [
            [f"{place}. {row.name}", interval_text(rank(row), 1), row.outcome or "best",
             interval_text(row.figures["accuracy"], 100), interval_text(row.figures["total_mac_share"], 1, 3),
             str(len(row.results))]
            for place, row in enumerate(board.rows, 1)
        ]  # fmt: skip
        columns = ["agent", "reward", "against the best", "accuracy", "total MACs", "seeds"]
        tables.append(Table(", ".join(board.where), columns, rows))
    document = {
        "boards": {", ".join(board.where): [row.as_json() for row in board.rows] for board in boards},
        "left_out": left_out,
    }
    lines = [f"Left out: {folder}: {reason}." for folder, reason in left_out.items()]
    emit(document, as_json, *tables, *lines, *([] if tables else ["No run is validated. Run prunegym validate first."]))
