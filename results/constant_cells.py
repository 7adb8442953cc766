"""Cells of results/constants.py, and the table that they become."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import numpy as np

from prunegym.agents.comparison.results import interval
from prunegym.models.training.preparation import ImitationConfig
from prunegym.models.training.tuning import TuneConfig

IMITATION = ImitationConfig(mac_share=0.69, augment="flip")
TUNE = TuneConfig(epochs=5.0, train_cnn=False, augment="flip")


@dataclasses.dataclass(frozen=True)
class Study:
    """A CNN's MAC shares, how many seeds, and the training: the CNN is frozen unless ``tune`` says otherwise."""

    shares: tuple[float, ...]
    seeds: int
    imitation: ImitationConfig = IMITATION
    tune: TuneConfig = TUNE


STUDIES = {
    "resnet20": Study((0.7, 0.6), 5),
    "resnet20-prepared": Study((0.36,), 5, ImitationConfig(kept_share=0.6, steps=300), TuneConfig(epochs=8.0)),
    "vgg11": Study((0.7,), 3),
    "fashion": Study((0.46,), 3),
}
FIXED = {"taylor": "Taylor, static", "greedy": "greedy static mask"}
"""Masks that are not trained; their constants are."""
SHOWN = {"gates": "gates", "static": "learnt static mask", **FIXED}
"""How kinds of cells are called in the table."""
VARIANTS = {
    "predicted": "constants predicted for each image",
    "imitated": "constants, imitation repeated under them",
    "ppo": "constants, then PPO",
    "ppo-both": "constants, then PPO that trains them too",
}
WAYS = {"constant": "constants", "zero": "zeros", **VARIANTS}
"""How what replaces masked channels is called in the table."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training."""

    kind: str
    compensation: str
    share: float
    seed: int

    @property
    def name(self) -> str:
        """Its folder, and the name of its file."""
        return f"{self.kind}-{self.compensation}-{round(100 * self.share)}-{self.seed}"


def cells(study: Study, variants: bool = False) -> list[Cell]:
    """Return the cells of a study: constants of all seeds, then zeros, then the variants of gates and of masks."""
    ways = [(("gates", "static"), way) for way in ("constant", "zero")]
    if variants:
        ways += [*((("gates",), way) for way in VARIANTS), (tuple(FIXED), "constant")]
    return [
        Cell(kind, way, share, seed)
        for kinds, way in ways
        for seed in range(study.seeds)
        for share in study.shares
        for kind in kinds
    ]


def right(document: dict[str, Any], split: str = "test") -> np.ndarray[Any, Any]:
    """Return whether each image of a finished cell is right, (images,) of 0 and 1."""
    packed = np.frombuffer(base64.b64decode(document[split]["correct"]), np.uint8)
    return np.unpackbits(packed)[: document[split]["images"]].astype(np.int64)


def table(study: Study, found: dict[Cell, dict[str, Any]]) -> dict[str, Any]:
    """Return the rows of a study: means over the seeds that are there, and differences to other rows."""
    rows = []
    for share in study.shares:
        for kind, way in dict.fromkeys((cell.kind, cell.compensation) for cell in cells(study, variants=True)):
            mine = {cell.seed: one for cell, one in found.items() if cell == Cell(kind, way, share, cell.seed)}
            if not mine:
                continue
            name = f"{share:.2f}, {SHOWN[kind]}, {WAYS[way]}"
            row: dict[str, Any] = {"name": name, "share": share, "seeds": sorted(mine), "count": len(mine)}
            row |= {
                split: {
                    figure: over([one[split][figure] for one in mine.values()])
                    for figure in ("accuracy", "dense_accuracy", "total_mac_share", "policy_mac_share")
                }
                for split in ("validation", "test")
            }
            others = {"minus_static": ("static", "constant" if way in VARIANTS else way), "minus_zeros": (kind, "zero")}
            others |= {"minus_constants": (kind, "constant")} if way in VARIANTS else {}
            for column, (other_kind, other_way) in others.items():
                other = {seed: found.get(Cell(other_kind, other_way, share, seed)) for seed in mine}
                pairs = {seed: one for seed, one in other.items() if one is not None}
                if pairs and (other_kind, other_way) != (kind, way):
                    row[column] = difference(mine, pairs)
            rows.append(row)
    return {"rows": rows, "seeds": sorted({cell.seed for cell in found})}


def difference(mine: dict[int, Any], other: dict[int, Any]) -> dict[str, Any]:
    """Return the difference of two rows on the test images, over the seeds of both, and by image."""
    each = [right(mine[seed]) - right(one) for seed, one in other.items()]
    by_image = np.mean(each, axis=0)
    # 95 % of a normal distribution: there are thousands of images.
    half = 1.96 * float(by_image.std(ddof=1)) / len(by_image) ** 0.5
    return {
        "over_seeds": over([float(one.mean()) for one in each]),
        "by_image": {"mean": float(by_image.mean()), "half_width": half, "count": len(by_image)},
    }


def over(values: list[float]) -> dict[str, Any]:
    """Return a mean with its interval, for JSON; one value alone has none."""
    return dataclasses.asdict(interval(values))
