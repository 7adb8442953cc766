"""Trials of a search on a Ray cluster. Nodes need no common file system: run folders come back as archives."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from prunegym.agents.benchmark.executors.ray_cluster import SCRATCH, join, pack, unpack
from prunegym.agents.rl.trainer import train_agent
from prunegym.errors import MissingDependencyError, PruneGymError
from prunegym.models.storage.model_file import Bundle
from prunegym.models.training.cnn_training import StageReport

WAIT = 0.5
"""Seconds between two looks at what a trial has reported."""
ATTEMPTS = 3
"""For a trial whose node is lost."""


class RayTrials:
    """Trains on a Ray cluster, one trial for each of its processors.

    The model and its images are put into the object store once.

    Args:
        model: As :func:`~prunegym.agents.benchmark.tuning.tune_recipe` takes it.
        address: Of the cluster, such as ``ray://head:10001`` or ``auto``; None starts Ray on this machine.
        slots: Number of trials at once; by default the processors of the cluster.

    Raises:
        MissingDependencyError: If Ray is not installed.
    """

    def __init__(self, model: Bundle, address: str | None = None, slots: int | None = None) -> None:
        try:
            import ray
            from ray.util.queue import Queue
        except ImportError as error:
            raise MissingDependencyError("A Ray cluster needs Ray: pip install 'prunegym[ray]'.") from error
        self._ray, self._queue = ray, Queue
        self._begun = not ray.is_initialized()
        if self._begun:
            join(address)
        self.slots = slots or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._model = ray.put(model)
        self._remote = ray.remote(num_cpus=1, max_retries=0)(remote_trial)

    def train(self, recipe: Any, folder: Path, watch: StageReport) -> None:
        """Train with a recipe on any node. ``watch`` gets the figures of each stage; what it raises ends the trial.

        A trial whose node is lost begins again on another.

        Raises:
            PruneGymError: If that happens several times.
        """
        for _ in range(ATTEMPTS):
            reports = self._queue(actor_options={"num_cpus": 0})
            # In a list, so that Ray hands on the reference and the node fetches the model when it begins.
            reference = self._remote.remote([self._model], recipe, reports)
            try:
                archive = self._wait(reference, reports, watch)
            except self._ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise (cause if isinstance(cause, PruneGymError) else error.as_instanceof_cause()) from error
            except self._ray.exceptions.RayError as error:
                lost = error
                continue
            finally:
                reports.shutdown(force=True)
            return unpack(archive, folder)
        raise PruneGymError(f"The node of {folder.name} was lost {ATTEMPTS} times. The last time: {lost}")

    def _wait(self, reference: Any, reports: Any, watch: StageReport) -> bytes:
        try:
            while True:
                ended, _ = self._ray.wait([reference], timeout=WAIT)
                for stage, row in reports.get_nowait_batch(reports.qsize()):
                    watch(stage, row)
                if ended:
                    found: bytes = self._ray.get(reference)
                    return found
        except BaseException:
            self._ray.cancel(reference, force=True)
            raise

    def close(self) -> None:
        """Leave the cluster if this object joined it."""
        if self._begun:
            self._ray.shutdown()


def remote_trial(model: list[Any], recipe: Any, reports: Any) -> bytes:
    """Train on a node, in a separate folder, and return the folder as an archive."""
    import ray
    import torch

    torch.set_num_threads(1)  # one processor is reserved for it
    scratch = Path(os.environ.get(SCRATCH) or tempfile.gettempdir()) / "prunegym-cells"
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=scratch))
    found: Bundle = ray.get(model[0])
    try:
        train_agent(
            found.masked, found.info, found.data["train"], found.data["validation"], recipe, folder,
            policy=found.policy, seed=found.seed, device=found.device, progress=False,
            report=lambda stage, row: reports.put((stage, row)),
        )  # fmt: skip
        return pack(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
