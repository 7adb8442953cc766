"""``demo``: train, evaluate, save and predict on the shipped digits, in under three minutes."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunegym.commands.evaluate import evaluation_table, evaluations
from prunegym.commands.options import Machine, Quiet, RecipeOptions, Seed, TargetMacs, grouped
from prunegym.commands.output import Facts, emit, note, progress_of
from prunegym.commands.predict import describe, prediction_table
from prunegym.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor

    from prunegym.models.data.dataset import Dataset
    from prunegym.models.dynamic_cnn import DynamicCNN

SHOWN = 8
OUT = Path("runs/demo")
MARK = "demo"
"""A file that marks the folder of a demo. Results in such a folder may be replaced."""
DIGITS = RecipeOptions("digits")


@grouped
def demo(
    machine: Machine,
    out: Annotated[Path, typer.Option(help="Folder of the results; an earlier demo's are replaced.")] = OUT,
    recipe: RecipeOptions = DIGITS,
    target_macs: TargetMacs = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Train PPO on digits, evaluate it with controls and baselines, draw masks, save the model and predict with it."""
    import torch

    from prunegym.agents.rl.trainer import train_agent
    from prunegym.models.catalog import open_model, open_split, with_history
    from prunegym.models.dynamic_cnn import DynamicCNN

    machine.settle()
    started = time.perf_counter()
    stored = open_model("digits")
    train, validation, test = (open_split(stored.info, None, split) for split in ("train", "validation", "test"))
    chosen = recipe.read(target_macs)
    training = _cleared(out)
    note(f"PPO, {chosen.n_episodes:,} episodes on {train.name}: about a minute.", quiet)
    trained = train_agent(
        stored.masked, with_history(stored.info, "demo", seed), train, validation, chosen, training,
        policy=stored.policy, seed=seed, progress=not quiet, report=progress_of(quiet),
    )  # fmt: skip
    path, picture = out / "model.safetensors", out / "masks.png"
    trained.save(path)
    tested = dataclasses.replace(stored, data={"evaluated": test}, seed=seed)
    results = evaluations("PPO", trained, tested, train)
    before = evaluations("gates before PPO", DynamicCNN.load(training / "start.safetensors"), tested)
    results = {"PPO": results.pop("PPO"), **before, **results}
    draw(trained, test, torch.arange(SHOWN), picture)
    files = write_images(test, torch.arange(SHOWN), out / "images")
    loaded = DynamicCNN.load(path)
    rows = describe(loaded, files)
    seconds = time.perf_counter() - started
    document = {
        "results": {name: result.as_json() for name, result in results.items()},
        "predictions": rows,
        "model": str(path),
        "picture": str(picture),
        "seconds": round(seconds, 1),
    }
    predicted = prediction_table("Predicted with the saved model", rows)
    closing = Facts(f"Written in {seconds:.0f} s", {"model": path, "masks": picture, "images": out / "images"})
    emit(document, machine.as_json, evaluation_table(test, results), results["PPO"].verdict, predicted, closing)


def _cleared(out: Path) -> Path:
    """Return an empty folder for the training; files that other commands wrote are not changed."""
    training = out / "training"
    if (out / "run.json").exists() or (training.exists() and not (out / MARK).exists()):
        raise InvalidInputError(
            f"{out} has results of another command, and the demo would replace them. Choose another --out."
        )
    if training.exists():
        shutil.rmtree(training)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    return training


def draw(model: DynamicCNN, data: Dataset, indices: Tensor, path: Path) -> None:
    """Write a picture of images with the masks that a model gives them."""
    from PIL import Image

    from prunegym.envs.rendering import draw_gallery
    from prunegym.envs.simulator import Snapshot
    from prunegym.envs.task import make_task

    images, found = data.images[indices], model.predict(data.images[indices])
    share = model.masked.cost.mac_share(found.masks)
    done = Snapshot(images, data.labels[indices], found.masks.float(), len(model.masked.gates), found.labels, share)
    features = model.policy.features
    layerwise = bool(features.config["layerwise"])
    task = make_task(model=model, dataset=data, reward="macs", layerwise=layerwise, features=features)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_gallery(task, done)).save(path)


def write_images(data: Dataset, indices: Tensor, folder: Path) -> list[Path]:
    """Write images of a data set as PNG files, named by number and label."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index in indices.tolist():
        pixels = data.images[index].permute(1, 2, 0).numpy()
        name = f"{index}-{data.classes[int(data.labels[index])]}.png"
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(folder / name)
        files.append(folder / name)
    return files
