"""``compare``: train and evaluate several agents for each seed, with confidence intervals."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunegym.commands import options as opt
from prunegym.commands.output import Table, emit, note

if TYPE_CHECKING:
    from prunegym.agents.comparison.results import Interval
    from prunegym.agents.comparison.table import Comparison


ENTRIES = (
    "What to compare: recipes, baselines, start, start-best-offset, model files ({seed} in the path means the seed), "
    "module:name or agents of SB3 (.zip). LABEL=ENTRY renames an entry."
)


PENALTY = "lambda in the column reward, which is accuracy - lambda * total MACs."


@opt.grouped
def compare(
    entries: Annotated[list[str], typer.Argument(metavar="RECIPE...", help=ENTRIES)],
    run: opt.Run,
    data: opt.TrainingData,
    network: opt.Network,
    model: Annotated[str, typer.Option(help="The CNN, with gates or without; may have {seed} in its path.")] = "digits",
    split: opt.Split = "test",
    images: opt.Images = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.", min=1)] = 5,
    penalty: Annotated[float, typer.Option(min=0.0, callback=opt.finite, help=PENALTY)] = 0.5,
    dense: opt.DenseFile = None,
    trust_code: opt.TrustCode = False,
    episodes: opt.Episodes = None,
    target_macs: opt.TargetMacs = None,
    settings: opt.Settings = None,
) -> None:
    """Train several agents and evaluate them with baselines that get the first entry's MAC budget.

    Writes OUT/comparison.json. With --resume you can add entries, seeds or
    another split (comparison-SPLIT.json); trained agents are reused.
    """
    from prunegym.agents.comparison.contest import Contest, check_entries
    from prunegym.agents.comparison.entries import SEED_MARK, file_of
    from prunegym.models.catalog import open_split
    from prunegym.models.storage.model_file import read_model
    from prunegym.models.storage.run_folder import begin_run, command_line, finish_run, machine
    from prunegym.models.storage.weights import save_text

    run.settle(data)
    each = {seed: network.open(file_of(model, seed), data) for seed in range(seeds if SEED_MARK in model else 1)}
    stored = each[0]
    if stored.policy is None and all(":" in entry for entry in entries):
        note("The model has no gate policy: agents decide from the standard features.", run.quiet)
    changes = {"episodes": episodes, "target_macs": target_macs, "settings": settings or None}
    recipe = opt.RecipeOptions("", episodes, settings=settings)
    things = [_entry(name, recipe, target_macs, trust_code) for name in entries]
    check_entries(things, range(seeds), share=target_macs)
    tested = open_split(stored.info, data.dataset, split, images)
    train = open_split(stored.info, data.dataset, "train", span=data.train_images).judged(class_weights=data.weights)
    validation = open_split(stored.info, data.dataset, "validation")
    each = {seed: data.hidden(one) for seed, one in each.items()}
    chosen = {key: value for key, value in {**network.options, **data.options}.items() if value is not None}
    made_from = {"model": model, "dataset": tested.name, "train_images": train.span, **chosen, **changes}
    made_from |= {} if data.class_weights is None else {"class_weights": data.class_weights}
    begin_run(run.out, made_from, run.resume)
    started = time.perf_counter()
    opened = {
        "model": model, "dataset": data.dataset, "split": split, "images": images, "dense": dense and str(dense),
        "train_images": data.train_images, **chosen,
    }  # fmt: skip
    contest = Contest.of(
        things,
        each if SEED_MARK in model else each[0],
        tested,
        range(seeds),
        root=run.out,
        train=train,
        validation=validation,
        share=target_macs,
        penalty=penalty,
        dense=None if dense is None else read_model(dense).masked.network,
        device=run.device,
        progress=not run.quiet,
        described=opened,
    )
    contest.check()
    found = contest.run(
        lambda name, seed, result: note(
            f"{name}, seed {seed}: accuracy {result.figures['accuracy']:.4f}, "
            f"total MAC share {result.figures['total_mac_share']:.3f}",
            run.quiet,
        )
    )
    document = {**found.as_json(), "penalty": penalty, "command": command_line(), "machine": machine()}
    file = run.out / ("comparison.json" if split == "test" else f"comparison-{split}.json")
    save_text(file, json.dumps(document, indent=1) + "\n")
    finish_run(run.out, time.perf_counter() - started)
    emit(document, run.as_json, comparison_table(found), *[f"{row.name}: {row.verdict}" for row in found.rows])


def _entry(name: str, recipe: opt.RecipeOptions, target_macs: float | None, trust_code: bool) -> Any:
    from prunegym.agents.comparison.entries import as_entry, is_recipe, split_label

    label, thing = split_label(name)
    if not is_recipe(thing):
        return as_entry(name, trust_code)
    entry = as_entry(dataclasses.replace(recipe, recipe=thing).read(target_macs))
    return entry if label is None else dataclasses.replace(entry, name=label)


def comparison_table(found: Comparison, outcomes: bool = False) -> Table:
    """Return a table with a line for each agent: means over seeds with 95 % intervals.

    Args:
        found: The comparison.
        outcomes: Add whether each is better or worse than the reference, and the task's own reward if it has one.
    """
    columns = [
        "agent", "accuracy", "difference", "total MACs", "static", "shuffled", "reward", "difference", "static seeds",
    ]  # fmt: skip
    rows = []
    for row in found.rows:
        figures = row.figures
        shares = [interval_text(figures[key], 100) for key in ("static_accuracy", "shuffled_accuracy")]
        rows.append(
            [row.name, interval_text(figures["accuracy"], 100), interval_text(row.difference, 100),
             interval_text(figures["total_mac_share"], 1, 3), *shares, interval_text(figures["reward"], 1),
             interval_text(row.reward_difference, 1),
             f"{row.static_seeds} of {len(row.results)}"]
        )  # fmt: skip
        if outcomes:
            rows[-1].append(row.outcome)
        if outcomes and "task_reward" in figures:
            rows[-1] += [interval_text(figures["task_reward"], 1), interval_text(row.task_reward_difference, 1)]
    if outcomes:
        columns += ["outcome", "task's reward", "difference"][: len(rows[0]) - len(columns)]
    caption = (
        f"Means over seeds with 95 % intervals; accuracies in %. The differences, first of accuracy, then of "
        f"reward, are from {found.reference}, paired by image."
    )
    return Table(f"{found.dataset}, {found.seed_count}", columns, rows, caption)


def interval_text(value: Interval | None, factor: float, digits: int | None = None) -> str:
    """Return a mean and its interval, times a factor; empty for None."""
    if value is None:
        return ""
    digits = digits or (2 if factor == 100 else 4)
    half = "" if value.half_width is None else f" +-{factor * value.half_width:.{digits}f}"
    return f"{factor * value.mean:.{digits}f}{half}"
