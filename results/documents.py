"""What the scripts beside this file have in common: JSON documents in, Markdown out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def head(title: str, columns: tuple[str, ...]) -> str:
    """Return the head of a table in Markdown."""
    return f"| {title} | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}\n"


def read(path: Path) -> dict[str, Any]:
    """Return a JSON document; an empty one if it was not made yet."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def interval(one: dict[str, Any] | None, scale: float, places: int, signed: bool = False) -> str:
    """Return a mean with its interval; a negative scale turns a difference around, and shows its sign too."""
    if one is None:
        return ""
    sign = "+" if signed or scale < 0 else ""
    mean = f"{one['mean'] * scale:{sign}.{places}f}"
    return mean if one["half_width"] is None else f"{mean} +- {one['half_width'] * abs(scale):.{places}f}"
