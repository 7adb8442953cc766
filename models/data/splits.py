"""Training, validation and test split of a data set, from arrays or from images that are read when needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import Dataset, Split
from prunegym.models.data.normalisation import FULL, Normalisation
from prunegym.models.data.sources.layout import as_images, value_range
from prunegym.models.data.transform import Transform
from prunegym.models.tasks.objective import KINDS, Objective, kind_of, spread_of
from prunegym.validation import array, choice, instance, plain, shape, whole_number

Arrays = tuple[Any, Any]
"""Images and targets, see :func:`from_arrays`."""

MANY_CLASSES = 100_000
"""Labels may be up to this number even with fewer images: for example, a few images of ImageNet's 21,841 classes."""


def hold_out_validation(train: Dataset, share: float = 0.1, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split training images into training and validation images, the same way every time.

    Args:
        train: All training images.
        share: Share (0 to 1) of the images for the validation split.
        seed: Seed of the draw; all published results use the default.

    Returns:
        The training split and the validation split.

    Raises:
        InvalidInputError: If one of the two would be empty.
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
    train: Arrays,
    test: Arrays,
    *,
    validation: Arrays | None = None,
    name: str = "arrays",
    classes: Sequence[str] | None = None,
    normalisation: Normalisation | None = None,
    pad: int | None = None,
    flip: bool = False,
    kind: str | None = None,
    transform: Transform | None = None,
) -> dict[Split, Dataset]:
    """Make the three splits of a data set from tensors or NumPy arrays, or from images that are read when needed.

    Args:
        train: Images and their targets. Images are (count, channels, height, width) or (count, height, width,
            channels), uint8, uint16 or floats; in memory, mapped from a file (``numpy.load(path, mmap_mode="r")``), or
            :class:`~prunegym.models.data.sources.lazy_images.LazyImages`. Targets are (count,) integers, or another
            kind of :data:`~prunegym.models.tasks.objective.KINDS`; None if there are none.
        test: The same for the test split.
        validation: The same for the validation split; by default it gets a tenth of the training images.
        name: Name in tables.
        classes: Names of the classes; by default ``"0"``, ``"1"``, ...
        normalisation: By default ImageNet's for 3 channels, otherwise mean 0.5 and standard deviation 0.5; none for
            floats outside [0, 1].
        pad: Pixels of random shift in training; by default an eighth of the height.
        flip: Whether training mirrors images at random.
        kind: The kind of targets, if it does not follow from their type and shape.
        transform: How the images got their size; it is stored with models.

    Returns:
        ``{"train": ..., "validation": ..., "test": ...}``.

    Raises:
        InvalidInputError: For wrong shapes, types, labels or an empty split.

    Example:
        >>> images, labels = torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 2
        >>> {split: len(part) for split, part in from_arrays((images, labels), (images, labels)).items()}
        {'train': 36, 'validation': 4, 'test': 40}
    """
    _check_options(name, classes, normalisation, pad)
    for split, given in (("training", train), ("test", test), ("validation", validation)):
        if given is not None or split != "validation":
            _check_pair(f"Data set {name!r}: the {split} data", given)
    known = None if normalisation is None else len(normalisation.mean)
    images = as_images(train[0], f"Data set {name!r}: the training array", known)
    channels, height = images.shape[1:3]
    if normalisation is None:
        normalisation = Normalisation.default(channels, *value_range(images))
    targets, objective = _targets(name, train[1], len(images), kind)
    names = tuple(map(str, classes)) if classes is not None else _numbers(name, targets, objective.kind)
    whole = Dataset(
        name, "train", images, targets, names, normalisation, height // 8 if pad is None else pad, flip,
        transform=transform, objective=objective,
    )  # fmt: skip

    def beside(split: Split, given: Arrays) -> Dataset:
        others = as_images(given[0], f"Data set {name!r}: the {split} array", channels)
        hint = "Resize all images to one size first."
        shape(f"Data set {name!r}: the {split} array", others, ("count", *images.shape[1:]), hint)
        if normalisation.of_own_range and others.dtype in FULL:
            raise InvalidInputError(
                f"Data set {name!r}: the {split} array is {others.dtype}, but the training array has floats from "
                f"{normalisation.low:g} to {normalisation.high:g}. Give all arrays on one scale."
            )
        labels = _targets(name, given[1], len(others), objective.kind)[0]
        return dataclasses.replace(whole, split=split, images=others, labels=labels)

    testing = beside("test", test)
    training, held_out = hold_out_validation(whole) if validation is None else (whole, beside("validation", validation))
    return {"train": training, "validation": held_out, "test": testing}


def _check_options(name: object, classes: object, normalisation: object, pad: object) -> None:
    instance("name", name, str)
    instance("classes", classes, (Sequence, NoneType), "Give a list of names.")
    instance("normalisation", normalisation, (Normalisation, NoneType))
    if pad is not None:
        whole_number("pad", pad, 0)


def _check_pair(what: str, given: object) -> None:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise InvalidInputError(f"{what} is a {type(given).__name__}; a pair (images, targets) is needed.")


def _numbers(name: str, targets: Tensor, kind: str) -> tuple[str, ...]:
    """Name classes by their numbers, if the labels look like numbers of classes."""
    if kind in ("numbers", "outputs"):
        return ()
    count = targets.shape[1] if kind == "labels" else int(targets.max()) + 1 if targets.numel() else 0
    if count > max(len(targets), MANY_CLASSES):
        raise InvalidInputError(
            f"Data set {name!r}: the highest label is {count - 1}, but there are {len(targets)} training images, so it "
            "does not look like a class number. Renumber the labels from 0, or name every class."
        )
    return tuple(map(str, range(count)))


def _targets(name: str, given: Any, count: int, kind: str | None) -> tuple[Tensor, Objective]:
    """Return targets as a tensor, and their kind."""
    if given is None:
        return torch.zeros(count, 0), Objective("outputs")
    try:
        targets = plain("labels", given) if isinstance(given, Tensor) else torch.as_tensor(array("labels", given))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"Data set {name!r}: labels are not numbers ({error}); integers are needed.") from error
    found = kind_of(targets) if kind is None else choice("kind of targets", kind, KINDS)
    looks_whole = found == "numbers" and targets.ndim == 1 and bool((targets == targets.round()).all())
    if kind is None and (looks_whole or (found == "labels" and targets.shape[1] == 1)):
        raise InvalidInputError(
            f"Data set {name!r}: labels are {targets.dtype} of shape {tuple(targets.shape)}; one integer per image, of "
            "shape (count,), is needed for classes. For other targets give kind='numbers' or kind='labels'."
        )
    if kind is None and found == "numbers" and targets.ndim == 2 and bool(((targets == 0) | (targets == 1)).all()):
        raise InvalidInputError(
            f"Data set {name!r}: labels are {targets.dtype} of shape {tuple(targets.shape)}, all 0 or 1. Give "
            "labels.argmax(1) for one class per image, labels.long() for several, or kind='numbers' for a regression."
        )
    if found == "classes" and targets.ndim == 1 and not targets.is_floating_point():
        targets = targets.long()
    if found == "numbers":
        targets = targets.float()
        return targets, Objective(found, spread=spread_of(targets) if len(targets) else 1.0)
    return targets, Objective(found)
