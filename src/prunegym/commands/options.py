"""Options that several commands have, and what they set."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated

import torch
import typer

from prunegym.errors import InvalidInputError
from prunegym.models.checks import check_device
from prunegym.models.skipping.skipping_cnn import EXECUTIONS

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
