"""Write the tables of README and docs, and a picture, as ``tables.yaml`` says: ``python results/render.py``.

The figures come from the JSON documents in this folder. They are what ``prunegym evaluate``, ``compare`` and
``profile``, the scripts in ``benchmarks/`` and ``dial.py`` wrote with ``--json``; the pages have the commands.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import operator
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
Document = dict[str, Any]
"""What a JSON or YAML file holds, or a part of it."""


class Point(NamedTuple):
    """A model's accuracy (0 to 1) and total MAC share, with half of the interval where there are seeds."""

    share: float
    accuracy: float
    half_width: float


def main() -> None:
    """Replace the text between the markers of each table, and draw the picture."""
    for name, text in tables().items():
        page = page_of(name)
        before, rest = page.read_text().split(f"<!-- {name} -->\n")
        _, after = rest.split(f"<!-- end of {name} -->")
        page.write_text(f"{before}<!-- {name} -->\n{text}<!-- end of {name} -->{after}")
    draw(settings()["picture"])


@functools.cache
def settings() -> Document:
    """Return what ``tables.yaml`` says."""
    found: Document = yaml.safe_load((FOLDER / "tables.yaml").read_text())
    return found


def page_of(name: str) -> Path:
    """Return the page that has a table."""
    return ROOT / str(settings()["tables"][name].get("page", "README.md"))


def tables() -> dict[str, str]:
    """Return each table in Markdown by the name of its marker."""
    return {name: table(found) for name, found in settings()["tables"].items()}


def table(spec: Document) -> str:
    """Return a table in Markdown: a head, then the lines of each of its rows."""
    rows = [{**spec, **row} for row in spec["rows"]]
    title = spec["title"].format(count=max(_seeds(row) for row in rows))
    lines = [line for row in rows for line in _lines(row)]
    heads = [title, *(_only(column)[0] for column in spec["columns"])]
    return "".join(f"| {' | '.join(line)} |\n" for line in [heads, ["---"] * len(heads), *lines])


def _lines(row: Document) -> Iterator[list[str]]:
    """Yield the lines of one row, one for each entry of its document."""
    shown: list[list[str]] = []
    for record in records(row):
        cells = [show(record, _only(column)[1]) for column in row["columns"]]
        if not row.get("unique") or cells not in shown:
            yield [_label(record, row), *cells]
        shown.append(cells)


def _label(record: Document, row: Document) -> str:
    """Return the first cell: a separate cell, or the row's label, the entry's name, or both."""
    label = row.get("label", "")
    if isinstance(label, dict):
        return show(record, label)
    name = "" if "entry" in row else _name(record, row)
    return ": ".join(part for part in (label, name) if part)


def _name(record: Document, row: Document) -> str | None:
    """Return how an entry is called in the table; None leaves it out."""
    name = record.get(row.get("name", "name"), "")
    found: str | None = row["names"].get(name, row.get("others")) if "names" in row else name
    return found


def _seeds(row: Document) -> int:
    return len(_read(row["file"], row).get("seeds", ()))


# Documents


def records(row: Document) -> list[Document]:
    """Return the entries of a row's document that the table shows; what was not run has none."""
    found = _entries(row["file"], row)
    by_name = {one["name"]: one for one in found if "name" in one}
    found = [{**one, "by_name": by_name} for one in found]
    for key, path in row.get("with", {}).items():
        found = [{**one, key: other} for one, other in zip(found, _entries(path, row), strict=True)]
    if "entry" in row:
        found = [one for one in found if fnmatch.fnmatchcase(one[row.get("name", "name")], row["entry"])]
    else:
        found = [one for one in found if _name(one, row) is not None]
    if row.get("mean") and found:
        found = [_mean(found)]
    return sorted(found, key=lambda one: find(one, row["sort"])) if "sort" in row else found


def _entries(path: str, row: Document) -> list[Document]:
    document = _read(path, row)
    if "each" not in row:
        return [document] if document else []
    found = find(document, row["each"].format_map(row), optional=True) or []
    return list(found.values() if isinstance(found, dict) else found)


def _read(path: str, row: Document) -> Document:
    """Return a JSON document, an empty one if it was not made yet; ``{from}`` in the path is the row's."""
    place = FOLDER / path.format_map(row)
    found: Document = json.loads(place.read_text()) if place.exists() else {}
    return found


def _mean(found: list[Document]) -> Document:
    """Return the mean of each number in documents of one form."""
    means: Document = {}
    for key, value in found[0].items():
        if isinstance(value, dict):
            means[key] = _mean([one[key] for one in found])
        elif isinstance(value, int | float):
            means[key] = statistics.fmean(one[key] for one in found)
    return means


# Cells


def find(record: Document, paths: str | list[str], optional: bool = False) -> Any:
    """Return the value at a path of keys joined by dots, for the first of several paths that exists.

    Raises:
        KeyError: None of them is there, and the cell is not optional.
    """
    for path in [paths] if isinstance(paths, str) else paths:
        try:
            return functools.reduce(operator.getitem, path.split("."), record)
        except KeyError:
            continue
    if optional:
        return None
    raise KeyError(f"tables.yaml names {paths}, which is not in an entry with {', '.join(record)}")


def show(record: Document, cell: Document | None) -> str:
    """Return a cell's text. Its first key is its kind, and the value of that is where it looks."""
    if cell is None or ("blank_at_one" in cell and find(record, cell["blank_at_one"]) == 1):
        return ""
    kind, where = next(iter(cell.items()))
    if kind == "join":
        return str(cell.get("by", "")).join(show(record, part) for part in where)
    found = find(record, where, cell.get("optional", False))
    return "" if found is None else KINDS[kind](found, record, cell)


def _number(found: float, record: Document, cell: Document) -> str:
    """Return a number, less another or over another if the cell says so."""
    if "minus" in cell:
        found -= find(record, cell["minus"])
    if "over" in cell:
        found /= find(record, cell["over"])
    text = f"{cell.get('scale', 1) * found:,.{cell.get('places', 0)}f}"
    return str(cell.get("text", "{}")).format(text)


def _least(found: dict[str, float], record: Document, cell: Document) -> str:
    """Return the least of several numbers; ``of`` names those that count."""
    return _number(min(found[key] for key in cell.get("of", found) if key in found), record, cell)


def _key(found: dict[str, float], record: Document, cell: Document) -> str:
    """Return the name of the number that is equal to another."""
    return next(key for key, value in found.items() if value == find(record, cell["equal"]))


def _interval(found: Document, _: Document, cell: Document) -> str:
    """Return a mean with its interval; a negative scale turns a difference around, and shows its sign too."""
    scale, places = cell.get("scale", 1), cell["places"]
    sign = "+" if cell.get("signed") or scale < 0 else ""
    mean = f"{found['mean'] * scale:{sign}.{places}f}"
    return mean if found["half_width"] is None else f"{mean} ± {found['half_width'] * abs(scale):.{places}f}"


KINDS: dict[str, Callable[[Any, Document, Document], str]] = {
    "number": _number,
    "least": _least,
    "key": _key,
    "interval": _interval,
}


def _only(pair: Document) -> tuple[str, Any]:
    """Return the one key of a dictionary, and its value."""
    ((key, value),) = pair.items()
    return str(key), value


# Picture


def points(curve: Document) -> list[Point]:
    """Return a curve's points by their MAC share; what was not run has none."""
    rows = [{**curve, **row} for row in curve["points"]]
    found = [find(one, row["at"]) for row in rows for one in records(row)]
    return sorted(
        Point(one["total_mac_share"]["mean"], one["accuracy"]["mean"], one["accuracy"]["half_width"] or 0.0)
        for one in found
    )


def draw(spec: Document) -> None:
    """Draw accuracy over total MACs, a panel for frozen and one for prepared CNNs, since their baselines differ."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(spec["panels"]), figsize=(11, 5.2))
    (dense,) = records(spec["dense"])
    for panel, content in zip(panels, spec["panels"], strict=True):
        panel.axhline(100 * find(dense, spec["dense"]["at"]), color="0.5", linestyle=":", label="dense (MACs 1.0)")
        for index, curve in enumerate(content["curves"]):
            _draw_curve(panel, curve, points(curve), capsize=2 + 2 * index)
        panel.set(title=content["title"], xlabel="total MACs, share of the dense CNN's", ylabel="test accuracy, %")
        panel.grid(alpha=0.3)
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(ROOT / spec["page"], dpi=100)


def _draw_curve(panel: Any, curve: Document, found: list[Point], capsize: float) -> None:
    """Draw a method's points, joined unless the curve says not to, with 95 % intervals over seeds."""
    if not found:
        return
    joined = ("--" if curve.get("baseline") else "-") if curve.get("joined", True) else "none"
    bars = [100 * point.half_width for point in found]
    panel.errorbar(
        [point.share for point in found], [100 * point.accuracy for point in found], yerr=bars if any(bars) else None,
        label=curve["label"], color=curve["color"], marker="s" if curve.get("baseline") else "o", linestyle=joined,
        capsize=capsize, markersize=5,
    )  # fmt: skip


if __name__ == "__main__":
    main()
