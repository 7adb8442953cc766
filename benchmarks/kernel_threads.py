"""One image in the kernel on two threads: torch's own or the kernel's, alone or right after an operation of torch.

Torch's threads spin for a while after each operation, on the cores that the kernel's own threads need, which are
new ones for each image. All four run in one process, in turn; medians in milliseconds.

    python benchmarks/kernel_threads.py [--networks resnet20 simple-cnn-wide] [--size 32] [--rounds 200]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from prunegym.models import MaskedCNN, SkippingCNN, build
from prunegym.models.kernel.shared_library import library, openmp
from prunegym.models.storage.run_folder import machine
from prunegym.models.timing.latency_measurement import random_masks

APART = 0.002
"""Seconds between the kinds of threads, so that one does not slow the other."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "simple-cnn-wide"])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(2)
    if openmp() is None:
        raise SystemExit("Torch has loaded no OpenMP library that the kernel can use here.")
    report = {name: time_threads(name, options.size, options.rounds) for name in options.networks}
    print(json.dumps({"machine": machine(), "milliseconds": report}, indent=1))


@torch.inference_mode()
def time_threads(name: str, size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return the median time of each kind of threads, alone and after an operation of torch."""
    masked = MaskedCNN(build(name, image_size=size), torch.zeros(1, 3, size, size))
    mask = random_masks(1, [gate.width for gate in masked.gates], torch.Generator().manual_seed(0))
    image, numbers = torch.randn(1, 3, size, size), torch.randn(512, 512)
    kinds = {
        kind: (entry, SkippingCNN(masked, execution="kernel"))
        for kind, entry in (("torch's threads", openmp()), ("the kernel's own", None))
    }
    times: dict[str, dict[str, list[float]]] = {kind: {"alone": [], "after torch": []} for kind in kinds}
    for _ in range(rounds):
        for kind, (entry, fast) in kinds.items():
            time.sleep(APART)
            library().prunegym_use_openmp(entry)
            for _ in range(5):  # the threads are called, then measured
                fast(image, mask)
            times[kind]["alone"].append(seconds(fast, image, mask))
            numbers.mul(2)
            times[kind]["after torch"].append(seconds(fast, image, mask))
    time.sleep(APART)
    library().prunegym_use_openmp(openmp())
    return {
        kind: {when: round(1e3 * statistics.median(values), 3) for when, values in own.items()}
        for kind, own in times.items()
    }


def seconds(fast: SkippingCNN, image: torch.Tensor, mask: torch.Tensor) -> float:
    start = time.perf_counter()
    fast(image, mask)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
