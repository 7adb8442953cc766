"""Torch data sets, and what has their form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset as TorchDataset, IterableDataset, Subset, TensorDataset

from prunegym.errors import InvalidInputError
from prunegym.models.data.sources.layout import channels_are_last
from prunegym.models.data.sources.torch_datasets import class_names, from_torch, torch_items
from prunegym.models.data.transform import Transform
from tests.models.data.data_files import RANDOM

ARRAY = RANDOM.integers(0, 256, (12, 6, 9, 3), dtype=np.uint8)  # channels last
FIRST = torch.from_numpy(ARRAY).permute(0, 3, 1, 2)
LABELS = torch.arange(12) % 3


class Items(TorchDataset[Any]):
    """Items of some form, with labels read one by one."""

    def __init__(self, form: Any) -> None:
        self.form, self.reads = form, 0

    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> Any:
        self.reads += 1
        return self.form(row)


FORMS = {
    "tensor": lambda row: (FIRST[row], int(LABELS[row])),
    "array, channels last": lambda row: (ARRAY[row], LABELS[row]),
    "Pillow": lambda row: [Image.fromarray(ARRAY[row]), np.int64(LABELS[row])],
    "mapping": lambda row: {"img": Image.fromarray(ARRAY[row]), "label": int(LABELS[row])},
    "image": lambda row: FIRST[row],
}


@pytest.mark.parametrize("form", FORMS)
def test_items_of_many_forms(form: str) -> None:
    images, targets = torch_items(Items(FORMS[form]))
    assert images.shape == FIRST.shape
    assert torch.equal(images[torch.tensor([7, 2])], FIRST[[7, 2]])
    assert (targets is None) if form == "image" else torch.equal(targets, LABELS)  # type: ignore[arg-type]


def test_known_targets_spare_a_pass_and_changed_ones_do_not() -> None:
    data = Items(FORMS["tensor"])
    data.targets = LABELS.tolist()
    torch_items(data)
    assert data.reads == 3
    data.targets = (LABELS + 1).tolist()
    assert torch.equal(torch_items(data)[1], LABELS)  # type: ignore[arg-type]
    assert torch.equal(torch_items(data, targets=[[0.5, 1.0]] * 12)[1], torch.tensor([[0.5, 1.0]] * 12))  # type: ignore[arg-type]


def test_subsets_and_names_of_classes() -> None:
    data = Items(FORMS["tensor"])
    data.targets, data.classes = LABELS, ["a", "b", "c"]
    images, targets = torch_items(Subset(data, [4, 2, 9]))
    assert torch.equal(images[torch.arange(3)], FIRST[[4, 2, 9]])
    assert torch.equal(targets, LABELS[[4, 2, 9]])  # type: ignore[arg-type]
    assert class_names(Subset(data, [1])) == ("a", "b", "c")
    assert class_names(TensorDataset(FIRST)) is None


class HuggingFace(Items):
    """What of a Hugging Face split matters here."""

    column_names = ("img", "label")

    class Names:
        names = ("ant", "bee", "cat")

    features = {"img": None, "label": Names}  # noqa: RUF012

    def __getitem__(self, row: Any) -> Any:
        return LABELS.tolist() if row == "label" else super().__getitem__(row)


def test_a_hugging_face_split() -> None:
    data = HuggingFace(FORMS["mapping"])
    images, targets = torch_items(data, transform=Transform((4, 4)))
    assert images[torch.arange(2)].shape == (2, 3, 4, 4)
    assert torch.equal(targets, LABELS)  # type: ignore[arg-type]
    assert class_names(data) == ("ant", "bee", "cat")
    assert data.reads == 5


class Endless(IterableDataset[Tensor]):
    """Has no length."""

    def __iter__(self) -> Any:
        return iter(())


class Negative(TorchDataset[Tensor]):
    """Has a length that Python refuses."""

    def __len__(self) -> int:
        return -1

    def __getitem__(self, row: int) -> Tensor:
        return FIRST[row]


@pytest.mark.parametrize(("data", "message"), [
    (DataLoader(TensorDataset(FIRST)), r"\.dataset"), (Endless(), "no length"), (3, "no length"),
    (Negative(), "length of a Negative cannot be computed"),
    (Items(lambda row: "text"), "are a str"), (Items(lambda row: {"picture": 1}), "pixel_values"), ([], "empty"),
    (Items(lambda row: (torch.zeros(2, 3, 4, 4), 0)), r"\(2, 3, 4, 4\)"),
    (Items(lambda row: (FIRST[row], [0] * (row + 1))), "one shape"),
])  # fmt: skip
def test_other_things_are_refused(data: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        torch_items(data)


@pytest.mark.parametrize(("shape", "last"), [
    ((3, 224, 224), False), ((224, 224, 3), True), ((224, 160, 3), True), ((1, 28, 20), False), ((12, 64, 64), False),
    ((64, 48, 12), True), ((12, 64, 48), False), ((3, 8, 4), False), ((64, 7, 7), False),
])  # fmt: skip
def test_the_place_of_the_channels(shape: tuple[int, ...], last: bool) -> None:
    assert channels_are_last(shape, "They") is last


def test_a_layout_that_could_be_either_is_refused_unless_the_channels_are_known() -> None:
    with pytest.raises(InvalidInputError, match="20 or 12"):
        channels_are_last((20, 10, 12), "They")
    assert channels_are_last((20, 10, 12), "They", 12)


def test_from_torch_makes_all_splits() -> None:
    data = Items(FORMS["Pillow"])
    data.classes = ["a", "b", "c"]
    splits = from_torch(data, Subset(data, [1, 2]), Subset(data, [3]), name="mine", image_size=4, pad=1)
    assert {split: len(part) for split, part in splits.items()} == {"train": 12, "validation": 1, "test": 2}
    test = splits["test"]
    assert (test.name, test.classes, test.image_shape, test.pad) == ("mine", ("a", "b", "c"), (3, 4, 4), 1)
    assert test.transform == Transform((4, 4))
    assert from_torch(Items(FORMS["image"]), Items(FORMS["image"]))["test"].unlabelled


def _gone(_row: int) -> Any:
    raise OSError("gone")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (_gone, "Item 0 of the Items cannot be read: OSError: gone."),
        (lambda row: ("x", 1), "Image 0 is of type <U1; an array of numbers is needed."),
        (lambda row: (FIRST[row].float().to_sparse(), 1), "Image 0 is sparse; a dense array"),
    ],
)
def test_items_that_cannot_be_read_or_are_none(form: Any, message: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        torch_items(Items(form))
    assert message in str(raised.value)
