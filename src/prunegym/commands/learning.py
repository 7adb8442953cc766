"""``train`` and ``finetune``: reinforcement learning on a frozen CNN, and CNN and policy in turns (step 5)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunegym.commands.common import (
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
    emit,
    open_split,
    open_trained,
    percent,
    progress_of,
    settle,
    table,
    with_history,
)
from prunegym.envs.rewards.costs import PER_UNIT
from prunegym.envs.rewards.reward import BLOCKDROP
from prunegym.errors import InvalidInputError
from prunegym.models.storage.model_file import read_model
from prunegym.models.training.tuning import TuneConfig

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
    if reward is not None and (":" in reward or reward == BLOCKDROP) and accuracy is None:
        kwargs.pop("accuracy", None)  # what it returns is the whole reward
    if reward in PER_UNIT and penalty is None and reward != recipe.env_kwargs.get("reward", "l0"):
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


def finetune(
    model: Model,
    out: Out,
    rounds: Annotated[int, typer.Option(help="Turns of CNN and policy.", min=1)] = 2,
    cnn_epochs: Annotated[float, typer.Option(help="Passes over the training images by the CNN, each turn.")] = 1.0,
    episodes: Annotated[int, typer.Option(help="Episodes of the policy, each turn.", min=0)] = 10240,
    recipe: RecipeName = "prepared",
    with_gates: Annotated[
        bool, typer.Option("--with-gates", help="The gates move with the CNN, by gradient; else only the CNN does.")
    ] = False,
    cnn_learning_rate: Annotated[float, typer.Option(help="Peak, of the CNN.")] = 0.01,
    dense: Annotated[
        Path | None,
        typer.Option("--dense", help="File of the original CNN, to distil from; by default the model as it comes."),
    ] = None,
    target_macs: Annotated[
        float | None, typer.Option(help="Total MAC share for --with-gates; by default the model's own.")
    ] = None,
    reward: RewardName = None,
    accuracy: AccuracyName = None,
    penalty: Penalty = None,
    latency_table: LatencyFile = None,
    n_envs: Environments = None,
    eval_images: EvalImages = None,
    dataset: DatasetName = None,
    data_root: DataRoot = None,
    train_images: TrainImages = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "cpu",
    resume: Resume = False,
    quiet: Quiet = False,
    as_json: JsonFlag = False,
) -> None:
    """Step 5: train CNN and policy in turns, then freeze again; OUT/model.safetensors is the best half of a turn."""
    from prunegym.agents.rl.finetuning import finetune as finetune_model
    from prunegym.agents.rl.recipe_files import load_recipe
    from prunegym.models.dynamic_cnn import DynamicCNN

    settle(data_root, threads)
    if target_macs is not None and not with_gates:
        raise InvalidInputError(
            "--target-macs is where --with-gates trains the gates to; without it they stay as they are in the CNN's "
            "turns. Give both, or neither."
        )
    stored = open_trained(model)
    if stored.policy is None:
        raise InvalidInputError(f"{model} is a CNN without a gate policy. Run prunegym prepare or train on it first.")
    chosen = override(
        load_recipe(recipe), episodes, reward, accuracy, penalty, n_envs, eval_images, latency_table=latency_table
    )
    tuning = TuneConfig(
        target_macs=1.0 if target_macs is None else target_macs, epochs=cnn_epochs, train_gates=with_gates, anneal=0.0,
        cnn_learning_rate=cnn_learning_rate, gate_learning_rate=5e-4, seed=seed,
    )  # fmt: skip
    data = open_split(stored.info, dataset, "train", span=train_images)
    rows = finetune_model(
        DynamicCNN(stored.masked, stored.policy, with_history(stored.info, "finetune", seed)),
        data,
        open_split(stored.info, dataset, "validation"),
        chosen,
        tuning,
        out,
        rounds=rounds,
        own_target=target_macs is None,
        dense=None if dense is None else read_model(dense).masked.network,
        seed=seed,
        resume=resume,
        device=device,
        progress=not quiet,
        report=progress_of(quiet),
    )
    path = out / "model.safetensors"
    shown = [_row(str(row["stage"]), row) for row in rows]
    columns = ["validation split", "episodes' steps", "accuracy", "total MAC share", "reward", "shuffled"]
    document = {"model": str(path), "rounds": rows}
    chosen_stage = next(row["stage"] for row in rows if row["chosen"])
    emit(document, as_json, table("Fine-tuned", columns, shown, f"The result, that of {chosen_stage!r}, is {path}."))
