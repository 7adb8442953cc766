"""``prepare``: gates that imitate, then learn with the CNN (steps 2 and 3)."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import torch
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
    finite,
    settle,
)
from prunegym.commands.output import emit, facts, percent, progress_of
from prunegym.errors import InvalidInputError
from prunegym.models.catalog import accuracies, open_split, open_trained, with_history
from prunegym.models.data.dataset import Dataset
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.gating.rollouts import rollout
from prunegym.models.gating.static_policy import StaticPolicy, static_start
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.storage.run_folder import begin_run, finish_run
from prunegym.models.training.imitation import ImitationConfig
from prunegym.models.training.preparation import PrepareConfig, prepare as prepare_model
from prunegym.models.training.tuning import TuneConfig

PREPARED_FILE = "prepared.safetensors"


def prepare(
    cnn: Annotated[str, typer.Argument(metavar="CNN_FILE", help="A trained CNN, of train-cnn.")],
    out: Out,
    target_macs: Annotated[
        float | None, typer.Option(help="Total MAC share to end at, the policy's included; 0.5 without --sparsity.")
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="lambda of lambda ||M(x)||_1 in the loss, a channel's price, instead of a MAC target."),
    ] = None,
    epochs: Annotated[
        float, typer.Option(help="Passes over the training images after imitation.", min=0.0, callback=finite)
    ] = 8.0,
    batch_size: Annotated[int, typer.Option(help="Images in a step.", min=1)] = 128,
    imitation_steps: Annotated[int, typer.Option(help="Steps of imitation first.", min=0)] = 600,
    kept_share: Annotated[float, typer.Option(help="Share of channels that the teacher keeps.")] = 0.6,
    no_imitation: Annotated[bool, typer.Option("--no-imitation", help="Gates start from their bias.")] = False,
    frozen: Annotated[bool, typer.Option("--frozen", help="Refine gates only; no weight of the CNN changes.")] = False,
    static: Annotated[bool, typer.Option("--static", help="Rival: one learnt mask for every image.")] = False,
    taylor: Annotated[bool, typer.Option("--taylor", help="Rival: a Taylor mask, the CNN fine-tuned.")] = False,
    cnn_learning_rate: Annotated[float, typer.Option(help="Peak, of the CNN.")] = TuneConfig.cnn_learning_rate,
    gate_learning_rate: Annotated[float, typer.Option(help="Peak, of the gates.")] = TuneConfig.gate_learning_rate,
    distillation: Annotated[
        float, typer.Option(help="Share of the loss that is agreement with the dense CNN; the rest is the labels'.")
    ] = TuneConfig.distillation,
    hidden: Annotated[int, typer.Option(help="Width of the policy's hidden layers.")] = 64,
    feature_size: Annotated[int, typer.Option(help="Numbers that the policy sees at a decision, at most.")] = 1088,
    grid: Annotated[int, typer.Option(help="Cells along each side of the grid that it sees.")] = 4,
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
    """Steps 2 and 3: gates that imitate, then learn with the CNN, which is then frozen; OUT/prepared.safetensors."""
    settle(data_root, threads)
    if taylor and (static or frozen):
        raise InvalidInputError("--taylor fine-tunes the CNN to a mask that is given; leave out --static and --frozen.")
    if taylor and sparsity is not None:
        raise InvalidInputError(
            "--taylor keeps the mask that it is given, so --sparsity would do nothing. Leave one out."
        )
    if epochs == 0 and (target_macs is not None or sparsity is not None or frozen):
        raise InvalidInputError(
            "--epochs 0 stops after imitation, so --target-macs, --sparsity and --frozen would do nothing. Leave them "
            "out, or give epochs."
        )
    stored = open_trained(cnn)
    train = open_split(stored.info, dataset, "train", span=train_images)
    tune = TuneConfig(
        target_macs=target_macs, epochs=epochs or TuneConfig.epochs, batch_size=batch_size, train_cnn=not frozen,
        train_gates=not taylor,
        seed=seed, cnn_learning_rate=cnn_learning_rate, gate_learning_rate=gate_learning_rate, sparsity=sparsity,
        distillation=distillation,
    )  # fmt: skip
    imitates = not (no_imitation or static or taylor or imitation_steps == 0)
    imitation = ImitationConfig(imitation_steps, batch_size, kept_share, seed=seed) if imitates else None
    config = PrepareConfig(imitation, tune if epochs > 0 else None, True, hidden, grid, feature_size, seed)
    started = time.perf_counter()
    kind = "taylor" if taylor else "static" if static else "gates" if sparsity is None else "L1-sparse gates"
    settings = {"cnn": str(cnn), "kind": kind, "dataset": train.name, "prepare": dataclasses.asdict(config)}
    begin_run(
        out, {**settings, "train_images": train.span, "seed": seed}, resume,
        {"CNN": stored.masked, "training images": train},
    )  # fmt: skip
    masked = stored.masked.to(device)
    start = static_start(masked, train, tune.target or 1.0, learned=static) if static or taylor else None
    masked, policy = prepare_model(masked, train, config, policy=start, folder=out, report=progress_of(quiet))
    model = DynamicCNN(masked.cpu(), policy.cpu(), stored.info)
    document = _finish(model, dataset, out, seed, kind if not frozen else f"{kind}, CNN frozen")
    finish_run(out, time.perf_counter() - started, document)
    emit(document, as_json, facts("Prepared", _shown(document)))


def _finish(model: DynamicCNN, dataset: str | None, out: Path, seed: int, kind: str) -> dict[str, Any]:
    """Write a prepared model and return what it is worth on the validation split."""
    masked, policy = model.masked, model.policy
    full = {f"{data.name}/{data.split}": share for data, share in accuracies(masked, model.info, dataset).items()}
    info = with_history(model.info, f"prepare, {kind}", seed, prepared_accuracy=full)
    path = out / PREPARED_FILE
    DynamicCNN(masked, policy, info).save(path)
    validation = open_split(info, dataset, "validation")
    where = f"{validation.name}/validation"
    right, share = _under_policy(masked, policy, validation)
    return {
        "model": str(path),
        "kind": kind,
        "dense_accuracy": info.metadata.get("dense_accuracy", {}),
        "prepared_accuracy": full,
        "accuracy": {where: right},
        "total_mac_share": {where: share},
    }


@torch.inference_mode()
def _under_policy(masked: MaskedCNN, policy: GatePolicy | StaticPolicy, dataset: Dataset) -> tuple[float, float]:
    """Return accuracy and mean total MAC share of a data set's images under a policy's masks."""
    runs = [rollout(masked, policy, images) for _, images in dataset.batches()]
    right = torch.cat([run.output.argmax(1) for run in runs]) == dataset.labels
    shares = masked.cost.total_share(torch.cat([run.mask for run in runs]), policy.macs)
    return right.double().mean().item(), shares.mean().item()


def _shown(document: dict[str, Any]) -> dict[str, object]:
    rows: dict[str, object] = {"kind": document["kind"]}
    for key in ("dense_accuracy", "prepared_accuracy", "accuracy", "total_mac_share"):
        for where, share in document[key].items():
            rows[f"{key.replace('_', ' ')} on {where}"] = percent(share)
    return rows | {"model": document["model"]}
