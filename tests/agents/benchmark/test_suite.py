"""Suites are read, and refused where they are wrong."""

from __future__ import annotations

import pytest

from prunegym.agents.benchmark.suite import FOLDER, Suite, SuiteTask, as_suite, make_suite, read_seeds
from prunegym.errors import InvalidInputError, MissingDataError, UnknownNameError


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_suites_that_come_with_prunegym_are_read_and_survive_their_dictionary(name):
    suite = as_suite(name)
    again = make_suite(name, suite.as_dict())
    assert again.as_dict() == suite.as_dict()
    assert all(suite.agents_of(task) for task in suite.tasks)


def test_the_suite_of_rewards_has_six_on_each_of_two_networks_with_ten_seeds():
    suite = as_suite("rewards")
    rewards = [next(iter(task.reward)).split(":")[1] for task in suite.tasks.values()]
    assert len(set(rewards)) == 6
    assert len(rewards) == 12
    assert len(suite.seeds) == 10
    assert len({task.model for task in suite.tasks.values()}) == 2


def test_a_file_is_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "seeds: '4:6'\nagents: [digits, {agent: l1, name: filters}]\ntasks:\n  a: {budgets: [3e-1]}\n  b:\n"
    )
    suite = as_suite(path)
    assert (suite.name, suite.seeds) == ("mine", (4, 5))
    assert [point.name for point in suite.tasks["a"].points] == ["budget-0.3"]
    assert [point.name for point in suite.tasks["b"].points] == ["default"]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"agents": ["digits"]}, InvalidInputError, "tasks is None; tasks by name"),
        ({"tasks": {"a": {}}}, InvalidInputError, "Task 'a' of suite 'mine' has no agents"),
        ({"agents": ["digits"], "tasks": {"a": {"modl": "x"}}}, UnknownNameError, "Did you mean 'model'"),
        ({"agents": ["digits"], "tasks": {"a": {"budgets": [1.5]}}}, InvalidInputError, "A budget of a task is 1.5"),
        ({"agents": ["digits"], "tasks": {"a": {"penalties": [-1]}}}, InvalidInputError, "A lambda of a task is -1"),
        ({"agents": ["digits"], "tasks": {"a": {"penalties": [0.1, 0.1]}}}, InvalidInputError, "one of them twice"),
        ({"agents": ["digits"], "tasks": {"A b": {}, "a-b": {}}}, InvalidInputError, "would share a folder"),
        ({"agents": "digits", "tasks": {"a": {}}}, InvalidInputError, "agents is 'digits'; a list is needed"),
        ({"sedes": 3, "agents": ["digits"], "tasks": {"a": {}}}, UnknownNameError, "Did you mean 'seeds'"),
    ],
)
def test_mistakes_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        make_suite("mine", settings)


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(UnknownNameError, match=r"Unknown suite 'digit'\. Did you mean 'digits'"):
        as_suite("digit")
    with pytest.raises(MissingDataError, match="There is no suite"):
        as_suite(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(InvalidInputError, match="is not YAML"):
        as_suite(tmp_path / "broken.yaml")
    with pytest.raises(InvalidInputError, match="not plain text or a number"):
        Suite("mine", {"a": SuiteTask(reward=lambda outcome: outcome.kept)}, ["digits"])


@pytest.mark.parametrize("wrong", ["5:5", "7:3", "a:b", "", [], [1, 1], True, 0, -1, [-1]])
def test_wrong_seeds_are_refused(wrong):
    with pytest.raises(InvalidInputError):
        read_seeds(wrong)
