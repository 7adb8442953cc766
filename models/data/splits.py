"""Training, validation and test split of a data set, from arrays in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import IMAGENET_MEAN, IMAGENET_STD, Dataset, Normalisation, Split
from prunegym.validation import shape

MANY_CLASSES = 100_000
"""Labels may go up to here though there are fewer images: a few images of ImageNet's 21,841 classes, for example."""


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
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    validation: tuple[Tensor, Tensor] | None = None,
    name: str = "arrays",
    classes: Sequence[str] | None = None,
    normalisation: Normalisation | None = None,
    pad: int | None = None,
    flip: bool = False,
) -> dict[Split, Dataset]:
    """Make the three splits of a data set from tensors or numpy arrays in memory.

    Args:
        train: Images (count, channels, height, width) uint8 and labels (count,) integers.
        test: The same, of the test split.
        validation: The same, of the validation split; by default a tenth of the training images is held out for it.
        name: Name in tables.
        classes: Names of the classes; by default ``"0"``, ``"1"``, ...
        normalisation: By default ImageNet's for 3 channels, otherwise mean 0.5 and standard deviation 0.5.
        pad: Pixels of random shift in training; by default an eighth of the height.
        flip: Whether training mirrors images at random.

    Returns:
        ``{"train": ..., "validation": ..., "test": ...}``.

    Raises:
        InvalidInputError: For wrong shapes, types, labels or an empty split.

    Example:
        >>> images, labels = torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 2
        >>> {split: len(part) for split, part in from_arrays((images, labels), (images, labels)).items()}
        {'train': 36, 'validation': 4, 'test': 40}
    """
    images = torch.as_tensor(train[0])
    shape(f"Data set {name!r}: the training array", images, ("count", "channels", "height", "width"))
    channels, height = images.shape[1:3]
    if normalisation is None:
        rgb = channels == 3
        normalisation = Normalisation(
            IMAGENET_MEAN if rgb else (0.5,) * channels, IMAGENET_STD if rgb else (0.5,) * channels
        )
    labels = _integers(name, train[1])
    names = _numbers(name, labels) if classes is None else tuple(map(str, classes))
    whole = Dataset(name, "train", images, labels, names, normalisation, height // 8 if pad is None else pad, flip)

    def beside(split: Split, given: tuple[Tensor, Tensor]) -> Dataset:
        hint = "Resize all images to one size first."
        others = torch.as_tensor(given[0])
        shape(f"Data set {name!r}: the {split} array", others, ("count", *images.shape[1:]), hint)
        return dataclasses.replace(whole, split=split, images=others, labels=_integers(name, given[1]))

    testing = beside("test", test)
    training, held_out = hold_out_validation(whole) if validation is None else (whole, beside("validation", validation))
    return {"train": training, "validation": held_out, "test": testing}


def _numbers(name: str, labels: Tensor) -> tuple[str, ...]:
    """Name classes by their numbers, if the labels look like numbers of classes."""
    count = int(labels.max()) + 1 if len(labels) else 0
    if count > max(len(labels), MANY_CLASSES):
        raise InvalidInputError(
            f"Data set {name!r}: the highest label is {count - 1}, but there are {len(labels)} training images, so it "
            "looks like no number of a class. Renumber the labels from 0, or name every class."
        )
    return tuple(map(str, range(count)))


def _integers(name: str, labels: Tensor) -> Tensor:
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"Data set {name!r}: labels are not numbers ({error}); integers are needed.") from error
    if labels.is_floating_point() or labels.is_complex() or labels.ndim != 1:
        raise InvalidInputError(
            f"Data set {name!r}: labels are {labels.dtype} of shape {tuple(labels.shape)}; one integer an image, of "
            "shape (count,), is needed."
        )
    return labels.long()
