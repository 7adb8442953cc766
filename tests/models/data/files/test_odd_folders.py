"""Folders and files as people make them: each loads, or is refused with a message that names the cause."""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset_registry import load_dataset
from tests.models.data.data_files import RANDOM

pytestmark = [
    pytest.mark.usefixtures("fresh_datasets"),
    pytest.mark.filterwarnings("ignore::prunegym.errors.DataWarning"),
]


def image(height: int = 20, width: int = 24) -> Image.Image:
    return Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8))


def made(
    root: Path,
    splits: Sequence[str] = ("train", "test"),
    classes: Sequence[str] = ("a", "b"),
    ending: str = "jpg",
    make: Callable[[], Image.Image] = image,
) -> Path:
    for split in splits:
        for label in classes:
            for number in range(6):
                file = root / split / label / f"{number}.{ending}"
                file.parent.mkdir(parents=True, exist_ok=True)
                make().save(file)
    return root


def with_file(root: Path, name: str, content: bytes | Image.Image) -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    content.save(root / name) if isinstance(content, Image.Image) else (root / name).write_bytes(content)
    return root


def truncated(root: Path) -> Path:
    file = made(root) / "train/a/0.jpg"
    file.write_bytes(file.read_bytes()[:200])
    return root


def png_named_jpg(root: Path) -> Path:
    image().save(made(root) / "train/a/x.png")
    (root / "train/a/x.png").rename(root / "train/a/x.jpg")
    return root


def mac_zip(root: Path) -> Path:
    made(root)
    with zipfile.ZipFile(root.with_suffix(".zip"), "w") as archive:
        for file in root.rglob("*.jpg"):
            archive.write(file, f"photos/{file.relative_to(root)}")
            archive.writestr(f"__MACOSX/photos/{file.relative_to(root)}", b"x")
    return root.with_suffix(".zip")


def encrypted_zip(root: Path) -> Path:
    path = mac_zip(root)
    data = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(mark)
        while place >= 0:
            data[place + flags] |= 1
            place = data.find(mark, place + 4)
    path.write_bytes(bytes(data))
    return path


def tar_xz(root: Path) -> Path:
    with tarfile.open(root.with_suffix(".tar.xz"), "w:xz") as archive:
        archive.add(made(root), "set")
    return root.with_suffix(".tar.xz")


def no_archive(root: Path) -> Path:
    root.with_suffix(".tar").write_bytes(b"nothing")
    return root.with_suffix(".tar")


def linked_back(root: Path) -> Path:
    (made(root) / "train/a/self").symlink_to(root)
    return root


def dangling(root: Path) -> Path:
    (made(root) / "train/a/x.jpg").symlink_to("/nowhere.jpg")
    return root


def pipe(root: Path) -> Path:
    os.mkfifo(made(root) / "train/a/p.jpg")
    return root


def missing_class_in_test(root: Path) -> Path:
    shutil.rmtree(made(root) / "test/b")
    return root


def two_of_each_class(root: Path) -> Path:
    for label in "ab":
        for number in range(2):
            with_file(root, f"{label}/{number}.png", image())
    return root


def flat(root: Path) -> Path:
    return with_file(root, "0.png", image())


def empty(root: Path) -> Path:
    root.mkdir()
    return root


def sixteen_bits() -> Image.Image:
    return Image.fromarray(RANDOM.integers(0, 65_536, (20, 24), dtype=np.uint16))


def floats() -> Image.Image:
    return Image.fromarray(RANDOM.random((20, 24)).astype(np.float32))


LOAD: dict[str, Callable[[Path], Path]] = {
    "names in other scripts": lambda root: made(root, classes=("café", "東京 dog")),
    "splits in capitals": lambda root: made(root, splits=("Train", "TEST")),
    "training, testing": lambda root: made(root, splits=("training", "testing")),
    "endings in capitals": lambda root: made(root, ending="JPG"),
    "jfif": lambda root: made(root, ending="jfif"),
    "animated gif": lambda root: made(root, ending="gif"),
    "webp": lambda root: made(root, ending="webp"),
    "jp2": lambda root: made(root, ending="jp2"),
    "CMYK": lambda root: made(root, make=lambda: image().convert("CMYK")),
    "grey with transparency": lambda root: made(root, ending="png", make=lambda: image().convert("LA")),
    "RGB with transparency": lambda root: made(root, ending="png", make=lambda: image().convert("RGBA")),
    "one bit": lambda root: made(root, ending="png", make=lambda: image().convert("1")),
    "16 bits": lambda root: made(root, ending="tif", make=sixteen_bits),
    "one class": lambda root: made(root, classes=("a",)),
    "a folder above": lambda root: made(root / "inner/deep").parent.parent,
    "a huge image": lambda root: with_file(made(root), "train/a/h.jpg", image(2000, 3000)),
    "a tiny image": lambda root: with_file(made(root), "train/a/t.png", image(1, 1)),
    "a wide image": lambda root: with_file(made(root), "train/a/w.png", image(2, 900)),
    "files of the system": lambda root: with_file(made(root), "train/a/Thumbs.db", b"x"),
    "PNG named jpg": png_named_jpg,
    "zip from a Mac": mac_zip,
    "tar.xz": tar_xz,
    "a link back": linked_back,
    "a pipe": pipe,
    "a class that test lacks": missing_class_in_test,
}
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "only train": (lambda root: made(root, splits=("train",)), "no images under test/<class>/"),
    "only test": (lambda root: made(root, splits=("test",)), "no images under train/<class>/"),
    "flat": (flat, "no images under train/<class>/"),
    "empty": (empty, "no images under train/<class>/"),
    "two of each class": (two_of_each_class, "too few images to split"),
    "no bytes": (lambda root: with_file(made(root), "train/a/z.jpg", b""), "z.jpg cannot be read as an image"),
    "a page of an error": (lambda root: with_file(made(root), "test/a/z.png", b"<html>404"), "z.png cannot be read"),
    "truncated": (truncated, "0.jpg cannot be read as an image"),
    "floats": (lambda root: made(root, ending="tif", make=floats), "32 bits per pixel"),
    "encrypted zip": (encrypted_zip, "is encrypted"),
    "no archive": (no_archive, "is not a complete tar archive"),
    "a class that train lacks": (
        lambda root: with_file(made(root), "test/c/0.jpg", image()),
        "class 'c', which is not in train",
    ),
    "a dangling link": (dangling, "x.jpg is a link to /nowhere.jpg"),
    "val and valid": (lambda root: made(root, splits=("train", "val", "valid", "test")), "Keep one for validation"),
}


@pytest.mark.parametrize("name", LOAD)
def test_it_loads(name: str, tmp_path: Path) -> None:
    path = LOAD[name](tmp_path / "mine")
    splits = {split: load_dataset(str(path), split, image_size=16) for split in ("train", "validation", "test")}
    classes = 1 if name == "one class" else 2
    assert len(splits["test"]) == (6 if name == "a class that test lacks" else 6 * classes)
    assert 6 * classes <= len(splits["train"]) + len(splits["validation"]) <= 6 * classes + 1
    assert splits["train"].image_shape == (1 if name == "16 bits" else 3, 16, 16)


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    path = make(tmp_path / "mine")
    with pytest.raises(InvalidInputError, match=message):
        load_dataset(str(path), "train", image_size=16)
