"""Time of an exported masked model in ONNX Runtime as a ratio to its dense export, batch 1.

Both run in one process, in turn, round after round; the table gives medians. Masks are random, each gate's kept share
drawn from 0.3 to 0.7, another mask each round; the mask is an input of the model. With --policy a layerwise gate policy
with random weights decides instead (hidden 64, averages and a grid of 4x4).

    python benchmarks/onnx_export.py --cases vgg16-224 vgg16-32 resnet20-32 --threads 1 2 --json results/speed/onnx.json

On a busy machine `--clock cpu` (one thread only) counts the processor time of this process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from prunegym.models import CNNInfo, GatePolicy, MaskedCNN, MaskFeatures, Normalisation, build
from prunegym.models.export.onnx_model import export_onnx
from prunegym.models.storage.model_file import Bundle
from prunegym.models.storage.run_folder import machine
from prunegym.models.timing.latency_measurement import random_masks


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """A session of so many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def make_model(name: str, size: int, policy: bool) -> Bundle:
    """A network of the zoo with fresh weights."""
    masked = MaskedCNN(build(name, image_size=size), torch.zeros(1, 3, size, size))
    classes = tuple(map(str, range(10)))
    info = CNNInfo(name, 10, (3, size, size), Normalisation((0.5,) * 3, (0.25,) * 3), classes, "none")
    head = GatePolicy(MaskFeatures(masked), bias=0.0) if policy else None
    return Bundle(masked=masked, info=info, policy=head)


def run_case(name: str, size: int, threads: int, args: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Measure one network, and print its table."""
    torch.manual_seed(0)
    model = make_model(name, size, args.policy)
    way = "policy" if args.policy else "input"
    dense = open_session(export_onnx(model, folder / "dense.onnx", "all"), threads)
    sparse = open_session(export_onnx(model, folder / "masked.onnx", way), threads)
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (1, 3, size, size), generator=generator).byte().numpy() for _ in range(8)]
    widths = [gate.width for gate in model.masked.gates]
    masks = [random_masks(1, widths, generator) for _ in range(8)]
    feeds = [
        {"images": image} if args.policy else {"images": image, "mask": mask.numpy()}
        for image, mask in zip(images, masks, strict=True)
    ]
    if args.policy:
        masks = [torch.from_numpy(sparse.run(["mask"], feed)[0]) for feed in feeds]
    every = {**feeds[0], "mask": np.ones_like(masks[0].numpy())}
    turn = iter(range(1 << 30))
    forms: dict[str, Callable[[], object]] = {
        "dense export": lambda: dense.run(None, {"images": images[0]}),
        "masked export": lambda: sparse.run(None, feeds[next(turn) % len(feeds)]),
    }
    if not args.policy:
        forms["masked export, all channels"] = lambda: sparse.run(None, every)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {form: [] for form in forms}
    for number in range(args.rounds + 2):
        for form, function in forms.items():
            start = clock()
            function()
            if number >= 2:  # the first rounds warm up
                times[form].append(clock() - start)
    seconds = {form: statistics.median(values) for form, values in times.items()}
    macs = float(model.masked.cost.mac_share(torch.cat(masks)).mean())
    print(f"\n{name} {size}x{size}, {threads} thread(s), onnxruntime {onnxruntime.__version__}; MAC ratio {macs:.3f}")
    for form, value in seconds.items():
        print(f"  {form:28s} {value * 1e3:10.3f} ms   ratio {value / seconds['dense export']:.3f}", flush=True)
    return {"case": f"{name}-{size}", "threads": threads, "mac_ratio": macs, "policy": args.policy, "seconds": seconds}


def main() -> None:
    """Parse the command line and run the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["vgg16-224"], metavar="MODEL-SIZE")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--policy", action="store_true", help="a policy decides; else the mask is an input")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--json", type=Path, help="write the results there too")
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for case in args.cases:
            name, size = case.rsplit("-", 1)
            results += [run_case(name, int(size), threads, args, Path(folder)) for threads in args.threads]
    if args.json:
        here = {**machine(), "onnxruntime": onnxruntime.__version__}
        args.json.write_text(json.dumps({"machine": here, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
