"""``quantize``: a model in a smaller file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunegym.commands.options import JsonFlag, Network, TrainedModel, grouped
from prunegym.commands.output import Facts, emit
from prunegym.errors import InvalidInputError


@grouped
def quantize(
    model: TrainedModel,
    network: Network,
    out: Annotated[Path, typer.Option("--out", help="The smaller model file.")],
    as_json: JsonFlag = False,
) -> None:
    """Store weights as int8 with one scale per output channel, in about a quarter of the size.

    The weights become float32 again when the file is read.
    """
    from prunegym.models.catalog import with_history
    from prunegym.models.dynamic_cnn import SHIPPED, shipped_path
    from prunegym.models.storage.model_file import write_model

    stored = network.open(model)
    source = shipped_path(model) if model in SHIPPED else network.weights or Path(model)
    if not source.is_file():
        raise InvalidInputError(f"{model} is a network by name, and not a file. Give its weights: --weights FILE.")
    before = source.stat().st_size
    info = with_history(stored.info, "quantize, int8 weights", 0)
    write_model(out, stored.masked.network, info, stored.policy, stored.masked, int8=True)
    after = out.stat().st_size
    document = {"model": model, "file": str(out), "bytes_before": before, "bytes": after, "ratio": after / before}
    rows = {"file": f"{out}, {after:,} bytes", "before": f"{before:,} bytes", "ratio": f"{after / before:.3f}"}
    emit(document, as_json, Facts(f"{model} with int8 weights", rows))
