"""The README's two short tables, a row of figures for each comparison of a track, from the same JSON documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from documents import head, interval, read

FOLDER = Path(__file__).parent
RIVAL, TAYLOR = "learned-static", "taylor"
FROZEN = (
    ("ResNet-20, CIFAR-10: imitation, PPO", "cifar10-jpeg/imitated"),
    ("ResNet-20, CIFAR-10: refined gates, PPO", "cifar10-jpeg/refined"),
    ("VGG-11, CIFAR-10: refined gates, PPO, budget 0.70", "cifar10-jpeg/vgg11-70"),
    ("simple-cnn-wide, Fashion-MNIST: refined gates, PPO", "fashion-mnist/refined-best"),
)
"""Label and comparison of each row of the frozen track."""
PREPARED = (
    ("ResNet-20, CIFAR-10: budget 0.50", "cifar10-jpeg/prepared-50"),
    ("ResNet-20, CIFAR-10: budget 0.36", "cifar10-jpeg/prepared-36"),
    ("simple-cnn-wide, Fashion-MNIST", "fashion-mnist/prepared"),
)
"""The same of the prepared track."""


def frozen() -> str:
    """Return PPO on frozen CNNs beside the learnt static mask, and what it adds to the gates from which it began."""
    columns = (
        "accuracy", "below dense", "total MACs", "masks of other images", "learnt static mask",
        "PPO's accuracy minus it", "PPO's reward minus its start's",
    )  # fmt: skip
    rows = []
    for label, name in FROZEN:
        first, others = _rows(name)
        rival = others[RIVAL]["figures"]
        starts = [others[kind] for kind in ("start-best-offset", "start-same-macs", "start") if kind in others]
        figures = [
            *_accuracy_loss_macs(first), interval(first["figures"]["shuffled_accuracy"], 100, 1),
            f"{100 * rival['accuracy']['mean']:.2f} @ {rival['total_mac_share']['mean']:.3f}",
            interval(others[RIVAL]["difference"], -100, 2), interval(starts[0]["reward_difference"], -1, 3),
        ]  # fmt: skip
        rows.append(f"| {label} | {' | '.join(figures)} |")
    return head("frozen: no weight is touched", columns) + "\n".join(rows) + "\n"


def prepared() -> str:
    """Return prepared CNNs after PPO beside both static rivals, with intervals by image."""
    columns = ("accuracy", "below dense", "total MACs", "minus the learnt static mask", "minus Taylor")
    rows = []
    for label, name in PREPARED:
        first, others = _rows(name)
        differences = [interval(others[rival]["difference"], -100, 2) for rival in (RIVAL, TAYLOR)]
        rows.append(f"| {label} | {' | '.join([*_accuracy_loss_macs(first), *differences])} |")
    return head("prepared: CNN and gates trained together", columns) + "\n".join(rows) + "\n"


def _rows(name: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return what a comparison is about, and its other rows by name."""
    first, *others = read(FOLDER / name / "test.json")["rows"]
    return first, {row["name"]: row for row in others}


def _accuracy_loss_macs(row: dict[str, Any]) -> list[str]:
    figures = row["figures"]
    loss = 100 * (figures["dense_accuracy"]["mean"] - figures["accuracy"]["mean"])
    return [interval(figures["accuracy"], 100, 2), f"{loss:.2f}", f"{figures['total_mac_share']['mean']:.3f}"]
