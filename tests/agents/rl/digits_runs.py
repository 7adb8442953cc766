"""Short runs on the network that comes with PruneGym."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from prunegym.agents.rl.recipe import Recipe
from prunegym.agents.rl.recipe_files import load_recipe
from prunegym.agents.rl.trainer import train_agent
from prunegym.models import DynamicCNN, GatePolicy, load_dataset, shipped_model

SMALL = dataclasses.replace(load_recipe("digits"), n_envs=32, group=4, n_episodes=256, eval_every=3)


def run(recipe: Recipe | Path, out: Path | str, policy: bool = True, **kwargs: Any) -> DynamicCNN:
    model = shipped_model("digits")
    assert isinstance(model.policy, GatePolicy)
    return train_agent(
        model.masked,
        model.info,
        load_dataset("digits", "train"),
        load_dataset("digits", "validation"),
        recipe,
        out,
        policy=model.policy if policy else None,
        progress=False,
        **kwargs,
    )
