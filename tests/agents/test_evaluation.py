from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from torch import nn

import prunegym  # noqa: F401  (registers the ids)
from prunegym.agents.controls import Usage, count_distinct, deal_out, difficulty, static_mask, verdict
from prunegym.agents.deciding import Masks
from prunegym.agents.evaluation import JSON_KEYS, Bench, evaluate
from prunegym.agents.loading import AgentError
from prunegym.agents.policies import MaskPolicy
from prunegym.agents.predicting import PredictorOptions
from prunegym.envs import MaskVecEnv
from prunegym.models import CNNInfo, DynamicCNN, GatePolicy, MaskedCNN, MaskFeatures, build, load_dataset
from prunegym.models.errors import InvalidInputError
from prunegym.models.latency import Axis, LatencyTable, Part

ISSUE_KEYS = (
    "accuracy dense_accuracy prepared_accuracy kept_share mac_share policy_mac_share total_mac_share mac_share_std "
    "distinct_masks static_accuracy shuffled_accuracy reward images"
)


def hooked_logits(network, image, mask):
    """The plain network on one image, its two ReLUs multiplied by the mask: no code of ours."""
    parts = {"2": mask[:16], "5": mask[16:]}
    handles = [
        network.features.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, part=part: out * part.float().view(1, -1, 1, 1)
        )
        for name, part in parts.items()
    ]
    with torch.no_grad():
        logits = network(image)[0]
    for handle in handles:
        handle.remove()
    return logits


def hand_macs(mask):
    """MACs of the 1-16-32 network on 8x8 images."""
    first, second = int(mask[:16].sum()), int(mask[16:].sum())
    return first * 9 * 64 + first * second * 9 * 16 + second * 4 * 10


def brute_force(network, dataset, masks):
    """Accuracy, one image at a time."""
    right = 0
    for index in range(len(dataset)):
        logits = hooked_logits(network, dataset.batch(torch.tensor([index])), masks[index])
        right += int(logits.argmax()) == int(dataset.labels[index])
    return right / len(dataset)


def random_masks(count, share=0.7, seed=0):
    return torch.rand(count, 48, generator=torch.Generator().manual_seed(seed)) < share


def test_figures_agree_with_loops_over_single_images(digits_cnn, masked, few):
    masks = random_masks(40)
    result = evaluate(masks, masked, few, penalty=0.3, batch_size=7)

    full = hand_macs(torch.ones(48))
    shares = [hand_macs(mask) / full for mask in masks]
    counts = Counter(channel for mask in masks for channel in mask.nonzero()[:, 0].tolist())
    static = torch.zeros(48, dtype=torch.bool)
    for first, width in ((0, 16), (16, 32)):
        kept = round(sum(counts[channel] for channel in range(first, first + width)) / 40)
        best = sorted(range(first, first + width), key=lambda channel: (-counts[channel], channel))[:kept]
        static[best] = True
    order = deal_out(40)

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
    one = hooked_logits(digits_cnn, few.batch(torch.tensor([3])), masks[3])
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


def test_controls_of_masks_that_carry_the_label(two_channels, votes):
    """A mask per label is always right; the most often kept channel is right for 9 of 12; shuffled by count."""
    masks = nn.functional.one_hot(votes.labels, 2)
    result = evaluate(masks, two_channels, votes)
    dealt = votes.labels[deal_out(12)]
    assert result.accuracy == 1.0
    assert result.static_accuracy == 9 / 12
    assert result.shuffled_accuracy == pytest.approx((dealt == votes.labels).double().mean().item())
    assert result.distinct_masks == 2
    assert result.kept_share == 0.5
    assert result.usage == Usage(always_on=0, always_off=0, conditional=2)


def test_one_mask_is_static_and_its_controls_equal_it(masked, few):
    result = evaluate(random_masks(1)[0], masked, few)
    assert result.is_static
    assert result.verdict == "Static: every image gets the same mask."
    assert result.accuracy == result.static_accuracy == result.shuffled_accuracy
    assert result.mac_share_std == 0


def test_no_image_runs_twice_under_the_same_mask(masked, few):
    bench = Bench(masked, few, batch_size=16)
    ones = torch.ones(48, dtype=torch.bool)
    masks = random_masks(40)
    masks[:10] = True
    bench(ones)
    assert bench.forwards == 40
    bench(masks)
    assert bench.forwards == 70
    bench(masks)
    bench(ones)
    assert bench.forwards == 70


def test_static_evaluation_costs_two_passes(masked, few, monkeypatch):
    images = []
    forward = type(masked).forward
    monkeypatch.setattr(type(masked), "forward", lambda self, x, m=None: images.append(len(x)) or forward(self, x, m))
    evaluate(random_masks(1)[0], masked, few)
    assert sum(images) == 80


def test_static_mask_rounds_the_mean_number_and_takes_the_most_frequent(two_channels):
    masks = torch.tensor([[1, 0], [1, 1], [1, 0], [0, 1]], dtype=torch.bool)  # 1.25 channels on average
    assert static_mask(masks, two_channels).tolist() == [True, False]
    masks = torch.tensor([[1, 1], [1, 0]], dtype=torch.bool)  # 1.5: rounded up
    assert static_mask(masks, two_channels).tolist() == [True, True]


@pytest.mark.parametrize("count", [2, 3, 10, 999])
def test_dealing_gives_every_image_another_one_and_uses_each_once(count):
    dealt = deal_out(count)
    assert sorted(dealt.tolist()) == list(range(count))
    assert not (dealt == torch.arange(count)).any()
    assert torch.equal(dealt, deal_out(count))


def test_distinct_masks_are_counted_past_a_byte():
    masks = torch.zeros(5, 13, dtype=torch.bool)
    masks[1, 12] = True
    masks[2, 0] = True
    assert count_distinct(masks) == 3


def test_usage_counts_channels():
    masks = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 1]], dtype=torch.bool)
    assert Usage.of(masks) == Usage(always_on=1, always_off=1, conditional=2)


def correct_counts(own, other):
    """100 images: `own` only right under their own mask, `other` only under another's."""
    mine, theirs = torch.zeros(100, dtype=torch.bool), torch.zeros(100, dtype=torch.bool)
    mine[:own] = True
    theirs[own : own + other] = True
    return mine, theirs


@pytest.mark.parametrize(("own", "other", "static"), [(4, 0, True), (5, 0, False), (20, 10, True), (21, 9, False)])
def test_verdict_at_two_standard_errors(own, other, static):
    """(own - other) / sqrt(own + other) is 2, 2.24, 1.83 and 2.19."""
    found, sentence = verdict(*correct_counts(own, other), 50)
    assert found is static
    points = own - other
    expected = (
        f"Static in effect: other images' masks do as well ({-points:+.1f} points, within two standard errors), so "
        "its 50 masks do not depend usefully on the image."
        if static
        else f"Per input: other images' masks lose {points:.1f} points, {points / math.sqrt(own + other):.1f} standard "
        "errors."
    )
    assert sentence == expected


def test_shuffled_masks_that_do_better_make_a_policy_static():
    found, sentence = verdict(*correct_counts(0, 30), 50)
    assert found
    assert "(+30.0 points" in sentence


def test_difficulty_by_hand(votes):
    share = torch.tensor([0.2, 0.4, 0.6] * 4, dtype=torch.float64)
    logits = torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0]] * 4)  # always class 0; margin falls as the share rises
    result = difficulty(share, logits, votes)
    wrong = votes.labels == 1
    assert result.mac_share_wrong == pytest.approx(share[wrong].mean().item())
    assert result.mac_share_right == pytest.approx(share[~wrong].mean().item())
    assert result.mac_share_by_class == pytest.approx(
        {"a": share[~wrong].mean().item(), "b": share[wrong].mean().item()}
    )
    assert result.margin_correlation == pytest.approx(-1.0)


def test_difficulty_agrees_with_numpy(votes):
    generator = torch.Generator().manual_seed(1)
    share = torch.rand(12, generator=generator, dtype=torch.float64)
    logits = torch.randn(12, 2, generator=generator)
    margin = (logits[:, 0] - logits[:, 1]).abs().numpy()
    assert difficulty(share, logits, votes).margin_correlation == pytest.approx(np.corrcoef(share, margin)[0, 1])


def test_difficulty_says_none_where_there_is_nothing_to_say(votes):
    right = nn.functional.one_hot(votes.labels, 2).float()
    result = difficulty(torch.full((12,), 0.5, dtype=torch.float64), right, votes)
    assert result.mac_share_wrong is None
    assert result.margin_correlation is None


def test_dynamic_cnn_agrees_with_its_own_predict(dynamic, few):
    result = evaluate(dynamic, None, few, batch_size=16)
    prediction = dynamic.predict(few.images)
    assert torch.equal(result.masks, prediction.masks)
    assert result.accuracy == pytest.approx((prediction.labels == few.labels).double().mean().item())
    assert result.total_mac_share == pytest.approx(prediction.mac_share.mean().item())
    assert result.policy_mac_share == pytest.approx(dynamic.policy.macs / hand_macs(torch.ones(48)))
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


def test_dense_accuracy_is_read_from_the_model_file(dynamic, few):
    info = CNNInfo.of("simple-cnn", few, {"dense_accuracy": {"digits/test": 0.875, "digits/train": 0.5}})
    result = evaluate(DynamicCNN(dynamic.masked, dynamic.policy, info), None, few)
    assert result.dense_accuracy == 0.875
    assert result.notes == ()


def test_dense_accuracy_says_when_it_is_its_own(masked, few):
    assert evaluate(torch.ones(48), masked, few).notes == (
        "Dense accuracy is that of its own CNN with all channels on.",
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


def sb3_by_hand(model, env_id, masked, dataset):
    """Masks of an SB3 model, image by image, in the scalar environment."""
    splits = {"train": load_dataset("digits"), "test": dataset}
    env = gym.make(env_id, model=masked, dataset=splits, split="test")
    masks, correct, shares = [], [], []
    for index in range(len(dataset)):
        observation, _ = env.reset(options={"index": index})
        done, bits = False, []
        while not done:
            action, _ = model.predict(observation, deterministic=True)
            bits.append(torch.as_tensor(action))
            observation, _, done, _, info = env.step(action)
        masks.append(torch.cat(bits))
        correct.append(bool(info["correct"]))
        shares.append(float(info["mac_share"]))
    return masks, correct, shares


@pytest.mark.parametrize(
    ("env_id", "macs"),
    [
        # features of the 1-channel image: average and 4x4 grid, 17 numbers; two hidden layers of 64; 48 bits
        ("prunegym/ChannelMask-v0", 17 * 64 + 64 * 64 + 64 * 48),
        # two decisions, each from 272 features (16 channels), 2 of the one-hot gate, 1 of the cost; 32 bits
        ("prunegym/LayerwiseChannelMask-v0", 2 * (275 * 64 + 64 * 64 + 64 * 32)),
    ],
)
def test_stock_sb3_policy_agrees_with_the_scalar_environment(masked, few, env_id, macs):
    splits = {"train": load_dataset("digits"), "test": few}
    env = MaskVecEnv(env_id, 4, model=masked, dataset=splits, split="train")
    model = PPO("MultiInputPolicy", env, seed=1, n_steps=4, batch_size=4, device="cpu")
    for layer in model.policy.action_net.parameters():  # untrained logits are too near to 0 to tell images apart
        nn.init.normal_(layer)
    result = evaluate(model, masked, few, batch_size=16)
    masks, correct, shares = sb3_by_hand(model, env_id, masked, few)
    assert result.correct.tolist() == correct
    assert result.mac_share == pytest.approx(np.mean(shares))
    assert result.distinct_masks > 5
    if env_id == "prunegym/ChannelMask-v0":
        assert torch.equal(result.masks, torch.stack(masks).bool())
    else:
        assert torch.equal(result.masks[:, :16], torch.stack(masks)[:, :16].bool())
        assert torch.equal(result.masks[:, 16:], torch.stack(masks)[:, 32:].bool())
    assert result.policy_mac_share == pytest.approx(macs / hand_macs(torch.ones(48)))
    assert "The MACs of 'PPO' deciding are those that torch counted in its predict." in result.notes


@pytest.mark.parametrize("layerwise", [True, False])
def test_mask_policy_of_sb3_equals_the_dynamic_cnn_of_its_actor(masked, few, layerwise):
    digits = load_dataset("digits")
    features = MaskFeatures(masked, layerwise).calibrate(masked, digits)
    torch.manual_seed(3)
    gates = GatePolicy(features, hidden=8, bias=0.0)
    for head in gates.heads:
        nn.init.normal_(head[2].weight)
    env_id = f"prunegym/{'Layerwise' if layerwise else ''}ChannelMask-v0"
    env = MaskVecEnv(env_id, 4, model=masked, dataset=digits, features=features)
    model = PPO(MaskPolicy, env, policy_kwargs={"gate_policy": gates}, n_steps=4, batch_size=4, device="cpu")
    result = evaluate(model, masked, few)
    expected = evaluate(DynamicCNN(masked, gates, CNNInfo.of("simple-cnn", digits)), None, few)
    assert torch.equal(result.masks, expected.masks)
    assert result.as_json() == pytest.approx(expected.as_json())


class Threshold:
    """Keeps channel k if feature k is positive."""

    def __init__(self, **attributes):
        self.shapes = []
        for name, value in attributes.items():
            setattr(self, name, value)

    def predict(self, observation):
        self.shapes.append(observation["features"].shape)
        return (np.resize(observation["features"], (len(observation["features"]), self.bits)) > 0).astype(np.int8)


def test_own_agent_sees_each_image_once_and_may_state_its_macs(masked, few):
    agent = Threshold(bits=48, macs=500)
    result = evaluate(agent, masked, few, batch_size=16)
    assert agent.shapes == [(16, 17), (16, 17), (8, 17)]
    assert result.policy_mac_share == pytest.approx(500 / hand_macs(torch.ones(48)))
    assert result.total_mac_share == pytest.approx(result.mac_share + result.policy_mac_share)
    assert result.reward == pytest.approx(result.accuracy - 0.5 * result.total_mac_share)


def test_own_agent_may_decide_layer_by_layer(masked, few):
    by_attribute = evaluate(Threshold(bits=32, layerwise=True), masked, few)
    by_argument = evaluate(Threshold(bits=32), masked, few, layerwise=True)
    assert torch.equal(by_attribute.masks, by_argument.masks)
    assert by_attribute.notes[0] == (
        "The MACs of 'Threshold' deciding are not known and are taken as 0; give it an attribute `macs`."
    )


def test_function_as_agent_that_returns_a_tensor(masked, few):
    def keep_even(observation):
        return (torch.arange(48) % 2 == 0).expand(len(observation["features"]), -1), None

    result = evaluate(keep_even, masked, few)
    assert result.masks[5].tolist() == [channel % 2 == 0 for channel in range(48)]


def test_recurrent_agent_gets_its_state_within_an_episode(masked, few):
    seen = []

    class Recurrent:
        layerwise = True

        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            seen.append((state, bool(episode_start.all()), deterministic))
            return np.ones((len(episode_start), 32)), (state or 0) + 1

    evaluate(Recurrent(), masked, few, batch_size=20)
    assert seen == [(None, True, True), (1, False, True)] * 2


def test_lambda_is_shown_to_an_agent_that_was_trained_for_a_range(masked, few):
    seen = []

    class Lambda:
        observation_space = gym.spaces.Dict(
            {"features": gym.spaces.Box(-10, 10, (17,)), "penalty": gym.spaces.Box(0.25, 0.75, (1,))}
        )

        def predict(self, observation):
            seen.append(set(observation["penalty"].flatten().tolist()))
            return np.ones((len(observation["features"]), 48))

    evaluate(Lambda(), masked, few)
    evaluate(Lambda(), masked, few, options=PredictorOptions(agent_penalty=0.3125))
    evaluate(Lambda(), masked, few, penalty=0.75)
    evaluate(Lambda(), masked, few, penalty=7.0)
    assert seen == [{0.5}, {0.3125}, {0.75}, {0.5}]
    with pytest.raises(
        InvalidInputError, match=r"penalty is 0\.8; the policy was trained for lambdas from 0\.25 to 0\.75"
    ):
        evaluate(Lambda(), masked, few, options=PredictorOptions(agent_penalty=0.8))


def test_agent_of_another_model_is_refused(masked, few):
    class Other:
        observation_space = gym.spaces.Dict({"features": gym.spaces.Box(-10, 10, (5,))})

        def predict(self, observation):
            raise AssertionError

    message = (
        "The agent 'Other' was made for observations {'features': (5,)}; with this model they are {'features': (17,)}. "
        "Evaluate it on the model that it was trained on, with the same features."
    )
    with pytest.raises(AgentError, match=re.escape(message)):
        evaluate(Other(), masked, few)


def test_wrong_masks_are_refused(masked, few):
    with pytest.raises(
        InvalidInputError, match=re.escape("have shape (39, 48); (48,) for one mask or (40, 48) for one")
    ):
        evaluate(torch.ones(39, 48), masked, few)
    with pytest.raises(InvalidInputError, match=r"The masks 'halves' have the value 0.5; only 0 and 1 are allowed."):
        evaluate(Masks("halves", torch.full((48,), 0.5)), masked, few)
    with pytest.raises(InvalidInputError, match=r"have the value nan; only 0 and 1"):
        evaluate(np.full(48, np.nan), masked, few)


def test_missing_model_is_refused(few):
    with pytest.raises(InvalidInputError, match=r"The model is None; a MaskedCNN, a DynamicCNN or a torch module"):
        evaluate(torch.ones(48), None, few)


def test_output_that_is_no_classification_is_refused(few):
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))
    message = "output is (40, 1, 8, 8) for 40 images of 10 classes; (images, classes) is needed"
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        evaluate(torch.ones(4), network, few)
