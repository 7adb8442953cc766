"""One policy for all budgets beside policies that were trained for one budget each, at equal MACs.

For each of these models the lambda is found at which the dial spends as much on the validation split, labels not looked
at. Then both classify every test image; the difference is paired by image. Rows that the file has are not made again.

    python results/dial.py runs/cifar/dial/model.safetensors runs/cifar/budget-*/model.safetensors --json dial.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from prunegym import DynamicCNN, load_dataset
from prunegym.agents.statistics import interval
from prunegym.models import Dataset, GatePolicy
from prunegym.models.budget import TOLERANCE, penalty_for, total_mac_share
from prunegym.models.runs import command_line, machine

LAMBDAS = 12
"""Places of the dial at which its MACs are measured, evenly over its range."""


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """What a model makes of every image of a split: right or wrong (images,), and its mean total MAC share."""

    correct: torch.Tensor
    total_mac_share: float


def answers(model: DynamicCNN, data: Dataset, penalty: float | None = None) -> Answers:
    """Classify every image of a split."""
    found = [model.predict(images, penalty) for images in torch.split(data.images, 250)]
    share = torch.cat([part.mac_share for part in found]).mean().item()
    return Answers(torch.cat([part.labels for part in found]) == data.labels, share)


def beside(dial: DynamicCNN, model: DynamicCNN, validation: Dataset, test: Dataset) -> dict[str, Any]:
    """Compare the dial, turned to a model's MACs, with that model."""
    assert isinstance(dial.policy, GatePolicy)
    share = total_mac_share(model.masked, model.policy, validation)
    penalty = penalty_for(dial.masked, dial.policy, validation, share)
    spent = total_mac_share(dial.masked, dial.policy, validation, penalty)
    if abs(spent - share) > TOLERANCE:
        sys.exit(f"The dial spends {spent:.3f} of the MACs at lambda {penalty:.3f}, not {share:.3f}: out of its range.")
    own, dialled = answers(model, test), answers(dial, test, penalty)
    difference = interval((dialled.correct.double() - own.correct.double()).tolist())
    return {
        "penalty": penalty,
        "validation_total_mac_share": share,
        "trained": {"accuracy": own.correct.double().mean().item(), "total_mac_share": own.total_mac_share},
        "dial": {"accuracy": dialled.correct.double().mean().item(), "total_mac_share": dialled.total_mac_share},
        "difference": difference.mean,
        "half_width": difference.half_width,
    }


def main() -> None:
    """Parse the command line and write the comparison, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dial", help="a model that was trained for a range of lambdas")
    parser.add_argument("models", nargs="+", help="models that were trained for one budget each, of the same CNN")
    parser.add_argument("--json", type=Path, required=True, help="where the comparison is written")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dial = DynamicCNN.load(args.dial)
    if not isinstance(dial.policy, GatePolicy) or dial.policy.penalty_range is None:
        sys.exit(f"{args.dial} was trained for one lambda. Give a model of `prunegym train --recipe dial`.")
    validation, test = (load_dataset(dial.info.dataset, split) for split in ("validation", "test"))
    low, high = dial.policy.penalty_range
    if args.json.exists():
        document = json.loads(args.json.read_text())
    else:
        sample = validation.sample(1000)
        turns = [low + (high - low) * step / (LAMBDAS - 1) for step in range(LAMBDAS)]
        spent = {turn: total_mac_share(dial.masked, dial.policy, sample, turn) for turn in turns}
        document = {"dial": args.dial, "validation_total_mac_share_by_penalty": spent, "rows": {}, "machine": machine()}
    if document["dial"] != args.dial:
        sys.exit(f"{args.json} is of {document['dial']}. Give another file, or that dial.")
    for path in args.models:
        if path not in document["rows"]:
            document["rows"][path] = beside(dial, DynamicCNN.load(path), validation, test)
            args.json.write_text(json.dumps({**document, "command": command_line()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
