"""Time of the kernel with constants in place of masked channels, as a ratio to the same masks with zeros.

Both run in one process, in turn, round after round, with other images and masks each time. The table gives the medians,
and the median of the ratio of each round. One thread; kept shares of gates are drawn from 0.3 to 0.7, which leaves a
quarter of VGG-16's MACs, and from 0.7 to 0.9, which leaves two thirds.

    python benchmarks/skipping_constants.py [--networks resnet20 vgg16] [--batches 1 64] [--rounds 300]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch

from prunegym.models import MaskedCNN, SkippingCNN, build
from prunegym.models.storage.run_folder import machine
from prunegym.models.timing.latency_measurement import random_masks

SIDE = 32
INPUTS = 8
KEPT = ((0.3, 0.7), (0.7, 0.9))
"""Kept shares of gates, from and to."""
SHORTEST = 0.003
"""Seconds that a measurement takes at least: what is faster is called several times."""


def main() -> None:
    """Parse the command line, time each network and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "vgg16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--rounds", type=int, default=300, help="of each network and batch, for a minute at most")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: on a busy machine")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    rows = [
        time_network(name, kept, batch, options.rounds, clock)
        for kept in KEPT
        for name in options.networks
        for batch in options.batches
    ]
    print(json.dumps({"machine": machine(), "results": rows}, indent=1))


@torch.inference_mode()
def time_network(name: str, kept: tuple[float, float], batch: int, rounds: int, clock: Any) -> dict[str, Any]:
    """Return the times of one network, range of kept shares and batch, in seconds, and their ratio."""
    masked = MaskedCNN(build(name, image_size=SIDE), torch.zeros(1, 3, SIDE, SIDE))
    generator = torch.Generator().manual_seed(0)
    widths = [gate.width for gate in masked.gates]
    images = [torch.randn(batch, 3, SIDE, SIDE, generator=generator) for _ in range(INPUTS)]
    masks = [random_masks(batch, widths, generator, *kept) for _ in range(INPUTS)]
    zeros = SkippingCNN(masked, execution="kernel")
    zeros(images[0], masks[0])  # the plan is made at the first call, before constants are set
    constants = SkippingCNN(
        MaskedCNN(masked.network, images[0][:1]).compensate(torch.randn(masked.mask_size)), execution="kernel"
    )
    calls, times = 1, {"zeros": list[float](), "constants": list[float]()}
    begun = time.perf_counter()
    for number in range(rounds + 5):
        for kind, fast in (("zeros", zeros), ("constants", constants)):
            start = clock()
            for _ in range(calls):
                fast(images[number % INPUTS], masks[number % INPUTS])
            times[kind].append((clock() - start) / calls)
        if number == 4:  # warm
            calls = max(1, round(SHORTEST / min(times["zeros"])))
            times = {kind: [] for kind in times}
        if time.perf_counter() - begun > 60:
            break
    ratios = [one / other for one, other in zip(times["constants"], times["zeros"], strict=True)]
    drawn = torch.cat(masks).float()
    return {
        "network": name, "kept_from": kept[0], "kept_to": kept[1], "batch": batch,
        **{kind: statistics.median(found) for kind, found in times.items()},
        "ratio": statistics.median(ratios), "rounds": len(ratios),
        "mac_share": float(masked.cost.mac_share(drawn).mean()),
        "constants_mac_share": float(masked.cost.compensation_macs(drawn).mean()) / masked.cost.total_macs,
    }  # fmt: skip


if __name__ == "__main__":
    main()
