"""Suites are read, and refused where they are wrong."""

from __future__ import annotations

import numpy as np
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


@pytest.mark.parametrize(("written", "seeds"), [("4:7", (4, 5, 6)), ("10:20", tuple(range(10, 20))), ("'0:2'", (0, 1))])
def test_a_range_in_yaml_needs_no_quotes(tmp_path, written, seeds):
    # YAML 1.1 reads 4:7 in base 60, as 4 * 60 + 7 = 247.
    (tmp_path / "mine.yaml").write_text(f"seeds: {written}\nagents: [digits]\ntasks: {{a: }}\n")
    assert as_suite(tmp_path / "mine.yaml").seeds == seeds


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("0:10001", "The number of seeds is 10001; a whole number from 1 to 10000"),
        ("0:99999999999", "The number of seeds is 99999999999"),
        ("4294967295:4294967297", "A seed is 4294967296; a whole number from 0 to 4294967295"),
        ("0:" + "9" * 5000, "Give FROM:TO"),
        (range(20_000), "The number of seeds is 20000"),
        (20_000, "The number of seeds is 20000"),
    ],
)
def test_seeds_have_limits_however_they_are_given(wrong, message):
    with pytest.raises(InvalidInputError, match=message):
        read_seeds(wrong)


@pytest.mark.parametrize(
    ("given", "seeds"), [([0, 1], (0, 1)), (range(2, 4), (2, 3)), ("4:6", (4, 5)), (np.int64(2), (0, 1))]
)
def test_suites_in_python_take_seeds_in_any_form(given, seeds):
    assert Suite("mine", {"a": SuiteTask()}, ["digits"], given).seeds == seeds


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Suite("mine", {"a": SuiteTask()}, ["digits"], ()), r"seeds is \(\)"),
        (lambda: Suite("mine", {"a": SuiteTask()}, ["digits"], np.arange(3)), "seeds is array"),
        (lambda: Suite("mine", {"a": SuiteTask()}, "digits"), "agents is 'digits'; a list is needed"),
        (lambda: Suite("mine", [SuiteTask()], ["digits"]), "tasks of a suite is a list; a Mapping is needed"),
        (lambda: Suite("mine", {"a": {}}, ["digits"]), "A task of a suite is a dict; a SuiteTask is needed"),
        (lambda: SuiteTask(budgets=0.5), "budgets is 0.5; a list of numbers is needed"),
        (lambda: SuiteTask(agents="digits"), "agents is 'digits'; a list is needed"),
    ],
)
def test_suites_in_python_are_refused_with_an_error_of_ours(made, message):
    with pytest.raises(InvalidInputError, match=message):
        made()


def test_names_in_quotes_stay_text(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        'agents: [{agent: start, name: "16", set: {n_envs: 1e3}}]\n'
        'tasks: {a: {reference: "16"}, b: {agents: [{agent: l1, name: "1e3"}]}}\n'
    )
    suite = as_suite(tmp_path / "mine.yaml")
    assert suite.agents == [{"agent": "start", "name": "16", "set": {"n_envs": 1000}}]
    assert suite.tasks["a"].reference == "16"
    assert suite.agents_of("b") == [{"agent": "l1", "name": "1e3"}]
    assert make_suite("mine", suite.as_dict()).as_dict() == suite.as_dict()
