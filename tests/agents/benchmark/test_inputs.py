"""Files that a suite names are found on a node, which has them elsewhere, and results are as those made here."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from stable_baselines3 import PPO

from prunegym import shipped_model
from prunegym.agents.benchmark.cells import Cell, Place, contest_of, run_cell
from prunegym.agents.benchmark.inputs import Moved, input_files
from prunegym.agents.benchmark.running import run_suite
from prunegym.agents.benchmark.suite import Point, make_suite
from prunegym.agents.rl.mask_policy import MaskPolicy
from prunegym.envs.sb3_vec_env import MaskVecEnv
from prunegym.models.timing.latency_table import Axis, LatencyTable, Part

DEADLINE = "prunegym.envs.rewards.no_gradient:Deadline"
ENV = {"reward": "latency", "latency_table": "tables/own.json"}
RECIPE = {"prunegym/ChannelMask-v0": {"n_envs": 32, "n_episodes": 64, "env_kwargs": ENV}}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with inputs, which is the current one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def on_node(suite, tmp_path, monkeypatch):
    """Return a place as a node has it: each input in a folder of its own, and another current folder."""
    files = {}
    for number, path in enumerate(sorted(input_files(suite))):
        target = tmp_path / "node" / str(number) / Path(path).name
        target.parent.mkdir(parents=True)
        files[path] = str(shutil.copy(path, target))
    (tmp_path / "node/work").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "node/work")
    return Place(tmp_path / "node/out", trust_code=True, files=tuple(files.items()))


def save_model(path, shift):
    model = shipped_model("digits")
    with torch.no_grad():
        for head in model.policy.heads:
            head[-1].bias += shift
    model.save(path)


def save_table(path, milliseconds):
    gates = tuple((gate.name, gate.width) for gate in shipped_model("digits").masked.gates)
    width = gates[0][1]
    axis, none = Axis({0: 1.0}, 0.0, (0.0, float(width))), Axis({}, 1.0, (1.0,))
    path.parent.mkdir(exist_ok=True)
    LatencyTable("torch", gates, 1e-5, (Part("first", axis, none, ((0.0,), (milliseconds / 1e3,))),)).save(path)


def test_a_model_file_for_each_seed(here, tmp_path, monkeypatch):
    for seed, shift in ((0, 0.0), (1, 100.0)):
        save_model(here / f"agent{seed}.safetensors", shift)  # that of seed 1 keeps all channels
    suite = make_suite(
        "x", {"seeds": 2, "agents": ["start", "mine = agent{seed}.safetensors"], "tasks": {"digits": {"images": 50}}}
    )
    assert input_files(suite) == {"agent0.safetensors", "agent1.safetensors"}
    local = [run_cell(suite.as_dict(), "x", Cell("digits", Point(), "mine", k), 1.0, Place(here)) for k in (0, 1)]
    place = on_node(suite, tmp_path, monkeypatch)
    node = [run_cell(suite.as_dict(), "x", Cell("digits", Point(), "mine", k), 1.0, place) for k in (0, 1)]
    assert [one.figures for one in node] == [one.figures for one in local]
    assert node[0].figures["mac_share"] < node[1].figures["mac_share"] == 1


def test_an_agent_of_stable_baselines3_keeps_its_name_and_its_path(here, tmp_path, monkeypatch):
    model = shipped_model()
    env = MaskVecEnv("prunegym/LayerwiseChannelMask-v0", 32, model=model, reward="macs", seed=0)
    kwargs = {"gate_policy": model.policy}
    PPO(MaskPolicy, env, n_steps=3, batch_size=48, policy_kwargs=kwargs, device="cpu").save(here / "agent.zip")
    suite = make_suite("x", {"seeds": 1, "agents": ["start", "agent.zip"], "tasks": {"digits": {"images": 20}}})
    place = on_node(suite, tmp_path, monkeypatch)
    run_cell(suite.as_dict(), "x", Cell("digits", Point(), "agent.zip", 0), 1.0, place)
    (file,) = place.root.rglob("result-*.json")
    assert file.parent.name == "agent-zip-seed0"
    assert yaml.safe_load(file.read_text())["cell"]["spec"] == "agent.zip"
    assert str(tmp_path) not in file.read_text()


def test_latency_tables_of_rewards_and_recipes(here, tmp_path, monkeypatch):
    for name in ("task", "own", "changed"):
        save_table(here / f"tables/{name}.json", 1.0)
    (here / "mine.yaml").write_text(yaml.safe_dump(RECIPE))
    reward = {DEADLINE: {"milliseconds": 0.5, "table": "tables/task.json"}}
    other = {"agent": "mine.yaml", "name": "other", "set": {"env_kwargs.latency_table": "tables/changed.json"}}
    tasks = {"deadline": {"reward": reward, "agents": ["digits"]}, "latency": {"agents": ["mine.yaml", other]}}
    suite = make_suite("x", {"seeds": 1, "tasks": {name: {**task, "images": 20} for name, task in tasks.items()}})
    assert input_files(suite) == {"mine.yaml", *(f"tables/{name}.json" for name in ("task", "own", "changed"))}

    def described(place):
        contests = [contest_of(suite, name, Point(), place) for name in suite.tasks]
        for contest in contests:
            contest.check()  # the tables are read
        return [contest.configuration(entry, 0, 1.0) for contest in contests for entry in contest.entries]

    local = described(Place(here))
    named = [one["entry"]["recipe"]["env_kwargs"].get("latency_table", "").partition(" ")[0] for one in local]
    assert named == ["", "tables/own.json", "tables/changed.json"]
    assert described(on_node(suite, tmp_path, monkeypatch)) == local  # so a result of a node is found again here


def test_a_moved_path_is_opened_where_it_is_and_shown_as_it_was_named(tmp_path):
    (tmp_path / "file").write_text("content")
    for path in (made := Moved(str(tmp_path / "file"), "file"), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert Path(path).read_text() == "content"
        assert (repr((path,)), f"{path}") == ("('file',)", "file")


def test_a_file_that_is_written_again_is_opened_again(here):
    save_model(here / "model.safetensors", 0.0)
    suite = make_suite(
        "x", {"seeds": 1, "agents": ["start"], "tasks": {"digits": {"model": "model.safetensors", "images": 50}}}
    )
    first = run_suite(suite, here / "out")
    save_model(here / "model.safetensors", 100.0)
    second = run_suite(suite, here / "out", resume=True)
    shares = [next(iter(one.tables.values())).rows[0].figures["mac_share"].mean for one in (first, second)]
    assert shares[0] < shares[1] == 1
