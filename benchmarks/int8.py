"""int8 weights compared with float32: size, accuracy, agreement, MACs and time of dynamic CNNs, and the targets.

Each model is written to a file with float32 and with int8 weights, and both are read back. Figures are over the test
split of the model's own data set. Computation is float32 in both, so MACs and time should be the same. This is checked
with one image per call through ``skip("auto")``, both alternately in one process; figures are medians.

    python benchmarks/int8.py digits results/cifar10-jpeg/frozen.safetensors --threads 1 --json int8.json

The exit code is 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from prunegym.models import Dataset, DynamicCNN, load_dataset
from prunegym.models.dynamic_cnn import SHIPPED, shipped_path
from prunegym.models.stopwatch import median_seconds
from prunegym.models.storage.run_folder import machine

FORMS = ("float32", "int8")
LARGEST_SIZE = 0.3
"""Bytes of the int8 file / bytes of the float32 file."""
LARGEST_LOSS = 0.003
"""Accuracy (0 to 1) that may be lost."""
TIMED_IMAGES = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """What a model says of the images of a split.

    Attributes:
        labels: (images,) int64.
        masks: (images, mask_size) bool.
        mac_share: MACs of masked CNN and policy / MACs of the original CNN, mean.
    """

    labels: torch.Tensor
    masks: torch.Tensor
    mac_share: float


def ask(model: DynamicCNN, data: Dataset) -> Answers:
    """Classify every image of a split."""
    found = [model.predict(images) for images in torch.split(data.images, 250)]
    share = torch.cat([part.mac_share for part in found]).mean().item()
    return Answers(torch.cat([part.labels for part in found]), torch.cat([part.masks for part in found]), share)


def one_by_one(model: DynamicCNN, data: Dataset) -> Callable[[], object]:
    """Return a function that classifies the next of a few images, in the way that is fastest here."""
    model.skip("auto")
    images = itertools.cycle(torch.split(data.images[:TIMED_IMAGES], 1))
    return lambda: model.predict(next(images))


def run(name: str, images: int | None, rounds: int, clock: str, folder: Path) -> dict[str, Any]:
    """Compare both forms of a model, and print its table."""
    original = DynamicCNN.load(shipped_path(name) if name in SHIPPED else name)
    data = load_dataset(original.info.dataset, "test")
    data = data if images is None else data.sample(images)
    files = {form: folder / f"{form}.safetensors" for form in FORMS}
    for form, file in files.items():
        original.save(file, int8=form == "int8")
    models = {form: DynamicCNN.load(file) for form, file in files.items()}
    answers = {form: ask(model, data) for form, model in models.items()}
    timed = {form: one_by_one(model, data) for form, model in models.items()}
    seconds = median_seconds(timed, rounds, time.process_time if clock == "cpu" else time.perf_counter)
    rows = {
        form: {
            "bytes": files[form].stat().st_size,
            "accuracy": (answers[form].labels == data.labels).double().mean().item(),
            "total_mac_share": answers[form].mac_share,
            "seconds": seconds[form],
            "way": models[form].skipping.choices[-1].execution,
        }
        for form in FORMS
    }
    whole, small = (answers[form] for form in FORMS)
    result = {
        "model": name,
        "data": f"{data.name}/{data.split}",
        "images": len(data),
        **rows,
        "size_ratio": rows["int8"]["bytes"] / rows["float32"]["bytes"],
        "accuracy_lost": rows["float32"]["accuracy"] - rows["int8"]["accuracy"],
        "same_prediction": (whole.labels == small.labels).double().mean().item(),
        "same_mask_bits": (whole.masks == small.masks).double().mean().item(),
        "time_ratio": seconds["int8"] / seconds["float32"],
    }
    result["met"] = result["size_ratio"] <= LARGEST_SIZE and result["accuracy_lost"] <= LARGEST_LOSS
    show(result)
    return result


def show(result: dict[str, Any]) -> None:
    """Print the table of a model."""
    print(f"\n{result['model']}: {result['data']}, {result['images']:,} images")
    print(f"  {'weights':10s}{'bytes':>12s}{'accuracy':>11s}{'total MACs':>12s}{'one image':>13s}  way")
    for form in FORMS:
        row = result[form]
        print(
            f"  {form:10s}{row['bytes']:12,}{100 * row['accuracy']:9.2f} %{row['total_mac_share']:12.4f}"
            f"{1e3 * row['seconds']:10.3f} ms  {row['way']}"
        )
    print(
        f"  same prediction {100 * result['same_prediction']:.2f} %, same mask bits "
        f"{100 * result['same_mask_bits']:.2f} %, time ratio {result['time_ratio']:.3f}"
    )
    print(
        f"  size ratio {result['size_ratio']:.3f} (bar {LARGEST_SIZE}), points lost "
        f"{100 * result['accuracy_lost']:+.2f} (bar {100 * LARGEST_LOSS}): {'met' if result['met'] else 'MISSED'}",
        flush=True,
    )


def main() -> None:
    """Parse the command line and compare the models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(SHIPPED), metavar="MODEL", help="shipped models or files")
    parser.add_argument("--images", type=int, help="so many test images only, drawn with a fixed seed")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: one thread, on a busy machine")
    parser.add_argument("--json", type=Path, help="write the results there too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        results = [run(name, args.images, args.rounds, args.clock, Path(folder)) for name in args.models]
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1))
    sys.exit(0 if all(result["met"] for result in results) else 1)


if __name__ == "__main__":
    main()
