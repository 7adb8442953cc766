"""MNIST and Fashion-MNIST from IDX files, whole and damaged."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.data.files.readers import read_idx
from tests.models.data.data_files import RANDOM, idx_bytes

FASHION = Path("/usr/share/datasets/fashion-mnist")
pytestmark = pytest.mark.usefixtures("fresh_datasets")


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
    message = re.escape(f"{path} is not a complete IDX file of unsigned bytes. Download it again.")
    with pytest.raises(InvalidInputError, match=f"^{message}$"):
        read_idx(path)


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(RANDOM.integers(0, 256, 5000, dtype=np.uint8).tobytes() + bytes(5000))
    flipped = bytearray(whole)
    flipped[20] ^= 255
    path = tmp_path / "file.gz"
    for data in (whole[:-4], whole[:100], b"no gzip at all", bytes(flipped), b"\x1f\x8b\x08\x00" + b"\xff" * 60):
        path.write_bytes(data)
        with pytest.raises(InvalidInputError, match=r"file\.gz is not a complete gzip file \(.+\)\. Download it"):
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
