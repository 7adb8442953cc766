"""Measuring which execution path is the fastest on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from prunegym.models.skipping.program.path import ExecutionPath
from prunegym.models.stopwatch import clock_for, settle

ROUNDS = 5
LONG = 0.2
"""Seconds. Where the fastest path takes longer, it is run once after its warm-up, which is precise enough."""


Key = tuple[int, int, int]
"""Powers of two of the batch, threads, powers of two of the distinct masks."""


@dataclasses.dataclass(frozen=True)
class ExecutionChoice:
    """Which path was chosen for batches of a size, and why.

    Attributes:
        execution: The name of the path.
        seconds: The shortest time of each path, for one call with ``images`` images. Slow paths were run once only.
        images: Number of images in the measurement.
        threads: Threads of torch at that time.
        masks: Distinct masks of these images; 0 where the path decides the masks.
    """

    execution: str
    seconds: Mapping[str, float]
    images: int
    threads: int
    masks: int

    @property
    def key(self) -> Key:
        """The batches that the choice holds for."""
        return self.images.bit_length(), self.threads, self.masks.bit_length()

    @property
    def reason(self) -> str:
        """One line for people."""
        ranked = sorted(self.seconds, key=self.seconds.__getitem__)
        times = ", ".join(f"{name} {1e3 * self.seconds[name]:.3g} ms" for name in ranked)
        return f"{self.execution} is the fastest of: {times} ({self.images} images, {self.threads} threads)"


def fastest_path(
    paths: Mapping[str, ExecutionPath], images: Tensor, mask: Tensor | None, penalty: float | None, masks: int
) -> ExecutionChoice:
    """Time all paths in turn on some images.

    Args:
        paths: The paths by name.
        images: (batch, channels, height, width) float.
        mask: (batch, mask_size) bool, or None if the paths decide.
        penalty: lambda, for a policy that takes one.
        masks: See :attr:`ExecutionChoice.masks`.

    Returns:
        The fastest.
    """
    seconds: dict[str, list[float]] = {}
    for name, path in paths.items():
        path.run(images, mask, penalty)  # warms up
        seconds[name] = _times(path, images, mask, penalty, 1)
    best = min(values[0] for values in seconds.values())
    close = [name for name, values in seconds.items() if values[0] < min(2 * best, LONG)]
    for name in close if len(close) > 1 else ():
        seconds[name] += _times(paths[name], images, mask, penalty, ROUNDS)
    # The minimum, not the median: other work on the machine only adds to a time.
    shortest = {name: min(values) for name, values in seconds.items()}
    fastest = min(shortest, key=shortest.__getitem__)
    return ExecutionChoice(fastest, shortest, len(images), torch.get_num_threads(), masks)


def distinct(mask: Tensor | None) -> int:
    """Return how many masks (batch, mask_size) bool differ; 0 for None.

    Rows are compared by one number each, a sum of random numbers over the kept channels. This runs for each batch, and
    comparing bit by bit would take longer.
    """
    if mask is None or len(mask) < 2:
        return 0 if mask is None else 1
    numbers = torch.rand(mask.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return len(torch.unique(mask.double() @ numbers.to(mask.device)))


def _times(path: ExecutionPath, images: Tensor, mask: Tensor | None, penalty: float | None, rounds: int) -> list[float]:
    if not images.is_cuda:
        settle(lambda: path.run(images, mask, penalty))
    clock, seconds = clock_for(images.device), []
    for _ in range(rounds):
        path.forget()  # the next images have other masks, so weights gathered for these must not speed up the next run
        start = clock()
        path.run(images, mask, penalty)
        seconds.append(clock() - start)
    return seconds
