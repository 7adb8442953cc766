"""What the commands share: options, models and data by name, and output for people or as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console, RenderableType
from rich.table import Table
from tqdm import tqdm

from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models.checks import check_device
from prunegym.models.data.dataset import Dataset, Normalisation
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.dynamic_cnn import SHIPPED, shipped_model
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.skipping_cnn import EXECUTIONS
from prunegym.models.storage.model_file import CNNInfo, StoredModel, read_model
from prunegym.models.storage.run_folder import command_line
from prunegym.models.training.cnn_training import accuracy
from prunegym.models.zoo.network_registry import ZOO, build

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on standard output.")]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Folder with the files of data sets; else PRUNEGYM_DATA.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads that torch uses.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the run.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that is in the folder.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of everything that is drawn.")]
DatasetName = Annotated[
    str | None, typer.Option("--dataset", help="Name or path of a data set; by default the model's own.")
]
TrainImages = Annotated[
    str | None,
    typer.Option(
        "--train-images",
        metavar="FROM:TO",
        help="A part of the training images, in an order drawn once: :40000 and 40000: share none.",
    ),
]
Device = Annotated[
    str, typer.Option("--device", help="Torch device, e.g. cpu or cuda.", callback=lambda name: str(check_device(name)))
]
Execution = Annotated[
    str, typer.Option("--execution", help=f"How masked channels are treated: {', '.join(EXECUTIONS)}.")
]
ShownPenalty = Annotated[
    float | None, typer.Option("--penalty", help="lambda, for a model that was trained for a range of them.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


def finite(value: float | None) -> float | None:
    """Return the value of an option, for typer's ``callback``.

    Raises:
        InvalidInputError: If it is infinite or no number, which JSON has no word for.
    """
    if value is not None and not math.isfinite(value):
        raise InvalidInputError(f"An option is {value}; a finite number is needed.")
    return value


def settle(data_root: Path | None = None, threads: int | None = None) -> None:
    """Set what holds for the whole command: where data are, and how many threads torch uses."""
    if data_root is not None:
        if not data_root.is_dir():
            raise InvalidInputError(f"--data-root is {data_root}, which is no folder. Give the folder with the data.")
        # Whatever loads a data set by name later finds it by this, however deep in.
        os.environ["PRUNEGYM_DATA"] = str(data_root.expanduser().resolve())
    if threads is not None:
        torch.set_num_threads(threads)


def emit(document: Mapping[str, Any], as_json: bool, *tables: RenderableType) -> None:
    """Print a command's result: the document as JSON, or tables for people."""
    if as_json:
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
        return
    # Piped into a file, a table keeps its columns instead of being squeezed into 80 characters.
    console = Console(width=None if sys.stdout.isatty() else 140)
    for table in tables:
        console.print(table)


def note(text: str, quiet: bool = False) -> None:
    """Say something on standard error."""
    if not quiet:
        tqdm.write(text, file=sys.stderr)  # above a progress bar, not through it


def progress_of(quiet: bool) -> Callable[[str, Mapping[str, Any]], None]:
    """Return a report of stages and their figures, one line on standard error each."""

    def report(stage: str, row: Mapping[str, Any]) -> None:
        figures = "  ".join(
            f"{key.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"
            for key, value in row.items()
        )
        note(f"{stage}: {figures}", quiet)

    return report


def table(title: str, columns: list[str], rows: list[list[str]], caption: str | None = None) -> Table:
    """Return a table; all columns but the first are numbers, aligned right."""
    made = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def facts(title: str, rows: Mapping[str, object]) -> Table:
    """Return a table of two columns: what, and how much."""
    made = Table(title=title, show_header=False, title_justify="left")
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for key, value in rows.items():
        made.add_row(key, str(value))
    return made


def percent(share: float) -> str:
    """Return a share (0 to 1) as a percentage with two digits."""
    return f"{100 * share:.2f} %"


def open_model(name: str, dataset: Dataset | None = None) -> StoredModel:
    """Return a model by the name of a shipped one, a model file or a network of the zoo.

    Args:
        name: What stands on the command line.
        dataset: What a network of the zoo is built for; None: ten classes of 3x32x32 images.

    Raises:
        UnknownNameError: If it is none of these.
    """
    if name in SHIPPED:
        model = shipped_model(name)
        return StoredModel(model.masked, model.policy, model.info)
    if name in ZOO:
        info = CNNInfo.of(name, dataset) if dataset is not None else _blank(name)
        return StoredModel(MaskedCNN(info.build(), info.example()), None, info)
    if name.endswith(".safetensors") or Path(name).is_file():
        return read_model(name)
    raise UnknownNameError("model", name, [*SHIPPED, *ZOO, "path/to/model.safetensors"])


def open_trained(name: str) -> StoredModel:
    """Return a model that has learnt something.

    Raises:
        InvalidInputError: For a network of the zoo, which has fresh weights.
    """
    if name in ZOO:
        raise InvalidInputError(
            f"{name!r} is a network with fresh weights. Train it first: prunegym train-cnn {name} --out FOLDER, then "
            "give FOLDER/cnn.safetensors."
        )
    return open_model(name)


def _blank(name: str) -> CNNInfo:
    normalisation = Normalisation((0.5,) * 3, (0.5,) * 3)
    return CNNInfo(name, 10, (3, 32, 32), normalisation, tuple(map(str, range(10))), "none")


def build_for(network: str, dataset: Dataset, seed: int) -> torch.nn.Module:
    """Build a network of the zoo with fresh weights for a data set's images and classes.

    Raises:
        InvalidInputError: If it cannot run them.
    """
    channels, height, width = dataset.image_shape
    made = build(network, len(dataset.classes), channels, height, seed).eval()
    try:
        made(dataset.batch(torch.arange(1)))
    except RuntimeError as error:
        raise InvalidInputError(
            f"{network} is for square images; those of {dataset.name!r} are {height}x{width}. Resize them, or take a "
            "network of your own in Python (prunegym.models.train)."
        ) from error
    return made.train()


def open_split(
    info: CNNInfo, name: str | None, split: str, images: int | None = None, span: str | None = None
) -> Dataset:
    """Load a split for a model: its own data set unless another is named, normalised as the model was trained.

    Args:
        info: Of the model.
        name: The data set's name or path.
        split: ``train``, ``validation`` or ``test``.
        images: So many only, drawn with a fixed seed.
        span: That part only, as :meth:`Dataset.part` has it.

    Raises:
        InvalidInputError: If there are fewer images than asked for, or the model takes others or does not know a class.
    """
    data = info.adapt(load_dataset(info.dataset if name is None else name, split))
    if span is not None:
        data = data.part(span)
    if images is None:
        return data
    if not 1 <= images <= len(data):
        raise InvalidInputError(f"--images is {images}; {data.name}/{split} has {len(data)} images. Give 1 to that.")
    return data.sample(images)


def accuracies(network: torch.nn.Module, info: CNNInfo, dataset: str | None) -> dict[Dataset, float]:
    """Return a network's accuracy (0 to 1) on the validation and test split."""
    splits = [open_split(info, dataset, split) for split in ("validation", "test")]
    return {data: accuracy(network, data) for data in splits}


def with_history(info: CNNInfo, step: str, seed: int, **facts: Any) -> CNNInfo:
    """Add to a model's metadata how this step made it, and any further facts."""
    entry = {"step": step, "command": command_line(), "seed": seed}
    history = [*info.metadata.get("history", []), entry]
    return dataclasses.replace(info, metadata={**info.metadata, **facts, "history": history})
