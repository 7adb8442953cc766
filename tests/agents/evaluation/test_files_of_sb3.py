"""Agents of Stable-Baselines3 in files: only on request, since loading one can run code."""

from __future__ import annotations

import base64
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from stable_baselines3 import A2C, PPO

from prunegym.agents.comparison.entries import as_entry
from prunegym.agents.evaluation.evaluator import evaluate
from prunegym.agents.evaluation.predictors import load_agent
from prunegym.agents.rl.mask_policy import MaskPolicy
from prunegym.envs.sb3_vec_env import MaskVecEnv
from prunegym.errors import InvalidInputError
from prunegym.models import load_dataset, shipped_model


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def _saved(kind: type[Any], path: Path) -> Any:
    model = shipped_model()
    env = MaskVecEnv("prunegym/LayerwiseChannelMask-v0", 32, model=model, reward="macs", seed=0)
    batch = {"batch_size": 48} if kind is PPO else {}
    agent = kind(MaskPolicy, env, n_steps=3, **batch, policy_kwargs={"gate_policy": model.policy}, device="cpu")
    agent.save(path)
    return agent


@pytest.mark.parametrize("kind", [PPO, A2C])
def test_an_agent_of_a_file_is_the_agent(tmp_path: Path, kind: type[Any]) -> None:
    agent, images = _saved(kind, tmp_path / "agent.zip"), load_dataset("digits", "test").sample(50)
    loaded = load_agent(str(tmp_path / "agent.zip"), trust_code=True)
    assert isinstance(loaded, kind)
    found, expected = (evaluate(one, shipped_model(), images).as_json() for one in (loaded, agent))
    assert found == expected


def test_code_runs_only_on_request(tmp_path: Path) -> None:
    path, mark = tmp_path / "agent.zip", tmp_path / "mark"
    with zipfile.ZipFile(path, "w") as file:
        evil = base64.b64encode(cloudpickle.dumps(_Evil(mark))).decode()
        file.writestr("data", json.dumps({"extra": {":type:": "x", ":serialized:": evil}}))
    for load in (load_agent, as_entry):
        with pytest.raises(InvalidInputError, match=r"add --trust-code, in Python trust_code=True\. Or ask for a"):
            load(str(path))
    assert not mark.exists()
    with pytest.raises(InvalidInputError, match=r"agent\.zip cannot be loaded as an agent of PPO or A2C"):
        load_agent(str(path), trust_code=True)
    assert mark.exists(), "the file was not hostile, so the test showed nothing"


def test_files_that_are_no_agents(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no zip")
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(InvalidInputError, match=r"text\.zip cannot be loaded as an agent of PPO or A2C"):
        load_agent(str(tmp_path / "text.zip"), trust_code=True)
    for name in ("pipe", "none"):
        with pytest.raises(InvalidInputError, match=rf"{name}\.zip is not a regular file"):
            load_agent(str(tmp_path / f"{name}.zip"), trust_code=True)
