"""Data sets by name or path: the built-in digits, public data sets, image folders and array files."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from prunegym.errors import InvalidInputError, MissingDataError, UnknownNameError
from prunegym.models.data.dataset import SPLITS, Dataset, Split
from prunegym.models.data.files.downloads import FILES, find_file
from prunegym.models.data.files.image_folders import image_folder
from prunegym.models.data.files.readers import Splits, array_file, cifar_archive, read_idx
from prunegym.models.data.normalisation import Normalisation
from prunegym.models.data.pretrained import pretrained_transform
from prunegym.models.data.sources.lazy_images import LazyImages
from prunegym.models.data.splits import from_arrays
from prunegym.models.data.transform import Transform
from prunegym.validation import choice

DIGITS_TEST_IMAGES = 600
ENDINGS = ("", ".tar.gz", ".tgz", ".tar", ".zip", ".npz")
REMEMBERED = 4
"""Number of loaded folders and files that are kept, so that a process does not read them again."""


def _digits(_root: Path | None) -> Splits:
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = torch.from_numpy(np.rint(bundle.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bundle.target.astype(np.int64))
    # A fixed draw, so that the test split is the same images everywhere.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[:DIGITS_TEST_IMAGES], order[DIGITS_TEST_IMAGES:]
    return from_arrays((images[train], labels[train]), (images[test], labels[test]), name="digits", pad=1)


def _idx(dataset: str, normalisation: Normalisation, classes: tuple[str, ...], flip: bool, root: Path | None) -> Splits:
    def part(prefix: str) -> tuple[Tensor, Tensor]:
        images = read_idx(find_file(dataset, f"{prefix}-images-idx3-ubyte.gz", root)).unsqueeze(1)
        return images, read_idx(find_file(dataset, f"{prefix}-labels-idx1-ubyte.gz", root)).long()

    return from_arrays(
        part("train"), part("t10k"), name=dataset, classes=classes, normalisation=normalisation, pad=2, flip=flip
    )


def _cifar(dataset: str, root: Path | None) -> Splits:
    (file,) = FILES[dataset]
    return cifar_archive(find_file(dataset, file, root), dataset)


_DIGIT_NAMES = tuple("0123456789")
_FASHION_NAMES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

SOURCES: dict[str, Callable[[Path | None], Splits]] = {
    "digits": _digits,
    "mnist": functools.partial(_idx, "mnist", Normalisation((0.1307,), (0.3081,)), _DIGIT_NAMES, False),
    "fashion-mnist": functools.partial(
        _idx, "fashion-mnist", Normalisation((0.2860,), (0.3530,)), _FASHION_NAMES, True
    ),
    "cifar10": functools.partial(_cifar, "cifar10"),
    "cifar100": functools.partial(_cifar, "cifar100"),
}


def load_dataset(
    name: str,
    split: str = "train",
    root: Path | str | None = None,
    *,
    image_size: int | tuple[int, int] | None = None,
    resize: int | None = None,
    crop: str | None = None,
    interpolation: str | None = None,
    channels: int | None = None,
    like: Any = None,
) -> Dataset:
    """Load one split of a data set by name or path.

    Args:
        name: A key of :data:`SOURCES` (``digits`` needs no download). Or the path of a folder, tar or zip archive with
            ``train/<class>/<image>`` and ``test/<class>/<image>`` (with ``val`` for the validation split), or
            with ``<class>/<image>``, or of an ``.npz`` file. Or the name of such a folder, archive or file under
            ``root``, with or without its ending.
        split: ``train``, ``validation`` or ``test``.
        root: Folder with your data sets; by default the environment variable ``PRUNEGYM_DATA``.
        image_size: Size of all images, a number or (height, width); for folders and archives.
        resize: Shorter side before the crop; by default the smallest that covers ``image_size``.
        crop: ``center`` (the default), or ``none``: images are stretched to ``image_size``.
        interpolation: One of Pillow's filters; by default ``bilinear``.
        channels: 1 for grey or 3 for RGB; by default grey if all images are. For folders and archives.
        like: A pretrained network's weights, which state all of these and the normalisation, see
            :func:`~prunegym.models.data.pretrained.pretrained_transform`.

    Returns:
        The split. It is loaded once per process and shared, so do not write to its tensors.

    Raises:
        UnknownNameError: For an unknown name or split.
        MissingDataError: If files are missing and cannot be downloaded.
        InvalidInputError: If files are damaged or have the wrong format.

    Example:
        >>> {split: len(load_dataset("digits", split)) for split in SPLITS}
        {'train': 1077, 'validation': 120, 'test': 600}
    """
    part = cast(Split, choice("split", split, SPLITS))
    base = _root(root)
    # Loaded data sets are stored by absolute path, because the working folder may change.
    name = str(name)
    transform = Transform.of(image_size, resize, crop, interpolation)
    if like is not None:
        if transform is not None or name in SOURCES:
            raise InvalidInputError("like= states the size of images of a folder. Leave out image_size, or like.")
        transform, normalisation = pretrained_transform(like)
        found = _from_path(_find(name, base), transform, len(normalisation.mean))[part]
        return dataclasses.replace(found, normalisation=normalisation)
    if name not in SOURCES:
        return _from_path(_find(name, base), transform, channels)[part]
    if transform is not None:
        raise InvalidInputError(f"Data set {name!r} has images of one size. Leave out image_size.")
    return _known(name, base)[part]


def path_of(name: str) -> str | None:
    """Return the absolute path of a data set by path or name under ``PRUNEGYM_DATA``; None for one of :data:`SOURCES`.

    Raises:
        UnknownNameError: If there is no such data set.
        MissingDataError: If there is nothing at a path.
    """
    return None if name in SOURCES else str(_find(name, _root(None)))


def _root(given: Path | str | None) -> Path | None:
    folder = given if given is not None else os.environ.get("PRUNEGYM_DATA")
    return Path(folder).expanduser().absolute() if folder else None


def forget_datasets() -> None:
    """Forget loaded data sets, so that changed files are read again."""
    _known.cache_clear()
    _loaded.clear()


def other_split(dataset: Dataset, split: Split, instead: str) -> Dataset:
    """Load another split of a data set, by the data set's name.

    Args:
        dataset: A split, or some images of one.
        split: The split to load.
        instead: How you pass that split yourself, for the message.

    Raises:
        InvalidInputError: If no data set with this name can be loaded, or it has other images.
    """
    try:
        same, other = load_again(dataset, dataset.split), load_again(dataset, split)
    except (UnknownNameError, MissingDataError) as error:
        raise InvalidInputError(
            f"The {split} images of data set {dataset.name!r} are needed, but no data set with this name can be "
            f"loaded. Pass {instead}."
        ) from error
    if not set(_marks(dataset.images)) <= set(_marks(same.images)):
        raise InvalidInputError(
            f"The {split} images of data set {dataset.name!r} are needed, but the data set that has this name has "
            f"other {dataset.split} images. Pass {instead}, or give your data set another name."
        )
    return other


def load_again(dataset: Dataset, split: Split) -> Dataset:
    """Load a split of a data set from its path or by its name, with its transform.

    Raises:
        UnknownNameError: If it was made in Python, and no other data set has its name.
        MissingDataError: If it does not exist any more.
    """
    transform = {} if dataset.transform is None else dataclasses.asdict(dataset.transform)
    channels = dataset.image_shape[0] if dataset.path is not None else None
    return load_dataset(dataset.path or dataset.name, split, channels=channels, **transform)


def _marks(images: Tensor | LazyImages) -> list[bytes]:
    """Return bytes that identify the images."""
    rows = images.marks() if isinstance(images, LazyImages) else images
    return [row.tobytes() for row in rows.numpy()]


@functools.lru_cache(maxsize=4)
def _known(name: str, root: Path | None) -> Splits:
    return SOURCES[name](root)


_loaded: dict[tuple[Path, Transform | None, int | None], Splits] = {}


def _from_path(path: Path, transform: Transform | None, channels: int | None) -> Splits:
    for key in ((path, transform, channels), (path, transform, None)):
        known = _loaded.get(key)
        if known is not None and channels in (None, known["train"].image_shape[0]):
            return known
    if path.suffix == ".npz" and path.is_file():
        if transform is not None:
            raise InvalidInputError(f"The images of {path} have one size. Leave out image_size.")
        made = {split: dataclasses.replace(part, path=str(path)) for split, part in array_file(path).items()}
    else:
        made = image_folder(path, transform, channels)
    _loaded[path, transform, channels] = made
    while len(_loaded) > REMEMBERED:
        _loaded.pop(next(iter(_loaded)))
    return made


def _find(name: str, root: Path | None) -> Path:
    if not name:
        raise UnknownNameError("data set", name, SOURCES)
    bases = [Path(name).expanduser()] + ([root / name] if root else [])
    for path in (
        Path(f"{base}{ending}") for base in bases for ending in ("", ".tar.gz", ".tgz", ".tar", ".zip", ".npz")
    ):
        if path.is_file() or path.is_dir():
            return path.absolute()
    if os.sep in name or name.startswith("~"):
        raise MissingDataError(
            f"There is no data set at {name}. Give the path of a folder, a tar or zip archive, or an .npz file."
        )
    also = f" or in {root}" if root else "; PRUNEGYM_DATA, the folder of your data sets, is not set"
    raise UnknownNameError("data set", name, SOURCES, f"There is no such folder, archive or .npz file here{also}.")
