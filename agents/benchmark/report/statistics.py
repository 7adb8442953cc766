"""Figures over tasks and seeds together, through rliable: interquartile means, improvements, performance profiles."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.benchmark.records import Where
from prunegym.agents.benchmark.validation.leaderboard import rank_key
from prunegym.agents.comparison.table import Comparison
from prunegym.errors import MissingDependencyError

Scores = dict[str, NDArray[np.float64]]
NEEDED = "The figures over tasks and seeds need rliable: pip install 'prunegym[benchmark]'."
LEVELS = 41
"""Scores at which performance profiles are computed."""


def scores_of(tables: Mapping[Where, Comparison]) -> Scores:
    """Return the scores of each agent, (seeds, places) float64, over all places that every agent has.

    A place is a task at a lambda or budget. Its score is the task's own reward or else the figure ``reward``, scaled so
    that 0 is the mean of the worst agent there and 1 that of the best. An agent's rows are the seeds that it has at all
    places; one that does not depend on the seed has one row. Agents without a result for a place, or without a seed
    that all places have, are left out.
    """
    found: dict[str, list[dict[int, float]]] = {}
    for table in tables.values():
        raw = {row.name: {seed: one.figures[rank_key(row)] for seed, one in row.results.items()} for row in table.rows}
        means = [float(np.mean([*values.values()])) for values in raw.values()]
        low, width = min(means), max(means) - min(means) or 1.0
        for name, values in raw.items():
            found.setdefault(name, []).append({seed: (value - low) / width for seed, value in values.items()})
    rows = {name: _common(places) for name, places in found.items() if len(places) == len(tables)}
    return {name: np.asarray(scores, np.float64) for name, scores in rows.items() if scores}


def _common(places: list[dict[int, float]]) -> list[list[float]]:
    """Return the scores at all places of each seed that they have in common; of single runs, whatever their seeds."""
    if all(len(scores) == 1 for scores in places):
        return [[next(iter(scores.values())) for scores in places]]
    seeds = sorted(set.intersection(*(set(scores) for scores in places)))
    return [[scores[seed] for scores in places] for seed in seeds]


def summary(tables: Mapping[Where, Comparison], reps: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Return what rliable (Agarwal et al. 2021) says of a benchmark, as plain JSON.

    Args:
        tables: Comparisons by place.
        reps: Samples of the stratified bootstrap: seeds are drawn with replacement within each place.
        seed: Of the bootstrap.

    Returns:
        ``iqm``: for each agent the interquartile mean of :func:`scores_of` and its 95 % interval; ``improvement``: the
        probability that its run is better than one of the first table's reference, with the interval (None for an agent
        with one run of each task); ``profile``: the
        share of runs with a score above each of ``levels``; ``reference``, ``levels`` and ``left_out``.

    Raises:
        MissingDependencyError: If rliable is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages that rliable imports
            from rliable import library, metrics
    except ImportError as error:
        raise MissingDependencyError(f"{NEEDED} ({error})") from error
    scores, first = scores_of(tables), next(iter(tables.values()))
    names = {row.name for table in tables.values() for row in table.rows}
    if not scores:
        return {"iqm": {}, "improvement": {}, "profile": {}, "levels": [], "left_out": sorted(names)}
    random = np.random.RandomState(seed)

    def estimated(of: Any, measure: Any) -> dict[str, list[float | None]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of arch, about how rliable seeds it
            points, bounds = library.get_interval_estimates(of, measure, reps=reps, random_state=random)
        # Drawn again with replacement, one run is always the same run: that is no interval.
        spread = {name: len(scores[name]) > 1 for name in points}
        ends = {name: [float(end[0]) if spread[name] else None for end in bounds[name]] for name in points}
        return {name: [float(np.squeeze(points[name])), *ends[name]] for name in points}

    iqm = estimated(scores, lambda values: np.array([metrics.aggregate_iqm(values)]))
    improvement: dict[str, list[float | None]] = {}
    if first.reference in scores and len(scores) > 1:
        pairs = {name: (own, scores[first.reference]) for name, own in scores.items() if name != first.reference}
        improvement = estimated(pairs, lambda own, other: np.array([metrics.probability_of_improvement(own, other)]))
    levels = np.linspace(min(map(np.min, scores.values())), max(map(np.max, scores.values())), LEVELS)
    profile = {name: [float((own > level).mean()) for level in levels] for name, own in scores.items()}
    return {
        "iqm": iqm,
        "improvement": improvement,
        "profile": profile,
        "levels": levels.tolist(),
        "reference": first.reference,
        "left_out": sorted(names - set(scores)),
    }
