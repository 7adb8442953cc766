"""Runs under another name, and copies of runs."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file

from prunegym.agents.benchmark.running import run_suite
from prunegym.agents.benchmark.suite import make_suite
from prunegym.agents.benchmark.validation.leaderboard import leaderboard
from prunegym.agents.benchmark.validation.validating import VALIDATION, validate, validate_all
from tests.agents.benchmark.tiny import TINY
from tests.commands.command_line import fail, run as command

RUNS = "digits/lambda-0.2/runs"


def edit(run, name="result-test.json", **groups):
    """Change entries of a JSON file by hand: groups of entries, or entries themselves."""
    content = json.loads((run / name).read_text())
    for key, value in groups.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    (run / name).write_text(json.dumps(content))


def copy_of(run, seed):
    """Copy a run under another seed, everywhere that a seed is written."""
    other = run.with_name(f"{run.name.rpartition('-')[0]}-seed{seed}")
    shutil.copytree(run, other)
    edit(other, cell={"seed": seed}, configuration={"seed": seed})
    edit(other, "run.json", settings={"seed": seed}, seed=seed)
    return other


@pytest.mark.parametrize(
    ("name", "cell", "problem"),
    [
        ("ppo-seed0", {"seed": 7}, "seed is 7, and 0 in its configuration"),
        ("ppo-seed0", {"seed": 7}, "seed is 7, and 0 in its run.json"),
        ("ppo-seed0", {"seed": 7}, "its folder is called 'ppo-seed0', and that of PPO, seed 7, is 'ppo-seed7'"),
        ("ppo-seed0", {"agent": "SOTA"}, "agent is 'SOTA', and 'PPO' in its run.json"),
        ("start-seed0", {"agent": "A"}, "its folder is called 'start-seed0', and that of A, seed 0, is 'a-seed0'"),
        ("random-seed0", {"penalty": 0.1}, "penalty is 0.1, and 0.2 in its configuration"),
        ("random-seed0", {"reward": "l0"}, 'reward is {"penalty": 0.2, "reward": "l0"}, and null in its configuration'),
        ("random-seed0", {"point": "lambda-0.5"}, "point is 'lambda-0.5', but its lambda is 0.2"),
    ],
)  # fmt: skip
def test_a_cell_that_was_edited_is_caught(copied, name, cell, problem):
    run = copied / RUNS / name
    edit(run, cell=cell)
    (found,) = validate(run)
    assert problem in found.problems
    assert not (run / VALIDATION).exists()


def test_settings_that_were_edited_are_caught(copied):
    edit(copied / RUNS / "random-seed0", configuration={"entry": {"baseline": "l1"}})
    (found,) = validate(copied / RUNS / "random-seed0")
    assert found.problems == ("the settings of its agent are others than in its run.json",)


def test_copies_whose_seed_alone_was_edited_are_not_valid(copied):
    """The original still is, and the leaderboard has as many seeds as were run."""
    for seed in (5, 6, 7):
        shutil.copytree(copied / RUNS / "ppo-seed0", copied / RUNS / f"ppo-seed{seed}")
        edit(copied / RUNS / f"ppo-seed{seed}", cell={"seed": seed})
    found = validate_all(sorted((copied / RUNS).glob("ppo-*")))
    assert [one.valid for one in found] == [True, True, False, False, False]
    (board,), _ = leaderboard([copied])
    assert [list(row.results) for row in board.rows] == [[0, 1]]


def test_two_seeds_with_the_same_weights_are_refused(copied):
    first, other = copied / RUNS / "ppo-seed0", copy_of(copied / RUNS / "ppo-seed0", 5)
    assert validate(first)[0].valid
    assert validate(other)[0].valid  # alone, nothing is wrong with it
    assert validate(copied / RUNS / "ppo-seed1")[0].valid
    (board,), left_out = leaderboard([copied])
    assert [list(row.results) for row in board.rows] == [[1]]
    assert left_out[str(other)].startswith(f"its model.safetensors is that of seed 0 in {first}, byte for byte")
    assert str(other) in left_out[str(first)]
    found = validate_all(sorted((copied / RUNS).glob("ppo-*")))
    assert [(one.valid, len(one.problems)) for one in found] == [(False, 1), (True, 0), (False, 1)]
    assert [(run / VALIDATION).exists() for run in (first, other)] == [False, False]


def test_seeds_that_make_no_difference_are_no_copies(tmp_path):
    """Without episodes, or without a gradient, all seeds of PPO are the start; of both, the files are the same."""
    still = TINY["set"] | {"hyperparameters.learning_rate": 1e-30}
    agents = [
        {"agent": "digits", "name": "none", "set": {"n_episodes": 0}},
        {"agent": "digits", "name": "still", "set": still},
        "start-same-macs",
    ]
    run_suite(make_suite("same", {"seeds": 2, "agents": agents, "tasks": {"digits": {"images": 50}}}), tmp_path)
    runs = sorted(tmp_path.glob("digits/default/runs/*"))
    assert len(runs) == 6
    for name in ("none", "still", "start-same-macs"):
        one, two = (load_file(next(tmp_path.rglob(f"{name}-seed{seed}")) / "model.safetensors") for seed in (0, 1))
        assert all(one[key].equal(two[key]) for key in one)
    assert [one.problems for one in validate_all(runs)] == [()] * 6
    (board,), left_out = leaderboard([tmp_path])
    assert left_out == {}
    assert [len(row.results) for row in board.rows] == [2, 2, 2]


def test_validate_continues_after_a_run_that_cannot_be_opened(copied):
    (copied / RUNS / "ppo-seed0/model.safetensors").unlink()
    (copied / RUNS / "random-seed0/result-test.json").write_text("{}")
    result = command("validate", copied / RUNS, "--json")
    assert result.exit_code == 1
    rows = {row["file"].split("/")[-2]: row for row in json.loads(result.stdout)["results"]}
    assert {name for name, row in rows.items() if row["valid"]} == {"ppo-seed1", "random-seed1", "start-seed0"}
    assert "has neither model.safetensors nor masks.safetensors" in rows["ppo-seed0"]["problems"][0]
    assert "result-test.json is no result of this version, or it is damaged" in rows["random-seed0"]["problems"][0]
    assert rows["ppo-seed0"]["other_masks"] is None


def test_a_folder_that_is_not_there_is_named(copied):
    assert "There is no folder" in fail("validate", copied / RUNS / "start-seed0", copied / "typo")
