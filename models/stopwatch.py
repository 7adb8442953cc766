"""Fair timing: clocks, and forms of one computation timed in one process and in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

WARM_UP = 2
TURN, MOST_CALLS = 0.005, 20
"""Seconds that a form is called for at each turn, and how often at most."""
SETTLE = 0.15


def clock_for(device: torch.device) -> Callable[[], float]:
    """Return what gives seconds for work on a device that is asked for in this thread.

    With one thread it is the thread's own time, so that what else runs on the machine changes no choice.
    """
    if device.type == "cuda":

        def synchronised() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return synchronised
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def settle(form: Callable[[], object]) -> None:
    """Run a form until torch's workers, which spin for a while after the form before, leave the cores to it.

    On one thread there are none. On a virtual machine of two cores they were seen to spin for a tenth of a second.
    """
    end = time.perf_counter() + SETTLE
    while torch.get_num_threads() > 1 and time.perf_counter() < end:
        form()


def median_seconds(
    forms: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    limit: float = float("inf"),
) -> dict[str, float]:
    """Return the median seconds of each form, all taken in turn, round after round.

    What is short is called several times at each turn, as in a loop that classifies image after image; else its time
    would include loading code and weights into caches that the other forms have filled.

    Args:
        forms: The forms.
        rounds: Rounds after the first two, which warm up.
        clock: Returns seconds.
        limit: Seconds after which no further round begins; at least one is made.
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
                calls[name] = max(1, min(MOST_CALLS, int(TURN / max(seconds, 1e-9))))
    return {name: statistics.median(values) for name, values in times.items()}
