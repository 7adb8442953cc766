"""Cells have a folder each, are checked first, run once, and fail alone."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
import yaml

from prunegym import DynamicCNN, evaluate, load_dataset
from prunegym.agents.benchmark.executors.local import InProcess
from prunegym.agents.benchmark.executors.ray_cluster import pack, unpack
from prunegym.agents.benchmark.records import read_records
from prunegym.agents.benchmark.running import run_suite
from prunegym.agents.benchmark.suite import make_suite
from prunegym.agents.comparison.comparing import compare
from prunegym.agents.comparison.results import load_masks
from prunegym.errors import InvalidInputError, PruneGymError
from tests.agents.benchmark.tiny import SETTINGS, SUITE, TINY

CELLS = 10  # two lambdas; PPO and random with two seeds, the start with one


def results(folder):
    return {file.relative_to(folder): file.stat().st_mtime_ns for file in folder.rglob("result-*.json")}


def test_each_cell_has_a_folder_that_says_how_it_was_made(made):
    folder, found = made
    assert (found.finished, found.failed) == (CELLS, {})
    records = read_records([folder])
    assert len(records) == CELLS
    for record in records:
        run = json.loads((record.folder / "run.json").read_text())
        assert {"settings", "seed", "command", "versions", "machine", "seconds"} <= set(run)
        assert run["seed"] == record.seed
        saved = "masks" if record.agent == "random" else "model"
        assert (record.folder / f"{saved}.safetensors").exists()


def test_figures_are_those_of_the_saved_agents(made):
    folder, found = made
    test = load_dataset("digits", "test")
    table = next(table for where, table in found.tables.items() if where.point == "lambda-0.2")
    agent, random, _ = table.rows
    for seed in (0, 1):
        runs = folder / "digits/lambda-0.2/runs"
        trained = DynamicCNN.load(runs / f"ppo-seed{seed}/model.safetensors")
        assert agent.results[seed].figures == evaluate(trained, None, test, penalty=0.2).as_json()
        masks = load_masks(runs / f"random-seed{seed}/masks.safetensors")
        again = evaluate(masks, trained.masked, test, penalty=0.2)
        assert random.results[seed].figures["accuracy"] == again.accuracy
        # Random masks may spend what PPO spends, to within a channel.
        wanted = agent.results[seed].figures["total_mac_share"]
        assert wanted <= random.results[seed].figures["mac_share"] < wanted + 1 / 16


def test_finished_cells_are_not_run_again(copied):
    before, events = results(copied), []
    with pytest.raises(InvalidInputError, match="Add --resume"):
        run_suite(SUITE, copied)
    found = run_suite(SUITE, copied, resume=True, watch=events.append)
    assert found.finished == CELLS
    assert {event.kind for event in events} == {"planned", "found"}
    assert results(copied) == before


def test_a_lost_cell_is_made_again_and_is_the_same(copied):
    file = copied / "digits/lambda-0.5/runs/random-seed1/result-test.json"
    before = json.loads(file.read_text())["result"]
    file.unlink()
    events = []
    run_suite(SUITE, copied, resume=True, watch=events.append)
    assert [event.cell.agent for event in events if event.kind == "begun"] == ["random"]
    assert json.loads(file.read_text())["result"] == before


def test_compare_is_the_suite_of_one_task(made, tmp_path):
    entries = ["random", "l1"]
    settings = {"seeds": 1, "agents": entries, "tasks": {"digits": {"budgets": [0.5]}}}
    own = run_suite(make_suite("one", settings), tmp_path / "suite").tables
    table = compare(entries, "digits", load_dataset("digits", "test"), (0,), out=tmp_path / "compare", share=0.5)
    (suite,) = own.values()
    for row, other in zip(suite.rows, table.rows, strict=True):
        assert row.results[0].figures == other.results[0].figures
        assert row.difference == other.difference
    assert {path.name for path in (tmp_path / "suite").rglob("runs/*")} == {
        path.name for path in (tmp_path / "compare").rglob("runs/*")
    }


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        ({"agent": "digits", "name": "other", "set": {"env_kwargs.reward": "maks"}}, "maks"),
        ({"agent": "digits", "set": {"n_evs": 3}}, "n_evs"),
        ({"agent": "start", "name": 16}, "The name of an agent is 16; text is needed"),
        ({"agent": "digits", "set": 3}, "set of an agent is a int"),
        ({"agent": "l1", "set": {"n_envs": 3}}, "'l1' has no set:"),
        ({"agent": "straight-through", "targets": [1.5]}, "1.5"),
        ("missing.safetensors", "missing"),
        ("digitz", "digitz"),
    ],
)
def test_every_cell_is_checked_before_the_first_trains(tmp_path, agent, message):
    suite = make_suite("wrong", {**SETTINGS, "agents": [TINY, agent]})
    with pytest.raises(PruneGymError, match=message):
        run_suite(suite, tmp_path / "out")
    assert not (tmp_path / "out").exists()


FRAGILE = """
import numpy as np, pathlib
import prunegym
WIDTH = prunegym.shipped_model("digits").masked.mask_size

def agent(observation):
    if pathlib.Path("broken").exists() and len(observation["features"]) > 4:  # not yet in the check
        raise OSError("the disk is gone")
    return np.ones((len(observation["features"]), WIDTH))

agent.layerwise = False
"""


def test_a_failed_cell_keeps_its_error_and_the_rest_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fragile_agent.py").write_text(FRAGILE)
    (tmp_path / "broken").touch()
    agents = ["start", "fragile_agent:agent", "l1"]
    suite = make_suite("fragile", {"seeds": 1, "agents": agents, "tasks": {"digits": {"images": 50}}})
    found = run_suite(suite, "out")
    assert found.finished == 2
    ((cell, error),) = found.failed.items()
    assert cell.agent == "fragile_agent:agent"
    file = tmp_path / "out/digits/default/runs/fragile-agent-agent-seed0/error.txt"
    assert error.strip() == file.read_text().strip()
    assert "the disk is gone" in error
    (tmp_path / "broken").unlink()
    found = run_suite(suite, "out", resume=True)
    assert (found.finished, found.failed) == (3, {})
    assert not file.exists()
    again = run_suite(suite, "out", resume=True, watch=lambda event: event.kind != "begun" or pytest.fail("ran"))
    assert again.finished == 3


class OnNode(InProcess):
    """Runs cells in a folder of its own, as a node does, and sends archives."""

    def __init__(self, suite, place, root):
        super().__init__(suite.as_dict(), suite.name, dataclasses.replace(place, root=root))
        self.home = place.root

    def events(self):
        for event in super().events():
            runs = Path(event.cell.task, event.cell.point.name, "runs")
            unpack(pack(self.place.root / runs), self.home / runs)
            yield event


def test_the_error_of_a_cell_is_gone_after_it_ran_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fragile_there.py").write_text(FRAGILE)
    (tmp_path / "broken").touch()
    suite = make_suite("x", {"seeds": 1, "agents": ["fragile_there:agent"], "tasks": {"digits": {"images": 50}}})
    assert len(run_suite(suite, "out").failed) == 1
    assert list(Path("out").rglob("error.txt"))
    (tmp_path / "broken").unlink()
    found = run_suite(suite, "out", resume=True, executor=lambda suite, place: OnNode(suite, place, tmp_path / "node"))
    assert (found.finished, found.failed) == (1, {})
    assert not list(Path("out").rglob("error.txt"))


def test_one_process_has_the_threads_that_were_asked_for(tmp_path):
    before, seen = torch.get_num_threads(), []
    suite = make_suite("x", {"seeds": 1, "agents": ["start"], "tasks": {"digits": {"images": 20}}})
    run_suite(suite, tmp_path / "a", threads=before + 1, watch=lambda _event: seen.append(torch.get_num_threads()))
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before
    with pytest.raises(InvalidInputError, match="threads is 0; a whole number from 1"):
        run_suite(suite, tmp_path / "b", threads=0)


def test_agents_that_need_the_macs_of_a_failed_one_fail_with_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fragile_other.py").write_text(FRAGILE)
    (tmp_path / "broken").touch()
    suite = make_suite("all", {"seeds": 1, "agents": ["fragile_other:agent", "l1"], "tasks": {"digits": {}}})
    found = run_suite(suite, "out")
    assert found.finished == 0
    assert found.tables == {}
    assert list(found.failed.values())[1].startswith(
        "It needs the MACs of digits, default: fragile_other:agent, seed 0"
    )


@pytest.mark.slow
def test_a_benchmark_that_is_killed_goes_on_with_what_it_has(made, tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SETTINGS))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "prunegym", "benchmark", str(tmp_path / "tiny.yaml"), "--out", str(out), "--quiet"]
    process = subprocess.Popen([*command, "--jobs", "2"], start_new_session=True)
    while not results(out) if out.exists() else True:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = results(out)
    assert 0 < len(before) < CELLS
    subprocess.run([*command, "--resume"], check=True, stdout=subprocess.DEVNULL)
    after = results(out)
    assert len(after) == CELLS
    assert before.items() <= after.items()
    for file in after:  # and no figure depends on the interruption
        own, other = (json.loads((folder / file).read_text())["result"] for folder in (out, made[0]))
        assert own == other


@pytest.mark.slow
def test_a_process_that_dies_costs_its_cell_only(tmp_path):
    killed = []

    def kill_first(event):
        if event.kind == "progress" and not killed:
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            workers = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
            os.kill(int(workers[0]), signal.SIGKILL)
            killed.append(workers[0])

    suite = make_suite("tiny", {**SETTINGS, "tasks": {"digits": {"images": 50}}})
    found = run_suite(suite, tmp_path, jobs=2, watch=kill_first)
    lost = [error for error in found.failed.values() if "exit code -9" in error]
    assert len(lost) == 1
    assert found.finished >= 2
    assert run_suite(suite, tmp_path, resume=True).failed == {}


def test_a_reward_that_fails_is_found_before_the_first_cell(tmp_path):
    """Also where no recipe tries it."""
    reward = {"prunegym.envs.rewards.no_gradient:CostlyErrors": {"prices": [1, 2], "macs": 0.0}}
    suite = make_suite("wrong", {"agents": ["start", "random"], "tasks": {"digits": {"reward": reward, "images": 20}}})
    with pytest.raises(PruneGymError, match="2 prices, for 10 classes"):
        run_suite(suite, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("result-*.json"))


def test_a_folder_comes_back_as_it_was_and_nothing_is_written_elsewhere(tmp_path):
    (tmp_path / "run/deep").mkdir(parents=True)
    (tmp_path / "run/result-test.json").write_text("{}")
    (tmp_path / "run/deep/model").write_bytes(b"\0\1")
    unpack(pack(tmp_path / "run"), tmp_path / "back")
    found = {file.relative_to(tmp_path / "back"): file.read_bytes() for file in (tmp_path / "back").rglob("*.*")}
    assert found == {Path("result-test.json"): b"{}"}
    assert (tmp_path / "back/deep/model").read_bytes() == b"\0\1"
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        archive.add(tmp_path / "run/result-test.json", arcname="../away.json")
    with pytest.raises(PruneGymError, match="leaves its folder"):
        unpack(whole.getvalue(), tmp_path / "back")
    assert not (tmp_path / "away.json").exists()
