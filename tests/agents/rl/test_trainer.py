from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunegym.agents.comparison.results import fingerprint
from prunegym.agents.evaluation.evaluator import evaluate
from prunegym.agents.rl.finetuning import finetune
from prunegym.agents.rl.lagrangian import Budget, gates_at_mac_share
from prunegym.agents.rl.monitor import CollapseWarning, validation_figures
from prunegym.agents.rl.trainer import train_agent
from prunegym.envs import Outcome
from prunegym.errors import InvalidInputError, RewardError, UnknownNameError
from prunegym.models import DynamicCNN, ImitationConfig, StaticPolicy, TuneConfig, build, load_dataset, shipped_model
from prunegym.models.storage.run_state import load_state, save_state
from tests.agents.rl.digits_runs import SMALL, run


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_a_run_leaves_a_model_and_says_how_it_was_made(tmp_path: Path, algo: str) -> None:
    settings = {"learning_rate": 3e-4, "gamma": 1.0, "gae_lambda": 1.0}
    rows: list[dict[str, Any]] = []
    recipe = dataclasses.replace(SMALL, algo=algo, hyperparameters=settings)
    model = run(recipe, tmp_path, report=lambda stage, row: rows.append(row) if stage == algo else None)
    images = load_dataset("digits", "test").images[:40]
    loaded = DynamicCNN.load(tmp_path / "model.safetensors")
    assert torch.equal(loaded.predict(images).logits, model.predict(images).logits)
    described = json.loads((tmp_path / "run.json").read_text())
    assert described["settings"]["recipe"]["algo"] == algo
    assert set(described["versions"]) >= {"torch", "gymnasium", "stable-baselines3"}
    assert list((tmp_path / "tensorboard").rglob("events*"))
    history = json.loads((tmp_path / "monitor.json").read_text())["history"]
    assert [row["updates"] for row in history] == [0, 3, 6, 8]
    assert history[-1]["timesteps"] == 256 * 3
    assert [row["timesteps"] for row in rows] == [row["timesteps"] for row in history]
    assert {row["total_timesteps"] for row in rows} == {256 * 3}


@pytest.mark.slow
def test_a_recipe_with_constants_trains_them_before_reinforcement_learning(tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        SMALL, compensation="constant", imitation=ImitationConfig(steps=20, mac_share=0.6),
        refine=TuneConfig(0.6, epochs=1, train_cnn=False), gate_policy={"hidden": 8},
    )  # fmt: skip
    model = run(recipe, tmp_path, policy=False)
    start = DynamicCNN.load(tmp_path / "start.safetensors").masked.constants
    assert start.abs().max() > 0
    assert torch.equal(model.masked.constants, start)
    # A run that is resumed has the constants of its start.
    again = run(recipe, tmp_path, policy=False, resume=True)
    assert torch.equal(again.masked.constants, start)
    images = load_dataset("digits", "test").images[:40]
    assert torch.equal(again.predict(images).logits, model.predict(images).logits)


@pytest.mark.slow
def test_stages_follow_the_seed_of_the_run_unless_the_recipe_sets_theirs(tmp_path: Path) -> None:
    def trained(name: str, own: int | None, seed: int) -> dict[str, Any]:
        recipe = dataclasses.replace(
            SMALL, n_episodes=0, gate_policy={"hidden": 4, "grid": 1, "feature_size": 8},
            imitation=ImitationConfig(steps=3, batch_size=16, mac_share=0.6, seed=own),
            refine=TuneConfig(0.6, epochs=0.1, train_cnn=False, seed=own),
        )  # fmt: skip
        policy = run(recipe, tmp_path / name, policy=False, seed=seed).policy
        stored = json.loads((tmp_path / name / "run.json").read_text())["settings"]["recipe"]
        assert stored["imitation"]["seed"] == stored["refine"]["seed"] == (seed if own is None else own)
        return {key: tensor.tolist() for key, tensor in policy.state_dict().items()}

    followed = trained("followed", None, 3)
    assert followed == trained("same", 3, 3)
    assert followed != trained("own", 0, 3)


def test_ppo_raises_the_reward_it_is_trained_for(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    recipe = dataclasses.replace(
        SMALL, n_envs=128, group=8, n_episodes=5120, eval_every=100, env_kwargs=SMALL.env_kwargs | {"penalty": 0.5}
    )
    run(recipe, tmp_path, report=lambda _stage, row: rows.append(row))
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.005


def test_an_interrupted_run_goes_on_to_the_same_step_count(tmp_path: Path) -> None:
    def stop(_stage: str, row: dict[str, Any]) -> None:
        if row["updates"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(SMALL, tmp_path, report=stop)
    with pytest.raises(InvalidInputError, match=r"has this run already\. Add --resume"):
        run(SMALL, tmp_path)
    rows: list[dict[str, Any]] = []
    run(SMALL, tmp_path, resume=True, report=lambda _stage, row: rows.append(row))
    assert rows[0]["updates"] == 6
    assert rows[-1]["timesteps"] == 256 * 3
    with pytest.raises(InvalidInputError, match=r"has a run with other settings \(seed: 0, not 1\)"):
        run(SMALL, tmp_path, resume=True, seed=1)


@pytest.mark.filterwarnings("ignore::prunegym.agents.rl.monitor.CollapseWarning")
@pytest.mark.parametrize(
    "case",
    [
        "budget",
        *(pytest.param(c, marks=pytest.mark.slow) for c in ("plain", "range of lambdas", "greedy baseline", "a2c")),
    ],
)
def test_a_run_that_is_resumed_ends_as_one_that_never_stopped(tmp_path: Path, case: str) -> None:
    recipe = {
        "plain": SMALL,
        "budget": dataclasses.replace(SMALL, budget=Budget(0.4)),
        "range of lambdas": dataclasses.replace(SMALL, env_kwargs=SMALL.env_kwargs | {"penalty": [0.1, 0.9]}),
        "greedy baseline": dataclasses.replace(SMALL, baseline="greedy"),
        "a2c": dataclasses.replace(SMALL, algo="a2c", hyperparameters={"learning_rate": "lin_1e-3", "gamma": 1.0}),
    }[case]
    recipe = dataclasses.replace(recipe, eval_every=2, env_kwargs=recipe.env_kwargs | {"augment": True})
    fresh = case == "range of lambdas"  # the shipped gates are for one lambda
    for updates in (0, 2, 4, 8):

        def stop(stage: str, row: dict[str, Any], updates: int = updates) -> None:
            if stage in ("ppo", "a2c") and row["updates"] == updates:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "parts", policy=not fresh, report=stop, resume=True)
    parts = run(recipe, tmp_path / "parts", policy=not fresh, resume=True)
    whole = run(recipe, tmp_path / "whole", policy=not fresh)
    figures = [(tmp_path / name / "monitor.json").read_text() for name in ("parts", "whole")]
    assert figures[0] == figures[1]
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in parts.state_dict().items())


def test_imitation_is_the_first_stage_where_there_is_no_policy(tmp_path: Path) -> None:
    stages: list[str] = []
    recipe = dataclasses.replace(
        SMALL, imitation=ImitationConfig(steps=50, batch_size=32), gate_policy={"hidden": 8}, target_macs=0.6
    )
    run(recipe, tmp_path, policy=False, report=lambda stage, _row: stages.append(stage))
    assert stages[0] == "imitation"
    assert stages[-1] == "ppo"
    start = DynamicCNN.load(tmp_path / "start.safetensors")
    share = validation_figures(start.masked, start.policy, load_dataset("digits", "train"), 0.5).total_mac_share
    assert abs(share - 0.6) < 0.02


@pytest.mark.parametrize(
    "reward", [lambda _outcome: [1.0], lambda outcome: outcome.correct / 0, lambda _outcome: {}["a"]]
)
def test_a_reward_that_fails_is_found_before_imitation(tmp_path: Path, reward: Callable[[Outcome], Any]) -> None:
    recipe = dataclasses.replace(SMALL, imitation=ImitationConfig(steps=50), env_kwargs={"reward": reward})
    with pytest.raises(RewardError):
        run(recipe, tmp_path / "run", policy=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_reinforcement_learning_begins_at_the_best_offset(tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        SMALL, imitation=ImitationConfig(steps=50, batch_size=32), gate_policy={"hidden": 8}, target_macs="best",
        env_kwargs=SMALL.env_kwargs | {"reward": "macs", "penalty": 0.4}, n_episodes=0,
    )  # fmt: skip
    validation = load_dataset("digits", "validation")
    begun = run(recipe, tmp_path / "best", policy=False)
    reward = evaluate(begun, None, validation, penalty=0.4).reward
    shares = np.arange(0.2, 1.0, 0.1)
    shifted = [gates_at_mac_share(begun, validation, share) for share in shares]
    assert reward >= max(evaluate(agent, None, validation, penalty=0.4).reward for agent in shifted) - 0.01
    plain = run(dataclasses.replace(recipe, target_macs=None), tmp_path / "plain", policy=False)
    assert reward > evaluate(plain, None, validation, penalty=0.4).reward


@pytest.mark.filterwarnings("ignore::prunegym.agents.rl.monitor.CollapseWarning")
def test_a_resumed_run_searches_its_start_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(SMALL, imitation=ImitationConfig(steps=5, batch_size=32), gate_policy={"hidden": 8})
    recipe = dataclasses.replace(recipe, n_episodes=0)
    first = run(recipe, tmp_path, policy=False)
    monkeypatch.setattr("prunegym.agents.rl.trainer.prepare", lambda *_args, **_kwargs: pytest.fail("prepared again"))
    again = run(recipe, tmp_path, policy=False, resume=True).policy.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.policy.state_dict().items())


@pytest.mark.parametrize("part", ["CNN", "gates", "training images"])
def test_a_resumed_run_has_its_own_inputs(tmp_path: Path, part: str) -> None:
    recipe = dataclasses.replace(SMALL, n_episodes=0)
    run(recipe, tmp_path)
    model, train = shipped_model("digits"), load_dataset("digits", "train")
    with torch.no_grad():
        if part == "training images":
            train = dataclasses.replace(train, images=255 - train.images)
        else:
            next((model.masked if part == "CNN" else model.policy).parameters()).add_(0.1)
    validation = load_dataset("digits", "validation")
    with pytest.raises(InvalidInputError, match=rf"a run with other inputs \({part}\)\. Give another folder \(--out\)"):
        train_agent(model.masked, model.info, train, validation, recipe, tmp_path, policy=model.policy, resume=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::prunegym.agents.rl.monitor.CollapseWarning")
def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    recipe = dataclasses.replace(SMALL, n_episodes=32)
    run(recipe, tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    whole = load_state(path)

    def changed(part: str, **values: Any) -> dict[str, Any]:
        return {**whole, part: {**whole[part], **values}}

    (tmp_path / "monitor.json").write_text("nothing is read from here")
    run(recipe, tmp_path, resume=True)
    damaged = [
        changed("monitor", history=[]), changed("monitor", history=3), changed("monitor", history=[{"reward": 1.0}]),
        changed("monitor", best_reward="x"), changed("monitor", updates=-1), changed("noise", torch=torch.zeros(3)),
        changed("algorithm", timesteps=10**9), changed("algorithm", timesteps=1), changed("algorithm", optimizer=None),
        {**whole, "best": {}}, {**whole, "best": None}, {"algorithm": whole["algorithm"]}, {},
    ]  # fmt: skip
    for state in damaged:
        save_state(path, state)
        with pytest.raises(InvalidInputError, match=r"checkpoint\.safetensors is damaged, .*\. Delete it"):
            run(recipe, tmp_path, resume=True)
    path.write_bytes(b"PK")
    with pytest.raises(InvalidInputError, match=r"checkpoint\.safetensors is damaged"):
        run(recipe, tmp_path, resume=True)


def test_the_best_actor_is_kept_even_if_it_is_the_start(tmp_path: Path) -> None:
    settings = SMALL.hyperparameters | {"learning_rate": 0.3, "target_kl": None}
    recipe = dataclasses.replace(SMALL, hyperparameters=settings, sharpen=1.0)
    model = run(recipe, tmp_path)
    history = json.loads((tmp_path / "monitor.json").read_text())["history"]
    assert max(row["reward"] for row in history) == history[0]["reward"]
    start = shipped_model("digits").policy.state_dict()
    assert all(torch.equal(value, start[name]) for name, value in model.policy.state_dict().items())


def test_a_static_policy_cannot_be_trained(tmp_path: Path) -> None:
    model = shipped_model("digits")
    test = load_dataset("digits", "test")
    with pytest.raises(InvalidInputError, match=r"The model's policy is static: it has one mask for all images"):
        train_agent(model.masked, model.info, test, test, SMALL, tmp_path, policy=StaticPolicy(model.policy.features))


def test_too_many_minibatches_are_found_before_anything_is_written(tmp_path: Path) -> None:
    recipe = dataclasses.replace(SMALL, n_minibatches=1000)
    with pytest.raises(InvalidInputError, match=r"Recipe '.*': n_minibatches is 1000; .* A rollout has \d+ steps"):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_policy_with_one_mask_is_warned_of(tmp_path: Path) -> None:
    # Without imitation, a fresh policy keeps every channel of every image.
    recipe = dataclasses.replace(SMALL, n_episodes=32, gate_policy={"hidden": 8})
    with pytest.warns(CollapseWarning, match=r"The policy has become static: 1 distinct masks, accuracy 0\.9"):
        run(recipe, tmp_path, policy=False)


@pytest.mark.slow
def test_one_policy_for_all_lambdas_spends_less_the_larger_lambda_is(tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        SMALL,
        n_envs=128,
        group=8,
        n_episodes=2560,
        env_kwargs=SMALL.env_kwargs | {"penalty": [0.1, 1.0]},
        imitation=ImitationConfig(steps=300, batch_size=64, mac_share=[0.85, 0.4]),
        gate_policy={"hidden": 16},
    )
    rows: list[dict[str, Any]] = []
    run(recipe, tmp_path, policy=False, report=lambda stage, row: rows.append(row) if stage == "ppo" else None)
    model, test = DynamicCNN.load(tmp_path / "model.safetensors"), load_dataset("digits", "test")
    assert model.policy.penalty_range == (0.1, 1.0)
    lambdas = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    shares = [float(model.predict(test.images, penalty=value).mac_share.mean()) for value in lambdas]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1] + 0.15
    for value, share in zip(lambdas, shares, strict=True):
        found = evaluate(model, None, test, penalty=value)
        assert found.total_mac_share == pytest.approx(share, abs=1e-6)
        assert found.reward == pytest.approx(found.accuracy - value * share, abs=1e-6)
    last = rows[-1]
    held_out = load_dataset("digits", "validation")
    actor = DynamicCNN.load(tmp_path / "model.safetensors").policy
    at = [validation_figures(model.masked, actor, held_out, value) for value in (0.1, 0.55, 1.0)]
    assert max(row["reward"] for row in rows) == pytest.approx(sum(found.reward for found in at) / 3, abs=1e-6)
    assert last["total_mac_share_at_lowest"] > last["total_mac_share"] > last["total_mac_share_at_highest"]


def test_fine_tuning_refuses_another_teacher_before_it_begins(tmp_path: Path) -> None:
    digits = load_dataset("digits")
    with pytest.raises(InvalidInputError, match=r"dense is a SimpleCNN whose output per image has shape \(5,\)"):
        finetune(
            shipped_model("digits"), digits, digits, SMALL, TuneConfig(), tmp_path, dense=build("simple-cnn", 5, 1, 8)
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::prunegym.agents.rl.monitor.CollapseWarning")
@pytest.mark.parametrize("changes", [{"hyperparameters": {"n_steps": 5}}, {"env_kwargs": {"device": "cpu"}}])
def test_settings_of_a_recipe_that_have_no_effect_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown setting of (hyperparameters|env_kwargs) in recipe"):
        run(dataclasses.replace(SMALL, **changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_folders_may_be_strings(tmp_path: Path) -> None:
    recipe = dataclasses.replace(SMALL, n_episodes=0)
    agent = run(recipe, f"{tmp_path}/agent")
    digits = load_dataset("digits").sample(64)
    finetune(agent, digits, digits, recipe, TuneConfig(epochs=0.5), f"{tmp_path}/tuned", rounds=1, progress=False)
    for folder in ("agent", "tuned", "tuned/turn-1"):
        assert (tmp_path / folder / "model.safetensors").exists()


def test_recipes_may_be_names_and_files(tmp_path: Path) -> None:
    path = tmp_path / "start-alone.yaml"
    path.write_text("prunegym/LayerwiseChannelMask-v0: {env_kwargs: {reward: macs}, n_episodes: 0}")
    agent = run(path, tmp_path / "agent")
    assert json.loads((tmp_path / "agent/run.json").read_text())["settings"]["recipe"]["name"] == "start-alone"
    digits = load_dataset("digits").sample(64)
    with pytest.raises(UnknownNameError, match="Unknown recipe 'start-alone'"):
        finetune(agent, digits, digits, "start-alone", TuneConfig(), tmp_path / "tuned")


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    model, recipe, names = shipped_model("digits"), dataclasses.replace(SMALL, n_episodes=0), tuple("abcdefghij")
    info = dataclasses.replace(model.info, classes=names)
    train, validation = (
        dataclasses.replace(data, classes=names[::-1], labels=9 - data.labels)
        for data in (load_dataset("digits", split) for split in ("train", "validation"))
    )
    agent = train_agent(
        model.masked, info, train, validation, recipe, tmp_path / "agent", policy=model.policy, progress=False
    )
    tuning = TuneConfig(epochs=0.1)
    rows = finetune(agent, train, validation, recipe, tuning, tmp_path / "tuned", rounds=1, progress=False)
    assert rows[0]["accuracy"] > 0.9
    inputs = [json.loads((tmp_path / name / "run.json").read_text())["inputs"] for name in ("agent", "tuned")]
    numbered = fingerprint(dataclasses.replace(load_dataset("digits"), normalisation=info.normalisation))
    assert [made_from["training images"] for made_from in inputs] == [numbered] * 2
