r"""Constants in place of masked channels, compared with zeros: gates, and the best single mask, over seeds.

Each cell is one training: gates or a static mask, with constants or zeros, at one MAC share, with one seed. With
``--variants`` also those of constant_variants.py: other gates with constants, and masks by Taylor scores and greedy
search with constants. All gates of a seed begin with the same imitation; static masks are trained on as many images.
Finished cells are kept in a folder with the name of the document, so that other machines can add seeds; an interrupted
cell goes on from its last epoch. Processes that are started with the same folders share the cells. The document is
written after each cell, with what is there.

    python results/constants.py resnet20 results/cifar10-jpeg/cnn.safetensors runs/constants --json constants.json
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import copy
import dataclasses
import fcntl
import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import constant_variants
import numpy as np
import torch
from constant_cells import FIXED, STUDIES, VARIANTS, Cell, Study, cells, table
from torch import Tensor

from prunegym import DynamicCNN, load_dataset
from prunegym.agents import evaluate
from prunegym.models import Dataset, MaskedCNN, StaticPolicy
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.gating.static_policy import Policy
from prunegym.models.storage.model_file import Bundle, read_model
from prunegym.models.storage.run_folder import command_line, machine
from prunegym.models.training.cnn_training import dense_logits
from prunegym.models.training.preparation import PrepareConfig, prepare


class Trainings:
    """Makes cells of a study.

    Args:
        study: What is trained.
        cnn: The CNN's file.
        out: Folder of checkpoints and models.
        cells: Folder of finished cells.
        images: Only so many training images; None for all.
    """

    def __init__(self, study: Study, cnn: Path, out: Path, cells: Path, images: int | None = None) -> None:
        self.stored: Bundle = read_model(cnn)
        self.study, self.out, self.cells = study, out, cells
        info = self.stored.info
        self.splits = {
            split: info.adapt(load_dataset(info.dataset, split))  # type: ignore[arg-type]
            for split in ("train", "validation", "test")
        }
        if images is not None:
            self.splits = {split: data.sample(min(images, len(data))) for split, data in self.splits.items()}
        self.train = self.splits["train"]
        masked = self.stored.masked.freeze()
        masked.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @functools.cached_property
    def teacher(self) -> Tensor:
        """The CNN's logits for each training image."""
        return dense_logits(self.stored.masked, self.train)

    def run(self, cell: Cell) -> None:
        """Train a cell, unless it is done, or another process has it or the cell that it begins with in hand."""
        done = self.cells / f"{cell.name}.json"
        begun = self.cells / f"{dataclasses.replace(cell, compensation='constant').name}.json"
        with alone(self.out / cell.name, wait=False) as mine:
            if mine and not done.exists() and (cell.compensation not in VARIANTS or begun.exists()):
                self._make(cell, done)

    def _make(self, cell: Cell, done: Path) -> None:
        started = time.process_time()
        masked, policy = self._trained(cell)
        figures = {split: self._figures(masked, policy, self.splits[split]) for split in ("validation", "test")}
        constants = masked.constants
        document = {
            **dataclasses.asdict(cell), **figures, "seconds": time.process_time() - started,
            "largest_constant": None if constants is None else constants.abs().max().item(),
            "command": command_line(), "machine": machine(),
        }  # fmt: skip
        done.parent.mkdir(parents=True, exist_ok=True)
        part = done.with_suffix(".partial")
        part.write_text(json.dumps(document, indent=1) + "\n")
        part.rename(done)

    def _trained(self, cell: Cell) -> tuple[MaskedCNN, Policy]:
        folder = self.out / cell.name
        imitation, epochs = dataclasses.replace(self.study.imitation, seed=cell.seed), self.study.tune.epochs
        if cell.kind != "gates":
            epochs += imitation.steps * imitation.batch_size / len(self.train)
        tune = dataclasses.replace(
            self.study.tune, target_macs=cell.share, epochs=epochs, seed=cell.seed,
            compensation=None if cell.compensation == "zero" else "constant",
        )  # fmt: skip
        config, masked = PrepareConfig(imitation=None, tune=tune, seed=cell.seed), self.stored.masked
        if cell.kind in FIXED:
            given = self.train, tune, self.teacher, folder / "tune.safetensors"
            return constant_variants.fixed(masked, cell.kind, *given)
        match cell.compensation:
            case "predicted":
                given = self.train, tune, self.teacher, folder / "tune.safetensors"
                return constant_variants.predicted(masked, self._imitated(cell.seed), *given)
            case "imitated":
                again = dataclasses.replace(config, imitation=imitation)
                earlier = self._with_constants(cell).masked
                return constant_variants.imitated(earlier, self.train, again, self.teacher, folder)
            case "ppo" | "ppo-both":
                both = cell.compensation == "ppo-both"
                begun = self._with_constants(cell), self.splits, cell.share, cell.seed, folder / "run"
                trained = constant_variants.reinforced(*begun, train=both)
                return trained.masked, trained.policy
        start = self._imitated(cell.seed) if cell.kind == "gates" else StaticPolicy(MaskFeatures(masked))
        masked, policy = prepare(
            masked, self.train, config, policy=start, teacher=self.teacher, folder=folder,
            report=lambda stage, row: log(f"{cell.name} {stage}", row),
        )  # fmt: skip
        DynamicCNN(masked, policy, self.stored.info).save(folder / "model.safetensors")
        return masked, policy

    def _with_constants(self, cell: Cell) -> DynamicCNN:
        """Return the gates and constants that were trained with a variant's seed."""
        done = self.out / dataclasses.replace(cell, compensation="constant").name / "model.safetensors"
        return DynamicCNN.load(done, copy.deepcopy(self.stored.masked.network))

    def _imitated(self, seed: int) -> Any:
        """Return gates after imitation, which is done once for each seed."""
        config = PrepareConfig(imitation=dataclasses.replace(self.study.imitation, seed=seed), tune=None, seed=seed)
        folder = self.out / f"imitation-{seed}"
        report = lambda stage, row: log(f"{stage} {seed}", row)  # noqa: E731
        with alone(folder):
            return copy.deepcopy(prepare(self.stored.masked, self.train, config, folder=folder, report=report)[1])

    def _figures(self, masked: MaskedCNN, policy: Policy, split: Dataset) -> dict[str, Any]:
        if isinstance(policy, constant_variants.PredictedConstants):
            plain, correct = constant_variants.figures(masked, policy, split)
        else:
            dense = self.stored.masked.network
            found = evaluate(DynamicCNN(masked, policy, self.stored.info), None, split, dense=dense)
            plain, correct = found.as_json(), found.correct
        return {**plain, "correct": base64.b64encode(np.packbits(correct.numpy()).tobytes()).decode()}


@contextlib.contextmanager
def alone(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a folder, which is made; True, or False if another process holds it and nothing waits for that."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        mine = True
    except BlockingIOError:
        mine = False
    try:
        yield mine
    finally:
        os.close(descriptor)


def log(what: str, row: Any) -> None:
    """Print figures with the time."""
    print(time.strftime("%H:%M:%S"), what, row, flush=True)


def main() -> None:
    """Make what is missing of a study, and write its document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("cnn", type=Path, help="file of the trained CNN")
    parser.add_argument("out", type=Path, help="folder of checkpoints and models")
    parser.add_argument("--json", type=Path, required=True, help="document to write")
    parser.add_argument("--seeds", type=int, help="how many; those of the study by default")
    parser.add_argument("--images", type=int, help="use only so many images of each split, for a trial")
    parser.add_argument("--variants", action="store_true", help="make the variants too")
    parser.add_argument("--no-run", action="store_true", help="write the document of the cells that are done")
    options = parser.parse_args(sys.argv[1:])
    torch.set_num_threads(1)
    study = STUDIES[options.study]
    study = dataclasses.replace(study, seeds=options.seeds or study.seeds)
    folder = options.json.with_suffix("")
    trainings = None if options.no_run else Trainings(study, options.cnn, options.out, folder, options.images)
    for cell in [None] if trainings is None else cells(study, options.variants):
        if trainings is not None and cell is not None:
            trainings.run(cell)
        done = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
        found = {Cell(*(one[field.name] for field in dataclasses.fields(Cell))): one for one in done}
        options.json.write_text(json.dumps(table(study, found), indent=1) + "\n")


if __name__ == "__main__":
    main()
