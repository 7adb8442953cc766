"""Image folders, ``train/<class>/<image>``, and tar archives of them."""

from __future__ import annotations

import dataclasses
import io
import itertools
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunegym.errors import DataWarning, InvalidInputError
from prunegym.models.data.dataset import Dataset, Split
from prunegym.models.data.readers import UNREADABLE, eight_bits, tar_members
from prunegym.models.data.splits import from_arrays

IMAGE_SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
    ".jp2", ".avif",
}  # fmt: skip

FOLDERS: dict[str, Split] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""Names of folders, and the splits that they are."""

HIDDEN, NO_IMAGE, ELSEWHERE, SPECIAL = (
    "hidden", "no image by the name", "not at <split>/<class>/<image>", "a link back, or no file",
)  # fmt: skip

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Source = Path | bytes


@dataclasses.dataclass
class _Contents:
    """What is in a folder or an archive.

    Attributes:
        files: Contents or path of each file, by its path from the top.
        broken: Links that lead to no file, with what they lead to.
        left_out: Paths of what is not read, by reason.
    """

    files: dict[str, Source] = dataclasses.field(default_factory=dict)
    broken: dict[str, str] = dataclasses.field(default_factory=dict)
    left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def leave_out(self, reason: str, name: str) -> None:
        self.left_out.setdefault(reason, []).append(name)


def image_folder(path: Path) -> dict[Split, Dataset]:
    """Read ``train/<class>/<image>`` and ``test/<class>/<image>`` from a folder or a tar archive of one.

    A folder ``val``, ``valid`` or ``validation`` beside them is the validation split; without one, a tenth of the
    training images is held out. Links are followed. Hidden files and folders (``.name``) and files that are no images
    are left out, and a ``DataWarning`` counts them. Grey images stay grey if all are; otherwise all become RGB.

    Images are sorted by path, so that an index means the same image on every machine.

    Raises:
        InvalidInputError: If ``train`` or ``test`` is missing, there are several data sets, an image or a folder cannot
            be read, a link leads nowhere, or sizes or classes differ.
    """
    found = _folder_contents(path) if path.is_dir() else _tar_contents(path)
    parts = _parts(path, found)
    for split in ("train", "test"):
        if split not in parts:
            raise InvalidInputError(f"{path} has no images under {split}/<class>/. Both train and test are needed.")
    classes = tuple(sorted({name.split("/")[-2] for name in parts["train"]}))
    decoded = {split: _decode(path, classes, files) for split, files in parts.items()}
    channels = max(len(image) for images, _ in decoded.values() for image in images)
    stacked = {split: (_stack(images, channels), torch.tensor(labels)) for split, (images, labels) in decoded.items()}
    _tell_left_out(path, found.left_out)
    name = path.name.split(".")[0] or path.resolve().name
    return from_arrays(
        stacked["train"], stacked["test"], validation=stacked.get("validation"), name=name, classes=classes, flip=True
    )


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _is_hidden(step: str) -> bool:
    return step.startswith(".") or step == "__MACOSX"


def _folder_contents(path: Path) -> _Contents:
    found = _Contents()
    # Folders to read, each with its path from the top and the folders above it: a link may lead back to one of them.
    waiting: list[tuple[Path, str, frozenset[Path]]] = [(path, "", frozenset())]
    while waiting:
        folder, inside, above = waiting.pop()
        try:
            real = folder.resolve()
            if real in above:
                found.leave_out(SPECIAL, inside.rstrip("/"))
                continue
            for entry in folder.iterdir():
                name = f"{inside}{entry.name}"
                if _is_hidden(entry.name):
                    if inside:
                        found.leave_out(HIDDEN, name)
                elif entry.is_dir():
                    waiting.append((entry, f"{name}/", above | {real}))
                elif entry.is_file():
                    found.files[name] = entry
                elif entry.is_symlink():
                    found.broken[name] = str(entry.readlink())
                else:
                    found.leave_out(SPECIAL, name)
        except OSError as error:
            raise InvalidInputError(
                f"The folder {folder} cannot be read ({error.strerror}). Allow reading it, or move it elsewhere."
            ) from error
    return found


def _tar_contents(path: Path) -> _Contents:
    files, broken, others = tar_members(path, _is_image)
    return _Contents({**dict.fromkeys(others, b""), **files}, broken)


def _parts(path: Path, found: _Contents) -> dict[Split, dict[str, Source]]:
    """Sort images into splits, and note what is left out."""
    sets: dict[str, dict[str, dict[str, Source]]] = {}
    # Archives may begin with the folders above the data set, of which some may be hidden.
    folders_of_images = [name.split("/")[:-1] for name in found.files if _is_image(name)]
    top = sum(1 for _ in itertools.takewhile(lambda steps: len(set(steps)) == 1, zip(*folders_of_images, strict=False)))
    for name, source in found.files.items():
        steps = name.split("/")
        if any(map(_is_hidden, steps[min(top, max(len(steps) - 3, 0)) :])):
            reason = HIDDEN
        elif not _is_image(name):
            reason = NO_IMAGE
        elif len(steps) < 3 or steps[-3] not in FOLDERS:
            reason = ELSEWHERE
        else:
            sets.setdefault("/".join(steps[:-3]) or ".", {}).setdefault(steps[-3], {})[name] = source
            continue
        if reason == ELSEWHERE or not FOLDERS.keys().isdisjoint(steps[:-1]):  # a README beside train is no surprise
            found.leave_out(reason, name)
    for name, target in found.broken.items():
        steps = name.split("/")
        if (_is_image(name) and steps[-3:-2] and steps[-3] in FOLDERS) or (steps[-2:-1] and steps[-2] in FOLDERS):
            raise InvalidInputError(
                f"{path}/{name} is a link to {target}, where no image and no folder is found. Repair or remove it; "
                "an archive takes what links lead to if it is made with tar --dereference."
            )
    if len(sets) > 1:
        raise InvalidInputError(f"{path} has several data sets: {', '.join(sorted(sets))}. Give the path of one.")
    parts: dict[Split, dict[str, Source]] = {}
    for folders in sets.values():
        for folder, files in folders.items():
            if FOLDERS[folder] in parts:
                names = sorted(other for other in folders if FOLDERS[other] == FOLDERS[folder])
                raise InvalidInputError(f"{path} has the folders {' and '.join(names)}. Keep one for validation.")
            parts[FOLDERS[folder]] = files
    return parts


def _tell_left_out(path: Path, left_out: dict[str, list[str]]) -> None:
    if left_out:
        texts = [f"{len(names)} ({reason}), such as {min(names)}" for reason, names in sorted(left_out.items())]
        warnings.warn(
            f"{path} has files or folders that are left out: {'; '.join(texts)}. All other images are read.",
            DataWarning,
            stacklevel=2,
        )


def _decode(path: Path, classes: tuple[str, ...], files: dict[str, Source]) -> tuple[list[Pixels], list[int]]:
    images: list[Pixels] = []
    labels: list[int] = []
    places = {label: place for place, label in enumerate(classes)}
    for name in sorted(files, key=lambda name: name.split("/")[-2:]):
        source, (part, label, file) = files[name], name.split("/")[-3:]
        where = f"{path}/{part}/{label}/{file}"
        if label not in places:
            raise InvalidInputError(f"{path}/{part} has class {label!r}, which train lacks: {', '.join(classes)}.")
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                pixels = _pixels(image)
        except UNREADABLE as error:
            raise InvalidInputError(f"{where} cannot be read as an image ({error}).") from error
        if images and pixels.shape[1:] != images[0].shape[1:]:
            raise InvalidInputError(
                f"{where} is {pixels.shape}, the images before it are {images[0].shape} "
                "(channels, height, width). Resize all images to one size first."
            )
        images.append(pixels)
        labels.append(places[label])
    return images, labels


def _pixels(image: Image.Image) -> Pixels:
    """Return (1 or 3, height, width)."""
    plain = eight_bits(image)
    if "transparency" in plain.info and plain.mode == "P":  # Pillow warns of the direct way
        plain = plain.convert("RGBA")
    pixels = np.asarray(plain if plain.mode in ("L", "RGB") else plain.convert("RGB"))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _stack(images: list[Pixels], channels: int) -> Tensor:
    stacked = np.empty((len(images), channels, *images[0].shape[1:]), np.uint8)
    for place, image in enumerate(images):
        stacked[place] = image  # grey goes into all channels
    return torch.from_numpy(stacked)
