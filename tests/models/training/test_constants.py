"""Constants that are trained with gates, stored in model files, paid for and kept by whatever trains on."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from prunegym.agents import evaluate
from prunegym.envs import MaskSimulator, make_task
from prunegym.errors import InvalidInputError
from prunegym.models import (
    Dataset,
    DynamicCNN,
    GatePolicy,
    MaskedCNN,
    MaskFeatures,
    PrepareConfig,
    StaticPolicy,
    TuneConfig,
    prepare,
    read_model,
    shipped_model,
    tune,
)
from prunegym.models.gating.static_policy import fixed_policy

TUNE = TuneConfig(0.6, epochs=2, batch_size=64, train_cnn=False, augment=False, compensation="constant")


def gates(masked: MaskedCNN, dataset: Dataset) -> GatePolicy:
    torch.manual_seed(0)
    return GatePolicy(MaskFeatures(masked).calibrate(masked, dataset), 8)


@pytest.fixture
def digits_masked() -> MaskedCNN:
    """The shipped CNN, which needs no training here."""
    return shipped_model("digits").masked


@pytest.fixture
def model(digits_masked: MaskedCNN, digits: Dataset) -> DynamicCNN:
    """A CNN whose constants are large, so that they matter."""
    made = DynamicCNN(digits_masked, gates(digits_masked, digits), shipped_model("digits").info)
    made.masked.compensate(torch.linspace(-1, 1, made.masked.mask_size))
    made.policy.rescale_logits(3.0, -6.0)
    return made


def test_gates_and_constants_are_trained_and_no_weight_changes(digits_masked: MaskedCNN, digits: Dataset) -> None:
    before = copy.deepcopy(digits_masked.network.state_dict())
    policy = gates(digits_masked, digits)
    tune(digits_masked, policy, digits, TUNE)
    assert digits_masked.constants is not None
    assert digits_masked.constants.abs().max() > 1e-3
    assert not digits_masked.constants.requires_grad
    assert all(torch.equal(digits_masked.network.state_dict()[name], tensor) for name, tensor in before.items())
    # Trained on, without being asked for again.
    policy.rescale_logits(offset=-2.0)
    earlier = digits_masked.constants.detach().clone()
    tune(digits_masked, policy, digits, dataclasses.replace(TUNE, compensation=None, train_gates=False))
    assert not torch.equal(digits_masked.constants, earlier)


def test_constants_lower_the_loss_of_a_fixed_mask(digits_masked: MaskedCNN, digits: Dataset) -> None:
    """With mask and weights fixed, constants alone are trained."""
    mask = torch.ones(digits_masked.mask_size)
    mask[::2] = 0
    policy = fixed_policy(digits_masked, mask)
    images, rows = digits.batch(torch.arange(512)), mask.expand(512, -1)
    before = digits.loss(digits_masked(images, rows), torch.arange(512)).item()
    tune(digits_masked, policy, digits, dataclasses.replace(TUNE, train_gates=False, distillation=0.0, epochs=4))
    assert digits.loss(digits_masked(images, rows), torch.arange(512)).item() < 0.9 * before
    assert torch.equal(policy.mask_logits() > 0, mask.bool())


def test_training_resumes_with_the_same_constants(digits_masked: MaskedCNN, digits: Dataset, tmp_path: Path) -> None:
    whole, halves = copy.deepcopy(digits_masked), copy.deepcopy(digits_masked)
    tune(whole, gates(whole, digits), digits, TUNE)

    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(halves, gates(halves, digits), digits, TUNE, checkpoint=tmp_path / "tune", report=stop)
    fresh = copy.deepcopy(digits_masked)
    tune(fresh, gates(fresh, digits), digits, TUNE, checkpoint=tmp_path / "tune")
    assert torch.equal(whole.constants, fresh.constants)


def test_a_model_file_has_the_constants(model: DynamicCNN, digits: Dataset, tmp_path: Path) -> None:
    for int8 in (False, True):
        path = tmp_path / f"{int8}.safetensors"
        model.save(path, int8=int8)
        loaded = DynamicCNN.load(path)
        assert torch.equal(loaded.masked.constants, model.masked.constants)
        assert not loaded.masked.constants.requires_grad
        assert int8 or torch.equal(loaded(digits.images[:9]), model(digits.images[:9]))
        with safetensors.safe_open(path, framework="pt") as file:
            description = json.loads(file.metadata()["prunegym"])
        # Versions that know no constants must not run the CNN without them.
        assert description["format"] == 3
    model.masked.compensate(None)
    model.save(path)
    assert read_model(path).masked.constants is None


@pytest.mark.parametrize("damage", ["missing", "short", "nan"])
def test_damaged_constants_are_refused(model: DynamicCNN, damage: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model.save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    name = "compensation.constants"
    values = tensors.pop(name)
    tensors |= {"short": {name: values[:-1]}, "nan": {name: values * float("nan")}}.get(damage, {})
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(InvalidInputError, match=r"damaged|NaN|not finite"):
        DynamicCNN.load(path)


def test_what_images_decide_pays_for_constants_and_a_static_mask_does_not(model: DynamicCNN, digits: Dataset) -> None:
    masked, some = model.masked, digits.sample(40)
    result = evaluate(model, None, some)
    spent = masked.cost.compensation_macs(result.masks) + model.policy.macs
    assert result.distinct_masks > 1
    assert result.policy_mac_share == pytest.approx(spent.mean().item() / masked.cost.total_macs, rel=1e-9)
    shares = model.predict(some.images).mac_share.float()
    torch.testing.assert_close(shares, result.total_mac_shares.float(), rtol=1e-6, atol=0)
    static = evaluate(DynamicCNN(masked, StaticPolicy(model.policy.features, -1.0), model.info), None, some)
    assert (static.policy_mac_share, static.kept_share) == (0.0, 0.0)


def test_environments_pay_for_masks_under_constants(model: DynamicCNN, digits: Dataset) -> None:
    task = make_task(model, digits, reward="macs", accuracy="correct", penalty=0.5, layerwise=True)
    simulator = MaskSimulator(task, 8, np.random.default_rng(0))
    simulator.reset(range(8))
    widths = [gate.width for gate in model.masked.gates]
    actions = np.random.default_rng(1).integers(0, 2, (len(widths), 8, max(widths)))
    rewards = sum(simulator.step(action).reward for action in actions)
    chosen = [action[:, :width] for action, width in zip(actions, widths, strict=True)]
    mask = torch.from_numpy(np.concatenate(chosen, 1)).float()
    right = model.masked(digits.batch(torch.arange(8)), mask).argmax(1) == digits.labels[:8]
    spent = model.masked.cost.macs(mask) + model.masked.cost.compensation_macs(mask)
    np.testing.assert_allclose(rewards, right.double() - 0.5 * spent / model.masked.cost.total_macs, atol=1e-9)


def test_a_static_mask_learns_constants_too(digits_masked: MaskedCNN, digits: Dataset) -> None:
    config = PrepareConfig(imitation=None, tune=TUNE)
    masked, policy = prepare(digits_masked, digits, config, policy=StaticPolicy(MaskFeatures(digits_masked)))
    assert masked.compensation == "constant"
    assert digits_masked.compensation == "zero"  # the CNN that was given is copied
    info = shipped_model("digits").info
    assert DynamicCNN(masked, policy, info).predict(digits.images[:3]).macs.unique().numel() == 1
