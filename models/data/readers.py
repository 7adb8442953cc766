"""Readers for the formats of data sets: IDX, CIFAR's binary archives, image folders, array files."""

from __future__ import annotations

import gzip
import io
import math
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import Dataset, Split
from prunegym.models.data.splits import from_arrays

Splits = dict[Split, Dataset]

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
CIFAR_PIXELS = 3 * 32 * 32
UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises on files that are not images, are damaged, or would fill the memory."""


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
    members = {Path(member).name: data for member, data in _tar_members(path)}
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


def eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of 16 bits a pixel reduced to its 8 highest bits; other images are returned unchanged.

    Pillow itself would clip the 16 bits instead of scaling them.

    Raises:
        ValueError: For 32 bits a pixel, whose range is unknown.
    """
    if image.mode.startswith("I;16") or (
        image.mode == "I" and image.format == "PNG"
    ):  # Pillow 10 has mode I for 16 and 32 bits
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"it has 32 bits a pixel (mode {image.mode}); store it with 8 or 16")
    return image


def _tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isfile() else None
                if stream is not None:
                    yield member.name, stream.read()
            # tarfile stops silently at a damaged header, and before the checksum at the end of a gzip file.
            archive.fileobj.seek(archive.offset)
            rest = b"".join(iter(lambda: archive.fileobj.read(65_536), b""))
            if not rest or rest.strip(b"\0"):
                raise tarfile.ReadError(f"damaged after {archive.offset} bytes")
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = " ".join(str(error).split())  # tarfile writes a line for each compression it tried
        raise InvalidInputError(f"{path} is not a complete tar archive ({reason}). Copy it again.") from error


def _folder_members(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in path.rglob("*"):
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file():
            yield file.relative_to(path).as_posix(), file.read_bytes()


def image_folder(path: Path) -> Splits:
    """Read ``train/<class>/<image>`` and ``test/<class>/<image>`` from a folder or a tar archive of one.

    Images are sorted by path, so that an index means the same image on every machine.

    Raises:
        InvalidInputError: If ``train`` or ``test`` is missing, there are several data sets, an image cannot be read, or
            sizes or classes differ.
    """
    members = _folder_members(path) if path.is_dir() else _tar_members(path)
    parts: dict[str, list[tuple[str, str, bytes]]] = {"train": [], "test": []}
    above: set[str] = set()
    for name, data in members:
        steps = [step for step in name.split("/") if step != "."]
        if Path(name).suffix.lower() in IMAGE_SUFFIXES and len(steps) >= 3 and steps[-3] in parts:
            parts[steps[-3]].append((steps[-2], steps[-1], data))
            above.add("/".join(steps[:-3]) or ".")
    if len(above) > 1:
        raise InvalidInputError(f"{path} has several data sets: {', '.join(sorted(above))}. Give the path of one.")
    for part, files in parts.items():
        if not files:
            raise InvalidInputError(f"{path} has no images under {part}/<class>/. Both train and test are needed.")
    classes = tuple(sorted({label for label, _, _ in parts["train"]}))
    train, test = (_decode(path, part, classes, parts[part]) for part in ("train", "test"))
    name = path.name.split(".")[0]
    return from_arrays(train, test, name=name, classes=classes, flip=True)


def _decode(
    path: Path, part: str, classes: tuple[str, ...], files: list[tuple[str, str, bytes]]
) -> tuple[Tensor, Tensor]:
    images: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
    labels: list[int] = []
    for label, file, data in sorted(files, key=lambda entry: entry[:2]):
        if label not in classes:
            raise InvalidInputError(f"{path}/{part} has class {label!r}, which train lacks: {', '.join(classes)}.")
        try:
            image = Image.open(io.BytesIO(data))
            plain = eight_bits(image)
            pixels = np.asarray(plain if plain.mode in ("L", "RGB") else plain.convert("RGB"))
        except UNREADABLE as error:
            raise InvalidInputError(f"{path}/{part}/{label}/{file} cannot be read as an image ({error}).") from error
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if images and pixels.shape != images[0].shape:
            raise InvalidInputError(
                f"{path}/{part}/{label}/{file} is {pixels.shape}, the images before it are {images[0].shape} "
                "(channels, height, width). Resize all images to one size first."
            )
        images.append(pixels)
        labels.append(classes.index(label))
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


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
