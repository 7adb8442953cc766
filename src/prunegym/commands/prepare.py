"""``prepare``: train gates by imitation, then together with the CNN (steps 2 and 3)."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunegym.commands.options import TRAINED, Network, Run, Seed, Settings, TrainingData, finite, grouped
from prunegym.commands.output import Facts, emit, progress_of, shares_on
from prunegym.errors import InvalidInputError
from prunegym.settings import Change, changed, make_config, parse
from prunegym.validation import choice

if TYPE_CHECKING:
    from pathlib import Path

    from prunegym.models.dynamic_cnn import DynamicCNN

PREPARED_FILE = "prepared.safetensors"


@grouped
def prepare(
    cnn: Annotated[str, typer.Argument(metavar="CNN", help=TRAINED)],
    run: Run,
    data: TrainingData,
    network: Network,
    target_macs: Annotated[
        float | None,
        typer.Option(help="Total MAC share at the end, with the policy's; 0.5 without --sparsity."),
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Price of a kept channel instead of a MAC target: loss + price * ||M(x)||_1.")
    ] = None,
    epochs: Annotated[
        float, typer.Option(help="Passes over the training images after imitation.", min=0.0, callback=finite)
    ] = 8.0,
    frozen: Annotated[bool, typer.Option("--frozen", help="Train only the gates, not the CNN's weights.")] = False,
    static: Annotated[bool, typer.Option("--static", help="Static baseline: one learnt mask for all images.")] = False,
    taylor: Annotated[bool, typer.Option("--taylor", help="Static baseline: a Taylor mask, CNN fine-tuned.")] = False,
    compensation: Annotated[
        str, typer.Option(help="In place of masked channels: zero, or constant, a learnt number for each.")
    ] = "zero",
    settings: Settings = None,
    seed: Seed = 0,
) -> None:
    """Add gates, train them by imitation and then together with the CNN, and freeze the CNN.

    Writes OUT/prepared.safetensors. --set changes the policy (hidden, grid,
    feature_size), its imitation (imitation.steps; imitation=null leaves it
    out) or the training after it (tune.batch_size).
    """
    from prunegym.models.catalog import open_split
    from prunegym.models.dynamic_cnn import DynamicCNN
    from prunegym.models.gating.static_policy import static_start
    from prunegym.models.masking.compensation import COMPENSATIONS
    from prunegym.models.storage.run_folder import begin_run, finish_run
    from prunegym.models.training.preparation import PrepareConfig, prepare as prepare_model
    from prunegym.models.training.tuning import TuneConfig

    run.settle(data)
    choice("--compensation", compensation, COMPENSATIONS)
    learned = compensation == "constant"
    if taylor and (static or (frozen and not learned)):
        raise InvalidInputError(
            "--taylor fine-tunes the CNN to a fixed mask; leave out --static and --frozen, or add --compensation "
            "constant to train constants alone."
        )
    if taylor and sparsity is not None:
        raise InvalidInputError("--taylor keeps its mask, so --sparsity has no effect. Leave one out.")
    if epochs == 0 and (target_macs is not None or sparsity is not None or frozen or learned):
        raise InvalidInputError(
            "--epochs 0 stops after imitation, so --target-macs, --sparsity, --frozen and --compensation have no "
            "effect. Leave them out, or give epochs."
        )
    tune = {
        "target_macs": target_macs, "epochs": epochs, "train_cnn": not frozen, "train_gates": not taylor,
        "sparsity": sparsity, "compensation": compensation if learned else None, "seed": seed,
    }  # fmt: skip
    own = {
        "imitation": None if static or taylor else {"kept_share": 0.6, "seed": seed}, "tune": tune if epochs else None,
        "seed": seed,
    }  # fmt: skip
    changes = parse(settings or ())
    _check_stages(changes, own, {"imitation": "--static or --taylor", "tune": "--epochs 0"})
    config = make_config(PrepareConfig, changed(own, changes))
    stored = network.open(cnn, data)
    train = open_split(stored.info, data.dataset, "train", span=data.train_images).judged(class_weights=data.weights)
    started = time.perf_counter()
    kind = "taylor" if taylor else "static" if static else "gates" if sparsity is None else "L1-sparse gates"
    made_from = {
        "cnn": str(cnn), "kind": kind, "dataset": train.name, "prepare": dataclasses.asdict(config),
        "train_images": train.span, "seed": seed,
    }  # fmt: skip
    begin_run(run.out, made_from, run.resume, {"CNN": stored.masked, "training images": train})
    masked = stored.masked.to(run.device)
    target = (config.tune or TuneConfig()).target or 1.0
    start = static_start(masked, train, target, learned=static) if static or taylor else None
    masked, policy = prepare_model(masked, train, config, policy=start, folder=run.out, report=progress_of(run.quiet))
    model = DynamicCNN(masked.cpu(), policy.cpu(), stored.info)
    document = _finish(model, data, run.out, seed, kind + ", CNN frozen" * frozen + ", constants" * learned)
    finish_run(run.out, time.perf_counter() - started, document)
    shares = shares_on(document, "dense_accuracy", "prepared_accuracy", "accuracy", "total_mac_share")
    emit(document, run.as_json, Facts("Prepared", {"kind": document["kind"], **shares, "model": document["model"]}))


def _check_stages(changes: list[Change], own: dict[str, Any], without: dict[str, str]) -> None:
    """Refuse settings of a stage that is left out."""
    for keys, _ in changes:
        if len(keys) > 1 and keys[0] in without and own[keys[0]] is None:
            raise InvalidInputError(
                f"--set {'.'.join(keys)} has no effect: {without[keys[0]]} leaves out the stage {keys[0]}. Remove one "
                "of the two."
            )


def _finish(model: DynamicCNN, data: TrainingData, out: Path, seed: int, kind: str) -> dict[str, Any]:
    """Write a prepared model and return its figures on the validation split."""
    import torch

    from prunegym.models.catalog import accuracies, open_split, with_history

    measured = accuracies(model.masked, model.info, data.dataset)
    full = {f"{part.name}/{part.split}": share for part, share in measured.items()}
    validation = open_split(model.info, data.dataset, "validation")
    model.info = info = with_history(model.info, f"prepare, {kind}", seed, data.no_data_path, prepared_accuracy=full)
    path = out / PREPARED_FILE
    model.save(path)
    found = [model.predict(validation.images[indices]) for indices in validation.index_batches()]
    scores = validation.score(torch.cat([one.logits for one in found]))
    where = f"{validation.name}/validation"
    return {
        "model": str(path),
        "kind": kind,
        "dense_accuracy": info.metadata.get("dense_accuracy", {}),
        "prepared_accuracy": full,
        "accuracy": {where: scores.mean().item()},
        "total_mac_share": {where: torch.cat([one.mac_share for one in found]).mean().item()},
    }
