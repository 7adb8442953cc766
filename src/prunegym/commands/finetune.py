"""``finetune``: CNN and policy in turns (step 5)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from prunegym.commands.options import GATED, RecipeOptions, Run, Seed, TrainingData, grouped
from prunegym.commands.output import emit, progress_of
from prunegym.commands.train import validation_table
from prunegym.settings import changed, make_config, parse

PREPARED = RecipeOptions("prepared", episodes=10240)


@grouped
def finetune(
    model: Annotated[str, typer.Argument(help=GATED)],
    run: Run,
    data: TrainingData,
    rounds: Annotated[int, typer.Option(help="Number of turns; each trains the CNN, then the policy.", min=1)] = 2,
    recipe: RecipeOptions = PREPARED,
    dense: Annotated[Path | None, typer.Option(help="Original CNN to distil from; by default the model.")] = None,
    target_macs: Annotated[
        float | None,
        typer.Option(help="Train gates together with the CNN to this total MAC share; by default only PPO does."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Train CNN and policy in turns, then freeze both; OUT/model.safetensors is the best checkpoint.

    --episodes is the number for each turn. --set changes the recipe; names
    that begin with tune. change the CNN's training (tune.epochs=2.5), which
    is one epoch in each turn by default.
    """
    from prunegym.agents.rl.finetuning import finetune as finetune_model
    from prunegym.models.catalog import open_model, open_split, with_history
    from prunegym.models.dynamic_cnn import DynamicCNN
    from prunegym.models.storage.model_file import read_model
    from prunegym.models.training.tuning import TuneConfig

    run.settle(data)
    stored = DynamicCNN.of(data.on(open_model(model)), model)
    splits = {split: open_split(stored.info, data.dataset, split) for split in ("train", "validation")}
    train = splits["train"] if data.train_images is None else splits["train"].part(data.train_images)
    stored.info = with_history(stored.info, "finetune", seed, data.no_data_path)
    of_cnn = [text for text in recipe.settings or () if text.startswith("tune.")]
    of_recipe = [text for text in recipe.settings or () if text not in of_cnn]
    chosen = dataclasses.replace(recipe, settings=of_recipe).read()
    tune = {
        "target_macs": 1.0 if target_macs is None else target_macs, "epochs": 1.0, "anneal": 0.0,
        "train_gates": target_macs is not None, "cnn_learning_rate": 0.01, "gate_learning_rate": 5e-4, "seed": seed,
    }  # fmt: skip
    rows = finetune_model(
        stored,
        train.judged(class_weights=data.weights),
        splits["validation"],
        chosen,
        make_config(TuneConfig, changed({"tune": tune}, parse(of_cnn))["tune"], "tune."),
        run.out,
        rounds=rounds,
        own_target=target_macs is None,
        dense=None if dense is None else read_model(dense).masked.network,
        seed=seed,
        resume=run.resume,
        device=run.device,
        progress=not run.quiet,
        report=progress_of(run.quiet),
    )
    path = run.out / "model.safetensors"
    best = next(row["stage"] for row in rows if row["chosen"])
    table = validation_table("Fine-tuned", {row["stage"]: row for row in rows}, f"The best, from {best!r}, is {path}.")
    emit({"model": str(path), "rounds": rows}, run.as_json, table)
