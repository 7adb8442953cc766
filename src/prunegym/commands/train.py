"""``train``: reinforcement learning on a frozen CNN."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunegym.commands.options import (
    DataRoot,
    DatasetName,
    Device,
    JsonFlag,
    Out,
    Quiet,
    Resume,
    Seed,
    Threads,
    TrainImages,
    settle,
)
from prunegym.commands.output import emit, percent, progress_of, table
from prunegym.envs.rewards.reward import REWARDS, NamedReward
from prunegym.models.catalog import open_split, open_trained, with_history

if TYPE_CHECKING:
    from prunegym.agents.rl.recipe import Recipe

Model = Annotated[str, typer.Argument(help="A CNN of train-cnn, a model of prepare or train, or a shipped model.")]
RecipeName = Annotated[str, typer.Option("--recipe", help="A recipe that comes with PruneGym, or a YAML file.")]
Episodes = Annotated[int | None, typer.Option("--episodes", min=0, help="Episodes (images), instead of the recipe's.")]
RewardName = Annotated[
    str | None, typer.Option("--reward", help="A reward by name, or module:function of yours, instead of the recipe's.")
]
AccuracyName = Annotated[
    str | None, typer.Option("--accuracy", help="An accuracy term by name, or module:function of yours.")
]
Penalty = Annotated[float | None, typer.Option("--penalty", help="lambda, instead of the recipe's.")]
LatencyFile = Annotated[
    Path | None, typer.Option("--latency-table", help="A table of prunegym latency, for the reward latency.")
]
Environments = Annotated[int | None, typer.Option("--n-envs", help="Sub-environments, instead of the recipe's.")]
TargetMacs = Annotated[
    float | None,
    typer.Option(help="Total MAC share at which reinforcement learning begins and ends; lambda adapts to it."),
]
EvalImages = Annotated[int | None, typer.Option("--eval-images", min=1, help="Validation images, at most.")]


def train(
    model: Model,
    out: Out,
    recipe: RecipeName = "frozen",
    dataset: DatasetName = None,
    data_root: DataRoot = None,
    episodes: Episodes = None,
    reward: RewardName = None,
    accuracy: AccuracyName = None,
    penalty: Penalty = None,
    target_macs: TargetMacs = None,
    latency_table: LatencyFile = None,
    train_images: TrainImages = None,
    n_envs: Environments = None,
    eval_images: EvalImages = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "cpu",
    resume: Resume = False,
    quiet: Quiet = False,
    as_json: JsonFlag = False,
) -> None:
    """Train an agent by a recipe; OUT/model.safetensors is the best actor, OUT/start.safetensors where it began."""
    from prunegym.agents.rl.recipe_files import load_recipe
    from prunegym.agents.rl.trainer import train_agent

    settle(data_root, threads)
    chosen = override(
        load_recipe(recipe), episodes, reward, accuracy, penalty, n_envs, eval_images, target_macs, latency_table
    )
    stored = open_trained(model)
    data = open_split(stored.info, dataset, "train", span=train_images)
    train_agent(
        stored.masked,
        with_history(stored.info, f"train, {chosen.name}", seed),
        data,
        open_split(stored.info, dataset, "validation"),
        chosen,
        out,
        policy=stored.policy,
        seed=seed,
        resume=resume,
        device=device,
        progress=not quiet,
        report=progress_of(quiet),
    )
    report_run(out, out / "model.safetensors", as_json)


def override(
    recipe: Recipe,
    episodes: int | None = None,
    reward: str | None = None,
    accuracy: str | None = None,
    penalty: float | None = None,
    n_envs: int | None = None,
    eval_images: int | None = None,
    target_macs: float | None = None,
    latency_table: Path | None = None,
) -> Recipe:
    """Return a recipe with what the command line has instead; fewer environments make smaller rollouts, not fewer."""
    if target_macs is not None:
        recipe = _with_budget(recipe, target_macs)
    table = None if latency_table is None else str(latency_table)
    task = {"reward": reward, "accuracy": accuracy, "penalty": penalty, "latency_table": table}
    settings = {"n_episodes": episodes, "n_envs": n_envs, "eval_images": eval_images}
    changes: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
    kwargs = {**recipe.env_kwargs, **{key: value for key, value in task.items() if value is not None}}
    named = REWARDS.get(reward or "", NamedReward())
    if reward is not None and (":" in reward or named.whole) and accuracy is None:
        kwargs.pop("accuracy", None)  # what it returns is the whole reward
    if named.unit and penalty is None and reward != recipe.env_kwargs.get("reward", "l0"):
        # The recipe's is for a share of the MACs: at that price a single channel would cost as much as all of them.
        kwargs.pop("penalty", None)
    changes["env_kwargs"] = kwargs
    return dataclasses.replace(recipe, **changes)


def _with_budget(recipe: Recipe, target_macs: float) -> Recipe:
    from prunegym.agents.rl.lagrangian import Budget

    budget = (
        Budget(target_macs) if recipe.budget is None else dataclasses.replace(recipe.budget, target_macs=target_macs)
    )
    imitation = recipe.imitation
    if imitation is not None and imitation.mac_share is not None:
        # What the teacher spends is part of the budget too: gates that imitated another share would start off it.
        imitation = dataclasses.replace(imitation, mac_share=target_macs)
    refine = None if recipe.refine is None else dataclasses.replace(recipe.refine, target_macs=target_macs)
    return dataclasses.replace(recipe, budget=budget, target_macs=None, imitation=imitation, refine=refine)


def report_run(out: Path, model: Path, as_json: bool) -> None:
    """Print what a run reached on the validation split: its first and its best evaluation."""
    state = out / "monitor.json"
    history: list[dict[str, Any]] = json.loads(state.read_text())["history"] if state.exists() else []
    document: dict[str, Any] = {"model": str(model), "evaluations": len(history)}
    if not history:
        emit(document, as_json, f"No episodes of reinforcement learning were played. The gates are in {model}.")
        return
    best = max(history, key=lambda row: row["reward"])
    document |= {"start": history[0], "best": best}
    rows = [_row("start", history[0]), _row("best", best)]
    columns = ["validation split", "episodes' steps", "accuracy", "total MAC share", "reward", "shuffled"]
    emit(document, as_json, table(f"{out}", columns, rows, f"The best actor is in {model}."))


def _row(name: str, row: Mapping[str, Any]) -> list[str]:
    figures = [percent(row[key]) for key in ("accuracy", "total_mac_share")]
    return [name, f"{row['timesteps']:,}", *figures, f"{row['reward']:.4f}", percent(row["shuffled_accuracy"])]
