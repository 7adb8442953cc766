"""Readers for formats of data sets: IDX, tar archives (also CIFAR's binary archives), array files."""

from __future__ import annotations

import math
import posixpath
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunegym.errors import InvalidInputError, PruneGymError
from prunegym.models.data.dataset import Dataset, Split
from prunegym.models.data.files.bounded_files import (
    BROKEN,
    ExpandedFile,
    check_expansion,
    check_members,
    check_regular,
)
from prunegym.models.data.splits import from_arrays
from prunegym.validation import array

Splits = dict[Split, Dataset]

CIFAR_PIXELS = 3 * 32 * 32
MOST_DIMENSIONS = 4
"""Largest number of dimensions of an IDX file: images, channels, height and width."""
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
"""The arrays in an ``.npz`` file."""
MAX_LINKS = 8
"""Largest number of links in a chain that are followed in an archive."""


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Returns:
        uint8, with the shape that the file states.

    Raises:
        InvalidInputError: If the file is damaged or has another data type.
    """
    try:
        with ExpandedFile(check_regular(path, "IDX file")) as file:
            data = file.read()
        if path.suffix == ".gz" and not file.compressed:
            raise ValueError("it is not compressed")
    except BROKEN as error:
        raise InvalidInputError(f"{path} is not a complete gzip file ({error}). Download it again.") from error
    dimensions = data[3] if len(data) > 3 and data[:3] == b"\x00\x00\x08" else 0
    start = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4))
    if not 0 < dimensions <= MOST_DIMENSIONS or len(data) - start != math.prod(shape):
        raise InvalidInputError(f"{path} is not a complete IDX file of unsigned bytes. Download it again.")
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape).copy())


def cifar_archive(path: Path, name: str) -> Splits:
    """Read an official binary archive of CIFAR-10 or CIFAR-100.

    The pickled archives are not read: loading them would execute code.

    Args:
        path: ``cifar-10-binary.tar.gz`` or ``cifar-100-binary.tar.gz``.
        name: ``cifar10`` (a row is a label and the pixels) or ``cifar100`` (coarse label, fine label, pixels).

    Raises:
        InvalidInputError: If the archive is damaged or incomplete.
    """
    members = {Path(member).name: data for member, data in tar_members(path, lambda _: True)[0].items()}
    ten = name == "cifar10"

    def part(prefix: str) -> tuple[Tensor, Tensor]:
        chosen = b"".join(members[member] for member in sorted(members) if member.startswith(prefix))
        row = CIFAR_PIXELS + (1 if ten else 2)
        if not chosen or len(chosen) % row:
            raise InvalidInputError(
                f"{path} has {len(chosen)} bytes in its files {prefix}*; rows of {row} bytes are needed. "
                f"Use the binary archive of {name}."
            )
        rows = torch.from_numpy(np.frombuffer(chosen, dtype=np.uint8).reshape(-1, row).copy())
        return rows[:, -CIFAR_PIXELS:].reshape(-1, 3, 32, 32), rows[:, -CIFAR_PIXELS - 1].long()

    names = "batches.meta.txt" if ten else "fine_label_names.txt"
    if names not in members:
        raise InvalidInputError(f"{path} has no {names}. Use the binary archive of {name}.")
    train, test = (part(prefix) for prefix in (("data_batch_", "test_batch") if ten else ("train.bin", "test.bin")))
    return from_arrays(train, test, name=name, classes=tuple(members[names].decode().split()), pad=4, flip=True)


def tar_members(path: Path, wanted: Callable[[str], bool]) -> tuple[dict[str, bytes], dict[str, str], list[str]]:
    """Read files of a tar archive, by their name without a leading ``./``. If a name occurs twice, the last one counts.

    Hard and symbolic links to a file of the archive have that file's content.

    Args:
        path: The archive.
        wanted: Whether a file of that name is read.

    Returns:
        The files; broken links with their targets; the names of all other members except folders.

    Raises:
        InvalidInputError: If the archive is damaged.
    """
    files: dict[str, bytes] = {}
    links: dict[str, str] = {}
    others: list[str] = []
    taken = 0
    try:
        with (
            ExpandedFile(check_regular(path, "tar archive")) as whole,
            tarfile.open(fileobj=whole, mode="r:") as archive,
        ):
            for member in archive:
                name = plain_name(member.name)
                taken += member.size if wanted(name) else 0  # a sparse file may state any size
                check_expansion(taken, whole.stored)
                if member.isdir():
                    continue
                files.pop(name, None)
                links.pop(name, None)
                stream = archive.extractfile(member) if member.isreg() and wanted(name) else None
                if stream is not None:
                    files[name] = stream.read()
                elif member.islnk():  # what it leads to is named from the top of the archive
                    links[name] = plain_name(member.linkname)
                elif member.issym():  # and here from the link's own folder
                    links[name] = plain_name(posixpath.join(posixpath.dirname(member.name), member.linkname))
                else:
                    others.append(name)
            _check_end(whole, archive.offset)
    except (tarfile.TarError, *BROKEN) as error:
        reason = " ".join(str(error).split())  # tarfile writes a line for each compression it tried
        raise InvalidInputError(f"{path} is not a complete tar archive ({reason}). Copy or pack it again.") from error
    broken: dict[str, str] = {}
    for name, target in links.items():
        for _ in range(MAX_LINKS):
            target = links.get(target, target)
        if target not in files:
            broken[name] = links[name]
        elif wanted(name):
            files[name] = files[target]
        else:
            others.append(name)
    return files, broken, others


def _check_end(whole: ExpandedFile, offset: int) -> None:
    """Check that only zeros follow: tarfile stops silently at a damaged header, and before a gzip file's checksum."""
    whole.seek(offset)
    blocks = 0
    while block := whole.read(65_536):
        blocks += 1
        if block.strip(b"\0"):
            break
    if block or not blocks:
        raise tarfile.ReadError(f"damaged after {offset} bytes")


def plain_name(name: str) -> str:
    """Return the name of an archive's member without ``./`` or ``/`` at its start."""
    return posixpath.normpath(name).lstrip("/")


def array_file(path: Path) -> Splits:
    """Read an ``.npz`` file with train_images, train_labels, test_images and test_labels; images have channels first.

    Raises:
        InvalidInputError: If an array is missing or has the wrong shape or type.
    """
    try:
        with check_regular(path, ".npz file").open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            names = file.files
            check_members(file.zip, path.stat().st_size, lambda name: name.removesuffix(".npy") in ARRAYS)
            arrays = {key: torch.as_tensor(array(f"{path}: {key}", file[key])) for key in ARRAYS if key in names}
    except PruneGymError:
        raise
    except Exception as error:  # a damaged file raises almost anything, even NotImplementedError and MemoryError
        raise InvalidInputError(f"{path} is not an .npz file of plain arrays ({error}).") from error
    missing = [key for key in ARRAYS if key not in arrays]
    if missing:
        raise InvalidInputError(
            f"{path} has no {missing[0]!r}; it has {sorted(names)}, and {', '.join(ARRAYS)} are needed."
        )
    train, test = (arrays[ARRAYS[0]], arrays[ARRAYS[1]]), (arrays[ARRAYS[2]], arrays[ARRAYS[3]])
    return from_arrays(train, test, name=path.stem)
