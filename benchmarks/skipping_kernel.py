"""Time of the compiled kernel as a ratio to the fastest dense form in torch.

All forms run in one process, in turn, round after round; the table gives medians. Dense is not a straw man: eager with
batch norm, norm-folded, channels_last, traced and frozen or optimised, and with --compile torch.compile with freezing.
Masks are random, each gate's kept share drawn from 0.3 to 0.7, another set of masks each round, every image its own.

    python benchmarks/skipping_kernel.py --cases resnet20-32 vgg16-32 vgg16-224 --batches 1 64 --threads 1 2

On a busy machine `--clock cpu` (one thread only) counts the processor time of this process.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from prunegym.models.kernel.zoo_plans import gate_widths, make_plan, torch_masked
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from prunegym.models import kernel
from prunegym.models.networks import CifarResNet
from prunegym.models.zoo import build

Forms = dict[str, Callable[[], object]]


def random_masks(batch: int, widths: list[int], generator: torch.Generator) -> Tensor:
    """(batch, mask_size) bool, each gate's kept share drawn from 0.3 to 0.7 for each image."""
    parts = []
    for width in widths:
        share = 0.3 + 0.4 * torch.rand(batch, 1, generator=generator)
        ranks = torch.rand(batch, width, generator=generator).argsort(1).argsort(1)
        parts.append(ranks < (share * width).round().clamp(min=1))
    return torch.cat(parts, 1)


def mac_ratio(network: nn.Module, size: int, masks: Tensor) -> float:
    """Mean MAC share of convolutions and the linear layer; every convolution's inputs and outputs counted as kept."""
    shapes: list[tuple[nn.Module, int]] = []
    hooks = [
        module.register_forward_hook(lambda m, _, y: shapes.append((m, y[0, 0].numel() if y.ndim == 4 else 1)))
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    network(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    kept = [part.float().mean(1) for part in masks.split(gate_widths(network), 1)]
    residual = isinstance(network, CifarResNet)
    dense, alive = 0.0, torch.zeros(len(masks))
    for i, (module, pixels) in enumerate(shapes):
        macs = module.weight.numel() * pixels
        if residual:  # stem, then pairs that share one gate, then the linear layer
            share = kept[(i - 1) // 2] if 0 < i < len(shapes) - 1 else torch.ones(len(masks))
        else:
            share = (kept[i - 1] if i else 1) * (kept[i] if i < len(kept) else 1)
        dense, alive = dense + macs, alive + macs * share
    return float((alive / dense).mean())


def dense_forms(network: nn.Module, images: Tensor, compiled: bool) -> Forms:
    """The network without masks, every way that torch has of making it fast."""
    folded = fuse(network)
    last = copy.deepcopy(folded).to(memory_format=torch.channels_last)
    images_last = images.contiguous(memory_format=torch.channels_last)
    frozen = torch.jit.freeze(torch.jit.trace(last, images_last))
    optimised = torch.jit.optimize_for_inference(torch.jit.trace(folded, images))
    forms: Forms = {
        "dense eager": lambda: network(images),
        "dense folded": lambda: folded(images),
        "dense channels_last": lambda: last(images_last),
        "dense traced": lambda: frozen(images_last),
        "dense optimised": lambda: optimised(images),
    }
    if compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True
        function = torch.compile(copy.deepcopy(folded))
        forms["dense compiled"] = lambda: function(images)
    return forms


def measure(forms: Forms, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each form."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + 2):
        for name, form in forms.items():
            start = clock()
            form()
            if number >= 2:  # the first rounds warm up
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def run_case(name: str, size: int, batch: int, threads: int, args: argparse.Namespace) -> dict[str, object]:
    """Measure one network at one size, and print its table."""
    torch.set_num_threads(threads)
    network = build(name, image_size=size).eval()
    widths = gate_widths(network)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=generator)
    sets = [random_masks(batch, widths, generator) for _ in range(8)]
    plan, every = make_plan(network, size, variant=args.variant), torch.ones(batch, sum(widths), dtype=torch.bool)
    expected, _ = torch_masked(network, images, sets[0])
    error = float((plan(images, sets[0])[0] - expected).abs().max() / expected.abs().max())
    turn = iter(range(1 << 30))
    forms = dense_forms(network, images, args.compile)
    forms["kernel, all channels"] = lambda: plan(images, every, threads)
    forms["kernel, masks"] = lambda: plan(images, sets[next(turn) % len(sets)], threads)
    seconds = measure(forms, args.rounds, time.process_time if args.clock == "cpu" else time.perf_counter)
    fastest = min((value, form) for form, value in seconds.items() if form.startswith("dense"))
    macs = sum(mac_ratio(network, size, masks) for masks in sets) / len(sets)
    print(
        f"\n{name} {size}x{size}, batch {batch}, {threads} thread(s), {plan.variant}; "
        f"MAC ratio {macs:.3f}, error {error:.1e}"
    )
    for form, value in seconds.items():
        print(
            f"  {form:22s} {value * 1e3:10.3f} ms   ratio {value / fastest[0]:.3f}{'  *' if form == fastest[1] else ''}"
        )
    ratio = seconds["kernel, masks"] / seconds["kernel, all channels"]
    print(f"  masks / all channels in the kernel: {ratio:.3f} = {ratio / macs:.2f} x MAC ratio", flush=True)
    return {"case": f"{name}-{size}", "batch": batch, "threads": threads, "mac_ratio": macs, "seconds": seconds}


def main() -> None:
    """Parse the command line and run the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["resnet20-32", "vgg16-32", "vgg16-224"], metavar="MODEL-SIZE")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=30, help="rounds at batch 1; fewer for large work")
    parser.add_argument("--compile", action="store_true", help="also torch.compile with freezing")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--variant", choices=kernel.variants(), help="of the kernel; by default the best")
    parser.add_argument("--json", type=Path, help="write the results there too")
    args = parser.parse_args()
    if not kernel.available():
        parser.exit(1, f"No compiled kernel: {kernel.unavailable_reason()}\n")
    results = []
    with torch.no_grad():
        for case in args.cases:
            name, size = case.rsplit("-", 1)
            for batch in args.batches:
                if int(size) > 64 and batch > 1:
                    continue  # minutes a round; the issue has no bar for it
                results += [run_case(name, int(size), batch, threads, args) for threads in args.threads]
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
