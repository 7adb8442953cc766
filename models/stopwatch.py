"""Fair timing: clocks, and several forms of one computation timed alternately in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

WARM_UP = 2
TURN, MOST_CALLS = 0.005, 20
"""Seconds for which a form is called in each round, and its largest number of calls."""
SETTLE = 0.15


def clock_for(device: torch.device) -> Callable[[], float]:
    """Return a clock in seconds for work on a device that this thread starts.

    With one thread it is the thread's processor time, so that other programs on the machine do not affect choices.
    """
    if device.type == "cuda":

        def synchronised() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return synchronised
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def settle(form: Callable[[], object]) -> None:
    """Run a form until torch's worker threads leave the cores: they spin for a while after the form before.

    With one thread there are no workers. On a virtual machine with two cores they spun for a tenth of a second.
    """
    end = time.perf_counter() + SETTLE
    while torch.get_num_threads() > 1 and time.perf_counter() < end:
        form()


def median_seconds(
    forms: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    limit: float = float("inf"),
    turn: float = TURN,
    most_calls: int = MOST_CALLS,
) -> dict[str, float]:
    """Return the median seconds of each form; each round times all forms one after the other.

    Short forms are called several times in each round, as in a loop that classifies many images. Otherwise their time
    would include cache misses that the other forms caused.

    Args:
        forms: The forms.
        rounds: Rounds after the first two, which warm up.
        clock: Returns seconds.
        limit: Seconds after which no further round starts; there is at least one round.
        turn: Seconds for which a short form is called in each round.
        most_calls: Its largest number of calls in a round.
    """
    times: dict[str, list[float]] = {name: [] for name in forms}
    calls = dict.fromkeys(forms, 1)
    begun = time.perf_counter()
    for number in range(rounds + WARM_UP):
        if number > WARM_UP and time.perf_counter() - begun > limit:
            break
        for name, form in forms.items():
            settle(form)
            start = clock()
            for _ in range(calls[name]):
                form()
            seconds = (clock() - start) / calls[name]
            if number >= WARM_UP:
                times[name].append(seconds)
            elif number == WARM_UP - 1:
                calls[name] = max(1, min(most_calls, int(turn / max(seconds, 1e-9))))
    return {name: statistics.median(values) for name, values in times.items()}
