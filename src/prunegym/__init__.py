"""PruneGym: Gymnasium environments in which per-input channel masks of a frozen CNN are the actions.

Importing it registers ``prunegym/ChannelMask-v0`` and ``prunegym/LayerwiseChannelMask-v0``, where gymnasium is
installed. The names below are imported from their rooms when they are first used; ``prunegym.models`` needs neither
gymnasium nor stable-baselines3.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunegym.agents.evaluation import Evaluation, evaluate
    from prunegym.agents.policies import MaskPolicy, new_gate_policy
    from prunegym.agents.recipe import Recipe
    from prunegym.agents.recipe_files import load_recipe
    from prunegym.agents.training import train_agent
    from prunegym.envs.group_advantage import GroupAdvantage
    from prunegym.envs.mask_vec_env import MaskVecEnv
    from prunegym.envs.outcome import Outcome
    from prunegym.envs.task import make_task
    from prunegym.models.data import Dataset
    from prunegym.models.dynamic import DynamicCNN, shipped_model
    from prunegym.models.errors import PruneGymError
    from prunegym.models.masked import MaskedCNN
    from prunegym.models.preparation import prepare
    from prunegym.models.sources import load_dataset
    from prunegym.models.splits import from_arrays
    from prunegym.models.training import train
    from prunegym.models.zoo import build

__all__ = [
    "Dataset",
    "DynamicCNN",
    "Evaluation",
    "GroupAdvantage",
    "MaskPolicy",
    "MaskVecEnv",
    "MaskedCNN",
    "Outcome",
    "PruneGymError",
    "Recipe",
    "build",
    "evaluate",
    "from_arrays",
    "load_dataset",
    "load_recipe",
    "make_task",
    "new_gate_policy",
    "prepare",
    "shipped_model",
    "train",
    "train_agent",
]

_HOMES = {
    "agents.evaluation": ("Evaluation", "evaluate"),
    "agents.policies": ("MaskPolicy", "new_gate_policy"),
    "agents.recipe": ("Recipe",),
    "agents.recipe_files": ("load_recipe",),
    "agents.training": ("train_agent",),
    "envs.group_advantage": ("GroupAdvantage",),
    "envs.mask_vec_env": ("MaskVecEnv",),
    "envs.outcome": ("Outcome",),
    "envs.task": ("make_task",),
    "models.data": ("Dataset",),
    "models.splits": ("from_arrays",),
    "models.dynamic": ("DynamicCNN", "shipped_model"),
    "models.errors": ("PruneGymError",),
    "models.masked": ("MaskedCNN",),
    "models.preparation": ("prepare",),
    "models.sources": ("load_dataset",),
    "models.training": ("train",),
    "models.zoo": ("build",),
}


def __getattr__(name: str) -> Any:
    """Import a public name from its room (PEP 562): together they take seconds, and models alone needs little."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, imported or not."""
    return sorted({*globals(), *__all__})


if importlib.util.find_spec("gymnasium") is not None:
    from prunegym.envs.registration import register_environments

    register_environments()
