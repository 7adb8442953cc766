"""The other side of a reward without a gradient gets its best target and offset."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from prunegym import DynamicCNN, evaluate, load_dataset, shipped_model
from prunegym.agents.comparison import straight_through
from prunegym.agents.comparison.comparing import compare
from prunegym.agents.comparison.entries import Terms, start_entry
from prunegym.agents.comparison.straight_through import straight_through_entry
from prunegym.agents.rl import lagrangian
from prunegym.agents.rl.recipe import Recipe
from prunegym.agents.rl.trainer import train_agent
from prunegym.envs.rewards.no_gradient import HardCap
from prunegym.errors import InvalidInputError
from prunegym.models.gating.static_policy import rollout
from prunegym.models.storage.model_file import Bundle

CAP = 0.4


def earned(model, dataset):
    """The reward by hand: right answers of images that use at most 40 % of the MACs."""
    found = evaluate(model, None, dataset)
    return (found.correct & (model.masked.cost.mac_share(found.masks) <= CAP)).double().mean().item()


def test_the_offset_is_the_best_on_the_validation_images(tmp_path):
    start = shipped_model("digits")
    data = {"train": load_dataset("digits").sample(256), "validation": load_dataset("digits", "validation")}
    model = Bundle(masked=start.masked, info=start.info, policy=start.policy, data=data)
    before = copy.deepcopy(start.policy.state_dict())
    reward, said = Recipe("task", env_kwargs={"reward": HardCap(CAP)}), []
    terms = Terms(1.0, 1.0, 0.5, Path(), False, reward, lambda stage, row: said.append((stage, row["reward"])))
    made = straight_through_entry([0.3, 0.5]).make(model, terms)
    assert all(torch.equal(value, before[name]) for name, value in start.policy.state_dict().items())
    assert [stage for stage, _ in said] == ["straight-through to 0.3", "straight-through to 0.5"]
    best = earned(made, data["validation"])
    assert best == pytest.approx(max(reward for _, reward in said))
    few = data["validation"].batch(torch.arange(len(data["validation"])))
    deviation = rollout(made.masked, made.policy, few).gate_logits.std().item()
    for steps in (-0.4, -0.2, 0.2, 0.4):
        policy = copy.deepcopy(made.policy)
        policy.rescale_logits(offset=steps * deviation)
        moved = earned(DynamicCNN(made.masked, policy, made.info), data["validation"])
        assert moved <= best + 1e-9  # it was tried too
    assert best > earned(start, data["validation"])
    # Reinforcement learning and the untrained gates may begin where this reward is highest, too.
    shifted = start_entry("best-offset").make(model, terms)
    assert earned(shifted, data["validation"]) > earned(start, data["validation"])
    start.policy.rescale_logits(8.0)  # the same masks; offsets must grow as the logits do
    assert earned(start_entry("best-offset").make(model, terms), data["validation"]) == earned(
        shifted, data["validation"]
    )
    recipe = Recipe("task", env_kwargs={"reward": HardCap(CAP)}, target_macs="best", n_episodes=0)
    begun = train_agent(
        start.masked, start.info, data["train"], data["validation"], recipe, tmp_path / "run", policy=start.policy
    )
    assert earned(begun, data["validation"]) == earned(shifted, data["validation"])


def test_tasks_of_a_suite_share_the_training(tmp_path, monkeypatch):
    start = shipped_model("digits")
    data = {"train": load_dataset("digits").sample(64), "validation": load_dataset("digits", "validation").sample(64)}
    model = Bundle(masked=start.masked, info=start.info, policy=start.policy, data=data)
    entry = straight_through_entry([0.4], epochs=0.5)
    assert entry.key["epochs"] == 0.5
    assert not entry.as_long

    def make(penalty, shared):
        return entry.make(model, Terms(1.0, 7.0, penalty, tmp_path, False, shared=shared)).policy.state_dict()

    other, alone, first = make(0.0, None), make(0.5, None), make(0.5, tmp_path / "shared")
    monkeypatch.setattr(straight_through, "tune", lambda *_: pytest.fail("trained again"))
    again = make(0.5, tmp_path / "shared")
    assert all(torch.equal(value, first[name]) and torch.equal(value, again[name]) for name, value in alone.items())
    monkeypatch.setattr(lagrangian, "decide_on_the_way", lambda *_: pytest.fail("the CNN was run again"))
    taken = make(0.0, tmp_path / "shared")  # another reward, the same training and the same masks
    assert all(torch.equal(value, taken[name]) for name, value in other.items())
    assert any(not torch.equal(value, first[name]) for name, value in other.items())
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        straight_through_entry([0.5], epochs=0.5).make(
            model, Terms(1.0, 7.0, 0.5, tmp_path, shared=tmp_path / "shared")
        )


def test_it_needs_gates_and_targets(masked, few, tmp_path):
    with pytest.raises(InvalidInputError, match="The model has no gates"):
        compare([straight_through_entry([0.5])], masked, few, (0,), out=tmp_path)
    for targets in ([], "0.5", [1.5], [0.0]):
        with pytest.raises(InvalidInputError):
            straight_through_entry(targets)
    with pytest.raises(InvalidInputError, match="epochs of straight-through gates"):
        straight_through_entry([0.5], epochs=0)
