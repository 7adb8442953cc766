"""``train-cnn``: a network of the zoo from scratch (step 1)."""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated, Any, cast

import typer

from prunegym.commands.options import (
    DataRoot,
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
from prunegym.commands.output import emit, facts, percent, progress_of
from prunegym.errors import InvalidInputError
from prunegym.models.catalog import accuracies, build_for, with_history
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.storage.model_file import CNNInfo, write_model
from prunegym.models.storage.run_folder import begin_run, finish_run
from prunegym.models.training.cnn_training import PRECISIONS, TrainConfig, train as train_network

CNN_FILE = "cnn.safetensors"


def train_cnn(
    network: Annotated[str, typer.Argument(help="A network of the zoo (prunegym list).")],
    out: Out,
    dataset: Annotated[str, typer.Option("--dataset", help="Name or path of a data set.")] = "digits",
    data_root: DataRoot = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 40,
    batch_size: Annotated[int, typer.Option(help="Images in a step.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak of the one-cycle schedule.")] = 0.1,
    train_images: TrainImages = None,
    seed: Seed = 0,
    precision: Annotated[str, typer.Option(help=f"Of the forward pass: {', '.join(PRECISIONS)}.")] = "auto",
    threads: Threads = None,
    device: Device = "cpu",
    resume: Resume = False,
    quiet: Quiet = False,
    as_json: JsonFlag = False,
) -> None:
    """Step 1: train a network from scratch; OUT/cnn.safetensors is the result."""
    settle(data_root, threads)
    config = TrainConfig(epochs, batch_size, learning_rate, precision=cast(Any, precision), seed=seed)
    train = load_dataset(dataset, "train")
    train = train if train_images is None else train.part(train_images)
    model = build_for(network, train, seed)
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists() and not resume:
        raise InvalidInputError(
            f"{out} has a checkpoint already. Add --resume to go on with it, or give another --out."
        )
    started = time.perf_counter()
    settings = {"network": network, "dataset": dataset, "train_images": train.span, "seed": seed}
    begin_run(out, {**settings, "train": dataclasses.asdict(config)}, resume, {"training images": train})
    report = progress_of(quiet)
    trained = train_network(
        model, train, config, validation=load_dataset(dataset, "validation"), checkpoint=checkpoint, device=device,
        report=lambda row: report("train-cnn", row),
    ).cpu()  # fmt: skip
    info = CNNInfo.of(network, train, {"epochs": epochs})
    info = info.with_dense_accuracy(accuracies(trained, info, dataset))
    dense = info.metadata["dense_accuracy"]
    write_model(out / CNN_FILE, trained, with_history(info, "train-cnn", seed))
    finish_run(out, time.perf_counter() - started, {"dense_accuracy": dense})
    document = {"model": str(out / CNN_FILE), "dense_accuracy": dense}
    shown = {f"accuracy on {where}": percent(share) for where, share in dense.items()}
    emit(document, as_json, facts(f"Trained {network}", {**shown, "model": out / CNN_FILE}))
