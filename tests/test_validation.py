"""The checks that all rooms share: what they take, and what they say of the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunegym import agents, envs, models
from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models.timing.latency_table import LatencyTable
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


CALLS = {
    "taylor_scores": lambda model, data: models.taylor_scores(model.masked, 3),
    "fixed_policy": lambda model, data: models.fixed_policy(model.masked, "all"),
    "rollout": lambda model, data: models.rollout(model.masked, model.policy, [1]),
    "static_start": lambda model, data: models.static_start(model.masked.network, data, 0.5, learned=True),
    "GatePolicy": lambda model, data: models.GatePolicy(3),
    "StaticPolicy": lambda model, data: models.StaticPolicy(model.masked),
    "MaskFeatures": lambda model, data: models.MaskFeatures(model.masked.network),
    "DynamicCNN": lambda model, data: models.DynamicCNN(model.masked, None, model.info),
    "DynamicCNN of a plain network": lambda model, data: models.DynamicCNN(
        model.masked.network, model.policy, model.info
    ),
    "CNNInfo.of": lambda model, data: models.CNNInfo.of("simple-cnn", "digits"),
    "write_model": lambda model, data: models.write_model("m.safetensors", model.masked.network, "simple-cnn"),
    "read_model": lambda model, data: models.read_model("m.safetensors", torch.nn.Conv2d),
    "load_weights": lambda model, data: models.load_weights({}, "w.safetensors"),
    "l1_norm": lambda model, data: models.l1_norm("network"),
    "check_pruning": lambda model, data: models.check_pruning(model.masked.network, [1]),
    "as_dynamic_cnn": lambda model, data: models.as_dynamic_cnn(model.masked.network, "digits"),
    "meet_target": lambda model, data: models.meet_target(model.masked, None, data, 0.5),
    "imitate": lambda model, data: models.imitate(model.masked, model.policy, data, None),
    "new_policy": lambda model, data: models.new_policy(model.masked, data, {}),
    "tune": lambda model, data: models.tune(model.masked, model.policy, data, None),
    "train_agent": lambda model, data: agents.train_agent(model.masked, None, data, data, "digits", "out"),
    "prepare": lambda model, data: models.prepare(model.masked, data, 3),
    "finetune": lambda model, data: agents.finetune(model, data, data, "digits", None, "out"),
    "gates_at_mac_share": lambda model, data: agents.gates_at_mac_share(model.masked, data, 0.5),
    "learned_static": lambda model, data: agents.learned_static(model.masked, model.info, "digits", 0.5),
    "LazyImages": lambda model, data: models.LazyImages(3),
    "GroupAdvantage": lambda model, data: envs.GroupAdvantage(3),
    "path of a model": lambda model, data: models.DynamicCNN.load(None),
    "path of a table": lambda model, data: LatencyTable.load(3),
    "path to save at": lambda model, data: model.save(3),
    "path to export to": lambda model, data: model.export_onnx(None),
    "out": lambda model, data: agents.compare(["l1"], model, data, [0], out=3),
    "make_baseline": lambda model, data: agents.make_baseline("l1", model, 0.5),
}


@pytest.mark.parametrize("call", CALLS)
def test_arguments_of_another_class(call) -> None:
    model, data = models.shipped_model(), models.load_dataset("digits", "validation")
    with pytest.raises(InvalidInputError, match=r"^\w+ is a \w+; [\w ]+ is needed\.( For example .*)?$"):
        CALLS[call](model, data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.PrepareConfig(layerwise="yes"), "layerwise is 'yes'; true or false is needed"),
        (lambda: models.PrepareConfig(tune=3), "tune is 3; a group of settings, or null is needed"),
        (lambda: models.PrepareConfig(kinds="average"), "kinds is 'average'; "),
        (lambda: models.TuneConfig(train_cnn="no"), "train_cnn is 'no'; true or false is needed"),
        (lambda: models.TuneConfig(augment="x"), "augment is 'x'; true or false, or 'flip' is needed"),
        (lambda: models.ImitationConfig(augment=1), "augment is 1; true or false, or 'flip' is needed"),
    ],
)
def test_settings_of_another_type(make, message) -> None:
    with pytest.raises(InvalidInputError) as raised:
        make()
    assert message in str(raised.value)
    assert models.TuneConfig(epochs=np.float32(2), batch_size=np.int64(8)).batch_size == 8
