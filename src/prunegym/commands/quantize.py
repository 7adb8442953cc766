"""``quantize``: a model in a smaller file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunegym.commands.options import Data, JsonFlag, Machine, Network, TrainedModel, grouped
from prunegym.commands.output import Facts, emit
from prunegym.errors import InvalidInputError

CALIBRATE = "Measure the ranges of values on training images, for execution int8."


@grouped
def quantize(
    model: TrainedModel,
    network: Network,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="The smaller model file.")],
    calibrate: Annotated[bool, typer.Option("--calibrate", help=CALIBRATE)] = False,
    images: Annotated[int, typer.Option(min=1, help="Training images for --calibrate.")] = 1024,
    as_json: JsonFlag = False,
) -> None:
    """Store weights as int8 with one scale per output channel, in about a quarter of the size.

    The weights become float32 again when the file is read. With --calibrate the model can also compute in int8, which
    is asked for by name: evaluate --execution int8, or skip("int8") in Python.
    """
    from prunegym.models.catalog import open_split, with_history
    from prunegym.models.dynamic_cnn import SHIPPED, shipped_path
    from prunegym.models.skipping.int8_path import calibrate as measure_ranges
    from prunegym.models.storage.model_file import write_model

    Machine().settle(data)
    stored = network.open(model, data)
    source = shipped_path(model) if model in SHIPPED else network.weights or Path(model)
    if not source.is_file():
        raise InvalidInputError(f"{model} is a network by name, and not a file. Give its weights: --weights FILE.")
    before = source.stat().st_size
    if calibrate:
        sample = open_split(stored.info, data.dataset, "train").sample(images)
        stored.masked.ranges = measure_ranges(stored.masked, stored.policy, (batch for _, batch in sample.batches(64)))
    info = with_history(stored.info, "quantize, int8 weights", 0)
    write_model(out, stored.masked.network, info, stored.policy, stored.masked, int8=True)
    after = out.stat().st_size
    document: dict[str, Any] = {
        "model": model,
        "file": str(out),
        "bytes_before": before,
        "bytes": after,
        "ratio": after / before,
    }
    document["calibrated"] = stored.masked.ranges is not None
    rows = {"file": f"{out}, {after:,} bytes", "before": f"{before:,} bytes", "ratio": f"{after / before:.3f}"}
    rows["execution int8"] = "calibrated" if stored.masked.ranges else "not calibrated (--calibrate)"
    emit(document, as_json, Facts(f"{model} with int8 weights", rows))
