"""``predict``: a model on image files (step 4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunegym.commands.options import GATED, AnyMachine, Execution, ShownPenalty, grouped
from prunegym.commands.output import Table, emit, percent

if TYPE_CHECKING:
    from prunegym.models.dynamic_cnn import DynamicCNN


@grouped
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, of any size.")],
    machine: AnyMachine,
    model: Annotated[str, typer.Option("--model", help=GATED)] = "digits",
    penalty: ShownPenalty = None,
    execution: Execution = "masked",
) -> None:
    """Predict image files, and print the share of channels and MACs that each one used."""
    from prunegym.models.catalog import open_model
    from prunegym.models.dynamic_cnn import DynamicCNN

    machine.settle()
    dynamic = DynamicCNN.of(open_model(model), model).to(machine.device).skip(execution)
    rows = describe(dynamic, images, penalty)
    document = {"model": model, "execution": execution, "images": rows}
    emit(document, machine.as_json, prediction_table(f"Predictions of {model}", rows))


def prediction_table(title: str, rows: list[dict[str, Any]]) -> Table:
    """Return a table of what :func:`describe` returns."""
    shown = []
    for row in rows:
        chance = "" if row["probability"] is None else percent(row["probability"])
        kept, share = percent(row["kept_share"]), percent(row["mac_share"])
        shown.append([row["file"], row["label"], chance, kept, f"{row['macs']:,}", share])
    columns = ["image", "label", "probability", "channels kept", "MACs", "of the dense MACs"]
    return Table(title, columns, shown, "MACs are those of the masked CNN and its policy.")


def describe(model: DynamicCNN, files: Sequence[Path], penalty: float | None = None) -> list[dict[str, Any]]:
    """Return the model's prediction for each image file as plain JSON; the probability is given only for classes."""
    from prunegym.models.tasks.answers import answers

    found = model.predict(files, penalty)
    chances = answers(model.info.objective.kind, found.logits, model.classes)[2]
    columns = {
        "file": [str(file) for file in files], "label": found.names,
        "probability": [None] * len(files) if chances is None else chances.tolist(),
        "kept_share": found.masks.double().mean(1).tolist(), "macs": found.macs.long().tolist(),
        "mac_share": found.mac_share.tolist(),
    }  # fmt: skip
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
