from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prunegym.agents.callbacks import CollapseWarning, snapshot
from prunegym.agents.recipe import Recipe, load_recipe
from prunegym.agents.training import train_agent
from prunegym.models import (
    DynamicCNN,
    GatePolicy,
    ImitationConfig,
    StaticPolicy,
    load_dataset,
    shipped_model,
)
from prunegym.models.errors import InvalidInputError

SMALL = dataclasses.replace(load_recipe("digits"), n_envs=32, group=4, n_episodes=256, eval_every=3)


def run(recipe: Recipe, out: Path, policy: bool = True, **kwargs: Any) -> DynamicCNN:
    model = shipped_model("digits")
    assert isinstance(model.policy, GatePolicy)
    return train_agent(
        model.masked,
        model.info,
        load_dataset("digits", "train"),
        load_dataset("digits", "validation"),
        recipe,
        out,
        policy=model.policy if policy else None,
        progress=False,
        **kwargs,
    )


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_a_run_leaves_a_model_and_says_how_it_was_made(tmp_path: Path, algo: str) -> None:
    settings = {"learning_rate": 3e-4, "gamma": 1.0, "gae_lambda": 1.0}
    model = run(dataclasses.replace(SMALL, algo=algo, hyperparameters=settings), tmp_path)
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
    with pytest.raises(InvalidInputError, match=r"has a run with other settings \(seed\)"):
        run(SMALL, tmp_path, resume=True, seed=1)


def test_imitation_is_the_first_stage_where_there_is_no_policy(tmp_path: Path) -> None:
    stages: list[str] = []
    recipe = dataclasses.replace(
        SMALL, imitation=ImitationConfig(steps=50, batch_size=32), gate_policy={"hidden": 8}, target_macs=0.6
    )
    run(recipe, tmp_path, policy=False, report=lambda stage, _row: stages.append(stage))
    assert stages[0] == "imitation"
    assert stages[-1] == "ppo"
    start = DynamicCNN.load(tmp_path / "start.safetensors")
    share = snapshot(start.masked, start.policy, load_dataset("digits", "train"), 0.5).total_mac_share
    assert abs(share - 0.6) < 0.02


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
    with pytest.raises(InvalidInputError, match=r"The model's policy is static: it looks at nothing"):
        train_agent(model.masked, model.info, test, test, SMALL, tmp_path, policy=StaticPolicy(model.policy.features))


def test_a_policy_with_one_mask_is_warned_of(tmp_path: Path) -> None:
    # Without imitation, a fresh policy keeps every channel of every image.
    recipe = dataclasses.replace(SMALL, n_episodes=32, gate_policy={"hidden": 8})
    with pytest.warns(CollapseWarning, match=r"The policy has become static: 1 distinct masks, accuracy 0\.9"):
        run(recipe, tmp_path, policy=False)


def test_a_range_of_lambdas_makes_a_policy_that_reads_lambda(tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        SMALL,
        n_episodes=64,
        env_kwargs=SMALL.env_kwargs | {"penalty": [0.1, 1.0]},
        imitation=ImitationConfig(steps=150, batch_size=32, kept_share=0.6),
        gate_policy={"hidden": 8},
    )
    model = run(recipe, tmp_path, policy=False)
    assert model.policy.penalty_range == (0.1, 1.0)
    images = load_dataset("digits", "test").images[:50]
    cheap, dear = (DynamicCNN.load(tmp_path / "model.safetensors").predict(images, penalty=p) for p in (1.0, 0.1))
    features = torch.zeros(1, model.policy.features.sizes[0])
    assert not torch.equal(model.policy.logits(0, features, 0.1), model.policy.logits(0, features, 1.0))
    assert cheap.masks.shape == dear.masks.shape
