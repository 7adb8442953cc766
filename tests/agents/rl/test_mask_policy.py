from __future__ import annotations

import copy
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO

from prunegym.agents.rl.mask_policy import MaskPolicy, new_gate_policy
from prunegym.envs import MaskVecEnv
from prunegym.errors import InvalidInputError
from prunegym.models import DynamicCNN, GatePolicy, MaskFeatures, shipped_model

LAYERWISE, ONE_STEP = "prunegym/LayerwiseChannelMask-v0", "prunegym/ChannelMask-v0"


@pytest.fixture(scope="module")
def digits() -> DynamicCNN:
    return shipped_model("digits")


def make(env_id: str, model: DynamicCNN, **kwargs: object) -> tuple[MaskVecEnv, GatePolicy]:
    env = MaskVecEnv(env_id, 8, seed=0, model=model, reward="macs", **kwargs)
    torch.manual_seed(0)
    bounds = kwargs.get("penalty") if isinstance(kwargs.get("penalty"), tuple) else None
    gate_policy = GatePolicy(env.task.features, 8, penalty_range=bounds)
    for head in gate_policy.heads:
        torch.nn.init.normal_(head[2].weight)
    return env, gate_policy


@pytest.mark.parametrize("env_id", [LAYERWISE, ONE_STEP])
def test_the_actor_acts_as_its_gate_policy(digits: DynamicCNN, env_id: str) -> None:
    env, gate_policy = make(env_id, digits)
    algorithm = PPO(MaskPolicy, env, n_steps=4, batch_size=8, policy_kwargs={"gate_policy": gate_policy})
    observation = env.reset()
    for index, decision in enumerate(gate_policy.decisions):
        features = torch.as_tensor(observation["features"][:, : gate_policy.features.sizes[index]])
        with torch.no_grad():
            expected = gate_policy.logits(index, features) > 0
        actions, _ = algorithm.predict(observation, deterministic=True)
        assert np.array_equal(actions[:, : decision.width].astype(bool), expected.numpy())
        assert actions[:, decision.width :].all()
        observation = env.step(actions)[0]


def test_bits_past_the_width_add_nothing_and_the_rest_is_bernoulli(digits: DynamicCNN) -> None:
    env, gate_policy = make(LAYERWISE, digits)
    algorithm = PPO(MaskPolicy, env, n_steps=4, batch_size=8, policy_kwargs={"gate_policy": gate_policy})
    observation = {key: torch.as_tensor(value) for key, value in env.reset().items()}
    actions, _, log_prob = algorithm.policy(observation)
    width = gate_policy.decisions[0].width
    assert width < actions.shape[1]
    logits = gate_policy.logits(0, observation["features"][:, : gate_policy.features.sizes[0]])
    bernoulli = torch.distributions.Bernoulli(logits=logits)
    torch.testing.assert_close(log_prob, bernoulli.log_prob(actions[:, :width]).sum(1))
    _, again, entropy = algorithm.policy.evaluate_actions(observation, actions)
    torch.testing.assert_close(again, log_prob)
    torch.testing.assert_close(entropy, bernoulli.entropy().sum(1))


def test_a_batch_of_mixed_decisions_is_its_rows(digits: DynamicCNN) -> None:
    env, gate_policy = make(LAYERWISE, digits)
    policy = PPO(MaskPolicy, env, n_steps=4, batch_size=8, policy_kwargs={"gate_policy": gate_policy}).policy
    first = env.reset()
    second = env.step(np.ones((8, env.action_space.n)))[0]
    mixed = {key: torch.as_tensor(np.stack([first[key][0], second[key][1], first[key][2]])) for key in first}
    values, log_prob, _ = policy.evaluate_actions(mixed, torch.ones(3, env.action_space.n))
    for row in range(3):
        alone = {key: value[row : row + 1] for key, value in mixed.items()}
        value, own, _ = policy.evaluate_actions(alone, torch.ones(1, env.action_space.n))
        torch.testing.assert_close(values[row : row + 1], value)
        torch.testing.assert_close(log_prob[row : row + 1], own)


def test_sharpening_multiplies_logits(digits: DynamicCNN) -> None:
    env, gate_policy = make(LAYERWISE, digits)
    kwargs = {"gate_policy": gate_policy, "sharpen": 2.0}
    sharp = PPO(MaskPolicy, env, n_steps=4, batch_size=8, policy_kwargs=kwargs).policy.gate_policy()
    features = torch.randn(5, gate_policy.features.sizes[1])
    torch.testing.assert_close(sharp.logits(1, features), 2 * gate_policy.logits(1, features))


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_training_moves_the_actor_and_not_the_one_that_was_given(digits: DynamicCNN, algorithm: type) -> None:
    env, gate_policy = make(LAYERWISE, digits)
    before = copy.deepcopy(gate_policy.state_dict())
    size = {"batch_size": 8} if algorithm is PPO else {}
    kwargs = {"gate_policy": gate_policy}
    trained = algorithm(MaskPolicy, env, n_steps=3, policy_kwargs=kwargs, learning_rate=1e-2, **size)
    trained.learn(48)
    assert all(torch.equal(value, before[name]) for name, value in gate_policy.state_dict().items())
    after = trained.policy.gate_policy().state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("heads.")}


def test_a_saved_algorithm_predicts_the_same(digits: DynamicCNN, tmp_path: Path) -> None:
    env, gate_policy = make(LAYERWISE, digits, penalty=(0.1, 1.0))
    algorithm = PPO(MaskPolicy, env, n_steps=3, batch_size=8, policy_kwargs={"gate_policy": gate_policy}).learn(24)
    observation = env.reset()
    before, _ = algorithm.predict(observation, deterministic=True)
    algorithm.save(tmp_path / "ppo.zip")
    after, _ = PPO.load(tmp_path / "ppo.zip").predict(observation, deterministic=True)
    assert np.array_equal(before, after)
    algorithm.policy.save(str(tmp_path / "policy.pt"))
    alone, _ = MaskPolicy.load(str(tmp_path / "policy.pt")).predict(observation, deterministic=True)
    assert np.array_equal(before, alone)


def test_lambda_is_seen_where_it_varies(digits: DynamicCNN) -> None:
    env, gate_policy = make(ONE_STEP, digits, penalty=(0.1, 1.0))
    policy = PPO(MaskPolicy, env, n_steps=4, batch_size=8, policy_kwargs={"gate_policy": gate_policy}).policy
    observation = {key: torch.as_tensor(value) for key, value in env.reset().items()}
    low, high = (observation | {"penalty": torch.full((8, 1), value)} for value in (0.1, 1.0))
    assert not torch.equal(
        policy.get_distribution(low).distribution.logits, policy.get_distribution(high).distribution.logits
    )


def test_a_fresh_gate_policy_fits_its_environment(digits: DynamicCNN) -> None:
    env = MaskVecEnv(LAYERWISE, 8, seed=0, model=digits, reward="macs", penalty=(0.1, 1.0))
    scalar = gymnasium.make(LAYERWISE, model=digits, reward="macs", penalty=(0.1, 1.0))
    fresh, same = new_gate_policy(env, hidden=8), new_gate_policy(scalar, hidden=8)
    assert fresh.penalty_range == (0.1, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), same.state_dict().values(), strict=True))
    PPO(MaskPolicy, env, n_steps=3, batch_size=8, policy_kwargs={"gate_policy": fresh}).learn(24)


def test_arguments_that_do_not_fit(digits: DynamicCNN) -> None:
    env, _ = make(LAYERWISE, digits)
    for given, name in (({}, "NoneType"), ({"gate_policy": digits}, "DynamicCNN")):
        with pytest.raises(InvalidInputError, match=rf"gate_policy is a {name}, but MaskPolicy needs a GatePolicy"):
            PPO(MaskPolicy, env, policy_kwargs=given)
    with pytest.raises(InvalidInputError, match=r"CartPole.* is not a PruneGym environment"):
        new_gate_policy(gymnasium.make("CartPole-v1"))
    other = GatePolicy(MaskFeatures(digits.masked, layerwise=False, grid=1), 4)
    with pytest.raises(InvalidInputError, match=r"policy has up to 1 features and 160 bits, but the environment"):
        PPO(MaskPolicy, env, policy_kwargs={"gate_policy": other})
    ranged = GatePolicy(env.task.features, 4, penalty_range=(0.0, 1.0))
    with pytest.raises(
        InvalidInputError, match=r"penalty_range is \(0\.0, 1\.0\), but the environment's penalty is one"
    ):
        PPO(MaskPolicy, env, policy_kwargs={"gate_policy": ranged})
