"""Data sets by name and path: digits, IDX, CIFAR archives in the official layout, image folders, array files."""

from __future__ import annotations

import gzip
import io
import re
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from prunegym.models.errors import InvalidInputError, MissingDataError, UnknownNameError
from prunegym.models.formats import array_file, cifar_archive, image_folder, read_idx
from prunegym.models.sources import load_dataset

FASHION = Path("/usr/share/datasets/fashion-mnist")
RANDOM = np.random.default_rng(0)

pytestmark = pytest.mark.usefixtures("fresh_datasets")


def idx_bytes(array: np.ndarray) -> bytes:
    """Yann LeCun's description: two zero bytes, type 8, the number of dimensions, big-endian sizes, the data."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# --- digits ----------------------------------------------------------------------------------------------------------


def test_digits_are_those_of_sklearn_each_once() -> None:
    bundle = load_digits()
    pairs = zip(bundle.images, bundle.target, strict=True)
    expected = sorted((tuple(image.ravel().astype(int)), int(label)) for image, label in pairs)
    found = []
    for split in ("train", "validation", "test"):
        part = load_dataset("digits", split)
        assert part.image_shape == (1, 8, 8)
        grey = (part.images[:, 0].numpy() * (16 / 255)).round().astype(int)
        found += [(tuple(image.ravel()), int(label)) for image, label in zip(grey, part.labels, strict=True)]
    assert sorted(found) == expected


def test_digits_need_no_folder_and_come_in_a_fixed_order(tmp_path: Path) -> None:
    test = load_dataset("digits", "test", tmp_path / "nowhere")
    assert len(test) == 600
    assert test.labels[:10].tolist() == [6, 5, 5, 7, 9, 9, 8, 4, 6, 8]
    assert len(set(test.labels.tolist())) == 10


# --- IDX -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("folder", ["", "mnist"])
def test_mnist_from_idx_files(tmp_path: Path, ending: str, folder: str) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    pixels, labels = {}, {}
    for part, count in (("train", 50), ("t10k", 20)):
        pixels[part] = RANDOM.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels[part] = RANDOM.integers(0, 10, count, dtype=np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", pixels[part]), (f"{part}-labels-idx1-ubyte", labels[part])):
            data = idx_bytes(array)
            (tmp_path / folder / (name + ending)).write_bytes(gzip.compress(data) if ending else data)
    test = load_dataset("mnist", "test", tmp_path)
    assert np.array_equal(test.images.numpy(), pixels["t10k"][:, None])
    assert np.array_equal(test.labels.numpy(), labels["t10k"])
    train = load_dataset("mnist", "train", tmp_path)
    assert (len(train), len(load_dataset("mnist", "validation", tmp_path))) == (45, 5)
    rows = {image.tobytes(): label for image, label in zip(pixels["train"], labels["train"], strict=True)}
    assert all(rows[image.numpy().tobytes()] == label for image, label in zip(train.images, train.labels, strict=True))
    assert train.classes == tuple("0123456789")
    assert not train.flip  # a mirrored digit is another digit


def test_idx_of_other_shapes(tmp_path: Path) -> None:
    for shape in ((3,), (2, 3), (2, 3, 4, 5), (0, 4)):
        array = RANDOM.integers(0, 256, shape, dtype=np.uint8)
        (tmp_path / "file").write_bytes(idx_bytes(array))
        assert np.array_equal(read_idx(tmp_path / "file").numpy(), array)


GOOD_IDX = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00\x08",
        GOOD_IDX[:-1],
        GOOD_IDX + b"\x00",
        GOOD_IDX[:9],  # ends within the sizes
        b"\x00\x00\x0d" + GOOD_IDX[3:],  # floats
        b"\x00\x00\x08\x00",
        b"<html>404 Not Found</html>",
    ],
)
def test_damaged_idx(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    message = re.escape(f"{path} is not an IDX file of unsigned bytes. Was it downloaded whole?")
    with pytest.raises(InvalidInputError, match=f"^{message}$"):
        read_idx(path)


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(RANDOM.integers(0, 256, 5000, dtype=np.uint8).tobytes() + bytes(5000))
    flipped = bytearray(whole)
    flipped[20] ^= 255
    path = tmp_path / "file.gz"
    for data in (whole[:-4], whole[:100], b"no gzip at all", bytes(flipped), b"\x1f\x8b\x08\x00" + b"\xff" * 60):
        path.write_bytes(data)
        with pytest.raises(InvalidInputError, match=r"file\.gz is not a whole gzip file \(.+\)\. Was it downloaded"):
            read_idx(path)


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian package dataset-fashion-mnist is not installed")
def test_real_fashion_mnist() -> None:
    """Sizes and the balance of classes are those of Xiao et al. 2017; the first training image is an ankle boot."""
    parts = {split: load_dataset("fashion-mnist", split) for split in ("train", "validation", "test")}
    assert [len(part) for part in parts.values()] == [54_000, 6_000, 10_000]
    train = parts["train"]
    assert train.image_shape == (1, 28, 28)
    assert torch.bincount(parts["test"].labels).tolist() == [1000] * 10
    together = torch.bincount(train.labels) + torch.bincount(parts["validation"].labels)
    assert together.tolist() == [6000] * 10
    assert train.classes[int(train.labels[0])] == "ankle boot"
    pixels = torch.cat([train.images, parts["validation"].images]).float() / 255
    assert train.normalisation.mean[0] == pytest.approx(float(pixels.mean()), abs=1e-3)
    assert train.normalisation.std[0] == pytest.approx(float(pixels.std()), abs=1e-3)


# --- CIFAR -----------------------------------------------------------------------------------------------------------


def cifar_rows(count: int, label_bytes: int, classes: int) -> np.ndarray:
    rows = RANDOM.integers(0, 256, (count, label_bytes + 3072), dtype=np.uint8)
    rows[:, :label_bytes] = RANDOM.integers(0, classes, (count, label_bytes))
    return rows


CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar10_members() -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """The official layout: five batches, the test batch, and names one a line with an empty line at the end."""
    batches = [cifar_rows(8, 1, 10) for _ in range(5)]
    test = cifar_rows(6, 1, 10)
    folder = "cifar-10-batches-bin/"
    members = {f"{folder}data_batch_{n}.bin": batch.tobytes() for n, batch in enumerate(batches, 1)}
    members[folder + "batches.meta.txt"] = ("\n".join(CIFAR10_NAMES) + "\n\n").encode()
    members[folder + "readme.html"] = b"<html></html>"
    members[folder + "test_batch.bin"] = test.tobytes()
    return dict(reversed(members.items())), np.concatenate(batches), test


def test_cifar10_archive(tmp_path: Path) -> None:
    members, train, test = cifar10_members()
    write_tar(tmp_path / "cifar-10-binary.tar.gz", members)
    part = load_dataset("cifar10", "test", tmp_path)
    assert part.classes == tuple(CIFAR10_NAMES)
    assert part.labels.tolist() == test[:, 0].tolist()
    # The format's own words: 1024 red bytes, then green, then blue, each row by row.
    assert int(part.images[2, 1, 3, 4]) == test[2, 1 + 1024 + 3 * 32 + 4]
    assert np.array_equal(part.images.numpy().reshape(6, -1), test[:, 1:])
    splits = [load_dataset("cifar10", split, tmp_path) for split in ("train", "validation")]
    found = {
        (int(label), image.numpy().tobytes())
        for part in splits
        for image, label in zip(part.images, part.labels, strict=True)
    }
    assert found == {(int(row[0]), row[1:].tobytes()) for row in train}
    assert [len(part) for part in splits] == [36, 4]


def test_cifar100_archive_takes_the_fine_label(tmp_path: Path) -> None:
    train, test = cifar_rows(30, 2, 20), cifar_rows(10, 2, 20)
    train[:, 1], test[:, 1] = RANDOM.integers(0, 100, 30), RANDOM.integers(20, 100, 10)
    folder = "cifar-100-binary/"
    names = [f"fine_{n}" for n in range(100)]
    write_tar(
        tmp_path / "cifar-100-binary.tar.gz",
        {
            folder + "train.bin": train.tobytes(),
            folder + "test.bin": test.tobytes(),
            folder + "coarse_label_names.txt": "\n".join(f"coarse_{n}" for n in range(20)).encode(),
            folder + "fine_label_names.txt": "\n".join(names).encode(),
        },
    )
    part = load_dataset("cifar100", "test", tmp_path)
    assert part.classes == tuple(names)
    assert part.labels.tolist() == test[:, 1].tolist()
    assert np.array_equal(part.images.numpy().reshape(10, -1), test[:, 2:])


def test_damaged_cifar_archive(tmp_path: Path) -> None:
    members, _, test = cifar10_members()
    path = tmp_path / "cifar-10-binary.tar.gz"
    folder = "cifar-10-batches-bin/"
    cases = {
        f"{path} has 0 bytes in its files test_batch*; rows of 3073 bytes are needed. Is it the binary archive of "
        "cifar10?": {name: data for name, data in members.items() if "test" not in name},
        f"{path} has {test.size - 1} bytes in its files test_batch*; rows of 3073 bytes": {
            **members,
            folder + "test_batch.bin": test.tobytes()[:-1],
        },
        f"{path} has no batches.meta.txt. Is it the binary archive of cifar10?": {
            name: data for name, data in members.items() if "meta" not in name
        },
        "labels range from 0 to 200, but there are 10 classes": {
            **members,
            folder + "test_batch.bin": b"\x00" + bytes(3072) + b"\xc8" + bytes(3072),
        },
    }
    for message, broken in cases.items():
        write_tar(path, broken)
        with pytest.raises(InvalidInputError, match=re.escape(message)):
            cifar_archive(path, "cifar10")


def test_damaged_tar(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "cifar-10-binary.tar.gz", cifar10_members()[0])
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[2000] ^= 255
    plain = gzip.decompress(whole)
    header = bytearray(plain)
    header[plain.index(b"cifar-10-batches-bin/data_batch_2") + 2] ^= 255
    cut = plain.index(b"cifar-10-batches-bin/data_batch_1")
    for data in (b"", b"not a tar", whole[:3000], bytes(flipped), bytes(header), plain[:cut], plain[: cut + 100]):
        path.write_bytes(data)
        with pytest.raises(InvalidInputError, match=r"is not a whole tar archive \(.+\)\. Was it copied whole\?$"):
            cifar_archive(path, "cifar10")


# --- image folders ---------------------------------------------------------------------------------------------------


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
        "{path}/test has class 'cow', which train has not: ant, zebra.": {**members, "test/cow/1.png": small},
        "{path}/train/ant/3.png is (3, 5, 12), the images before it are (3, 12, 12) (channels, height, width). "
        "Bring all images to one size first.": {**members, "train/ant/3.png": small},
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


# --- array files -----------------------------------------------------------------------------------------------------


def arrays() -> dict[str, np.ndarray]:
    return {
        "train_images": RANDOM.integers(0, 256, (20, 3, 8, 8), dtype=np.uint8),
        "train_labels": np.arange(20) % 4,
        "test_images": RANDOM.integers(0, 256, (8, 3, 8, 8), dtype=np.uint8),
        "test_labels": np.arange(8) % 4,
    }


def test_array_file(tmp_path: Path) -> None:
    given = arrays()
    np.savez_compressed(tmp_path / "mine.npz", **given)
    for name in ("mine", "mine.npz", str(tmp_path / "mine.npz")):
        test = load_dataset(name, "test", tmp_path)
        assert np.array_equal(test.images.numpy(), given["test_images"])
        assert test.labels.tolist() == [0, 1, 2, 3] * 2
        assert test.name == "mine"


def test_bad_array_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **{key: value for key, value in arrays().items() if key != "test_labels"})
    message = (
        f"{path} has no 'test_labels'; it has ['test_images', 'train_images', 'train_labels'], and train_images, "
        "train_labels, test_images, test_labels are needed."
    )
    with pytest.raises(InvalidInputError, match=f"^{re.escape(message)}$"):
        array_file(path)
    np.savez(path, **arrays())
    whole = path.read_bytes()
    np.save(tmp_path / "plain.npy", np.zeros(3))
    objects = io.BytesIO()
    np.savez(objects, **{**arrays(), "train_labels": np.array([object()] * 20)})
    texts = io.BytesIO()
    np.savez(texts, **{**arrays(), "train_labels": np.array(["cat"] * 20)})
    plain = (tmp_path / "plain.npy").read_bytes()
    for data in (b"", b"text", whole[:500], whole[:-30], plain, objects.getvalue(), texts.getvalue()):
        path.write_bytes(data)
        with pytest.raises(InvalidInputError, match=r"mine\.npz is not an \.npz file of plain arrays \(.*\)\.$"):
            array_file(path)


# --- names and splits ------------------------------------------------------------------------------------------------


def test_unknown_names(tmp_path: Path) -> None:
    known = "Known: cifar10, cifar100, digits, fashion-mnist, mnist."
    with pytest.raises(UnknownNameError) as caught:
        load_dataset("cifar-10", root=tmp_path)
    assert str(caught.value) == (
        "Unknown data set (nor a file of that name under PRUNEGYM_DATA) 'cifar-10'. Did you mean 'cifar10'? " + known
    )
    with pytest.raises(UnknownNameError, match=re.escape("Unknown data set ''. " + known)):
        load_dataset("")
    with pytest.raises(UnknownNameError) as caught:
        load_dataset("digits", "valid")
    assert str(caught.value) == "Unknown split 'valid'. Did you mean 'validation'? Known: test, train, validation."
    missing = tmp_path / "no" / "such"
    with pytest.raises(MissingDataError) as missed:
        load_dataset(str(missing))
    assert str(missed.value) == (f"There is no data set at {missing}. Give a folder, a tar archive or an .npz file.")


def test_environment_variable_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "mine.npz", **arrays())
    with pytest.raises(UnknownNameError):
        load_dataset("mine", "test", tmp_path / "elsewhere")
    monkeypatch.setenv("PRUNEGYM_DATA", str(tmp_path))
    assert len(load_dataset("mine", "test")) == 8


def test_loaded_once() -> None:
    assert load_dataset("digits", "test").images is load_dataset("digits", "test").images
