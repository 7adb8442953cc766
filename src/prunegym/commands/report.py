"""``report``: a benchmark as one page, with a picture and CSV files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunegym.commands import options as opt
from prunegym.commands.output import Facts, emit

INTO = "Folder of the report; by default FOLDER/report of the first folder."


@opt.grouped
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders of benchmarks or comparisons.")],
    machine: opt.Machine,
    out: Annotated[Path | None, typer.Option(help=INTO)] = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "PruneGym benchmark",
    data_root: opt.DataRoot = None,
    no_images: Annotated[bool, typer.Option("--no-images", help="Show no images of the data set.")] = False,
    no_times: Annotated[bool, typer.Option("--no-times", help="Do not measure the time of images.")] = False,
) -> None:
    """Write a benchmark as one HTML page that works offline; also a picture (PNG) and CSV files."""
    from prunegym.agents.benchmark.report.page import write_report

    machine.settle(opt.Data(data_root=data_root))
    into = folders[0] / "report" if out is None else out
    paths = write_report(folders, into, timed=not no_times, images=not no_images, title=title)
    document = {name: str(path) for name, path in paths.items()}
    emit(document, machine.as_json, Facts("Report", document))
