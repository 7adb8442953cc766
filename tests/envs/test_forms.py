"""The scalar, vector and SB3 forms: both checkers, equal rewards, autoreset, what is observed."""

from __future__ import annotations

import copy

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from torch.utils.flop_counter import FlopCounterMode

from prunegym.envs import MaskSimulator, MaskVecEnv
from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.skipping.stepwise import CHUNK
from tests.envs.mask_oracle import (
    IDS,
    LAYERWISE,
    ONE_STEP,
    actions_of,
    counted,
    hooked_logits,
    layer_actions,
    random_masks,
)

REGISTERED = sorted(env_id for env_id in gym.registry if env_id.startswith("prunegym/"))


def test_these_are_all_ids():
    assert sorted(IDS) == REGISTERED
    assert all(gym.spec(env_id).max_episode_steps is None for env_id in IDS)


@pytest.mark.parametrize("env_id", REGISTERED)
def test_a_threshold_is_above_what_no_decision_gets(env_id):
    """All channels on cost 0.5 of an accuracy of at most 1; half of them at random are a poor mask."""
    envs, totals = gym.make_vec(env_id, 512), []
    for keep in (1.0, 0.5):
        envs.reset(seed=0)
        rng, total, over = np.random.default_rng(0), np.zeros(512), False
        while not over:
            _, rewards, ended, *_ = envs.step(rng.random(envs.action_space.shape) < keep)
            total, over = total + rewards, ended.all()
        totals.append(total.mean())
    assert totals[0] == pytest.approx(0.5, abs=0.01)
    assert max(totals) < gym.spec(env_id).reward_threshold < 1


@pytest.mark.parametrize("env_id", REGISTERED)
def test_both_checkers_pass_with_all_defaults(env_id):
    check_env(gym.make(env_id).unwrapped)
    check_env_sb3(gym.make(env_id, render_mode="rgb_array").unwrapped, skip_render_check=False)


@pytest.mark.parametrize("env_id", REGISTERED)
def test_both_checkers_pass_with_everything_that_is_random(env_id, cnn):
    env = gym.make(
        env_id, model=cnn, dataset="digits", reward="macs", penalty=(0.1, 2.0), augment=True, render_mode="rgb_array"
    )
    check_env(env.unwrapped)
    check_env_sb3(env.unwrapped)


@pytest.mark.parametrize("env_id", REGISTERED)
@pytest.mark.parametrize("options", [{"n_steps": 128}, pytest.param({}, marks=pytest.mark.slow)])
def test_ppo_learns_as_it_is(env_id, options, cnn):
    agent = PPO("MultiInputPolicy", gym.make(env_id, model=cnn, dataset="digits"), **options)
    assert agent.learn(agent.n_steps).num_timesteps == agent.n_steps


@pytest.mark.parametrize(("algorithm", "options"), [(A2C, {}), (TRPO, {"batch_size": 32})])
def test_the_other_algorithms_of_the_docstring_run(algorithm, options, cnn):
    env = MaskVecEnv(LAYERWISE, 4, seed=0, model=cnn, dataset="digits")
    assert algorithm("MultiInputPolicy", env, n_steps=8, **options).learn(64).num_timesteps >= 64


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("reward", ["l0", "macs"])
def test_all_forms_give_the_same_rewards_and_infos(env_id, reward, cnn):
    mask, indices = random_masks(6), [4, 0, 599, 7, 7, 100]
    arguments = {"model": cnn, "dataset": "digits", "split": "test", "reward": reward, "accuracy": "probability"}
    vector, venv = gym.make_vec(env_id, 6, **arguments), MaskVecEnv(env_id, 6, **arguments)
    scalar = gym.make(env_id, **arguments)
    observation, _ = vector.reset(options={"index": indices})
    venv.set_options([{"index": index} for index in indices])
    other = venv.reset()
    for name, array in observation.items():
        np.testing.assert_array_equal(array, other[name])
    of_vector, of_venv = [], []
    for action in actions_of(env_id, mask):
        of_vector.append(vector.step(action))
        of_venv.append(venv.step(action.astype(np.float32)))
    for row, index in enumerate(indices):
        first, _ = scalar.reset(options={"index": index})
        for name, array in first.items():
            np.testing.assert_allclose(array, observation[name][row], atol=1e-5)
        for step, action in enumerate(actions_of(env_id, mask)):
            _, value, terminated, truncated, info = scalar.step(action[row])
            assert value == pytest.approx(of_vector[step][1][row], abs=1e-5)
            assert value == pytest.approx(of_venv[step][1][row], abs=1e-5)
            assert terminated is bool(of_vector[step][2][row]) is bool(of_venv[step][2][row])
            assert truncated is False
        logits = hooked_logits(cnn, load_dataset("digits", "test"), [index], mask[row : row + 1])
        kept, _, share = counted(mask[row : row + 1])
        label = int(load_dataset("digits", "test").labels[index])
        expected = {"index": index, "label": label, "prediction": int(logits.argmax()), "kept": int(kept)}
        expected |= {"correct": int(logits.argmax()) == label, "mac_share": pytest.approx(share.item())}
        assert info == expected
        assert all(type(info[key]) is np.int64 for key in ("index", "label", "prediction", "kept"))
        assert type(info["correct"]) is np.bool_
        final = {name: array[row] for name, array in of_vector[-1][4]["final_info"].items()}
        assert {name: value for name, value in final.items() if not name.startswith("_")} == expected
        last = of_venv[-1][3][row]
        total = sum(step[1][row] for step in of_vector)
        assert last.pop("episode") == {
            "r": pytest.approx(total, abs=1e-5),
            "l": len(of_venv),
            "t": pytest.approx(0, abs=60),
        }
        assert last.pop("is_success") == expected["correct"]
        assert set(last.pop("terminal_observation")) == set(observation)
        assert last == expected


@pytest.mark.parametrize("env_id", IDS)
def test_more_sub_environments_than_pass_the_cnn_together(env_id, cnn):
    """The last part is one image; each sub-environment gets what it would get alone."""
    count = 2 * CHUNK + 1
    mask, indices = random_masks(count), np.arange(count)[::-1] % 600
    arguments = {"model": cnn, "dataset": "digits", "split": "test", "reward": "macs", "accuracy": "probability"}
    many, alone = gym.make_vec(env_id, count, **arguments), gym.make(env_id, **arguments)
    seen = [many.reset(options={"index": indices.tolist()})[0]]
    steps = [many.step(action) for action in actions_of(env_id, mask)]
    seen += [step[0] for step in steps[:-1]]
    for row in (0, CHUNK - 1, CHUNK, 2 * CHUNK - 1, 2 * CHUNK):
        observation, _ = alone.reset(options={"index": int(indices[row])})
        for step, action in enumerate(actions_of(env_id, mask)):
            for name, array in observation.items():
                np.testing.assert_allclose(array, seen[step][name][row], atol=1e-5)
            observation, reward, *_ = alone.step(action[row])
            assert reward == pytest.approx(steps[step][1][row], abs=1e-5)
    logits = hooked_logits(cnn, load_dataset("digits", "test"), indices.tolist(), mask)
    assert steps[-1][4]["final_info"]["prediction"].tolist() == logits.argmax(1).tolist()


@pytest.mark.parametrize("env_id", IDS)
def test_a_whole_episode_costs_one_forward_pass(env_id, cnn):
    env = MaskVecEnv(env_id, 8, model=cnn, dataset="digits", execution="masked")
    env.reset()
    with FlopCounterMode(display=False) as counter:
        for action in actions_of(env_id, random_masks(8)):
            env.step(action)
    convolutions = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert convolutions == 2 * 8 * (64 * 16 * 9 + 16 * 16 * 32 * 9)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda env: cloudpickle.loads(cloudpickle.dumps(env))], ids=["copy", "pickle"]
)
def test_an_environment_can_be_copied_in_the_middle_of_an_episode(copied):
    scalar, batch = gym.make(LAYERWISE, model="digits"), MaskVecEnv(LAYERWISE, 3, seed=0, model="digits")
    bits = np.random.default_rng(0).integers(0, 2, (3, batch.action_space.n))
    scalar.reset(seed=0)
    batch.reset()
    scalar.step(bits[0])
    batch.step(bits)
    pairs = [(scalar, copied(scalar), bits[0]), (batch, copied(batch), bits)]
    for original, other, action in pairs:
        for _ in batch.task.decisions[1:]:
            seen, same = original.step(action), other.step(action)
            for name, array in seen[0].items():
                np.testing.assert_array_equal(array, same[0][name])
            np.testing.assert_array_equal(seen[1], same[1])


def test_layer_by_layer_observations_are_what_the_next_convolution_reads(cnn):
    env = gym.make(LAYERWISE, model=cnn, dataset="digits").unwrapped
    mask, features = random_masks(1), env.task.features
    observation, _ = env.reset(options={"index": 3})
    image = env.task.dataset.batch(torch.tensor([3]))
    assert observation["gate"].tolist() == [1, 0]
    np.testing.assert_allclose(observation["features"][:17], features(0, image)[0], atol=1e-6)
    assert not observation["features"][17:].any()
    first, second = layer_actions(mask)
    observation, *_ = env.step(first[0])
    with torch.no_grad():
        reads = cnn.features[:3](image) * mask[:, :16, None, None]
    assert observation["gate"].tolist() == [0, 1]
    np.testing.assert_allclose(observation["features"], features(1, reads)[0], atol=1e-5)
    share = counted(torch.cat([mask[:, :16], torch.zeros(1, 32)], 1))[2]
    assert observation["cost"][0] == pytest.approx(share.item())
    observation, *_ = env.step(second[0])
    assert observation["gate"].tolist() == [0, 0]
    assert not observation["features"].any()
    assert observation["cost"][0] == pytest.approx(counted(mask)[2].item())


@pytest.mark.parametrize("env_id", IDS)
def test_the_vector_form_resets_in_the_step_that_ends_episodes(env_id, cnn):
    envs = gym.make_vec(env_id, 5, model=cnn, dataset="digits")
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    envs.reset(seed=3)
    actions = actions_of(env_id, random_masks(5))
    for action in actions[:-1]:
        _, _, terminated, _, infos = envs.step(action)
        assert not terminated.any()
        assert set(infos) == {"index", "label", "_index", "_label"}
    old = envs.unwrapped.simulator.indices.clone()
    observation, _, terminated, truncated, infos = envs.step(actions[-1])
    assert terminated.all()
    assert not truncated.any()
    new = envs.unwrapped.simulator.indices
    np.testing.assert_array_equal(infos["final_info"]["index"], old)
    np.testing.assert_array_equal(infos["index"], new)
    assert infos["_final_obs"].all()
    assert infos["final_obs"].shape == (5,)
    assert all(final in envs.single_observation_space for final in infos["final_obs"])
    assert not any(final["features"].any() for final in infos["final_obs"])
    assert observation in envs.observation_space
    fresh = MaskSimulator(envs.unwrapped.task, 5, np.random.default_rng())
    np.testing.assert_array_equal(observation["features"], fresh.reset(new)["features"])
    monitored = gym.wrappers.vector.RecordEpisodeStatistics(gym.make_vec(env_id, 5, model=cnn, dataset="digits"))
    monitored.reset(seed=0)
    for action in actions:
        infos = monitored.step(action)[4]
    assert infos["episode"]["l"].tolist() == [len(actions)] * 5


def test_terminal_observations_of_the_sb3_form_are_the_old_episodes(cnn):
    env = MaskVecEnv(LAYERWISE, 4, model=cnn, dataset="digits", reward="macs", penalty=(0.5, 1.0))
    first = env.reset()
    for action in layer_actions(random_masks(4)):
        observation, _, dones, infos = env.step(action)
    assert dones.dtype == bool
    assert dones.all()
    for row, info in enumerate(infos):
        assert info["terminal_observation"]["penalty"] == first["penalty"][row]
        assert observation["penalty"][row] != first["penalty"][row]
        assert not info["terminal_observation"]["gate"].any()
    np.testing.assert_array_equal(observation["gate"], [[1, 0]] * 4)


def test_infos_of_the_sb3_form_are_empty_before_the_end(cnn):
    env = MaskVecEnv(LAYERWISE, 3, model=cnn, dataset="digits")
    env.reset()
    infos = env.step(layer_actions(random_masks(3))[0])[3]
    assert infos == [{}, {}, {}]
    infos[0]["mine"] = 1
    assert infos[1] == {}


def test_observations_are_never_the_same_memory(cnn):
    env = MaskVecEnv(LAYERWISE, 4, model=cnn, dataset="digits", reward="macs", penalty=(0.5, 1.0), observation="image")
    taken = [env.reset()]
    taken += [env.step(action)[0] for action in layer_actions(random_masks(4)) * 2]
    for at, one in enumerate(taken):
        for other in taken[at + 1 :]:
            assert not any(np.shares_memory(one[name], other[name]) for name in one)
    before = env.task.dataset.images.clone()
    for observation in taken:
        observation["image"][:] = 1
    assert torch.equal(env.task.dataset.images, before)


def test_the_image_is_observed_if_wanted(cnn):
    env = gym.make(ONE_STEP, model=cnn, dataset="digits", observation="image")
    observation, info = env.reset(seed=0)
    digits = load_dataset("digits")
    np.testing.assert_array_equal(observation["image"], digits.images[info["index"]])
    assert observation in env.observation_space


def test_attributes_of_the_sb3_form(cnn):
    env = MaskVecEnv(ONE_STEP, 3, model=cnn, dataset="digits")
    assert env.get_attr("num_envs", [0, 2]) == [3, 3]
    assert env.env_is_wrapped(gym.Wrapper) == [False] * 3
    assert env.has_attr("group")
    assert not env.has_attr("absent")
    env.set_attr("group", 2)
    assert env.group == 2
    with pytest.raises(InvalidInputError, match="'lambda' cannot be set for sub-environments None: they are one batch"):
        env.set_attr("lambda", 2)
    with pytest.raises(InvalidInputError, match="'group' cannot be set for sub-environments 1"):
        env.set_attr("group", 2, 1)


def test_the_sb3_form_names_the_nearest_id():
    with pytest.raises(
        UnknownNameError, match=r"Unknown environment 'prunegym/ChanelMask-v0'. Did you mean '.*ChannelMask"
    ):
        MaskVecEnv("prunegym/ChanelMask-v0", 2)
    with pytest.raises(gym.error.NameNotFound, match=r"Did you mean: `ChannelMask`\?"):
        gym.make("prunegym/ChanelMask-v0")
