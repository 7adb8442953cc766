"""Files from other people, read with limits: no devices, and nothing that expands until the memory is full."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from prunegym.errors import InvalidInputError

MOST_TIMES, ROOM = 100, 64 << 20
"""A compressed file may expand to this many times its size plus this many bytes. Photographs expand 10 times."""
OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
"""Functions that open compressed files, by the first bytes of a file."""
BROKEN = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)
"""Errors that reading such a file raises if it is damaged or too large."""
CHUNK = 1 << 20


def check_expansion(expanded: int, stored: int) -> None:
    """Check the size of a file after decompression.

    Raises:
        ValueError: If it is too large; the caller adds the file's name.
    """
    most = MOST_TIMES * stored + ROOM
    if expanded > most:
        raise ValueError(f"it expands to more than {most:,} bytes, {MOST_TIMES} times its size and more")


def check_members(archive: zipfile.ZipFile, stored: int, wanted: Callable[[str], bool]) -> None:
    """Check how many bytes the wanted members of a zip archive are together; zipfile reads no more than they state.

    Raises:
        ValueError: If they are too many for an archive of ``stored`` bytes.
    """
    check_expansion(sum(member.file_size for member in archive.infolist() if wanted(member.filename)), stored)


def check_regular(path: Path, what: str) -> Path:
    """Return the path of a file that exists and is not a device, pipe or folder.

    Raises:
        InvalidInputError: If it is not, or may not be read.
    """
    if not path.is_file():
        raise InvalidInputError(f"{path} is not a regular file, so it cannot be a {what}. Check the path.")
    if not os.access(path, os.R_OK):
        raise InvalidInputError(f"{path} cannot be read (Permission denied). Allow reading it.")
    return path


def read_json(path: Path, what: str) -> Any:
    """Return the content of a JSON file that may be damaged or hostile.

    Raises:
        InvalidInputError: If it is not a regular file, or may not be read.
        ValueError: If it is not JSON, or nested too deeply.
    """
    text = check_regular(path, what).read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


class ExpandedFile(io.RawIOBase):
    """A file as bytes, decompressed if it is gzip, bzip2 or xz. Reading and seeking raise the errors in ``BROKEN``.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.stored = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(max(map(len, OPENERS)))
        opener = next((opener for first, opener in OPENERS.items() if start.startswith(first)), open)
        self.compressed = opener is not open
        self.inner: BinaryIO = opener(path, "rb")

    def read(self, size: int | None = -1) -> bytes:
        """Return this many bytes, or all up to the end; memory grows only with the bytes that exist."""
        left = None if size is None or size < 0 else size
        chunks: list[bytes] = []
        while left is None or left > 0:
            chunk = self.inner.read(CHUNK if left is None else min(CHUNK, left))
            if not chunk:
                break
            check_expansion(self.inner.tell(), self.stored)
            chunks.append(chunk)
            left = None if left is None else left - len(chunk)
        return b"".join(chunks)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, counted in decompressed bytes from the start."""
        check_expansion(offset, self.stored)
        return self.inner.seek(offset, whence)

    def tell(self) -> int:
        """Return the position, in decompressed bytes from the start."""
        return self.inner.tell()

    def close(self) -> None:
        """Close the file."""
        self.inner.close()
        super().close()
