"""Image folders, and tar archives of them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prunegym.errors import DataWarning, InvalidInputError
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.data.files.image_folders import image_folder
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
    told = pytest.warns(DataWarning, match=r": 1 \(no image by the name\), such as train/zebra/notes\.txt")
    with told if form == "folder" else contextlib.nullcontext():
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


def test_links_are_followed_in_folders(tmp_path: Path) -> None:
    members, pixels = folder_members()
    root = write_folder(tmp_path / "mine", members)
    (root / "test/zebra").rename(tmp_path / "elsewhere")  # a class
    (root / "test/zebra").symlink_to(tmp_path / "elsewhere")
    (root / "train").rename(tmp_path / "store")  # a split
    (root / "train").symlink_to(tmp_path / "store")
    (root / "test/ant/back").symlink_to(root)  # no end, if it were followed
    with pytest.warns(DataWarning, match=r": 1 \(a link back, or no file\), such as test/ant/back\."):
        data = image_folder(root)
    names = [f"test/{label}/{number}.png" for label in ("ant", "zebra") for number in range(3)]
    assert np.array_equal(data["test"].images.numpy(), np.stack([pixels[name].transpose(2, 0, 1) for name in names]))
    assert len(data["train"]) + len(data["validation"]) == 20
    (root / "train/cow").symlink_to(tmp_path / "gone")  # a class less would be worse
    with pytest.raises(InvalidInputError, match=r"mine/train/cow is a link to /.*/gone, where no image"):
        image_folder(root)


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_links_are_followed_in_archives(tmp_path: Path, ending: str) -> None:
    members, pixels = folder_members()
    root = write_folder(tmp_path / "mine", members)
    (root / "test/ant/0.png").unlink()
    os.link(root / "train/ant/5.png", root / "test/ant/0.png")
    (root / "test/ant/1.png").unlink()
    (root / "test/ant/1.png").symlink_to("../../train/zebra/2.png")
    path = tmp_path / f"mine.{ending}"
    with tarfile.open(path, "w:gz" if ending == "tar.gz" else "w") as archive:
        for part in ("test", "train"):
            archive.add(root / part, part)
    names = ["train/ant/5.png", "train/zebra/2.png", "test/ant/2.png", *(f"test/zebra/{k}.png" for k in range(3))]
    test = image_folder(path)["test"]
    assert np.array_equal(test.images.numpy(), np.stack([pixels[name].transpose(2, 0, 1) for name in names]))
    for name, target in (("train/cow", "/store/cow"), ("train/ant/x.png", "../x.png")):
        with tarfile.open(path, "w") as archive:
            archive.add(root, ".")
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
        with pytest.raises(InvalidInputError, match=rf"{name} is a link to .*made with tar --dereference"):
            image_folder(path)


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_hidden_folders_and_files_are_no_data(tmp_path: Path, form: str) -> None:
    members, _ = folder_members()
    hidden = ("train/.ipynb_checkpoints/0.png", "test/ant/._0.png", "__MACOSX/train/ant/0.png", ".git/train/ant/0.png")
    members |= dict.fromkeys(hidden, members["train/ant/0.png"])
    path = tmp_path / "mine.tar"
    path = write_folder(tmp_path / "mine", members) if form == "folder" else write_tar(path, members)
    with pytest.warns(DataWarning, match=r"\(hidden\), such as"):
        data = image_folder(path)
    assert (data["train"].classes, len(data["test"])) == (("ant", "zebra"), 6)
    # A hidden folder above the data set hides nothing.
    plain = folder_members()[0]
    below = {f"home/.cache/mine/{name}": content for name, content in plain.items()}
    assert len(image_folder(write_tar(tmp_path / "deep.tar", below))["test"]) == 6
    assert len(image_folder(write_folder(tmp_path / ".cache", plain))["test"]) == 6


@pytest.mark.parametrize(("ending", "form"), [("tif", "TIFF"), ("GIF", "GIF"), ("ppm", "PPM"), ("webp", "WEBP")])
def test_other_formats_are_read_as_pillow_reads_them(tmp_path: Path, ending: str, form: str) -> None:
    _, pixels = folder_members()
    members = {}
    for name, array in pixels.items():
        buffer = io.BytesIO()
        options = {"save_all": True, "append_images": [Image.new("RGB", (12, 12))]} if form in ("GIF", "TIFF") else {}
        Image.fromarray(array).save(buffer, form, **options)
        members[name.replace("png", ending)] = buffer.getvalue()
    test = image_folder(write_folder(tmp_path, members))["test"]
    first = Image.open(io.BytesIO(members[f"test/ant/1.{ending}"])).convert("RGB")  # the first frame
    assert np.array_equal(test.images[1].numpy(), np.asarray(first).transpose(2, 0, 1))


def test_sixteen_bits_in_a_pgm(tmp_path: Path) -> None:
    _, pixels = folder_members("L")
    # By its description: a header, then two bytes a pixel, the higher first.
    pgm = {
        name.replace("png", "pgm"): b"P5\n12 12\n65535\n" + (array.astype(">u2") * 256 + 200).astype(">u2").tobytes()
        for name, array in pixels.items()
    }
    test = image_folder(write_folder(tmp_path, pgm))["test"]
    assert np.array_equal(test.images[0, 0].numpy(), pixels["test/ant/0.png"])


@pytest.mark.parametrize("coloured", ["train/zebra/9.png", "test/ant/0.png"])
def test_grey_among_coloured_images(tmp_path: Path, coloured: str) -> None:
    grey, pixels = folder_members("L")
    colour = RANDOM.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    data = image_folder(write_folder(tmp_path, {**grey, coloured: png(colour)}))
    assert {part.image_shape for part in data.values()} == {(3, 12, 12)}
    assert np.array_equal(data["test"].images[4].numpy(), np.stack([pixels["test/zebra/1.png"]] * 3))
    whole = torch.cat([part.images for part in data.values()]).numpy()
    assert any(np.array_equal(image, colour.transpose(2, 0, 1)) for image in whole)


@pytest.mark.parametrize("folder", ["val", "valid", "validation"])
def test_a_validation_folder_is_the_validation_split(tmp_path: Path, folder: str) -> None:
    members, pixels = folder_members()
    held = {f"{folder}/ant/{number}.png": RANDOM.integers(0, 256, (12, 12, 3), dtype=np.uint8) for number in range(4)}
    members |= {name: png(array) for name, array in held.items()}
    data = image_folder(write_folder(tmp_path / "mine", members))
    assert (len(data["train"]), len(data["test"]), data["validation"].split) == (20, 6, "validation")
    expected = np.stack([array.transpose(2, 0, 1) for array in held.values()])
    assert np.array_equal(data["validation"].images.numpy(), expected)
    assert data["validation"].labels.tolist() == [0] * 4
    write_folder(tmp_path / "mine", {f"{other}/ant/0.png": png(pixels["test/ant/0.png"]) for other in ("val", "valid")})
    with pytest.raises(InvalidInputError, match="has the folders val and valid"):
        image_folder(tmp_path / "mine")


def test_images_in_other_places_are_counted(tmp_path: Path) -> None:
    members, _ = folder_members()
    more = ("train/ant/more/0.png", "train/ant/more/1.png", "test/0.png", "preview.png")
    root = write_folder(tmp_path / "mine", {**members, **dict.fromkeys(more, members["train/ant/0.png"])})
    with pytest.warns(DataWarning, match=r": 4 \(not at <split>/<class>/<image>\), such as preview\.png\."):
        assert len(image_folder(root)["test"]) == 6
