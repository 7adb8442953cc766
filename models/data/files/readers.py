"""Readers for the formats of data sets: IDX, tar archives (CIFAR's binary ones), array files."""

from __future__ import annotations

import gzip
import math
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import Dataset, Split
from prunegym.models.data.splits import from_arrays

Splits = dict[Split, Dataset]

CIFAR_PIXELS = 3 * 32 * 32
MAX_LINKS = 8
"""How many links in a row are followed in an archive."""


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Returns:
        uint8, with the shape that the file states.

    Raises:
        InvalidInputError: If the file is damaged or has another data type.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInputError(f"{path} is not a complete gzip file ({error}). Download it again.") from error
    dimensions = data[3] if len(data) > 3 and data[:3] == b"\x00\x00\x08" else 0
    start = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4))
    if dimensions == 0 or len(data) - start != math.prod(shape):
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
                f"Is it the binary archive of {name}?"
            )
        rows = torch.from_numpy(np.frombuffer(chosen, dtype=np.uint8).reshape(-1, row).copy())
        return rows[:, -CIFAR_PIXELS:].reshape(-1, 3, 32, 32), rows[:, -CIFAR_PIXELS - 1].long()

    names = "batches.meta.txt" if ten else "fine_label_names.txt"
    if names not in members:
        raise InvalidInputError(f"{path} has no {names}. Is it the binary archive of {name}?")
    train, test = (part(prefix) for prefix in (("data_batch_", "test_batch") if ten else ("train.bin", "test.bin")))
    return from_arrays(train, test, name=name, classes=tuple(members[names].decode().split()), pad=4, flip=True)


def tar_members(path: Path, wanted: Callable[[str], bool]) -> tuple[dict[str, bytes], dict[str, str], list[str]]:
    """Read files of a tar archive, each under its plain name (no leading ``./``); the last of one name counts.

    Hard and symbolic links to a file of the archive have that file's content.

    Args:
        path: The archive.
        wanted: Whether a file of that name is read.

    Returns:
        The files; links that lead to no such file, with what they lead to; the names of all other members but folders.

    Raises:
        InvalidInputError: If the archive is damaged.
    """
    files: dict[str, bytes] = {}
    links: dict[str, str] = {}
    others: list[str] = []
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = plain_name(member.name)
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
            # tarfile stops silently at a damaged header, and before the checksum at the end of a gzip file.
            archive.fileobj.seek(archive.offset)
            rest = b"".join(iter(lambda: archive.fileobj.read(65_536), b""))
            if not rest or rest.strip(b"\0"):
                raise tarfile.ReadError(f"damaged after {archive.offset} bytes")
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = " ".join(str(error).split())  # tarfile writes a line for each compression it tried
        raise InvalidInputError(f"{path} is not a complete tar archive ({reason}). Copy it again.") from error
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


def plain_name(name: str) -> str:
    """Return the name of an archive's member from the top: without ``./`` or ``/`` before it."""
    return posixpath.normpath(name).lstrip("/")


def array_file(path: Path) -> Splits:
    """Read an ``.npz`` file with train_images, train_labels, test_images and test_labels; images have channels first.

    Raises:
        InvalidInputError: If an array is missing or has the wrong shape or type.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise InvalidInputError(f"{path} is not an .npz file of plain arrays ({error}).") from error
    keys = ("train_images", "train_labels", "test_images", "test_labels")
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise InvalidInputError(
            f"{path} has no {missing[0]!r}; it has {sorted(arrays)}, and {', '.join(keys)} are needed."
        )
    train, test = (arrays[keys[0]], arrays[keys[1]]), (arrays[keys[2]], arrays[keys[3]])
    return from_arrays(train, test, name=path.stem)
