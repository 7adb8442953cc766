"""Files that claim or expand to much more than they are, and things that are no files: refused in little memory."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.data.files.image_folders import image_folder
from prunegym.models.data.files.readers import array_file, cifar_archive, read_idx
from tests.damage import in_little_memory

ZEROS = bytes(1 << 20)


def _bomb(path: Path, start: bytes = b"", megabytes: int = 96) -> Path:
    """Write zeros as a compressed file a thousandth of their size."""
    openers: dict[str, Callable[..., Any]] = {
        ".gz": gzip.open, ".bz2": functools.partial(bz2.open, compresslevel=1),
        ".xz": functools.partial(lzma.open, preset=0),
    }  # fmt: skip
    with openers[path.suffix](path, "wb") as file:
        file.write(start)
        for _ in range(megabytes):
            file.write(ZEROS)
    return path


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def _png(width: int, height: int) -> bytes:
    """Return a black RGB picture."""

    def part(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    deflate, row = zlib.compressobj(), bytes(1 + 3 * width)
    pixels = b"".join(deflate.compress(row) for _ in range(height)) + deflate.flush()
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", size) + part(b"IDAT", pixels) + part(b"IEND", b"")


def _folder(path: Path) -> Path:
    for part in ("train", "test"):
        for label in "ab":
            (path / part / label).mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(path / part / label / f"{number}.png")
    return path


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_archives_that_expand(tmp_path: Path, suffix: str) -> None:
    path = _bomb(tmp_path / f"set.tar.{suffix}", _header("train/a/0.png", 256 << 20))
    assert "expands to more than" in in_little_memory(lambda: image_folder(path))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_headers_that_expand(tmp_path: Path, kind: bytes) -> None:
    path = _bomb(tmp_path / "set.tar.gz", _header("long", 256 << 20, kind))
    assert "set.tar.gz is not a complete tar archive" in in_little_memory(lambda: image_folder(path))


def test_zeros_behind_the_end_of_an_archive(tmp_path: Path) -> None:
    path = _bomb(tmp_path / "set.tar.gz", bytes(1024))
    assert "expands to more than" in in_little_memory(lambda: image_folder(path))


def test_members_that_claim_terabytes(tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(_folder(tmp_path / "set"), "set")
    whole = path.read_bytes().rstrip(b"\0") + bytes(512)
    whole += bytes(-len(whole) % 512)
    path.write_bytes(whole + _header("set/train/a/9.png", 2**40))
    assert "is not a complete tar archive" in in_little_memory(lambda: image_folder(path))


def test_a_sparse_member(tmp_path: Path) -> None:
    header = bytearray(_header("train/a/0.png", 0, tarfile.GNUTYPE_SPARSE))
    header[483:495] = tarfile.itn(2**40, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "set.tar"
    path.write_bytes(bytes(header) + bytes(10_240))
    assert "expands to more than" in in_little_memory(lambda: image_folder(path))


def test_other_members_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(_folder(tmp_path / "set"), "set")
        notes = tarfile.TarInfo("notes.bin")
        notes.size = 256 << 20
        with (tmp_path / "zeros").open("wb+") as zeros:
            zeros.truncate(notes.size)  # takes no space
            archive.addfile(notes, zeros)
    assert in_little_memory(lambda: image_folder(path)) == "read"
    path.unlink()


def test_a_picture_that_expands(tmp_path: Path) -> None:
    (_folder(tmp_path) / "train/a/0.png").write_bytes(_png(9_000, 9_000))
    said = in_little_memory(lambda: image_folder(tmp_path))
    assert "train/a/0.png cannot be read as an image (it expands to more than" in said


@pytest.mark.parametrize("size", [1 << 30, 1 << 42])
def test_arrays_that_are_not_there(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            stream = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                stream, {"descr": "|u1", "fortran_order": False, "shape": (size, 1, 1, 1)}
            )
            file.writestr(f"{name}.npy", stream.getvalue() + b"1234")
    assert "x.npz is not an .npz file of plain arrays" in in_little_memory(lambda: array_file(path))


def test_arrays_that_expand(tmp_path: Path) -> None:
    path, stream = tmp_path / "x.npz", io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (1 << 28, 1, 1, 1)})
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("train_images.npy", "w", force_zip64=True) as out,
    ):
        out.write(stream.getvalue())
        for _ in range(96):
            out.write(ZEROS)
    assert "expands to more than" in in_little_memory(lambda: array_file(path))


@pytest.mark.parametrize("suffix", ["zip", "npz"])
def test_members_that_expand_together(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    names = (
        [f"train/a/{number}.png" for number in range(4)] if suffix == "zip" else ["train_images.npy", "test_images.npy"]
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in names:
            file.writestr(name, bytes(48 << 20))
    assert "expands to more than" in in_little_memory(lambda: load_dataset(str(path), "train"))


def test_arrays_of_other_names_are_not_read(tmp_path: Path) -> None:
    images, labels = np.zeros((20, 1, 8, 8), np.uint8), np.arange(20) % 2
    np.savez_compressed(
        tmp_path / "x.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels,
        notes=np.array([None, print], dtype=object), other=np.zeros(96 << 20, np.uint8),
    )  # fmt: skip
    assert in_little_memory(lambda: array_file(tmp_path / "x.npz")) == "read"


def test_the_whole_file_system_is_no_data_set() -> None:
    assert "/ is the whole file system. Give the folder of the images." in in_little_memory(
        lambda: load_dataset("/", "train")
    )


@pytest.mark.parametrize("change", ["encrypted", "another method"])
def test_odd_features_of_zip(tmp_path: Path, change: str) -> None:
    path, images = tmp_path / "x.npz", np.zeros((4, 1, 8, 8), np.uint8)
    labels = np.arange(4) % 2
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    data = bytearray(path.read_bytes())
    for place in range(len(data) - 4):
        if data[place : place + 4] == b"PK\x01\x02":  # an entry of the directory at the end
            if change == "encrypted":
                data[place + 8] |= 1
            else:
                data[place + 10] = 97
    path.write_bytes(data)
    assert "x.npz is not an .npz file of plain arrays" in in_little_memory(lambda: array_file(path))


def test_idx_of_many_dimensions(tmp_path: Path) -> None:
    for dimensions in (5, 65, 200, 255):
        (tmp_path / "x").write_bytes(bytes([0, 0, 8, dimensions]) + b"\0\0\0\1" * dimensions + b"a")
        assert "not a complete IDX file" in in_little_memory(lambda: read_idx(tmp_path / "x"))
    (tmp_path / "x").write_bytes(bytes([0, 0, 8, 3]) + b"\xff\xff\xff\xff" * 3)
    assert "not a complete IDX file" in in_little_memory(lambda: read_idx(tmp_path / "x"))


def test_idx_that_expands(tmp_path: Path) -> None:
    path = _bomb(tmp_path / "x.gz")
    assert "expands to more than" in in_little_memory(lambda: read_idx(path))


READERS: dict[str, Callable[[Path], object]] = {
    "x.npz": array_file,
    "x.tar": image_folder,
    "x.tar.gz": lambda path: load_dataset(str(path), "train"),
    "c.tar.gz": lambda path: cifar_archive(path, "cifar10"),
    "i.gz": read_idx,
    "i": read_idx,
}


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device", "link to itself"])
@pytest.mark.parametrize("name", READERS)
def test_things_that_are_no_files(tmp_path: Path, name: str, kind: str) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind != "device":
        path.symlink_to("/dev/zero" if kind == "link to a device" else path)
    said = in_little_memory(lambda: READERS[name](path))
    assert str(path) in said
    assert "Error:" not in said


def test_labels_far_beyond_the_images(tmp_path: Path) -> None:
    path, images = tmp_path / "x.npz", np.zeros((4, 1, 8, 8), np.uint8)
    labels = np.array([0, 1, 10**15, 1])
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    assert "highest label is 1000000000000000" in in_little_memory(lambda: array_file(path))


def test_what_is_honest_is_still_read(tmp_path: Path) -> None:
    """Black pictures expand a thousand times, but not far."""
    _folder(tmp_path)
    for number in range(3):
        (tmp_path / f"train/a/{number}.png").write_bytes(_png(8, 8))
    assert torch.equal(image_folder(tmp_path)["test"].labels, torch.tensor([0] * 6 + [1] * 6))
