"""What an episode draws: images once an epoch, seeds, lambda, also when it is changed on the way."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from prunegym.envs import MaskSimulator, MaskVecEnv, make_task
from prunegym.errors import InvalidInputError
from tests.envs.mask_oracle import IDS, LAYERWISE, ONE_STEP, actions_of, random_masks


def test_sampling_visits_each_image_once_an_epoch(cnn):
    """120 images in batches of 50: an epoch ends within a batch."""
    env = MaskSimulator(make_task(cnn, "digits", "validation"), 50, np.random.default_rng(0))
    drawn = []
    for _ in range(12):
        env.reset()
        drawn += env.indices.tolist()
    epochs = [drawn[start : start + 120] for start in range(0, 600, 120)]
    assert all(sorted(epoch) == list(range(120)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


@pytest.mark.parametrize("env_id", IDS)
def test_seeds_reproduce_and_differ(env_id, cnn):
    arguments = {"model": cnn, "dataset": "digits", "augment": True, "reward": "macs", "penalty": (0.1, 1.0)}
    mask = random_masks(4)

    def run(env, reset, step):
        taken = [reset(env)]
        taken += [step(env, action) for action in actions_of(env_id, mask)]
        return np.concatenate([observation["features"].ravel() for observation in taken])

    def vector(seed):
        return run(
            gym.make_vec(env_id, 4, **arguments), lambda e: e.reset(seed=seed)[0], lambda e, action: e.step(action)[0]
        )

    def sb3(seed):
        return run(MaskVecEnv(env_id, 4, seed=seed, **arguments), lambda e: e.reset(), lambda e, a: e.step(a)[0])

    def scalar(seed):
        return run(gym.make(env_id, **arguments), lambda e: e.reset(seed=seed)[0], lambda e, a: e.step(a[0])[0])

    for form in (vector, sb3, scalar):
        np.testing.assert_array_equal(form(1), form(1))
        assert not np.array_equal(form(1), form(2))


def test_sb3_seeding_starts_over(cnn):
    env = MaskVecEnv(ONE_STEP, 4, model=cnn, dataset="digits")
    runs = []
    for _ in range(2):
        env.seed(7)
        env.reset()
        runs.append(env.simulator.indices.tolist())
    assert runs[0] == runs[1]
    env.reset()
    assert env.simulator.indices.tolist() != runs[0]
    assert [info["index"] for info in env.reset_infos] == env.simulator.indices.tolist()


def test_penalties_are_drawn_an_episode_observed_and_used(cnn):
    env = MaskVecEnv(ONE_STEP, 64, seed=0, model=cnn, dataset="digits", penalty=(0.001, 0.02))
    observation = env.reset()
    drawn = observation["penalty"][:, 0]
    assert len(set(drawn.tolist())) == 64
    assert 0.001 <= drawn.min() < 0.004
    assert 0.017 < drawn.max() <= 0.02
    _, rewards, _, infos = env.step(np.ones((64, 48)))
    correct = np.array([info["correct"] for info in infos])
    np.testing.assert_allclose(rewards, correct - 48 * drawn, atol=1e-6)
    scalar = gym.make(ONE_STEP, model=cnn, dataset="digits", penalty=(0.001, 0.02))
    observation, _ = scalar.reset(options={"penalty": 0.01})
    assert observation["penalty"] == pytest.approx(0.01)


@pytest.mark.parametrize("env_id", IDS)
def test_lambda_can_be_changed_for_the_episodes_that_have_just_begun(env_id, cnn):
    env = MaskVecEnv(env_id, 3, seed=0, model=cnn, dataset="digits", reward="macs", penalty=0.2)
    env.reset()
    ones = np.ones((3, env.action_space.n))

    def returns(change_at=None):
        total, dones, step = np.zeros(3), [False], 0
        while not dones[0]:
            if step == change_at:
                env.env_method("set_penalty", 0.9)
            _, rewards, dones, infos = env.step(ones)
            total += rewards
            step += 1
        return total - [info["correct"] for info in infos]

    np.testing.assert_allclose(returns(), -0.2, atol=1e-6)
    if env_id == LAYERWISE:  # what has begun to pay goes on paying as it did
        np.testing.assert_allclose(returns(change_at=1), -0.2, atol=1e-6)
        np.testing.assert_allclose(returns(), -0.9, atol=1e-6)
        env.set_penalty(0.2)
    np.testing.assert_allclose(returns(change_at=0), -0.9, atol=1e-6)
    with pytest.raises(InvalidInputError, match=r"penalty is -1; a finite number of at least 0"):
        env.set_penalty(-1)
    ranged = MaskVecEnv(env_id, 3, seed=0, model=cnn, dataset="digits", reward="macs", penalty=(0.1, 0.9))
    with pytest.raises(InvalidInputError, match=r"penalty is the range \(0\.1, 0\.9\), from which each episode draws"):
        ranged.set_penalty(0.5)
