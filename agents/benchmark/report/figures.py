"""What a report shows of results, as plain JSON: rows of tables, learning curves and measured times."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prunegym.agents.benchmark.records import Record, Where
from prunegym.agents.benchmark.validation.reopening import open_cell, saved_agent
from prunegym.agents.benchmark.validation.validating import why_left_out
from prunegym.agents.comparison.results import MASKS, MODEL
from prunegym.agents.comparison.table import TASK_REWARD, Comparison
from prunegym.agents.evaluation.masks import Masks
from prunegym.errors import PruneGymError
from prunegym.models.data.files.bounded_files import read_json
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.skipping.skipping_cnn import SkippingCNN
from prunegym.models.stopwatch import median_seconds
from prunegym.models.storage.run_folder import machine
from prunegym.models.storage.weights import hash_of, read_weights, save_text

TIMES = "times.json"
TIMED_IMAGES, ROUNDS, LIMIT = 32, 15, 5.0
SHOWN = ("accuracy", "total_mac_share", "kept_share", "static_accuracy", "shuffled_accuracy", "reward", TASK_REWARD)


def rows_of(
    tables: Mapping[Where, Comparison],
    times: Mapping[str, Mapping[str, float]],
    groups: Mapping[Where, Mapping[str, Mapping[int, Record]]],
) -> list[dict[str, Any]]:
    """Return a row for each agent at each place.

    Each has ``task``, ``point``, ``split``, ``agent``, ``penalty`` and ``outcome``, the means and half widths of
    :data:`SHOWN`, ``seeds`` with accuracy and total MAC share of each run, and measured milliseconds if there are any;
    ``validated`` is the number of runs whose stored validation counts here.
    """
    rows = [_row(where, table, row, times) for where, table in tables.items() for row in table.rows]
    for row in rows:
        runs = groups[Where(row["task"], row["point"], row["split"])][row["agent"]].values()
        left_out = why_left_out(runs)
        row["validated"] = sum(record.folder not in left_out for record in runs)
    return rows


def _row(where: Where, table: Comparison, row: Any, times: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    runs = [result.figures for _, result in sorted(row.results.items())]
    penalty = (runs[0]["accuracy"] - runs[0]["reward"]) / max(runs[0]["total_mac_share"], 1e-9)
    figures = {key: [row.figures[key].mean, row.figures[key].half_width] for key in SHOWN if key in row.figures}
    gap = row.task_reward_difference or row.reward_difference
    return {
        **where._asdict(),
        "agent": row.name,
        "reference": row.name == table.reference,
        "penalty": round(penalty, 6),
        "outcome": row.outcome,
        "difference": None if gap is None else [gap.mean, gap.half_width],
        "static_seeds": row.static_seeds,
        "dense_accuracy": runs[0]["dense_accuracy"],
        "figures": figures,
        "seeds": [[one["accuracy"], one["total_mac_share"]] for one in runs],
        "times": times.get(f"{where.task} {where.point} {where.split} {row.name}"),
    }


def learning_curves(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return what each training by a recipe reached on validation images, from its ``monitor.json``."""
    found = []
    for record in records:
        try:
            history = read_json(record.folder / "monitor.json", "history")["history"]
            rows = [[row[key] for key in ("timesteps", "accuracy", "total_mac_share", "reward")] for row in history]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a baseline, or a run without reinforcement learning
        found.append({**record.where._asdict(), "agent": record.agent, "seed": record.seed, "rows": rows})
    return found


def measured(root: Path, groups: Mapping[Where, Mapping[str, Mapping[int, Record]]]) -> dict[str, Mapping[str, float]]:
    """Measure milliseconds of single images, of each agent's first run and of its CNN with all channels on, in turn.

    Times are stored in ``root/times.json``, and measured again on another machine or for another agent.

    Args:
        root: Folder for the file.
        groups: Records by place, agent and seed.

    Returns:
        ``milliseconds`` and ``dense_milliseconds`` by task, point, split and agent. Agents that decide outside of the
        network, and those that cannot be opened here, have none.
    """
    here = machine()
    try:
        stored = read_json(root / TIMES, "table of times")
        known = stored["times"] if stored["machine"] == here else {}
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    times = {}
    for name, record in _first_runs(groups):
        mark = _mark(record)
        if mark is None:
            continue
        if known.get(name, {}).get("agent") != mark:
            found = _timed(record)
            if found is None:
                continue
            known[name] = {"agent": mark, **found}
        times[name] = known[name]
    save_text(root / TIMES, json.dumps({"machine": here, "times": times}, indent=1) + "\n")
    return times


def _first_runs(groups: Mapping[Where, Mapping[str, Mapping[int, Record]]]) -> Iterator[tuple[str, Record]]:
    for where, agents in groups.items():
        for name, seeds in agents.items():
            yield f"{where.task} {where.point} {where.split} {name}", seeds[min(seeds)]


def _mark(record: Record) -> str | None:
    for file in (record.folder / MODEL, record.folder / MASKS):
        if file.exists():
            return hash_of(read_weights(file).items())
    return None


def _timed(record: Record) -> dict[str, float] | None:
    """Return the milliseconds of an image, in batches of one."""
    try:
        agent = saved_agent(record)
        model = open_cell(record)
    except PruneGymError:
        return None
    own = agent if isinstance(agent, DynamicCNN) else None
    masked = model.masked if own is None else own.masked
    dataset = model.data["evaluated"] if own is None else own.info.adapt(model.data["evaluated"])
    images = torch.split(dataset.batch(torch.arange(min(TIMED_IMAGES, len(dataset)))), 1)
    dense = SkippingCNN(masked)
    forms = {"dense_milliseconds": lambda: [dense(image) for image in images]}
    if own is not None:
        run = SkippingCNN(masked, own.policy)
        forms["milliseconds"] = lambda: [run(image) for image in images]
    elif isinstance(agent, Masks):
        masks = torch.split(agent.mask.expand(len(dataset), -1)[: len(images)], 1)
        pairs = list(zip(images, masks, strict=True))
        forms["milliseconds"] = lambda: [dense(image, mask) for image, mask in pairs]
    else:
        return None
    found = median_seconds(forms, ROUNDS, limit=LIMIT)
    return {name: 1e3 * seconds / len(images) for name, seconds in found.items()}
