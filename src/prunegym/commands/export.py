"""``export``: a model for other runtimes."""

from __future__ import annotations

import importlib.util
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunegym.commands.options import NO_DATA, JsonFlag, Network, TrainedModel, grouped
from prunegym.commands.output import Facts, emit, note
from prunegym.errors import InvalidInputError

if TYPE_CHECKING:
    from prunegym.models.storage.model_file import Bundle

ROUNDS, SECONDS = 9, 10.0


@grouped
def export(
    model: TrainedModel,
    network: Network,
    out: Annotated[Path, typer.Option("--out", help="The ONNX file.")],
    dense: Annotated[bool, typer.Option("--dense", help="The CNN with all channels on, without the policy.")] = False,
    mask_input: Annotated[bool, typer.Option("--mask-input", help="Make the mask an input, without a policy.")] = False,
    pixels: Annotated[str, typer.Option("--pixels", help="Type of images: uint8, or unit: float32 in 0-1.")] = "uint8",
    penalty: Annotated[float | None, typer.Option(help="Fix lambda, for a range of lambdas; else an input.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write policy and CNN as one ONNX model for one image per call; masked channels are not computed."""
    from prunegym.models.export.onnx_channels import cut_gates
    from prunegym.models.export.onnx_model import export_onnx

    if dense and mask_input:
        raise InvalidInputError(
            "--dense keeps all channels, so it takes no mask. Give one of --dense and --mask-input."
        )
    stored = network.open(model, NO_DATA)
    decide: Any = "all" if dense else "input" if mask_input else "policy"
    export_onnx(stored, out, decide, pixels, penalty)  # type: ignore[arg-type]  # the name is checked there
    shape = ", ".join(map(str, (1, *stored.info.image_shape)))
    gates, cut = len(stored.masked.gates), 0 if dense else len(cut_gates(stored.masked))
    document: dict[str, Any] = {
        "model": model, "file": str(out), "bytes": out.stat().st_size, "decide": decide, "gates": gates,
        "gates_cut": cut, "images": f"({shape}) {'uint8' if pixels == 'uint8' else 'float32'}",
    }  # fmt: skip
    rows = {
        "file": f"{out}, {document['bytes']:,} bytes",
        "input": f"images {document['images']}",
        "channels left out": f"in {cut} of {gates} gates; in the others they are computed and set to zero",
    }
    over = None if decide != "policy" else over_dense(stored, out, pixels)
    if over is not None:
        document["time_over_dense"] = over
        rows["time here"] = f"{over:.2f} of the dense export's, on random images"
    emit(document, as_json, Facts(f"{model} as ONNX", rows))
    if over is not None and over > 1:
        note(f"The export takes {over:.2f} times as long as the dense network here: prunegym export --dense is faster.")


def over_dense(model: Bundle, masked: Path, pixels: str) -> float | None:
    """Return the time of an export with decisions over that of the dense one, medians in turn on random images.

    None if ONNX Runtime is not installed.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import numpy as np
    import onnxruntime

    from prunegym.models.export.onnx_model import export_onnx
    from prunegym.models.stopwatch import median_seconds

    random, shape = np.random.default_rng(0), (1, *model.info.image_shape)
    images = random.integers(0, 256, shape, np.uint8) if pixels == "uint8" else random.random(shape, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        dense = export_onnx(model, Path(folder) / "dense.onnx", "all", pixels)  # type: ignore[arg-type]
        forms = {
            name: partial(onnxruntime.InferenceSession(path).run, ["logits"], {"images": images})
            for name, path in (("masked", masked), ("dense", dense))
        }
        seconds = median_seconds(forms, ROUNDS, limit=SECONDS)
    return seconds["masked"] / seconds["dense"]
