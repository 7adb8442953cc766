"""Time of skipping execution as a ratio to the fastest dense form in torch, against the bars of the project.

All forms of a case run in one process, in turn, round after round, other images and masks each time, what is short
several times per round; the tables give medians. Dense forms are eager, norm-folded, channels_last, traced and frozen
or optimised, and with --compile torch.compile with freezing. If ONNX Runtime is installed, it is measured too, but not
used for the ratio.
Masks are random, each gate's kept share drawn from 0.3 to 0.7: every image its own, or eight in all. In the cases
"policy" an untrained gate policy (averages, hidden layer of 16) decides on the way; its time is in the figures.

    python benchmarks/skipping_kernel.py --cases resnet20 vgg16 --threads 1 2 --json skipping.json

A file that is there keeps its rows of other cases, if they are of the same machine: a table can be made case by case.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunegym.models import GatePolicy, MaskedCNN, MaskFeatures, SkippingCNN, build, kernel
from prunegym.models.storage.run_folder import machine
from prunegym.models.storage.weights import save_text
from prunegym.models.timing.latency_measurement import random_masks
from prunegym.models.timing.profiler import Profile, profile

BATCHES = 8
TORCH_ALONE = ("torch", "full")
NEVER_ABOVE = 1.05
"""Of the fastest dense form, for what is taken, also without the kernel."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A network at a size and batch, and the largest ratios that are good enough.

    Attributes:
        bars: By way of running.
        times_mac_share: The kernel's, as a multiple of the MAC share.
    """

    network: str
    size: int = 32
    batch: int = 1
    masks: str = "all different"
    bars: dict[str, float] = dataclasses.field(default_factory=dict)
    times_mac_share: float | None = None


CASES = {
    "vgg16-224": Case("vgg16", 224, bars={"kernel": 0.30, "torch": 0.40}),
    "vgg16": Case("vgg16", bars={"kernel": 0.36}),
    "resnet20": Case("resnet20", bars={"kernel": 0.40}),
    "resnet20-policy": Case("resnet20", masks="policy", bars={"kernel": 0.45}),
    "resnet18-224": Case("resnet18", 224, times_mac_share=1.15),
    "vgg16-64": Case("vgg16", 32, 64, bars={"kernel": 0.37}),
    "vgg16-64-eight": Case("vgg16", 32, 64, "eight in all", {"torch": 0.50}),
    "resnet20-64": Case("resnet20", 32, 64),
    "m-cifarnet": Case("m-cifarnet"),
    "simple-cnn-wide": Case("simple-cnn-wide"),
    "simple-cnn": Case("simple-cnn"),
    "vgg11": Case("vgg11"),
    "resnet56": Case("resnet56"),
}
KERNEL_DENSE = {224: 1.1, 32: 1.4}
"""Largest time over the kernel's own with all channels, as a multiple of the MAC share, by image size."""


def run_case(case: Case, threads: int, rounds: int, compiled: bool, clock: str) -> tuple[Profile, float]:
    """Measure a case; also return the error of the kernel, or of torch without one, relative to the masked network."""
    torch.set_num_threads(threads)
    masked = MaskedCNN(build(case.network, image_size=case.size), torch.zeros(1, 3, case.size, case.size))
    generator = torch.Generator().manual_seed(0)
    # In memory as `Normalisation` leaves images; dense forms get theirs in the layout that they like.
    shape = (case.batch, 3, case.size, case.size)
    batches = [
        torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last) for _ in range(BATCHES)
    ]
    widths = [gate.width for gate in masked.gates]
    masks: list[Tensor] | None = [random_masks(case.batch, widths, generator) for _ in range(BATCHES)]
    if case.masks == "eight in all":
        eight = random_masks(8, widths, generator)
        masks = [eight[torch.randint(8, (case.batch,), generator=generator)] for _ in range(BATCHES)]
    policy = None
    if case.masks == "policy":
        torch.manual_seed(0)
        masks, policy = None, GatePolicy(MaskFeatures(masked, grid=1), hidden=16, bias=0.0)
        policy.rescale_logits(50.0)
    found = profile(
        masked, batches, masks, policy, rounds=rounds, compiled=compiled,
        forget=case.masks != "eight in all", clock=time.process_time if clock == "cpu" else time.perf_counter,
    )  # fmt: skip
    fast = SkippingCNN(masked, policy, "kernel" if kernel.available() else "torch")
    output, used = fast(batches[0], None if masks is None else masks[0])
    expected = masked(batches[0], used.float())
    return found, float((output - expected).abs().max() / expected.abs().max())


def report(name: str, case: Case, threads: int, found: Profile, error: float) -> dict[str, Any]:
    """Print a case's table with its bars, and return it as JSON."""
    fastest = min(found.dense.values())
    print(
        f"\n{name}: {case.network} {case.size}x{case.size}, batch {case.batch}, masks {case.masks}, {threads} "
        f"thread(s); MAC share {found.mac_share:.3f}, error {error:.1e}"
    )
    bars = dict(case.bars)
    if case.times_mac_share is not None:
        bars["kernel"] = case.times_mac_share * found.mac_share
    times = {f"dense, {form}": value for form, value in found.dense.items()} | found.skipping | found.reference
    for form, seconds in times.items():
        ratio = seconds / fastest
        bar = f"  bar {bars[form]:.3f} {'met' if ratio <= bars[form] else 'MISSED'}" if form in bars else ""
        print(f"  {form:32s} {1e3 * seconds:10.3f} ms   ratio {ratio:.3f}{bar}")
    taken = found.skipping[found.taken] / fastest
    print(f"  auto takes {found.taken}: ratio {taken:.3f}  bar {NEVER_ABOVE:.3f} {_met(taken)}")
    without = min((way for way in TORCH_ALONE if way in found.skipping), key=lambda way: found.skipping[way])
    alone = found.skipping[without] / fastest
    print(f"  best without the kernel, {without}: ratio {alone:.3f}  bar {NEVER_ABOVE:.3f} {_met(alone)}")
    multiple = None
    if "kernel" in found.skipping:
        multiple = found.skipping["kernel"] / found.reference["kernel, all channels"] / found.mac_share
        bar = KERNEL_DENSE[case.size]
        print(
            f"  kernel / kernel with all channels: {multiple:.2f} x MAC share  bar {bar} "
            f"{'met' if multiple <= bar else 'MISSED'}",
            flush=True,
        )
    return {
        "case": name, "network": case.network, "size": case.size, "threads": threads, "error": error,
        "fastest_torch_dense": fastest, "bars": bars, "times_mac_share": multiple,
        "without_kernel": {"way": without, "ratio": alone, "bar": NEVER_ABOVE}, **found.as_json(),
    }  # fmt: skip


def _met(ratio: float) -> str:
    return "met" if ratio <= NEVER_ABOVE else "MISSED"


def rounded(value: Any) -> Any:
    """Return a JSON document with six digits of each number: more are noise."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def stored(file: Path | None) -> list[dict[str, Any]]:
    """Return the results that a file has already; one of another machine ends the program before anything is timed."""
    if file is None or not file.exists():
        return []
    found, here = json.loads(file.read_text()), machine()
    if any(found["machine"][name] != here[name] for name in ("processor", "instructions", "torch")):
        raise SystemExit(f"{file} is of another machine ({found['machine']}, this is {here}); write to a new file.")
    return list(found["results"])


def write(file: Path, earlier: list[dict[str, Any]], results: list[dict[str, Any]], brief: bool) -> None:
    """Write results in the order of the cases, and keep earlier ones of other cases."""
    new = [rounded({name: value for name, value in one.items() if not brief or name != "layers"}) for one in results]
    rows = {(one["case"], one["threads"]): one for one in (*earlier, *new)}
    order = sorted(rows, key=lambda row: (list(CASES).index(row[0]), row[1]))
    document = {"machine": machine(), "results": [rows[row] for row in order]}
    save_text(file, json.dumps(document, separators=(",", ":")))


def main() -> None:
    """Parse the command line and run the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=30, help="of each case, for a minute at most")
    parser.add_argument("--compile", action="store_true", help="also torch.compile with freezing")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: one thread, on a busy machine")
    parser.add_argument("--json", type=Path, help="write the results there too")
    parser.add_argument("--brief", action="store_true", help="leave the times of layers out of the file")
    args = parser.parse_args()
    if not kernel.available():
        print(f"No compiled kernel: {kernel.unavailable_reason()}")
    earlier, results = stored(args.json), []
    with torch.no_grad():
        for name in args.cases:
            for threads in args.threads:
                found, error = run_case(CASES[name], threads, args.rounds, args.compile, args.clock)
                results.append(report(name, CASES[name], threads, found, error))
    if args.json:
        write(args.json, earlier, results, args.brief)


if __name__ == "__main__":
    main()
