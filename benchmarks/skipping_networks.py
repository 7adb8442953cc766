"""Time of skipping on networks of torchvision and timm, as a ratio to the fastest dense form in torch.

Every form of a network runs in turn in one process, other images and masks each time. Masks are random, each gate's
kept share drawn from 0.3 to 0.7. The bar is 1.25 times the MAC share plus 0.10. `min` is the ratio of the shortest
times, `median` the median over the rounds of the ratio to the dense form that is the fastest by its shortest time.

    python benchmarks/skipping_networks.py --brief --json results/speed/networks.json
    python benchmarks/skipping_networks.py --brief --no-compile --json results/speed/networks-uncompiled.json

Needs torchvision and timm. Rows of the file that are of other networks stay, if they are of the same machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from skipping_kernel import rounded, stored
from torch import Tensor, nn

from prunegym.models import MaskedCNN, SkippingCNN, build
from prunegym.models.skipping.program.path import ExecutionPath
from prunegym.models.stopwatch import settle
from prunegym.models.storage.run_folder import machine
from prunegym.models.storage.weights import save_text
from prunegym.models.timing.latency_measurement import random_masks
from prunegym.models.timing.profiler import dense_forms

BATCHES = 8
PLAIN = {"aux_logits": False, "init_weights": False}
NETWORKS: dict[str, dict[str, Any]] = {
    "mobilenet_v2": {}, "mobilenet_v3_small": {}, "efficientnet_b0": {}, "efficientnet_lite0": {}, "densenet121": {},
    "googlenet": PLAIN, "squeezenet1_1": {}, "regnet_y_400mf": {}, "resnet50": {},
}  # fmt: skip
OWN = {"resnet20": 32, "vgg16": 224, "resnet18": 224}
"""Networks of this package that were fast already, and their sizes."""


def made(name: str) -> tuple[nn.Module, int]:
    """Return a network with random weights, and the side of its images."""
    torch.manual_seed(0)
    if name in OWN:
        return build(name, image_size=OWN[name]).eval(), OWN[name]
    if name == "efficientnet_lite0":
        return importlib.import_module("timm").create_model(name).eval(), 224
    return getattr(importlib.import_module("torchvision.models"), name)(weights=None, **NETWORKS[name]).eval(), 224


def bar(mac_share: float) -> float:
    """Return the largest ratio that is good enough."""
    return 1.25 * mac_share + 0.10


def times(
    forms: dict[str, Callable[[int], object]], rounds: int, limit: float, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Time all forms in turn, until there are enough rounds or the time is over."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for run in forms.values():
        settle(lambda run=run: run(0))  # type: ignore[misc]
    start = time.perf_counter()
    for turn in range(rounds):
        for name, run in forms.items():
            run(turn)  # its own weights come into the cache
            begun = clock()
            run(turn + 1)
            seconds[name].append(clock() - begun)
        if turn >= 4 and time.perf_counter() - start > limit:
            break
    return seconds


@torch.inference_mode()
def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a network and return its row."""
    network, size = made(name)
    masked = MaskedCNN(network, torch.zeros(1, 3, size, size))
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(1, 3, size, size, generator=generator) for _ in range(BATCHES)]
    masks = [random_masks(1, [gate.width for gate in masked.gates], generator) for _ in range(BATCHES)]
    share = float(masked.cost.mac_share(torch.cat(masks).float()).mean())
    dense, failed = dense_forms(masked.network, images[0], options.compile)
    dense = {form: run for form, run in dense.items() if options.dense is None or form in options.dense}
    fast = SkippingCNN(masked)
    ways = [way for way in fast.available if fast.path(way).measured]
    forms: dict[str, Callable[[int], object]] = {form: lambda _, run=run: run() for form, run in dense.items()}  # type: ignore[misc]
    for way in ways:
        forms[way] = _turns(fast.path(way), images, masks)
    if "kernel" in ways:
        everything = [torch.ones_like(mask) for mask in masks]
        forms["kernel, all channels"] = _turns(fast.path("kernel"), images, everything)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    seconds = times(forms, options.rounds, options.limit, clock)
    shortest = {form: min(found) for form, found in seconds.items()}
    best = min(dense, key=shortest.__getitem__)
    median = {
        form: statistics.median(a / b for a, b in zip(found, seconds[best], strict=True))
        for form, found in seconds.items()
    }
    taken = min(ways, key=shortest.__getitem__)
    row = {
        "network": name, "size": size, "mac_share": share, "bar": bar(share), "fastest_dense": best,
        "fastest_seconds": shortest[best], "taken": taken, "seconds": shortest,
        "ratio": shortest[taken] / shortest[best],
        "median_ratios": median, "failed": {**failed, **fast.unavailable}, "rounds": len(seconds[best]),
        "layers": parts(fast, images, masks, options.rounds),
    }  # fmt: skip
    report(row)
    return row


def _turns(path: ExecutionPath, images: list[Tensor], masks: list[Tensor]) -> Callable[[int], object]:
    def run(turn: int) -> object:
        path.forget()
        return path.run(images[turn % BATCHES], masks[turn % BATCHES], None)

    return run


def parts(fast: SkippingCNN, images: list[Tensor], masks: list[Tensor], rounds: int) -> list[dict[str, Any]]:
    """Return the shortest time of each layer in the first path that skips, with the masks and with all channels."""
    path = next((fast.path(way) for way in fast.available if fast.path(way).skips), None)
    if path is None:
        return []
    layers = {layer.name: layer for layer in path.program.layers}
    found: list[dict[str, float]] = []
    for kept in (masks, [torch.ones_like(mask) for mask in masks]):
        each = [path.timed(images[turn % BATCHES], kept[turn % BATCHES]) for turn in range(rounds)]
        found.append({part: min(one[part] for one in each) for part in each[0]})
    return [
        {
            "layer": layers[part].label if part in layers else part,
            "kind": describe(layers[part]) if part in layers else part,
            "seconds": value, "all_channels": found[1][part],
        }
        for part, value in found[0].items()
    ]  # fmt: skip


def describe(layer: Any) -> str:
    """Return a layer's kind in a word or two."""
    if not hasattr(layer, "weight") or layer.weight.ndim != 4:
        return type(layer).__name__.lower() if type(layer).__name__ != "Other" else f"other: {layer.name}"
    size, groups = "x".join(map(str, layer.weight.shape[2:])), layer.groups
    kind = "conv" if groups == 1 else "depthwise" if layer.weight.shape[1] == 1 else "grouped"
    return f"{kind} {size}{'' if max(layer.stride) == 1 else f' /{layer.stride[0]}'}"


def report(row: dict[str, Any]) -> None:
    """Print a network's row."""
    fastest = row["seconds"][row["fastest_dense"]]
    verdict = "met" if row["ratio"] <= row["bar"] else "MISSED"
    print(f"\n{row['network']}: MAC share {row['mac_share']:.3f}, {row['rounds']} rounds")
    for form, seconds in row["seconds"].items():
        ratio, median = seconds / fastest, row["median_ratios"][form]
        print(f"  {form:28s} {1e3 * seconds:9.3f} ms   min {ratio:.3f}   median {median:.3f}")
    print(f"  takes {row['taken']}: {row['ratio']:.3f}, bar {row['bar']:.3f} {verdict}; never above 1.05")
    for way, reason in row["failed"].items():
        print(f"  {way}: {reason[:150]}")
    kinds, full = Counter[str](), Counter[str]()
    for part in row["layers"]:
        kinds[part["kind"]] += part["seconds"]
        full[part["kind"]] += part["all_channels"]
    for kind, seconds in kinds.most_common(14):
        print(f"    {kind:26s} {1e3 * seconds:8.3f} ms   all channels {1e3 * full[kind]:8.3f}", flush=True)


def main() -> None:
    """Parse the command line and measure the networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join([*NETWORKS, *OWN]))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--limit", type=float, default=60, help="seconds after which no further round begins")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--dense", nargs="+", metavar="FORM", help="these dense forms alone")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: of this process alone")
    parser.add_argument("--layers", action="store_true", help="print each layer")
    parser.add_argument("--json", type=Path, help="write the results there too")
    parser.add_argument("--brief", action="store_true", help="leave the times of layers out of the file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    earlier = stored(options.json)
    rows = {row["network"]: row for row in earlier}
    for name in options.networks or [*NETWORKS, *OWN]:
        row = measured(name, options)
        if options.layers:
            for part in row["layers"]:
                print(f"    {part['layer']:40s} {part['kind']:20s} {1e6 * part['seconds']:9.1f} us")
        rows[name] = rounded({key: value for key, value in row.items() if not options.brief or key != "layers"})
        if options.json:
            order = [known for known in (*NETWORKS, *OWN) if known in rows]
            document = {"machine": machine(), "results": [rows[known] for known in order]}
            save_text(options.json, json.dumps(document, separators=(",", ":")))


if __name__ == "__main__":
    main()
