"""The table of a comparison: means with intervals, and paired differences from the reference."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prunegym.agents.comparison.results import Interval, Result, interval
from prunegym.agents.evaluation.evaluator import JSON_KEYS
from prunegym.html import table, words

DIFFERENCES = (
    "difference",
    "difference_over_seeds",
    "reward_difference",
    "reward_difference_over_seeds",
    "task_reward_difference",
)
TASK_REWARD = "task_reward"
"""The figure that a task with a reward of its own adds: the mean of that reward."""


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """An agent's line in the table.

    Attributes:
        name: Name of the agent.
        figures: For each key of :data:`JSON_KEYS` the mean over seeds with its 95 % Student-t interval. An agent that
            does not depend on the seed has no interval.
        difference: Accuracy minus the reference's, paired by image: the mean over seeds for each image, then the mean
            over images with its interval. None for the reference.
        difference_over_seeds: The same with the interval over seeds. Each run is paired with the reference's run of the
            same seed.
        reward_difference: The reward, correct - penalty * total MAC share, minus the reference's, paired by image.
        reward_difference_over_seeds: The same with the interval over seeds.
        task_reward_difference: The task's own reward minus the reference's, with the interval over seeds; None if the
            task has none.
        outcome: ``better`` or ``worse`` than the reference by the reward, or ``tie``; see :func:`outcome_of`. Empty
            for the reference, and for an agent that has no seed in common with it.
        static_seeds: Number of runs in which the policy is static.
        verdict: Verdict of the first run.
        notes: Explanations that a reader of the figures needs.
        results: The result of each seed.
    """

    name: str
    figures: dict[str, Interval]
    difference: Interval | None
    difference_over_seeds: Interval | None
    reward_difference: Interval | None
    reward_difference_over_seeds: Interval | None
    task_reward_difference: Interval | None
    outcome: str
    static_seeds: int
    verdict: str
    notes: tuple[str, ...]
    results: dict[int, Result] = dataclasses.field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """Return the row as plain JSON."""
        row = {**vars(self), "seeds": {seed: result.figures for seed, result in self.results.items()}}
        del row["results"]
        plain: dict[str, Any] = json.loads(json.dumps(row, default=dataclasses.asdict))
        return plain


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """The table of a comparison.

    Attributes:
        dataset: Name and split.
        reference: Name of the row that others are compared with. Its MAC share is the budget of the baselines.
        seeds: The seeds.
        rows: The rows, in the order of the entries.
    """

    dataset: str
    reference: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]

    @property
    def seed_count(self) -> str:
        """The number of seeds, as ``5 seeds``."""
        return f"{len(self.seeds)} seed{'s' * (len(self.seeds) != 1)}"

    def __repr__(self) -> str:
        """Return each agent's accuracy and MAC share in a line."""
        shown = [
            f"{row.name} {row.figures['accuracy'].mean:.4f} at {row.figures['total_mac_share'].mean:.3f} of the MACs"
            for row in self.rows
        ]
        return f"Comparison({self.dataset}, {self.seed_count}: {'; '.join(shown)})"

    def _repr_html_(self) -> str:
        keys = ("accuracy", "total_mac_share", "static_accuracy", "shuffled_accuracy", "reward")
        rows = [[row.name, *(row.figures[key].mean for key in keys), row.verdict] for row in self.rows]
        columns = ["agent", *(words(key) for key in keys), "verdict"]
        return table(columns, rows, f"{self.dataset}, means over {self.seed_count}")

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as plain JSON."""
        return {**vars(self), "seeds": list(self.seeds), "rows": [row.as_json() for row in self.rows]}


Pairs = Sequence[tuple[Result, Result]]
"""Results of an agent and of the reference that belong together."""


def paired(
    results: Mapping[int, Result], reference: Mapping[int, Result], each: bool = True, reference_each: bool = True
) -> Pairs:
    """Pair the results of the same seed. One that does not depend on the seed is paired with each of the other's.

    Args:
        results: Of an agent, by seed.
        reference: Of the agent that differences are counted from.
        each: Whether the agent depends on the seed; else it has one result.
        reference_each: Whether the reference does.

    Returns:
        The pairs; none if both depend on the seed, but no seed is common.
    """
    if each and reference_each:
        return [(results[seed], reference[seed]) for seed in sorted(results) if seed in reference]
    one, other = next(iter(results.values())), next(iter(reference.values()))
    if each:
        return [(result, other) for result in results.values()]
    return [(one, result) for result in (reference.values() if reference_each else [other])]


def row_of(name: str, results: dict[int, Result], pairs: Pairs | None, penalty: float) -> Row:
    """Return an agent's line.

    Args:
        name: Of the agent.
        results: Its results by seed.
        pairs: Of :func:`paired`; None for the reference itself. Without any, there are no differences and no outcome.
        penalty: lambda in the figure ``reward``.
    """
    keys = [*JSON_KEYS, *(key for key in (TASK_REWARD,) if key in next(iter(results.values())).figures)]
    figures = {key: interval([result.figures[key] for result in results.values()]) for key in keys}
    differences: dict[str, Interval | None] = dict.fromkeys(DIFFERENCES)
    if pairs:
        # At lambda 0 the reward is the accuracy.
        for key, price in (("difference", 0.0), ("reward_difference", penalty)):
            # Paired differences (pairs, images): their means over pairs give the interval over images, and the reverse.
            gaps = torch.stack([own.rewards(price) - other.rewards(price) for own, other in pairs])
            differences[key] = interval(gaps.mean(0).tolist())
            differences[f"{key}_over_seeds"] = interval(gaps.mean(1).tolist())
        if TASK_REWARD in figures:
            own_gaps = [own.figures[TASK_REWARD] - other.figures[TASK_REWARD] for own, other in pairs]
            differences["task_reward_difference"] = interval(own_gaps)
    notes = tuple(dict.fromkeys(note for result in results.values() for note in result.notes))
    static = sum(result.is_static for result in results.values())
    verdict = next(iter(results.values())).verdict
    return Row(
        name, figures, **differences, outcome=outcome_of(differences), static_seeds=static, verdict=verdict,
        notes=notes, results=results,
    )  # fmt: skip


def outcome_of(differences: Mapping[str, Interval | None]) -> str:
    """Return ``better``, ``worse`` or ``tie``; empty for the reference itself.

    What counts is the task's own reward if it has one, else the figure ``reward``. A difference counts only if 0 is
    outside of its interval, over images and over seeds.
    """
    own = differences.get("task_reward_difference")
    keys = ("reward_difference", "reward_difference_over_seeds")
    found = [own] if own is not None else [gap for key in keys if (gap := differences.get(key)) is not None]
    if not found:
        return ""
    # One seed has no interval over seeds, but one over images.
    sure = [gap for gap in found if gap.half_width is not None]
    if not sure or any(abs(gap.mean) <= (gap.half_width or 0.0) for gap in sure):
        return "tie"
    return "better" if found[0].mean > 0 else "worse"


def of_seed(results: Mapping[int, Result], seed: int) -> Result:
    """Return the result of a seed; an entry that does not depend on the seed has only one."""
    return results.get(seed) or next(iter(results.values()))
