"""Which gates are worth removing channels for, from a table of measured layer times."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from prunegym.models.skipping.program import Conv, Linear, Program

ROUNDS, FEWEST = 7, 2
LIMIT = 1.0
"""Seconds after which no further round begins."""


@dataclasses.dataclass(frozen=True)
class GateWay:
    """How a gate's channels are masked in the torch path.

    Attributes:
        gate: Its index.
        layer: The convolution that makes its channels.
        compact: Whether masked channels are removed, instead of computed and masked.
        seconds_compact: Of the layers that make and read the channels, if they are removed; the other gates as taken.
        seconds_full: The same if they are computed.
    """

    gate: int
    layer: str
    compact: bool
    seconds_compact: float
    seconds_full: float


def mix(
    program: Program, timed: Callable[[AbstractSet[int]], dict[str, float]], fewest: int = FEWEST
) -> tuple[GateWay, ...]:
    """Find the fastest mix of compact gates and full ones.

    A layer's time depends on the gate before it and the one behind it alone. Gates form chains and trees, so four runs
    show each layer in all of its up to four forms: all compact, none, and every other gate along a chain either way.

    Args:
        program: The network.
        timed: From the gates that are compact to each layer's seconds.
        fewest: Rounds of measuring however long they take.

    Returns:
        What is best for each gate.
    """
    table = _Table(program)
    everything = frozenset(range(len(program.widths)))
    other = frozenset(gate for gate in everything if table.depth[gate] % 2)
    begun = time.perf_counter()
    for number in range(ROUNDS):
        if number >= fewest and time.perf_counter() - begun > LIMIT:
            break
        for compact in (everything, frozenset(), other, everything - other):
            table.take(compact, timed(compact))
    return table.best()


class _Table:
    """The shortest times of each layer by the states of the gates around it: True for compact."""

    def __init__(self, program: Program) -> None:
        self._around: dict[str, tuple[int | None, int | None]] = {}
        self._readers: dict[int | None, list[str]] = {}
        self._producers: dict[int, str] = {}
        self._labels: dict[int, str] = {}
        self._before: dict[int, int | None] = {}
        self.depth: dict[int, int] = {}
        self._seconds: dict[tuple[str, bool, bool], float] = {}
        for layer in program.layers:
            inside = program.gates.get(layer.inputs[0])
            outside = layer.gate if isinstance(layer, Conv) else None
            if outside is None and not isinstance(layer, Conv | Linear) and inside is None:
                continue
            self._around[layer.name] = (inside, outside)
            if outside is None:
                self._readers.setdefault(inside, []).append(layer.name)
                continue
            self._producers[outside], self._labels[outside] = layer.name, layer.label
            self._before[outside] = inside
            self.depth[outside] = 0 if inside is None else self.depth[inside] + 1

    def take(self, compact: AbstractSet[int], seconds: dict[str, float]) -> None:
        """Enter the times of a run."""
        for name, (inside, outside) in self._around.items():
            key = (name, inside in compact, outside in compact)
            self._seconds[key] = min(seconds[name], self._seconds.get(key, math.inf))

    def best(self) -> tuple[GateWay, ...]:
        """Return the fastest mix: from the last gate to the first what all behind a gate takes, then forwards."""
        behind: dict[tuple[int, bool], float] = {}
        for gate in sorted(self._producers, reverse=True):
            for state in (True, False):
                behind[gate, state] = sum(self._seconds[name, state, False] for name in self._readers.get(gate, ()))
                for follower in self._followers(gate):
                    behind[gate, state] += min(
                        self._seconds[self._producers[follower], state, one] + behind[follower, one]
                        for one in (True, False)
                    )
        taken: dict[int, bool] = {}
        for gate in sorted(self._producers):
            before = self._taken_before(gate, taken)
            full, compact = (
                self._seconds[self._producers[gate], before, one] + behind[gate, one] for one in (False, True)
            )
            taken[gate] = compact <= full
        return tuple(self._way(gate, taken) for gate in sorted(taken))

    def _followers(self, gate: int) -> list[int]:
        return [follower for follower, before in self._before.items() if before == gate]

    def _taken_before(self, gate: int, taken: dict[int, bool]) -> bool:
        before = self._before[gate]
        return before is not None and taken[before]

    def _way(self, gate: int, taken: dict[int, bool]) -> GateWay:
        compact, full = (
            self._seconds[self._producers[gate], self._taken_before(gate, taken), state]
            + sum(self._seconds[name, state, False] for name in self._readers.get(gate, ()))
            + sum(self._seconds[self._producers[one], state, taken[one]] for one in self._followers(gate))
            for state in (True, False)
        )
        return GateWay(gate, self._labels[gate], taken[gate], compact, full)
