"""What stands in a comparison: recipes, their starts, baselines, oracles, and one model a seed."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from prunegym.agents.comparison.comparing import compare
from prunegym.agents.comparison.entries import (
    agent_entry,
    as_entry,
    baseline_entry,
    recipe_entry,
    start_entry,
    trained_baseline_entry,
)
from prunegym.agents.comparison.results import fingerprint
from prunegym.agents.evaluation.evaluator import evaluate
from prunegym.agents.evaluation.predictors import AgentError
from prunegym.agents.rl.lagrangian import gates_at_best_offset, gates_at_mac_share
from prunegym.agents.rl.recipe import Recipe
from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models import (
    CNNInfo,
    DynamicCNN,
    ImitationConfig,
    load_dataset,
    shipped_model,
)
from prunegym.models.storage.model_file import Bundle
from tests.agents.comparison.seeded_entries import seeded

LAYERWISE = "prunegym/LayerwiseChannelMask-v0"


def test_the_oracle_is_told_lambda(masked, few, tmp_path):
    free, dear = (
        compare([seeded("a", 0.7), "best-of-16"], masked, few, (1,), out=tmp_path / str(penalty), penalty=penalty)
        for penalty in (0.0, 5.0)
    )
    assert dear.rows[1].figures["mac_share"].mean < free.rows[1].figures["mac_share"].mean - 0.01


TINY = Recipe(
    name="tiny",
    env=LAYERWISE,
    env_kwargs={"reward": "macs", "accuracy": "probability"},
    gate_policy={"hidden": 4, "grid": 2},
    imitation=ImitationConfig(steps=100, kept_share=0.5),
    target_macs=0.6,
    n_envs=32,
    n_episodes=64,
    hyperparameters={"n_epochs": 1},
)


@pytest.mark.filterwarnings("ignore:The policy has become static")  # so little training may well end so
def test_recipes_are_trained_for_each_seed_and_compared_with_a_baseline(masked, few, tmp_path):
    recipe = dataclasses.replace(recipe_entry(TINY), name="under a label")
    wide = seeded("wide", 0.9)
    entries = [recipe, "taylor-static", wide]
    before = {name: value.clone() for name, value in masked.state_dict().items()}
    model = Bundle(masked=masked, info=CNNInfo.of("simple-cnn", few))
    table = compare(entries, model, few, (0, 1), out=tmp_path, reference="wide")
    agent, taylor, reference = table.rows
    assert all(torch.equal(value, before[name]) for name, value in masked.state_dict().items())
    for seed in (0, 1):
        folder = tmp_path / "runs" / f"tiny-seed{seed}"
        trained = evaluate(DynamicCNN.load(folder / "model.safetensors"), None, few)
        assert agent.results[seed].figures == pytest.approx(trained.as_json())
        wanted = reference.results[seed].figures["total_mac_share"]
        assert wanted <= taylor.results[seed].figures["total_mac_share"] < wanted + 1 / 16
    assert agent.results[0].figures != agent.results[1].figures


def test_the_models_own_gates_are_a_start_with_and_without_an_offset(dynamic, few, tmp_path):
    validation = load_dataset("digits", "validation")
    model = Bundle(masked=dynamic.masked, info=dynamic.info, policy=dynamic.policy)
    entries = [seeded("a", 0.5), "start", "start-same-macs", "start-best-offset"]
    table = compare(entries, model, few, (1,), out=tmp_path, validation=validation, penalty=0.4)
    reference, start, same, best = table.rows
    assert start.figures["reward"].mean == evaluate(dynamic, None, few, penalty=0.4).reward
    assert same.figures["total_mac_share"].mean == pytest.approx(reference.figures["total_mac_share"].mean, abs=0.05)
    shifted = gates_at_best_offset(dynamic, validation, 0.4)
    assert best.figures["reward"].mean == evaluate(shifted, None, few, penalty=0.4).reward


@pytest.mark.parametrize("penalty", [0.5, *(pytest.param(other, marks=pytest.mark.slow) for other in (0.1, 1.5))])
def test_the_best_offset_is_as_good_as_any_other(penalty):
    model, validation = shipped_model("digits"), load_dataset("digits", "validation")
    best = evaluate(gates_at_best_offset(model, validation, penalty), None, validation, penalty=penalty).reward
    others = [gates_at_mac_share(model, validation, share) for share in np.arange(0.1, 1.01, 0.05)]
    rewards = [evaluate(one, None, validation, penalty=penalty).reward for one in (model, *others)]
    assert best >= rewards[0]
    assert best >= max(rewards) - 0.01  # the search goes in steps


def test_a_start_needs_gates(masked, few, tmp_path):
    with pytest.raises(InvalidInputError, match="The model has no gates, so `start` has nothing to evaluate"):
        compare(["start"], masked, few, (1,), out=tmp_path)
    with pytest.raises(UnknownNameError, match="Unknown shift of the start's logits 'best'"):
        start_entry(shift="best")


def test_each_seed_may_have_its_own_model_and_file(dynamic, few, tmp_path):
    models = {}
    for seed in (0, 1):
        models[seed] = copy.deepcopy(dynamic)
        models[seed].policy.rescale_logits(offset=seed - 0.5)
        models[seed].save(tmp_path / f"other-{seed}.safetensors")
        models[seed].policy.rescale_logits(offset=0.3)
    entries = ["start", f"other={tmp_path}/other-{{seed}}.safetensors", "keep-all"]
    table = compare(entries, models, few, (0, 1), out=tmp_path / "table")
    start, stored, everything = table.rows
    assert [row.name for row in table.rows] == ["start", "other", "keep-all"]
    assert list(everything.results) == [0, 1]
    for seed in (0, 1):
        own = evaluate(models[seed], None, few)
        other = evaluate(DynamicCNN.load(tmp_path / f"other-{seed}.safetensors"), None, few)
        assert start.results[seed].figures["kept_share"] == own.kept_share
        assert stored.results[seed].figures["kept_share"] == other.kept_share
    assert start.figures["kept_share"].half_width > 0
    models[1].save(tmp_path / "other-1.safetensors")
    again = compare(entries, models, few, (0, 1), out=tmp_path / "table").rows[1]
    assert again.results[0].figures == stored.results[0].figures
    assert again.results[1].figures == start.results[1].figures  # another file, so the stored result is not its own


def test_a_seed_without_a_model_is_named(dynamic, few, tmp_path):
    with pytest.raises(InvalidInputError, match=r"There is no model for seed 2, only for 0, 1\."):
        compare(["start"], {0: dynamic, 1: dynamic}, few, (0, 1, 2), out=tmp_path)


def test_names_become_entries(dynamic, tmp_path):
    dynamic.save(tmp_path / "mine.safetensors")
    assert as_entry("random").key == {"baseline": "random"}
    assert as_entry("learned-static").key == {"rival": "learned-static", "epochs": None}
    assert as_entry("frozen").key["recipe"]["env"] == LAYERWISE
    assert as_entry(TINY).name == "tiny"
    stored = as_entry(str(tmp_path / "mine.safetensors"))
    assert (stored.name, stored.key) == ("mine", {"agent": fingerprint(dynamic)})
    assert as_entry(stored) is stored
    labelled = as_entry(f"other name={tmp_path / 'mine.safetensors'}")
    assert (labelled.name, labelled.key) == ("other name", stored.key)


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match=r"Unknown recipe 'frozn'. Did you mean 'frozen'\?"):
        as_entry("frozn")
    with pytest.raises(UnknownNameError, match="Unknown baseline 'tailor'"):
        baseline_entry("tailor")
    with pytest.raises(UnknownNameError, match=r"Unknown baseline 'greedy'. Did you mean 'greedy-static'\?"):
        trained_baseline_entry("greedy")
    with pytest.raises(AgentError, match="The agent 'three' is a int without a method `predict`"):
        agent_entry(3, "three")
