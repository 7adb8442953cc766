"""Actors of a run for a reward of one's own are compared by it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from prunegym.agents.rl.monitor import validation_figures
from prunegym.agents.rl.recipe import Recipe, own_reward
from prunegym.agents.rl.recipe_files import load_recipe
from prunegym.agents.rl.trainer import train_agent
from prunegym.envs import Outcome
from prunegym.errors import RewardError
from prunegym.models import DynamicCNN, load_dataset, rollout, shipped_model

RECIPE = dataclasses.replace(load_recipe("digits"), n_envs=32, group=4, n_episodes=128, eval_every=2)


def near_a_half(outcome: Outcome) -> torch.Tensor:
    right = (outcome.logits.argmax(1) == outcome.labels).double()
    return right - 5 * (outcome.mac_share - 0.5).abs()


def rewarded(reward: object, **kwargs: object) -> Recipe:
    return dataclasses.replace(RECIPE, env_kwargs={"reward": reward, **kwargs})


def by_hand(model: DynamicCNN, split: str) -> torch.Tensor:
    data = load_dataset("digits", split)
    with torch.no_grad():
        done = rollout(model.masked, model.policy, data.batch(torch.arange(len(data))))
    right = (done.output.argmax(1) == data.labels).double()
    return (right - 5 * (model.masked.cost.mac_share(done.mask) - 0.5).abs()).mean()


def test_it_is_the_mean_of_what_the_environment_pays() -> None:
    model, data = shipped_model("digits"), load_dataset("digits", "validation")
    own = own_reward(rewarded(near_a_half), model.masked, data)
    assert validation_figures(model.masked, model.policy, data, 0.2, own).reward == pytest.approx(
        float(by_hand(model, "validation"))
    )


def test_lambda_and_the_default_price_of_a_channel() -> None:
    model, data = shipped_model("digits"), load_dataset("digits", "validation")
    found = model.predict(data.images)
    right = (found.labels == data.labels).double()
    kept = found.masks.double().sum(1)
    size = model.masked.mask_size
    for penalty, price in ((None, 0.5 / size), (0.01, 0.01), ([0.003, 0.5], 0.2)):
        own = own_reward(rewarded("l0", penalty=penalty), model.masked, data)
        reward = validation_figures(
            model.masked, model.policy, data, 0.2, own
        ).reward  # 0.2 counts where there is a range
        assert reward == pytest.approx(float((right - price * kept).mean()))


def test_agreement_with_the_dense_network() -> None:
    model, data = shipped_model("digits"), load_dataset("digits", "validation")
    own = own_reward(rewarded("macs", accuracy="fidelity", penalty=0.0), model.masked, data)
    dense = model.masked.network(data.batch(torch.arange(len(data)))).argmax(1)
    agrees = (model.predict(data.images).labels == dense).double().mean()
    assert validation_figures(model.masked, model.policy, data, 0.2, own).reward == pytest.approx(float(agrees))


@pytest.mark.parametrize("accuracy", ["correct", "probability"])
def test_the_share_of_macs_is_compared_with_the_policys_own(accuracy: str) -> None:
    recipe = rewarded("macs", accuracy=accuracy)
    assert own_reward(recipe, shipped_model("digits").masked, load_dataset("digits", "validation")) is None


@pytest.mark.filterwarnings("ignore::prunegym.agents.rl.monitor.CollapseWarning")
def test_a_run_keeps_the_best_actor_by_it(tmp_path: Path) -> None:
    model = shipped_model("digits")
    train, validation = load_dataset("digits", "train"), load_dataset("digits", "validation")
    best = train_agent(
        model.masked, model.info, train, validation, rewarded(f"{__name__}:near_a_half"), tmp_path / "run",
        policy=model.policy, progress=False,
    )  # fmt: skip
    rewards = [row["reward"] for row in json.loads((tmp_path / "run/monitor.json").read_text())["history"]]
    assert len(rewards) == 3
    assert float(by_hand(best, "validation")) == pytest.approx(max(rewards))


def for_training_images_only(outcome: Outcome) -> torch.Tensor:
    return {"train": torch.ones(len(outcome.labels), dtype=torch.float64)}[outcome.dataset.split]


def test_a_reward_that_fails_on_validation_images_is_told_before_training(tmp_path: Path) -> None:
    model = shipped_model("digits")
    train, validation = load_dataset("digits", "train"), load_dataset("digits", "validation")
    with pytest.raises(RewardError, match="KeyError"):
        train_agent(model.masked, model.info, train, validation, rewarded(for_training_images_only), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_gates_that_training_starts_from_stay_as_they_are(tmp_path: Path) -> None:
    model, before = shipped_model("digits"), shipped_model("digits")
    train, validation = load_dataset("digits", "train"), load_dataset("digits", "validation")
    made = train_agent(
        model.masked, model.info, train, validation, RECIPE, tmp_path / "run", policy=model.policy, progress=False
    )
    assert made.policy is not model.policy
    for name, value in before.policy.state_dict().items():
        assert torch.equal(model.policy.state_dict()[name], value)
