"""Measuring a latency table: each step of a network at a few kept widths, checked against end-to-end time."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.gating.static_policy import Policy
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.program.path import Clock
from prunegym.models.storage.run_folder import machine, versions
from prunegym.models.timing.latency_table import Axis, LatencyTable, Part
from prunegym.models.timing.latency_timers import Counts, Timer, clock_named, policy_timer, seconds_of
from prunegym.validation import whole_number

QUARTERS = 4
Samples = dict[tuple[float, float], list[float]]
"""Seconds by the numbers of input and output channels."""


@torch.inference_mode()
def measure(
    masked: MaskedCNN,
    timer: Timer,
    policy: Policy | None = None,
    *,
    clock: str = "wall",
    rounds: int = 15,
    validation_masks: int = 16,
    seed: int = 0,
) -> LatencyTable:
    """Measure a table, medians over rounds, and compare it with end-to-end time under random masks.

    Gates that meet in a layer get every pair of widths. All other gates change at the same time.

    Args:
        masked: The CNN.
        timer: Runs the CNN and times its parts.
        policy: Its policy. Its decisions are timed as the timer runs them, or else in torch.
        clock: Clock of the policy's and the end-to-end time; ``cpu`` is the process's time, for one thread on a busy
            machine.
        rounds: Runs of each pattern of widths.
        validation_masks: Random masks, each gate's kept share drawn from 0.1 to 1, on which the error is reported.
        seed: Seed of the masks.

    Returns:
        The table; ``validation`` has ``masks``, ``mean_error`` and ``max_error`` (shares of the measured time),
        ``predicted`` and ``measured`` (seconds).
    """
    whole_number("rounds", rounds)
    whole_number("validation_masks", validation_masks)
    generator = torch.Generator().manual_seed(seed)
    timing = clock_named(clock, masked)
    groups: dict[tuple[Counts, Counts], list[str]] = defaultdict(list)
    for name, dependence in timer.parts.items():
        groups[dependence].append(name)
    colours = _colours(len(masked.gates), list(groups))
    samples: dict[tuple[Counts, Counts], Samples] = {dependence: defaultdict(list) for dependence in groups}
    grids = [kept_widths(gate.width) for gate in masked.gates]
    for places in itertools.product(range(len(grids[0])), repeat=max(colours) + 1):
        kept = [grid[places[colour]] for colour, grid in zip(colours, grids, strict=True)]
        times = _median_parts(timer, _mask_of(masked, kept, generator), rounds)
        widths = torch.tensor([*kept, 1], dtype=torch.float64)
        for dependence, names in groups.items():
            read, made = (float(torch.tensor(counts, dtype=torch.float64) @ widths) for counts in dependence)
            # Once for each setting of the other gates.
            samples[dependence][read, made].append(sum(times[name] for name in names))
    fixed = [itertools.chain(*samples[key].values()) for key in groups if not _gated(key)]
    table = LatencyTable(
        execution=timer.name,
        gates=tuple((gate.name, gate.width) for gate in masked.gates),
        fixed=float(sum(map(statistics.median, fixed))),
        parts=tuple(_part_of(names[0], key, samples[key]) for key, names in groups.items() if _gated(key)),
        policy=0.0 if policy is None else _median(policy_timer(timer, policy), rounds),
        machine={**machine(), "prunegym": versions()["prunegym"]},
    )
    masks = list(random_masks(validation_masks, [gate.width for gate in masked.gates], generator, 0.1, 1.0))
    return dataclasses.replace(table, validation=_validation(table, timer, masks, rounds, timing))


def kept_widths(width: int) -> list[int]:
    """Return the kept widths of a gate at which times are measured: none, about each quarter, all but one, all.

    Layers are fastest with multiples of 8 channels, which fill vectors. Masks rarely keep such a number, so the
    quarters avoid them.
    """
    quarters = [min(round(width * part / QUARTERS) + 1, width) for part in range(1, QUARTERS)]
    return [0, *quarters, max(width - 1, 0), width]


def _colours(gates: int, dependences: list[tuple[Counts, Counts]]) -> list[int]:
    """Colour gates so that those that a layer reads differ from those that it makes."""
    pairs = itertools.permutations(range(gates), 2)
    apart = {frozenset(pair) for pair in pairs for read, made in dependences if read[pair[0]] and made[pair[1]]}
    colours: list[int] = []
    for gate in range(gates):
        taken = {colours[other] for other in range(gate) if frozenset((gate, other)) in apart}
        colours.append(next(colour for colour in itertools.count() if colour not in taken))
    if max(colours) > 2:
        raise InvalidInputError(
            f"{max(colours) + 1} gates of the network meet in one layer: too many combinations of widths to time. "
            " Use the reward 'macs', or fewer gates: MaskedCNN(..., gates=[...])."
        )
    return colours


def _gated(dependence: tuple[Counts, Counts]) -> bool:
    """Whether a part of the network reads or makes channels of a gate."""
    return any(any(counts[:-1]) for counts in dependence)


def _mask_of(masked: MaskedCNN, kept: list[int], generator: torch.Generator) -> Tensor:
    parts = [
        torch.randperm(gate.width, generator=generator) < number
        for gate, number in zip(masked.gates, kept, strict=True)
    ]
    return torch.cat(parts)


def random_masks(
    batch: int, widths: list[int], generator: torch.Generator, low: float = 0.3, high: float = 0.7
) -> Tensor:
    """Draw masks whose kept share of each gate is drawn for each image: (batch, mask_size) bool."""
    parts = []
    for width in widths:
        share = low + (high - low) * torch.rand(batch, 1, generator=generator)
        ranks = torch.rand(batch, width, generator=generator).argsort(1).argsort(1)
        parts.append(ranks < (share * width).round().clamp(min=1))
    return torch.cat(parts, 1)


def _median_parts(timer: Timer, mask: Tensor, rounds: int) -> dict[str, float]:
    timed, _ = timer.prepare(mask)
    timed()
    runs = [timed() for _ in range(rounds)]
    medians = {name: statistics.median(run[name] for run in runs) for name in timer.parts}
    # Disturbances affect different parts in each run, so the sum of medians is less than the time of any run.
    whole = statistics.median(sum(run[name] for name in timer.parts) for run in runs)
    scale = whole / sum(medians.values()) if whole > 0 else 1.0  # a coarse clock may return 0
    return {name: value * scale for name, value in medians.items()}


def _part_of(name: str, key: tuple[Counts, Counts], times: Samples) -> Part:
    points = [tuple(sorted({point[side] for point in times})) for side in (0, 1)]
    inputs, outputs = (
        Axis({gate: count for gate, count in enumerate(counts[:-1]) if count}, counts[-1], column)
        for counts, column in zip(key, points, strict=True)
    )
    seconds = tuple(tuple(statistics.median(times[row, column]) for column in points[1]) for row in points[0])
    return Part(name, inputs, outputs, seconds)


def _median(seconds: Callable[[], float], rounds: int) -> float:
    """Return the median of a function's results, after a first call to warm up."""
    seconds()
    return statistics.median(seconds() for _ in range(rounds))


def _validation(table: LatencyTable, timer: Timer, masks: list[Tensor], rounds: int, clock: Clock) -> dict[str, Any]:
    measured = [_median(functools.partial(seconds_of, timer.prepare(mask)[1], clock), rounds) for mask in masks]
    predicted = table.seconds(torch.stack(masks)).tolist()
    # The relative error, |predicted - measured| / measured.
    errors = [abs(guess - truth) / truth for guess, truth in zip(predicted, measured, strict=True)]
    return {
        "masks": len(masks), "mean_error": statistics.mean(errors), "max_error": max(errors), "predicted": predicted,
        "measured": measured,
    }  # fmt: skip
