"""Data sets by name or path: the built-in digits, public data sets, image folders and array files."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from prunegym.errors import InvalidInputError, MissingDataError, UnknownNameError
from prunegym.models.data.dataset import SPLITS, Dataset, Normalisation, Split
from prunegym.models.data.files.downloads import FILES, find_file
from prunegym.models.data.files.image_folders import image_folder
from prunegym.models.data.files.readers import Splits, array_file, cifar_archive, read_idx
from prunegym.models.data.splits import from_arrays
from prunegym.validation import choice

DIGITS_TEST_IMAGES = 600


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


def load_dataset(name: str, split: str = "train", root: Path | str | None = None) -> Dataset:
    """Load one split of a data set by name or path.

    Args:
        name: A key of :data:`SOURCES` (``digits`` needs no download). Or the path of a folder or tar archive with
            ``train/<class>/<image>`` and ``test/<class>/<image>`` (``val`` beside them is the validation split), or of
            an ``.npz`` file. Or the name of such a folder, archive or file under ``root``, with or without its ending.
        split: ``train``, ``validation`` or ``test``.
        root: Folder with your data sets; by default the environment variable ``PRUNEGYM_DATA``.

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
    folder = root if root is not None else os.environ.get("PRUNEGYM_DATA")
    part = cast(Split, choice("split", split, SPLITS))
    base = Path(folder).expanduser().absolute() if folder else None
    # What is kept is keyed by absolute paths: the working folder may have changed since.
    name = str(name)
    return (_known(name, base) if name in SOURCES else _from_path(_find(name, base)))[part]


def forget_datasets() -> None:
    """Forget loaded data sets, so that changed files are read again."""
    _known.cache_clear()
    _from_path.cache_clear()


def other_split(dataset: Dataset, split: Split, instead: str) -> Dataset:
    """Load another split of a data set, by the data set's name.

    Args:
        dataset: A split, or some images of one.
        split: The split to load.
        instead: How you pass that split yourself, for the message.

    Raises:
        InvalidInputError: If no data set of that name can be loaded, or it has other images.
    """
    try:
        same, other = load_dataset(dataset.name, dataset.split), load_dataset(dataset.name, split)
    except (UnknownNameError, MissingDataError) as error:
        raise InvalidInputError(
            f"The {split} images that belong to data set {dataset.name!r} are needed, but no data set can be loaded by "
            f"that name. Pass {instead}."
        ) from error
    known = {image.tobytes() for image in same.images.numpy()}
    if not all(image.tobytes() in known for image in dataset.images.numpy()):
        raise InvalidInputError(
            f"The {split} images that belong to data set {dataset.name!r} are needed, but the data set loaded by that "
            f"name has other {dataset.split} images. Pass {instead}, or give your data set another name."
        )
    return other


@functools.lru_cache(maxsize=4)
def _known(name: str, root: Path | None) -> Splits:
    return SOURCES[name](root)


@functools.lru_cache(maxsize=4)
def _from_path(path: Path) -> Splits:
    return array_file(path) if path.suffix == ".npz" and path.is_file() else image_folder(path)


def _find(name: str, root: Path | None) -> Path:
    if not name:
        raise UnknownNameError("data set", name, SOURCES)
    bases = [Path(name).expanduser()] + ([root / name] if root else [])
    for path in (Path(f"{base}{ending}") for base in bases for ending in ("", ".tar.gz", ".tar", ".npz")):
        if path.is_file() or path.is_dir():
            return path.absolute()
    if os.sep in name or name.startswith("~"):
        raise MissingDataError(
            f"There is no data set at {name}. Give the path of a folder, a tar archive or an .npz file."
        )
    where = f"not in the folder {root} either" if root else "PRUNEGYM_DATA, the folder of your data sets, is not set"
    raise UnknownNameError(f"data set ({where})", name, SOURCES)
