"""The same suite on two Ray nodes, each with a folder of its own; one of them is killed in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="ray is not installed: pip install 'prunegym[ray]'")
pytestmark = pytest.mark.slow

PROGRAM = """
import json, sys
from pathlib import Path
from ray.cluster_utils import Cluster
from prunegym.agents.benchmark.executors.ray_cluster import RayCluster
from prunegym.agents.benchmark.running import run_suite
from prunegym.agents.benchmark.suite import make_suite

out, suite = Path(sys.argv[1]), json.loads(sys.argv[2])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [
    cluster.add_node(num_cpus=1, env_vars={"PRUNEGYM_SCRATCH": str(out.parent / name), "OMP_NUM_THREADS": "1"})
    for name in ("first", "second")
]
cluster.wait_for_nodes()
import ray
ray.init(address=cluster.address, log_to_driver=False)
events = []

def watch(event):
    events.append([event.kind, event.cell.name])
    begun = [name for kind, name in events if kind == "begun"]
    if event.kind == "done" and len(nodes) == 2:  # the other cell is in hand now
        where = [path.parents[1].name for path in out.parent.glob("*/prunegym-cells/tmp*")]
        cluster.remove_node(nodes.pop(0 if "first" in where else 1), allow_graceful=False)

on_both = lambda suite, place: RayCluster(suite, place, slots=2)
found = run_suite(make_suite("tiny", suite), out, watch=watch, executor=on_both)
document = {"finished": found.finished, "failed": list(found.failed.values()), "events": events}
(out.parent / "found.json").write_text(json.dumps(document))  # Ray prints lines of its own
ray.shutdown()
cluster.shutdown()
"""


def test_a_node_that_is_killed_costs_the_cell_in_hand_only(made, tmp_path):
    suite = json.loads((made[0] / "suite.json").read_text())
    program = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path / "out"), json.dumps(suite)]
    seconds = {"RAY_raylet_start_wait_time_s": "240", "RAY_worker_register_timeout_seconds": "240"}
    milliseconds = {"RAY_health_check_timeout_ms": "60000", "RAY_agent_register_timeout_ms": "240000"}
    patient = os.environ | seconds | milliseconds  # for a machine that is busy with other tests
    subprocess.run(program, check=True, capture_output=True, timeout=280, env=patient)
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["finished"], found["failed"]) == (10, [])
    kinds = [kind for kind, _ in found["events"]]
    assert kinds.count("lost") >= 1
    assert kinds.count("done") == 10
    ended = [name for kind, name in found["events"] if kind == "done"]
    assert len(set(ended)) == 10  # no finished cell began again
    assert all((tmp_path / name / "prunegym-cells").is_dir() for name in ("first", "second"))
    for file in (tmp_path / "out").rglob("result-*.json"):
        own, other = (
            json.loads((root / file.relative_to(tmp_path / "out")).read_text()) for root in (tmp_path / "out", made[0])
        )
        assert own["result"]["figures"] == pytest.approx(other["result"]["figures"], abs=0.01)


TUNING = """
import json, sys
from pathlib import Path
from prunegym import load_dataset, shipped_model
from prunegym.agents.benchmark.executors.ray_trials import RayTrials
from prunegym.agents.benchmark.tuning import tune_recipe
from prunegym.agents.rl.recipe_files import adjusted_recipe
from prunegym.errors import InvalidInputError
from prunegym.models.storage.model_file import Bundle
from prunegym.settings import parse

dynamic = shipped_model("digits")
data = {split: load_dataset("digits", split) for split in ("train", "validation")}
model = Bundle(masked=dynamic.masked, info=dynamic.info, policy=dynamic.policy, data=data)
small = tuple(parse(["n_envs=32", "n_episodes=64", "eval_every=1", "hyperparameters.n_epochs=1"]))
cluster = RayTrials(model, slots=2)
told = []
found = tune_recipe(
    model, "digits", Path(sys.argv[1]), trials=4, settings=small, space={"n_minibatches": [1, 2]}, report=told.append,
    cluster=cluster,
)
wrong = adjusted_recipe("digits", settings=parse(["n_minibatches=9000001"]))
try:
    cluster.train(wrong, Path(sys.argv[1]) / "wrong", lambda *_: None)
except InvalidInputError as error:
    refused = str(error)
cluster.close()
document = {"refused": refused, "found": [[one.folder, one.reward, one.state] for one in found], "told": len(told)}
Path(sys.argv[2]).write_text(json.dumps(document))
"""


def test_trials_of_a_search_run_on_ray(tmp_path):
    program = [sys.executable, "-W", "ignore", "-c", TUNING, str(tmp_path / "out"), str(tmp_path / "found.json")]
    subprocess.run(program, check=True, capture_output=True, timeout=280)
    answer = json.loads((tmp_path / "found.json").read_text())
    assert (len(answer["found"]), answer["told"]) == (4, 4)
    assert answer["refused"].startswith("Recipe 'digits': n_minibatches is 9000001;")  # without Ray's traceback
    for folder, reward, state in answer["found"]:
        if state == "complete":
            history = json.loads((Path(folder) / "monitor.json").read_text())["history"]
            assert reward == pytest.approx(max(row["reward"] for row in history))
            assert (Path(folder) / "model.safetensors").exists()
    assert (tmp_path / "out/best.yaml").exists()
