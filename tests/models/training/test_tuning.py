from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from prunegym.errors import InvalidInputError
from prunegym.models import (
    Dataset,
    GatePolicy,
    ImitationConfig,
    MaskedCNN,
    MaskFeatures,
    PrepareConfig,
    StaticPolicy,
    TuneConfig,
    build,
    load_dataset,
    prepare,
    rollout,
    shipped_model,
    tune,
)
from prunegym.models.storage.run_state import load_state, save_state
from prunegym.models.training.cnn_training import dense_logits
from prunegym.models.training.mac_target import meet_target, penalty_for, total_mac_share
from prunegym.models.training.preparation import imitate


def make_policy(masked: MaskedCNN, dataset: Dataset) -> GatePolicy:
    torch.manual_seed(0)
    return GatePolicy(MaskFeatures(masked).calibrate(masked, dataset), 8)


def states(*modules: torch.nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for module in modules for tensor in module.state_dict().values()]


def test_frozen_refinement_changes_gates_only_and_comes_near_its_target(
    digits_masked: MaskedCNN, digits: Dataset
) -> None:
    policy = make_policy(digits_masked, digits)
    before = states(digits_masked)
    rows: list[dict[str, float]] = []
    config = TuneConfig(0.6, epochs=12, batch_size=64, train_cnn=False)
    tune(digits_masked, policy, digits, config, report=rows.append)
    assert all(torch.equal(old, new) for old, new in zip(before, states(digits_masked), strict=True))
    assert rows[0]["mac_share"] > 0.75
    assert abs(rows[-1]["mac_share"] - 0.6) < 0.05


@pytest.mark.slow
def test_a_dial_is_refined_at_all_its_lambdas() -> None:
    masked, digits = shipped_model("digits").masked, load_dataset("digits", "train")
    torch.manual_seed(0)
    policy = GatePolicy(MaskFeatures(masked).calibrate(masked, digits), 16, penalty_range=(0.1, 0.9))
    imitate(masked, policy, digits, ImitationConfig(steps=300, batch_size=64, mac_share=(0.8, 0.4), augment=False))
    tune(masked, policy, digits, TuneConfig((0.8, 0.4), epochs=20, batch_size=64, train_cnn=False, augment=False))
    spent = [total_mac_share(masked, policy, digits, penalty) for penalty in (0.1, 0.5, 0.9)]
    assert spent == pytest.approx([0.8, 0.6, 0.4], abs=0.06)
    assert spent == sorted(spent, reverse=True)
    penalty = penalty_for(masked, policy, digits, 0.55)
    assert abs(total_mac_share(masked, policy, digits, penalty) - 0.55) < 0.01
    assert penalty_for(masked, policy, digits, 1.0) == pytest.approx(0.1, abs=0.001)


def test_targets_that_fit_no_policy(digits_masked: MaskedCNN, digits: Dataset) -> None:
    policy = make_policy(digits_masked, digits)
    with pytest.raises(InvalidInputError, match=r"for a range of lambdas, but the policy is for one\. Give one share"):
        tune(digits_masked, policy, digits, TuneConfig((0.8, 0.4), epochs=1))
    with pytest.raises(InvalidInputError, match=r"trained for one lambda only\. Train a policy"):
        penalty_for(digits_masked, policy, digits, 0.5)
    with pytest.raises(InvalidInputError, match=r"one share, or two for a range of lambdas, is needed"):
        TuneConfig((0.8, 0.6, 0.4))
    with pytest.raises(InvalidInputError, match=r"a finite number above 0 and at most 1 is needed"):
        TuneConfig((0.8, 0.0))
    with pytest.raises(InvalidInputError, match=r"target_macs is 'best'; a number, or a list of numbers, or null is"):
        TuneConfig("best")
    with pytest.raises(InvalidInputError, match=r"cannot be combined with two MAC targets"):
        TuneConfig((0.8, 0.4), sparsity=0.1)
    with pytest.raises(InvalidInputError, match=r"distillation is 1\.5; a finite number of at least 0 and at most 1"):
        TuneConfig(0.5, distillation=1.5)


def test_joint_training_changes_the_cnn_and_freezes_it_again(digits_masked: MaskedCNN, digits: Dataset) -> None:
    policy = make_policy(digits_masked, digits)
    before = states(digits_masked)
    tune(digits_masked, policy, digits, TuneConfig(0.6, epochs=1, batch_size=64))
    assert any(not torch.equal(old, new) for old, new in zip(before, states(digits_masked), strict=True))
    assert digits_masked.frozen
    assert not any(parameter.requires_grad for parameter in digits_masked.parameters())


def test_a_static_mask_that_may_not_move_stays(digits_masked: MaskedCNN, digits: Dataset) -> None:
    policy = StaticPolicy(MaskFeatures(digits_masked))
    with torch.no_grad():
        policy.channels[0][:8] = -1.0
    before = states(policy)
    tune(digits_masked, policy, digits, TuneConfig(1.0, epochs=1, train_gates=False))
    assert all(torch.equal(old, new) for old, new in zip(before, states(policy), strict=True))
    assert rollout(digits_masked, policy, digits.batch(torch.arange(2))).mask[:, :8].sum() == 0


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(
    digits_masked: MaskedCNN, digits: Dataset, tmp_path: Path
) -> None:
    policy = make_policy(digits_masked, digits)
    config = TuneConfig(0.6, epochs=3, batch_size=128)
    whole, whole_policy = copy.deepcopy(digits_masked), copy.deepcopy(policy)
    tune(whole, whole_policy, digits, config)

    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    broken, broken_policy = copy.deepcopy(digits_masked), copy.deepcopy(policy)
    with pytest.raises(KeyboardInterrupt):
        tune(broken, broken_policy, digits, config, checkpoint=tmp_path / "tune.safetensors", report=stop)
    resumed, resumed_policy = copy.deepcopy(digits_masked), copy.deepcopy(policy)
    rows: list[dict[str, float]] = []
    tune(resumed, resumed_policy, digits, config, checkpoint=f"{tmp_path}/tune.safetensors", report=rows.append)
    assert [row["epoch"] for row in rows] == [3]
    for one, other in zip(states(whole, whole_policy), states(resumed, resumed_policy), strict=True):
        assert torch.equal(one, other)


def test_another_configuration_does_not_resume(digits_masked: MaskedCNN, digits: Dataset, tmp_path: Path) -> None:
    policy, path = make_policy(digits_masked, digits), tmp_path / "tune.safetensors"
    tune(digits_masked, policy, digits, TuneConfig(0.6, epochs=1), checkpoint=path)
    with pytest.raises(InvalidInputError, match=r"was written with other settings .*Give the same options, or"):
        tune(digits_masked, policy, digits, TuneConfig(0.7, epochs=1), checkpoint=path)


def test_a_checkpoint_of_other_inputs_does_not_resume(
    digits_masked: MaskedCNN, digits: Dataset, tmp_path: Path
) -> None:
    policy, path, config = make_policy(digits_masked, digits), tmp_path / "tune.safetensors", TuneConfig(0.6, epochs=1)
    tune(copy.deepcopy(digits_masked), copy.deepcopy(policy), digits, config, checkpoint=path)
    other = MaskedCNN(build("simple-cnn", 10, 1, 8), torch.zeros(1, 1, 8, 8))
    with pytest.raises(InvalidInputError, match=r"has other inputs \(CNN\)\. Give the inputs of that run"):
        tune(other, copy.deepcopy(policy), digits, config, checkpoint=path)
    inverted = dataclasses.replace(digits, images=255 - digits.images)
    with pytest.raises(InvalidInputError, match=r"has other inputs \(training images\)"):
        tune(copy.deepcopy(digits_masked), copy.deepcopy(policy), inverted, config, checkpoint=path)
    with pytest.raises(InvalidInputError, match=r"tune\.safetensors is a checkpoint of another network or other gates"):
        tune(copy.deepcopy(digits_masked), StaticPolicy(policy.features), digits, config, checkpoint=path)


def test_a_checkpoint_from_before_an_option_existed_resumes(
    digits_masked: MaskedCNN, digits: Dataset, tmp_path: Path
) -> None:
    policy, path = make_policy(digits_masked, digits), tmp_path / "tune.safetensors"
    tune(copy.deepcopy(digits_masked), copy.deepcopy(policy), digits, TuneConfig(0.6, epochs=1), checkpoint=path)
    state = load_state(path)
    del state["config"]["sparsity"], state["inputs"]
    save_state(path, state)
    rows: list[dict[str, float]] = []
    tune(digits_masked, policy, digits, TuneConfig(0.6, epochs=1), checkpoint=path, report=rows.append)
    assert rows == []


def test_the_price_of_a_channel_is_the_gradient_of_its_probability(digits_masked: MaskedCNN, digits: Dataset) -> None:
    """One step of Adam from logits of 2, no noise from labels: with a huge lambda only ||M(x)||_1 counts."""
    policy = StaticPolicy(MaskFeatures(digits_masked))
    config = TuneConfig(epochs=0.01, train_cnn=False, sparsity=1e6, gate_learning_rate=0.25)
    rows: list[dict[str, float]] = []
    tune(digits_masked, policy, digits, config, report=rows.append)
    assert rows[0]["loss"] == pytest.approx(1e6 * 48 / (1 + 2.718281828**-2.0), rel=1e-4)
    first = policy.mask_logits()
    assert (first < 2).all()
    torch.testing.assert_close(first, first[:1].expand(48))  # one price for all, whatever their MACs


@pytest.mark.slow
@pytest.mark.parametrize("gates", ["per input", "static"])
def test_a_larger_lambda_keeps_fewer_channels(digits_masked: MaskedCNN, digits: Dataset, gates: str) -> None:
    kept = []
    for sparsity in (0.0, 0.05, 0.5):
        policy = (
            make_policy(digits_masked, digits) if gates == "per input" else StaticPolicy(MaskFeatures(digits_masked))
        )
        config = TuneConfig(epochs=8, batch_size=64, train_cnn=False, sparsity=sparsity, gate_learning_rate=0.02)
        tune(digits_masked, policy, digits, config)
        run = rollout(digits_masked, policy, digits.batch(torch.arange(300)))
        kept.append(float(run.mask.mean()))
    assert kept[0] > kept[1] + 0.1
    assert kept[1] > kept[2] + 0.1


@pytest.mark.slow
def test_a_target_beside_sparsity_is_met_when_training_is_over(digits_masked: MaskedCNN, digits: Dataset) -> None:
    shares = []
    for target in (None, 0.75):
        tuning = TuneConfig(target, epochs=8, batch_size=64, train_cnn=False, sparsity=0.05, gate_learning_rate=0.02)
        masked, policy = prepare(digits_masked, digits, PrepareConfig(None, tuning, hidden=8))
        shares.append(total_mac_share(masked, policy, digits))
    assert shares[0] < 0.6
    assert abs(shares[1] - 0.75) < 0.02


@pytest.mark.parametrize("sparsity", [-0.1, float("nan"), float("inf")])
def test_a_lambda_out_of_range(sparsity: float) -> None:
    with pytest.raises(InvalidInputError, match=rf"sparsity is {sparsity}; a finite number of at least 0"):
        TuneConfig(sparsity=sparsity)
    with pytest.raises(InvalidInputError, match=r"sparsity prices what gates keep, but train_gates is False"):
        TuneConfig(sparsity=0.1, train_gates=False)


def test_half_of_the_macs_is_the_target_where_nothing_else_is_given() -> None:
    assert TuneConfig().target_macs == 0.5
    assert TuneConfig(sparsity=0.01).target_macs is None


def test_dense_logits_are_the_networks(digits_masked: MaskedCNN, digits: Dataset) -> None:
    some = digits.subset(torch.arange(300))
    with torch.no_grad():
        expected = digits_masked.network(digits.batch(torch.arange(300)))
    torch.testing.assert_close(dense_logits(digits_masked, some), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [0.0, 25.0, -25.0])
@pytest.mark.parametrize("target", [0.4, 0.7, 0.95])
def test_one_offset_meets_a_target(digits_masked: MaskedCNN, digits: Dataset, target: float, shift: float) -> None:
    policy = make_policy(digits_masked, digits)
    for head in policy.heads:
        torch.nn.init.normal_(head[2].weight, generator=torch.Generator().manual_seed(0))
    policy.rescale_logits(offset=shift)
    offset = meet_target(digits_masked, policy, digits, target)
    assert abs(offset + shift) < 20
    assert abs(total_mac_share(digits_masked, policy, digits) - target) < 0.02


@pytest.mark.parametrize("target", [0.0, -0.5, float("nan"), "0.5"])
def test_no_offset_meets_a_target_of_nothing(digits_masked: MaskedCNN, digits: Dataset, target: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"target_macs is .*a finite number above 0"):
        meet_target(digits_masked, make_policy(digits_masked, digits), digits, target)


@pytest.mark.parametrize("target", [0.0, 1.5])
def test_a_target_out_of_range(target: float) -> None:
    with pytest.raises(InvalidInputError, match=rf"target_macs is {target}; a finite number above 0 and at most 1"):
        TuneConfig(target_macs=target)


def test_a_target_that_no_mask_reaches_is_refused_before_training(digits_cnn: torch.nn.Module, digits: Dataset) -> None:
    masked = MaskedCNN(digits_cnn, digits.batch(torch.arange(1)), gates=["features.0"])
    least = masked.cost.mac_share(torch.zeros(1, masked.mask_size)).item()
    assert least > 0.01
    with pytest.raises(InvalidInputError, match=rf"target_macs is 0.01, but {least:.3f} of the MACs cannot be skipped"):
        prepare(masked, digits, PrepareConfig(tune=TuneConfig(target_macs=0.01)))
    with pytest.raises(InvalidInputError, match=r"target_macs is \[0.5, 0.01\].*Give a larger share"):
        tune(
            masked,
            GatePolicy(MaskFeatures(masked), 8, penalty_range=(0.1, 1.0)),
            digits,
            TuneConfig(target_macs=[0.5, 0.01]),
        )
