"""Image folders, and tar archives of them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from prunegym.errors import DataWarning, InvalidInputError
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.data.files.image_folders import image_folder
from prunegym.models.data.sources.lazy_images import LazyImages
from prunegym.models.data.transform import Transform
from prunegym.models.storage.weights import fingerprint_of
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
    told = pytest.warns(DataWarning, match=r": 1 \(not an image by its name\), such as train/zebra/notes\.txt")
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
        "{path} has no images under test/<class>/. Both train and test are needed, or folders of classes alone.": {
            name: data for name, data in members.items() if name.startswith("train")
        },
        "{path}/test has class 'cow', which is not in train: ant, zebra.": {**members, "test/cow/1.png": small},
        "{path}/train/ant/3.png is (3, 5, 12), other images are (3, 12, 12) (channels, height, width). Give "
        "image_size (--image-size) to bring all images to one size.": {**members, "train/ant/3.png": small},
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
    with pytest.warns(DataWarning, match=r": 1 \(a link to a folder above, or no file\), such as test/ant/back\."):
        data = image_folder(root)
    names = [f"test/{label}/{number}.png" for label in ("ant", "zebra") for number in range(3)]
    assert np.array_equal(data["test"].images.numpy(), np.stack([pixels[name].transpose(2, 0, 1) for name in names]))
    assert len(data["train"]) + len(data["validation"]) == 20
    (root / "train/cow").symlink_to(tmp_path / "gone")  # a class less would be worse
    with pytest.raises(InvalidInputError, match=r"mine/train/cow is a link to /.*/gone, which does not exist"):
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
        with pytest.raises(InvalidInputError, match=rf"{name} is a link to .*use tar --dereference"):
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


def by_class(members: dict[str, bytes]) -> dict[str, bytes]:
    """The same images without splits."""
    return {name.partition("/")[2].replace("/", "/" + name[:2]): data for name, data in members.items()}


@pytest.mark.parametrize("form", ["folder", "tar", "zip", "zip with a top folder"])
def test_classes_alone_are_split_by_a_fixed_draw(tmp_path: Path, form: str) -> None:
    members = by_class(folder_members()[0])
    if form == "folder":
        path = write_folder(tmp_path / "mine", {**members, "readme.txt": b"x"})
    elif form == "tar":
        path = write_tar(tmp_path / "mine.tar", members)
    else:
        path = tmp_path / "mine.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(f"mine/{name}" if "top" in form else name, data)
    data = image_folder(path)
    # 13 images of each of two classes: round(2.6) for testing, round(1.3) for validation.
    assert {split: len(part) for split, part in data.items()} == {"train": 18, "validation": 2, "test": 6}
    assert all(part.labels.bincount().tolist() == [len(part) // 2] * 2 for part in data.values())
    assert all("20% of each class the test and 10%" in part.notes[0] for part in data.values())
    seen = [image.tobytes() for part in data.values() for image in part.images.numpy()]
    assert len(set(seen)) == 26
    again = image_folder(path)
    assert all(torch.equal(part.images, again[split].images) for split, part in data.items())


def test_broken_links_and_other_places_are_told_without_splits_too(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine", by_class(folder_members()[0]))
    write_folder(root, {"ant/more/0.png": png(np.zeros((12, 12, 3), np.uint8)), "ant/notes.txt": b""})
    with pytest.warns(DataWarning, match=r"1 \(not an image by its name\), such as ant/notes.txt; 1 \(not at"):
        image_folder(root)
    (root / "cow").mkdir()  # a class whose images are missing
    with pytest.warns(DataWarning, match=r"1 \(an empty folder\), such as cow"):
        image_folder(root)
    (root / "ant/x.png").symlink_to("gone")
    with pytest.raises(InvalidInputError, match=r"ant/x\.png is a link to gone"):
        image_folder(root)


def test_val_without_test_is_the_test_split(tmp_path: Path) -> None:
    members = {name.replace("test/", "Val/"): data for name, data in folder_members()[0].items()}
    data = image_folder(write_folder(tmp_path, members))
    assert {split: len(part) for split, part in data.items()} == {"train": 18, "validation": 2, "test": 6}
    assert data["test"].split == "test"
    assert "those for validation are the test split" in data["train"].notes[0]


def photos(root: Path) -> dict[str, Image.Image]:
    """A folder of JPEGs of many sizes, some turned by EXIF, some grey."""
    made = {}
    for part, count in (("train", 10), ("val", 3), ("test", 4)):
        for label in ("cat", "dog"):
            for number in range(count):
                width, height = RANDOM.integers(20, 60, 2)
                image = Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8))
                exif = image.getexif()
                exif[0x112] = int(RANDOM.integers(1, 9))
                path = root / part / label / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                (image.convert("L") if number == 1 else image).save(path, exif=exif)
                made[f"{part}/{label}/{number}.jpg"] = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    return made


def test_photographs_of_mixed_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = photos(tmp_path / "photos")
    with pytest.raises(InvalidInputError, match=r"other images are .*--image-size"):
        load_dataset("photos", "train", tmp_path)
    test = load_dataset("photos", "test", tmp_path, image_size=(16, 24), resize=30)
    assert (test.image_shape, test.path) == ((3, 16, 24), str(tmp_path / "photos"))
    assert test.transform == Transform((16, 24), 30)
    for number in range(4):
        image = made[f"test/dog/{number}.jpg"]
        shorter = min(image.size)
        resized = image.resize(tuple(30 * side // shorter for side in image.size), Image.Resampling.BILINEAR)
        left, top = round((resized.width - 24) / 2), round((resized.height - 16) / 2)
        expected = np.asarray(resized.crop((left, top, left + 24, top + 16))).transpose(2, 0, 1)
        assert np.array_equal(test.images[4 + number].numpy(), expected)
    # Larger folders are decoded as they are needed: the same images, the same splits.
    monkeypatch.setattr("prunegym.models.data.files.image_folders.IN_MEMORY", 0)
    splits = image_folder(tmp_path / "photos", test.transform)
    for split, part in splits.items():
        assert isinstance(part.images, LazyImages)
        now = load_dataset("photos", split, tmp_path, image_size=(16, 24), resize=30)
        assert torch.equal(part.images[:], now.images[:])
        assert torch.equal(part.labels, now.labels)
    one, other = splits["train"].sample(5), splits["train"].part(":4")
    assert torch.equal(one.batch(torch.arange(5)), splits["train"].batch(one.places))  # type: ignore[arg-type]
    assert fingerprint_of(one) != fingerprint_of(other)
    assert fingerprint_of(one) == fingerprint_of(image_folder(tmp_path / "photos", test.transform)["train"].sample(5))
    assert fingerprint_of(one) != fingerprint_of(
        image_folder(tmp_path / "photos", Transform((16, 24)))["train"].sample(5)
    )


def test_a_damaged_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in folder_members()[0].items():
            archive.writestr(name, data)
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(bytes(data))
    with pytest.raises(InvalidInputError, match=r"mine\.zip cannot be read as a zip archive"):
        image_folder(path)
