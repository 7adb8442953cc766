"""``benchmark``: all agents of a suite on all its tasks, with every seed, lambda and budget."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunegym.commands import options as opt
from prunegym.commands.output import emit, note
from prunegym.validation import choice

if TYPE_CHECKING:
    from rich.progress import Progress

    from prunegym.agents.benchmark.cells import Place
    from prunegym.agents.benchmark.executors.local import Event, Executor
    from prunegym.agents.benchmark.suite import Suite

SUITE = "digits, cifar10-jpeg, fashion-mnist, rewards, or a YAML file."
ENDED = {"found": "finished before", "done": "done", "failed": "FAILED", "lost": "begins again, its machine is gone"}


@opt.grouped
def benchmark(
    suite: Annotated[str, typer.Argument(help=SUITE)],
    run: opt.Run,
    jobs: Annotated[int, typer.Option(min=1, help="Cells that run at once, each in a separate process.")] = 1,
    seeds: Annotated[str | None, typer.Option(metavar="FROM:TO", help="Seeds, instead of the suite's.")] = None,
    data_root: opt.DataRoot = None,
    trust_code: opt.TrustCode = False,
    executor: Annotated[str, typer.Option(help="local, or ray: the cells run on a Ray cluster.")] = "local",
    ray_address: Annotated[str | None, typer.Option(help="Address of the Ray cluster; auto finds a local one.")] = None,
) -> None:
    """Run all cells of a suite that are not finished; a cell is an agent with a seed. OUT/TASK/POINT/runs has them.

    Everything is checked before the first agent trains. A cell that fails keeps its error, and the others run.
    With --resume, finished cells are not run again.
    """
    from prunegym.agents.benchmark.running import run_suite
    from prunegym.agents.benchmark.suite import as_suite, read_seeds
    from prunegym.commands.compare import comparison_table

    run.settle(opt.Data(data_root=data_root))
    chosen = as_suite(suite)
    if seeds is not None:
        chosen = dataclasses.replace(chosen, seeds=read_seeds(seeds))
    choice("executor", executor, ("local", "ray"))

    def on_cluster(wanted: Suite, place: Place) -> Executor:
        from prunegym.agents.benchmark.executors.ray_cluster import RayCluster

        return RayCluster(wanted, place, ray_address, jobs if jobs > 1 else None)

    with View(run.quiet) as view:
        found = run_suite(
            chosen, run.out, jobs=jobs, device=run.device, threads=run.threads, trust_code=trust_code,
            resume=run.resume, watch=view, executor=on_cluster if executor == "ray" else None,
        )  # fmt: skip
    tables = {", ".join(where): table.as_json() for where, table in found.tables.items()}
    failed = {cell.name: error for cell, error in found.failed.items()}
    document = {"suite": chosen.name, "finished": found.finished, "failed": failed, "tables": tables}
    shown: list[Any] = [comparison_table(table, outcomes=True) for table in found.tables.values()]
    shown += [f"Failed: {cell}: {error.splitlines()[0]}" for cell, error in failed.items()]
    emit(document, run.as_json, *shown, f"{found.finished} cells are finished, {len(failed)} failed. See {run.out}.")
    if failed:
        raise typer.Exit(1)


class View:
    """Shows how far the whole suite is, and each running cell: bars in a terminal, else a line for each cell."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.bars = quiet, None if quiet or not sys.stderr.isatty() else _bars()
        self.cells: dict[Any, Any] = {}
        self.whole: Any = None

    def __enter__(self) -> View:
        if self.bars is not None:
            self.bars.start()
            self.whole = self.bars.add_task("all cells", total=None, stage="checking")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars is not None:
            self.bars.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        figures = {key: value for key, value in event.figures.items() if isinstance(value, int | float)}
        shown = ", ".join(
            f"{key.replace('_', ' ')} {figures[key]:.3f}" for key in ("accuracy", "total_mac_share") if key in figures
        )
        if event.kind == "planned":
            if self.bars is not None:
                self.bars.update(self.whole, total=int(figures["cells"]), stage="")
        elif event.kind in ENDED:
            text = event.text.splitlines()[0] if event.text else shown
            if event.kind != "found":
                note(f"{event.cell.name}: {ENDED[event.kind]}{', ' if text else ''}{text}", self.quiet)
            if self.bars is not None:
                self.bars.remove_task(self.cells.pop(event.cell)) if event.cell in self.cells else None
                self.bars.advance(self.whole, event.kind != "lost")
        elif self.bars is not None and event.kind == "begun":
            self.cells[event.cell] = self.bars.add_task(event.cell.name, total=None, stage="")
        elif self.bars is not None and event.cell in self.cells:
            done, total = figures.get("timesteps"), figures.get("total_timesteps")
            self.bars.update(self.cells[event.cell], completed=done, total=total, stage=f"{event.text} {shown}")


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.fields[stage]}"), console=Console(stderr=True))
