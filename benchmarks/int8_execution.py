"""Execution int8 beside float32, both skipping: accuracy, agreement, MACs and time on a model's own test images.

Ranges are measured on 1,024 training images; masks are decided under int8. Batches of 64 images run in both executions
in turn, in one process; the ratio is the median over batches. The bar: at most 0.3 points of accuracy lost.

    python benchmarks/int8_execution.py digits results/cifar10-jpeg/frozen.safetensors --json int8.json

The exit code is 1 if the bar is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from prunegym.models import SkippingCNN, load_dataset
from prunegym.models.catalog import open_model
from prunegym.models.gating.static_policy import deciding_macs
from prunegym.models.skipping.int8_path import calibrate
from prunegym.models.storage.run_folder import machine

IMAGES, BATCH = 1024, 64
LARGEST_LOSS = 0.003
FORMS = {"float32": "kernel", "int8": "int8"}


@torch.inference_mode()
def run(name: str, images: int | None) -> dict[str, Any]:
    """Compare both executions of a model, and print its figures."""
    stored = open_model(name)
    masked, policy, info = stored.masked, stored.policy, stored.info
    train, test = (info.adapt(load_dataset(info.dataset, split)) for split in ("train", "test"))
    test = test if images is None else test.sample(images)
    masked.ranges = calibrate(masked, policy, (batch for _, batch in train.sample(IMAGES).batches(BATCH)))
    forms = {form: SkippingCNN(masked, policy, execution) for form, execution in FORMS.items()}
    found: dict[str, list[Any]] = {form: [] for form in FORMS}
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    indices = []
    for rows, batch in test.batches(BATCH):
        indices.append(rows)
        for form, model in forms.items():
            start = time.perf_counter()
            found[form].append(model(batch))
            seconds[form].append((time.perf_counter() - start) / len(batch))
    order = torch.cat(indices)
    outputs = {form: torch.cat([part.output for part in parts]) for form, parts in found.items()}
    masks = {form: torch.cat([part.mask for part in parts]) for form, parts in found.items()}
    figures = {
        form: {
            "accuracy": test.score(outputs[form], order).mean().item(),
            "total_mac_share": masked.cost.total_share(
                masks[form], deciding_macs(masked, policy, masks[form]) if policy else 0.0
            ).mean().item(),
            "seconds": statistics.median(seconds[form]),
        }
        for form in FORMS
    }  # fmt: skip
    ratios = [int8 / float32 for float32, int8 in zip(*seconds.values(), strict=True)]
    result = {
        "model": name, "data": f"{test.name}/{test.split}", "images": len(test), **figures,
        "path": forms["int8"].path("int8").label,
        "accuracy_lost": figures["float32"]["accuracy"] - figures["int8"]["accuracy"],
        "same_prediction": (outputs["float32"].argmax(1) == outputs["int8"].argmax(1)).double().mean().item(),
        "same_mask_bits": (masks["float32"] == masks["int8"]).double().mean().item(),
        "time_ratio": statistics.median(ratios),
    }  # fmt: skip
    result["met"] = result["accuracy_lost"] <= LARGEST_LOSS
    print(f"\n{name}: {result['data']}, {len(test):,} images, {result['path']}")
    for form, row in figures.items():
        line = f"  {form:8s} accuracy {100 * row['accuracy']:.2f}, total MACs {row['total_mac_share']:.4f}"
        print(f"{line}, {1e3 * row['seconds']:.3f} ms per image")
    print(
        f"  points lost {100 * result['accuracy_lost']:+.2f} (bar {100 * LARGEST_LOSS:.1f}: "
        f"{'met' if result['met'] else 'MISSED'}), same prediction {100 * result['same_prediction']:.2f} %, "
        f"same mask bits {100 * result['same_mask_bits']:.2f} %, time ratio {result['time_ratio']:.3f}",
        flush=True,
    )
    return result


def main() -> None:
    """Parse the command line and compare the models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="shipped models or files")
    parser.add_argument("--images", type=int, help="so many test images only, drawn with a fixed seed")
    parser.add_argument("--json", type=Path, help="write the results there too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = [run(name, args.images) for name in args.models]
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")
    sys.exit(0 if all(result["met"] for result in results) else 1)


if __name__ == "__main__":
    main()
