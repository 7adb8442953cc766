"""The vector form does what Gymnasium's SyncVectorEnv does over scalar environments, in one batch."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import FlattenObservation, NormalizeObservation, RecordEpisodeStatistics
from sb3_contrib import MaskablePPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor

from prunegym.envs import ChannelMaskVectorEnv, GroupAdvantage, MaskVecEnv
from prunegym.errors import InvalidInputError, PenaltyWarning, UnknownNameError
from tests.envs.mask_oracle import IDS, LAYERWISE, ONE_STEP

RANDOM = {"dataset": "digits", "reward": "macs", "penalty": (0.1, 2.0), "augment": True}


def same(ours, theirs, path="") -> None:
    """Compare two answers of a vector environment, whatever they hold."""
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), path
        for name in theirs:
            same(ours[name], theirs[name], f"{path}/{name}")
    elif isinstance(theirs, tuple) or (theirs.dtype == object and isinstance(theirs[0], dict)):
        for one, other in zip(ours, theirs, strict=True):
            same(one, other, path)
    else:
        # SyncVectorEnv puts NumPy's booleans into arrays of objects.
        assert ours.dtype == theirs.dtype or theirs.dtype == object, path
        theirs = theirs.astype(ours.dtype)
        np.testing.assert_allclose(ours, theirs, atol=2e-5, err_msg=path)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("env_id", IDS)
def test_three_episodes_are_those_of_a_sync_vector_env(env_id, mode, cnn) -> None:
    """With a seed for each sub-environment: images, augmentations, lambdas, rewards, flags and infos."""
    envs = gym.make_vec(env_id, 3, autoreset_mode=mode, model=cnn, **RANDOM)
    sync = gym.make_vec(
        env_id, 3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, model=cnn, **RANDOM
    )
    assert envs.metadata["autoreset_mode"] is sync.metadata["autoreset_mode"] is envs.autoreset_mode is mode
    same(envs.reset(seed=[7, 8, 9]), sync.reset(seed=7))
    rng = np.random.default_rng(0)
    for _ in range(9):
        actions = rng.integers(0, 2, envs.action_space.shape)
        same(envs.step(actions), sync.step(actions))
    same(envs.reset(seed=[1, None, 2]), sync.reset(seed=[1, None, 2]))
    same(envs.reset(), sync.reset())


def test_some_are_reset_alone_as_in_a_sync_vector_env(cnn) -> None:
    envs = gym.make_vec(ONE_STEP, 3, autoreset_mode="Disabled", model=cnn, **RANDOM)
    options = {"vectorization_mode": "sync", "vector_kwargs": {"autoreset_mode": AutoresetMode.DISABLED}}
    sync = gym.make_vec(ONE_STEP, 3, **options, model=cnn, **RANDOM)
    envs.reset(seed=[3, 4, 5])
    sync.reset(seed=3)
    some, every = np.array([True, False, True]), np.ones(3, dtype=bool)
    before = envs.simulator.indices.clone()
    for seed in (None, [8, 9, 10]):
        ours, infos = envs.reset(seed=seed, options={"reset_mask": some})
        same(ours, sync.reset(seed=seed, options={"reset_mask": some})[0])
        assert infos["_index"].tolist() == some.tolist()
    assert envs.simulator.indices[1] == before[1]
    actions = np.random.default_rng(0).integers(0, 2, envs.action_space.shape)
    same(envs.step(actions), sync.step(actions))
    with pytest.raises(InvalidInputError, match="No episode is running"):
        envs.step(actions)
    with pytest.raises(InvalidInputError, match=r"before the first decision .*vectorization_mode='sync'"):
        envs.reset(options={"reset_mask": some})
    same(envs.reset(options={"reset_mask": every}), sync.reset(options={"reset_mask": every}))
    envs.reset(options={"reset_mask": some, "index": [1, 2, 3], "penalty": [0.5, 0.6, 0.7]})
    assert envs.simulator.indices[::2].tolist() == [1, 3]
    assert envs.simulator.penalty[::2].tolist() == [0.5, 0.7]


@pytest.mark.parametrize("env_id", IDS)
def test_one_seed_gives_the_batched_forms_the_same_images(env_id, cnn) -> None:
    envs, venv = gym.make_vec(env_id, 4, model=cnn, **RANDOM), MaskVecEnv(env_id, 4, seed=5, model=cnn, **RANDOM)
    envs.reset(seed=5)
    venv.reset()
    for _ in range(3):
        assert envs.simulator.indices.tolist() == venv.simulator.indices.tolist()
        np.testing.assert_array_equal(envs.simulator.snapshot().images, venv.simulator.snapshot().images)
        for _ in venv.task.decisions:
            actions = np.ones(envs.action_space.shape)
            same(envs.step(actions)[0], venv.step(actions)[0])


@pytest.mark.parametrize("env_id", IDS)
def test_wrappers_of_observations_and_statistics(env_id, cnn) -> None:
    envs = gym.make_vec(env_id, 4, autoreset_mode=AutoresetMode.NEXT_STEP, model=cnn, dataset="digits")
    wrapped = RecordEpisodeStatistics(NormalizeObservation(FlattenObservation(envs)))
    assert wrapped.reset(seed=0)[0].shape == (4, gym.spaces.flatdim(envs.single_observation_space))
    ended = 0
    for _ in range(6):
        _, _, terminated, _, infos = wrapped.step(wrapped.action_space.sample())
        ended += terminated.all()
        assert ("episode" in infos) == terminated.all()
    assert ended == (3 if env_id == ONE_STEP else 2)


def test_attributes_of_the_batch(cnn) -> None:
    envs = gym.make_vec(ONE_STEP, 3, model=cnn, dataset="digits", reward="macs", penalty=0.5, render_mode="rgb_array")
    assert envs.get_attr("penalty") == (0.5, 0.5, 0.5)
    envs.set_attr("penalty", 0.4)
    assert envs.call("set_penalty", penalty=0.3) == (None, None, None)
    assert envs.penalty == 0.3
    envs.set_attr("penalty", [0.2, 0.2, 0.2])
    envs.reset(seed=0)
    _, rewards, _, _, infos = envs.step(np.ones((3, 48)))
    np.testing.assert_allclose(rewards, infos["final_info"]["correct"] - 0.2)
    assert [picture.shape for picture in envs.call("render")] == [envs.render()[0].shape] * 3
    for values in ([0.1, 0.2, 0.3], [0.1]):
        with pytest.raises(InvalidInputError, match=r"'penalty' cannot be set to .* one value for all"):
            envs.set_attr("penalty", [*values, 0.4])
    with pytest.raises(InvalidInputError, match="'lambda' cannot be set"):
        envs.set_attr("lambda", 0.1)


def test_penalty_is_an_attribute_of_every_form(cnn) -> None:
    arguments = {"model": cnn, "dataset": "digits", "reward": "macs", "penalty": 0.5}
    scalar = gym.make(LAYERWISE, **arguments)
    scalar.set_wrapper_attr("penalty", 0.3)
    assert scalar.get_wrapper_attr("penalty") == scalar.unwrapped.task.penalty == 0.3
    batch = GroupAdvantage(MaskVecEnv(LAYERWISE, 4, group=2, **arguments))
    batch.set_attr("penalty", 0.2)
    assert batch.get_attr("penalty") == [0.2] * 4
    ranged = MaskVecEnv(LAYERWISE, 4, model=cnn, dataset="digits", reward="macs", penalty=(0.1, 0.2))
    assert ranged.penalty == (0.1, 0.2)
    with pytest.raises(InvalidInputError, match="penalty is the range"):
        ranged.penalty = 0.3


def test_a_later_penalty_that_is_meant_for_another_reward_warns(cnn) -> None:
    env = MaskVecEnv(ONE_STEP, 2, model=cnn, dataset="digits")
    with pytest.warns(PenaltyWarning, match=r"price of each channel.*pass reward='macs' with penalty=0\.5"):
        env.penalty = 0.5


def test_action_masks_close_the_bits_past_the_gates_width(cnn) -> None:
    """Widths are 16 and 32; each bit has a place for 0 and one for 1."""
    forms = [gym.make(LAYERWISE, model=cnn, dataset="digits").unwrapped, MaskVecEnv(LAYERWISE, 2, model=cnn)]
    for env, shape in zip(forms, [(32,), (2, 48)], strict=True):
        env.reset()
        for decision in env.task.decisions:
            allowed = env.action_masks().reshape(-1, 2)
            assert allowed[:, 0].all()
            assert allowed[:, 1].sum() == decision.width
            assert allowed[: decision.width, 1].all()
            env.step(np.ones((*shape[:-1], env.action_space.shape[0])))


def test_maskable_ppo_never_sets_them(cnn) -> None:
    env = MaskVecEnv(LAYERWISE, 4, seed=0, model=cnn, dataset="digits")
    seen = []
    step = env.step_async
    env.step_async = lambda actions: (seen.append((env.simulator.width, actions)), step(actions))[1]
    agent = MaskablePPO("MultiInputPolicy", env, n_steps=4, batch_size=16).learn(32)
    assert {width for width, _ in seen} == {16, 32}
    assert not any(actions[:, width:].any() for width, actions in seen)
    action, _ = agent.predict(env.reset(), action_masks=np.stack(env.env_method("action_masks")))
    assert not action[:, 16:].any()


def test_sb3_knows_that_infos_are_those_of_a_monitor(cnn) -> None:
    """No warning, and the returns are those of the episodes, not of the wrapper."""
    env = MaskVecEnv(ONE_STEP, 4, group=2, seed=0, model=cnn, dataset="digits")
    assert env.env_is_wrapped(Monitor, [0, 1]) == [True, True]
    agent = MaskablePPO("MultiInputPolicy", env, n_steps=2, batch_size=8)
    returns, lengths = evaluate_policy(agent, GroupAdvantage(env), 8, return_episode_rewards=True)
    assert lengths == [1] * 8
    assert not any(value == 0 for value in returns)
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        VecMonitor(env)


def test_bad_modes_seeds_and_masks(cnn) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown autoreset mode 'NextStp'\. Did you mean 'NextStep'\?"):
        ChannelMaskVectorEnv(model=cnn, dataset="digits", autoreset_mode="NextStp")
    envs = gym.make_vec(ONE_STEP, 3, model=cnn, dataset="digits")
    for seed, message in (
        ([1, 2], r"seed is of shape \(2,\); \(3,\) is needed\. Give one for the batch, or a list"),
        ([1, 2, -3], "seed is -3; a whole number"),
        (0.5, "seed is 0.5; a whole number .* or a list: one for each"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            envs.reset(seed=seed)
    for wanted in ([False] * 3, [1, 0, 1], [True]):
        with pytest.raises(InvalidInputError, match=r"options\['reset_mask'\] is .* needed"):
            envs.reset(options={"reset_mask": np.array(wanted)})
    for form in (
        lambda: gym.make_vec(ONE_STEP, 2, render_mode="human"),
        lambda: MaskVecEnv(ONE_STEP, 2, render_mode="human"),
    ):
        with pytest.raises(InvalidInputError, match=r"needs pygame \(pip install 'gymnasium\[classic-control\]'\)"):
            form()
