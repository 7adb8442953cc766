"""``predict``: a model on image files (step 4)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunegym.commands.options import AnyMachine, Execution, ShownPenalty, grouped
from prunegym.commands.output import Table, emit, percent
from prunegym.errors import InvalidInputError, MissingDataError

if TYPE_CHECKING:
    from torch import Tensor

    from prunegym.models.dynamic_cnn import DynamicCNN
    from prunegym.models.storage.cnn_info import CNNInfo


@grouped
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files; they are resized.")],
    machine: AnyMachine,
    model: Annotated[str, typer.Option("--model", help="A model file or a shipped model.")] = "digits",
    penalty: ShownPenalty = None,
    execution: Execution = "masked",
) -> None:
    """Step 4: classify image files, and say what share of the channels and of the MACs each one took."""
    import torch

    from prunegym.models.catalog import open_trained
    from prunegym.models.dynamic_cnn import DynamicCNN

    machine.settle()
    dynamic = DynamicCNN.of(open_trained(model), model).to(machine.device).skip(execution)
    pixels = torch.stack([read_image(path, dynamic.info) for path in images])
    rows = describe(dynamic, [str(path) for path in images], pixels, penalty)
    document = {"model": model, "execution": execution, "images": rows}
    emit(document, machine.as_json, prediction_table(f"Predictions of {model}", rows))


def prediction_table(title: str, rows: list[dict[str, Any]]) -> Table:
    """Return a table of what :func:`describe` returns."""
    shown = [
        [row["file"], row["label"], percent(row["probability"]), percent(row["kept_share"]), f"{row['macs']:,}",
         percent(row["mac_share"])]
        for row in rows
    ]  # fmt: skip
    columns = ["image", "label", "probability", "channels kept", "MACs", "of the dense MACs"]
    return Table(title, columns, shown, "MACs are those of the masked CNN and of deciding the mask.")


def describe(model: DynamicCNN, files: list[str], pixels: Tensor, penalty: float | None = None) -> list[dict[str, Any]]:
    """Return for each image (batch, channels, height, width) what a model says of it, plain JSON."""
    found = model.predict(pixels, penalty)
    chances = found.logits.softmax(1).gather(1, found.labels[:, None])[:, 0]
    columns = {
        "file": files, "label": found.names, "probability": chances.tolist(),
        "kept_share": found.masks.double().mean(1).tolist(), "macs": found.macs.long().tolist(),
        "mac_share": found.mac_share.tolist(),
    }  # fmt: skip
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def read_image(path: Path, info: CNNInfo) -> Tensor:
    """Read an image file as (channels, height, width) uint8 of a model's size.

    Raises:
        MissingDataError: If there is no such file.
        InvalidInputError: If it is no image, or the model takes neither grey nor RGB images.
    """
    import numpy as np
    import torch
    from PIL import Image

    from prunegym.models.data.files.decoding import UNREADABLE, eight_bits

    channels, height, width = info.image_shape
    if channels not in (1, 3):
        raise InvalidInputError(f"The model takes images of {channels} channels; image files have 1 or 3. Use Python.")
    if not path.is_file():
        raise MissingDataError(f"There is no image {path}. Check the path.")
    try:
        with Image.open(path) as image:
            converted = eight_bits(image).convert("L" if channels == 1 else "RGB")
            scaled = converted if converted.size == (width, height) else converted.resize((width, height))
    except UNREADABLE as error:
        raise InvalidInputError(f"{path} is no image file that Pillow can read ({error}).") from error
    pixels = torch.from_numpy(np.asarray(scaled, dtype=np.uint8).copy())
    return pixels.view(height, width, channels).permute(2, 0, 1).contiguous()
