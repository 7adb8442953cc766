"""Data sets in memory: uint8 images, normalised in batches, with fixed train, validation and test splits."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.html import MOST_IMAGES, picture, table
from prunegym.models.data.augmentation import random_shift_and_flip
from prunegym.validation import shape

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Augment = bool | Literal["flip"]
"""Shift and mirror images at random, as in training; only mirror them (``flip``); neither (False)."""


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation of images in [0, 1].

    Attributes:
        mean: One number a channel.
        std: One positive number a channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InvalidInputError: If a standard deviation is not above 0, or a number is not finite.
        """
        if not all(0 < value < math.inf for value in self.std) or not all(map(math.isfinite, self.mean)):
            raise InvalidInputError(
                f"Normalisation has means {self.mean} and standard deviations {self.std}; finite numbers are needed, "
                "and standard deviations above 0."
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images.

        Args:
            images: (batch, channels, height, width), uint8 in 0..255 or float in [0, 1].

        Returns:
            float32, same shape, channels_last in memory, which makes convolutions on a CPU faster.
        """
        # (x - mean) / std, of pixels brought to [0, 1] first.
        floats = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return ((floats - mean) / std).contiguous(memory_format=torch.channels_last)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set.

    Attributes:
        name: As in tables.
        split: ``train``, ``validation`` or ``test``.
        images: (count, channels, height, width) uint8.
        labels: (count,) int64, from 0 to ``len(classes) - 1``.
        classes: Names of the classes.
        normalisation: How images become the network's input.
        pad: Pixels of random shift in training.
        flip: Whether training mirrors images at random.
        span: Which part of the split this is (see :meth:`part`); None for all of it.
        places: (count,) int64, the images' indices in the whole split; None if these are all its images, in order.
    """

    name: str
    split: Split
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    normalisation: Normalisation
    pad: int = 0
    flip: bool = False
    span: str | None = None
    places: Tensor | None = None

    def __repr__(self) -> str:
        """Return name, split and sizes."""
        return (
            f"Dataset({self.name!r}, {self.split!r}: {len(self.images):,} images of {self.image_shape}, "
            f"{len(self.classes)} classes)"
        )

    def _repr_html_(self) -> str:
        some = range(min(MOST_IMAGES, len(self.images)))
        names = [self.classes[int(self.labels[row])] for row in some]
        return table(names, [[picture(self.images[row]) for row in some]], repr(self))

    def __post_init__(self) -> None:
        """Check shapes, types and the range of the labels.

        Raises:
            InvalidInputError: If something is wrong; the message says what.
        """
        where = f"Data set {self.name!r}, split {self.split!r}"
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise InvalidInputError(
                f"{where}: images are {self.images.dtype} {tuple(self.images.shape)}; "
                "uint8 of shape (count, channels, height, width) is needed."
            )
        if len(self.images) == 0:
            raise InvalidInputError(f"{where} is empty. Give it at least one image.")
        shape(f"{where}: the label tensor", self.labels, (len(self.images),), "Give one integer an image.")
        if self.labels.dtype != torch.int64:
            raise InvalidInputError(f"{where}: labels are {self.labels.dtype}; int64 is needed.")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise InvalidInputError(
                f"{where}: labels range from {low} to {high}, but there are {len(self.classes)} classes, "
                f"so 0 to {len(self.classes) - 1} are allowed. Renumber the labels or name every class."
            )
        lengths = len(self.normalisation.mean), len(self.normalisation.std)
        if lengths != (self.images.shape[1], self.images.shape[1]):
            raise InvalidInputError(
                f"{where}: images have {self.images.shape[1]} channels, the normalisation has {lengths[0]} means and "
                f"{lengths[1]} standard deviations. Give one of each a channel."
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def batch(
        self, indices: Tensor, *, device: torch.device | str = "cpu", augment: torch.Generator | None = None
    ) -> Tensor:
        """Return normalised images, the network's input.

        Args:
            indices: (batch,) int64, counted within the split.
            device: Where the images go.
            augment: Source of random shifts and mirroring; None for none.

        Returns:
            (batch, channels, height, width) float32, a new tensor.
        """
        images = self.images[indices]
        if augment is not None:
            images = random_shift_and_flip(images, self.pad, self.flip, augment)
        return self.normalisation(images.to(device))

    def index_batches(self, size: int = 250) -> tuple[Tensor, ...]:
        """Return the indices of all images, int64, in batches of a size; the last one may be smaller."""
        return torch.split(torch.arange(len(self)), size)

    def batches(self, size: int = 250, *, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images once, in order: for each batch the indices, and the images as :meth:`batch` returns them."""
        for indices in self.index_batches(size):
            yield indices, self.batch(indices, device=device)

    def augmenting(self, augment: Augment) -> Dataset:
        """Return the data set with other augmentation: True keeps its own, ``flip`` only mirrors, False has none.

        Raises:
            InvalidInputError: For any other value.
        """
        if not isinstance(augment, bool) and augment != "flip":
            raise InvalidInputError(f"augment is {augment!r}; True, False or 'flip' is allowed.")
        if augment is True:
            return self
        return dataclasses.replace(self, pad=0, flip=self.flip and augment == "flip")

    def subset(self, indices: Tensor, split: Split | None = None) -> Dataset:
        """Return the images at ``indices`` (int64) as a data set; with ``split`` they count as that whole split."""
        places = self.place(indices) if split is None else None
        return dataclasses.replace(
            self, images=self.images[indices], labels=self.labels[indices], split=split or self.split, places=places
        )

    def place(self, indices: Tensor) -> Tensor:
        """Return the indices (count,) int64 in the whole split of images with these indices here."""
        return indices if self.places is None else self.places.to(indices.device)[indices]

    def sample(self, count: int, seed: int = 0) -> Dataset:
        """Return a random subset, the same one every time.

        The first images would not do: those of a folder are all of one class.

        Args:
            count: Its size. If there are fewer images, all are returned.
            seed: Seed of the draw.
        """
        if count >= len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[:count].sort().values)

    def with_classes(self, classes: tuple[str, ...]) -> Dataset:
        """Return the data set with its labels renumbered to ``classes``, those that a model was trained on.

        If one side has names and the other only numbers from 0, both are assumed to have the same order. Two classes
        may share a name ("crane" in ImageNet); labels are then kept if both sides list the same classes in one order.

        Raises:
            InvalidInputError: If a class of this data set is not among them, or a name fits several classes.
        """
        if self.classes == classes:
            return self
        unknown = [name for name in self.classes if name not in classes]
        numbered = tuple(map(str, range(max(len(classes), len(self.classes)))))
        no_name_known = len(unknown) == len(self.classes) and numbered[: len(classes)] == classes
        if no_name_known or (unknown and numbered[: len(self.classes)] == self.classes):
            if len(self.classes) > len(classes):
                raise InvalidInputError(
                    f"Data set {self.name!r} has {len(self.classes)} classes, but the model has {len(classes)}. "
                    "Remove the images of the other classes, or use a model that was trained on all of them."
                )
            return self
        if unknown:
            raise InvalidInputError(
                f"Data set {self.name!r} has class {unknown[0]!r}, which the model does not know; it knows "
                f"{', '.join(classes)}. Remove its images, rename it, or use a model that was trained on it."
            )
        both = collections.Counter(classes), collections.Counter(self.classes)
        twice = [name for name in self.classes if max(count[name] for count in both) > 1]
        if twice:
            raise InvalidInputError(
                f"Several classes are named {twice[0]!r}: {both[1][twice[0]]} in data set {self.name!r}, "
                f"{both[0][twice[0]]} in the model, which lists its classes in another order, or other ones. Give each "
                "class a name of its own, or list the data set's classes as the model does."
            )
        places = torch.tensor([classes.index(name) for name in self.classes])
        return dataclasses.replace(self, labels=places[self.labels], classes=classes)

    def part(self, span: str) -> Dataset:
        """Return a part of the split, cut from a fixed random order of its images.

        The parts ``:40000`` and ``40000:`` share no image, and both have all classes, whatever the order of the files.
        So you can train a network on one, and an agent on images that the network never saw.

        Args:
            span: ``FROM:TO`` as in a Python slice. Either may be omitted; negative numbers count from the end.

        Raises:
            InvalidInputError: If it is no such slice, is empty, reaches beyond the images, or this is a part already.
        """
        bounds = span.split(":")
        where = f"Part {span!r} of {self.name}/{self.split} ({len(self)} images)"
        if len(bounds) != 2 or not all(re.fullmatch(r"-?\d+|", bound) for bound in bounds):
            raise InvalidInputError(f"{where} is no slice. Give FROM:TO, for example :40000 or 40000:.")
        if self.span is not None:
            raise InvalidInputError(f"{where} would be a part of the part {self.span}. Take it from the whole split.")
        numbers = [int(bound) if bound else default for bound, default in zip(bounds, (0, len(self)), strict=True)]
        low, high = (number + len(self) if number < 0 else number for number in numbers)
        if not 0 <= low < high <= len(self):
            raise InvalidInputError(f"{where} is empty or too large. Give FROM:TO within 0:{len(self)}, FROM below TO.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[low:high]
        return dataclasses.replace(self.subset(order.sort().values), span=f"{low}:{high}")
