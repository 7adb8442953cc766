"""The report of a benchmark: one HTML page that works offline, a picture and CSV files."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunegym.agents.benchmark.records import Record, Where, comparisons, grouped, read_records
from prunegym.agents.benchmark.report.figures import SHOWN, learning_curves, measured, rows_of
from prunegym.agents.benchmark.report.gallery import gallery
from prunegym.agents.benchmark.report.statistics import summary
from prunegym.agents.comparison.table import Comparison
from prunegym.errors import InvalidInputError, MissingDependencyError, PruneGymError
from prunegym.models.storage.run_folder import machine, make_folder, versions
from prunegym.models.storage.weights import save_text, whole_file
from prunegym.validation import typed

PARTS = Path(__file__).parent
MOST_GALLERIES = 12
FILES = {
    "page": "report.html",
    "picture": "report.png",
    "table": "table.csv",
    "tables": "tables.json",
    "curves": "curves.csv",
}
PANELS = 4
"""Of the picture, side by side."""


@typed
def write_report(
    folders: Sequence[Path | str],
    out: Path | str,
    *,
    timed: bool = True,
    images: bool = True,
    title: str = "PruneGym benchmark",
) -> dict[str, Path]:
    """Write the report of benchmarks and comparisons.

    Args:
        folders: Folders of ``prunegym benchmark`` or ``prunegym compare``.
        out: Folder of the report.
        timed: Measure the time of single images. Times that were measured here before are read.
        images: Show images of the data set. Without them you can publish a report of data that you may not publish.
        title: Heading of the page.

    Returns:
        The files: ``page`` (``report.html``), ``picture`` (``report.png``), ``table`` (``table.csv``), ``tables``
        (``tables.json``, with each seed, as ``benchmark --json`` prints it) and ``curves`` (``curves.csv``).

    Raises:
        MissingDependencyError: If plotly is not installed.
        MissingDataError: If a folder is missing, or none has a result.
        InvalidInputError: If a result is damaged, if two are of the same cell, or if no reference has a result.
    """
    script = _plotly()
    out = Path(out)
    records = read_records(folders)
    tables = comparisons(records)
    if not tables:
        raise InvalidInputError("No agent that others are compared with has a result yet. Let the benchmark finish.")
    make_folder(out)
    groups = grouped(records)
    rows = rows_of(tables, measured(out, groups) if timed else {}, groups)
    curves = learning_curves(records)
    document = {
        "title": title,
        "machine": machine(),
        "versions": versions(),
        "t": quantiles(),
        "rows": rows,
        "curves": curves,
        "galleries": _galleries(tables, groups) if images else [],
        "statistics": _statistics(tables),
    }
    paths = {name: out / file for name, file in FILES.items()}
    save_text(paths["page"], page(document, script))
    save_text(paths["table"], table_csv(rows))
    whole = {", ".join(where): table.as_json() for where, table in tables.items()}
    save_text(paths["tables"], json.dumps({"machine": machine(), "tables": whole}, indent=1) + "\n")
    flat = [[*list(curve.values())[:5], *row] for curve in curves for row in curve["rows"]]
    heads = ["task", "point", "split", "agent", "seed", "timesteps", "accuracy", "total_mac_share", "reward"]
    save_text(paths["curves"], _csv([heads, *flat]))
    with whole_file(paths["picture"]) as file:
        draw(rows, file)
    return paths


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingDependencyError("A report needs plotly: pip install 'prunegym[benchmark]'.") from error
    return str(get_plotlyjs())


def quantiles(most: int = 60) -> list[float]:
    """Return by degrees of freedom what a standard error is multiplied with for a 95 % Student-t interval."""
    from scipy.stats import t  # type: ignore[import-untyped]  # takes half a second to import

    return [0.0, *(float(t.ppf(0.975, freedom)) for freedom in range(1, most))]


def _statistics(tables: Mapping[Where, Comparison]) -> dict[str, Any]:
    try:
        return summary(tables)
    except MissingDependencyError as error:
        return {"missing": str(error)}


def _galleries(
    tables: Mapping[Where, Comparison], groups: Mapping[Where, Mapping[str, Mapping[int, Record]]]
) -> list[dict[str, Any]]:
    """Return a gallery of the reference's first run at each place, as far as runs can be opened here."""
    found = []
    for where, table in list(tables.items())[:MOST_GALLERIES]:
        seeds = groups[where][table.reference]
        try:
            shown = gallery(seeds[min(seeds)])
        except PruneGymError:
            shown = None
        if shown is not None:
            found.append(shown)
    return found


def page(document: Mapping[str, Any], script: str) -> str:
    """Return the page: styles, content, plotly's script once, the figures as JSON, and what shows them."""
    # "</" would end the script element that has the figures.
    figures = json.dumps(document, allow_nan=False).replace("</", "<\\/")
    parts = {name: (PARTS / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    inserts = {"css": parts["css"], "plotly": script, "figures": figures, "js": parts["js"]}
    made = parts["html"].replace("{{title}}", html.escape(str(document["title"])))
    return re.sub(r"/\*(css|plotly|figures|js)\*/", lambda mark: inserts[mark[1]], made)


def table_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the rows as CSV: means and half widths of the 95 % intervals."""
    heads = ["task", "point", "split", "agent", "outcome", "runs"]
    heads += [name for key in (*SHOWN, "difference") for name in (key, f"{key}_half_width")]
    heads += ["milliseconds", "dense_milliseconds"]
    lines: list[list[Any]] = [heads]
    for row in rows:
        line = [row["task"], row["point"], row["split"], row["agent"], row["outcome"], len(row["seeds"])]
        line += [value for key in SHOWN for value in row["figures"].get(key, (None, None))]
        line += row["difference"] or (None, None)
        times = row["times"] or {}
        lines.append([*line, times.get("milliseconds"), times.get("dense_milliseconds")])
    return _csv(lines)


def _csv(lines: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def draw(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw accuracy over MACs, a panel for each task, as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    tasks = list(dict.fromkeys((row["task"], row["split"]) for row in rows))
    columns = min(PANELS, len(tasks))
    lines = -(-len(tasks) // columns)
    picture, axes = plt.subplots(lines, columns, figsize=(6 * columns, 4.5 * lines), squeeze=False)
    for axis in axes.flat[len(tasks) :]:
        axis.axis("off")
    for task, axis in zip(tasks, axes.flat, strict=False):
        own = [row for row in rows if (row["task"], row["split"]) == task]
        for name in dict.fromkeys(row["agent"] for row in own):
            points = sorted(_point(row) for row in own if row["agent"] == name)
            macs, accuracy, half, wide = (list(values) for values in zip(*points, strict=True))
            axis.errorbar(macs, accuracy, yerr=half, xerr=wide, marker="o", capsize=3, label=name)
        axis.axhline(100 * own[0]["dense_accuracy"], color="grey", linestyle=":", label="dense")
        axis.set(title=", ".join(task), xlabel="total MAC share", ylabel="accuracy in %")
        axis.legend()
    picture.tight_layout()
    picture.savefig(file, format="png", dpi=150)
    plt.close(picture)


def _point(row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    (accuracy, half), (macs, wide) = row["figures"]["accuracy"], row["figures"]["total_mac_share"]
    return macs, 100 * accuracy, 100 * (half or 0.0), wide or 0.0
