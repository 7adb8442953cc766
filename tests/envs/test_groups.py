"""Several masks of one image: groups, and the two rewards that compare masks within one."""

from __future__ import annotations

import numpy as np
import pytest

from prunegym.envs import GroupAdvantage, MaskVecEnv, SelfCritical
from prunegym.errors import InvalidInputError
from tests.envs.mask_oracle import IDS, LAYERWISE, ONE_STEP, actions_of, layer_actions, random_masks


def test_a_group_shares_image_augmentation_and_penalty(cnn):
    env = MaskVecEnv(
        ONE_STEP, 12, group=4, seed=0, model=cnn, dataset="digits", reward="macs", penalty=(0.0, 1.0), augment=True
    )
    observation = env.reset()
    for array in (
        env.simulator.indices.numpy(),
        observation["penalty"][:, 0],
        env.simulator.snapshot().images.flatten(1).numpy(),
    ):
        groups = array.reshape(3, 4, -1)
        assert (groups == groups[:, :1]).all()
        assert len(np.unique(groups[:, 0], axis=0)) == 3


def test_group_advantage_against_brute_force(cnn):
    arguments = {"model": cnn, "dataset": "digits", "seed": 5, "group": 3, "accuracy": "probability"}
    plain, wrapped = MaskVecEnv(LAYERWISE, 6, **arguments), GroupAdvantage(MaskVecEnv(LAYERWISE, 6, **arguments))
    plain.reset(), wrapped.reset()
    for episode in range(2):
        first, second = layer_actions(random_masks(6, seed=episode))
        early, total = plain.step(first)[1], 0
        np.testing.assert_array_equal(wrapped.step(first)[1], early)
        last = plain.step(second)[1]
        total = early + last
        _, rewards, _, infos = wrapped.step(second)
        for row in range(6):
            others = [other for other in range(6) if other // 3 == row // 3 and other != row]
            assert rewards[row] == pytest.approx(last[row] - np.mean([total[other] for other in others]), abs=1e-6)
            assert infos[row]["episode"]["r"] == pytest.approx(total[row], abs=1e-6)


def test_group_advantage_needs_a_group(cnn):
    with pytest.raises(
        InvalidInputError, match=r"several masks for each image, but the group is 1. .*MaskVecEnv\(..., group=8\)"
    ):
        GroupAdvantage(MaskVecEnv(ONE_STEP, 6, model=cnn, dataset="digits"))


@pytest.mark.parametrize(
    ("num_envs", "group", "message"),
    [
        (6, 4, "num_envs is 6; a multiple of group, 4, is needed"),
        (0, 1, "num_envs is 0; a whole number from 1 to"),
        (4, 0, "group is 0; a whole number of at least 1"),
    ],
)
def test_group_and_number_must_fit(num_envs, group, message, cnn):
    with pytest.raises(InvalidInputError, match=message):
        MaskVecEnv(ONE_STEP, num_envs, group=group, model=cnn, dataset="digits")


class Even:
    """Keeps every other channel, and remembers how many images it was shown."""

    def __init__(self, bits):
        self.bits, self.shown = bits, []

    def predict(self, observation, *, deterministic):
        assert deterministic
        self.shown.append(len(observation["features"]))
        return np.tile(np.arange(self.bits) % 2 == 0, (self.shown[-1], 1)), None


@pytest.mark.parametrize("env_id", IDS)
def test_self_critical_rewards_are_those_beyond_the_greedy_mask(env_id, cnn):
    arguments = {"group": 3, "seed": 1, "model": cnn, "dataset": "digits", "reward": "macs", "accuracy": "probability"}
    plain, wrapped = MaskVecEnv(env_id, 6, **arguments), SelfCritical(MaskVecEnv(env_id, 6, **arguments))
    greedy = Even(plain.action_space.n)
    wrapped.follow(greedy)
    plain.reset(), wrapped.reset()
    for episode in range(2):
        total, got, infos = np.zeros(6), np.zeros(6), []
        for action in actions_of(env_id, random_masks(6, seed=episode)):
            forced = np.array(action)
            forced[::3] = greedy.predict({"features": np.zeros((2, 1))}, deterministic=True)[0]
            total += plain.step(forced)[1]
            _, rewards, _, infos = wrapped.step(action)
            got += rewards
        np.testing.assert_allclose(got, total - np.repeat(total[::3], 3), atol=1e-6)
        assert (got[::3] == 0).all()
        assert np.abs(got).max() > 0.01
        np.testing.assert_allclose([info["episode"]["r"] for info in infos], total, atol=1e-6)
    assert set(greedy.shown) == {2}


def test_self_critical_needs_a_policy_and_a_group(cnn):
    env = SelfCritical(MaskVecEnv(ONE_STEP, 4, group=2, model=cnn, dataset="digits"))
    env.reset()
    with pytest.raises(
        InvalidInputError, match=r"has no policy for its baseline\. Call env\.follow\(agent\.policy\) first"
    ):
        env.step(np.ones((4, env.action_space.n)))
    with pytest.raises(InvalidInputError, match=r"SelfCritical needs several masks for each image, but the group is 1"):
        SelfCritical(MaskVecEnv(ONE_STEP, 6, model=cnn, dataset="digits"))


@pytest.mark.parametrize("penalty", [0.3, (0.1, 1.0)])
def test_a_penalty_by_options_in_groups(penalty, cnn):
    env = MaskVecEnv(ONE_STEP, 4, group=2, seed=0, model=cnn, dataset="digits", reward="macs", penalty=penalty)
    env.set_options({"penalty": 0.25})
    env.reset()
    assert env.simulator.penalty.tolist() == [0.25] * 4
    env.set_options([{"penalty": price} for price in (0.1, 0.2, 0.3, 0.4)])
    env.reset()
    assert env.simulator.penalty.tolist() == [0.1, 0.2, 0.3, 0.4]
