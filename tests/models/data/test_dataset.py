"""Splits, normalisation and augmentation against oracles in numpy, and the errors of malformed data by their text."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.data.augmentation import random_shift_and_flip
from prunegym.models.data.dataset import Dataset
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.data.normalisation import IMAGENET_MEAN, IMAGENET_STD, Normalisation
from prunegym.models.data.splits import from_arrays, hold_out_validation
from prunegym.models.storage.cnn_info import CNNInfo

GREY = Normalisation((0.5,), (0.5,))


def numbered(count: int, channels: int = 1, size: int = 4) -> tuple[Tensor, Tensor]:
    """Images that carry their own number in the first two pixels, and labels of two classes."""
    images = torch.zeros(count, channels, size, size, dtype=torch.uint8)
    numbers = torch.arange(count)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = (numbers // 256).to(torch.uint8), (numbers % 256).to(torch.uint8)
    return images, numbers % 2


def numbers_of(dataset: Dataset) -> list[int]:
    return (dataset.images[:, 0, 0, 0].long() * 256 + dataset.images[:, 0, 0, 1]).tolist()


def make(images: Tensor, labels: Tensor, classes: tuple[str, ...] = ("a", "b"), norm: Normalisation = GREY) -> Dataset:
    return Dataset("mine", "train", images, labels, classes, norm)


def test_splits_are_disjoint_and_whole() -> None:
    splits = from_arrays(numbered(1000), numbered(10))
    train, validation = numbers_of(splits["train"]), numbers_of(splits["validation"])
    assert len(validation) == 100
    assert sorted(train + validation) == list(range(1000))
    assert numbers_of(splits["test"]) == list(range(10))
    for part in splits.values():
        assert part.labels.tolist() == [number % 2 for number in numbers_of(part)]


def test_parts_of_a_split_share_no_image_and_mix_the_classes() -> None:
    # As in a folder of images: all of one class, then all of the other.
    images, labels = numbered(1000)
    sorted_by_class = make(images, labels.sort().values)
    first, second = sorted_by_class.part(":800"), sorted_by_class.part("800:")
    assert sorted(numbers_of(first) + numbers_of(second)) == list(range(1000))
    assert len(first) == 800
    assert 0.4 < second.labels.double().mean() < 0.6
    assert numbers_of(sorted_by_class.part("-200:")) == numbers_of(second)
    assert (second.span, second.split) == ("800:1000", "train")


@pytest.mark.parametrize("span", ["800", "a:b", "1:2:3", "900:800", "1000:", ":1001", "-1001:", ""])
def test_no_part_of_a_split(span: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(f"{span!r} of mine/train (1000 images)") + ".*Give FROM:TO"):
        make(*numbered(1000)).part(span)


def test_a_part_has_no_parts() -> None:
    with pytest.raises(InvalidInputError, match=r"a part of the part 0:800\. Take it from the whole split"):
        make(*numbered(1000)).part(":800").part(":400")


def test_validation_split_is_the_same_every_time_and_no_prefix() -> None:
    """Every figure of the project rests on this draw, so it is pinned: it must not change with torch or with us."""
    images, labels = numbered(1000)
    torch.manual_seed(1)
    first = numbers_of(hold_out_validation(make(images, labels))[1])
    torch.manual_seed(2)
    assert numbers_of(hold_out_validation(make(images, labels))[1]) == first
    assert first[:5] == [6, 15, 19, 23, 28]
    assert numbers_of(hold_out_validation(make(images, labels), seed=1)[1]) != first


@pytest.mark.parametrize("share", [0.0, 1.0, 0.001])
def test_empty_validation_split(share: float) -> None:
    images, labels = numbered(20)
    with pytest.raises(
        InvalidInputError,
        match=f"^Data set 'mine' has 20 training images; a validation share of {share} leaves an empty split. "
        "Give more images or another share.$",
    ):
        hold_out_validation(make(images, labels), share)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_of_bytes_and_floats(channels: int) -> None:
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.3,), (0.7,))
    images = torch.randint(0, 256, (5, channels, 6, 7), dtype=torch.uint8)
    expected = images.numpy().astype(np.float64) / 255
    expected = (expected - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    normalise = Normalisation(mean, std)
    for given in (images, images.float() / 255):
        result = normalise(given)
        assert result.dtype == torch.float32
        assert result.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pad", [0, 1, 3])
def test_augmentation_is_one_of_the_shifts_and_mirrors(pad: int, flip: bool) -> None:
    """Brute force: numpy makes every shifted and mirrored form of an image; each result must be one of them."""
    images = torch.randint(1, 256, (400, 2, 5, 6), dtype=torch.uint8)
    result = random_shift_and_flip(images, pad, flip, torch.Generator().manual_seed(0))
    seen = set()
    for image, augmented in zip(images.numpy(), result.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
        forms = {
            (top, left, mirror): padded[:, top : top + 5, left : left + 6][:, :, :: -1 if mirror else 1]
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
            for mirror in ([False, True] if flip else [False])
        }
        matches = [key for key, form in forms.items() if np.array_equal(form, augmented)]
        assert matches
        seen.update(matches[:1])
    assert len(seen) == (2 * pad + 1) ** 2 * (2 if flip else 1)  # 400 draws of at most 98 forms: all of them occur
    assert result.dtype == torch.uint8


def test_augmentation_depends_on_the_generator_alone() -> None:
    images = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8)
    draws = []
    for seed in (5, 5, 6):
        torch.rand(3)
        draws.append(random_shift_and_flip(images, 2, True, torch.Generator().manual_seed(seed)))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_batch_takes_indices_within_the_split_and_leaves_the_images_alone() -> None:
    images, labels = numbered(30)
    dataset = from_arrays((images, labels), (images, labels), pad=2, flip=True)["test"]
    before = dataset.images.clone()
    indices = torch.tensor([7, 3, 7])
    plain = dataset.batch(indices)
    np.testing.assert_allclose(plain.numpy(), images[[7, 3, 7]].numpy() / 255 * 2 - 1, atol=1e-6)
    plain.zero_()
    dataset.batch(indices, augment=torch.Generator().manual_seed(0)).zero_()
    assert torch.equal(dataset.images, before)
    assert dataset.image_shape == (1, 4, 4)


def test_subset() -> None:
    dataset = make(*numbered(10)).subset(torch.tensor([4, 9]), "test")
    assert numbers_of(dataset) == [4, 9]
    assert dataset.labels.tolist() == [0, 1]
    assert dataset.split == "test"
    assert len(dataset) == 2


def test_from_arrays_takes_numpy_and_fills_in_what_is_not_said() -> None:
    images, labels = numbered(40, channels=3, size=16)
    part = (images.numpy(), labels.numpy().astype(np.uint8))
    splits = from_arrays(part, part)
    train = splits["train"]
    assert train.classes == ("0", "1")
    assert train.labels.dtype == torch.int64
    assert (train.pad, train.flip, train.name) == (2, False, "arrays")
    assert train.normalisation == Normalisation(IMAGENET_MEAN, IMAGENET_STD)
    assert from_arrays(numbered(40), numbered(40))["train"].normalisation == GREY


def bad(**changes: object) -> dict[str, object]:
    images, labels = numbered(6)
    return {"images": images, "labels": labels, **changes}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            bad(images=torch.zeros(6, 1, 4, 4, dtype=torch.int64)),
            "images are torch.int64 (6, 1, 4, 4); uint8, uint16 or floats of shape (count, channels, height, width) "
            "are needed.",
        ),
        (
            bad(images=torch.zeros(6, 4, 4, dtype=torch.uint8)),
            "images are torch.uint8 (6, 4, 4); uint8, uint16 or floats of shape (count, channels, height, width) "
            "are needed.",
        ),
        (bad(images=torch.zeros(0, 1, 4, 4, dtype=torch.uint8)), "is empty. Give it at least one image."),
        (
            bad(labels=torch.zeros(5, dtype=torch.int64)),
            "the label tensor is of shape (5,); (6,) is needed. Give one integer per image.",
        ),
        (
            bad(labels=torch.zeros(6, 2, dtype=torch.int64)),
            "the label tensor is of shape (6, 2); (6,) is needed. Give one integer per image.",
        ),
        (bad(labels=torch.zeros(6)), "labels are torch.float32; int64 is needed."),
        (
            bad(labels=torch.tensor([0, 1, 2, 0, 1, 0])),
            "labels range from 0 to 2, but there are 2 classes, so 0 to 1 are allowed. "
            "Renumber the labels or name every class.",
        ),
        (
            bad(labels=torch.tensor([0, 1, -1, 0, 1, 0])),
            "labels range from -1 to 1, but there are 2 classes, so 0 to 1 are allowed. "
            "Renumber the labels or name every class.",
        ),
        (
            bad(norm=Normalisation((0.5, 0.5, 0.5), (0.5,))),
            "images have 1 channels, the normalisation has 3 means and 1 standard deviations. "
            "Give one mean and one standard deviation per channel.",
        ),
    ],
)
def test_malformed_data_set(arguments: dict[str, object], message: str) -> None:
    text = re.escape(f"Data set 'mine', split 'train'{'' if message.startswith('is') else ':'} {message}")
    with pytest.raises(InvalidInputError, match=f"^{text}$"):
        make(**arguments)  # type: ignore[arg-type]


def test_from_arrays_refuses_what_it_would_have_to_guess() -> None:
    images, labels = numbered(20)
    with pytest.raises(
        InvalidInputError, match=r"^Data set 'x': labels are torch.float32 of shape \(\d+,\); one integer per image"
    ):
        from_arrays((images, labels.float()), (images, labels), name="x")
    with pytest.raises(
        InvalidInputError, match=r"^Data set 'x': the training array is of shape \(20, 4, 4\); \(count, "
    ):
        from_arrays((images[:, 0], labels), (images, labels), name="x")
    with pytest.raises(InvalidInputError, match=r"^Data set 'x', split 'test' is empty\. Give it at least one image"):
        from_arrays((images, labels), (images[:0], labels[:0]), name="x")
    with pytest.raises(InvalidInputError, match=r"split 'test': labels range from 1 to 2, but there are 2 classes"):
        from_arrays((images, labels), (images, labels + 1), name="x")


@pytest.mark.parametrize(("options", "message"), [
    ({"name": 3}, "name is a int; a str is needed"), ({"classes": 3}, "classes is a int; .* Give a list of names"),
    ({"pad": -1}, "pad is -1; a whole number"), ({"pad": 1.5}, r"pad is 1\.5"), ({"pad": "x"}, "pad is 'x'"),
    ({"normalisation": (0.5, 0.5)}, "normalisation is a tuple; Normalisation"), ({"test": None}, "test data is a None"),
    ({"train": numbered(20)[0]}, r"the training data is a Tensor; a pair \(images, targets\) is needed"),
    ({"train": (numbered(20)[0], numbered(20)[1].to("meta"))}, "labels is on the device 'meta'"),
    ({"train": (9 * numbered(20)[0].float(), numbered(20)[1])}, "the test array is torch.uint8, but .* one scale"),
])  # fmt: skip
def test_from_arrays_refuses_other_kinds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        from_arrays(**{"train": numbered(20), "test": numbered(20), **options})


@pytest.mark.parametrize("numbers", [(0.5, 1.0), (("a",), (1.0,)), ((0.5,), (None,)), ((0.5,), (0.0,))])
def test_a_normalisation_has_a_number_per_channel(numbers: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"(?i)mean|number"):
        Normalisation(*numbers)


def test_labels_are_numbered_as_the_model_s_classes() -> None:
    images, labels = torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.arange(20) % 2
    data = from_arrays((images, labels), (images, labels), name="x", classes=("cat", "dog"))["test"]
    shifted = data.with_classes(("ant", "cat", "dog"))
    assert shifted.classes == ("ant", "cat", "dog")
    assert torch.equal(shifted.labels, labels + 1)
    assert data.with_classes(("0", "1", "2")) is data  # numbered only: in the same order
    some = dataclasses.replace(data, classes=("5", "3", "8"))  # numbers that are names
    assert torch.equal(some.with_classes(tuple("0123456789")).labels, torch.tensor([5, 3, 8])[data.labels])
    with pytest.raises(InvalidInputError, match="has class '7', which the model does not know"):
        dataclasses.replace(data, classes=("0", "7")).with_classes(("0", "1", "2"))
    sorted_as_text = dataclasses.replace(data, classes=("0", "10", "2"))
    numbers = tuple(map(str, range(11)))
    assert torch.equal(sorted_as_text.with_classes(numbers).labels, torch.tensor([0, 10, 2])[data.labels])
    with pytest.raises(InvalidInputError, match="has class 'cat', which the model does not know; it knows ant, dog"):
        data.with_classes(("ant", "dog"))
    with pytest.raises(
        InvalidInputError, match=r"'x' has 2 classes, but the model has 1\. Remove the images of the other"
    ):
        data.with_classes(("0",))


def test_classes_of_one_name_are_kept_apart() -> None:
    images, labels = torch.zeros(30, 1, 8, 8, dtype=torch.uint8), torch.arange(30) % 3
    names = ("crane", "tench", "crane")
    data = from_arrays((images, labels), (images, labels), name="x", classes=names)["test"]
    assert CNNInfo.of("mine", data).adapt(data).labels.tolist() == labels.tolist()
    assert (
        dataclasses.replace(data, classes=("a", "tench", "b")).with_classes(("b", "tench", "a", "c", "c")) is not data
    )
    one = dataclasses.replace(data, classes=("crane", "tench", "ant"))
    for given, model in ((data, ("tench", "crane", "crane")), (data, ("tench", "crane")), (one, (*names, "ant"))):
        with pytest.raises(
            InvalidInputError, match=r"^Several classes are named 'crane': \d in data set 'x', \d in the"
        ):
            given.with_classes(model)


@pytest.mark.parametrize("label", [10**15, 2**63 - 1, 150_000])
def test_a_label_far_beyond_the_images_is_refused(label: int) -> None:
    images, labels = numbered(20)
    labels = torch.where(torch.arange(20) == 7, label, labels)
    with pytest.raises(InvalidInputError, match=f"'x': the highest label is {label}, but there are 20 training"):
        from_arrays((images, labels), (images, labels), name="x")
    few = labels.clamp(max=21_840)  # some images of ImageNet-21k
    assert len(from_arrays((images, few), (images, few))["test"].classes) == 21_841


def test_validation_images_of_their_own() -> None:
    splits = from_arrays(numbered(40), numbered(10), validation=numbered(7))
    assert [numbers_of(splits[split]) for split in ("train", "validation")] == [list(range(40)), list(range(7))]
    with pytest.raises(InvalidInputError, match=r"the validation array is of shape \(7, 1, 5, 5\)"):
        from_arrays(numbered(40), numbered(10), validation=numbered(7, size=5))


def test_all_images_have_one_size() -> None:
    labels = torch.arange(20) % 2
    parts = [(torch.zeros(20, 1, size, size, dtype=torch.uint8), labels) for size in (8, 10)]
    with pytest.raises(InvalidInputError, match=r"the test array is of shape \(20, 1, 10, 10\); \(count, 1, 8, 8\) is"):
        from_arrays(*parts)


@pytest.mark.parametrize("std", [0.0, float("nan"), -1.0])
def test_a_normalisation_can_be_divided_by(std: float) -> None:
    with pytest.raises(InvalidInputError, match="finite numbers are needed, and standard deviations above 0"):
        Normalisation((0.5,), (std,))


@pytest.mark.parametrize(
    ("take", "message"),
    [
        (
            lambda data: data.batch(torch.tensor([10**9])),
            "The indices do not fit data set 'digits', split 'validation'",
        ),
        (lambda data: data.batch("x"), "Give an int64 tensor of numbers from 0 to 119"),
        (lambda data: data.batch(torch.tensor([0.5])), "Give an int64 tensor"),
        (lambda data: data.batch(torch.tensor([True])), "Give an int64 tensor"),
        (lambda data: data.subset(torch.tensor([10**9])), "Give an int64 tensor"),
        (lambda data: data.sample(-1), "count is -1; a whole number of at least 1 is needed"),
        (lambda data: data.sample(2.5), "count is 2.5; a whole number"),
        (lambda data: data.part(3), "span is a int; a str is needed. Give FROM:TO"),
    ],
)
def test_indices_and_counts_that_are_none(take, message) -> None:
    with pytest.raises(InvalidInputError) as raised:
        take(load_dataset("digits", "validation"))
    assert message in str(raised.value)
