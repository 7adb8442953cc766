"""Cells on a Ray cluster. Nodes need no common file system: cell folders come back as archives."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunegym.agents.benchmark.cells import Cell, Place
from prunegym.agents.benchmark.executors.local import Event, Job, run_job
from prunegym.agents.benchmark.inputs import input_files
from prunegym.agents.benchmark.suite import Suite
from prunegym.agents.comparison.results import slug
from prunegym.errors import MissingDependencyError, PruneGymError

SCRATCH = "PRUNEGYM_SCRATCH"
"""Environment variable of a node: its folder for cells in hand and for inputs; by default that of temporary files."""
WAIT = 1.0


class RayCluster:
    """Runs cells on a Ray cluster, one for each of its processors.

    Files that the suite names, see :func:`input_files`, are put into the object store once; each node writes them to
    its disk once. Folders of data sets are read where the nodes have them, by name or path. If a node is lost, its
    cells in hand begin again on another.

    Args:
        suite: The suite.
        place: Folder of the benchmark on this machine, and the device on the nodes.
        address: Of the cluster, such as ``ray://head:10001`` or ``auto``; None starts Ray on this machine.
        slots: Number of cells at once; by default the processors of the cluster.

    Raises:
        MissingDependencyError: If Ray is not installed.
    """

    def __init__(self, suite: Suite, place: Place, address: str | None = None, slots: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingDependencyError("A Ray cluster needs Ray: pip install 'prunegym[ray]'.") from error
        self._ray, self._place, self._name = ray, place, suite.name
        self._begun = not ray.is_initialized()
        if self._begun:
            join(address)
        self.slots = slots or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._suite = ray.put(suite.as_dict())
        self._inputs = {path: ray.put(Path(path).read_bytes()) for path in sorted(input_files(suite))}
        self._remote = ray.remote(num_cpus=1, max_retries=0)(remote_cell)
        self._busy: dict[Any, Cell] = {}

    def submit(self, job: Job) -> None:
        """Begin a cell on any node."""
        variables = {key: value for key, value in os.environ.items() if key == "PRUNEGYM_IMPORT"}
        # In a list, so that the node fetches the bytes only if it does not have the file.
        inputs = [(path, [reference]) for path, reference in self._inputs.items()]
        reference = self._remote.options(runtime_env={"env_vars": variables} if variables else None).remote(
            [self._suite], self._name, job, inputs, self._place.device, self._place.trust_code
        )
        self._busy[reference] = job.cell

    def events(self) -> Iterator[Event]:
        """Wait for a cell to end, and yield how."""
        ended, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=WAIT)
        for reference in ended:
            cell = self._busy.pop(reference)
            try:
                event, archive = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                yield Event(cell, "lost", f"{type(error).__name__}: {str(error).splitlines()[0]}")
                continue
            unpack(archive, self._place.root / slug(cell.task) / cell.point.name / "runs")
            yield event

    def close(self) -> None:
        """Cancel what runs, and leave the cluster if this object joined it."""
        for reference in self._busy:
            self._ray.cancel(reference, force=True)
        if self._begun:
            self._ray.shutdown()


def join(address: str | None) -> None:
    """Join a cluster, or start Ray on this machine if there is no address."""
    import ray

    # Without an address Ray itself would join a cluster that somebody left running here.
    ray.init(address=address or "local", log_to_driver=False, include_dashboard=None if address else False)


def remote_cell(
    suite: list[Any], name: str, job: Job, inputs: list[tuple[str, list[Any]]], device: str, trust_code: bool
) -> tuple[Event, bytes]:
    """Run a cell on a node, in a separate folder, and return what happened with its folder as an archive."""
    import ray
    import torch

    torch.set_num_threads(1)  # one processor is reserved for it
    scratch = Path(os.environ.get(SCRATCH) or tempfile.gettempdir()) / "prunegym-cells"
    files = tuple((path, str(on_disk(path, reference[0], scratch))) for path, reference in inputs)
    scratch.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(dir=scratch))
    try:
        place = Place(root, device, trust_code, files)
        event = run_job(ray.get(suite[0]), name, job, place, lambda _event: None)
        return event, pack(root / slug(job.cell.task) / job.cell.point.name / "runs")
    finally:
        shutil.rmtree(root, ignore_errors=True)


def on_disk(path: str, reference: Any, scratch: Path) -> Path:
    """Return the file of an input on this node; it is fetched and written once."""
    import ray

    mark = hashlib.sha256(reference.binary()).hexdigest()[:16]  # an object never changes
    file = scratch / "inputs" / mark / Path(path).name
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        partial.write_bytes(ray.get(reference))
        partial.replace(file)
    return file


def pack(folder: Path) -> bytes:
    """Return a folder as a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        if folder.is_dir():
            archive.add(folder, arcname=".")
    return buffer.getvalue()


def unpack(archive: bytes, folder: Path) -> None:
    """Write an archive of :func:`pack`. Results come last, so that a cell whose folder is not whole has none."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        members = sorted(packed.getmembers(), key=lambda one: Path(one.name).name.startswith("result-"))
        # By hand: `extractall(filter="data")` came with Python 3.11.4.
        for member in members:
            place, content = folder / member.name, packed.extractfile(member) if member.isfile() else None
            if not place.resolve().is_relative_to(folder.resolve()):
                raise PruneGymError(f"An archive from a node has the path {member.name}, which leaves its folder.")
            if content is not None:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content.read())
