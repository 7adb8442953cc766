"""Results of a comparison are found again, and made again if anything that they depend on has changed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from prunegym.agents.benchmark.records import comparisons, read_records
from prunegym.agents.comparison.comparing import compare
from prunegym.agents.comparison.entries import Entry, agent_entry
from prunegym.agents.comparison.results import Result, fingerprint
from prunegym.agents.evaluation.evaluator import evaluate
from prunegym.agents.evaluation.predictors import AgentError
from prunegym.models import MaskedCNN, load_dataset, shipped_model
from tests.agents.comparison.seeded_entries import masks_of, seeded


def test_results_are_found_again_and_made_again_if_anything_changes(masked, digits_cnn, few, tmp_path):
    made = []

    def run(**changes):
        made.clear()
        arguments = {"model": masked, "dataset": few, "seeds": (1, 2), "out": tmp_path} | changes
        table = compare([seeded(made=made)], **arguments)
        return table.rows[0].figures["reward"].mean, list(made)

    first, seeds = run()
    assert seeds == [1, 2]
    assert run() == (first, [])
    assert run(seeds=(1, 2, 3))[1] == [3]
    assert run(penalty=0.25)[1] == [1, 2]
    assert run()[1] == [1, 2]  # the files now hold the other penalty's results
    assert run(dataset=few.subset(torch.arange(39, -1, -1)))[1] == [1, 2]
    with torch.no_grad():
        changed = MaskedCNN(digits_cnn, torch.zeros(1, 1, 8, 8))
        changed.network.linear.bias += 1
    assert run(model=changed)[1] == [1, 2]


def test_an_interrupted_comparison_goes_on(masked, few, tmp_path):
    made = []

    def make(model, _terms):
        made.append(model.seed)
        if model.seed == 2 and len(made) < 3:
            raise KeyboardInterrupt
        return masks_of(model.seed)

    entry = Entry("fragile", make, {"test": 1}, seeded=True)
    with pytest.raises(KeyboardInterrupt):
        compare([entry], masked, few, (1, 2), out=tmp_path)
    table = compare([entry], masked, few, (1, 2), out=tmp_path)
    assert made == [1, 2, 2]
    assert list(table.rows[0].results) == [1, 2]


def test_damaged_results_are_made_again(masked, few, tmp_path):
    made = []
    compare([seeded(made=made)], masked, few, (1,), out=tmp_path)
    (path,) = tmp_path.glob("runs/seeded-seed1/result-test.json")
    path.write_text(path.read_text()[:200])
    compare([seeded(made=made)], masked, few, (1,), out=tmp_path)
    assert made == [1, 1]


def test_results_of_an_agent_that_cannot_be_fingerprinted_are_never_reused(masked, few, tmp_path):
    calls = []

    def keep(observation):
        calls.append(len(observation["features"]))
        return np.ones((len(observation["features"]), 48))

    for _ in range(2):
        compare([agent_entry(keep, "mine")], masked, few, (1,), out=tmp_path)
    assert calls == [4, 40] * 2  # a few images in the check


def test_a_result_survives_its_file(masked, few, tmp_path):
    evaluation = evaluate(masks_of(1), masked, few)
    Result.of(evaluation).save(tmp_path / "r.json", {"a": 1})
    loaded = Result.load(tmp_path / "r.json", {"a": 1})
    assert loaded.figures == evaluation.as_json()
    assert torch.equal(loaded.correct, evaluation.correct)
    assert loaded.notes == evaluation.notes
    assert Result.load(tmp_path / "r.json", {"a": 2}) is None
    assert Result.load(tmp_path / "none.json", {"a": 1}) is None


def test_fingerprints_tell_things_apart(masked, dynamic, few):
    ones = torch.ones(48)
    marks = [fingerprint(thing) for thing in (masked, dynamic, few, ones, 1 - ones, few.subset(torch.arange(39)))]
    assert len(set(marks)) == 6
    assert None not in marks
    assert fingerprint(ones.clone()) == fingerprint(ones)
    assert fingerprint(lambda observation: observation) is None


def test_an_agent_of_ones_own_with_a_network_is_never_reused(masked, few, tmp_path):
    class Threshold:
        """Decides by more than its network."""

        def __init__(self, width):
            self.policy, self.width = torch.nn.Linear(1, 1), width

        def predict(self, observation):
            bits = np.zeros((len(observation["features"]), 48))
            bits[:, : self.width] = 1
            return bits

    torch.manual_seed(0)
    shares = []
    for width in (8, 48):
        torch.manual_seed(0)
        row = compare([Threshold(width)], masked, few, (1,), out=tmp_path).rows[0]
        shares.append(row.figures["kept_share"].mean)
    assert shares == pytest.approx([8 / 48, 1.0])


def test_the_best_offset_is_searched_for_each_validation_split(tmp_path):
    model, test = shipped_model("digits"), load_dataset("digits", "test").sample(100)
    validation = load_dataset("digits", "validation").sample(60)
    other = dataclasses.replace(validation, labels=(validation.labels + 1) % 10)
    found = [
        compare(
            ["start-best-offset"], model, test, (0,), out=out, validation=split, penalty=1.5
        ).rows[0].figures["accuracy"].mean
        for out, split in ((tmp_path / "a", validation), (tmp_path / "a", other), (tmp_path / "b", other))
    ]  # fmt: skip
    assert found[1] == found[2] != found[0]


def test_seeds_that_come_later_change_nothing_in_the_table(masked, few, tmp_path):
    """An agent that ignores the seed has one result, whatever the number of seeds when it was made."""
    entries = [seeded(), agent_entry(masks_of(9), "fixed")]
    compare(entries, masked, few, (1,), out=tmp_path / "parts")
    compare(entries, masked, few, (1, 2, 3), out=tmp_path / "parts")
    whole = compare(entries, masked, few, (1, 2, 3), out=tmp_path / "whole").as_json()["rows"]
    for folder in ("parts", "whole"):
        (table,) = comparisons(read_records([tmp_path / folder])).values()
        assert table.as_json()["rows"] == whole
    assert [row["reward_difference_over_seeds"] and row["reward_difference_over_seeds"]["count"] for row in whole] == [
        None,
        3,
    ]


def test_another_split_leaves_what_is_there(masked, few, tmp_path):
    fixed, validation = agent_entry(masks_of(9), "fixed"), load_dataset("digits", "validation").sample(40)
    compare([seeded(), fixed], masked, few, (1,), out=tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.suffix in (".json", ".safetensors")}
    before.pop(tmp_path / "comparison.json", None)
    compare([seeded(), fixed], masked, validation, (1,), out=tmp_path)
    assert {file: file.read_bytes() for file in before} == before
    assert len(read_records([tmp_path])) == 4


def test_an_agent_of_your_own_can_be_in_a_report(masked, few, tmp_path):
    def keep(observation):
        return np.ones((len(observation["features"]), 48))

    compare([seeded(), agent_entry(keep, "mine")], masked, few, (1,), out=tmp_path)
    (table,) = comparisons(read_records([tmp_path])).values()
    assert [row.name for row in table.rows] == [seeded().name, "mine"]


def test_an_agent_that_does_not_fit_is_found_before_others_are_made(masked, few, tmp_path):
    made = []
    short = agent_entry(lambda observation: np.ones((len(observation["features"]), 47)), "short")
    with pytest.raises(AgentError, match="48"):
        compare([seeded(made=made), short], masked, few, (1,), out=tmp_path)
    assert made == []
