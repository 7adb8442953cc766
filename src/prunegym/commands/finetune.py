"""``finetune``: CNN and policy in turns (step 5)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunegym.commands.export import Model
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
from prunegym.commands.output import emit, progress_of, table
from prunegym.commands.train import (
    AccuracyName,
    Environments,
    EvalImages,
    LatencyFile,
    Penalty,
    RecipeName,
    RewardName,
    _row,
    override,
)
from prunegym.errors import InvalidInputError
from prunegym.models.catalog import open_split, open_trained, with_history
from prunegym.models.storage.model_file import read_model
from prunegym.models.training.tuning import TuneConfig

if TYPE_CHECKING:
    pass


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
