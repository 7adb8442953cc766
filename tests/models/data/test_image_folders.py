"""Image folders, and tar archives of them."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.data.readers import image_folder
from tests.models.data.data_files import RANDOM, png, write_tar

pytestmark = pytest.mark.usefixtures("fresh_datasets")


def folder_members(mode: str = "RGB", size: int = 12) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    shape = (size, size, 3) if mode == "RGB" else (size, size)
    pixels = {
        f"{part}/{label}/{number}.png": RANDOM.integers(0, 256, shape, dtype=np.uint8)
        for part, count in (("train", 10), ("test", 3))
        for label in ("zebra", "ant")
        for number in range(count)
    }
    return {name: png(array) for name, array in pixels.items()}, pixels


def write_folder(path: Path, members: dict[str, bytes]) -> Path:
    for name, data in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("form", ["folder", "tar", "tar.gz", "tar with a top folder"])
def test_image_folder(tmp_path: Path, form: str, mode: str) -> None:
    members, pixels = folder_members(mode)
    if form == "folder":
        write_folder(tmp_path / "mine", {**members, "train/zebra/notes.txt": b"no image", "README.md": b"x"})
    else:
        ending, _, top = form.partition(" ")
        prefix = "./mine/" if top else "./"
        write_tar(tmp_path / f"mine.{ending}", {prefix + name: data for name, data in members.items()})
    test = load_dataset("mine", "test", tmp_path)
    assert test.classes == ("ant", "zebra")
    assert test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    names = [f"test/{label}/{number}.png" for label in ("ant", "zebra") for number in range(3)]
    for image, name in zip(test.images.numpy(), names, strict=True):
        expected = pixels[name].transpose(2, 0, 1) if mode == "RGB" else pixels[name][None]
        assert np.array_equal(image, expected)
    train, validation = (load_dataset("mine", split, tmp_path) for split in ("train", "validation"))
    assert (len(train), len(validation), train.name) == (18, 2, "mine")


def test_image_folder_by_path_and_jpeg_like_pil(tmp_path: Path) -> None:
    _, pixels = folder_members()
    jpegs = {}
    for name, array in pixels.items():
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "JPEG")
        jpegs[name.replace("png", "JPG")] = buffer.getvalue()
    test = load_dataset(str(write_folder(tmp_path / "mine", jpegs)), "test")
    expected = np.asarray(Image.open(io.BytesIO(jpegs["test/ant/1.JPG"])))
    assert np.array_equal(test.images[1].numpy(), expected.transpose(2, 0, 1))


def test_palette_and_alpha_images_become_rgb(tmp_path: Path) -> None:
    members, pixels = folder_members()
    rgba = np.dstack([pixels["test/ant/0.png"], np.full((12, 12), 255, np.uint8)])
    members["test/ant/0.png"] = png(rgba)
    test = load_dataset(str(write_folder(tmp_path / "mine", members)), "test")
    assert np.array_equal(test.images[0].numpy(), pixels["test/ant/0.png"].transpose(2, 0, 1))


def test_bad_image_folders(tmp_path: Path) -> None:
    members, _ = folder_members()
    small = png(np.zeros((5, 12, 3), np.uint8))
    whole = members["train/ant/3.png"]
    cases = {
        "{path} has no images under test/<class>/. Both train and test are needed.": {
            name: data for name, data in members.items() if name.startswith("train")
        },
        "{path}/test has class 'cow', which train lacks: ant, zebra.": {**members, "test/cow/1.png": small},
        "{path}/train/ant/3.png is (3, 5, 12), the images before it are (3, 12, 12) (channels, height, width). "
        "Resize all images to one size first.": {**members, "train/ant/3.png": small},
        "{path}/train/ant/3.png cannot be read as an image (": {**members, "train/ant/3.png": b"no image"},
        "{path}/train/ant/3.png cannot be read as an image ( ": {**members, "train/ant/3.png": whole[:-40]},
        "{path}/train/ant/3.png cannot be read as an image (  ": {
            **members,
            "train/ant/3.png": whole[:40] + b"\xff\xff\xff" + whole[43:],
        },
    }
    for number, (message, broken) in enumerate(cases.items()):
        path = write_folder(tmp_path / str(number), broken)
        with pytest.raises(InvalidInputError, match="^" + re.escape(message.rstrip().format(path=path))):
            image_folder(path)


def test_sixteen_bits_a_pixel_become_the_highest_eight(tmp_path: Path) -> None:
    members, pixels = folder_members("L")
    for name, array in pixels.items():
        buffer = io.BytesIO()
        Image.fromarray(array.astype(np.uint16) * 257).save(buffer, "PNG")
        members[name] = buffer.getvalue()
    train = image_folder(write_folder(tmp_path, members))["test"]
    names = sorted(name for name in pixels if name.startswith("test/"))
    assert np.array_equal(train.images[:, 0].numpy(), np.stack([pixels[name] for name in names]))


def test_a_folder_above_two_data_sets_is_none(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_folder(tmp_path / name, folder_members()[0])
    with pytest.raises(InvalidInputError, match=r"has several data sets: one, two\. Give the path of one"):
        image_folder(tmp_path)
