"""Data sets of other libraries: a torch ``Dataset``, a Hugging Face split, or any object with a length and items."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import Dataset, Split
from prunegym.models.data.files.decoding import to_pixels
from prunegym.models.data.sources.layout import channels_are_last
from prunegym.models.data.sources.lazy_images import CACHE, LazyImages, ReadImages
from prunegym.models.data.splits import from_arrays
from prunegym.models.data.transform import Transform
from prunegym.validation import array, plain

IMAGE_KEYS = ("image", "img", "pixel_values", "pixels")
TARGET_KEYS = ("label", "labels", "target", "targets", "fine_label")


def _item(data: Any, row: int) -> Any:
    try:
        return data[row]
    except Exception as error:  # whatever the user's data set raises
        raise InvalidInputError(
            f"Item {row} of the {type(data).__name__} cannot be read: {type(error).__name__}: {error}."
        ) from error


@dataclasses.dataclass(frozen=True)
class _Items:
    """Images of the items of a data set."""

    data: Any
    transform: Transform | None
    channels: int | None

    def read(self, row: int) -> Tensor:
        image = _parts(_item(self.data, row))[0]
        if isinstance(image, Image.Image):
            try:
                return to_pixels(image, self.channels, self.transform)
            except ValueError as error:
                raise InvalidInputError(f"Image {row} cannot be used: {error}.") from error
        pixels = (
            plain(f"Image {row}", image) if isinstance(image, Tensor) else torch.as_tensor(array(f"Image {row}", image))
        )
        if pixels.ndim not in (2, 3):
            raise InvalidInputError(
                f"Image {row} has the shape {tuple(pixels.shape)}; (channels, height, width) is needed."
            )
        if pixels.ndim == 2:
            return pixels[None]
        last = channels_are_last(pixels.shape, "Images", self.channels)
        return pixels.movedim(2, 0).contiguous() if last else pixels


def torch_items(
    data: Any,
    *,
    transform: Transform | None = None,
    channels: int | None = None,
    targets: Any = None,
    workers: int = 1,
    cache: int = CACHE,
) -> tuple[LazyImages, Tensor | None]:
    """Return images, which are read when needed, and targets of a torch ``Dataset``, for :func:`from_arrays`.

    Args:
        data: Has a length; its items are (image, target), an image, or a mapping with both, as in Hugging Face's
            ``datasets``. Images are Pillow's, tensors or arrays; an item must be the same image each time.
        transform: Brings Pillow's images to one size.
        channels: 1 for grey or 3 for RGB; by default what the first image has.
        targets: The targets; by default ``data.targets`` or a column of labels, otherwise each item is read once.
        workers: Threads that read items. More than one only if ``data`` may be read by several at once.
        cache: Bytes of images that are kept.

    Returns:
        The images, and the targets (count, ...), None if items have none.

    Raises:
        InvalidInputError: For a ``DataLoader``, an ``IterableDataset``, or items of another form.
    """
    if isinstance(data, DataLoader):
        raise InvalidInputError("A DataLoader is given; which makes its own batches. Give its .dataset.")
    if isinstance(data, IterableDataset) or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise InvalidInputError(f"A {type(data).__name__} has no length or no items by index, which are needed.")
    try:
        count = len(data)
    except Exception as error:  # your class may raise anything
        raise InvalidInputError(f"The length of a {type(data).__name__} cannot be computed: {error}.") from error
    if count == 0:
        raise InvalidInputError(f"The {type(data).__name__} is empty. Give at least one image.")
    first = _Items(data, transform, channels).read(0)
    reader = _Items(data, transform, first.shape[0])
    source = ReadImages(reader.read, count, first.shape, first.dtype, workers=workers, cache=cache)
    return LazyImages(source), _stacked(targets) if targets is not None else _targets(data)


def from_torch(
    train: Any,
    test: Any,
    validation: Any = None,
    *,
    name: str = "torch",
    image_size: int | tuple[int, int] | None = None,
    resize: int | None = None,
    crop: str | None = None,
    interpolation: str | None = None,
    channels: int | None = None,
    workers: int = 1,
    cache: int = CACHE,
    **options: Any,
) -> dict[Split, Dataset]:
    """Make the three splits of a data set from torch ``Dataset`` objects, or similar objects. Nothing is copied.

    Args:
        train: See :func:`torch_items`.
        test: The same.
        validation: The same; by default it gets a tenth of the training images.
        name: Name in tables.
        image_size: Size of all images, for items that are Pillow's images of mixed sizes.
        resize: Shorter side before the crop; by default the smallest that covers ``image_size``.
        crop: ``center`` (the default) or ``none``.
        interpolation: One of Pillow's filters; by default ``bilinear``.
        channels: 1 for grey or 3 for RGB; by default what the first image has.
        workers: Threads that read items. More than one only if the data sets may be read by several at once.
        cache: Bytes of images that are kept of each data set.
        options: Those of :func:`~prunegym.models.from_arrays`; ``classes`` are by default those of ``train``.

    Raises:
        InvalidInputError: For a ``DataLoader``, items of another form, or images or targets that do not fit.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> images, labels = torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 2
        >>> splits = from_torch(TensorDataset(images, labels), TensorDataset(images, labels))
        >>> splits["train"].batch(torch.arange(2)).shape
        torch.Size([2, 1, 8, 8])
    """
    transform = Transform.of(image_size, resize, crop, interpolation)
    given = [one for one in (train, test, validation) if one is not None]
    options.setdefault("classes", class_names(train))
    parts = []
    for one in given:
        parts.append(torch_items(one, transform=transform, channels=channels, workers=workers, cache=cache))
        channels = parts[0][0].shape[1]
    return from_arrays(
        parts[0], parts[1], validation=parts[2] if len(parts) > 2 else None, name=name, transform=transform, **options
    )


def class_names(data: Any) -> tuple[str, ...] | None:
    """Return the class names of a torchvision or Hugging Face data set; None if it has none."""
    if isinstance(data, Subset):
        return class_names(data.dataset)
    features = getattr(data, "features", None)
    columns = [features[key] for key in TARGET_KEYS if key in features] if isinstance(features, Mapping) else []
    names = getattr(data, "classes", None) or next((getattr(column, "names", None) for column in columns), None)
    return None if names is None else tuple(map(str, names))


def _parts(item: Any) -> tuple[Any, Any]:
    """Return the image and the target, None if it has none, of an item."""
    if isinstance(item, Mapping):
        image = next((item[key] for key in IMAGE_KEYS if key in item), None)
        if image is None:
            raise InvalidInputError(
                f"Items have {sorted(item)}; one of {', '.join(IMAGE_KEYS)} is needed as the image."
            )
        return image, next((item[key] for key in TARGET_KEYS if key in item), None)
    if isinstance(item, tuple | list):
        if not item:
            raise InvalidInputError("Items are empty; (image, target) is needed.")
        return item[0], item[1] if len(item) > 1 else None
    if isinstance(item, Image.Image | Tensor | np.ndarray):
        return item, None
    raise InvalidInputError(f"Items are a {type(item).__name__}; an image, or (image, target), is needed.")


def _targets(data: Any) -> Tensor | None:
    ends = [_parts(_item(data, row))[1] for row in (0, len(data) - 1)]
    if ends[0] is None:
        return None
    known = _known_targets(data)
    # A target_transform may have changed the targets, so the first and the last one are compared.
    if (
        known is not None
        and len(known) == len(data)
        and all(
            torch.equal(torch.as_tensor(end).double(), known[at].double())
            for end, at in zip(ends, (0, -1), strict=True)
        )
    ):
        return known
    return _stacked([_parts(_item(data, row))[1] for row in range(len(data))])


def _known_targets(data: Any) -> Tensor | None:
    if isinstance(data, Subset):
        inner = _known_targets(data.dataset)
        return None if inner is None else inner[torch.as_tensor(data.indices)]
    found = getattr(data, "targets", None)
    if found is None and hasattr(data, "column_names"):
        key = next((key for key in TARGET_KEYS if key in data.column_names), None)
        found = None if key is None else data[key][:]
    return None if found is None else _stacked(found)


def _stacked(targets: Any) -> Tensor:
    try:
        if isinstance(targets, Sequence) and len(targets) and isinstance(targets[0], Tensor | np.ndarray):
            return torch.stack([torch.as_tensor(one) for one in targets])
        return torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(
            f"Targets are not numbers of one shape ({error}). Give one integer, or numbers, for each image."
        ) from error
