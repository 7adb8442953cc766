"""What commands print: tables for people, one JSON document for programs, notes on standard error."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer
from tqdm import tqdm

READABLE = 80
"""Width of text where no terminal gives one."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that terminals obey; tabs and line ends are harmless."""
FEW, NAMES = 16, 24
"""Characters that names need next to all columns, and get where a table is cut; longer ones get a separate line."""


def emit(document: Mapping[str, Any], as_json: bool, *parts: Table | Facts | str) -> None:
    """Print a command's result: the document as JSON, or tables and sentences for people."""
    if as_json:
        typer.echo(json.dumps(document, indent=1))
        return
    # COLUMNS, if it is set, counts outside a terminal too; elsewhere programs read whole lines.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() or os.environ.get("COLUMNS") else None
    for index, part in enumerate(parts):
        if index and not isinstance(part, str):
            typer.echo()
        if isinstance(part, str):
            typer.echo(printable("\n".join(fold(part, width or READABLE))))
            continue
        for line in map(printable, fold(part.title, width or READABLE)):
            typer.echo(line if os.environ.get("NO_COLOR") else typer.style(line, bold=True))
        typer.echo(printable("\n".join(part.lines(width))))


def printable(text: str) -> str:
    r"""Return a text in which a terminal obeys nothing: names of classes and files may have control characters.

    Characters that the output cannot encode are written in the same way.

    Example:
        >>> print(printable("a\x1b[31mb ä"))
        a\x1b[31mb ä
    """
    escaped = CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return escaped.encode(encoding, "backslashreplace").decode(encoding)


def note(text: str, quiet: bool = False) -> None:
    """Write a line to standard error."""
    if not quiet:
        text = printable(text)
        lines = fold(text, shutil.get_terminal_size().columns, "  ") if sys.stderr.isatty() else [text]
        tqdm.write("\n".join(lines), file=sys.stderr)  # above a progress bar, not through it


def progress_of(quiet: bool) -> Callable[[str, Mapping[str, Any]], None]:
    """Return a report of stages and their figures on standard error."""

    def report(stage: str, row: Mapping[str, Any]) -> None:
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
        figures = [f"{key.replace('_', ' ')} {value}" for key, value in shown.items() if value != stage]
        note(f"{stage}: {'  '.join(figures)}", quiet)

    return report


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of figures with a name each.

    In a narrow terminal the gaps shrink, headings wrap, and long names get separate lines. If that is not enough, the
    columns are split into several tables, one below the other. Figures are never broken.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def lines(self, width: int | None) -> list[str]:
        """Return the table, its caption last."""
        columns = list(zip(self.columns, *self.rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        if width is None or sum(widths) + 2 * len(widths) - 2 <= width:
            lines = self._block(range(1, len(columns)), widths, 2)
            return lines + fold(self.caption, width or max(READABLE, len(lines[0])))
        widths = [max(map(len, (*head.split(), *cells))) for head, *cells in columns]
        left = width - sum(widths[1:]) - len(widths) + 1
        most = left if left >= FEW else NAMES
        widths[0] = max((len(name) for name in columns[0] if len(name) <= most), default=most)
        blocks: list[list[int]] = [[]]
        for column in range(1, len(columns)):
            if blocks[-1] and widths[0] + sum(widths[one] + 1 for one in (*blocks[-1], column)) > width:
                blocks.append([])
            blocks[-1].append(column)
        lines = [line for block in blocks for line in ("", *self._block(block, widths, 1, width))]
        return lines[1:] + fold(self.caption, width)

    def _block(self, columns: Sequence[int], widths: Sequence[int], gap: int, width: int = 0) -> list[str]:
        """Return some of the columns with the names first; names that are too long get their own lines."""
        shown = [0, *columns]
        heads = [fold(self.columns[column], widths[column]) for column in shown]
        height = max(map(len, heads))
        rows: list[Sequence[str]] = list(zip(*([""] * (height - len(head)) + head for head in heads), strict=True))
        rows.append(["-" * (sum(widths[column] + gap for column in shown) - gap)])
        lines = []
        for name, *cells in [*rows, *([row[column] for column in shown] for row in self.rows)]:
            if cells and len(name) > widths[0]:
                lines += fold(name, width)
                name = ""
            figures = [cell.rjust(widths[column]) for cell, column in zip(cells, columns, strict=False)]
            lines.append((" " * gap).join([name.ljust(widths[0]), *figures]).rstrip())
        return lines


@dataclasses.dataclass(frozen=True)
class Facts:
    """Names and values, one line each; in a terminal long values wrap, or go below their names."""

    title: str
    rows: Mapping[str, object]

    def lines(self, width: int | None) -> list[str]:
        """Return all rows."""
        first = max(map(len, self.rows)) + 2
        lines = []
        for key, value in self.rows.items():
            text = str(value)
            longest = max(map(len, text.split()), default=0)
            if width is None or first + (longest if first < width // 2 else len(text)) <= width:
                wrapped = [text] if width is None else fold(text, width - first) or [""]
                lines += [f"{'' if index else key:{first}}{line}" for index, line in enumerate(wrapped)]
            else:
                lines += [key, *(f"  {line}" for line in fold(text, width - 2))]
        return lines


class _Wrapper(textwrap.TextWrapper):
    wordsep_simple_re = re.compile(r"(\s+)|(?<=\0)")


def _marked(word: re.Match[str]) -> str:
    return re.sub(r"(?<=[^/])/", "/\0", word[0])  # a path may be broken after its slashes, but not after a first one


def fold(text: str, width: int, indent: str = "") -> list[str]:
    """Return lines of a text, broken at spaces and, in a path that is longer than a line, after slashes."""
    wrapper = _Wrapper(max(1, width), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    marked = re.sub(rf"\S{{{max(1, width - len(indent))},}}", _marked, text)
    return [line.replace("\0", "") for part in marked.splitlines() for line in wrapper.wrap(part)]


def percent(share: float) -> str:
    """Return a share (0 to 1) as a percentage with two digits."""
    return f"{100 * share:.2f} %"


def shares_on(found: Mapping[str, Any], *keys: str) -> dict[str, str]:
    """Return rows of :class:`Facts` for figures that a document has by data set: shares (0 to 1)."""
    rows = [(key.replace("_", " "), found.get(key, {})) for key in keys]
    return {f"{name} on {where}": percent(share) for name, shares in rows for where, share in shares.items()}
