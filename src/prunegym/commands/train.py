"""``train``: reinforcement learning on a frozen CNN."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunegym.commands.options import Network, RecipeOptions, Run, Seed, TargetMacs, TrainedModel, TrainingData, grouped
from prunegym.commands.output import Table, emit, percent, progress_of

FROZEN = RecipeOptions("frozen")


@grouped
def train(
    model: TrainedModel,
    run: Run,
    data: TrainingData,
    network: Network,
    recipe: RecipeOptions = FROZEN,
    target_macs: TargetMacs = None,
    seed: Seed = 0,
) -> None:
    """Train an agent by a recipe. Writes OUT/model.safetensors, the best agent.

    OUT/start.safetensors has the gates before reinforcement learning.
    """
    from prunegym.agents.rl.trainer import train_agent
    from prunegym.models.catalog import open_split, with_history

    run.settle(data)
    chosen = recipe.read(target_macs)
    stored = network.open(model, data)
    train_agent(
        stored.masked,
        with_history(stored.info, f"train, {chosen.name}", seed, data.no_data_path),
        open_split(stored.info, data.dataset, "train", span=data.train_images).judged(class_weights=data.weights),
        open_split(stored.info, data.dataset, "validation"),
        chosen,
        run.out,
        policy=stored.policy,
        seed=seed,
        resume=run.resume,
        device=run.device,
        progress=not run.quiet,
        report=progress_of(run.quiet),
    )
    report_run(run.out, run.out / "model.safetensors", run.as_json)


def report_run(out: Path, model: Path, as_json: bool) -> None:
    """Print the first and the best evaluation of a run on the validation split."""
    state = out / "monitor.json"
    history: list[dict[str, Any]] = json.loads(state.read_text())["history"] if state.exists() else []
    document: dict[str, Any] = {"model": str(model), "evaluations": len(history)}
    if not history:
        emit(document, as_json, f"n_episodes is 0, so there was no reinforcement learning. The gates are in {model}.")
        return
    best = max(history, key=lambda row: row["reward"])
    rows = {"start": history[0], "best": best}
    shown = {"before RL": history[0], "best": best}
    emit({**document, **rows}, as_json, validation_table(str(out), shown, f"The best agent is in {model}."))


def validation_table(title: str, rows: Mapping[str, Mapping[str, Any]], caption: str) -> Table:
    """Return a table of evaluations on the validation split, by name."""
    columns = ["validation split", "steps", "accuracy", "total MAC share", "reward", "shuffled"]
    shown = [
        [name, f"{row['timesteps']:,}", percent(row["accuracy"]), percent(row["total_mac_share"]),
         f"{row['reward']:.4f}", percent(row["shuffled_accuracy"])]
        for name, row in rows.items()
    ]  # fmt: skip
    return Table(title, columns, shown, caption)
