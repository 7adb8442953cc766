"""All kinds of data sets do what a data set in memory does; all kinds of targets and pixels are kept apart."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import Dataset
from prunegym.models.data.normalisation import Normalisation
from prunegym.models.data.sources.lazy_images import LazyImages
from prunegym.models.data.sources.torch_datasets import torch_items
from prunegym.models.data.splits import from_arrays
from prunegym.models.storage.weights import fingerprint_of
from tests.models.data.data_files import RANDOM

IMAGES = torch.from_numpy(RANDOM.integers(0, 256, (60, 3, 6, 8), dtype=np.uint8))
LABELS = torch.arange(60) % 3
MEMORY = from_arrays((IMAGES[:40], LABELS[:40]), (IMAGES[40:], LABELS[40:]), name="mine", pad=1, flip=True)


def mapped(folder: Path) -> dict[Any, Dataset]:
    np.save(folder / "x.npy", IMAGES.permute(0, 2, 3, 1).numpy())  # channels last
    array = np.load(folder / "x.npy", mmap_mode="r")
    return from_arrays((array[:40], LABELS[:40]), (array[40:], LABELS[40:]), name="mine", pad=1, flip=True)


def items(_: Path) -> dict[Any, Dataset]:
    whole = TensorDataset(IMAGES, LABELS)
    parts = [torch_items(torch.utils.data.Subset(whole, rows)) for rows in (range(40), range(40, 60))]
    return from_arrays(*parts, name="mine", pad=1, flip=True)


@pytest.mark.parametrize("make", [mapped, items])
def test_every_kind_is_that_in_memory(tmp_path: Path, make: Any) -> None:
    for split, lazy in make(tmp_path).items():
        plain = MEMORY[split]
        assert isinstance(lazy.images, LazyImages)
        for one, other in (
            (lazy, plain), (lazy.sample(3), plain.sample(3)), (lazy.part(":3"), plain.part(":3")),
            (lazy.augmenting("flip"), plain.augmenting("flip")),
            (lazy.with_classes(("2", "1", "0")), plain.with_classes(("2", "1", "0"))),
        ):  # fmt: skip
            assert torch.equal(one.labels, other.labels)
            assert one.image_shape == other.image_shape
            some = torch.tensor([2, 0])
            shifts = [torch.Generator().manual_seed(3) for _ in range(2)]
            assert torch.equal(one.batch(some, augment=shifts[0]), other.batch(some, augment=shifts[1]))
            batches = [list(data.batches(2)) for data in (one, other)]
            assert all(torch.equal(a, b) for pair in zip(*batches, strict=True) for a, b in zip(*pair, strict=True))
        assert fingerprint_of(lazy) == fingerprint_of(make(tmp_path)[split])
        assert fingerprint_of(lazy) != fingerprint_of(lazy.sample(3))


def test_a_stream_draws_augmentations_batch_by_batch() -> None:
    train, order = MEMORY["train"], torch.randperm(36).view(6, 6)
    streamed, drawn = (torch.Generator().manual_seed(1) for _ in range(2))
    found = []
    for indices, images in train.stream(order, augment=streamed):
        torch.rand(3, generator=streamed)  # others draw between the batches, as the training of gates does
        found.append((indices, images))
    for row, (indices, images) in zip(order, found, strict=True):
        assert torch.equal(row, indices)
        assert torch.equal(train.batch(row, augment=drawn), images)
        torch.rand(3, generator=drawn)


TARGETS: dict[str, tuple[Any, int, tuple[str, ...]]] = {
    "classes": (LABELS, 3, ("0", "1", "2")),
    "labels": (torch.nn.functional.one_hot(LABELS, 4), 4, ("0", "1", "2", "3")),
    "numbers": (LABELS[:, None] + 0.25, 1, ()),
    "maps": ((IMAGES[:, 0] % 5).long() - 1, 4, ("0", "1", "2", "3")),
    "outputs": (None, 0, ()),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_kinds_of_targets(kind: str) -> None:
    targets, outputs, classes = TARGETS[kind]
    first, second = (None, None) if targets is None else (targets[:40], targets[40:])
    data = from_arrays((IMAGES[:40], first), (IMAGES[40:], second))
    train, test = data["train"], data["test"]
    assert (train.objective.kind, train.outputs, train.classes, test.objective.kind) == (kind, outputs, classes, kind)
    assert train.unlabelled is (kind == "outputs")
    if targets is not None:
        assert torch.equal(test.labels, second if kind != "numbers" else second.float())
        shape = {"classes": (3,), "maps": (4, 6, 8)}.get(kind, tuple(test.labels.shape[1:]))
        assert test.sample(5).score(torch.randn(5, *shape)).shape == (5,)
    answers = torch.randn(20, 7)
    assert torch.equal(test.answered(answers).labels, answers)
    assert test.answered(answers).score(answers).tolist() == [1.0] * 20


@pytest.mark.parametrize(("targets", "message"), [
    (LABELS.float(), "kind='numbers'"), (torch.eye(3)[LABELS % 3], r"labels.argmax\(1\)"),
    (LABELS[:, None], "kind='labels'"), (torch.randn(60, 2, 2, 2), "Known are"),
    (torch.full((60, 2), 2), "0 and 1 are needed"), (torch.full((60,), torch.nan), "not all finite"),
    (LABELS[:30], "is of shape"), ("cat", "not numbers"),
])  # fmt: skip
def test_targets_that_fit_nothing_are_refused(targets: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        from_arrays((IMAGES, targets), (IMAGES, targets))


def test_whole_numbers_are_targets_if_you_say_so() -> None:
    data = from_arrays((IMAGES, LABELS.float()), (IMAGES, LABELS.float()), kind="numbers")["test"]
    assert data.objective.kind == "numbers"
    assert data.objective.spread == pytest.approx(np.var(LABELS.numpy()))


def test_classes_of_every_kind_are_renumbered_as_the_model_has_them() -> None:
    names = ("a", "b", "c", "d")
    for kind in ("classes", "labels", "maps"):
        targets = TARGETS[kind][0]
        own = names[: TARGETS[kind][1]]
        data = from_arrays((IMAGES, targets), (IMAGES, targets), classes=own)["test"].with_classes(("z", *names[::-1]))
        if kind == "labels":
            expected = torch.cat([torch.zeros(60, 1, dtype=targets.dtype), targets.flip(1)], 1)
        else:
            expected = torch.where(targets < 0, targets, 4 - targets)
        assert torch.equal(data.labels, expected)


def test_class_weights_losses_and_metrics_are_set_together() -> None:
    train = MEMORY["train"].judged(metric="probability", class_weights="balanced")
    count = train.labels.bincount()
    assert train.objective.class_weights == pytest.approx((len(train) / (3 * count)).tolist())
    assert train.judged() is train
    labels = from_arrays((IMAGES, TARGETS["labels"][0]), (IMAGES, TARGETS["labels"][0]))["test"]
    assert labels.judged(class_weights="balanced").objective.class_weights == pytest.approx((2.0, 2.0, 2.0, 60.0))
    for wrong in ("even", (1.0, 2.0), 3):
        with pytest.raises(InvalidInputError, match="one for each class"):
            train.judged(class_weights=wrong)


@pytest.mark.parametrize(("dtype", "factor"), [(np.uint16, 257), (np.float32, 1 / 255), (np.float64, 1 / 255)])
def test_16_bits_and_floats_become_the_same_inputs_as_bytes(dtype: Any, factor: float) -> None:
    images = (IMAGES.numpy().astype(np.float64) * factor).astype(dtype)
    data = from_arrays((images, LABELS), (images, LABELS))["test"]
    plain = from_arrays((IMAGES, LABELS), (IMAGES, LABELS))["test"]
    some = torch.arange(10)
    shifts = [torch.Generator().manual_seed(3) for _ in range(2)]
    found, expected = (one.batch(some, augment=shift) for one, shift in zip((data, plain), shifts, strict=True))
    assert torch.allclose(found, expected, atol=1e-5)


def test_floats_of_a_range_of_their_own_are_left_as_they_are() -> None:
    images = torch.randn(60, 2, 6, 8) * 3
    data = from_arrays((images, LABELS), (images, LABELS))["test"]
    assert torch.equal(data.batch(torch.arange(4)), images[:4])
    span = data.normalisation.low, data.normalisation.high
    assert span == pytest.approx((float(images.min()), float(images.max())))
    assert data.normalisation.of_own_range
    own = from_arrays((images, LABELS), (images, LABELS), normalisation=Normalisation((1.0, 2.0), (3.0, 4.0), -20, 20))
    expected = (images - torch.tensor([1.0, 2.0]).view(2, 1, 1)) / torch.tensor([3.0, 4.0]).view(2, 1, 1)
    assert torch.allclose(own["test"].batch(torch.arange(60)), expected)
    with pytest.raises(InvalidInputError, match="two finite, increasing numbers"):
        dataclasses.replace(data.normalisation, low=1.0, high=1.0)


def test_channels_last_is_recognised_and_never_taken_for_channels() -> None:
    for images in (IMAGES.permute(0, 2, 3, 1), IMAGES.permute(0, 2, 3, 1).numpy()):
        data = from_arrays((images, LABELS), (images, LABELS))["test"]
        assert torch.equal(data.images[:], IMAGES)
    many = torch.zeros(60, 20, 10, 12, dtype=torch.uint8)
    with pytest.raises(InvalidInputError, match="channels may be 20 or 12"):
        from_arrays((many, LABELS), (many, LABELS))
    twelve = Normalisation((0.5,) * 12, (0.5,) * 12)
    assert from_arrays((many, LABELS), (many, LABELS), normalisation=twelve)["test"].image_shape == (12, 20, 10)
