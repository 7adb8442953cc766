"""Results of evaluations: JSON files, reused for the same configuration, and means with 95 % intervals."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn

from prunegym.agents.evaluation.evaluator import JSON_KEYS, Evaluation
from prunegym.agents.evaluation.masks import Masks, is_masks, penalised_accuracy
from prunegym.models.data.dataset import Dataset
from prunegym.models.data.files.bounded_files import read_json
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.storage.run_folder import without_unused
from prunegym.models.storage.weights import fingerprint_of, hash_of, read_weights, save_text, write_tensors
from prunegym.validation import array, finite, whole_number

VERSION = 2
"""Increase this if evaluation changes the figures of the same configuration, so that old results are not reused."""


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """The part of an evaluation that is stored.

    Attributes:
        figures: See :meth:`Evaluation.as_json`.
        is_static: Whether the policy is static.
        verdict: The same as a sentence.
        notes: Explanations that a reader of the figures needs.
        correct: (images,) bool; or float64, the score of each.
        total_mac_shares: (images,) float32.
        masks: (images, mask_size) bool; None in files of earlier versions.
    """

    figures: dict[str, float]
    is_static: bool
    verdict: str
    notes: tuple[str, ...]
    correct: Tensor = dataclasses.field(repr=False)
    total_mac_shares: Tensor = dataclasses.field(repr=False)
    masks: Tensor | None = dataclasses.field(default=None, repr=False)

    def rewards(self, penalty: float) -> Tensor:
        """Return the figure ``reward`` of each image, see :func:`penalised_accuracy`: (images,) float64."""
        return penalised_accuracy(self.correct, self.total_mac_shares.double(), penalty)

    @classmethod
    def of(cls, evaluation: Evaluation, task_reward: float | None = None) -> Result:
        """Return the part of an evaluation that is stored; ``task_reward`` is the mean of the task's own reward."""
        own = {} if task_reward is None else {"task_reward": task_reward}
        return cls(
            {**evaluation.as_json(), **own}, evaluation.is_static, evaluation.verdict, evaluation.notes,
            evaluation.correct, evaluation.total_mac_shares.float(), evaluation.masks,
        )  # fmt: skip

    def save(self, path: Path, configuration: dict[str, Any] | None, cell: Mapping[str, Any] | None = None) -> None:
        """Write the result, its configuration, and how its agent is found again. A crash leaves no partial file."""
        right = self.correct.dtype == torch.bool
        content = {
            **vars(self),
            "correct": _text(np.packbits(self.correct.numpy()) if right else self.correct.numpy().astype("<f8")),
            **({} if right else {"scores": True}),
            "total_mac_shares": _text(self.total_mac_shares.numpy().astype("<f4")),
            "masks": None if self.masks is None else _packed(self.masks),
            "mask_size": None if self.masks is None else self.masks.shape[1],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = {"configuration": configuration, "result": content, "cell": None if cell is None else dict(cell)}
        save_text(path, json.dumps(stored, indent=1))

    @classmethod
    def load(cls, path: Path, configuration: dict[str, Any]) -> Result | None:
        """Read a result; None if the file is missing or has another configuration."""
        try:
            stored = read_json(path, "result")
            if without_unused(stored["configuration"]) != without_unused(json.loads(json.dumps(configuration))):
                return None
            return cls.read(stored["result"])
        except BROKEN:  # missing, damaged or in an old format: evaluate again
            return None

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Result:
        """Return the result in the content of a file; one of ``BROKEN`` is raised if it is damaged."""
        figures, is_static, verdict = content["figures"], content["is_static"], content["verdict"]
        notes, images = tuple(content["notes"]), whole_number("images", figures["images"])
        missing = [key for key in JSON_KEYS if key not in figures]
        if missing:
            raise ValueError(f"it has no figure {', '.join(missing)}")
        for name, value in figures.items():
            finite(f"The figure {name}", value)
        if not isinstance(is_static, bool) or not all(isinstance(text, str) for text in (verdict, *notes)):
            raise TypeError("is_static, the verdict or the notes are of another kind")
        data = base64.b64decode(content["correct"])
        bits = np.unpackbits(np.frombuffer(data, np.uint8))[:images].astype(bool)
        correct = torch.from_numpy(np.frombuffer(data, "<f8").copy() if content.get("scores") else bits)
        shares = np.frombuffer(base64.b64decode(content["total_mac_shares"]), "<f4").astype(np.float32)
        masks = None
        if content.get("masks") is not None:
            size = images * -(-whole_number("mask_size", content["mask_size"]) // 8)
            expanded = zlib.decompressobj().decompress(base64.b64decode(content["masks"]), size + 1)  # no bomb
            packed = np.frombuffer(expanded, np.uint8).reshape(images, -1)
            masks = torch.from_numpy(np.unpackbits(packed, axis=1)[:, : content["mask_size"]].astype(bool))
        if not len(correct) == len(shares) == images or not (np.isfinite(shares).all() and correct.isfinite().all()):
            raise ValueError(f"it does not have one finite number for each of {images} images")
        # Read by name, because files of earlier versions have more fields.
        return cls(figures, is_static, verdict, notes, correct, torch.from_numpy(shares), masks)


BROKEN = (OSError, ValueError, KeyError, TypeError, zlib.error)
"""What reading a damaged result raises."""


def _packed(masks: Tensor) -> str:
    return base64.b64encode(zlib.compress(np.packbits(masks.numpy(), axis=1).tobytes(), 9)).decode()


def _text(numbers: NDArray[Any]) -> str:
    return base64.b64encode(numbers.tobytes()).decode()


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and its 95 % Student-t interval.

    Attributes:
        mean: The mean.
        half_width: Half of the interval's width, mean +- half_width; None for a single value.
        count: Number of values.
    """

    mean: float
    half_width: float | None
    count: int


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent values with its 95 % Student-t interval (Student 1908).

    mean +- t * s / sqrt(n), with s the standard deviation (n - 1) and t the quantile for n - 1 degrees of freedom.

    Args:
        values: At least one number.

    Example:
        >>> result = interval([1.0, 2.0, 3.0, 4.0, 5.0])
        >>> result.mean, round(result.half_width, 4)
        (3.0, 1.9632)
    """
    whole_number("The number of values of an interval", len(values))
    from scipy.stats import t  # type: ignore[import-untyped]  # takes half a second to import

    numbers = array("The values of an interval", values).astype(np.float64)
    count, mean = len(numbers), float(numbers.mean())
    if count < 2:
        return Interval(mean, None, count)
    # mean +- t * s / sqrt(n), 2.5 % of the distribution above it and 2.5 % below (Student 1908).
    quantile = float(t.ppf(0.975, count - 1))
    return Interval(mean, quantile * float(numbers.std(ddof=1)) / count**0.5, count)


def slug(name: str) -> str:
    """Return a name as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "entry"


MODEL, MASKS = "model.safetensors", "masks.safetensors"


def save_agent(agent: object, folder: Path) -> None:
    """Write an agent to the folder of its run: a dynamic CNN, or fixed masks. Others are named by their import path."""
    if isinstance(agent, DynamicCNN):
        agent.save(folder / MODEL)
    elif is_masks(agent):
        own = agent if isinstance(agent, Masks) else Masks("masks", torch.as_tensor(agent))
        about = {"name": own.name, "macs": repr(float(own.macs)), "note": own.note}
        write_tensors(folder / MASKS, {"mask": own.mask.bool()}, {"prunegym": json.dumps(about)})


def load_masks(path: Path) -> Masks:
    """Read fixed masks that :func:`save_agent` wrote."""
    mask = read_weights(path)["mask"]
    with safetensors.safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["prunegym"])
    return Masks(about["name"], mask, float(about["macs"]), about["note"])


def fingerprint(thing: object) -> str | None:
    """Return a hash of everything that a result depends on; None if that is unknown, as for your own agent.

    Args:
        thing: A torch module, masks, a data set, or a Stable-Baselines3 model without VecNormalize.
    """
    if isinstance(thing, nn.Module | Dataset):
        return fingerprint_of(thing)
    if isinstance(thing, Masks):
        return hash_of([(thing.name, thing.mask), ("macs", torch.tensor(thing.macs))])
    if is_masks(thing):
        return hash_of([("masks", torch.as_tensor(thing))])
    # Other agents may depend on more than their weights: on settings, or on the statistics of VecNormalize.
    if isinstance(thing, BaseAlgorithm) and thing.get_vec_normalize_env() is None:
        return hash_of(thing.policy.state_dict().items())
    return None
