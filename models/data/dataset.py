"""Data sets: images in memory or read when they are needed, with targets, and how images become inputs."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.html import MOST_IMAGES, picture, table
from prunegym.models.data.augmentation import random_shift_and_flip
from prunegym.models.data.normalisation import FLOATS, FULL, Normalisation
from prunegym.models.data.sources.lazy_images import LazyImages, select
from prunegym.models.data.targets import check_targets, class_places, renumbered, weights_of
from prunegym.models.data.transform import Transform
from prunegym.models.tasks.answers import target_text
from prunegym.models.tasks.objective import Objective
from prunegym.validation import instance, whole_number

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

CLASSES = Objective()

Augment = bool | Literal["flip"]
"""Shift and mirror images at random, as in training; only mirror them (``flip``); neither (False)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set.

    Attributes:
        name: Name in tables.
        split: ``train``, ``validation`` or ``test``.
        images: (count, channels, height, width) uint8, uint16 or floats; in memory, or read when they are needed.
        labels: The targets: (count,) int64, from 0 to ``len(classes) - 1``, or another kind of
            :data:`~prunegym.models.tasks.objective.KINDS`.
        classes: Names of the classes; none for numbers.
        normalisation: How images become the network's input.
        pad: Pixels of random shift in training.
        flip: Whether training mirrors images at random.
        span: Which part of the split this is (see :meth:`part`); None for all of it.
        places: (count,) int64, the images' indices in the whole split; None if these are all its images, in order.
        transform: How files of any size became these images; None if their size was not changed.
        objective: The kind of targets, with loss and metric.
        path: Absolute path of the data set; None if it is known by its name, or was made in Python.
        notes: Sentences on how its splits were made.
    """

    HINT: ClassVar[str] = (
        "For example load_dataset('digits', 'test'). Make one from a torch Dataset with from_torch, or from arrays "
        "with from_arrays."
    )
    """How to get one, for errors."""

    name: str
    split: Split
    images: Tensor | LazyImages
    labels: Tensor
    classes: tuple[str, ...]
    normalisation: Normalisation
    pad: int = 0
    flip: bool = False
    span: str | None = None
    places: Tensor | None = None
    transform: Transform | None = None
    objective: Objective = CLASSES
    path: str | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return name, split and sizes."""
        return (
            f"Dataset({self.name!r}, {self.split!r}: {len(self.images):,} images of {self.image_shape}, "
            f"{len(self.classes)} classes)"
        )

    def _repr_html_(self) -> str:
        some = range(min(MOST_IMAGES, len(self.images)))
        names = [target_text(self.objective.kind, self.labels[row], self.classes) for row in some]
        pixels = self.normalisation.as_bytes(self.images[: len(some)])
        return table(names, [[picture(pixels[row]) for row in some]], repr(self))

    def __post_init__(self) -> None:
        """Check shapes, types and the range of the labels.

        Raises:
            InvalidInputError: If something is wrong; the message says what.
        """
        where = f"Data set {self.name!r}, split {self.split!r}"
        if self.images.dtype not in (*FULL, *FLOATS) or self.images.ndim != 4:
            raise InvalidInputError(
                f"{where}: images are {self.images.dtype} {tuple(self.images.shape)}; "
                "uint8, uint16 or floats of shape (count, channels, height, width) are needed."
            )
        if len(self.images) == 0:
            raise InvalidInputError(f"{where} is empty. Give it at least one image.")
        check_targets(where, self.labels, len(self), self.classes, self.objective.kind)
        lengths = len(self.normalisation.mean), len(self.normalisation.std)
        if lengths != (self.images.shape[1], self.images.shape[1]):
            raise InvalidInputError(
                f"{where}: images have {self.images.shape[1]} channels, the normalisation has {lengths[0]} means and "
                f"{lengths[1]} standard deviations. Give one mean and one standard deviation per channel."
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    @property
    def outputs(self) -> int:
        """Number of outputs, or channels of a map, of a network for these targets."""
        if self.objective.kind != "numbers":
            return len(self.classes)
        return self.labels.shape[1] if self.labels.ndim > 1 else 1

    @property
    def unlabelled(self) -> bool:
        """Whether there are no targets yet: see :meth:`answered`."""
        return self.objective.kind == "outputs" and self.labels.numel() == 0

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
            device: Device of the result.
            augment: Source of random shifts and mirroring; None for none.

        Returns:
            (batch, channels, height, width) float32, a new tensor.

        Raises:
            InvalidInputError: If the indices are not whole numbers, or out of range.
        """
        with self._indexing():
            images = self.images[indices]
        if augment is not None:
            images = random_shift_and_flip(images, self.pad, self.flip, augment)
        return self.normalisation(images.to(device))

    def stream(
        self,
        batches: Iterable[Tensor],
        *,
        device: torch.device | str = "cpu",
        augment: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches as :meth:`batch` returns them. Images that are not in memory are read one batch ahead.

        Args:
            batches: Indices (batch,) int64 of each batch.
            device: Device of the images.
            augment: Source of random shifts and mirroring; None for none.

        Yields:
            The indices and the images of each batch.
        """
        coming, lazy = iter(batches), isinstance(self.images, LazyImages)
        following = next(coming, None)
        while following is not None:
            # For images in memory, indices are not drawn ahead: they may come from the generator of the augmentation.
            indices, following = following, next(coming, None) if lazy else None
            images = self.batch(indices, device=device, augment=augment)
            if following is not None and isinstance(self.images, LazyImages):
                self.images.expect(following)
            yield indices, images
            following = following if lazy else next(coming, None)

    def index_batches(self, size: int = 250) -> tuple[Tensor, ...]:
        """Return the indices of all images, int64, in batches of a size; the last one may be smaller."""
        return torch.split(torch.arange(len(self)), size)

    def batches(self, size: int = 250, *, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images once, in order: for each batch the indices, and the images as :meth:`batch` returns them."""
        return self.stream(self.index_batches(size), device=device)

    def loss(self, outputs: Tensor, indices: Tensor) -> Tensor:
        """Return the mean loss of a network's outputs (batch, ...) for images with these indices."""
        return self.objective.loss_of(outputs, self.labels[indices])

    def score(self, outputs: Tensor, indices: Tensor | None = None) -> Tensor:
        """Return the metric of a network's outputs (batch, ...): (batch,) float64, larger is better.

        Args:
            outputs: The network's outputs for the images with these indices.
            indices: (batch,) int64; None for all images, in order.
        """
        return self.objective.score(outputs, self.labels if indices is None else self.labels[indices])

    def judged(self, loss: object = None, metric: object = None, class_weights: object = None) -> Dataset:
        """Return the data set with another loss, metric or class weights; None keeps the current one.

        Args:
            loss: See :class:`~prunegym.models.tasks.objective.Objective`.
            metric: The same.
            class_weights: A number for each class, or ``balanced``.

        Raises:
            UnknownNameError: For an unknown name.
            InvalidInputError: If class weights are not one number per class.
        """
        if class_weights is not None:
            class_weights = weights_of(class_weights, self.name, self.labels, self.outputs, self.objective.kind)
        given: dict[str, Any] = {"loss": loss, "metric": metric, "class_weights": class_weights}
        changes = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(self, objective=dataclasses.replace(self.objective, **changes)) if changes else self

    def answered(self, outputs: Tensor) -> Dataset:
        """Return the data set with a network's outputs (count, ...) as targets, for images without labels."""
        objective = dataclasses.replace(self.objective, kind="outputs")
        return dataclasses.replace(self, labels=outputs.float().cpu(), objective=objective)

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
        with self._indexing():
            places = self.place(indices) if split is None else None
            images, labels = select(self.images, indices), self.labels[indices]
        return dataclasses.replace(self, images=images, labels=labels, split=split or self.split, places=places)

    @contextlib.contextmanager
    def _indexing(self) -> Iterator[None]:
        try:
            yield
        except (IndexError, TypeError) as error:
            raise InvalidInputError(
                f"The indices do not fit data set {self.name!r}, split {self.split!r} ({error}). Give an int64 tensor "
                f"of numbers from 0 to {len(self) - 1}."
            ) from error

    def place(self, indices: Tensor) -> Tensor:
        """Return the indices (count,) int64 in the whole split of images with these indices here."""
        return indices if self.places is None else self.places.to(indices.device)[indices]

    def sample(self, count: int, seed: int = 0) -> Dataset:
        """Return a random subset, the same one every time.

        The first images are not used, because those of a folder are all of one class.

        Args:
            count: Its size. If there are fewer images, all are returned.
            seed: Seed of the draw.
        """
        if whole_number("count", count) >= len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[:count].sort().values)

    def with_classes(self, classes: tuple[str, ...]) -> Dataset:
        """Return the data set with its labels renumbered to ``classes``, the classes that a model was trained on.

        If one side has names and the other only numbers from 0, both are assumed to have the same order. Two classes
        may share a name ("crane" in ImageNet); labels are then kept if both sides list the same classes in one order.

        Raises:
            InvalidInputError: If a class of this data set is not among them, or a name fits several classes.
        """
        if self.classes == classes or not self.classes:
            return self
        places = class_places(self.name, self.classes, classes)
        if places is None:
            return self
        labels = renumbered(self.labels, self.objective.kind, places, len(classes))
        return dataclasses.replace(self, labels=labels, classes=classes)

    def part(self, span: str) -> Dataset:
        """Return a part of the split, cut from a fixed random order of its images.

        The parts ``:40000`` and ``40000:`` share no image, and both have all classes, whatever the order of the files.
        So you can train a network on one, and an agent on images that the network never saw.

        Args:
            span: ``FROM:TO`` as in a Python slice. Either may be omitted; negative numbers count from the end.

        Raises:
            InvalidInputError: If it is not a slice, is empty or too large, or if this data set is already a part.
        """
        bounds = instance("span", span, str, "Give FROM:TO, for example :40000.").split(":")
        where = f"Part {span!r} of {self.name}/{self.split} ({len(self)} images)"
        if len(bounds) != 2 or not all(re.fullmatch(r"-?\d+|", bound) for bound in bounds):
            raise InvalidInputError(f"{where} is not a slice. Give FROM:TO, for example :40000 or 40000:.")
        if self.span is not None:
            raise InvalidInputError(f"{where} cuts a part of the part {self.span}. Take it from the whole split.")
        numbers = [int(bound) if bound else default for bound, default in zip(bounds, (0, len(self)), strict=True)]
        low, high = (number + len(self) if number < 0 else number for number in numbers)
        if not 0 <= low < high <= len(self):
            raise InvalidInputError(f"{where} is empty or too large. Give FROM:TO within 0:{len(self)}, FROM below TO.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[low:high]
        return dataclasses.replace(self.subset(order.sort().values), span=f"{low}:{high}")
