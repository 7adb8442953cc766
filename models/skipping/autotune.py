"""Measuring which way of running is the fastest on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from prunegym.models.skipping.program.path import Path
from prunegym.models.skipping.torch_paths.gather import GatherPath
from prunegym.models.stopwatch import clock_for, settle

ROUNDS = 5
LONG = 0.2
"""Seconds; where the fastest takes longer, one run after the first is measurement enough."""


Key = tuple[int, int, int]
"""Powers of two of the batch, threads, powers of two of the distinct masks."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was taken for batches of a size, and why.

    Attributes:
        execution: The way that was taken.
        seconds: The shortest of each way, for one call with ``images`` images; what was far behind was run once.
        images: Images that were measured with.
        threads: Threads of torch then.
        masks: Distinct masks that came with these images; 0 where masks are decided on the way.
    """

    execution: str
    seconds: Mapping[str, float]
    images: int
    threads: int
    masks: int

    @property
    def key(self) -> Key:
        """What the choice holds for."""
        return self.images.bit_length(), self.threads, self.masks.bit_length()

    @property
    def reason(self) -> str:
        """One line for people."""
        times = ", ".join(f"{name} {1e3 * value:.3g} ms" for name, value in sorted(self.seconds.items(), key=_second))
        return f"{self.execution} is the fastest of: {times} ({self.images} images, {self.threads} threads)"


def choose(paths: Mapping[str, Path], images: Tensor, mask: Tensor | None, penalty: float | None, masks: int) -> Choice:
    """Measure all ways in turn on some images.

    Args:
        paths: The ways.
        images: (batch, channels, height, width) float.
        mask: (batch, mask_size) bool, or None if the paths decide.
        penalty: lambda, for a policy that takes one.
        masks: See :attr:`Choice.masks`.

    Returns:
        The fastest.
    """
    seconds: dict[str, list[float]] = {}
    for name, path in paths.items():
        _time(path, images, mask, penalty)  # warms up
        _settle(path, images, mask, penalty)
        seconds[name] = [_time(path, images, mask, penalty)]
    best = min(values[0] for values in seconds.values())
    close = [name for name, values in seconds.items() if values[0] < min(2 * best, LONG)]
    for name in close if len(close) > 1 else ():
        _settle(paths[name], images, mask, penalty)
        seconds[name] += [_time(paths[name], images, mask, penalty) for _ in range(ROUNDS)]
    shortest = {name: min(values) for name, values in seconds.items()}  # what else the machine does only adds to them
    fastest = min(shortest, key=lambda name: shortest[name])
    return Choice(fastest, shortest, len(images), torch.get_num_threads(), masks)


def distinct(mask: Tensor | None) -> int:
    """Return how many masks (batch, mask_size) bool differ; 0 for None.

    Rows are told apart by a sum of random numbers instead of bit by bit: this is done for each batch.
    """
    if mask is None or len(mask) < 2:
        return 0 if mask is None else 1
    numbers = torch.rand(mask.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return len(torch.unique(mask.double() @ numbers.to(mask.device)))


def _settle(path: Path, images: Tensor, mask: Tensor | None, penalty: float | None) -> None:
    if not images.is_cuda:
        settle(lambda: path.run(images, mask, penalty))


def _time(path: Path, images: Tensor, mask: Tensor | None, penalty: float | None) -> float:
    if isinstance(path, GatherPath):
        path.forget()  # the next images have other masks; weights gathered for these would make it look too good
    clock = clock_for(images.device)
    start = clock()
    path.run(images, mask, penalty)
    return clock() - start


def _second(item: tuple[str, float]) -> float:
    return item[1]
