"""Step 5 of the article: CNN and policy are trained in turns, then frozen again."""

from __future__ import annotations

import copy
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.agents.evaluation.masks import decide_on_the_way
from prunegym.agents.rl.monitor import validation_figures
from prunegym.agents.rl.recipe import Recipe, own_reward
from prunegym.agents.rl.recipe_files import as_recipe
from prunegym.agents.rl.trainer import train_agent, try_recipe
from prunegym.models.checks import check_dense
from prunegym.models.data.dataset import Dataset
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.precision import new_tensors_in
from prunegym.models.storage.run_folder import begin_run, finish_run
from prunegym.models.training.cnn_training import StageReport, answered, dense_logits, of_stage
from prunegym.models.training.mac_target import total_mac_share
from prunegym.models.training.tuning import TuneConfig, tune
from prunegym.validation import typed


@new_tensors_in()
@typed
def finetune(
    model: DynamicCNN,
    train: Dataset,
    validation: Dataset,
    recipe: Recipe | str | Path,
    tuning: TuneConfig,
    out: Path | str,
    *,
    rounds: int = 2,
    own_target: bool = True,
    dense: nn.Module | None = None,
    seed: int = 0,
    resume: bool = False,
    device: str = "cpu",
    progress: bool = True,
    report: StageReport | None = None,
) -> list[dict[str, Any]]:
    """Train the CNN under the policy's masks, then the policy by reinforcement learning on the CNN, in several rounds.

    Args:
        model: CNN and policy to start from; both are changed.
        train: Training images.
        validation: Images on which the best agent of each round and the best checkpoint of the run are chosen.
        recipe: Recipe of the policy's training, or its name or file. Its imitation and refinement are not used.
        tuning: Settings of the CNN's training.
        out: Folder of the run. ``turn-1/`` and so on have the rounds, and ``model.safetensors`` is the result: the
            checkpoint with the highest mean reward.
        rounds: Number of rounds.
        own_target: Use the MAC share of the given model as the MAC target of ``tuning``.
        dense: The original CNN to distil from. By default, the model under its own masks is the teacher, since a CNN
            that was prepared for masks is a worse teacher with all channels on.
        seed: Seed of the run; each round derives its own.
        resume: Resume the run in ``out``.
        device: Torch device.
        progress: Show a progress bar.
        report: Called with the stage and its figures.

    Returns:
        Figures on the validation split, at the start and after each training of either; ``chosen`` marks the result.

    Raises:
        InvalidInputError: If the policy is static, if images, classes or ``dense`` do not fit the model, or if the
            folder has another run.
        PruneGymError: Any error of :func:`~prunegym.agents.rl.trainer.try_recipe`.
    """
    recipe, out = as_recipe(recipe), Path(out)
    train, validation = model.info.adapt(train), model.info.adapt(validation)
    if dense is not None:
        check_dense(dense, model.masked, train)
    train, validation = (answered(data, model.masked if dense is None else dense) for data in (train, validation))
    try_recipe(recipe, model.masked, train, validation, model.policy)
    settings = {"recipe": recipe.as_dict(), "tune": dataclasses.asdict(tuning), "rounds": rounds, "seed": seed}
    inputs = {"dense": dense, "CNN": model.masked, "gates": model.policy}
    inputs |= {"training images": train, "validation images": validation}
    begin_run(out, {**settings, "dataset": train.name, "train_images": train.span}, resume, inputs)
    started = time.perf_counter()
    model.to(device)
    if own_target:
        spent = total_mac_share(model.masked, model.policy, train.sample(1000))
        tuning = dataclasses.replace(tuning, target_macs=min(1.0, spent))
    teacher = _teacher(model, dense, train) if tuning.distillation > 0 else None
    rows: list[dict[str, Any]] = []
    best = model

    def look(stage: str, steps: int) -> None:
        nonlocal best
        own = own_reward(recipe, model.masked, validation)
        found = validation_figures(model.masked, model.policy, validation, recipe.middle_penalty, own)
        if all(found.reward > row["reward"] for row in rows):
            best = copy.deepcopy(model)
        rows.append({"stage": stage, "timesteps": steps, **dataclasses.asdict(found)})
        if report is not None:
            report(stage, rows[-1])

    look("start", 0)
    for turn in range(1, rounds + 1):
        folder = out / f"turn-{turn}"
        config = dataclasses.replace(tuning, seed=seed + 1000 * turn)
        saved, under = folder / "tune.safetensors", of_stage(report, "finetune")
        tune(model.masked, model.policy, train, config, teacher=teacher, checkpoint=saved, report=under)
        look(f"turn {turn}, CNN", 0)
        model = train_agent(
            model.masked, model.info, train, validation, recipe, folder, policy=model.policy, seed=seed + turn,
            resume=resume, device=device, progress=progress, report=report,
        )  # fmt: skip
        look(f"turn {turn}, policy", recipe.n_episodes * len(model.policy.decisions))
    best.save(out / "model.safetensors")
    chosen = max(rows, key=lambda row: row["reward"])
    rows = [{**row, "chosen": row is chosen} for row in rows]
    finish_run(out, time.perf_counter() - started, {"rounds": rows})
    return rows


@torch.no_grad()
def _teacher(model: DynamicCNN, dense: nn.Module | None, train: Dataset) -> Tensor:
    """Return logits (count, classes) to distil from."""
    if dense is not None:
        return dense_logits(dense.to(model.masked.device), train)
    return decide_on_the_way(model.run, train, model.masked.device)[1]
