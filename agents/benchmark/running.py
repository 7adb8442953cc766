"""Running a suite: all is checked first, then each cell runs that is not finished, in the order that budgets need."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from prunegym.agents.benchmark.cells import ERROR, Cell, Place, contest_of, forget
from prunegym.agents.benchmark.executors.local import Event, Executor, InProcess, Job, Processes
from prunegym.agents.benchmark.records import Where, comparisons, read_records
from prunegym.agents.benchmark.suite import Suite, as_suite
from prunegym.agents.comparison.contest import Contest
from prunegym.agents.comparison.table import Comparison
from prunegym.errors import InvalidInputError
from prunegym.models.kernel.shared_library import MAX_THREADS
from prunegym.models.storage.run_folder import begin_run, finish_run
from prunegym.models.storage.weights import save_text
from prunegym.validation import typed, whole_number

Watch = Callable[[Event], None]
TRIES = 3
"""How often a cell begins whose machine is lost."""


@dataclasses.dataclass
class Planned:
    """A cell, and what is known of it.

    Attributes:
        cell: The cell.
        folder: Its folder.
        after: The reference's cell, whose MACs are its budget; None if it needs none.
        share: The MAC share that it may spend, once it is known.
        spent: The MAC share of its result, once it is finished.
        state: ``waiting``, ``running``, ``done`` or ``failed``.
        error: Of a failed one.
        tries: How often it began.
    """

    cell: Cell
    folder: Path
    after: Cell | None
    share: float = 1.0
    spent: float | None = None
    state: str = "waiting"
    error: str = ""
    tries: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Benchmark:
    """What a suite found.

    Attributes:
        tables: A comparison for each task, point and split.
        failed: The error of each cell that failed.
        finished: Number of cells with a result.
    """

    tables: Mapping[Where, Comparison]
    failed: Mapping[Cell, str]
    finished: int


def plan(suite: Suite, place: Place) -> dict[Cell, Planned]:
    """Check every cell of a suite, and return all of them with what is finished. Nothing is trained.

    Raises:
        PruneGymError: If a recipe, a model, gates, a data set or a reward does not fit.
    """
    cells: dict[Cell, Planned] = {}
    for name, task in suite.tasks.items():
        for point in task.points:
            contest = contest_of(suite, name, point, place)
            contest.check()
            for entry in contest.ordered:
                for seed in contest.seeds_of(entry):
                    _add(cells, contest, entry.name, Cell(name, point, entry.name, seed))
    return cells


def _add(cells: dict[Cell, Planned], contest: Contest, name: str, cell: Cell) -> None:
    (entry,) = (entry for entry in contest.entries if entry.name == name)
    seeds = contest.seeds_of(contest.reference)
    seed = cell.seed if cell.seed in seeds else seeds[0]
    first = None if entry is contest.reference else cell._replace(agent=contest.reference.name, seed=seed)
    made = Planned(cell, contest.folder(entry, cell.seed), first if entry.at_share else None)
    cells[cell] = made
    reference = None if made.after is None else cells[made.after]
    if reference is not None and reference.spent is None:
        return  # what it may spend is not known yet
    made.share = min(1.0, reference.spent) if reference is not None and reference.spent else contest.share or 1.0
    stored = contest.stored(entry, cell.seed, min(1.0, made.share))
    if stored is not None:
        made.state, made.spent = "done", stored.figures["total_mac_share"]


@typed
def run_suite(
    suite: Suite | str | Path,
    out: Path | str,
    *,
    jobs: int = 1,
    device: str = "cpu",
    threads: int | None = None,
    trust_code: bool = False,
    resume: bool = False,
    watch: Watch | None = None,
    executor: Callable[[Suite, Place], Executor] | None = None,
) -> Benchmark:
    """Run all cells of a suite that are not finished.

    Every cell is checked before the first one trains. Each has a folder, ``OUT/TASK/POINT/runs/AGENT-seedN``, that
    says how it was made. A cell that fails keeps its error in ``error.txt``, and the others run. Run the suite again to
    continue: finished cells are read, trainings resume from their last checkpoint, and failed cells begin again.

    Args:
        suite: A suite, the name of one that comes with PruneGym, or a YAML file.
        out: Folder of the benchmark.
        jobs: Number of processes. 1 runs all cells in this one. For more, your script needs
            ``if __name__ == "__main__":``.
        device: Torch device.
        threads: Threads of torch in each process. By default the cores are shared among the processes, and a single
            one keeps its number. Ray's processes have one each.
        trust_code: Also load agents of Stable-Baselines3, ``.zip``.
        resume: Continue in a folder that has this suite already.
        watch: Called with what happens to each cell.
        executor: Makes what runs the cells, instead of processes of this machine.

    Raises:
        InvalidInputError: If the folder has another suite, has this one and ``resume`` is False, or is in use.
        PruneGymError: If a recipe, a model, gates, a data set or a reward does not fit; see :func:`plan`.
    """
    suite, out = as_suite(suite), Path(out)
    whole_number("jobs", jobs)
    if threads is not None:
        whole_number("threads", threads, 1, MAX_THREADS)
    if (out / "run.json").exists() and not resume:
        raise InvalidInputError(f"{out} has a run already. Add --resume to continue, or give another --out.")
    forget()
    place = Place(out, device, trust_code)
    cells = plan(suite, place)
    begin_run(out, {"suite": suite.name}, resume)
    save_text(out / "suite.json", json.dumps(suite.as_dict(), indent=1) + "\n")
    started = time.perf_counter()
    if executor is not None:
        running = executor(suite, place)
    elif jobs == 1:
        running = InProcess(suite.as_dict(), suite.name, place, threads)
        running.heard = watch or (lambda _event: None)
    else:
        running = Processes(suite.as_dict(), suite.name, place, jobs, threads or max(1, (os.cpu_count() or 1) // jobs))
    try:
        _run(cells, running, watch or (lambda _event: None))
    finally:
        running.close()
    finish_run(out, time.perf_counter() - started)
    done = [one for one in cells.values() if one.state == "done"]
    records = read_records([one.folder for one in done]) if done else []
    splits = {(name, task.split) for name, task in suite.tasks.items()}
    records = [record for record in records if (record.where.task, record.where.split) in splits]
    failed = {cell: one.error for cell, one in cells.items() if one.state == "failed"}
    return Benchmark(comparisons(records), failed, len(done))


def _run(cells: Mapping[Cell, Planned], running: Executor, watch: Watch) -> None:
    watch(Event(next(iter(cells)), "planned", figures={"cells": len(cells)}))
    for one in cells.values():
        if one.state == "done":
            watch(Event(one.cell, "found"))
    while True:
        waiting = [one for one in cells.values() if one.state == "waiting"]
        active = sum(one.state == "running" for one in cells.values())
        for one in waiting:
            first = None if one.after is None else cells[one.after]
            if first is not None and first.state == "failed":
                one.state, one.error = "failed", f"It needs the MACs of {first.cell.name}, which failed."
                _keep_error(one)
                watch(Event(one.cell, "failed", one.error))
            elif active < running.slots and (first is None or first.state == "done"):
                if first is not None and first.spent is not None:
                    one.share = min(1.0, first.spent)
                one.state, one.tries, active = "running", one.tries + 1, active + 1
                watch(Event(one.cell, "begun"))
                running.submit(Job(one.cell, one.share))
        if not active:
            if not any(one.state == "waiting" for one in cells.values()):
                return
            continue
        for event in running.events():
            _take(cells[event.cell], event)
            watch(event)


def _take(one: Planned, event: Event) -> None:
    if event.kind == "done":
        one.state, one.spent = "done", float(event.figures["total_mac_share"])
        (one.folder / ERROR).unlink(missing_ok=True)  # of an earlier try, perhaps on another machine
    elif event.kind == "lost" and one.tries < TRIES:
        one.state = "waiting"
    elif event.kind in ("failed", "lost"):
        one.state, one.error = "failed", event.text
        _keep_error(one)


def _keep_error(one: Planned) -> None:
    one.folder.mkdir(parents=True, exist_ok=True)
    save_text(one.folder / ERROR, one.error + "\n")
