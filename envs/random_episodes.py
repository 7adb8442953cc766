"""Images, augmentations and lambdas of episodes, random or chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.data.augmentation import random_shift_and_flip
from prunegym.models.data.dataset import Dataset
from prunegym.models.data.sources.lazy_images import LazyImages
from prunegym.validation import array, finite, plain

Penalty = float | tuple[float, float]
"""lambda, or the range from which it is drawn."""

Indices = Sequence[int] | npt.NDArray[np.integer[Any]] | Tensor


class RandomEpisodes:
    """Draws images, each once per epoch in a new order, their augmentation, and lambdas.

    Args:
        dataset: The images.
        augment: Whether images are shifted and mirrored.
        rng: Source of all randomness.
    """

    def __init__(self, dataset: Dataset, augment: bool, rng: np.random.Generator) -> None:
        self._dataset, self._augment, self._rng = dataset, augment, rng
        self._left = np.empty(0, dtype=np.int64)
        self._shifts: torch.Generator | None = None

    def draw(self, number: int) -> Tensor:
        """Return the next ``number`` indices, int64; a draw may cross the end of an epoch."""
        while len(self._left) < number:
            self._left = np.concatenate([self._left, self._rng.permutation(len(self._dataset))])
        drawn, self._left = self._left[:number], self._left[number:]
        return torch.from_numpy(drawn.copy())

    def images(self, indices: Tensor) -> Tensor:
        """Return stored images (number, channels, height, width), augmented if the task says so."""
        images = self._dataset.images[indices]
        if isinstance(self._dataset.images, LazyImages):  # those of the next episodes are read while these are played
            self._dataset.images.expect(torch.from_numpy(self._left[: len(indices)]))
        if not self._augment:
            return images
        return random_shift_and_flip(images, self._dataset.pad, self._dataset.flip, self._seeded_shifts())

    def penalties(self, low: float, high: float, number: int) -> Tensor:
        """Return lambdas (number,) float64 from the range."""
        return torch.from_numpy(self._rng.uniform(low, high, size=number))

    def state(self) -> dict[str, Any]:
        """Return the state of the draws as plain data."""
        shifts = None if self._shifts is None else self._shifts.get_state()
        return {"rng": self._rng.bit_generator.state, "left": torch.from_numpy(self._left), "shifts": shifts}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; raises a ValueError, KeyError, TypeError or RuntimeError if it is damaged."""
        left, shifts = state["left"], state["shifts"]
        if left.ndim != 1 or left.dtype != torch.int64 or ((left < 0) | (left >= len(self._dataset))).any():
            raise ValueError(f"the images that are left are not from 0 to {len(self._dataset) - 1}")
        self._rng.bit_generator.state = state["rng"]
        self._left = left.numpy()
        self._shifts = None if shifts is None else torch.Generator().set_state(shifts)

    def _seeded_shifts(self) -> torch.Generator:
        """Return the source of augmentations, seeded when it is first needed."""
        if self._shifts is None:
            self._shifts = torch.Generator().manual_seed(int(self._rng.integers(2**63 - 1)))
        return self._shifts


def check_indices(dataset: Dataset, indices: Indices) -> Tensor:
    """Return images chosen by a user as int64.

    Raises:
        InvalidInputError: If they are not a list of integers, or one is out of range.
    """
    count = len(dataset)
    given = array("indices", indices, f"Give a list of integers from 0 to {count - 1}.")
    if given.ndim != 1 or len(given) == 0 or given.dtype.kind not in "iu":
        raise InvalidInputError(f"indices are {indices!r}; a list of integers from 0 to {count - 1} is needed.")
    wrong = given[(given < 0) | (given >= count)]
    if len(wrong):
        raise InvalidInputError(
            f"Image {wrong[0]} is out of range: split {dataset.split!r} of {dataset.name!r} has images 0 to "
            f"{count - 1}."
        )
    return torch.as_tensor(given).long()


def check_penalty(penalty: Penalty) -> Penalty:
    """Return a task's lambda, or the range of it; raises InvalidInputError if it is neither."""
    if not isinstance(penalty, tuple | list):
        return finite("penalty", penalty, 0.0, hint="Or pass a range (low, high).")
    bounds = [finite("A bound of the range penalty", bound, 0.0) for bound in penalty]
    if len(bounds) != 2 or bounds[0] >= bounds[1]:
        raise InvalidInputError(f"penalty is {penalty!r}; a range is (low, high) with low < high.")
    return bounds[0], bounds[1]


def check_penalties(allowed: Penalty, given: Any, number: int) -> Tensor:
    """Return lambdas chosen by a user, one for all or one for each episode, as (number,) float64.

    Raises:
        InvalidInputError: If they are not numbers, are too many or too few, or are outside the task's range.
    """
    low, high = allowed if isinstance(allowed, tuple) else (0.0, float("inf"))
    try:
        values = torch.as_tensor(given, dtype=torch.float64).cpu().expand(number)
    except (RuntimeError, TypeError, ValueError):  # not numbers, or not this many
        values = torch.tensor(float("nan"))
    if not ((values >= low) & (values <= high) & values.isfinite()).all():
        raise InvalidInputError(f"penalty is {given!r}; a number from {low} to {high} is allowed here.")
    return values


def as_numbers(name: str, given: npt.ArrayLike | Tensor) -> Tensor:
    """Return a tensor, an array or a list as a tensor of ordinary numbers.

    Raises:
        InvalidInputError: If it is none, or is sparse, complex and the like.
    """
    hint = "Give an array of 0 and 1."
    return plain(name, given, hint) if isinstance(given, Tensor) else torch.as_tensor(array(name, given, hint))
