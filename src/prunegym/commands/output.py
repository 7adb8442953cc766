"""What commands print: tables for people, one JSON document for programs, notes on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from tqdm import tqdm


def emit(document: Mapping[str, Any], as_json: bool, *tables: RenderableType) -> None:
    """Print a command's result: the document as JSON, or tables for people."""
    if as_json:
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
        return
    # Piped into a file, a table keeps its columns instead of being squeezed into 80 characters.
    console = Console(width=None if sys.stdout.isatty() else 140)
    for table in tables:
        console.print(table)


def note(text: str, quiet: bool = False) -> None:
    """Say something on standard error."""
    if not quiet:
        tqdm.write(text, file=sys.stderr)  # above a progress bar, not through it


def progress_of(quiet: bool) -> Callable[[str, Mapping[str, Any]], None]:
    """Return a report of stages and their figures, one line on standard error each."""

    def report(stage: str, row: Mapping[str, Any]) -> None:
        figures = "  ".join(
            f"{key.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"
            for key, value in row.items()
        )
        note(f"{stage}: {figures}", quiet)

    return report


def table(title: str, columns: list[str], rows: list[list[str]], caption: str | None = None) -> Table:
    """Return a table; all columns but the first are numbers, aligned right."""
    made = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def facts(title: str, rows: Mapping[str, object]) -> Table:
    """Return a table of two columns: what, and how much."""
    made = Table(title=title, show_header=False, title_justify="left")
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for key, value in rows.items():
        made.add_row(key, str(value))
    return made


def percent(share: float) -> str:
    """Return a share (0 to 1) as a percentage with two digits."""
    return f"{100 * share:.2f} %"
