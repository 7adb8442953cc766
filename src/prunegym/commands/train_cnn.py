"""``train-cnn``: a network by name, from scratch or from a file of weights (step 1)."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunegym.commands.options import NAMES, Run, Seed, Settings, TrainingData, grouped
from prunegym.commands.output import Facts, emit, note, percent, progress_of
from prunegym.errors import InvalidInputError
from prunegym.settings import changed, make_config, parse

if TYPE_CHECKING:
    from prunegym.models.data.dataset import Dataset

CNN_FILE = "cnn.safetensors"
DIGITS = TrainingData("digits")


@grouped
def train_cnn(
    network: Annotated[str, typer.Argument(help=f"A network: {NAMES} (prunegym list).")],
    run: Run,
    data: TrainingData = DIGITS,
    epochs: Annotated[int, typer.Option("--epochs", help="Passes over the training images.")] = 40,
    weights: Annotated[
        Path | None,
        typer.Option(help="File of weights to begin with; a last layer of another size is random."),
    ] = None,
    seed: Seed = 0,
    settings: Settings = None,
) -> None:
    """Train a network; OUT/cnn.safetensors is the result.

    --set changes batch_size, learning_rate, weight_decay, momentum or precision.
    """
    from prunegym.models.catalog import accuracies, with_history
    from prunegym.models.named_networks import begin_with, load_images
    from prunegym.models.storage.cnn_info import CNNInfo
    from prunegym.models.storage.model_file import write_model
    from prunegym.models.storage.run_folder import begin_run, finish_run
    from prunegym.models.training.cnn_training import TrainConfig, train as train_network
    from prunegym.models.zoo.network_registry import build

    run.settle(data)
    config = make_config(TrainConfig, changed({"epochs": epochs, "seed": seed}, parse(settings or ())))
    dataset = str(data.dataset)

    def load(split: str) -> Dataset:
        return load_images(network, dataset, split, **data.transform).judged(data.loss, data.metric)

    train = load("train").judged(class_weights=data.weights)
    train = train if data.train_images is None else train.part(data.train_images)
    model = build(network, train.outputs, train.image_shape[0], train.image_shape[1:], seed)
    if weights is not None:
        new = begin_with(model, network, weights, train.outputs)
        if new and not run.quiet:
            note(f"{weights} has another number of outputs: {', '.join(new)} get random weights.")
    checkpoint = run.out / "checkpoint.safetensors"
    if checkpoint.exists() and not run.resume:
        raise InvalidInputError(f"{run.out} has a checkpoint already. Add --resume, or give another --out.")
    started = time.perf_counter()
    made_from = {"network": network, "dataset": dataset, "train_images": train.span, "seed": seed}
    made_from |= {} if weights is None else {"weights": str(weights)}
    begin_run(run.out, {**made_from, "train": dataclasses.asdict(config)}, run.resume, {"training images": train})
    report = progress_of(run.quiet)
    trained = train_network(
        model, train, config, validation=load("validation"), checkpoint=checkpoint, device=run.device,
        report=lambda row: report("train-cnn", row),
    ).cpu()  # fmt: skip
    info = CNNInfo.of(network, train, {"epochs": config.epochs})
    info = info.with_dense_accuracy(accuracies(trained, info, dataset))
    dense = info.metadata["dense_accuracy"]
    write_model(run.out / CNN_FILE, trained, with_history(info, "train-cnn", seed, data.no_data_path))
    finish_run(run.out, time.perf_counter() - started, {"dense_accuracy": dense})
    document = {"model": str(run.out / CNN_FILE), "dense_accuracy": dense}
    shown = {f"accuracy on {where}": percent(share) for where, share in dense.items()}
    emit(document, run.as_json, Facts(f"Trained {network}", {**shown, "model": run.out / CNN_FILE}))
