"""Data sets in memory: uint8 images, normalised in batches, with fixed train, validation and test splits."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from prunegym.models.augmentation import random_shift_and_flip
from prunegym.models.errors import InvalidInputError

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

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images.

        Args:
            images: (batch, channels, height, width), uint8 in 0..255 or float in [0, 1].

        Returns:
            float32, same shape, channels_last in memory (the faster layout for convolutions on a CPU).
        """
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
        span: Which part of the split this is (see :meth:`part`); None: all of it.
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

    def __post_init__(self) -> None:
        """Check shapes, types and the range of the labels.

        Raises:
            InvalidInputError: Naming what is wrong.
        """
        where = f"Data set {self.name!r}, split {self.split!r}"
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise InvalidInputError(
                f"{where}: images are {self.images.dtype} {tuple(self.images.shape)}; "
                "uint8 of shape (count, channels, height, width) is needed."
            )
        if len(self.images) == 0:
            raise InvalidInputError(f"{where} is empty. Give it at least one image.")
        if self.labels.shape != (len(self.images),):
            raise InvalidInputError(
                f"{where}: {len(self.images)} images but labels of shape {tuple(self.labels.shape)}; "
                "one integer an image is needed."
            )
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
        """Return normalised images, as the network takes them.

        Args:
            indices: (batch,) int64, counted within the split.
            device: Where the images go.
            augment: If given, images are shifted and mirrored at random, drawn from it.

        Returns:
            (batch, channels, height, width) float32, a fresh tensor.
        """
        images = self.images[indices]
        if augment is not None:
            images = random_shift_and_flip(images, self.pad, self.flip, augment)
        return self.normalisation(images.to(device))

    def augmenting(self, augment: Augment) -> Dataset:
        """Return the data set with other augmentations: True leaves those of training, ``flip`` mirrors only.

        Raises:
            InvalidInputError: For any other value.
        """
        if augment not in (True, False, "flip"):
            raise InvalidInputError(f"augment is {augment!r}; True, False or 'flip' is allowed.")
        if augment is True:
            return self
        return dataclasses.replace(self, pad=0, flip=self.flip and augment == "flip")

    def subset(self, indices: Tensor, split: Split | None = None) -> Dataset:
        """Return the images of ``indices`` (int64) as a data set of their own."""
        return dataclasses.replace(
            self, images=self.images[indices], labels=self.labels[indices], split=split or self.split
        )

    def sample(self, count: int, seed: int = 0) -> Dataset:
        """Return a random subset, the same one every time: the first images of a folder are all of one class.

        Args:
            count: Its size; if there are no more images, all are returned.
            seed: Seed of the draw.
        """
        if count >= len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[:count].sort().values)

    def with_classes(self, classes: tuple[str, ...]) -> Dataset:
        """Return the data set with labels numbered as ``classes`` are, which a model was trained on.

        Classes that are only numbered, here or there, are taken to be in the same order.

        Raises:
            InvalidInputError: If a class of this data set is not among them.
        """
        numbered = tuple(map(str, range(max(len(classes), len(self.classes)))))
        if numbered[: len(classes)] == classes or numbered[: len(self.classes)] == self.classes:
            return self
        unknown = [name for name in self.classes if name not in classes]
        if unknown:
            raise InvalidInputError(
                f"Data set {self.name!r} has class {unknown[0]!r}, which the model does not know; it knows "
                f"{', '.join(classes)}. Leave its images out, rename it, or take a model that was trained on it."
            )
        places = torch.tensor([classes.index(name) for name in self.classes])
        return dataclasses.replace(self, labels=places[self.labels], classes=classes)

    def part(self, span: str) -> Dataset:
        """Return a part of the split, by place in an order that is drawn once with a fixed seed.

        The parts ``:40000`` and ``40000:`` share no image and have all classes, whatever the order of the files: a
        network may be trained on one, and an agent on images that the network never saw.

        Args:
            span: ``FROM:TO`` as in a slice of Python; either may be left out, negative ones count from the end.

        Raises:
            InvalidInputError: If it is no such slice or an empty one, reaches beyond the images, or this is a part.
        """
        bounds = span.split(":")
        where = f"Part {span!r} of {self.name}/{self.split} ({len(self)} images)"
        if len(bounds) != 2 or not all(re.fullmatch(r"-?\d+|", bound) for bound in bounds):
            raise InvalidInputError(f"{where} is no slice. Give FROM:TO, for example :40000 or 40000:.")
        if self.span is not None:
            raise InvalidInputError(f"{where} would be a part of the part {self.span}. Take it of the whole split.")
        numbers = [int(bound) if bound else default for bound, default in zip(bounds, (0, len(self)), strict=True)]
        low, high = (number + len(self) if number < 0 else number for number in numbers)
        if not 0 <= low < high <= len(self):
            raise InvalidInputError(f"{where} is empty or too large. Give FROM:TO within 0:{len(self)}, FROM below TO.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[low:high]
        return dataclasses.replace(self.subset(order.sort().values), span=f"{low}:{high}")


def hold_out_validation(train: Dataset, share: float = 0.1, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split training images into training and validation images, the same ones every time.

    Args:
        train: All training images.
        share: Share (0 to 1) of them that becomes the validation split.
        seed: Seed of the draw; the default is the one that all results use.

    Returns:
        The training split and the validation split.

    Raises:
        InvalidInputError: If either would be empty.
    """
    count = round(len(train) * share)
    if not 0 < count < len(train):
        raise InvalidInputError(
            f"Data set {train.name!r} has {len(train)} training images; a validation share of {share} leaves an "
            "empty split. Give more images or another share."
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return train.subset(order[count:].sort().values, "train"), train.subset(order[:count].sort().values, "validation")


def from_arrays(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    name: str = "arrays",
    classes: tuple[str, ...] | None = None,
    normalisation: Normalisation | None = None,
    pad: int | None = None,
    flip: bool = False,
) -> dict[Split, Dataset]:
    """Make the three splits of a data set from tensors or numpy arrays in memory.

    Args:
        train: Images (count, channels, height, width) uint8 and labels (count,) integers.
        test: The same, of the test split.
        name: As in tables.
        classes: Names of the classes; by default ``"0"``, ``"1"``, ...
        normalisation: By default ImageNet's for 3 channels, else mean 0.5 and standard deviation 0.5.
        pad: Pixels of random shift in training; by default an eighth of the height.
        flip: Whether training mirrors images.

    Returns:
        ``{"train": ..., "validation": ..., "test": ...}``; the validation split is a tenth of the training images.

    Raises:
        InvalidInputError: For wrong shapes, types, labels or an empty split.

    Example:
        >>> images, labels = torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 2
        >>> {split: len(part) for split, part in from_arrays((images, labels), (images, labels)).items()}
        {'train': 36, 'validation': 4, 'test': 40}
    """
    images = torch.as_tensor(train[0])
    if images.ndim != 4:
        raise InvalidInputError(
            f"Data set {name!r}: images have shape {tuple(images.shape)}; (count, channels, height, width) is needed."
        )
    if images.shape[1:] != torch.as_tensor(test[0]).shape[1:]:
        raise InvalidInputError(
            f"Data set {name!r}: training images are {tuple(images.shape[1:])}, test images "
            f"{tuple(torch.as_tensor(test[0]).shape[1:])}. Bring all images to one size first."
        )
    channels = images.shape[1]
    if normalisation is None:
        rgb = channels == 3
        normalisation = Normalisation(
            IMAGENET_MEAN if rgb else (0.5,) * channels, IMAGENET_STD if rgb else (0.5,) * channels
        )
    labels, test_labels = _integers(name, train[1]), _integers(name, test[1])
    names = classes or tuple(str(label) for label in range(int(labels.max()) + 1 if len(labels) else 0))
    make = _maker(name, names, normalisation, images.shape[2] // 8 if pad is None else pad, flip)
    training, validation = hold_out_validation(make("train", images, labels))
    testing = make("test", torch.as_tensor(test[0]), test_labels)
    return {"train": training, "validation": validation, "test": testing}


def _integers(name: str, labels: Tensor) -> Tensor:
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.is_complex():
        raise InvalidInputError(f"Data set {name!r}: labels are {labels.dtype}; integers are needed.")
    return labels.long()


def _maker(
    name: str, classes: tuple[str, ...], normalisation: Normalisation, pad: int, flip: bool
) -> Callable[[Split, Tensor, Tensor], Dataset]:
    def make(split: Split, images: Tensor, labels: Tensor) -> Dataset:
        return Dataset(name, split, images, labels, classes, normalisation, pad, flip)

    return make
