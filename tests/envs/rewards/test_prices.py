"""The reward of measured time, and the warning of a lambda that is meant for another reward."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest

from prunegym.envs import make_task
from prunegym.errors import InvalidInputError, MissingDataError, PenaltyWarning
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.timing.latency_table import Axis, LatencyTable, Part
from tests.envs.mask_oracle import ONE_STEP, hooked_logits, layer_actions, random_masks
from tests.envs.rewards.test_rewards import INDICES, play, simulator


def latency_table(seconds=((0.0, 1.0), (1.0, 8.0))):
    """Fixed 2, the first gate's channels up to 4, both gates' up to 8 (seconds): 14 with all channels on."""
    first = Part("a", Axis({}, 1.0, (1.0,)), Axis({0: 1.0}, 0.0, (0.0, 16.0)), ((0.0, 4.0),))
    both = Part("b", Axis({0: 1.0}, 0.0, (0.0, 16.0)), Axis({1: 1.0}, 0.0, (0.0, 32.0)), seconds)
    return LatencyTable("hand", (("features.0", 16), ("features.3", 32)), 2.0, (first, both))


def test_latency_is_a_reward_paid_gate_by_gate(cnn, tmp_path):
    latency_table().save(tmp_path / "table.json")
    mask, digits = random_masks(24), load_dataset("digits", "test")
    first, second = mask[:, :16].sum(1) / 16, mask[:, 16:].sum(1) / 32
    seconds = 2 + 4 * first + (1 - first) * second + first * (1 + 7 * second)
    right = (hooked_logits(cnn, digits, INDICES, mask).argmax(1) == digits.labels[:24]).double()
    expected = right - 0.3 * seconds / 14
    arguments = {"reward": "latency", "latency_table": str(tmp_path / "table.json"), "penalty": 0.3}
    np.testing.assert_allclose(play(cnn, mask, **arguments), expected, atol=1e-6)
    env = simulator(cnn, layerwise=True, **arguments)
    env.reset(INDICES)
    paid = [env.step(action).reward for action in layer_actions(mask)]
    np.testing.assert_allclose(sum(paid), expected, atol=1e-6)
    np.testing.assert_allclose(paid[0], -0.3 * (5 * first) / 14, atol=1e-6)
    assert make_task(cnn, "digits", reward="latency", latency_table=latency_table()).penalty == 0.5
    env = gym.make(ONE_STEP, model=cnn, dataset="digits", **arguments)
    env.reset(seed=0)
    assert env.step(np.ones(48))[1] in (pytest.approx(0.7), pytest.approx(-0.3))


def test_latency_needs_a_table_of_this_model(cnn, tmp_path):
    with pytest.raises(
        InvalidInputError, match=r"'latency' needs latency_table=.*prunegym latency MODEL --out table.json"
    ):
        make_task(cnn, "digits", reward="latency")
    with pytest.raises(
        InvalidInputError, match=r"latency_table is given, but the reward is 'macs', which does not use it"
    ):
        make_task(cnn, "digits", reward="macs", latency_table=latency_table())
    with pytest.raises(MissingDataError, match=r"There is no latency table .*none.json"):
        make_task(cnn, "digits", reward="latency", latency_table=tmp_path / "none.json")
    other = dataclasses.replace(latency_table(), gates=(("features.0", 16), ("features.3", 64)))
    with pytest.raises(InvalidInputError, match=r"is for 2 gates \(features.0: 16, features.3: 64, .*features.3: 32"):
        make_task(cnn, "digits", reward="latency", latency_table=other)


TOO_EXPENSIVE = (
    r"penalty=0.5 with reward 'l0' is the price of each channel. All 48 channels on cost 24, and a right answer earns "
    r"at most 1. .* pass reward='macs' with penalty=0.5: all channels on then cost 0.5. .* is penalty=0.01042"
)


def test_a_price_of_each_unit_that_looks_like_one_of_a_share_is_warned_of(cnn):
    with pytest.warns(PenaltyWarning, match=TOO_EXPENSIVE):
        task = make_task(cnn, "digits", penalty=0.5)
    task.set_penalty(0.6)  # one warning a task
    task = make_task(cnn, "digits", penalty=10 / 48)
    with pytest.warns(PenaltyWarning, match=TOO_EXPENSIVE):
        task.set_penalty(0.5)
    with pytest.warns(PenaltyWarning, match=r"All 6,032 weights on cost 60\.32,.* default .* is penalty=8\.289e-05"):
        make_task(cnn, "digits", reward="l0_weights", penalty=0.01)
    with pytest.warns(PenaltyWarning, match=r"penalty=\(0\.0, 1\.0\).* cost 24 on average.* then cost 0\.5 on average"):
        gym.make(ONE_STEP, model=cnn, dataset="digits", penalty=(0, 1))


@pytest.mark.parametrize(
    "arguments",
    [
        {"penalty": 0.2},
        {"penalty": (0.0, 0.4)},
        {"reward": "macs", "penalty": 50.0},
        {"penalty": 50.0, "accuracy": len},
    ],
)
def test_other_prices_are_not_warned_of(cnn, arguments):
    """At most ten right answers, a share, and an accuracy term whose scale is the user's."""
    make_task(cnn, "digits", **arguments)
