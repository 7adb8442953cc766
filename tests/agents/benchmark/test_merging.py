"""Folders that were made on several machines become one."""

from __future__ import annotations

import json
import shutil

import pytest

from prunegym.agents.benchmark.merging import merge
from prunegym.agents.benchmark.records import comparisons, read_records
from prunegym.agents.benchmark.running import run_suite
from prunegym.errors import InvalidInputError, MissingDataError
from tests.agents.benchmark.tiny import SUITE

CELLS = 10


@pytest.fixture
def parts(made, tmp_path):
    """The benchmark in two folders, seed 0 in one and seed 1 in the other."""
    folders = []
    for seed in (0, 1):
        folder = tmp_path / f"part-{seed}"
        shutil.copytree(made[0], folder)
        for run in folder.glob("*/*/runs/*"):
            if not run.name.endswith(f"seed{seed}"):
                shutil.rmtree(run)
        suite = json.loads((folder / "suite.json").read_text())
        (folder / "suite.json").write_text(json.dumps({**suite, "seeds": [seed]}))
        folders.append(folder)
    return folders


def test_a_merged_benchmark_is_whole_and_can_go_on(made, parts, tmp_path):
    assert merge(parts, tmp_path / "all") == CELLS
    own, other = (
        {one.file.relative_to(folder): one.content for one in read_records([folder])}
        for folder in (tmp_path / "all", made[0])
    )
    assert own == other
    assert json.loads((tmp_path / "all/suite.json").read_text())["seeds"] == [0, 1]
    events = []
    assert run_suite(SUITE, tmp_path / "all", resume=True, watch=events.append).finished == CELLS
    assert {event.kind for event in events} == {"planned", "found"}


def test_the_same_cell_may_stand_in_both_but_not_with_two_results(made, parts, tmp_path):
    assert merge([parts[0], parts[0], made[0]], tmp_path / "one") == CELLS
    file = parts[0] / "digits/lambda-0.2/runs/ppo-seed0/result-test.json"
    content = json.loads(file.read_text())
    content["result"]["figures"]["accuracy"] = 1.0
    file.write_text(json.dumps(content))
    with pytest.raises(InvalidInputError, match="are of the same cell, with other results"):
        merge([made[0], parts[0]], tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_what_cannot_be_merged_is_told(made, parts, tmp_path):
    with pytest.raises(MissingDataError, match="is no folder of prunegym benchmark"):
        merge([tmp_path], tmp_path / "all")
    with pytest.raises(InvalidInputError, match="is not empty"):
        merge(parts, parts[0])
    suite = json.loads((parts[1] / "suite.json").read_text())
    (parts[1] / "suite.json").write_text(json.dumps({**suite, "agents": ["l1"]}))
    with pytest.raises(InvalidInputError, match="have suites with other agents"):
        merge(parts, tmp_path / "all")


def changed(file, **changes):
    """Change values in a stored result, by the path of their keys."""
    content = json.loads(file.read_text())
    for path, value in changes.items():
        *keys, last = path.split("__")
        place = content
        for key in keys:
            place = place[key]
        place[last] = value
    file.write_text(json.dumps(content))


def test_an_agent_that_ignores_the_seed_counts_once(made, parts, tmp_path):
    """Each machine makes it with the first of its seeds."""
    for run in parts[0].glob("*/*/runs/start-seed0"):
        copy = parts[1] / run.relative_to(parts[0]).with_name("start-seed1")
        shutil.copytree(run, copy)
        changed(copy / "result-test.json", cell__seed=1)
    merge(parts, tmp_path / "all")
    tables = [comparisons(read_records([folder])) for folder in (tmp_path / "all", made[0])]
    rows = [{where: table.as_json()["rows"] for where, table in found.items()} for found in tables]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("key", ["model", "policy", "train", "reward"])
def test_what_was_made_from_something_else_is_not_merged(parts, key, tmp_path):
    changed(parts[1] / "digits/lambda-0.2/runs/ppo-seed1/result-test.json", **{f"configuration__{key}": "other"})
    with pytest.raises(InvalidInputError, match="are of the same task, but of another"):
        merge(parts, tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_agents_without_a_common_seed_are_not_compared(parts):
    shutil.rmtree(parts[0] / "digits/lambda-0.2/runs/random-seed0")
    shutil.rmtree(parts[1] / "digits/lambda-0.2/runs/ppo-seed1")
    tables = comparisons(read_records(parts))
    (table,) = (table for where, table in tables.items() if where.point == "lambda-0.2")
    row = next(row for row in table.rows if row.name == "random")
    assert (row.outcome, row.difference, row.reward_difference_over_seeds) == ("", None, None)
    assert list(row.results) == [1]
