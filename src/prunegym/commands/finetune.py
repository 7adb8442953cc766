"""``finetune``: CNN and policy in turns (step 5)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunegym.commands.options import RecipeOptions, Run, Seed, TrainedModel, TrainingData, grouped, settle
from prunegym.commands.output import emit, progress_of
from prunegym.commands.recipes import recipe_with
from prunegym.commands.train import validation_table
from prunegym.errors import InvalidInputError
from prunegym.settings import changed, make_config, parse

PREPARED = RecipeOptions("prepared", episodes=10240)
NO_DATA = TrainingData()


@grouped
def finetune(
    model: TrainedModel,
    run: Run,
    rounds: Annotated[int, typer.Option(help="Turns of CNN and policy.", min=1)] = 2,
    cnn_epochs: Annotated[float, typer.Option(help="Passes over the training images by the CNN, each turn.")] = 1.0,
    recipe: RecipeOptions = PREPARED,
    with_gates: Annotated[
        bool, typer.Option("--with-gates", help="Train the gates with the CNN, by gradient; else only the CNN.")
    ] = False,
    dense: Annotated[
        Path | None, typer.Option("--dense", help="File of the original CNN, to distil from; by default the model.")
    ] = None,
    target_macs: Annotated[
        float | None,
        typer.Option("--target-macs", help="Total MAC share for --with-gates; by default the model's own."),
    ] = None,
    data: TrainingData = NO_DATA,
    seed: Seed = 0,
) -> None:
    """Step 5: train CNN and policy in turns, then freeze again; OUT/model.safetensors is the best checkpoint.

    Episodes are those of each turn. --set changes the recipe; names that
    begin with tune. change the CNN's training (tune.cnn_learning_rate=0.005).
    """
    from prunegym.agents.rl.finetuning import finetune as finetune_model
    from prunegym.models.catalog import open_split, open_trained, with_history
    from prunegym.models.dynamic_cnn import DynamicCNN
    from prunegym.models.storage.model_file import read_model
    from prunegym.models.training.tuning import TuneConfig

    settle(data.data_root, run.threads, run.device)
    if target_macs is not None and not with_gates:
        raise InvalidInputError(
            "--target-macs is where --with-gates trains the gates to; without it the gates do not change in the CNN's "
            "turns. Give both, or neither."
        )
    stored = open_trained(model)
    if stored.policy is None:
        raise InvalidInputError(f"{model} is a CNN without a gate policy. Run prunegym prepare or train on it first.")
    of_cnn = [text for text in recipe.settings or () if text.startswith("tune.")]
    of_recipe = [text for text in recipe.settings or () if text not in of_cnn]
    chosen = recipe_with(**{**vars(recipe), "settings": of_recipe})
    tune = {
        "target_macs": 1.0 if target_macs is None else target_macs, "epochs": cnn_epochs, "train_gates": with_gates,
        "anneal": 0.0, "cnn_learning_rate": 0.01, "gate_learning_rate": 5e-4, "seed": seed,
    }  # fmt: skip
    rows = finetune_model(
        DynamicCNN(stored.masked, stored.policy, with_history(stored.info, "finetune", seed)),
        open_split(stored.info, data.dataset, "train", span=data.train_images),
        open_split(stored.info, data.dataset, "validation"),
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
    chosen_stage = next(row["stage"] for row in rows if row["chosen"])
    shown = {str(row["stage"]): row for row in rows}
    document = {"model": str(path), "rounds": rows}
    caption = f"The result, that of {chosen_stage!r}, is {path}."
    emit(document, run.as_json, validation_table("Fine-tuned", shown, caption))
