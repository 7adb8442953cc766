"""The kernel beside the rough prototype that its bars were set by: same networks, same masks, one thread.

The prototype is for AVX-512 alone and is not part of this repository; give the folder that has its skipk.cpp.

    python benchmarks/prototype.py ../shared/prototypes/skipping --json prototype.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunegym.models import GatePolicy, MaskedCNN, MaskFeatures, SkippingCNN, kernel
from prunegym.models.runs import command_line
from prunegym.models.timing import machine, measure, random_masks

MASKS = 16
SLOWER = 1.10
"""The largest time that is good enough, as a ratio to the prototype's."""


def load_prototype(folder: Path) -> tuple[Any, Any]:
    """Build the prototype where nothing of it stays, and return its modules of networks and of kernels."""
    sys.path.insert(0, str(folder.resolve()))
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        source = str(folder.resolve() / "skipk.cpp")
        command = ["g++", "-O3", "-march=native", "-shared", "-fPIC", "-o", f"{place}/libskip.so", source]
        subprocess.run(command, check=True)
        os.chdir(place)
        try:
            return importlib.import_module("nets"), importlib.import_module("ck")
        finally:
            os.chdir(before)


def in_turn(calls: list[Callable[[], object]]) -> Callable[[], object]:
    """Return a function that makes another of the calls each time."""
    position = 0

    def call() -> object:
        nonlocal position
        position += 1
        return calls[position % len(calls)]()

    return call


def ours(network: torch.nn.Module, images: Tensor, masks: list[Tensor]) -> tuple[MaskedCNN, list[Callable[[], Tensor]]]:
    """Return the masked network, and for each mask a call of the kernel."""
    masked = MaskedCNN(network, images)
    fast = SkippingCNN(masked, execution="kernel")
    return masked, [lambda mask=mask: fast(images, mask)[0] for mask in masks]  # type: ignore[misc]


def given_masks(name: str, nets: Any, ck: Any, size: int, batch: int = 1) -> dict[str, list[Callable[[], Tensor]]]:
    """Return calls of both kernels, and of both with all channels, for a network of the prototype."""
    torch.manual_seed(0)
    network = (nets.VGG() if name == "vgg16" else nets.R20()).eval()
    widths = nets.VCH if name == "vgg16" else nets.RCH
    images = torch.randn(batch, 3, size, size)
    generator = torch.Generator().manual_seed(0)
    masks = [random_masks(batch, widths, generator) for _ in range(MASKS)]
    masks.append(torch.ones(batch, sum(widths), dtype=torch.bool))
    rough = ck.CVGG(network, size, batch, 20 if size == 224 else 300) if name == "vgg16" else ck.CR20(network)
    prepared = [rough.prep([part.float().numpy() for part in torch.split(mask, widths, 1)]) for mask in masks]
    theirs = [lambda one=one: rough.run(images, one) for one in prepared]
    if batch > 1:  # chunks of 16 output channels were its best
        theirs = [lambda one=one: rough.run(images, one, 16) for one in prepared]
    masked, own = ours(network, images, masks)
    for mask, first, second in zip(masks, own, theirs, strict=True):
        expected = masked(images, mask.float())
        for result in (first(), second()):
            torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    return {
        "ours": own[:-1], "prototype": theirs[:-1],
        "ours, all channels": own[-1:], "prototype, all channels": theirs[-1:],
    }  # fmt: skip


def deciding(nets: Any, ck: Any) -> dict[str, list[Callable[[], Tensor]]]:
    """Return calls of both kernels for ResNet-20 with a policy of averages, 64 hidden units, the same weights."""
    torch.manual_seed(0)
    network, images = nets.R20().eval(), torch.randn(1, 3, 32, 32)
    masked = MaskedCNN(network, images)
    policy = GatePolicy(MaskFeatures(masked, grid=1), hidden=64, bias=0.0)
    policy.rescale_logits(50.0)
    parts = [[head[0].weight.T, head[0].bias, head[2].weight.T, head[2].bias] for head in policy.heads]
    rough = ck.CR20(network)
    rough.set_policy([[tensor.detach().contiguous() for tensor in part] for part in parts], 0)
    fast = SkippingCNN(masked, policy, "kernel")
    kept = fast(images)[1].sum(), int(np.sum(rough.runp(images)[1]))
    print(f"channels kept: ours {int(kept[0])}, prototype {kept[1]}")
    return {"ours": [lambda: fast(images)[0]], "prototype": [lambda: rough.runp(images)[0]]}


CASES: dict[str, Callable[[Any, Any], dict[str, list[Callable[[], Tensor]]]]] = {
    "vgg16-224": lambda nets, ck: given_masks("vgg16", nets, ck, 224),
    "vgg16": lambda nets, ck: given_masks("vgg16", nets, ck, 32),
    "vgg16-64": lambda nets, ck: given_masks("vgg16", nets, ck, 32, 64),
    "resnet20": lambda nets, ck: given_masks("resnet20", nets, ck, 32),
    "resnet20-policy": deciding,
}


def main() -> None:
    """Parse the command line, time both and tell the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prototype", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path, help="write the results there too")
    args = parser.parse_args()
    if not kernel.available():
        sys.exit(f"No compiled kernel: {kernel.unavailable_reason()}")
    torch.set_num_threads(1)
    nets, ck = load_prototype(args.prototype)
    results: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        for name, make in CASES.items():
            calls = make(nets, ck)
            forms = {form: in_turn(some) for form, some in calls.items()}
            results[name] = measure(forms, args.rounds, limit=30.0)
            for form in ("ours", "ours, all channels"):
                if form in forms:
                    own, rough = results[name][form], results[name][form.replace("ours", "prototype")]
                    verdict = "met" if own <= SLOWER * rough else "MISSED"
                    print(
                        f"{name:16s} {form:20s} {1e3 * own:8.3f} ms, prototype {1e3 * rough:8.3f} ms: "
                        f"ratio {own / rough:.3f}  bar {SLOWER:.2f} {verdict}",
                        flush=True,
                    )
    if args.json:
        document = {"machine": machine(), "command": command_line(), "seconds": results}
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
