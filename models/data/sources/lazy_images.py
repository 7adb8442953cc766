"""Images that are not in memory: read when they are needed, by a few threads, with a cache of limited size."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.validation import typed, whole_number

CACHE = 512 * 2**20
"""Bytes of decoded images that a source keeps."""
AHEAD = 256 * 2**20
"""Largest number of bytes of decoded images that are read ahead."""
MARKED = 512
"""Number of images in a fingerprint, if images have to be read for it."""


class ImageSource:
    """A source of images. Your subclass needs ``__len__`` and :meth:`fetch`.

    Args:
        image_shape: (channels, height, width).
        dtype: Type of the pixels.
    """

    def __init__(self, image_shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> None:
        self.image_shape, self.dtype = tuple(image_shape), dtype

    def __len__(self) -> int:
        """Return the number of images."""
        raise NotImplementedError

    def fetch(self, rows: Tensor) -> Tensor:
        """Return the images (batch, channels, height, width) at rows (batch,) int64: a new tensor.

        The same row must give the same image each time.
        """
        raise NotImplementedError

    def expect(self, rows: Tensor) -> None:
        """Start to read the images that will be fetched next, if this is possible in the background."""

    def marks(self, rows: Tensor) -> Tensor:
        """Return a row of uint8 that identifies each image; of some images only, if they have to be read for it."""
        some = rows[torch.linspace(0, len(rows) - 1, min(len(rows), MARKED)).long()]
        parts = map(self.fetch, torch.split(some, 64))
        hashes = [hashlib.sha256(image.numpy().tobytes()).digest() for part in parts for image in part]
        return _rows(hashes)


class LazyImages:
    """Images of a source in a fixed order, with the interface of a tensor (count, channels, height, width).

    Args:
        source: The source.
        rows: (count,) int64 within the source; None for all.
    """

    @typed
    def __init__(self, source: ImageSource, rows: Tensor | None = None) -> None:
        self.source = source
        self.rows = torch.arange(len(source)) if rows is None else rows

    @property
    def shape(self) -> torch.Size:
        """(count, channels, height, width)."""
        return torch.Size((len(self.rows), *self.source.image_shape))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the pixels."""
        return self.source.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def __getitem__(self, indices: Any) -> Tensor:
        """Read the images at indices, a tensor, a slice or a number, as if this were a tensor."""
        rows = self.rows[indices]
        return self.source.fetch(rows) if rows.ndim else self.source.fetch(rows[None])[0]

    def expect(self, indices: Tensor) -> None:
        """Start to read the images at these indices, which are needed next."""
        self.source.expect(self.rows[indices])

    def select(self, indices: Tensor) -> LazyImages:
        """Return the images at indices, without reading them."""
        return LazyImages(self.source, self.rows[indices])

    def marks(self) -> Tensor:
        """Return rows that identify the images, see :meth:`ImageSource.marks`."""
        return self.source.marks(self.rows)


def select(images: Tensor | LazyImages, indices: Tensor) -> Tensor | LazyImages:
    """Return the images at indices: a copy if they are in memory, otherwise a view."""
    return images.select(indices) if isinstance(images, LazyImages) else images[indices]


class MappedArray(ImageSource):
    """An array in a file that is mapped into memory: the system reads its pages when they are used.

    Args:
        array: (count, channels, height, width), such as ``numpy.load(path, mmap_mode="r")``.
    """

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        super().__init__(array.shape[1:], torch.from_numpy(np.empty(0, array.dtype)).dtype)
        self.array = array

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.array)

    def fetch(self, rows: Tensor) -> Tensor:
        """Return the images at rows."""
        return torch.from_numpy(np.ascontiguousarray(self.array[rows.numpy()]))


@dataclasses.dataclass
class _Work:
    """State of one process: its threads, the images that they are reading, and the cache."""

    process: int
    pool: concurrent.futures.ThreadPoolExecutor
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    coming: dict[int, concurrent.futures.Future[Tensor]] = dataclasses.field(default_factory=dict)
    kept: dict[int, Tensor] = dataclasses.field(default_factory=dict)


class ReadImages(ImageSource):
    """Images that a function reads one by one, in a pool of threads.

    The first images that fit into the cache stay there. An epoch reads each image once, so any other choice would
    have fewer hits.

    Args:
        read: Returns the image (channels, height, width) at a row. Several threads call it, unless ``workers`` is 1.
        count: Number of images.
        image_shape: (channels, height, width) of all images.
        dtype: Type of the pixels.
        workers: Threads; by default as many as there are processors, at most 4.
        cache: Bytes of images that are kept.
        name: Returns the name of the image at a row, for messages.
        mark: Returns what identifies the image at a row, without reading all of it; None to read some of the images.

    Attributes:
        waited: Seconds that :meth:`fetch` has waited for images.
    """

    def __init__(
        self,
        read: Callable[[int], Tensor],
        count: int,
        image_shape: tuple[int, ...],
        dtype: torch.dtype = torch.uint8,
        *,
        workers: int | None = None,
        cache: int = CACHE,
        name: Callable[[int], str] = "image {}".format,
        mark: Callable[[int], bytes] | None = None,
    ) -> None:
        super().__init__(image_shape, dtype)
        self.read, self.count, self.name, self.mark = read, count, name, mark
        self.workers = min(4, os.cpu_count() or 1) if workers is None else whole_number("workers", workers)
        size = int(np.prod(image_shape)) * dtype.itemsize
        self.room, self.ahead = whole_number("cache", cache, 0) // size, max(1, AHEAD // size)
        self.waited = 0.0
        self._made: _Work | None = None
        self._marks: dict[int, bytes] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles, without threads and cached images."""
        return {**self.__dict__, "_made": None}

    def __len__(self) -> int:
        """Return the number of images."""
        return self.count

    @property
    def _work(self) -> _Work:
        # The threads of a pool do not exist in a forked process.
        if self._made is None or self._made.process != os.getpid():
            self._made = _Work(os.getpid(), concurrent.futures.ThreadPoolExecutor(self.workers, "prunegym-read"))
        return self._made

    def expect(self, rows: Tensor) -> None:
        """Start to read these images in the background, and drop earlier ones that were not fetched."""
        work, wanted = self._work, list(dict.fromkeys(rows.tolist()))[: self.ahead]
        with work.lock:
            for row in work.coming.keys() - wanted:
                work.coming.pop(row).cancel()
            for row in wanted:
                if row not in work.kept and row not in work.coming:
                    work.coming[row] = work.pool.submit(self.read, row)

    def fetch(self, rows: Tensor) -> Tensor:
        """Return the images at rows; those that are already read are collected first.

        Raises:
            InvalidInputError: If an image has another shape than the others.
        """
        work, wanted = self._work, rows.tolist()
        found: dict[int, Tensor | concurrent.futures.Future[Tensor]] = {}
        with work.lock:
            for row in wanted:
                if row not in found:
                    coming = work.coming.pop(row, None)
                    found[row] = work.kept[row] if row in work.kept else coming or work.pool.submit(self.read, row)
        images = torch.empty(len(wanted), *self.image_shape, dtype=self.dtype)
        for place, row in enumerate(wanted):
            one = found[row]
            if not isinstance(one, Tensor):
                began = time.perf_counter()
                found[row] = one = self._checked(row, one.result())
                self.waited += time.perf_counter() - began
                if len(work.kept) < self.room:
                    work.kept[row] = one
            images[place] = one
        return images

    def _checked(self, row: int, image: Tensor) -> Tensor:
        if tuple(image.shape) != self.image_shape:
            raise InvalidInputError(
                f"{self.name(row)} is {tuple(image.shape)}, other images are {self.image_shape} (channels, height, "
                "width). Give image_size (--image-size) to bring all images to one size."
            )
        if image.dtype != self.dtype:
            raise InvalidInputError(f"{self.name(row)} is {image.dtype}, other images are {self.dtype}. Convert them.")
        return image

    def marks(self, rows: Tensor) -> Tensor:
        """Return the images' marks, each made once; without ``mark`` some images are read."""
        if self.mark is None:
            return super().marks(rows)
        wanted = rows.tolist()
        missing = [row for row in wanted if row not in self._marks]
        self._marks.update(zip(missing, self._work.pool.map(self.mark, missing), strict=True))
        return _rows([self._marks[row] for row in wanted])


def _rows(marks: list[bytes]) -> Tensor:
    return torch.frombuffer(bytearray(b"".join(marks)), dtype=torch.uint8).view(len(marks), -1)
