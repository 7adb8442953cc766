"""Files of data sets with random damage: each is read as a data set of the right form, or refused with a reason."""

from __future__ import annotations

import functools
import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from PIL import Image

from prunegym.models.data.files.image_folders import image_folder
from prunegym.models.data.files.readers import array_file, cifar_archive, read_idx
from tests.damage import Change, bounded, changes, damaged, refused

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
FORMATS = ("png", "jpeg", "bmp", "gif", "tiff", "webp", "ppm")


def _image(number: int, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS[number]).save(stream, kind)
    return stream.getvalue()


def _idx(images: np.ndarray[Any, Any]) -> bytes:
    return bytes([0, 0, 8, images.ndim]) + b"".join(size.to_bytes(4, "big") for size in images.shape) + images.tobytes()


def _tar(files: dict[str, bytes], mode: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def _npz(**options: Any) -> bytes:
    stream = io.BytesIO()
    images, labels = PIXELS.transpose(0, 3, 1, 2), np.arange(12) % 3
    np.savez_compressed(
        stream, train_images=images, train_labels=labels, test_images=images, test_labels=labels, **options
    )
    return stream.getvalue()


def _folder(kind: str) -> dict[str, bytes]:
    names = [f"{part}/{label}/{k}.{kind}" for part in ("train", "test") for label in "ab" for k in range(3)]
    return {name: _image(number, kind) for number, name in enumerate(names)}


def _cifar() -> dict[str, bytes]:
    rows = np.concatenate([np.arange(3)[:, None], np.zeros((3, 3072))], 1).astype(np.uint8).tobytes()
    files = {f"data_batch_{k}.bin": rows * 4 for k in range(1, 6)} | {"test_batch.bin": rows}
    return {f"cifar/{name}": data for name, data in files.items()} | {"cifar/batches.meta.txt": b"a b c\n"}


Reader = Callable[[Path], Any]
WHOLE: dict[str, tuple[str, Reader, Callable[[], bytes]]] = {
    "idx": ("x", read_idx, lambda: _idx(PIXELS)),
    "idx.gz": ("x.gz", read_idx, lambda: gzip.compress(_idx(PIXELS), mtime=0)),
    "npz": ("x.npz", array_file, _npz),
    "cifar": ("c.tar.gz", lambda path: cifar_archive(path, "cifar10"), lambda: _tar(_cifar(), "w:gz")),
    "tar": ("set.tar", image_folder, lambda: _tar(_folder("png"), "w")),
    "tar.gz": ("set.tar.gz", image_folder, lambda: _tar(_folder("png"), "w:gz")),
    "tar.bz2": ("set.tar.bz2", image_folder, lambda: _tar(_folder("jpeg"), "w:bz2")),
    "tar.xz": ("set.tar.xz", image_folder, lambda: _tar(_folder("bmp"), "w:xz")),
}  # fmt: skip


@functools.cache
def _whole(kind: str) -> bytes:
    return WHOLE[kind][2]()


def _check(found: Any) -> None:
    """Check the form of what was read."""
    if isinstance(found, torch.Tensor):
        assert found.dtype == torch.uint8
        return
    for part in found.values():
        assert len(part.images) == len(part.labels) > 0
        assert part.batch(torch.arange(len(part))).isfinite().all()
        assert 0 <= int(part.labels.min()) <= int(part.labels.max()) < len(part.classes)


@pytest.mark.parametrize("kind", WHOLE)
@bounded
@given(made=changes)
def test_single_files(kind: str, tmp_path: Path, made: list[Change]) -> None:
    name, read, _ = WHOLE[kind]
    path = tmp_path / name
    path.write_bytes(_whole(kind))
    assert refused(lambda: read(path)) is not None
    path.write_bytes(damaged(_whole(kind), made))
    found = refused(lambda: read(path))
    if found is not None:
        _check(found)


@pytest.mark.parametrize("kind", FORMATS)
@bounded
@given(made=changes)
def test_an_image_of_a_folder(kind: str, tmp_path: Path, made: list[Change]) -> None:
    for name, content in _folder(kind).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / f"train/b/1.{kind}").write_bytes(damaged(_image(4, kind), made))
    found = refused(lambda: image_folder(tmp_path))
    if found is not None:
        _check(found)
