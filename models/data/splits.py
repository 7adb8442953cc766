"""Training, validation and test split of a data set, from arrays in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import IMAGENET_MEAN, IMAGENET_STD, Dataset, Normalisation, Split
from prunegym.validation import shape


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
        name: Name in tables.
        classes: Names of the classes; by default ``"0"``, ``"1"``, ...
        normalisation: By default ImageNet's for 3 channels, otherwise mean 0.5 and standard deviation 0.5.
        pad: Pixels of random shift in training; by default an eighth of the height.
        flip: Whether training mirrors images at random.

    Returns:
        ``{"train": ..., "validation": ..., "test": ...}``; the validation split is a tenth of the training images.

    Raises:
        InvalidInputError: For wrong shapes, types, labels or an empty split.

    Example:
        >>> images, labels = torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 2
        >>> {split: len(part) for split, part in from_arrays((images, labels), (images, labels)).items()}
        {'train': 36, 'validation': 4, 'test': 40}
    """
    images, test_images = torch.as_tensor(train[0]), torch.as_tensor(test[0])
    shape(f"Data set {name!r}: the training array", images, ("count", "channels", "height", "width"))
    hint = "Resize all images to one size first."
    shape(f"Data set {name!r}: the test array", test_images, ("count", *images.shape[1:]), hint)
    channels = images.shape[1]
    if normalisation is None:
        rgb = channels == 3
        normalisation = Normalisation(
            IMAGENET_MEAN if rgb else (0.5,) * channels, IMAGENET_STD if rgb else (0.5,) * channels
        )
    labels, test_labels = _integers(name, train[1]), _integers(name, test[1])
    count = int(labels.max()) + 1 if len(labels) else 0
    names = tuple(map(str, range(count) if classes is None else classes))
    pad = images.shape[2] // 8 if pad is None else pad
    whole = Dataset(name, "train", images, labels, names, normalisation, pad, flip)
    training, validation = hold_out_validation(whole)
    testing = Dataset(name, "test", test_images, test_labels, names, normalisation, pad, flip)
    return {"train": training, "validation": validation, "test": testing}


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
