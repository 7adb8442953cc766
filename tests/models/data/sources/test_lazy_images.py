"""Images read as they are needed are those of a tensor, whatever is cached, expected, forked or copied."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.data.sources.image_files import image_files, in_memory
from prunegym.models.data.sources.lazy_images import ImageSource, LazyImages, MappedArray, ReadImages, select
from prunegym.models.data.transform import Transform
from tests.models.data.data_files import RANDOM, png

ARRAY = RANDOM.integers(0, 256, (37, 3, 4, 5), dtype=np.uint8)
TENSOR = torch.from_numpy(ARRAY)


class Counted:
    """Reads the array, and counts."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, row: int) -> Tensor:
        self.rows.append(row)
        return TENSOR[row]


class Own(ImageSource):
    """A source as a user writes one."""

    def __len__(self) -> int:
        return len(TENSOR)

    def fetch(self, rows: Tensor) -> Tensor:
        return TENSOR[rows]


def sources(folder: Path) -> dict[str, ImageSource]:
    np.save(folder / "x.npy", ARRAY)
    files = [png(image.transpose(1, 2, 0)) for image in ARRAY]
    return {
        "own": Own((3, 4, 5)),
        "mapped": MappedArray(np.load(folder / "x.npy", mmap_mode="r")),
        "read": ReadImages(Counted(), 37, (3, 4, 5), workers=1),
        "files": image_files(files, workers=2).source,
    }


@pytest.mark.parametrize("kind", ["own", "mapped", "read", "files"])
def test_they_index_like_a_tensor(tmp_path: Path, kind: str) -> None:
    images = LazyImages(sources(tmp_path)[kind])
    assert (images.shape, images.dtype, images.ndim, len(images)) == (TENSOR.shape, TENSOR.dtype, 4, 37)
    some = torch.tensor([5, 0, 36, 5])
    for _ in range(2):
        assert torch.equal(images[some], TENSOR[some])
        assert torch.equal(images[3], TENSOR[3])
        assert torch.equal(images[2:9], TENSOR[2:9])
    part = select(select(images, torch.arange(10, 30)), torch.tensor([3, 1]))
    assert isinstance(part, LazyImages)
    assert torch.equal(part[torch.arange(2)], select(TENSOR[10:30], torch.tensor([3, 1])))
    assert torch.equal(in_memory(images), TENSOR)
    images[0][:] = 0  # what is returned is the caller's own
    assert torch.equal(images[0], TENSOR[0])


@pytest.mark.parametrize("kind", ["own", "mapped", "read", "files"])
def test_marks_tell_images_apart(tmp_path: Path, kind: str) -> None:
    images = LazyImages(sources(tmp_path)[kind])
    again = LazyImages(sources(tmp_path)[kind])
    some, others = torch.arange(10), torch.arange(1, 11)
    assert torch.equal(images.select(some).marks(), again.select(some).marks())
    assert not torch.equal(images.select(some).marks(), images.select(others).marks())


def test_the_cache_keeps_what_fits_and_the_rest_is_read_again() -> None:
    read = Counted()
    images = LazyImages(ReadImages(read, 37, (3, 4, 5), workers=1, cache=10 * 60))
    for _ in range(3):
        assert torch.equal(images[torch.arange(37)], TENSOR)
    assert sorted(read.rows) == sorted([*range(37), *range(10, 37), *range(10, 37)])
    assert len(images.source._work.kept) == 10  # type: ignore[attr-defined]


def test_what_is_expected_is_read_once_and_other_expectations_are_given_up() -> None:
    read = Counted()
    images = LazyImages(ReadImages(read, 37, (3, 4, 5), workers=1, cache=0))
    images.expect(torch.arange(5))
    assert torch.equal(images[torch.arange(5)], TENSOR[:5])
    assert read.rows == [0, 1, 2, 3, 4]
    for start in (5, 10, 15):
        images.expect(torch.arange(start, start + 5))
    assert set(images.source._work.coming) == set(range(15, 20))  # type: ignore[attr-defined]


def test_copies_pickles_and_forked_processes_read_for_themselves(tmp_path: Path) -> None:
    images = LazyImages(sources(tmp_path)["files"])
    some = torch.arange(6)
    images.expect(torch.arange(6, 20))
    assert torch.equal(images[some], TENSOR[some])
    for other in (copy.deepcopy(images), pickle.loads(pickle.dumps(images))):
        assert torch.equal(other[some], TENSOR[some])
    context = multiprocessing.get_context("fork")
    found = context.Value("i", 0)

    def child() -> None:
        found.value = int(np.array_equal(images[torch.arange(4, 12)].numpy(), ARRAY[4:12]))
        os._exit(0)

    process = context.Process(target=child)
    process.start()
    process.join(60)
    assert found.value == 1


def test_an_image_of_another_size_and_a_damaged_one_are_named(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, side in zip(paths, (8, 8, 9), strict=True):
        path.write_bytes(png(np.zeros((side, 8, 3), np.uint8)))
    images = image_files(paths)
    assert images[torch.arange(2)].shape == (2, 3, 8, 8)
    with pytest.raises(InvalidInputError, match=r"2\.png is \(3, 9, 8\).*--image-size"):
        images[torch.arange(3)]
    assert image_files(paths, transform=Transform((6, 6)))[torch.arange(3)].shape == (3, 3, 6, 6)
    paths[1].write_bytes(b"damaged")
    with pytest.raises(InvalidInputError, match=r"1\.png cannot be read"):
        image_files(paths)[torch.arange(2)]
    with pytest.raises(InvalidInputError, match="at least one"):
        image_files([])


def test_grey_files_stay_grey_only_if_all_are() -> None:
    grey, coloured = png(ARRAY[0, 0]), png(ARRAY[0].transpose(1, 2, 0))
    assert image_files([grey, grey]).shape == (2, 1, 4, 5)
    both = image_files([grey, coloured])
    assert torch.equal(both[torch.arange(2)], torch.stack([TENSOR[0, :1].expand(3, -1, -1), TENSOR[0]]))


def test_a_changed_file_has_another_mark_even_of_the_same_length(tmp_path: Path) -> None:
    path = tmp_path / "x.bmp"
    path.write_bytes(png(RANDOM.integers(0, 256, (300, 300, 3), dtype=np.uint8)))
    assert path.stat().st_size > 200_000
    marks = [image_files([path]).marks()]
    data = bytearray(path.read_bytes())
    data[len(data) // 2 + 5] ^= 1
    path.write_bytes(bytes(data))
    marks.append(image_files([path], transform=Transform((8, 8)), channels=3).marks())
    assert not torch.equal(*marks)
