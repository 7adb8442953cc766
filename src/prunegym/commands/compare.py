"""``compare``: agents side by side, trained and evaluated for each seed, with intervals."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from prunegym.commands.evaluate import Dense, Penalty, Split
from prunegym.commands.options import (
    DataRoot,
    DatasetName,
    Device,
    JsonFlag,
    Out,
    Quiet,
    Resume,
    Threads,
    TrainImages,
    settle,
)
from prunegym.commands.output import emit, note, table
from prunegym.commands.train import Environments, Episodes, EvalImages, TargetMacs, override
from prunegym.models.catalog import open_split, open_trained
from prunegym.models.storage.model_file import read_model
from prunegym.models.storage.run_folder import begin_run, command_line, finish_run, machine
from prunegym.models.storage.weights import save_text

if TYPE_CHECKING:
    from prunegym.agents.comparison.comparing import Comparison
    from prunegym.agents.comparison.statistics import Interval


def compare(
    entries: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE...",
            help="Recipes; also baselines, rivals, start, start-best-offset, model files ({seed} in the path: one a "
            "seed) or module:name; LABEL=ENTRY gives another name.",
        ),
    ],
    out: Out,
    model: Annotated[
        str, typer.Option("--model", help="The CNN, with gates or without; {seed} in its path: another for each seed.")
    ] = "digits",
    agent: Annotated[list[str] | None, typer.Option("--agent", help="module:name of an agent; repeatable.")] = None,
    dataset: DatasetName = None,
    data_root: DataRoot = None,
    split: Split = "test",
    images: Annotated[int | None, typer.Option(help="So many images only, drawn with a fixed seed.")] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.", min=1)] = 5,
    penalty: Penalty = 0.5,
    dense: Dense = None,
    episodes: Episodes = None,
    n_envs: Environments = None,
    eval_images: EvalImages = None,
    target_macs: TargetMacs = None,
    train_images: TrainImages = None,
    device: Device = "cpu",
    threads: Threads = None,
    resume: Resume = False,
    quiet: Quiet = False,
    as_json: JsonFlag = False,
) -> None:
    """Train and evaluate agents side by side; baselines spend what the first one spends. OUT/comparison.json.

    With --resume the folder may get other entries, seeds or another split (comparison-SPLIT.json): trained agents and
    evaluations that are there are used again.
    """
    from prunegym.agents.comparison.comparing import check_entries, compare as compare_agents
    from prunegym.agents.comparison.entries import SEED_MARK, as_entry, file_of

    settle(data_root, threads)
    each = {seed: open_trained(file_of(model, seed)) for seed in range(seeds if SEED_MARK in model else 1)}
    stored = each[0]
    if stored.policy is None and all(":" in entry for entry in entries):
        note("The model has no gates of its own: agents decide from the standard features.", quiet)
    names = [*entries, *(agent or [])]
    changes = {"episodes": episodes, "n_envs": n_envs, "eval_images": eval_images, "target_macs": target_macs}
    things = [as_entry(_entry(name, changes)) for name in names]
    check_entries(things, range(seeds))
    data = open_split(stored.info, dataset, split, images)
    train = open_split(stored.info, dataset, "train", span=train_images)
    begin_run(out, {"model": model, "dataset": data.name, "train_images": train.span, **changes}, resume)
    started = time.perf_counter()
    found = compare_agents(
        things,
        each if SEED_MARK in model else stored,
        data,
        range(seeds),
        out=out,
        train=train,
        validation=open_split(stored.info, dataset, "validation"),
        penalty=penalty,
        dense=None if dense is None else read_model(dense).masked.network,
        device=device,
        report=lambda name, seed, result: note(
            f"{name}, seed {seed}: accuracy {result.figures['accuracy']:.4f}, "
            f"total MAC share {result.figures['total_mac_share']:.3f}",
            quiet,
        ),
    )
    document = {**found.as_json(), "penalty": penalty, "command": command_line(), "machine": machine()}
    file = out / ("comparison.json" if split == "test" else f"comparison-{split}.json")
    save_text(file, json.dumps(document, indent=1) + "\n")
    finish_run(out, time.perf_counter() - started)
    emit(document, as_json, comparison_table(found), *[f"{row.name}: {row.verdict}" for row in found.rows])


def _entry(name: str, changes: Mapping[str, Any]) -> Any:
    from prunegym.agents.baselines.cheap import BASELINES
    from prunegym.agents.comparison.entries import STARTS, TRAINED_BASELINES, as_entry, split_label
    from prunegym.agents.rl.recipe_files import load_recipe

    label, thing = split_label(name)
    if ":" in thing or thing in {*BASELINES, *TRAINED_BASELINES, *STARTS} or thing.endswith(".safetensors"):
        return as_entry(name)
    entry = as_entry(override(load_recipe(thing), **changes))
    return entry if label is None else dataclasses.replace(entry, name=label)


def comparison_table(found: Comparison) -> Table:
    """Return a table with a line for each agent: means over seeds with 95 % intervals."""
    columns = [
        "agent", "accuracy", "difference", "total MACs", "static", "shuffled", "reward", "difference", "static seeds",
    ]  # fmt: skip
    rows = []
    for row in found.rows:
        figures = row.figures
        shares = [_interval(figures[key], 100) for key in ("static_accuracy", "shuffled_accuracy")]
        rows.append(
            [row.name, _interval(figures["accuracy"], 100), _interval(row.difference, 100),
             _interval(figures["total_mac_share"], 1), *shares, _interval(figures["reward"], 1),
             _interval(row.reward_difference, 1),
             f"{row.static_seeds} of {len(row.results)}"]
        )  # fmt: skip
    caption = (
        f"Means over seeds with 95 % intervals; accuracies in %. difference: of accuracy, then of reward, from "
        f"{found.reference}, paired by image."
    )
    return table(f"{found.dataset}, {len(found.seeds)} seeds", columns, rows, caption)


def _interval(value: Interval | None, factor: float) -> str:
    if value is None:
        return ""
    digits = 2 if factor == 100 else 4
    half = "" if value.half_width is None else f" +-{factor * value.half_width:.{digits}f}"
    return f"{factor * value.mean:.{digits}f}{half}"
