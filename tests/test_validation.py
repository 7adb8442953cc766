"""The checks that all rooms share: what they take, and what they say of the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.validation import array, bits, choice, finite, instance, shape, share, whole_number


@pytest.mark.parametrize("value", [1, 7, np.int64(3)])
def test_whole_numbers_are_returned_as_int(value) -> None:
    assert whole_number("size", value, high=7) == int(value)
    assert type(whole_number("size", value)) is int


@pytest.mark.parametrize("value", [0, 8, True, 1.0, "1", None, float("nan"), np.float32(2)])
def test_other_things_are_no_whole_numbers(value) -> None:
    with pytest.raises(InvalidInputError, match=r"^size is .*; a whole number from 1 to 7 is needed\. Take 4\.$"):
        whole_number("size", value, high=7, hint="Take 4.")


@pytest.mark.parametrize("value", [0, 0.5, np.float32(1), 1])
def test_finite_numbers_are_returned_as_float(value) -> None:
    assert finite("rate", value, 0, 1) == float(value)
    assert type(finite("rate", value)) is float


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.1, True, "0.5", None, 1j, torch.tensor(0.5)])
def test_other_things_are_no_finite_numbers(value) -> None:
    with pytest.raises(
        InvalidInputError, match=r"^rate is .*; a finite number of at least 0 and at most 1 is needed\.$"
    ):
        finite("rate", value, 0, 1)


def test_the_messages_of_finite_name_the_bounds_that_there_are() -> None:
    for bounds, needed in (
        ({}, "a finite number is needed."),
        ({"low": 2}, "a finite number of at least 2 is needed."),
        ({"high": 2}, "a finite number at most 2 is needed."),
        ({"above": 0}, "a finite number above 0 is needed."),
    ):
        with pytest.raises(InvalidInputError, match=f"^rate is nan; {needed}$"):
            finite("rate", float("nan"), **bounds)


@pytest.mark.parametrize(
    "given",
    [
        [[1, 2], [3, 4]],
        np.array([[1, 2], [3, 4]], ">i4"),
        np.array([[3, 4], [1, 2]])[::-1],
        np.broadcast_to(np.array([[1.0, 2], [3, 4]]), (2, 2)),
        torch.tensor([[1.0, 2], [3, 4]], requires_grad=True),
    ],
)
def test_arrays_in_any_form_are_arrays_for_torch(given) -> None:
    assert torch.as_tensor(array("mask", given)).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "given",
    ["11", None, {1}, {"a": 1}, [1, "b"], [[1], [1, 2]], object(), np.ones(2, "datetime64[s]"), np.ones(2, complex),
     np.ones(2, [("a", int)]), torch.ones(2).to_sparse(), torch.ones(2, device="meta")],
)  # fmt: skip
def test_other_things_are_no_arrays(given) -> None:
    with pytest.raises(
        InvalidInputError, match=r"^mask is .* is needed\. Give bits\.$|^mask is not an array .* Give bits\.$"
    ):
        array("mask", given, "Give bits.")


def test_classes() -> None:
    assert instance("name", "x", (str, int)) == "x"
    with pytest.raises(InvalidInputError, match=r"^name is a float; str or int is needed\. Give one\.$"):
        instance("name", 1.5, (str, int), "Give one.")


def test_shares() -> None:
    assert share("kept_share", 1) == 1.0
    assert share("kept_share", 0, zero=True) == 0.0
    for value in (0, 1.01, -1, "half"):
        with pytest.raises(InvalidInputError, match="above 0 and at most 1"):
            share("kept_share", value)


@pytest.mark.parametrize("value", ["macz", None, 3, ["macs"]])
def test_choices(value) -> None:
    assert choice("reward", "macs", {"macs": 1, "l0": 2}) == "macs"
    with pytest.raises(UnknownNameError, match=r"^Unknown reward .*Known: l0, macs"):
        choice("reward", value, ["macs", "l0"])
    with pytest.raises(UnknownNameError, match="Did you mean 'macs'"):
        choice("reward", "macz", ["macs", "l0"])


def test_shapes() -> None:
    images = torch.zeros(4, 3, 8, 8)
    assert shape("Images", images, ("batch", 3, "side", "side")) is images
    for wrong in (images[0], torch.zeros(4, 3, 8, 9), np.zeros((4, 1, 8, 8))):
        with pytest.raises(
            InvalidInputError, match=r"^Images is of shape \(.*\); \(batch, 3, side, side\) is needed\.$"
        ):
            shape("Images", wrong, ("batch", 3, "side", "side"))
    with pytest.raises(InvalidInputError, match=r"Images is a list; .* Give a tensor."):
        shape("Images", [1], ("batch",), hint="Give a tensor.")


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_bits(kind) -> None:
    for fine in ([0, 1], [0.0, 1.0], [True, False]):
        assert bits("The mask", kind(fine)) is not None
    for wrong in ([0.0, 0.5], [2, 1], [float("nan"), 1.0]):
        with pytest.raises(
            InvalidInputError, match=r"The mask has the value .*; only 0 and 1 are allowed. Threshold it."
        ):
            bits("The mask", kind(wrong), hint="Threshold it.")
