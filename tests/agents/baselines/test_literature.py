"""Other people's learners, for comparison."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from prunegym.agents.baselines.literature import best_of_k, decore, gates_by_gradient
from prunegym.agents.baselines.static_masks import make_baseline
from prunegym.agents.comparison.entries import as_entry
from prunegym.agents.evaluation.evaluator import evaluate
from prunegym.agents.rl.monitor import CollapseWarning
from prunegym.agents.rl.recipe_files import load_recipe
from prunegym.agents.rl.trainer import train_agent
from prunegym.errors import InvalidInputError
from prunegym.models import CNNInfo, Dataset, DynamicCNN, MaskedCNN, load_dataset
from prunegym.models.storage.model_file import Bundle


def test_decore_keeps_the_channel_that_answers_need(two_channels: MaskedCNN, votes: Dataset) -> None:
    """Channel 0 votes for three of four images, channel 1 for the fourth."""
    masks = decore(two_channels, votes, 0.5, epochs=150, seed=0)
    assert masks.mask.tolist() == [True, False]
    labels = 1 - votes.labels
    other = decore(two_channels, dataclasses.replace(votes, labels=labels), 0.5, epochs=150, seed=0)
    assert other.mask.tolist() == [False, True]


def test_decore_leaves_the_cnn_and_is_the_same_for_the_same_seed(masked: MaskedCNN) -> None:
    train = load_dataset("digits", "train")
    before = {name: value.clone() for name, value in masked.state_dict().items()}
    one, two = (decore(masked, train, 0.6, epochs=0.5, seed=3) for _ in range(2))
    assert torch.equal(one.mask, two.mask)
    assert all(torch.equal(value, before[name]) for name, value in masked.state_dict().items())
    assert 0.6 <= float(masked.cost.mac_share(one.mask[None])) < 0.6 + 1 / 16


def test_the_best_of_many_masks_gets_every_image_right(two_channels: MaskedCNN, votes: Dataset) -> None:
    """Either channel alone spends half; with the label seen the right one of the two is found."""
    one = evaluate(best_of_k(two_channels, None, votes, 0.5, k=1), two_channels, votes)
    many = evaluate(best_of_k(two_channels, None, votes, 0.5, k=30), two_channels, votes)
    assert one.accuracy < 1
    assert many.accuracy == 1.0
    assert many.mac_share == 0.5
    assert "An oracle: it sees the label and keeps the best of 30 masks" in many.notes[0]


def test_more_masks_of_the_gates_are_never_worse(dynamic: DynamicCNN, few: Dataset) -> None:
    rewards = []
    for k in (1, 2, 8):
        found = best_of_k(dynamic.masked, dynamic.policy, few, 0.6, k=k, seed=1)
        result = evaluate(found, dynamic, few)
        rewards.append(result.accuracy - 0.5 * result.mac_share)
        assert found.macs == dynamic.policy.macs
    assert rewards[0] < rewards[1] < rewards[2]


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True])
def test_gates_by_gradient_meet_the_share_on_the_frozen_cnn(masked: MaskedCNN, sparse: bool) -> None:
    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
    model = gates_by_gradient(masked, CNNInfo.of("simple-cnn", train), train, 0.7, 2, sparse=sparse)
    found = evaluate(model, None, test)
    assert found.total_mac_share == pytest.approx(0.7, abs=0.03)
    random = make_baseline("random", Bundle(masked=masked, info=model.info, data={"evaluated": test}), 0.7)
    assert found.accuracy > evaluate(random, masked, test).accuracy + 0.05
    weights = masked.network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.masked.network.state_dict().items())


def test_they_are_entries_of_a_comparison_by_name() -> None:
    for name in ("decore", "gates", "sparse-gates", "best-of-16"):
        entry = as_entry(name)
        assert (entry.name, entry.key, entry.at_share) == (name, {"rival": name, "epochs": None}, True)
    assert as_entry("blockdrop").key["recipe"]["baseline"] == "greedy"


def test_blockdrop_is_trained_by_its_recipe(masked: MaskedCNN, tmp_path: Path) -> None:
    train, validation = load_dataset("digits", "train"), load_dataset("digits", "validation")
    recipe = dataclasses.replace(
        load_recipe("blockdrop"), n_envs=64, n_episodes=640, eval_every=5, gate_policy={"hidden": 8}
    )
    info = CNNInfo.of("simple-cnn", train)
    with pytest.warns(CollapseWarning, match=r"1 distinct masks"):  # it starts from gates that keep everything
        model = train_agent(masked, info, train, validation, recipe, tmp_path, progress=False)
    assert len(model.policy.decisions) == 1
    assert json.loads((tmp_path / "monitor.json").read_text())["history"][-1]["timesteps"] == 640


def test_a_baseline_that_there_is_not() -> None:
    with pytest.raises(InvalidInputError, match=r"baseline is 'greedy' and group 1\. Give greedy with a group"):
        dataclasses.replace(load_recipe("blockdrop"), group=1)
    with pytest.raises(InvalidInputError, match=r"baseline is 'mean' and group 2\. Give greedy with a group"):
        dataclasses.replace(load_recipe("blockdrop"), baseline="mean")
