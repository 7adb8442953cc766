"""Checkpoints of training by gradient, from which an interrupted call resumes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import Dataset
from prunegym.models.storage.run_folder import without_unused
from prunegym.models.storage.weights import check_inputs, fingerprint_of, load_state, save_state


class Checkpoint:
    """A file with the state of a training, its configuration, and hashes of what it began from.

    Args:
        path: The file; None stores nothing.
        parts: What has a state: network, gates, optimizers, schedules.
        config: Configuration of the training, a dataclass.
        inputs: Networks, before they are trained, and data sets by name.
    """

    def __init__(
        self, path: Path | str | None, parts: Sequence[Any], config: Any, inputs: Mapping[str, nn.Module | Dataset]
    ) -> None:
        self.path, self.parts = None if path is None else Path(path), parts
        self.config: dict[str, Any] = dataclasses.asdict(config)
        self.inputs = {} if path is None else {name: fingerprint_of(thing) for name, thing in inputs.items()}

    def store(self, done: int) -> None:
        """Write the file.

        Args:
            done: How many epochs or steps have been made.
        """
        if self.path is not None:
            state = [part.state_dict() for part in self.parts]
            save_state(self.path, {"done": done, "state": state, "config": self.config, "inputs": self.inputs})

    def restore(self) -> int:
        """Load the file, if there is one, into all parts; return how much was done.

        Raises:
            InvalidInputError: If it is of another configuration, of other networks or images, or is no checkpoint.
        """
        if self.path is None or not self.path.exists():
            return 0
        stored = load_state(self.path)
        if not {"done", "state", "config"} <= stored.keys():
            raise InvalidInputError(
                f"{self.path} is not a checkpoint of a training run; its keys are {sorted(stored)[:8]}."
            )
        if without_unused(stored["config"]) != without_unused(self.config):
            raise InvalidInputError(
                f"{self.path} was written by another configuration ({stored['config']}); this run has {self.config}. "
                "Give the same options, or another folder."
            )
        check_inputs(self.path, stored.get("inputs"), self.inputs)
        try:
            for part, state in zip(self.parts, stored["state"], strict=True):
                part.load_state_dict(state)
        except (RuntimeError, ValueError) as error:
            raise InvalidInputError(
                f"{self.path} has another network or other gates than these ({str(error).splitlines()[0]}) Give those "
                "of that run, or another folder."
            ) from error
        return int(stored["done"])
