"""Write the result tables of README and docs from the JSON documents beside this file: ``python results/tables.py``.

The documents are what ``prunegym evaluate``, ``compare`` and ``profile`` printed with ``--json``; the pages have the
commands.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import summary_tables
from documents import head, interval, read
from speed_tables import exported, skipped, timed

FOLDER = Path(__file__).parent
README = FOLDER.parent / "README.md"
DOCS = FOLDER.parent / "docs"
LEARNING, RESULTS = DOCS / "learning.md", DOCS / "results.md"
PAGES = {
    "skipping": DOCS / "skipping.md", "skipping-intel": DOCS / "skipping.md", "skipping-avx2": DOCS / "skipping.md",
    "int8": DOCS / "export.md", "onnx": DOCS / "export.md",
    "dial": LEARNING, "ablation": LEARNING, "features": LEARNING, "learners": LEARNING,
    "cifar10-jpeg-prepared-five": LEARNING, "cifar10-jpeg-frozen": RESULTS, "cifar10-jpeg-prepared": RESULTS,
    "cifar10-jpeg-vgg11": RESULTS, "fashion-mnist-frozen": RESULTS, "fashion-mnist-prepared": RESULTS,
}  # fmt: skip
"""Where a table stands, if not in the README."""

PREPARED = (("0.50", "prepared-50"), ("0.36", "prepared-36"))
"""Budget and comparison of each block of the prepared track; what was not run has no rows."""
PREPARED_FIVE = (("0.36", "prepared-36-five"),)
FROZEN = {
    "cifar10-jpeg": (
        ("from imitation, lambda 0.5", "imitated"),
        ("from imitation at its best offset, lambda 1", "imitated-dear"),
        ("from refined gates at 0.69, lambda 0.5", "refined"),
        ("from refined gates shifted from 0.69 to 0.60, lambda 0.5", "refined-60"),
        ("from refined gates at their best offset, lambda 1", "refined-dear"),
        ("from refined gates at their best offset, lambda 1.5", "refined-dearer"),
        ("from refined gates, budget 0.80", "refined-80"),
    ),
    "fashion-mnist": (
        ("from refined gates", "refined"),
        ("from refined gates at their best offset", "refined-best"),
    ),
}
"""Label and comparison of each block of a frozen track's table over seeds; what was not run has no rows."""
VGG = (
    ("from refined gates at their best offset, lambda 0.5", "vgg11"),
    ("from refined gates, budget 0.70", "vgg11-70"),
    ("from refined gates, budget 0.80", "vgg11-80"),
)
ENTRIES = {
    "start": "its start",
    "start-best-offset": "its start, best offset",
    "start-same-macs": "its start, same MACs",
    "learned-static": "rival, learnt static mask",
    "taylor": "rival, Taylor",
    "longer": "dense, trained as long",
}
"""How entries of a comparison are called in a table; others are PPO."""
FEATURES = (
    ("averages and a grid, as in `frozen`", "ablation.json", "frozen"),
    ("averages alone", "features/averages.json", "averages"),
)
"""What a policy sees, and the comparison and entry of its row."""
LEARNERS = {
    "frozen": "method 3: imitation, then PPO",
    "gates": "method 1: imitation, then gates by gradient",
    "sparse-gates": "method 2: the same with L1 on the gates",
    "blockdrop": "BlockDrop's reward and baseline",
    "decore": "DECORE, static",
    "learned-static": "learnt static mask",
    "greedy-static": "greedy static mask",
    "taylor-static": "Taylor, static",
    "l1": "L1 norm of the filters, static",
    "random": "random channels",
    "best-of-16": "best of 16 random masks, an oracle",
}
"""How the entries of the comparison of learners are called in its table."""
TITLES = {"cifar10-jpeg": "ResNet-20 on CIFAR-10 (JPEG)", "fashion-mnist": "simple-cnn-wide on Fashion-MNIST"}


def main() -> None:
    """Replace what stands between the markers of each table."""
    for name, table in tables().items():
        _replace(PAGES.get(name, README), name, table)


def _replace(page: Path, name: str, table: str) -> None:
    text = page.read_text()
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page.write_text(text.split(start)[0] + start + "\n" + table + end + text.split(end)[1])


def tables() -> dict[str, str]:
    """Return each table in Markdown by the name of its marker."""
    frozen = {f"{data}-frozen": over_seeds(data, f"frozen: {TITLES[data]}", blocks) for data, blocks in FROZEN.items()}
    fashion = over_seeds("fashion-mnist", f"prepared: {TITLES['fashion-mnist']}", (("prepared", "prepared"),))
    return {
        "frozen": summary_tables.frozen(),
        "prepared": summary_tables.prepared(),
        **frozen,
        "cifar10-jpeg-vgg11": over_seeds("cifar10-jpeg", "frozen: VGG-11 on CIFAR-10 (JPEG)", VGG),
        "cifar10-jpeg-prepared": prepared_anew("cifar10-jpeg", PREPARED),
        "cifar10-jpeg-prepared-five": prepared_anew("cifar10-jpeg", PREPARED_FIVE),
        "fashion-mnist-prepared": fashion,
        "digits": compared(),
        "speed": timed(),
        "skipping": skipped("skipping"),
        "skipping-intel": skipped("skipping-intel"),
        "skipping-avx2": skipped("skipping-avx2"),
        "onnx": exported(),
        "int8": composed(),
        "dial": dialled(),
        "ablation": ablated(),
        "features": seen(),
        "learners": learned(),
    }


def over_seeds(data: str, title: str, blocks: tuple[tuple[str, str], ...]) -> str:
    """Return the table of PPO beside its start and rivals, over seeds: means with 95 % intervals."""
    columns = (
        "accuracy", "loss", "total MACs", "static control", "shuffled", "reward", "PPO's reward minus this: test",
        "the same: validation",
    )  # fmt: skip
    rows, count = [], 0
    for label, name in blocks:
        test, validation = (read(FOLDER / data / name / f"{split}.json") for split in ("test", "validation"))
        count = max(count, len(test.get("seeds", ())))
        shown: list[list[str]] = []
        for row, held_out in zip(test.get("rows", ()), validation.get("rows", ()), strict=True):
            figures = _figures(row, held_out)
            if figures not in shown:  # a start that began at its best offset is the same model twice
                rows.append(f"| {label}: {ENTRIES.get(row['name'], 'PPO')} | {' | '.join(figures)} |")
            shown.append(figures)
    return head(f"{title}, {count} seeds", columns) + "\n".join(rows) + "\n"


def prepared_anew(data: str, blocks: tuple[tuple[str, str], ...]) -> str:
    """Return the table of preparations beside as many of each rival: differences of accuracy, with both intervals."""
    columns = (
        "accuracy", "loss", "total MACs", "static control", "shuffled", "PPO's accuracy minus this, points: by image",
        "over preparations",
    )  # fmt: skip
    rows, count = [], 0
    for budget, name in blocks:
        test = read(FOLDER / data / name / "test.json")
        count = max(count, len(test.get("seeds", ())))
        for row in test.get("rows", ()):
            differences = [interval(row[key], -100, 2) for key in ("difference", "difference_over_seeds")]
            figures = [*_accuracy_and_controls(row["figures"]), *differences]
            rows.append(f"| {budget}: {ENTRIES.get(row['name'], 'prepared, then PPO')} | {' | '.join(figures)} |")
    return head(f"prepared: {TITLES[data]}, {count} preparations", columns) + "\n".join(rows) + "\n"


def _figures(row: dict[str, Any], held_out: dict[str, Any]) -> list[str]:
    return [
        *_accuracy_and_controls(row["figures"]), interval(row["figures"]["reward"], 1, 4),
        interval(row["reward_difference"], -1, 4), interval(held_out["reward_difference"], -1, 4),
    ]  # fmt: skip


def _accuracy_and_controls(figures: dict[str, Any]) -> list[str]:
    loss = 100 * (figures["dense_accuracy"]["mean"] - figures["accuracy"]["mean"])
    static = figures["distinct_masks"]["mean"] == 1
    controls = [interval(figures[key], 100, 1) for key in ("static_accuracy", "shuffled_accuracy")]
    return [
        interval(figures["accuracy"], 100, 2), f"{loss:.2f}", interval(figures["total_mac_share"], 1, 3),
        *(["", ""] if static else controls),
    ]  # fmt: skip


def compared() -> str:
    """Return the table of the comparison on digits."""
    document = read(FOLDER / "digits" / "comparison.json") or {"rows": []}
    columns = ("accuracy", "total MACs", "static control", "shuffled")
    rows = []
    for row in document["rows"]:
        figures = [
            row["figures"][key] for key in ("accuracy", "total_mac_share", "static_accuracy", "shuffled_accuracy")
        ]
        shown = [
            interval(one, scale, places)
            for one, scale, places in zip(figures, (100, 1, 100, 100), (2, 3, 2, 2), strict=True)
        ]
        rows.append(f"| {row['name']} | {' | '.join(shown)} |")
    return head("digits, means of five seeds", columns) + "\n".join(rows) + "\n"


def composed() -> str:
    """Return the table of benchmarks/int8.py: distillation in ``prepare``, int8 weights and masks together."""
    kinds = (
        ("digits, prepared with distillation, 5 seeds", "digits", "/distilled-"),
        ("digits, prepared from labels alone, 5 seeds", "digits", "/labels-alone-"),
        ("CIFAR-10 (JPEG), frozen: refined, then PPO", "cifar10-jpeg", "refined"),
    )
    rows = []
    for label, data, part in kinds:
        found = [one for one in read(FOLDER / data / "int8.json").get("results", ()) if part in one["model"]]
        for form in ("float32", "int8") if found else ():
            size = f"{_mean(one[form]['bytes'] for one in found):,.0f} bytes"
            size = size if form == "float32" else f"{_mean(one['size_ratio'] for one in found):.3f}"
            figures = [
                size, f"{100 * _mean(one[form]['accuracy'] for one in found):.2f}",
                "" if form == "float32" else f"{100 * _mean(one['same_prediction'] for one in found):.2f} %",
                f"{_mean(one[form]['total_mac_share'] for one in found):.3f}",
                f"{1e3 * _mean(one[form]['seconds'] for one in found):.3f} ms",
            ]  # fmt: skip
            rows.append(f"| {label if form == 'float32' else 'the same, int8'} | {' | '.join(figures)} |")
    columns = ("size", "accuracy", "same prediction", "total MACs", "one image")
    return head("all test images, means", columns) + "\n".join(rows) + "\n"


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def dialled() -> str:
    """Return the table of results/dial.py: one policy, turned to the MACs of each of the others."""
    document = read(FOLDER / "cifar10-jpeg" / "dial.json")
    rows = []
    for one in sorted(document.get("rows", {}).values(), key=lambda row: row["trained"]["total_mac_share"]["mean"]):
        figures = [
            interval(one[key][name], scale, places)
            for key in ("trained", "dial")
            for name, scale, places in (("total_mac_share", 1, 3), ("accuracy", 100, 2))
        ]
        differences = [interval(one[key], 100, 2, signed=True) for key in ("difference", "difference_over_seeds")]
        rows.append(f"| {' | '.join([*figures, interval(one['penalty'], 1, 3), *differences])} |")
    columns = (
        "accuracy", "dial: total MACs", "accuracy", "lambda", "difference, points: by image", "over seeds",
    )  # fmt: skip
    return head("trained for one budget: total MACs", columns) + "\n".join(rows) + "\n"


def ablated() -> str:
    """Return the table of what each setting of recipe ``frozen`` is worth, on the validation split."""
    columns = ("accuracy", "total MACs", "reward", "the recipe's reward minus this: by image", "over seeds")
    rows = []
    for row in read(FOLDER / "cifar10-jpeg" / "ablation.json").get("rows", ()):
        differences = [interval(row[key], -1, 4) for key in ("reward_difference", "reward_difference_over_seeds")]
        rows.append(f"| {row['name'].replace('-', ' ')} | {' | '.join([*_reward_and_parts(row), *differences])} |")
    return head("frozen: ResNet-20 on CIFAR-10 (JPEG), validation split", columns) + "\n".join(rows) + "\n"


def seen() -> str:
    """Return the table of what a policy sees, on the validation split."""
    rows = []
    for label, name, entry in FEATURES:
        found = {row["name"]: row for row in read(FOLDER / "cifar10-jpeg" / name).get("rows", ())}
        for kind in (entry, "start"):
            if kind in found:
                figures = _reward_and_parts(found[kind])
                rows.append(f"| {label}: {ENTRIES.get(kind, 'PPO')} | {' | '.join(figures)} |")
    return head("what the policy sees", ("accuracy", "total MACs", "reward")) + "\n".join(rows) + "\n"


def _reward_and_parts(row: dict[str, Any]) -> list[str]:
    forms = (("accuracy", 100, 2), ("total_mac_share", 1, 3), ("reward", 1, 4))
    return [interval(row["figures"][key], scale, places) for key, scale, places in forms]


def learned() -> str:
    """Return the table of the document's three methods and other people's learners beside each other."""
    columns = ("accuracy", "loss", "total MACs", "static control", "shuffled", "reward", "PPO's accuracy minus this")
    rows = []
    for row in read(FOLDER / "cifar10-jpeg" / "learners.json").get("rows", ()):
        figures = [
            *_accuracy_and_controls(row["figures"]), interval(row["figures"]["reward"], 1, 4),
            interval(row["difference"], -100, 2),
        ]  # fmt: skip
        rows.append(f"| {LEARNERS.get(row['name'], row['name'])} | {' | '.join(figures)} |")
    return head("frozen: ResNet-20 on CIFAR-10 (JPEG), test images", columns) + "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
