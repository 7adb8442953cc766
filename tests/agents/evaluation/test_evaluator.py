"""Figures of an evaluation against loops over single images, and what it takes them from."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

import prunegym  # noqa: F401  (registers the ids)
from prunegym.agents.evaluation.evaluator import JSON_KEYS, evaluate
from prunegym.agents.evaluation.masks import MaskCache, Masks, derangement
from prunegym.errors import InvalidInputError
from prunegym.models import CNNInfo, DynamicCNN, MaskedCNN, build, load_dataset
from prunegym.models.timing.latency_table import Axis, LatencyTable, Part
from tests.envs.mask_oracle import FULL_MACS, counted, hooked_logits, random_masks

ISSUE_KEYS = (
    "accuracy dense_accuracy prepared_accuracy kept_share mac_share policy_mac_share total_mac_share mac_share_std "
    "distinct_masks static_accuracy shuffled_accuracy reward images"
)


def brute_force(network, dataset, masks):
    """Accuracy, one image at a time."""
    right = 0
    for index in range(len(dataset)):
        logits = hooked_logits(network, dataset, [index], masks[index : index + 1])
        right += int(logits.argmax()) == int(dataset.labels[index])
    return right / len(dataset)


def test_figures_agree_with_loops_over_single_images(digits_cnn, masked, few):
    masks = random_masks(40).bool()
    result = evaluate(masks, masked, few, penalty=0.3, batch_size=7)

    shares = counted(masks)[2].tolist()
    counts = Counter(channel for mask in masks for channel in mask.nonzero()[:, 0].tolist())
    static = torch.zeros(48, dtype=torch.bool)
    for first, width in ((0, 16), (16, 32)):
        kept = round(sum(counts[channel] for channel in range(first, first + width)) / 40)
        best = sorted(range(first, first + width), key=lambda channel: (-counts[channel], channel))[:kept]
        static[best] = True
    order = derangement(40)

    assert result.accuracy == pytest.approx(brute_force(digits_cnn, few, masks))
    assert (
        result.dense_accuracy
        == result.prepared_accuracy
        == pytest.approx(brute_force(digits_cnn, few, torch.ones(40, 48)))
    )
    assert result.static_accuracy == pytest.approx(brute_force(digits_cnn, few, static.expand(40, -1)))
    assert result.shuffled_accuracy == pytest.approx(brute_force(digits_cnn, few, masks[order]))
    assert result.kept_share == pytest.approx(masks.float().mean().item())
    assert result.mac_share == pytest.approx(sum(shares) / 40)
    assert result.mac_share_std == pytest.approx(np.std(shares))
    assert result.policy_mac_share == 0
    assert result.total_mac_share == result.mac_share
    assert result.reward == pytest.approx(result.accuracy - 0.3 * result.mac_share)
    assert result.distinct_masks == len({tuple(mask.tolist()) for mask in masks}) == 40
    assert result.images == 40
    assert torch.equal(result.masks, masks)
    one = hooked_logits(digits_cnn, few, [3], masks[3:4])[0]
    assert torch.allclose(result.logits[3], one, atol=1e-5)


def test_json_has_the_keys_of_the_issue_and_plain_numbers(masked, few):
    figures = evaluate(torch.ones(48), masked, few).as_json()
    assert tuple(figures) == JSON_KEYS == tuple(ISSUE_KEYS.split())
    assert all(type(value) in (int, float) for value in figures.values())


def test_latency_share_by_hand(masked, few):
    """A second for each kept channel of the first gate, and two that are fixed."""
    gates = tuple((gate.name, gate.width) for gate in masked.gates)
    width = gates[0][1]
    part = Part("a", Axis({}, 1.0, (1.0,)), Axis({0: 1.0}, 0.0, (0.0, float(width))), ((0.0, float(width)),))
    table = LatencyTable("hand", gates, 2.0, (part,), policy=1.0)
    mask = torch.zeros(masked.mask_size, dtype=torch.bool)
    mask[:5] = True
    result = evaluate(mask, masked, few, latency=table)
    assert result.as_json()["latency_share"] == result.latency_share == pytest.approx(7 / (2 + width))
    assert "latency_share" not in evaluate(mask, masked, few).as_json()
    with pytest.raises(InvalidInputError, match=r"Measure one for it: prunegym latency MODEL --out table\.json"):
        evaluate(mask, masked, few, latency=dataclasses.replace(table, gates=gates[:1]))


def test_one_mask_is_static_and_its_controls_equal_it(masked, few):
    result = evaluate(random_masks(1)[0], masked, few)
    assert result.is_static
    assert result.verdict == "Static: every image gets the same mask."
    assert result.accuracy == result.static_accuracy == result.shuffled_accuracy
    assert result.mac_share_std == 0


def test_no_image_runs_twice_under_the_same_mask(masked, few):
    run = []
    masked.register_forward_hook(lambda _module, inputs, _output: run.append(len(inputs[0])))
    cache = MaskCache(masked, few, batch_size=16)
    ones = torch.ones(48, dtype=torch.bool)
    masks = random_masks(40).bool()
    masks[:10] = True
    cache(ones)
    assert run == [16, 16, 8]
    cache(masks)
    assert sum(run) == 70
    cache(masks)
    cache(ones)
    assert sum(run) == 70


def test_static_evaluation_costs_two_passes(masked, few, monkeypatch):
    images = []
    forward = type(masked).forward
    monkeypatch.setattr(type(masked), "forward", lambda self, x, m=None: images.append(len(x)) or forward(self, x, m))
    evaluate(random_masks(1)[0], masked, few)
    assert sum(images) == 80


def test_dynamic_cnn_agrees_with_its_own_predict(dynamic, few):
    result = evaluate(dynamic, None, few, batch_size=16)
    prediction = dynamic.predict(few.images)
    assert torch.equal(result.masks, prediction.masks)
    assert result.accuracy == pytest.approx((prediction.labels == few.labels).double().mean().item())
    assert result.total_mac_share == pytest.approx(prediction.mac_share.mean().item())
    assert result.policy_mac_share == pytest.approx(dynamic.policy.macs / FULL_MACS)
    assert result.distinct_masks > 10


def test_dynamic_cnn_uses_its_own_normalisation(dynamic, few):
    import dataclasses

    from prunegym.models import Normalisation

    other = dataclasses.replace(few, normalisation=Normalisation((0.0,), (0.1,)))
    assert torch.equal(evaluate(dynamic, None, other).masks, evaluate(dynamic, None, few).masks)


def test_dense_accuracy_is_that_of_the_network_given(masked, few):
    other = build("simple-cnn", 10, 1, 8, seed=5)
    right = other.eval()(few.batch(torch.arange(40))).argmax(1) == few.labels
    result = evaluate(torch.ones(48), masked, few, dense=other.train())
    assert result.dense_accuracy == pytest.approx(right.double().mean().item())
    assert result.prepared_accuracy == result.accuracy != result.dense_accuracy
    assert other.training
    assert result.notes == ()


def test_dense_accuracy_is_read_from_the_model_file_for_the_very_same_images(dynamic, few):
    info = CNNInfo.of("simple-cnn", few).with_dense_accuracy({few: 0.875, load_dataset("digits"): 0.5})
    model = DynamicCNN(dynamic.masked, dynamic.policy, info)
    result = evaluate(model, None, few)
    assert result.dense_accuracy == 0.875
    assert result.notes == ()
    others = (
        few.subset(torch.arange(39)),
        dataclasses.replace(few, images=255 - few.images),
        load_dataset("digits", "test"),
    )
    for other in others:  # all are called digits/test
        result = evaluate(model, None, other)
        assert result.dense_accuracy == result.prepared_accuracy != 0.875
        assert result.notes == ("Dense accuracy is that of the model's own CNN with all channels on.",)


def test_dense_accuracy_says_when_it_is_its_own(masked, few):
    assert evaluate(torch.ones(48), masked, few).notes == (
        "Dense accuracy is that of the model's own CNN with all channels on.",
    )


def test_a_network_in_training_mode_is_evaluated_in_eval_mode_and_left_as_it_was(few):
    network = build("simple-cnn-wide", 10, 1, 8)
    masked = MaskedCNN(network, torch.zeros(1, 1, 8, 8), frozen=False)
    masked.train()
    before = {name: value.clone() for name, value in masked.state_dict().items()}
    result = evaluate(torch.ones(masked.mask_size), masked, few)
    assert masked.training
    assert all(torch.equal(value, before[name]) for name, value in masked.state_dict().items())
    expected = network.eval()(few.batch(torch.arange(40))).argmax(1) == few.labels
    assert torch.equal(result.correct, expected)


def test_wrong_masks_are_refused(masked, few):
    message = "The mask 'masks' is of shape (39, 48); (40, 48) is needed. Give (48,) for one mask for all images"
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        evaluate(torch.ones(39, 48), masked, few)
    with pytest.raises(InvalidInputError, match=r"of shape \(47,\); \(48,\) is needed"):
        evaluate(torch.ones(47), masked, few)
    with pytest.raises(InvalidInputError, match=r"The mask 'halves' has the value 0.5; only 0 and 1 are allowed."):
        evaluate(Masks("halves", torch.full((48,), 0.5)), masked, few)
    with pytest.raises(InvalidInputError, match=r"has the value nan; only 0 and 1"):
        evaluate(np.full(48, np.nan), masked, few)


def test_a_data_set_is_no_name(masked):
    with pytest.raises(
        InvalidInputError, match=r"The data set is 'digits'; a Dataset is needed. For example load_dataset"
    ):
        evaluate(torch.ones(48), masked, "digits")


def test_missing_model_is_refused(few):
    with pytest.raises(InvalidInputError, match=r"The model is a NoneType; a name, .* a MaskedCNN, a DynamicCNN"):
        evaluate(torch.ones(48), None, few)


def test_output_that_is_no_classification_is_refused(few):
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))
    message = "output per image has shape (1, 8, 8), but data set 'digits' has 10 classes, and one number per class"
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        evaluate(torch.ones(4), network, few)


def test_images_of_another_size_or_with_more_classes_are_refused(masked, dynamic, few):
    large = dataclasses.replace(few, images=few.images.repeat(1, 1, 2, 2))
    more = dataclasses.replace(few, classes=tuple(map(str, range(12))))
    for agent, told in (
        (torch.ones(48), r"output per image has shape \(10,\), .* has 12"),
        (dynamic, "has 12 .* model has 10"),
    ):
        message = "takes images of shape (1, 8, 8), those of data set 'digits' have (1, 16, 16)"
        with pytest.raises(InvalidInputError, match=re.escape(message)):
            evaluate(agent, masked, large)
        with pytest.raises(InvalidInputError, match=told):
            evaluate(agent, masked, more)
    resnet = MaskedCNN(build("resnet20", 10, 1, 16), torch.zeros(1, 1, 16, 16))
    with pytest.raises(InvalidInputError, match=r"takes images of shape \(1, 16, 16\)"):  # it could, with other MACs
        evaluate(torch.ones(resnet.mask_size), resnet, few)


@pytest.mark.parametrize(
    ("dense", "message"),
    [
        (build("simple-cnn", 5, 1, 8), "dense is a SimpleCNN whose output per image has shape (5,), but"),
        (build("simple-cnn", 10, 1, 16), "dense is a SimpleCNN, which cannot run a normalised image of data set"),
        (build("simple-cnn", 10, 3, 8), "dense is a SimpleCNN, which cannot run a normalised image of data set"),
        ("cnn.safetensors", "dense is a str; a torch module is needed, e.g. prunegym.build(name)"),
    ],
)
def test_a_dense_network_that_does_not_fit_is_refused(masked, few, dense, message):
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        evaluate(torch.ones(48), masked, few, dense=dense)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"penalty": "0.5"}, "penalty is '0.5'; a finite number of at least 0 is needed"),
        ({"penalty": float("nan")}, "penalty is nan; a finite number"),
        ({"penalty": -1}, "penalty is -1; a finite number"),
        ({"batch_size": 0}, "batch_size is 0; a whole number of at least 1 is needed"),
        ({"batch_size": 2.5}, "batch_size is 2.5; a whole number"),
    ],
)
def test_wrong_numbers_are_refused(masked, few, arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        evaluate(torch.ones(48), masked, few, **arguments)
