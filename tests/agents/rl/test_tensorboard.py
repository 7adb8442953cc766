"""The table of TensorBoard's tags in docs/ecosystem.md, against the files of real runs."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prunegym.agents.rl.lagrangian import Budget
from tests import ROOT
from tests.agents.rl.digits_runs import SMALL, run

PAGE = (ROOT / "docs/ecosystem.md").read_text()
ROW = re.compile(r"^\| (`\w+/[^|]*) \| ([^|]*) \|", re.MULTILINE)


def documented() -> dict[str, str]:
    """Each tag in the table, with its unit."""
    return {tag: unit for tags, unit in ROW.findall(PAGE) for tag in re.findall(r"`([^`]+)`", tags)}


def tags(folder: Path) -> set[str]:
    (log,) = (folder / "tensorboard").iterdir()
    return set(EventAccumulator(str(log)).Reload().Tags()["scalars"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::prunegym.agents.rl.monitor.CollapseWarning")
@pytest.mark.filterwarnings("ignore::prunegym.agents.rl.lagrangian.BudgetWarning")
def test_the_table_has_every_tag_and_no_other(tmp_path: Path) -> None:
    # Stable-Baselines3 writes its own means after ten rollouts.
    recipe = dataclasses.replace(SMALL, n_envs=16, n_episodes=176, eval_images=50)
    run(dataclasses.replace(recipe, budget=Budget(0.37)), tmp_path / "ppo")
    run(dataclasses.replace(recipe, algo="a2c", hyperparameters={"gamma": 1.0}), tmp_path / "a2c")
    assert tags(tmp_path / "ppo") | tags(tmp_path / "a2c") == documented().keys()
    assert all(documented().values()), "every tag has a unit"
