"""``evaluate`` and ``compare``, with agents, rewards and baselines."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from prunegym.models import load_dataset
from tests.commands.command_line import KEYS, RL, as_json, fail, succeed

# Settings that take seconds make weak agents.
pytestmark = pytest.mark.filterwarnings("ignore::prunegym.agents.rl.monitor.CollapseWarning")


def test_evaluate_prints_exactly_the_documented_keys(made: Path) -> None:
    document = as_json("evaluate", made / "agent/model.safetensors")
    assert list(document) == KEYS
    assert document["images"] == 600
    assert document["total_mac_share"] == pytest.approx(document["mac_share"] + document["policy_mac_share"])
    assert document["reward"] == pytest.approx(document["accuracy"] - 0.5 * document["total_mac_share"])
    described = json.loads((made / "cnn/run.json").read_text())
    assert document["dense_accuracy"] == described["results"]["dense_accuracy"]["digits/test"]
    shown = succeed("evaluate", made / "agent/model.safetensors").stdout
    assert "shuffled" in shown


def test_evaluate_turns_the_dial(made: Path, tmp_path: Path) -> None:
    text = """prunegym/LayerwiseChannelMask-v0:
  env_kwargs: {reward: macs, accuracy: probability, penalty: [0.2, 0.8]}
  gate_policy: {hidden: 8}
  imitation: {steps: 200, batch_size: 64, mac_share: [0.9, 0.4]}
  n_envs: 32
  n_episodes: 32
"""
    (tmp_path / "turn.yaml").write_text(text)
    cnn, out = made / "cnn/cnn.safetensors", tmp_path / "out"
    succeed("train", cnn, "--recipe", tmp_path / "turn.yaml", "--quiet", "--out", out)
    found = {lam: as_json("evaluate", out / "model.safetensors", "--penalty", lam) for lam in ("0.2", "0.5", "0.8")}
    shares = [row["total_mac_share"] for row in found.values()]
    assert shares[0] > shares[1] > shares[2]
    assert found["0.8"]["reward"] == pytest.approx(found["0.8"]["accuracy"] - 0.8 * shares[2])
    assert as_json("evaluate", out / "model.safetensors") == found["0.5"], "the middle is the default"
    wrong = fail("evaluate", out / "model.safetensors", "--penalty", "0.9")
    assert "the policy was trained for lambdas from 0.2 to 0.8. Give one of these." in wrong


def test_evaluate_with_baselines_at_the_same_macs(made: Path) -> None:
    arguments = ["evaluate", made / "agent/model.safetensors", "--images", "100", "--baselines"]
    document = as_json(*arguments, "--dense", made / "cnn/cnn.safetensors")
    assert list(document) == [*KEYS, "baselines"]
    assert list(document["baselines"]["random"]) == KEYS
    assert document["baselines"]["L1"]["mac_share"] == pytest.approx(document["total_mac_share"], abs=0.1)
    assert document["images"] == 100


def test_evaluate_a_bare_cnn_keeps_all_channels(made: Path) -> None:
    document = as_json("evaluate", made / "cnn/cnn.safetensors")
    assert document["kept_share"] == 1
    assert document["accuracy"] == document["dense_accuracy"]


def test_a_user_s_reward_and_agent_are_found_in_the_current_folder(made: Path, mine: Path) -> None:
    prepared = made / "prepared/prepared.safetensors"
    succeed("train", prepared, *RL, "--reward", "mine:thrifty", "--penalty", "0.3", "--out", mine / "run")
    settings = json.loads((mine / "run/run.json").read_text())["settings"]["recipe"]["env_kwargs"]
    assert re.fullmatch(r"mine:thrifty#[0-9a-f]{8}", settings.pop("reward"))
    assert settings == {"penalty": 0.3, "augment": True}
    document = as_json("evaluate", made / "cnn/cnn.safetensors", "--agent", "mine:FirstHalf")
    assert document["distinct_masks"] == 1
    assert document["kept_share"] == pytest.approx(32 / 48)


def test_mistakes_in_a_user_s_file_are_told_before_anything_is_trained(made: Path, mine: Path) -> None:
    cnn = made / "cnn/cnn.safetensors"
    train_it = ["train", cnn, "--recipe", "frozen", "--quiet", "--out", mine / "run"]
    message = fail(*train_it, "--reward", "mine:too_short")
    assert "The reward 'too_short' returned shape (1,); (4,) is needed, one number for each episode." in message
    assert "mine has no 'nothing'" in fail(*train_it, "--reward", "mine:nothing")
    assert "Did you mean 'macs'?" in fail(*train_it, "--reward", "mac")
    assert "mine:not_an_agent" in fail("evaluate", cnn, "--agent", "mine:not_an_agent")
    assert not (mine / "run").exists()


def test_compare_agents_baselines_and_recipes(made: Path, mine: Path) -> None:
    command = [
        "compare", "digits", "random", "mine:FirstHalf", "--model", made / "prepared/prepared.safetensors",
        "--seeds", "2", "--episodes", "64", "--set", "n_envs=32", "--images", "100", "--out", mine / "table", "--quiet",
    ]  # fmt: skip
    document = as_json(*command)
    assert [row["name"] for row in document["rows"]] == ["digits", "random", "mine:FirstHalf"]
    assert set(document["rows"][0]["seeds"]) == {"0", "1"}
    assert document["rows"][0]["figures"]["accuracy"]["half_width"] is not None
    assert json.loads((mine / "table/comparison.json").read_text()) == document
    assert "Add --resume" in fail(*command)
    trained = (mine / "table/runs/digits-seed0/run.json").read_text()
    assert "target_macs" in fail(*command, "--resume", "--target-macs", "0.5")
    more = as_json(*command, "start=start-best-offset", "--split", "validation", "--resume")
    assert [row["name"] for row in more["rows"]] == ["digits", "random", "mine:FirstHalf", "start"]
    assert json.loads((mine / "table/comparison-validation.json").read_text()) == more
    again = json.loads((mine / "table/runs/digits-seed0/run.json").read_text())
    assert {**again, "seconds": 0} == {**json.loads(trained), "seconds": 0}
    shown = succeed(*command, "--resume").stdout
    assert "2 seeds" in shown


def test_compare_takes_a_model_and_a_rival_for_each_seed(made: Path, mine: Path) -> None:
    for seed, source in enumerate(("prepared/prepared", "agent/start")):
        shutil.copy(made / f"{source}.safetensors", mine / f"gates-{seed}.safetensors")
        shutil.copy(made / "agent/model.safetensors", mine / f"rival-{seed}.safetensors")
    command = [
        "compare", "start", f"rival={mine}/rival-{{seed}}.safetensors", "--model", f"{mine}/gates-{{seed}}.safetensors",
        "--seeds", "2", "--images", "100", "--out", mine / "table", "--quiet",
    ]  # fmt: skip
    rows = as_json(*command)["rows"]
    assert [set(row["seeds"]) for row in rows] == [{"0", "1"}] * 2
    missing = fail(*command[:-5], "--seeds", "3", *command[-5:], "--resume")
    assert "gates-2.safetensors" in missing


@pytest.mark.parametrize("execution", ["auto", "torch"])
def test_execution_changes_no_figure(made: Path, execution: str) -> None:
    arguments = ["evaluate", made / "agent/model.safetensors", "--images", "200"]
    expected, found = as_json(*arguments), as_json(*arguments, "--execution", execution)
    assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=0.006)
    assert found["kept_share"] == pytest.approx(expected["kept_share"], abs=1e-3)
    assert "Unknown execution 'karnel'. Did you mean 'kernel'?" in fail(*arguments, "--execution", "karnel")


def test_evaluate_takes_training_images_from_where_the_test_images_are(made: Path, tmp_path: Path) -> None:
    data = {split: load_dataset("digits", split) for split in ("train", "test")}
    arrays = {
        f"{split}_{name}": getattr(part, name).numpy() for split, part in data.items() for name in ("images", "labels")
    }
    np.savez(tmp_path / "mine.npz", **arrays)
    found = as_json("evaluate", made / "agent/model.safetensors", "--dataset", tmp_path / "mine.npz", "--baselines")
    assert found["accuracy"] == as_json("evaluate", made / "agent/model.safetensors")["accuracy"]
    assert "keep-all" in found["baselines"] or len(found["baselines"]) > 2


def test_compare_measures_the_dense_accuracy_of_a_part(made: Path, tmp_path: Path) -> None:
    cnn = made / "cnn/cnn.safetensors"
    found = as_json("compare", "keep-all", "--model", cnn, "--images", 40, "--seeds", 1, "--quiet", "--out", tmp_path)
    figures = found["rows"][0]["figures"]
    assert figures["dense_accuracy"]["mean"] == figures["accuracy"]["mean"]


def test_a_mistake_in_a_comparison_leaves_no_folder(mine: Path) -> None:
    assert "Several entries are called 'digits'" in fail("compare", "digits", "digits", "--out", mine / "table")
    assert not (mine / "table").exists()
