r"""Compares one policy for all budgets with policies that were trained for one budget each, at equal MACs, over seeds.

For each of these models, the dial of the same seed gets the lambda at which it has the same MACs on the validation
split; labels are not used. Then both classify every test image, and the difference is paired by image. ``{seed}`` in a
path means the seed; a path without it is one model for all. Rows that the file already has are kept.

    python results/dial.py 'runs/cifar/dial-seeds/dial-seed{seed}/model.safetensors' \
        runs/cifar/budget-50/model.safetensors --seeds 5 --json dial.json
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from prunegym import DynamicCNN, load_dataset
from prunegym.agents.comparison.entries import file_of
from prunegym.agents.comparison.results import interval
from prunegym.models import Dataset, GatePolicy
from prunegym.models.storage.run_folder import command_line, machine
from prunegym.models.training.mac_target import TOLERANCE, penalty_for, total_mac_share

LAMBDAS = 12
"""Places of the dial at which its MACs are measured, evenly over its range."""
SAMPLE = 500
"""Validation images on which they are."""


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """What a model makes of every image of a split: right or wrong (images,), and its mean total MAC share."""

    correct: torch.Tensor
    total_mac_share: float
    validation_total_mac_share: float


def answers(model: DynamicCNN, validation: Dataset, test: Dataset, penalty: float | None = None) -> Answers:
    """Classify every test image, and measure what those of the validation split cost."""
    model.skip()
    found = [model.predict(images, penalty) for images in torch.split(test.images, 250)]
    return Answers(
        torch.cat([part.labels for part in found]) == test.labels,
        torch.cat([part.mac_share for part in found]).mean().item(),
        total_mac_share(model.masked, model.policy, validation, penalty),
    )


def turned(dial: DynamicCNN, share: float, validation: Dataset, test: Dataset) -> tuple[float, Answers]:
    """Turn the dial to a total MAC share; return its lambda there and what it answers."""
    assert isinstance(dial.policy, GatePolicy)
    penalty = penalty_for(dial.masked, dial.policy, validation, share)
    found = answers(dial, validation, test, penalty)
    spent = found.validation_total_mac_share
    if abs(spent - share) > TOLERANCE:
        sys.exit(f"The dial spends {spent:.3f} of the MACs at lambda {penalty:.3f}, not {share:.3f}: out of its range.")
    return penalty, found


def over(values: Sequence[float]) -> dict[str, Any]:
    """Return a mean with its interval, for JSON; of one value alone it has none."""
    return dataclasses.asdict(interval(values))


def beside(dials: str, models: str, seeds: Sequence[int], validation: Dataset, test: Dataset) -> dict[str, Any]:
    """Compare the dial of each seed, turned to the MACs of the model of that seed, with that model."""

    @functools.cache
    def trained(path: str) -> Answers:
        return answers(DynamicCNN.load(path), validation, test)

    paths = list(dict.fromkeys(file_of(models, seed) for seed in seeds))
    owns = [trained(file_of(models, seed)) for seed in seeds]
    turns = [
        turned(open_dial(file_of(dials, seed)), own.validation_total_mac_share, validation, test)
        for seed, own in zip(seeds, owns, strict=True)
    ]
    dialled = [found for _, found in turns]
    gaps = torch.stack([one.correct.double() - own.correct.double() for one, own in zip(dialled, owns, strict=True)])
    return {
        "penalty": over([penalty for penalty, _ in turns]),
        "trained": figures([trained(path) for path in paths]),
        "dial": figures(dialled),
        "difference": over(gaps.mean(0).tolist()),
        "difference_over_seeds": over(gaps.mean(1).tolist()),
    }


def figures(found: Sequence[Answers]) -> dict[str, Any]:
    """Return accuracy and MACs over seeds."""
    return {
        "accuracy": over([one.correct.double().mean().item() for one in found]),
        "total_mac_share": over([one.total_mac_share for one in found]),
    }


def open_dial(path: str) -> DynamicCNN:
    """Load a model that was trained for a range of lambdas."""
    dial = DynamicCNN.load(path)
    if not isinstance(dial.policy, GatePolicy) or dial.policy.penalty_range is None:
        sys.exit(f"{path} was trained for one lambda. Give a model of `prunegym train --recipe dial`.")
    return dial


def spent_by_penalty(dial: DynamicCNN, sample: Dataset) -> dict[str, float]:
    """Return the total MAC share at places of the dial, evenly over its range."""
    assert dial.policy.penalty_range is not None
    low, high = dial.policy.penalty_range
    turns = [low + (high - low) * step / (LAMBDAS - 1) for step in range(LAMBDAS)]
    return {f"{turn:.4g}": total_mac_share(dial.masked, dial.policy, sample, turn) for turn in turns}


def main() -> None:
    """Parse the command line and write the comparison, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dial", help="models that were trained for a range of lambdas, {seed} in the path")
    parser.add_argument("models", nargs="+", help="models that were trained for one budget each, of the same CNN")
    parser.add_argument("--seeds", type=int, default=1, help="so many seeds, from 0")
    parser.add_argument("--json", type=Path, required=True, help="where the comparison is written")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seeds = range(args.seeds)
    dials = [open_dial(file_of(args.dial, seed)) for seed in seeds]
    validation, test = (load_dataset(dials[0].info.dataset, split) for split in ("validation", "test"))
    asked = {"dial": args.dial, "seeds": list(seeds)}
    if args.json.exists():
        document = json.loads(args.json.read_text())
        if any(document.get(key) != value for key, value in asked.items()):
            sys.exit(f"{args.json} is of {document['dial']} or other seeds. Give another file, or that dial.")
    else:
        spent = [spent_by_penalty(dial, validation.sample(SAMPLE)) for dial in dials]
        document = {**asked, "validation_total_mac_share_by_penalty": spent, "rows": {}, "machine": machine()}
    for models in args.models:
        if models not in document["rows"]:
            document["rows"][models] = beside(args.dial, models, seeds, validation, test)
            args.json.write_text(json.dumps({**document, "command": command_line()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
