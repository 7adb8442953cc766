"""Folders and files as people make them: each loads, or is refused with a message that names the cause."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunegym.errors import DataWarning, InvalidInputError
from prunegym.models.data.dataset_registry import load_dataset
from tests.models.data.data_files import RANDOM

pytestmark = [
    pytest.mark.usefixtures("fresh_datasets"),
    pytest.mark.filterwarnings("ignore::prunegym.errors.DataWarning"),
]


def image(height: int = 20, width: int = 24) -> Image.Image:
    return Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8))


def jpeg(**options: object) -> bytes:
    stream = io.BytesIO()
    image().save(stream, "JPEG", **options)
    return stream.getvalue()


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


def windows_zip(root: Path) -> Path:
    made(root)
    with zipfile.ZipFile(root.with_suffix(".zip"), "w") as archive:
        for file in root.rglob("*"):
            member = zipfile.ZipInfo("x")  # the constructor itself would turn backslashes of Windows around
            name = str(file.relative_to(root)).replace("/", "\\")
            member.filename = f"photos\\{name}" + "\\" * file.is_dir()
            archive.writestr(member, b"" if file.is_dir() else file.read_bytes())
    return root.with_suffix(".zip")


def cut_zip(root: Path) -> Path:
    path = mac_zip(root)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def letters_of_a_mac(root: Path) -> Path:
    made(root, splits=("train",), classes=(unicodedata.normalize("NFC", "Bär"), "b"))
    return made(root, splits=("test",), classes=(unicodedata.normalize("NFD", "Bär"), "b"))


def small_copies(root: Path) -> Path:
    with_file(made(root), "train/@eaDir/a/x.jpg", image())
    with_file(root, "train/a/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", image())
    return with_file(root, "train/@eaDir/y.jpg", image())


def frames(root: Path, ending: str, kind: str) -> Path:
    for file in made(root, ending="png").rglob("*.png"):
        Image.open(file).save(file.with_suffix(ending), format=kind, save_all=True, append_images=[image()])
        file.unlink()
    return root


def no_utf8(root: Path) -> Path:
    for split in "train", "test":
        (made(root) / split / os.fsdecode(b"b\xe4r")).mkdir(exist_ok=True)
        shutil.copy(root / "train/a/0.jpg", root / split / os.fsdecode(b"b\xe4r") / "0.jpg")
    return root


def directly_in(root: Path, *folders: str) -> Path:
    for folder in folders:
        for number in range(6):
            with_file(root, f"{folder}/{number}.jpg", image())
    return root


def a_file(root: Path, name: str, content: bytes) -> Path:
    root.mkdir()
    (root / name).write_bytes(content)
    return root / name


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
    "classes named as splits": lambda root: made(root, classes=("train", "test")),
    "zip from Windows": windows_zip,
    "letters as a Mac writes them": letters_of_a_mac,
    "small copies of network storage": small_copies,
    "apng": lambda root: frames(root, ".apng", "PNG"),
    "two pictures of a camera": lambda root: frames(root, ".mpo", "MPO"),
    "pages of TIFF": lambda root: frames(root, ".tiff", "TIFF"),
    "animated webp": lambda root: frames(root, ".webp", "WEBP"),
    "j2k": lambda root: made(root, ending="j2k"),
    "tga": lambda root: made(root, ending="TGA"),
    "a photo of a phone": lambda root: with_file(made(root), "train/a/IMG_1.HEIC", b"\0\0\0\x18ftypheic"),
    "LAB": lambda root: made(root, ending="tif", make=lambda: image().convert("LAB")),
    "EXIF that is none": lambda root: with_file(made(root), "train/a/e.jpg", jpeg(exif=b"Exif\0\0nothing")),
}
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "only train": (lambda root: made(root, splits=("train",)), "no images under test/<class>/"),
    "only test": (lambda root: made(root, splits=("test",)), "no images under train/<class>/"),
    "flat": (flat, "no images under train/<class>/.* It has 1 images, such as 0.png"),
    "empty": (empty, "no images under train/<class>/.* It has no files"),
    "one folder": (lambda root: directly_in(root, "a"), "6 images, such as a/0.jpg"),
    "another name of a split": (lambda root: made(root, splits=("train", "dev")), "24 images, such as dev/a/0.jpg"),
    "no endings": (lambda root: with_file(root, "train/a/n0195", b"x"), "1 without ending"),
    "tables": (lambda root: with_file(root, "data/train-0.parquet", b"PAR1"), r"other files \(1 .parquet\)"),
    "paths in a table": (
        lambda root: with_file(directly_in(root, "images"), "train.csv", b"path,label"),
        r"6 images, such as images/0.jpg, and other files \(1 .csv\)",
    ),
    "images directly in splits": (lambda root: directly_in(root, "train", "test"), "test and train, which seem to be"),
    "splits with years": (lambda root: directly_in(root, "train2017", "val2017"), "which seem to be splits"),
    "splits below images": (lambda root: directly_in(root, "images/train", "images/val"), "which seem to be splits"),
    "splits with other names": (
        lambda root: made(root, splits=("seg_train", "seg_test")),
        "several data sets: seg_test, seg_train",
    ),
    "classes of classes": (
        lambda root: made(root, splits=("animals", "things"), classes=("a", "b")),
        "several data sets: animals, things",
    ),
    "classes below splits": (
        lambda root: made(root, splits=("train/animals", "test/animals")),
        "several data sets: test/animals",
    ),
    "a folder that is not UTF-8": (no_utf8, "whose name is not UTF-8. Rename it"),
    "7z": (lambda root: a_file(root, "x.7z", b"7z\xbc\xaf\x27\x1c" * 99), "neither a tar nor a zip archive"),
    "a table": (lambda root: a_file(root, "train.csv", b"path,label\n"), "from_arrays and image_files"),
    "half a zip": (cut_zip, "cannot be read as a zip archive"),
    "a pointer of git-lfs": (
        lambda root: with_file(made(root), "train/a/0.jpg", b"version https://git-lfs"),
        "0.jpg cannot be read",
    ),
    "two of each class": (two_of_each_class, "too few images to split"),
    "no bytes": (
        lambda root: with_file(made(root), "train/a/z.jpg", b""),
        r"z.jpg cannot be read as an image \(it is empty\)",
    ),
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


def test_what_is_left_out_or_of_little_use_is_told(tmp_path: Path) -> None:
    with_file(made(tmp_path / "mine"), "train/a/IMG_1.HEIC", b"x")
    with pytest.warns(DataWarning, match=r"1 \(of a format that is not read: convert it to JPEG or PNG\), such as"):
        load_dataset(str(tmp_path / "mine"), "train")
    with pytest.warns(DataWarning, match="the class 'a', so their accuracy says nothing"):
        load_dataset(str(made(tmp_path / "one", classes=("a",))), "train")


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    path = make(tmp_path / "mine")
    with pytest.raises(InvalidInputError, match=message):
        load_dataset(str(path), "train", image_size=16)
