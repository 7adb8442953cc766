"""The kernel, skipping in float32, int8 and bfloat16, against dense engines of lower precision.

All run in one process, in turn, round after round; the table gives medians. Weights are random. Masks are random too,
each gate's kept share drawn from 0.3 to 0.7, other masks each round. Int8 models are calibrated on random images, so
this measures time and not accuracy. It needs packages that PruneGym does not:

    pip install 'prunegym[onnx]' openvino nncf
    python benchmarks/engines.py --cases resnet20-32-1 vgg16-32-1 --json results/speed/engines.json

On a busy machine `--clock cpu` (one thread only) counts the processor time of this process. What a processor with AVX2
alone would do is seen with ONEDNN_MAX_CPU_ISA=AVX2 for OpenVINO, PRUNEGYM_KERNEL=avx2, PRUNEGYM_INT8=bytes8 and
PRUNEGYM_BFLOAT16=pairs8 for the kernel, and `--fastest`, since ONNX Runtime has no such limit.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import itertools
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nncf
import onnxruntime
import openvino
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from torch import Tensor, nn

from prunegym.models import MaskedCNN, SkippingCNN, build
from prunegym.models.skipping.int8_path import calibrate
from prunegym.models.stopwatch import median_seconds
from prunegym.models.storage.run_folder import machine
from prunegym.models.timing.latency_measurement import random_masks

BATCHES = 8
TURN = 0.2
"""Seconds for which a form runs in each round: a processor takes a while to recover from the one before."""
LIMITS = ("ONEDNN_MAX_CPU_ISA", "PRUNEGYM_KERNEL", "PRUNEGYM_INT8", "PRUNEGYM_BFLOAT16")
"""Environment variables that keep engines from using all instructions of the processor."""
Form = Callable[[], object]


class Images(CalibrationDataReader):  # type: ignore[misc]
    """Images on which ONNX Runtime calibrates its int8 model."""

    def __init__(self, batches: list[Tensor]) -> None:
        self._rest: Iterator[Tensor] = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next input; None at the end."""
        images = next(self._rest, None)
        return None if images is None else {"images": images.numpy()}


def skipping(masked: MaskedCNN, batches: list[Tensor], masks: list[Tensor]) -> dict[str, Form]:
    """Return the kernel with masks, and with all channels on."""
    masked.ranges = calibrate(masked, None, batches[:1])
    ones = torch.ones_like(masks[0])
    forms: dict[str, Form] = {}
    for precision, execution in (("float32", "kernel"), ("int8", "int8"), ("bfloat16", "bfloat16")):
        fast = SkippingCNN(masked, execution=execution)
        both, images = itertools.cycle(zip(batches, masks, strict=True)), itertools.cycle(batches)
        forms[f"kernel {precision}, skipping"] = lambda run=fast, given=both: run(*next(given))
        forms[f"kernel {precision}, all channels"] = lambda run=fast, given=images: run(next(given), ones)
    return forms


def in_openvino(file: bytes, batches: list[Tensor], threads: int) -> dict[str, Form]:
    """Return OpenVINO in float32, bfloat16 and, quantised by nncf, int8 (what stays float runs in bfloat16).

    Without instructions for bfloat16 that form is missing, and int8 has float32 in its place.
    """
    core, arrays = openvino.Core(), [images.numpy() for images in batches]
    plain = core.read_model(io.BytesIO(file))
    int8 = nncf.quantize(core.read_model(io.BytesIO(file)), nncf.Dataset(arrays))
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    wanted = {"float32": (plain, "f32"), "bfloat16": (plain, "bf16"), "int8": (int8, "bf16")}
    forms: dict[str, Form] = {}
    for name, (model, precision) in wanted.items():
        try:
            made = core.compile_model(model, "CPU", {**settings, "INFERENCE_PRECISION_HINT": precision})
        except RuntimeError:
            if name != "int8":
                continue
            made = core.compile_model(model, "CPU", {**settings, "INFERENCE_PRECISION_HINT": "f32"})
        request = made.create_infer_request()
        forms[f"OpenVINO {name}"] = _each(lambda x, run=request: run.infer([x], share_inputs=True), arrays)
    return forms


def in_onnx_runtime(file: bytes, batches: list[Tensor], threads: int) -> dict[str, Form]:
    """Return ONNX Runtime in float32 and int8."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path, quantised = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        path.write_bytes(file)
        quantize_static(path, quantised, Images(batches), quant_format=QuantFormat.QDQ, per_channel=True)
        files = {"float32": file, "int8": quantised.read_bytes()}
    arrays, forms = [images.numpy() for images in batches], {}
    for name, model in files.items():
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        forms[f"ONNX Runtime {name}"] = _each(lambda x, run=session: run.run(None, {"images": x}), arrays)
    return forms


def in_torch(network: nn.Module, batches: list[Tensor]) -> dict[str, Form]:
    """Return torch in bfloat16, traced and frozen."""
    half = network.to(torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = [one.to(torch.bfloat16, memory_format=torch.channels_last) for one in batches]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.freeze(torch.jit.trace(half, images[0]))
    return {"torch bfloat16": _each(traced, images)}


def _each(run: Callable[[Any], object], inputs: list[Any]) -> Form:
    """Return a function that runs the next input at each call."""
    following = itertools.cycle(inputs)
    return lambda: run(next(following))


def run_case(case: str, threads: int, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a network at a size and batch, and print its table."""
    name, size, batch = case.split("-")[0], *map(int, case.split("-")[1:])
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(batch, 3, size, size, generator=generator) for _ in range(BATCHES)]
    masked = MaskedCNN(build(name, image_size=size), batches[0][:1])
    masks = [random_masks(batch, [gate.width for gate in masked.gates], generator) for _ in range(BATCHES)]
    file: Any = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(masked.network, (batches[0],), file, input_names=["images"], dynamo=False)
    forms = {**skipping(masked, batches, masks), **in_openvino(file.getvalue(), batches, threads)}
    if not args.fastest:
        forms |= in_onnx_runtime(file.getvalue(), batches, threads)
        forms |= in_torch(build(name, image_size=size).eval(), batches)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    forms = {name: form for name, form in forms.items() if args.only in name}
    seconds = median_seconds(forms, args.rounds, clock, limit=90.0, turn=TURN, most_calls=1000)
    share = float(masked.cost.mac_share(torch.cat(masks)).mean())
    fastest = min((value for form, value in seconds.items() if not form.startswith("kernel")), default=float("nan"))
    print(f"\n{case}, {threads} thread(s), MAC share {share:.3f}, load {os.getloadavg()[0]:.1f}")
    for form, value in seconds.items():
        print(f"  {form:30s} {1e3 * value:10.3f} ms   {value / fastest:.2f} of the fastest dense engine", flush=True)
    return {
        "case": case, "threads": threads, "clock": args.clock, "load": round(os.getloadavg()[0], 1),
        "mac_share": share, "seconds": {form: float(f"{value:.4g}") for form, value in seconds.items()},
    }  # fmt: skip


def main() -> None:
    """Parse the command line and run the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["resnet20-32-1"], metavar="NETWORK-SIZE-BATCH")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=60, help="of each case, for 90 seconds at most")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--fastest", action="store_true", help="leave out ONNX Runtime and torch, which are slower")
    parser.add_argument("--only", default="", help="only forms whose name has this, for a profiler such as perf")
    parser.add_argument("--json", type=Path, help="write the results there too")
    args = parser.parse_args()
    with torch.no_grad():
        results = [run_case(case, threads, args) for case in args.cases for threads in args.threads]
    if args.json:
        packages = {name: importlib.metadata.version(name) for name in ("openvino", "nncf", "onnxruntime")}
        limits = {name: os.environ[name] for name in LIMITS if name in os.environ}
        document = {"machine": {**machine(), **packages, **limits}, "results": results}
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
