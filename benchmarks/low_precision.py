"""Executions int8 and bfloat16 beside float32, all skipping, on a model's own test images: accuracy, MACs and time.

Ranges for int8 are measured on 1,024 training images; masks are decided under each execution. Batches of 64 images run
in all executions in turn, in one process; the ratio is the median over batches. The bar: at most 0.3 points of accuracy
lost.

    python benchmarks/low_precision.py digits results/cifar10-jpeg/frozen.safetensors --json low-precision.json

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
from torch import Tensor

from prunegym.models import SkippingCNN, load_dataset
from prunegym.models.catalog import open_model
from prunegym.models.gating.static_policy import deciding_macs
from prunegym.models.skipping.int8_path import calibrate
from prunegym.models.storage.run_folder import machine

IMAGES, BATCH = 1024, 64
LARGEST_LOSS = 0.003
FORMS = {"float32": "kernel", "int8": "int8", "bfloat16": "bfloat16"}


@torch.inference_mode()
def run(name: str, images: int | None) -> dict[str, Any]:
    """Compare the executions of a model, and print its figures."""
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
    figures: dict[str, dict[str, Any]] = {
        form: {
            "accuracy": test.score(outputs[form], order).mean().item(),
            "total_mac_share": masked.cost.total_share(
                masks[form], deciding_macs(masked, policy, masks[form]) if policy else 0.0
            ).mean().item(),
            "seconds": statistics.median(seconds[form]),
        }
        for form in FORMS
    }  # fmt: skip
    print(f"\n{name}: {test.name}/{test.split}, {len(test):,} images")
    for form, row in figures.items():
        row["path"] = forms[form].path(FORMS[form]).label
        if form != "float32":
            row |= _beside(form, figures, outputs, masks)
            ratios = [own / base for base, own in zip(seconds["float32"], seconds[form], strict=True)]
            row["time_ratio"] = statistics.median(ratios)
        print(
            f"  {row['path']:26s} accuracy {100 * row['accuracy']:.2f}, total MACs {row['total_mac_share']:.4f}, "
            f"{1e3 * row['seconds']:.3f} ms per image"
        )
        if form != "float32":
            print(
                f"    points lost {100 * row['accuracy_lost']:+.2f} (bar {100 * LARGEST_LOSS:.1f}: "
                f"{'met' if row['met'] else 'MISSED'}), same prediction {100 * row['same_prediction']:.2f} %, "
                f"same mask bits {100 * row['same_mask_bits']:.2f} %, time ratio {row['time_ratio']:.3f}",
                flush=True,
            )
    return {"model": name, "data": f"{test.name}/{test.split}", "images": len(test), **figures}


def _beside(
    form: str, figures: dict[str, dict[str, Any]], outputs: dict[str, Tensor], masks: dict[str, Tensor]
) -> dict[str, Any]:
    """Return what an execution does otherwise than float32."""
    lost = figures["float32"]["accuracy"] - figures[form]["accuracy"]
    return {
        "accuracy_lost": lost,
        "met": lost <= LARGEST_LOSS,
        "same_prediction": (outputs["float32"].argmax(1) == outputs[form].argmax(1)).double().mean().item(),
        "same_mask_bits": (masks["float32"] == masks[form]).double().mean().item(),
    }


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
    rows = [result[form] for result in results for form in FORMS if form != "float32"]
    sys.exit(0 if all(row["met"] for row in rows) else 1)


if __name__ == "__main__":
    main()
