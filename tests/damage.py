"""Hypothesis strategies that damage files: bytes flipped, cut and added, and JSON fields of another kind or value."""

from __future__ import annotations

import copy
import os
import resource
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings, strategies as st

from prunegym.errors import PruneGymError

Value = TypeVar("Value")

bounded = settings(
    max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
"""The same examples in every run, and not many."""

OTHERS = (
    None, True, -1, 0, 1.5, 2**40, 10**30, float("nan"), float("inf"), -1e308, "", "x", "9" * 300, [], [[]], {},
    {"a": 1}, [None], [-1, "b"],
)  # fmt: skip
"""Values of other kinds than a field has."""


Change = tuple[str, float, int, bytes]
"""What is done to a file's bytes, at which share of its length, and with what."""


@st.composite
def _place(draw: st.DrawFn) -> float:
    """Return a share of the length; more often near the ends, where headers are."""
    near = draw(st.floats(0, 1)) * draw(st.sampled_from((1.0, 0.1, 0.01)))
    return 1 - near if draw(st.booleans()) else near


changes = st.lists(
    st.tuples(
        st.sampled_from(("flip", "flip", "set", "cut", "end", "add")), _place(), st.integers(0, 63),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


def damaged(whole: bytes, made: list[Change]) -> bytes:
    """Return a copy of a file with some changes."""
    data = bytearray(whole)
    for kind, share, number, added in made:
        place = int(share * max(0, len(data) - 1))
        if kind == "flip" and data:
            data[place] ^= 1 << number % 8
        elif kind == "set" and data:
            data[place] = (0, 1, 127, 128, 255)[number % 5]
        elif kind == "cut":
            del data[place : place + number]
        elif kind == "end":
            del data[place:]
        elif kind == "add":
            data[place:place] = added
    return bytes(data)


@st.composite
def altered(draw: st.DrawFn, whole: Any) -> Any:
    """Return a copy of plain JSON with one or two fields, at any depth, gone, added or of another kind."""
    content = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 2))):
        inner = content
        while True:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(inner[key], dict | list) and inner[key] and draw(st.integers(0, 3)):
                inner = inner[key]
                continue
            if draw(st.integers(0, 4)) == 0:
                del inner[key]
            else:
                inner[key] = copy.deepcopy(draw(st.sampled_from(OTHERS)))
            break
    return content


def refused(use: Callable[[], Value]) -> Value | None:
    """Use something damaged; return what it gives, or None if it was refused by an error of PruneGym's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return use()
        except PruneGymError:
            return None


def in_little_memory(use: Callable[[], object], more: int = 128 << 20) -> str:
    """Use something hostile in a child with little more memory than this process; return how it ended.

    Returns:
        The message of an error of PruneGym's own; or "read", or any other error, or the signal that ended the child.
    """
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        said = b"read"
        try:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + more, size + more))
            signal.alarm(60)
            use()
        except PruneGymError as error:
            said = str(error).encode()
        except BaseException as error:  # the parent looks at it
            said = f"{type(error).__name__}: {error}".encode()
        os.write(sender, said[:4000])
        os._exit(0)
    os.close(sender)
    _, status = os.waitpid(child, 0)
    with os.fdopen(receiver, "rb") as stream:
        return stream.read().decode() or f"ended by status {status}"
