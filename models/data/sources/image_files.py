"""Image files that are read when they are needed: a list of paths, or of contents of an archive."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.data.files.decoding import Source, decode, is_grey
from prunegym.models.data.sources.lazy_images import CACHE, LazyImages, ReadImages
from prunegym.models.data.transform import Transform

CHUNK = 16_384
"""A fingerprint uses this many bytes from a file's start, middle and end, and its length."""


@dataclasses.dataclass(frozen=True)
class _Files:
    """Image files, read by their row."""

    files: Sequence[Source]
    names: Sequence[str]
    channels: int
    transform: Transform | None

    def read(self, row: int) -> Tensor:
        return decode(self.files[row], self.names[row], self.channels, self.transform)

    def mark(self, row: int) -> bytes:
        source = self.files[row]
        try:
            return hashlib.sha256(source if isinstance(source, bytes) else _samples(source)).digest()
        except OSError as error:
            raise InvalidInputError(f"{self.names[row]} cannot be read ({error.strerror}).") from error

    def name(self, row: int) -> str:
        return self.names[row]


def image_files(
    files: Sequence[Source | str],
    *,
    names: Sequence[str] | None = None,
    transform: Transform | None = None,
    channels: int | None = None,
    workers: int | None = None,
    cache: int = CACHE,
) -> LazyImages:
    """Return image files as images that are decoded when they are needed.

    Args:
        files: Paths, or contents of files.
        names: Name of each in messages; by default its path.
        transform: Brings them to one size; needed if their sizes differ.
        channels: 1 for grey or 3 for RGB; by default 1 if all files are grey. Only headers are read to find out.
        workers: Threads that decode; by default as many as there are processors, at most 4.
        cache: Bytes of decoded images that are kept.

    Raises:
        InvalidInputError: If there is no file, or a file that is read here is not an image. Others are checked when
            they are read.

    Example:
        >>> from prunegym.models import from_arrays
        >>> paths, labels = ["cat.jpg", "dog.jpg"], torch.tensor([0, 1])  # doctest: +SKIP
        >>> both = image_files(paths, transform=Transform((224, 224))), labels  # doctest: +SKIP
        >>> data = from_arrays(both, both, validation=both, classes=["cat", "dog"])  # doctest: +SKIP
    """
    sources: list[Source] = [Path(file) if isinstance(file, str) else file for file in files]
    if not sources:
        raise InvalidInputError("There is no image file. Give at least one.")
    if names is None:
        names = [f"file {at}" if isinstance(source, bytes) else str(source) for at, source in enumerate(sources)]
    if channels is None:
        channels = 1 if all(map(is_grey, sources, names)) else 3
    reader = _Files(sources, names, channels, transform)
    size = reader.read(0).shape[1:] if transform is None else transform.image_size
    source = ReadImages(
        reader.read, len(sources), (channels, *size), workers=workers, cache=cache, name=reader.name, mark=reader.mark
    )
    return LazyImages(source)


def in_memory(images: LazyImages) -> Tensor:
    """Read all images, in parts, and return them as one tensor (count, channels, height, width)."""
    made = torch.empty(images.shape, dtype=images.dtype)
    for part in torch.split(torch.arange(len(images)), 256):
        made[part] = images[part]
    return made


def _samples(path: Path) -> bytes:
    """Return parts of a file and its length; all of a small one."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= 3 * CHUNK:
            return file.read()
        parts = [str(size).encode()]
        for start in (0, size // 2, size - CHUNK):
            file.seek(start)
            parts.append(file.read(CHUNK))
        return b"".join(parts)
