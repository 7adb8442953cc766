"""Image folders, ``train/<class>/<image>`` or ``<class>/<image>``, and tar or zip archives of them."""

from __future__ import annotations

import dataclasses
import itertools
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from prunegym.errors import DataWarning, InvalidInputError
from prunegym.models.data.dataset import SPLITS, Dataset, Split
from prunegym.models.data.files.decoding import Source
from prunegym.models.data.files.folder_contents import (
    ELSEWHERE,
    HIDDEN,
    Contents,
    contents_of,
    is_hidden,
    is_image,
    not_read,
)
from prunegym.models.data.sources.image_files import image_files, in_memory
from prunegym.models.data.splits import from_arrays
from prunegym.models.data.transform import Transform

FOLDERS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""Names of folders, in small letters, and their splits."""

IN_MEMORY = 256 * 2**20
"""Image folders with up to this many bytes of pixels are decoded at once; images of others when they are needed."""
SHARES: dict[Split, float] = {"test": 0.2, "validation": 0.1}
"""Share of each class that a split gets if the folder has no splits."""

SPLIT_LIKE = re.compile(rf"(?:^|[^a-z])({'|'.join(FOLDERS)})(?:[^a-z]|$)")
"""Names that hold the name of a split, such as ``train_images`` and ``val2017``."""

Files = dict[str, Source]
"""Images of a split by their path from the top."""


def image_folder(path: Path, transform: Transform | None = None, channels: int | None = None) -> dict[Split, Dataset]:
    """Read ``train/<class>/<image>`` and ``test/<class>/<image>`` from a folder, or a tar or zip archive of one.

    A folder ``val``, ``valid`` or ``validation`` is the validation split; without one, it gets a tenth of the training
    images. If there is no ``test``, ``val`` is the test split. With only ``<class>/<image>``, a fifth of each class
    becomes the test split and a tenth the validation split, by a fixed draw.

    Links are followed. Hidden files and folders (``.name``) and files that are not images are left out, and a
    ``DataWarning`` counts them. If all images are grey, they stay grey; otherwise all become RGB. Images are sorted by
    path, so that an index means the same image on every machine.

    Args:
        path: The folder or archive.
        transform: Brings images to one size; needed if their sizes differ.
        channels: 1 or 3; by default the number that the images have.

    Returns:
        The splits. Up to :data:`IN_MEMORY` bytes are decoded at once; larger ones when images are needed.

    Raises:
        InvalidInputError: If there are no such images, or several data sets, an image or a folder cannot be read, a
            link is broken, sizes differ and there is no transform, or a split has a class that is not in ``train``.
    """
    found = contents_of(path)
    parts, notes = _parts(path, found)
    if not parts:
        parts, notes = _by_class(path, found)
    for split in ("train", "test"):
        if split not in parts:
            raise InvalidInputError(
                f"{path} has no images under {split}/<class>/. Both train and test are needed, or folders of classes "
                f"alone. {_shown(found)}"
            )
    parts = {split: parts[split] for split in SPLITS if split in parts}
    classes = _classes(path, parts["train"])
    ordered = {split: sorted(files, key=lambda name: name.split("/")[-2:]) for split, files in parts.items()}
    labels = {split: _labels(path, split, classes, names) for split, names in ordered.items()}
    names = [name for part in ordered.values() for name in part]
    sources = [files[name] for split, files in parts.items() for name in ordered[split]]
    images = image_files(sources, names=[f"{path}/{name}" for name in names], transform=transform, channels=channels)
    small = images.shape.numel() <= IN_MEMORY
    rows = dict(
        zip(parts, torch.split(torch.arange(len(names)), [len(part) for part in ordered.values()]), strict=True)
    )
    chosen = {split: images.select(rows[split]) for split in parts}
    given = {split: (in_memory(some) if small else some, labels[split]) for split, some in chosen.items()}
    _tell_left_out(path, found.left_out)
    made = from_arrays(
        given["train"], given["test"], validation=given.get("validation"), name=path.name.split(".")[0] or
        path.resolve().name, classes=classes, flip=True, transform=transform,
    )  # fmt: skip
    return {split: dataclasses.replace(part, path=str(path), notes=notes) for split, part in made.items()}


def _shown(found: Contents) -> str:
    """Return a sentence on what a folder has instead."""
    images = sorted(filter(is_image, found.files))
    others = Counter(Path(name).suffix.lower() or "without ending" for name in found.files if not is_image(name))
    kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(4))
    texts = [f"{len(images)} images, such as {images[0]}"] if images else []
    texts += [f"other files ({kinds}{', ...' if len(others) > 4 else ''})"] if others else []
    return f"It has {', and '.join(texts)}." if texts else "It has no files that are read."


def _class_of(name: str) -> str:
    """Return an image's class. A Mac writes the letter a-umlaut as two characters, other machines as one."""
    return unicodedata.normalize("NFC", name.split("/")[-2])


def _classes(path: Path, names: Iterable[str]) -> tuple[str, ...]:
    classes = tuple(sorted({_class_of(name) for name in names}))
    for label in classes:
        if not label.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in label):
            raise InvalidInputError(f"{path} has a folder {label!r}, whose name is not UTF-8. Rename it.")
    if len(classes) == 1:
        warnings.warn(
            f"All images of {path} have the class {classes[0]!r}, so their accuracy says nothing.",
            DataWarning,
            stacklevel=2,
        )
    return classes


def _labels(path: Path, split: Split, classes: tuple[str, ...], names: list[str]) -> Tensor:
    places = {label: place for place, label in enumerate(classes)}
    found = [_class_of(name) for name in names]
    unknown = next((label for label in found if label not in places), None)
    if unknown is not None:
        raise InvalidInputError(f"{path}/{split} has class {unknown!r}, which is not in train: {', '.join(classes)}.")
    return torch.tensor([places[label] for label in found])


def _by_class(path: Path, found: Contents) -> tuple[dict[Split, Files], tuple[str, ...]]:
    """Sort images at ``<class>/<image>`` into splits: a fixed draw within each class."""
    folders: dict[str, dict[str, list[str]]] = {}
    for name in sorted(filter(is_image, found.files)):
        *above, folder, _ = ["", "", *name.split("/")]
        if folder and not any(map(is_hidden, name.split("/")[-2:])):
            folders.setdefault("/".join(above), {}).setdefault(folder, []).append(name)
    classes = _folders_of_classes(path, folders)
    parts: dict[Split, Files] = {"train": {}, "validation": {}, "test": {}}
    generator = torch.Generator().manual_seed(0)
    for names in classes.values():
        drawn = [names[place] for place in torch.randperm(len(names), generator=generator).tolist()]
        for split, share in SHARES.items():
            count = max(1, round(len(names) * share)) if len(names) > 2 else 0
            parts[split].update((name, found.files[name]) for name in drawn[:count])
            drawn = drawn[count:]
        parts["train"].update((name, found.files[name]) for name in drawn)
    if not classes:
        return {}, ()
    if not all(parts.values()):
        raise InvalidInputError(
            f"{path} has {len(classes)} folders of classes, but too few images to split: at least one class with 3 is "
            "needed. Add images, or make folders train and test."
        )
    used = {name for files in parts.values() for name in files}
    for name in found.broken:
        if is_image(name) or "/" not in name:
            raise _broken_link(path, name, found)
    for name in found.files.keys() - used:
        if "/" in name or is_image(name):
            found.leave_out(ELSEWHERE if is_image(name) else not_read(name), name)
    shares = " and ".join(f"{share:.0%} of each class the {split}" for split, share in SHARES.items())
    return parts, (f"The folder has no splits: a fixed draw made {shares} images. The others are for training.",)


def _folders_of_classes(path: Path, folders: Mapping[str, dict[str, list[str]]]) -> dict[str, list[str]]:
    """Return the folders of classes with their images: those of the highest level that has more than one.

    Args:
        path: The whole folder, for messages.
        folders: Images by the name of their folder, by the path above it, which begins with ``/``.
    """
    several = sorted((above for above, inner in folders.items() if len(inner) > 1), key=len)
    if not several:
        return {}
    top = several[0].rstrip("/")
    others = [above for above in several if not f"{above}/".startswith(f"{top}/")]
    if others:
        names = ", ".join(sorted(above.strip("/") for above in (top, *others)))
        raise InvalidInputError(
            f"{path} has several data sets: {names}. Give the path of one, or make folders train and test that have "
            "the folders of classes directly inside."
        )
    classes = folders[several[0]]
    like = [SPLIT_LIKE.search(label.lower()) for label in classes]
    if all(like) and any(match and FOLDERS[match[1]] == "train" for match in like):
        raise InvalidInputError(
            f"{path} has images directly in the folders {' and '.join(sorted(classes))}, which seem to be splits. Put "
            "them into a folder for each class: train/<class>/<image>. For other targets, or none, make a data set in "
            "Python: from_arrays and image_files."
        )
    return classes


def _parts(path: Path, found: Contents) -> tuple[dict[Split, Files], tuple[str, ...]]:
    """Sort images at ``<split>/<class>/<image>`` into splits, and record the other files; may return no split."""
    sets: dict[str, dict[str, Files]] = {}
    # Archives may begin with the folders above the data set, of which some may be hidden.
    folders_of_images = [name.split("/")[:-1] for name in found.files if is_image(name)]
    if not any(_split_at(steps, -2) for steps in folders_of_images):
        return {}, ()
    top = sum(1 for _ in itertools.takewhile(lambda steps: len(set(steps)) == 1, zip(*folders_of_images, strict=False)))
    for name, source in found.files.items():
        steps = name.split("/")
        if any(map(is_hidden, steps[min(top, max(len(steps) - 3, 0)) :])):
            reason = HIDDEN
        elif not is_image(name):
            reason = not_read(name)
        elif not _split_at(steps, -3):
            reason = ELSEWHERE
        else:
            sets.setdefault("/".join(steps[:-3]) or ".", {}).setdefault(steps[-3], {})[name] = source
            continue
        inside = any(step.lower() in FOLDERS for step in steps[:-1])
        if reason == ELSEWHERE or inside:  # a README next to train needs no warning
            found.leave_out(reason, name)
    for name in found.broken:
        steps = name.split("/")
        if (is_image(name) and _split_at(steps, -3)) or _split_at(steps, -2):
            raise _broken_link(path, name, found)
    if len(sets) > 1:
        raise InvalidInputError(f"{path} has several data sets: {', '.join(sorted(sets))}. Give the path of one.")
    parts: dict[Split, Files] = {}
    for folders in sets.values():
        for folder, files in folders.items():
            split = FOLDERS[folder.lower()]
            if split in parts:
                names = sorted(other for other in folders if FOLDERS[other.lower()] == split)
                raise InvalidInputError(f"{path} has the folders {' and '.join(names)}. Keep one for {split}.")
            parts[split] = files
    if "test" in parts or "validation" not in parts:
        return parts, ()
    parts["test"] = parts.pop("validation")
    return parts, ("The folder has no test images: those for validation are the test split.",)


def _split_at(steps: list[str], place: int) -> bool:
    """Whether a part of a path, counted from its end, is the name of a split."""
    return len(steps) >= -place and steps[place].lower() in FOLDERS


def _broken_link(path: Path, name: str, found: Contents) -> InvalidInputError:
    return InvalidInputError(
        f"{path}/{name} is a link to {found.broken[name]}, which does not exist here. Fix or remove it. To "
        "archive the files that links point to, use tar --dereference."
    )


def _tell_left_out(path: Path, left_out: dict[str, list[str]]) -> None:
    if left_out:
        texts = [f"{len(names)} ({reason}), such as {min(names)}" for reason, names in sorted(left_out.items())]
        warnings.warn(
            f"{path} has files or folders that are left out: {'; '.join(texts)}. All other images are read.",
            DataWarning,
            stacklevel=2,
        )
