"""Draw the README's picture of the trade-off from the JSON documents beside this file: ``python results/picture.py``.

Accuracy over total MACs on the test split, a panel for each track, since their rivals differ. A point over seeds has
its 95 % interval as a bar; points of one method are joined.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from documents import read

FOLDER = Path(__file__).parent
PICTURE = FOLDER.parent / "docs" / "tradeoff.png"
DATA = "cifar10-jpeg"


class Point(NamedTuple):
    """A method's accuracy (0 to 1) and total MAC share, with half of the interval where there are seeds."""

    share: float
    accuracy: float
    half_width: float


FROZEN: dict[str, tuple[tuple[str, str], ...]] = {
    "imitation": (
        ("imitated", "start"), ("imitated", "start-best-offset"), ("imitated-dear", "start-best-offset"),
    ),
    "imitation, then PPO": (("imitated", "frozen"), ("imitated-dear", "frozen-dear")),
    "gates refined by gradient": (
        ("refined", "start"), ("refined", "start-best-offset"), ("refined-dear", "start-best-offset"),
        ("refined-dearer", "start-best-offset"),
    ),
    "refined, then PPO": (
        ("refined", "refined"), ("refined-60", "refined-60"), ("refined-80", "refined"),
        ("refined-dear", "refined-dear"), ("refined-dearer", "refined-dearer"),
    ),
    "rival: learnt static mask": (("imitated", "learned-static"), ("refined", "learned-static")),
}  # fmt: skip
PREPARED: dict[str, tuple[tuple[str, str], ...]] = {
    label: tuple((f"prepared-{budget}", entry) for budget in (50, 36))
    for label, entry in (
        ("prepared", "start"), ("prepared, then PPO", "prepared"),
        ("rival: learnt static mask, fine-tuned", "learned-static"), ("rival: Taylor, fine-tuned", "taylor"),
    )
}  # fmt: skip
"""By method: comparison and entry of each point."""


def points(method: tuple[tuple[str, str], ...]) -> list[Point]:
    """Return a method's points by their MAC share; what was not run has none."""
    found = [point for name, entry in method if (point := _point(name, entry)) is not None]
    return sorted(found)


def _point(name: str, entry: str) -> Point | None:
    for row in read(FOLDER / DATA / name / "test.json").get("rows", ()):
        if row["name"] == entry:
            accuracy = row["figures"]["accuracy"]
            return Point(row["figures"]["total_mac_share"]["mean"], accuracy["mean"], accuracy["half_width"] or 0.0)
    return None


def dial_points() -> list[Point]:
    """Return the places of the dial that were compared with models trained for one budget each."""
    found = [row["dial"] for row in read(FOLDER / DATA / "dial.json").get("rows", {}).values()]
    return sorted(
        Point(one["total_mac_share"]["mean"], one["accuracy"]["mean"], one["accuracy"]["half_width"] or 0.0)
        for one in found
    )


def dense() -> float:
    """Return the accuracy of the original network."""
    first, *_ = read(FOLDER / DATA / "prepared-50" / "test.json")["rows"]
    return float(first["figures"]["dense_accuracy"]["mean"])


def main() -> None:
    """Draw both panels; methods that were not run are left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    frozen, prepared = ({label: points(method) for label, method in track.items()} for track in (FROZEN, PREPARED))
    frozen["one dial, refined for longer, then PPO"] = dial_points()
    titles = "frozen: no weight touched", "prepared: CNN and gates trained"
    for panel, title, curves in zip(panels, titles, (frozen, prepared), strict=True):
        panel.axhline(100 * dense(), color="0.6", linestyle=":", label="dense, at 1.0")
        for index, (label, found) in enumerate(curves.items()):
            if not found:
                continue
            rival = label.startswith("rival")
            panel.errorbar(
                [point.share for point in found], [100 * point.accuracy for point in found],
                yerr=[100 * point.half_width for point in found], label=label, color=f"C{index}",
                marker="s" if rival else "o", linestyle="--" if rival else "-", capsize=3, markersize=5,
            )  # fmt: skip
        panel.set(title=title, xlabel="total MACs, share of the dense CNN's")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    panels[0].set_ylabel("accuracy on 10,000 test images, %")
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=100)


if __name__ == "__main__":
    main()
