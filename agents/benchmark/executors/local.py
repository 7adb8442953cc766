"""Cells in processes of this machine. A process that dies costs its cell, and another takes its place."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Protocol

import torch

from prunegym.agents.benchmark.cells import Cell, Place, run_cell
from prunegym.errors import PruneGymError
from prunegym.user_code import import_module


class Job(NamedTuple):
    """A cell that is to run."""

    cell: Cell
    share: float


class Event(NamedTuple):
    """What happened to a cell.

    Attributes:
        cell: The cell.
        kind: ``begun``, ``progress``, ``done``, ``failed``, or ``lost`` if its machine is gone and it may begin again.
            Before the first, ``planned`` with the number of ``cells``, and ``found`` for each that is finished already.
        text: The stage of a training with its figures, or the error.
        figures: Of the result, or of the stage.
    """

    cell: Cell
    kind: str
    text: str = ""
    figures: Mapping[str, Any] = {}


class Executor(Protocol):
    """Runs cells."""

    slots: int
    """Number of cells that run at once."""

    def submit(self, job: Job) -> None:
        """Begin a cell; there are never more than ``slots``."""

    def events(self) -> Iterator[Event]:
        """Wait for something to happen, and yield it."""

    def close(self) -> None:
        """End all that runs."""


def error_text(error: BaseException) -> str:
    """Return what a failed cell keeps: one line for an error of ours, else the traceback too."""
    line = f"{type(error).__name__}: {error}"
    return line if isinstance(error, PruneGymError) else f"{line}\n\n{''.join(traceback.format_exception(error))}"


def run_job(suite: Mapping[str, Any], name: str, job: Job, place: Place, report: Callable[[Event], None]) -> Event:
    """Run a cell, and return that it is done or why it failed; ``report`` is called with its progress."""
    try:
        result = run_cell(
            suite, name, job.cell, job.share, place, lambda stage, row: report(Event(job.cell, "progress", stage, row))
        )
    except Exception as error:  # the rest of the suite continues
        return Event(job.cell, "failed", error_text(error))
    return Event(job.cell, "done", figures=result.figures)


class InProcess:
    """Runs one cell at a time in this process.

    Args:
        suite: :meth:`Suite.as_dict`.
        name: The suite's name.
        place: Where cells run.
        threads: Threads of torch until :meth:`close`; None for as many as now.
    """

    slots = 1

    def __init__(self, suite: Mapping[str, Any], name: str, place: Place, threads: int | None = None) -> None:
        self.suite, self.name, self.place = suite, name, place
        self._before = torch.get_num_threads()
        torch.set_num_threads(threads or self._before)
        self._job: Job | None = None
        self.heard: Any = lambda _event: None

    def submit(self, job: Job) -> None:
        """Begin a cell."""
        self._job = job

    def events(self) -> Iterator[Event]:
        """Run the cell."""
        assert self._job is not None
        job, self._job = self._job, None
        yield run_job(self.suite, self.name, job, self.place, self.heard)

    def close(self) -> None:
        """Nothing is left running; torch has as many threads as before."""
        torch.set_num_threads(self._before)


class Processes:
    """Runs cells in several processes of this machine.

    Args:
        suite: :meth:`Suite.as_dict`.
        name: The suite's name.
        place: Where cells run.
        jobs: Number of processes.
        threads: Threads of torch in each.
    """

    def __init__(self, suite: Mapping[str, Any], name: str, place: Place, jobs: int, threads: int) -> None:
        self.slots, self._arguments = jobs, (suite, name, place, threads)
        self._idle: list[tuple[Any, Connection]] = []
        self._busy: dict[Connection, tuple[Any, Cell]] = {}

    def submit(self, job: Job) -> None:
        """Begin a cell."""
        self._idle = [(process, pipe) for process, pipe in self._idle if process.is_alive()]
        process, pipe = self._idle.pop() if self._idle else self._start()
        self._busy[pipe] = process, job.cell
        pipe.send(job)

    def _start(self) -> tuple[Any, Connection]:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, *self._arguments), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def events(self) -> Iterator[Event]:
        """Wait for at least one event."""
        for pipe in wait(list(self._busy)):
            assert isinstance(pipe, Connection)
            process, cell = self._busy[pipe]
            try:
                event: Event = pipe.recv()
            except (EOFError, OSError):
                process.join()
                del self._busy[pipe]
                yield Event(
                    cell, "failed", f"The process ended with exit code {process.exitcode}. Is memory too small?"
                )
                continue
            if event.kind != "progress":
                self._idle.append((self._busy.pop(pipe)[0], pipe))
            yield event

    def close(self) -> None:
        """End all processes."""
        for process in [*(process for process, _ in self._idle), *(process for process, _ in self._busy.values())]:
            process.terminate()
            process.join()


def _work(pipe: Connection, suite: Mapping[str, Any], name: str, place: Place, threads: int) -> None:
    """Run cells until the other end of the pipe is closed, for any reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that a person started
    torch.set_num_threads(threads)
    for module in os.environ.get("PRUNEGYM_IMPORT", "").split():
        import_module(module, f"module {module!r}")
    jobs: list[Job] = []
    ready = threading.Semaphore(0)

    def listen() -> None:
        while True:
            try:
                jobs.append(pipe.recv())
            except (EOFError, OSError):
                os._exit(1)  # nobody waits for the cell in hand; its training resumes from its last checkpoint
            ready.release()

    threading.Thread(target=listen, daemon=True).start()

    def tell(event: Event) -> None:
        with contextlib.suppress(OSError):  # the other end is gone, and this process is about to end
            pipe.send(event)

    while True:
        ready.acquire()
        cell, share = jobs.pop()
        tell(run_job(suite, name, Job(cell, share), place, tell))
