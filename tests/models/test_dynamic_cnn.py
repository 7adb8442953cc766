from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from prunegym.errors import InvalidInputError, MissingDataError, UnknownNameError
from prunegym.models import (
    CNNInfo,
    Dataset,
    DynamicCNN,
    GatePolicy,
    MaskedCNN,
    MaskFeatures,
    StaticPolicy,
    build,
    load_dataset,
    load_weights,
    read_model,
    rollout,
    save_weights,
    shipped_model,
    write_model,
)


@pytest.fixture
def model(digits_masked: MaskedCNN, digits: Dataset) -> DynamicCNN:
    torch.manual_seed(0)
    policy = GatePolicy(MaskFeatures(digits_masked).calibrate(digits_masked, digits), 8)
    for head in policy.heads:
        torch.nn.init.normal_(head[2].weight)
    return DynamicCNN(digits_masked, policy, CNNInfo.of("simple-cnn", digits, {"note": "a test"}))


def test_prediction_is_what_the_parts_say(model: DynamicCNN, digits: Dataset) -> None:
    images = digits.images[:20]
    prediction = model.predict(images)
    run = rollout(model.masked, model.policy, digits.batch(torch.arange(20)))
    torch.testing.assert_close(prediction.logits, run.output)
    assert torch.equal(prediction.masks, run.mask.bool())
    assert prediction.masks.unique(dim=0).shape[0] > 10
    kept = prediction.masks.double().split([16, 32], dim=1)
    first, second = kept[0].sum(1), kept[1].sum(1)
    by_hand = first * 9 * 64 + first * second * 9 * 16 + second * 4 * 10 + model.policy.macs
    assert torch.equal(prediction.macs, by_hand)
    assert prediction.names == [str(int(label)) for label in run.output.argmax(1)]


def test_a_lambda_for_a_policy_of_one_is_an_error(model: DynamicCNN, digits: Dataset) -> None:
    for call in (model, model.predict):
        with pytest.raises(
            InvalidInputError, match=r"penalty is 0\.3, but the policy was trained for one lambda.*recipe"
        ):
            call(digits.images[:2], penalty=0.3)


def test_floats_in_0_1_and_bytes_give_the_same(model: DynamicCNN, digits: Dataset) -> None:
    torch.testing.assert_close(model(digits.images[:8]), model(digits.images[:8].float() / 255), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["policy", "static"])
def test_a_saved_model_predicts_the_same(model: DynamicCNN, digits: Dataset, tmp_path: Path, kind: str) -> None:
    if kind == "static":
        policy = StaticPolicy(MaskFeatures(model.masked))
        with torch.no_grad():
            policy.channels[1][::2] = -1.0
        model = DynamicCNN(model.masked, policy, model.info)
    model.save(tmp_path / "model.safetensors")
    loaded = DynamicCNN.load(tmp_path / "model.safetensors")
    before, after = model.predict(digits.images[:50]), loaded.predict(digits.images[:50])
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.masks, after.masks)
    assert torch.equal(before.macs, after.macs)
    assert loaded.info == model.info


def test_a_network_of_ones_own_is_given_at_loading(model: DynamicCNN, digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    DynamicCNN(model.masked, model.policy, CNNInfo.of("mine", digits)).save(path)
    with pytest.raises(InvalidInputError, match=r"has weights of 'mine', which is not in the zoo\."):
        DynamicCNN.load(path)
    loaded = DynamicCNN.load(path, network=build("simple-cnn", in_channels=1, image_size=8, seed=5))
    assert torch.equal(loaded.predict(digits.images[:5]).logits, model.predict(digits.images[:5]).logits)


def test_files_that_are_no_models(model: DynamicCNN, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"There is no model file .*none\.safetensors"):
        DynamicCNN.load(tmp_path / "none.safetensors")
    write_model(tmp_path / "cnn.safetensors", model.masked.network, model.info)
    with pytest.raises(InvalidInputError, match=r"is a CNN without a gate policy\. Train one with `prunegym train`"):
        DynamicCNN.load(tmp_path / "cnn.safetensors")
    save_weights(model.masked.network, tmp_path / "bare.safetensors")
    with pytest.raises(InvalidInputError, match=r"has weights but no description of the network"):
        DynamicCNN.load(tmp_path / "bare.safetensors")
    (tmp_path / "text.safetensors").write_text("not a model")
    with pytest.raises(InvalidInputError, match=r"is not a safetensors file"):
        DynamicCNN.load(tmp_path / "text.safetensors")


def test_a_description_of_other_images_is_not_written(model: DynamicCNN, tmp_path: Path) -> None:
    for network in (build("simple-cnn"), build("simple-cnn", in_channels=1, image_size=16)):
        with pytest.raises(
            InvalidInputError, match=r"cannot run an image of shape \(1, 8, 8\), as its description says"
        ):
            write_model(tmp_path / "cnn.safetensors", network, model.info)
    assert not list(tmp_path.iterdir())


def test_paths_may_be_strings(model: DynamicCNN, tmp_path: Path) -> None:
    path, weights = f"{tmp_path}/model.safetensors", f"{tmp_path}/weights.safetensors"
    write_model(path, model.masked.network, model.info)
    save_weights(model.masked.network, weights)
    stored = read_model(path).masked.network
    loaded = load_weights(build("simple-cnn", in_channels=1, image_size=8), weights)
    for name, tensor in model.masked.network.state_dict().items():
        assert torch.equal(stored.state_dict()[name], tensor)
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_newer_format_is_refused(model: DynamicCNN, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model.save(path)
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, metadata={"prunegym": json.dumps({"format": 99})})
    with pytest.raises(
        InvalidInputError, match=r"has format 99; this version of PruneGym reads formats 1 to 3\. Update it\."
    ):
        DynamicCNN.load(path)


DAMAGES = {
    "not JSON": "nonsense",
    "no object": "[1]",
    "info": None,
    "features": None,
    "info.architecture": None,
    "info.normalisation": "nothing",
    "info.normalisation.mean": [0.1, 0.2],
    "info.image_shape": [8, 8],
    "info.num_classes": 3,
    "info.classes": ["a"],
    "features.other": 1,
    "policy.kind": "Foo",
    "policy.penalty_range": [1],
}


@pytest.mark.parametrize("place", DAMAGES)
def test_damaged_descriptions(model: DynamicCNN, place: str, tmp_path: Path) -> None:
    path, damage = tmp_path / "model.safetensors", DAMAGES[place]
    model.save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        text = file.metadata()["prunegym"]
    if place in ("not JSON", "no object"):
        text = damage
    else:
        described = json.loads(text)
        *folders, name = place.split(".")
        part = functools.reduce(dict.__getitem__, folders, described)
        if damage is None:
            del part[name]
        else:
            part[name] = damage
        text = json.dumps(described)
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata={"prunegym": text})
    with pytest.raises(InvalidInputError, match=r"model.safetensors is damaged: its description of the"):
        DynamicCNN.load(path)


@pytest.mark.parametrize("early_logits", [False, True])
def test_files_that_say_whether_there_are_early_logits(model: DynamicCNN, tmp_path: Path, early_logits: bool) -> None:
    """Those without load as before; PruneGym no longer has early logits, so others are refused."""
    path = tmp_path / "model.safetensors"
    model.save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["prunegym"])
    described["features"]["early_logits"] = early_logits
    text = json.dumps(described)
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata={"prunegym": text})
    if early_logits:
        with pytest.raises(InvalidInputError, match=r"model\.safetensors uses early logits .* train the gates again"):
            DynamicCNN.load(path)
    else:
        loaded = DynamicCNN.load(path).policy
        assert loaded.features.config == model.policy.features.config
        for name, tensor in model.policy.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)


def test_deviations_of_zero(model: DynamicCNN, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model.policy.features.get_buffer("std0").zero_()
    model.save(path)
    with pytest.raises(InvalidInputError, match=r"damaged: its policy divides by standard deviations of 0"):
        DynamicCNN.load(path)


def test_a_policy_is_stored_with_its_gates(model: DynamicCNN, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"stored with its masked CNN\. Give masked= too"):
        write_model(tmp_path / "model.safetensors", model.masked.network, model.info, model.policy)


@pytest.mark.parametrize("execution", ["masked", "auto", "full", "torch"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_floats(dtype: torch.dtype, execution: str) -> None:
    images = load_dataset("digits", "test").images[:50]
    expected = shipped_model("digits").predict(images)
    model = shipped_model("digits").to(dtype)
    model.execution = execution
    found = model.predict(images)
    same = (found.masks == expected.masks).all(1)
    assert same.float().mean() > 0.5
    # An image whose mask was a matter of rounding has other logits.
    torch.testing.assert_close(found.logits[same], expected.logits[same], atol=0.2, rtol=0.05)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"tensor is of shape \(1, 3, 8, 8\); \(batch, 1, 8, 8\) is"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), r"The image tensor is of shape \(1, 8, 8\)"),
        (
            torch.full((1, 1, 8, 8), 3.0),
            r"Images are torch\.float32 from 3 to 3; uint8 in 0\.\.255 or floats in \[0, 1\]",
        ),
        (torch.full((1, 1, 8, 8), float("nan")), r"Images are torch\.float32 from nan to nan"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.int64), r"Images are torch\.int64"),
    ],
)
def test_wrong_images(model: DynamicCNN, images: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        model.predict(images)


def test_the_shipped_model_is_good_and_small() -> None:
    model, test = shipped_model("digits"), load_dataset("digits", "test")
    prediction = model.predict(test.images)
    assert float((prediction.labels == test.labels).float().mean()) > 0.97
    assert float(prediction.mac_share.mean()) < 0.55
    assert sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) < 1_000_000


def test_an_unknown_shipped_model() -> None:
    with pytest.raises(
        UnknownNameError, match=r"Unknown shipped model 'digit'\. Did you mean 'digits'\? Known: digits\."
    ):
        shipped_model("digit")


def test_more_outputs_than_classes(digits: Dataset) -> None:
    masked = MaskedCNN(build("simple-cnn", 1000, 1, 8), torch.zeros(1, 1, 8, 8))
    model = DynamicCNN(masked, StaticPolicy(MaskFeatures(masked)), CNNInfo.of("simple-cnn", digits))
    prediction = model.predict(digits.images[:50])
    assert max(prediction.labels) >= 10
    assert prediction.names == [str(int(label)) for label in prediction.labels]


def test_a_policy_of_another_cnn(model: DynamicCNN) -> None:
    other = MaskedCNN(build("simple-cnn", 10, 1, 8), torch.zeros(1, 1, 8, 8))
    with pytest.raises(InvalidInputError, match=r"policy decides gates of widths \[.*those of the CNN have \[16, 32\]"):
        DynamicCNN(other, shipped_model().policy, model.info)


def test_images_that_are_none(model: DynamicCNN) -> None:
    with pytest.raises(InvalidInputError, match=r"The image tensor is of type object; .*Give a tensor of shape"):
        model.predict(None)  # type: ignore[arg-type]
