"""``tune``: search for a recipe's settings on validation images, by Optuna."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from prunegym.commands import options as opt
from prunegym.commands.output import Table, emit, note
from prunegym.settings import parse
from prunegym.validation import choice


@opt.grouped
def tune(
    model: opt.TrainedModel,
    run: opt.Run,
    data: opt.TrainingData,
    network: opt.Network,
    recipe: Annotated[str, typer.Option(help="A recipe that comes with PruneGym, or a YAML file.")] = "frozen",
    space: Annotated[Path | None, typer.Option(help="YAML: settings with {low, high, log} or a list each.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Number of trials, those before an interruption included.")] = 20,
    settings: opt.Settings = None,
    seed: opt.Seed = 0,
    executor: Annotated[str, typer.Option(help="local, or ray: trials run on a Ray cluster.")] = "local",
    ray_address: Annotated[str | None, typer.Option(help="Address of the Ray cluster; auto finds a local one.")] = None,
) -> None:
    """Search for the settings of a recipe with the highest validation reward. OUT/best.yaml is the best recipe.

    Trials that are worse than the median are stopped early, and one that fails
    keeps its error in error.txt. With --resume the search continues;
    OUT/study.db is an SQLite file that Optuna's dashboard shows.
    """
    from prunegym.agents.benchmark.executors.ray_trials import RayTrials
    from prunegym.agents.benchmark.search_space import SPACE
    from prunegym.agents.benchmark.tuning import Tried, tune_recipe
    from prunegym.agents.rl.recipe_files import read_yaml
    from prunegym.models.catalog import open_split
    from prunegym.settings import numbers

    run.settle(data)
    stored = network.open(model, data)
    train = open_split(stored.info, data.dataset, "train", span=data.train_images).judged(class_weights=data.weights)
    parts = {"train": train, "validation": open_split(stored.info, data.dataset, "validation")}

    def report(tried: Tried) -> None:
        reward = "" if tried.reward is None else f", reward {tried.reward:.4f}"
        reason = "" if tried.error is None else f": {tried.error.splitlines()[0]}"
        note(f"trial {tried.number}: {tried.state}{reward}, {_shown(tried)}{reason}", run.quiet)

    choice("executor", executor, ("local", "ray"))
    bundle = dataclasses.replace(data.hidden(stored), data=parts, seed=seed, device=run.device)
    cluster = RayTrials(bundle, ray_address) if executor == "ray" else None
    try:
        found = tune_recipe(
            bundle, recipe, run.out, space=SPACE if space is None else numbers(read_yaml(space)), trials=trials,
            settings=tuple(parse(settings or ())), resume=run.resume, report=report, cluster=cluster,
        )  # fmt: skip
    finally:
        if cluster is not None:
            cluster.close()
    rows = [
        [f"trial {one.number}", one.state, "" if one.reward is None else f"{one.reward:.4f}", _shown(one)]
        for one in found
    ]
    document = {"trials": [dataclasses.asdict(one) for one in found], "recipe": str(run.out / "best.yaml")}
    table = Table("Trials, the best first", ["", "state", "validation reward", "settings"], rows)
    emit(document, run.as_json, table, f"The best recipe is {run.out / 'best.yaml'}.")


def _shown(tried: object) -> str:
    settings = getattr(tried, "settings", {})
    texts = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in settings.items()}
    return ", ".join(f"{key} {text}" for key, text in texts.items())
