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
NAMES = 24
"""Characters that names get where a table is cut into several; longer ones have a line of their own."""


def emit(document: Mapping[str, Any], as_json: bool, *parts: Table | Facts | str) -> None:
    """Print a command's result: the document as JSON, or tables and sentences for people."""
    if as_json:
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for index, part in enumerate(parts):
        if index and not isinstance(part, str):
            typer.echo()
        if isinstance(part, str):
            typer.echo("\n".join(fold(part, width or READABLE)))
            continue
        for line in fold(part.title, width or READABLE):
            typer.echo(line if os.environ.get("NO_COLOR") else typer.style(line, bold=True))
        typer.echo("\n".join(part.lines(width)))


def note(text: str, quiet: bool = False) -> None:
    """Say something on standard error."""
    if not quiet:
        lines = fold(text, shutil.get_terminal_size().columns, "  ") if sys.stderr.isatty() else [text]
        tqdm.write("\n".join(lines), file=sys.stderr)  # above a progress bar, not through it


def progress_of(quiet: bool) -> Callable[[str, Mapping[str, Any]], None]:
    """Return a report of stages and their figures on standard error."""

    def report(stage: str, row: Mapping[str, Any]) -> None:
        figures = "  ".join(
            f"{key.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"
            for key, value in row.items()
            if value != stage
        )
        note(f"{stage}: {figures}", quiet)

    return report


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of figures with a name each.

    Where they are wider than the terminal, first the gaps shrink and the headings wrap, then long names get a line of
    their own, then the columns are cut into several tables under each other. No figure is ever broken.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def lines(self, width: int | None) -> list[str]:
        """Return the table, its caption last."""
        cells = list(zip(*self.rows, strict=True)) if self.rows else [()] * len(self.columns)
        full = [max(map(len, (head, *column))) for head, column in zip(self.columns, cells, strict=True)]
        if width is None or sum(full) + 2 * len(full) - 2 <= width:
            lines = self._block(range(1, len(full)), full, 2)
            return lines + fold(self.caption, width or max(READABLE, len(lines[0])))
        narrow = [max(map(len, (*head.split(), *column))) for head, column in zip(self.columns, cells, strict=True)]
        for gap in (2, 1):
            left = width - sum(narrow[1:]) - gap * (len(narrow) - 1)
            if left >= self._names(NAMES * 2 // 3):
                widths = [self._names(left), *narrow[1:]]
                return self._block(range(1, len(full)), widths, gap, width) + fold(self.caption, width)
        narrow[0] = self._names(NAMES)
        lines, begin = [], 1
        while begin < len(narrow):
            end = begin + 1
            while end < len(narrow) and narrow[0] + sum(narrow[begin : end + 1]) + end - begin + 1 <= width:
                end += 1
            wide = narrow[0] + sum(narrow[begin:end]) + 2 * (end - begin) <= width
            lines += [""] * bool(lines) + self._block(range(begin, end), narrow, 1 + wide, width)
            begin = end
        return lines + fold(self.caption, width)

    def _names(self, most: int) -> int:
        """Return the width of the longest name that is no longer than this."""
        names = (self.columns[0], *(row[0] for row in self.rows))
        return max((len(name) for name in names if len(name) <= most), default=most)

    def _block(self, columns: range, widths: Sequence[int], gap: int, width: int = 0) -> list[str]:
        """Return some of the columns, the names before them; those that are too long on lines of this width."""
        heads = [fold(self.columns[index], widths[index]) for index in (0, *columns)]
        height = max(map(len, heads))
        lines = [
            self._line([([""] * (height - len(head)) + head)[row] for head in heads], columns, widths, gap)
            for row in range(height)
        ]
        lines.append("-" * (sum(widths[index] for index in (0, *columns)) + gap * len(columns)))
        for row in self.rows:
            name = row[0]
            if len(name) > widths[0]:
                lines += fold(name, width)
                name = ""
            lines.append(self._line([name, *(row[index] for index in columns)], columns, widths, gap))
        return lines

    @staticmethod
    def _line(cells: Sequence[str], columns: range, widths: Sequence[int], gap: int) -> str:
        figures = [cell.rjust(widths[index]) for cell, index in zip(cells[1:], columns, strict=True)]
        return (" " * gap).join([cells[0].ljust(widths[0]), *figures]).rstrip()


@dataclasses.dataclass(frozen=True)
class Facts:
    """What, and how much: a line for each; in a terminal long ones wrap, or go under their names."""

    title: str
    rows: Mapping[str, object]

    def lines(self, width: int | None) -> list[str]:
        """Return all rows."""
        first = max(map(len, self.rows)) + 2
        lines = []
        for key, value in self.rows.items():
            text = str(value)
            longest = max(map(len, text.split()), default=0)
            if width is None or first + len(text) <= width:
                lines.append(f"{key.ljust(first)}{text}")
            elif first + longest <= width and first < width // 2:
                wrapped = fold(text, width - first)
                lines += [f"{key if not index else '':{first}}{line}" for index, line in enumerate(wrapped)]
            else:
                lines += [key, *(f"  {line}" for line in fold(text, width - 2))]
        return lines


class _Wrapper(textwrap.TextWrapper):
    wordsep_simple_re = re.compile(r"(\s+)|(?<=\0)")


def _marked(word: re.Match[str]) -> str:
    return re.sub(r"(?<=[^/])/", "/\0", word[0])  # a path may be broken after its slashes, but not after a first one


def fold(text: str, width: int, indent: str = "") -> list[str]:
    """Return lines of a text, broken at spaces and, in a path that is longer than a line, after slashes."""
    wrapper = _Wrapper(width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    marked = re.sub(rf"\S{{{max(1, width - len(indent))},}}", _marked, text)
    return [line.replace("\0", "") for part in marked.splitlines() for line in wrapper.wrap(part)]


def percent(share: float) -> str:
    """Return a share (0 to 1) as a percentage with two digits."""
    return f"{100 * share:.2f} %"
