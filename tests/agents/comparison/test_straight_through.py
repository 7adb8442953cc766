"""The other side of a reward without a gradient gets its best target and offset."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from prunegym import DynamicCNN, evaluate, load_dataset, shipped_model
from prunegym.agents.comparison.comparing import compare
from prunegym.agents.comparison.entries import Terms
from prunegym.agents.comparison.straight_through import straight_through_entry
from prunegym.agents.rl.recipe import Recipe
from prunegym.envs.rewards.no_gradient import HardCap
from prunegym.errors import InvalidInputError
from prunegym.models.storage.model_file import Bundle

CAP = 0.4


def earned(model, dataset):
    """The reward by hand: right answers of images that use at most 40 % of the MACs."""
    found = evaluate(model, None, dataset)
    return (found.correct & (model.masked.cost.mac_share(found.masks) <= CAP)).double().mean().item()


def test_the_offset_is_the_best_on_the_validation_images():
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
    for offset in (-0.5, -0.25, 0.25, 0.5):
        policy = copy.deepcopy(made.policy)
        policy.rescale_logits(offset=offset)
        moved = earned(DynamicCNN(made.masked, policy, made.info), data["validation"])
        assert moved <= best + 1e-9  # it was tried too
    assert best > earned(start, data["validation"])


def test_it_needs_gates_and_targets(masked, few, tmp_path):
    with pytest.raises(InvalidInputError, match="The model has no gates"):
        compare([straight_through_entry([0.5])], masked, few, (0,), out=tmp_path)
    for targets in ([], "0.5", [1.5], [0.0]):
        with pytest.raises(InvalidInputError):
            straight_through_entry(targets)
