"""CIFAR-10 and CIFAR-100 from archives in the official layout, whole and damaged."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.data.files.readers import cifar_archive
from tests.models.data.data_files import RANDOM, write_tar

pytestmark = pytest.mark.usefixtures("fresh_datasets")


CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar_rows(count: int, label_bytes: int, classes: int) -> np.ndarray:
    rows = RANDOM.integers(0, 256, (count, label_bytes + 3072), dtype=np.uint8)
    rows[:, :label_bytes] = RANDOM.integers(0, classes, (count, label_bytes))
    return rows


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
        f"{path} has 0 bytes in its files test_batch*; rows of 3073 bytes are needed. Use the binary archive of "
        "cifar10.": {name: data for name, data in members.items() if "test" not in name},
        f"{path} has {test.size - 1} bytes in its files test_batch*; rows of 3073 bytes": {
            **members,
            folder + "test_batch.bin": test.tobytes()[:-1],
        },
        f"{path} has no batches.meta.txt. Use the binary archive of cifar10.": {
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
        with pytest.raises(InvalidInputError, match=r"is not a complete tar archive \(.+\)\. Copy or pack it again\.$"):
            cifar_archive(path, "cifar10")
