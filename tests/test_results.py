"""Tables of README and docs are what ``results/render.py`` writes from the JSON beside it: nothing typed in by hand."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from prunegym import DynamicCNN, MaskVecEnv, load_dataset, shipped_model
from prunegym.models.dynamic_cnn import shipped_path
from prunegym.models.gating.static_policy import rollout
from tests import ROOT

MAKEFILE = ROOT / "results" / "Makefile"
TARGETS = re.search(r"^\.PHONY: (.*)$", MAKEFILE.read_text(), re.MULTILINE)[1].split()


def load_script(name: str):
    """Import a file of ``results/``, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "results" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


render = load_script("render")
TABLES = render.settings()["tables"]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_what_its_documents_say(name: str) -> None:
    between = render.page_of(name).read_text().split(f"<!-- {name} -->\n")[1].split(f"<!-- end of {name} -->")[0]
    assert between == render.table(TABLES[name]), "run `python results/render.py`"


def test_each_marker_has_a_table() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    marked = {(name, page) for page in pages for name in re.findall(r"<!-- end of (\S+) -->", page.read_text())}
    assert marked == {(name, render.page_of(name)) for name in TABLES}


def test_the_picture_shows_what_the_documents_say() -> None:
    picture = render.settings()["picture"]
    assert (ROOT / picture["page"]).is_file()
    curve = {"file": "cifar10-jpeg/{from}/test.json", "each": "rows", "at": "figures"}
    (baseline,) = render.points({**curve, "points": [{"from": "refined", "entry": "learned-static"}]})
    rows = json.loads((ROOT / "results/cifar10-jpeg/refined/test.json").read_text())["rows"]
    (row,) = [row for row in rows if row["name"] == "learned-static"]
    figures = {key: value["mean"] for key, value in row["figures"].items()}
    assert baseline == (figures["total_mac_share"], figures["accuracy"], 0.0)
    seeds = render.points({**curve, "entry": "refined", "points": [{"from": "refined"}, {"from": "not-run"}]})
    assert len(seeds) == 1
    assert seeds[0].half_width > 0
    assert all(render.points(curve) for panel in picture["panels"] for curve in panel["curves"])


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, ""),
        ({"number": "seconds.kernel", "scale": 1000, "places": 1, "text": "{} ms"}, "250.0 ms"),
        ({"number": "seconds.dense", "over": "seconds.kernel", "places": 2}, "4.00"),
        ({"number": "seconds.dense", "minus": "seconds.kernel", "places": 2}, "0.75"),
        ({"number": "bytes"}, "12,345"),
        ({"number": "not.there", "optional": True}, ""),
        ({"number": ["not.there", "bytes"]}, "12,345"),
        ({"least": "seconds", "places": 2}, "0.25"),
        ({"least": "seconds", "of": ["masked", "full"], "over": "seconds.kernel", "places": 0}, "2"),
        ({"key": "seconds", "equal": "fastest"}, "kernel"),
        ({"interval": "gain", "places": 2}, "0.10 ± 0.02"),
        ({"interval": "gain", "places": 1, "scale": 100, "signed": True}, "+10.0 ± 2.0"),
        ({"interval": "gain", "places": 1, "scale": -100}, "-10.0 ± 2.0"),
        ({"interval": "one_seed", "places": 2}, "0.10"),
        ({"interval": "itself", "places": 2}, ""),
        ({"interval": "gain", "places": 2, "blank_at_one": "masks"}, ""),
        ({"join": [{"number": "masks"}, {"number": "bytes"}], "by": " @ "}, "1 @ 12,345"),
    ],
)
def test_kinds_of_cells(cell, text) -> None:
    record = {
        "seconds": {"kernel": 0.25, "masked": 0.5, "dense": 1.0}, "fastest": 0.25, "bytes": 12345, "masks": 1,
        "gain": {"mean": 0.1, "half_width": 0.02}, "one_seed": {"mean": 0.1, "half_width": None}, "itself": None,
    }  # fmt: skip
    assert render.show(record, cell) == text


def test_a_path_that_leads_nowhere_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"names bars\.kernel, which is not in an entry with threads, ratio"):
        render.show({"threads": 1, "ratio": 0.5}, {"number": "bars.kernel"})


def test_rows(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(render, "FOLDER", tmp_path)
    rows = [{"name": name, "loss": loss} for name, loss in (("ppo", 3), ("start", 2), ("twin", 2), ("other", 1))]
    (tmp_path / "run.json").write_text(json.dumps({"seeds": [0, 1], "rows": rows}))
    spec = {
        "title": "{count} seeds", "each": "rows", "file": "{from}.json", "columns": [{"loss": {"number": "loss"}}],
        "names": {"ppo": "PPO", "start": "its start", "twin": "its twin"}, "unique": True, "sort": "loss",
        "rows": [{"label": "a", "from": "run"}, {"label": "b", "from": "not-run"}],
    }  # fmt: skip
    head = "| 2 seeds | loss |\n| --- | --- |\n"
    assert render.table(spec) == head + "| a: its start | 2 |\n| a: PPO | 3 |\n"
    assert "| a: more | 1 |\n" in render.table({**spec, "others": "more"})
    spec["rows"] = [{"label": "the mean", "from": "run", "entry": "*t*", "mean": True}]
    assert render.table({**spec, "sort": "loss"}) == head + "| the mean | 2 |\n"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", TARGETS)
def test_make_knows_how_to_make_each_table(target: str) -> None:
    command = ["make", "--dry-run", "--always-make", "--file", str(MAKEFILE), target]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout
    assert all((ROOT / recipe).is_file() for recipe in re.findall(r"results/recipes/\S+\.yaml", found.stdout))


def test_the_page_of_networks_is_what_its_documents_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    networks = importlib.import_module("networks")
    found = [json.loads(path.read_text()) for path in sorted(networks.RESULTS.glob("*.json"))]
    assert (ROOT / "docs/networks.md").read_text() == networks.page(found), "run benchmarks/networks.py --page"
    assert {facts["number"] for facts in found} <= set(networks.rows())


def test_cells_with_constants_are_made_once_and_become_a_table(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "results"))
    script = load_script("constants")
    study = script.STUDIES["resnet20"]
    imitation = dataclasses.replace(study.imitation, steps=1, batch_size=32)
    tune = dataclasses.replace(study.tune, epochs=1.0)
    study = dataclasses.replace(study, shares=(0.6,), seeds=1, imitation=imitation, tune=tune)
    monkeypatch.setattr(script, "STUDIES", {"resnet20": study})
    options = ["resnet20", str(shipped_path("digits")), str(tmp_path / "runs"), "--json", str(tmp_path / "table.json")]
    monkeypatch.setattr(script.sys, "argv", ["constants.py", *options, "--images", "64"])
    names = [
        "0.60, gates, constants", "0.60, learnt static mask, constants", "0.60, gates, zeros",
        "0.60, learnt static mask, zeros",
    ]  # fmt: skip
    with script.alone(tmp_path / "runs/static-constant-60-0"):  # as another process that makes this cell
        script.main()
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [row["name"] for row in rows] == [name for name in names if name != names[1]]
    script.main()
    document = json.loads((tmp_path / "table.json").read_text())
    assert [row["name"] for row in document["rows"]] == names
    gates, static = document["rows"][:2]
    cells = [tmp_path / f"table/{kind}-constant-60-0.json" for kind in ("gates", "static")]
    both = [json.loads(cell.read_text())["test"] for cell in cells]
    assert gates["test"]["accuracy"]["mean"] == both[0]["accuracy"]
    difference = both[0]["accuracy"] - both[1]["accuracy"]
    assert gates["minus_static"]["over_seeds"]["mean"] == pytest.approx(difference)
    assert gates["minus_static"]["by_image"]["mean"] == pytest.approx(difference)
    assert static["test"]["policy_mac_share"]["mean"] == 0
    # The variants begin with these cells.
    monkeypatch.setattr(importlib.import_module("constant_variants"), "EPISODES", 512)
    monkeypatch.setattr(script.sys, "argv", ["constants.py", *options, "--images", "64", "--variants"])
    script.main()
    document = json.loads((tmp_path / "table.json").read_text())
    variants = {row["name"].split(", gates, ")[1]: row for row in document["rows"] if "minus_constants" in row}
    assert list(variants) == list(script.VARIANTS.values())
    fixed = {row["name"].split(", ", 1)[1]: row for row in document["rows"][-2:]}
    assert list(fixed) == ["Taylor, static, constants", "greedy static mask, constants"]
    assert all(row["test"]["total_mac_share"]["mean"] == pytest.approx(0.6, abs=0.05) for row in fixed.values())
    assert all(row["test"]["total_mac_share"]["mean"] == pytest.approx(0.6, abs=0.05) for row in variants.values())
    models = [DynamicCNN.load(tmp_path / f"runs/{place}model.safetensors") for place in (
        "gates-constant-60-0/", "gates-ppo-60-0/run/", "gates-ppo-both-60-0/run/",
    )]  # fmt: skip
    before, kept, trained = (model.masked.constants for model in models)
    assert torch.equal(before, kept)
    assert not torch.equal(before, trained)
    # Cells that are done are read, not made again.
    monkeypatch.setattr(script, "prepare", None)
    script.main()
    assert json.loads((tmp_path / "table.json").read_text()) == document


def test_predicted_constants_are_those_of_a_cnn_with_these_constants(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "results"))
    variants = importlib.import_module("constant_variants")
    model, images = shipped_model("digits"), load_dataset("digits", "test").batch(torch.arange(5))
    policy = variants.PredictedConstants(model.policy, model.masked)
    policy.rescale_logits(offset=-3.0)
    for shift in policy.shifts:
        torch.nn.init.normal_(shift.weight, std=3.0)
    model.masked.compensate(torch.linspace(-1, 1, model.masked.mask_size))
    run = rollout(model.masked, policy, images)
    shifts = torch.cat([policy.predicted[gate] for gate in range(len(model.masked.gates))], 1)
    assert shifts.abs().max() > 0.5
    assert 0.1 < run.mask.mean() < 0.9
    for row in range(5):
        plain = shipped_model("digits").masked.compensate(model.masked.constants + shifts[row])
        torch.testing.assert_close(plain(images[row : row + 1], run.mask[row : row + 1]), run.output[row : row + 1])


def test_groups_branch_at_a_gate(monkeypatch) -> None:
    script = load_script("credit")
    inner = MaskVecEnv("prunegym/LayerwiseChannelMask-v0", 24, group=4, model="digits", reward="macs", seed=0)
    env = script.BranchAtGate(inner, seed=0)
    rng, gates = np.random.default_rng(0), len(inner.simulator.decisions)
    env.reset()
    branch, paid, ended = env._branch, np.zeros(24), np.full(24, -1)
    for gate in range(gates):
        mask = inner.simulator.mask
        _, rewards, dones, infos = env.step(rng.integers(0, 2, (24, *inner.action_space.shape)))
        bits = inner.simulator.task.masked.split(mask)[gate].reshape(6, 4, -1)
        same = (bits == bits[:, :1]).all(2).all(1).numpy()
        np.testing.assert_array_equal(same, (gate < branch)[::4])
        assert not rewards[gate < branch].any()
        ended[dones & (ended < 0)] = gate
        paid += rewards
    # PPO's episode of the steps that a group plays together ends before the gate where it parts.
    np.testing.assert_array_equal(ended, np.where(branch > 0, branch - 1, gates - 1))
    assert set(branch) == set(range(gates))
    # From there on, returns are those of the episodes, less the mean of the other three.
    whole = np.array([info["episode"]["r"] for info in infos]).reshape(6, 4)
    np.testing.assert_allclose(paid.reshape(6, 4), (whole - whole.mean(1, keepdims=True)) * 4 / 3, atol=1e-5)
