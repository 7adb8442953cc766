"""A MAC budget in training: where it begins and ends, and how lambda moves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prunegym.agents.evaluation.evaluator import evaluate
from prunegym.agents.rl.lagrangian import Budget, BudgetWarning, DualAscent, end_at_budget
from prunegym.agents.rl.monitor import TrainingMonitor
from prunegym.agents.rl.trainer import build_algorithm, training_env, try_recipe
from prunegym.envs import make_task
from prunegym.errors import InvalidInputError
from prunegym.models import DynamicCNN, GatePolicy, MaskedCNN, MaskFeatures, load_dataset, shipped_model
from prunegym.models.storage.model_file import Bundle
from prunegym.models.training.mac_target import total_mac_share
from tests.agents.rl.digits_runs import SMALL, run


@pytest.mark.slow
def test_a_budget_is_where_training_begins_and_ends(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    recipe = dataclasses.replace(SMALL, n_episodes=512, budget=Budget(0.37, rate=0.1, damping=1.0))
    model = run(recipe, tmp_path, report=lambda _stage, row: rows.append(row))
    train, validation = load_dataset("digits", "train"), load_dataset("digits", "validation")
    start = DynamicCNN.load(tmp_path / "start.safetensors")
    assert total_mac_share(start.masked, start.policy, train) == pytest.approx(0.37, abs=0.02)
    ended = evaluate(DynamicCNN.load(tmp_path / "model.safetensors"), None, validation)
    assert ended.total_mac_share == pytest.approx(0.37, abs=0.01)
    assert all(row["total_mac_share"] == pytest.approx(0.37, abs=0.01) for row in rows)
    assert rows[0]["penalty"] == 0.2
    assert len({row["penalty"] for row in rows}) > 2
    assert model.policy.macs / model.masked.cost.total_macs > 0.01, "the policy's MACs are part of the budget"
    log = EventAccumulator(str(next((tmp_path / "tensorboard").iterdir()))).Reload()
    assert [event.value for event in log.Scalars("rollout/penalty")][-1] > 0


def test_lambda_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    recipe = dataclasses.replace(SMALL, budget=Budget(0.3, rate=5.0, damping=0.0))

    def stop(_stage: str, row: dict[str, Any]) -> None:
        if row["updates"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path, report=stop)
    stored = json.loads((tmp_path / "monitor.json").read_text())["budget"]["steady"]
    assert stored != 0.2
    seen: list[float] = []

    def look(_stage: str, row: dict[str, Any]) -> None:
        seen.append(row["penalty"])

    frozen_rate = dataclasses.replace(recipe, budget=Budget(0.3, rate=0.0, damping=0.0))
    settings = json.loads((tmp_path / "run.json").read_text())
    settings["settings"]["recipe"]["budget"]["rate"] = 0.0
    (tmp_path / "run.json").write_text(json.dumps(settings))
    run(frozen_rate, tmp_path, resume=True, report=look)
    assert set(seen) == {stored}, "with a rate of 0 lambda stays where the checkpoint had it"


@pytest.mark.filterwarnings("ignore:The policy has become static")  # gates from scratch may
def test_lambda_rises_until_masks_are_cheap_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From gates that keep nearly everything, and a lambda of 0."""
    model, train = shipped_model("digits"), load_dataset("digits", "train")
    recipe = dataclasses.replace(SMALL, n_envs=128, group=8, env_kwargs=SMALL.env_kwargs | {"penalty": 0.0})
    policy = GatePolicy(model.policy.features, 16)
    env = training_env(model.masked, policy, train, recipe, 0, "cpu")
    ascent = DualAscent(Budget(0.6), env.get_attr("task")[0])
    told: list[tuple[float, float]] = []
    update = ascent.update

    def listening(total_share: float) -> float:
        told.append((total_share, update(total_share)))
        return told[-1][1]

    monkeypatch.setattr(ascent, "update", listening)
    settings = recipe.hyperparameters | {"learning_rate": 3e-3}
    recipe = dataclasses.replace(recipe, hyperparameters=settings, eval_every=1000)
    data = {"validation": load_dataset("digits", "validation")}
    bundle = Bundle(masked=model.masked, info=model.info, data=data)
    monitor = TrainingMonitor(bundle, recipe, tmp_path, progress=False, budget=ascent)
    build_algorithm(env, policy, recipe, 0, "cpu").learn(128 * 3 * 40, callback=monitor)
    assert told[0][0] > 0.75
    assert told[5][1] > 1.0
    assert abs(told[-1][0] - 0.6) < 0.1
    assert env.get_attr("task")[0].penalty == ascent.penalty


def test_the_price_of_kept_channels_has_its_own_unit() -> None:
    """Reward l0: lambda is the price of one of 160 channels, so it moves in units of 1/160."""
    task = make_task("digits", reward="l0", layerwise=True)
    ascent = DualAscent(Budget(0.5, rate=1.0, damping=2.0), task)
    assert ascent.update(0.7) == pytest.approx((0.5 + 0.2 + 2 * 0.2) / 160)
    assert ascent.update(0.5) == pytest.approx((0.5 + 0.2) / 160)
    assert ascent.update(0.4) == pytest.approx((0.7 - 0.1 - 2 * 0.1) / 160)
    assert ascent.update(0.0) == 0.0
    assert ascent.update(0.5) == pytest.approx(0.1 / 160)


def test_a_budget_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"target_macs is 0; a finite number above 0 and at most 1 is needed\."):
        Budget(0)
    with pytest.raises(InvalidInputError, match=r"rate is nan; a finite number of at least 0 is needed"):
        Budget(0.5, float("nan"))
    with pytest.raises(
        InvalidInputError, match=r"damping is -1; a finite number of at least 0 is needed\. A usual value is 5\."
    ):
        Budget(0.5, damping=-1)
    with pytest.raises(InvalidInputError, match=r"budget where it starts and ends\. Give one of the two\."):
        dataclasses.replace(SMALL, budget=Budget(0.5), target_macs=0.5)
    with pytest.raises(InvalidInputError, match=r"penalty is a range\. Give one number"):
        dataclasses.replace(SMALL, budget=Budget(0.5), env_kwargs={"penalty": (0.1, 1.0)})
    masked = shipped_model("digits").masked
    policy = GatePolicy(MaskFeatures(masked), 4)  # uncalibrated, and the same logits for all images
    for head in policy.heads:
        torch.nn.init.zeros_(head[2].weight)
    with pytest.warns(BudgetWarning, match=r"share is 0\.\d+, not 0\.3, and no offset of its logits comes closer"):
        end_at_budget(masked, policy, load_dataset("digits", "validation"), Budget(0.3))


def test_a_budget_that_no_mask_reaches_is_refused() -> None:
    network, train = shipped_model("digits").masked.network, load_dataset("digits", "train")
    masked = MaskedCNN(network, train.batch(torch.arange(1)), gates=["features.0"])
    recipe = dataclasses.replace(SMALL, budget=Budget(0.01))
    with pytest.raises(InvalidInputError, match=r"the budget's target_macs is 0.01, but 0\.\d+ of the MACs cannot"):
        try_recipe(recipe, masked, train, load_dataset("digits", "validation"), None)
