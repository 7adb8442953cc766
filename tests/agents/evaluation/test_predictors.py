"""Agents with ``predict`` in an evaluation: of Stable-Baselines3 and one's own, layer by layer and recurrent."""

from __future__ import annotations

import dataclasses
import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

import prunegym  # noqa: F401  (registers the ids)
from prunegym.agents.evaluation.evaluator import evaluate
from prunegym.agents.evaluation.predictors import AgentError, PredictorOptions
from prunegym.agents.rl.mask_policy import MaskPolicy
from prunegym.envs import MaskVecEnv
from prunegym.errors import InvalidInputError
from prunegym.models import CNNInfo, DynamicCNN, GatePolicy, MaskFeatures, Normalisation, load_dataset
from tests.envs.mask_oracle import FULL_MACS


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
    assert result.policy_mac_share == pytest.approx(macs / FULL_MACS)
    assert "The MACs that 'PPO' needs to decide were counted by torch in its predict." in result.notes


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


def test_an_agent_behind_vec_normalize_sees_what_it_saw_there(masked, few):
    """Its actions are those that the normalising environment itself leads to."""
    splits = {"train": load_dataset("digits"), "test": few}
    inner = MaskVecEnv("prunegym/ChannelMask-v0", 8, model=masked, dataset=splits, split="train", seed=0)
    env = VecNormalize(inner, gamma=1.0)
    model = PPO("MultiInputPolicy", env, seed=1, n_steps=4, batch_size=4, device="cpu")
    for layer in model.policy.action_net.parameters():
        nn.init.normal_(layer)
    model.learn(32)
    result = evaluate(model, masked, few)
    raw = MaskVecEnv(
        "prunegym/ChannelMask-v0", len(few), model=masked, dataset=splits, split="test", features=_features(inner)
    )
    observation = raw.reset()
    order = [info["index"] for info in raw.reset_infos]
    expected, _ = model.predict(env.normalize_obs(observation), deterministic=True)
    unnormalised, _ = model.predict(observation, deterministic=True)
    assert np.array_equal(result.masks.numpy()[order], expected.astype(bool))
    assert not np.array_equal(expected, unnormalised)


def _features(env):
    (task,) = env.get_attr("task", indices=[0])
    return task.features


def test_own_agent_sees_each_image_once_and_may_state_its_macs(masked, few):
    agent = Threshold(bits=48, macs=500)
    result = evaluate(agent, masked, few, batch_size=16)
    assert agent.shapes == [(16, 17), (16, 17), (8, 17)]
    assert result.policy_mac_share == pytest.approx(500 / FULL_MACS)
    assert result.total_mac_share == pytest.approx(result.mac_share + result.policy_mac_share)
    assert result.reward == pytest.approx(result.accuracy - 0.5 * result.total_mac_share)


def test_own_agent_may_decide_layer_by_layer(masked, few):
    by_attribute = evaluate(Threshold(bits=32, layerwise=True), masked, few)
    by_argument = evaluate(Threshold(bits=32), masked, few, layerwise=True)
    assert torch.equal(by_attribute.masks, by_argument.masks)
    assert by_attribute.notes[0] == (
        "The MACs that 'Threshold' needs to decide are unknown and count as 0; give it an attribute `macs`."
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
        "The agent 'Other' was trained on observations {'features': (5,)}, but this model gives {'features': (17,)}. "
        "Evaluate it on the model and the features that it was trained with."
    )
    with pytest.raises(AgentError, match=re.escape(message)):
        evaluate(Other(), masked, few)


def test_training_images_of_ones_own_data_are_asked_for(masked, few):
    own, agent = dataclasses.replace(few, images=255 - few.images), Threshold(bits=48)
    message = r"has other test images\. Pass options=PredictorOptions\(train=\.\.\.\), or give"
    with pytest.raises(InvalidInputError, match=message):
        evaluate(agent, masked, own)
    digits = load_dataset("digits")
    train = dataclasses.replace(digits, images=255 - digits.images)
    assert evaluate(agent, masked, own, options=PredictorOptions(train=train)).distinct_masks > 5
    large = dataclasses.replace(train, images=train.images.repeat(1, 1, 2, 2))
    with pytest.raises(InvalidInputError, match=r"takes images of shape \(1, 8, 8\), those of data set 'digits' have"):
        evaluate(agent, masked, few, options=PredictorOptions(train=large))


def test_features_see_training_images_as_the_model_does(dynamic, few):
    info = dataclasses.replace(dynamic.info, normalisation=Normalisation((0.2,), (0.3,)))
    model, agent = DynamicCNN(dynamic.masked, dynamic.policy, info), Threshold(bits=48)
    normalised = dataclasses.replace(load_dataset("digits"), normalisation=info.normalisation)
    expected = evaluate(agent, model, few, options=PredictorOptions(train=normalised))
    assert torch.equal(evaluate(agent, model, few).masks, expected.masks)
