"""The tables of time, from documents of ``prunegym profile --json`` and ``benchmarks/skipping_kernel.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from documents import head, read

FOLDER = Path(__file__).parent
SPEED = (
    ("digits", "digits", "digits/shipped"),
    ("Fashion-MNIST, prepared, then PPO", "fashion-mnist-prepared", "fashion-mnist/prepared-ppo"),
    ("CIFAR-10, frozen: refined, then PPO", "cifar10-jpeg-frozen", "cifar10-jpeg/refined-ppo"),
    ("CIFAR-10, prepared, then PPO", "cifar10-jpeg-prepared", "cifar10-jpeg/prepared-ppo"),
)
"""Label, profiles ``speed/NAME-THREADS.json``, evaluation."""


def timed() -> str:
    """Return the table of time beside accuracy and MACs; times are ratios to the fastest dense form in torch."""
    columns = (
        "accuracy", "total MACs", "threads", "dense, ms", "kernel", "kernel, all channels", "without kernel",
        "dense, compiled ahead",
    )  # fmt: skip
    rows = []
    for label, name, evaluation in SPEED:
        quality = read(FOLDER / f"{evaluation}.json")
        for threads in (1, 2):
            one = read(FOLDER / "speed" / f"{name}-{threads}.json")
            if not one or not quality:
                rows.append(f"| {label} | not run yet | | {threads} | | | | | |")
                continue
            ratios = one["ratios"]
            others = min(ratios[way] for way in one["skipping"] if way != "kernel")
            figures = [
                f"{100 * quality['accuracy']:.2f}", f"{quality['total_mac_share']:.3f}", str(threads),
                f"{1e3 * one['dense'][one['fastest_dense']]:.3f}", f"{ratios['kernel']:.2f}",
                f"{ratios['kernel, all channels']:.2f}", f"{others:.2f}", _ahead(ratios),
            ]  # fmt: skip
            rows.append(f"| {label} | {' | '.join(figures)} |")
    return head("one image at a time", columns) + "\n".join(rows) + "\n"


def skipped(name: str) -> str:
    """Return the table of benchmarks/skipping_kernel.py: ratios to torch's fastest dense form, bars in brackets."""
    columns = (
        "threads",
        "fastest dense",
        "MAC share",
        "kernel",
        "times MAC share",
        "kernel, all channels",
        "torch",
        "best without kernel",
        "dense, compiled ahead",
        "ONNX Runtime, dense",
    )
    rows = []
    for one in read(FOLDER / "speed" / f"{name}.json")["results"]:
        ratios = {name: value / one["fastest_torch_dense"] for name, value in _times(one).items()}
        ratio = {name: f"{value:.2f}" for name, value in ratios.items()}
        figures = [
            str(one["threads"]), _fastest_dense(one), f"{one['mac_share']:.2f}", ratio["kernel"] + _bar(one, "kernel"),
            f"{one['times_mac_share']:.2f}", ratio["kernel, all channels"], ratio["torch"] + _bar(one, "torch"),
            ratio[min((way for way in one["skipping"] if way != "kernel"), key=lambda way: one["skipping"][way])],
            _ahead(ratios), ratio.get("ONNX Runtime, dense", ratio.get("ONNX Runtime", "")),
        ]  # fmt: skip
        label = f"{one['network']}, {one['size']}x{one['size']}, batch {one['batch']}"
        label += {"policy": ", policy in the loop", "eight": ", eight masks"}.get(one["case"].split("-")[-1], "")
        rows.append(f"| {label} | {' | '.join(figures)} |")
    return head("case", columns) + "\n".join(rows) + "\n"


def exported() -> str:
    """Return the table of benchmarks/onnx_export.py: ONNX Runtime's time as a ratio to that of the dense export."""
    columns = ("threads", "MAC share", "dense, ms", "masked", "masked export, all channels on")
    rows = []
    for one in read(FOLDER / "speed" / "onnx.json")["results"]:
        seconds = one["seconds"]
        name, size = one["case"].rsplit("-", 1)
        figures = [str(one["threads"]), f"{one['mac_ratio']:.2f}", f"{1e3 * seconds['dense export']:.2f}"]
        figures += [
            f"{seconds[form] / seconds['dense export']:.2f}"
            for form in ("masked export", "masked export, all channels")
        ]
        rows.append(f"| {name}, {size}x{size} | {' | '.join(figures)} |")
    return head("ONNX Runtime, one image", columns) + "\n".join(rows) + "\n"


def _ahead(ratios: dict[str, float]) -> str:
    ratio = ratios.get("dense, ahead of time")
    return "" if ratio is None else f"{ratio:.2f}"


def _fastest_dense(one: dict[str, Any]) -> str:
    return next(name for name, seconds in one["dense"].items() if seconds == one["fastest_torch_dense"])


def _times(one: dict[str, Any]) -> dict[str, float]:
    return {**one["dense"], **one["skipping"], **one["reference"]}


def _bar(one: dict[str, Any], way: str) -> str:
    return f" ({one['bars'][way]:.2f})" if way in one["bars"] else ""
