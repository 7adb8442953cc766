"""The task as Gymnasium and Stable-Baselines3 environments. Names are imported when first used: it takes seconds."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunegym.envs.accuracy import ACCURACY_TERMS, AccuracyTerm, resolve_accuracy
    from prunegym.envs.channel_mask import ChannelMaskEnv, LayerwiseChannelMaskEnv
    from prunegym.envs.group_advantage import GroupAdvantage, SelfCritical
    from prunegym.envs.mask_vec_env import MaskVecEnv
    from prunegym.envs.outcome import Outcome
    from prunegym.envs.registration import register_environments
    from prunegym.envs.rendering import draw_gallery, render
    from prunegym.envs.rewards import REWARDS, Reward, RewardFunction, resolve_reward
    from prunegym.envs.simulator import MaskSimulator, Snapshot, StepResult
    from prunegym.envs.task import Task, make_task
    from prunegym.envs.user_functions import import_object
    from prunegym.envs.vector import ChannelMaskVectorEnv, LayerwiseChannelMaskVectorEnv

__all__ = [
    "ACCURACY_TERMS",
    "REWARDS",
    "AccuracyTerm",
    "ChannelMaskEnv",
    "ChannelMaskVectorEnv",
    "GroupAdvantage",
    "LayerwiseChannelMaskEnv",
    "LayerwiseChannelMaskVectorEnv",
    "MaskSimulator",
    "MaskVecEnv",
    "Outcome",
    "Reward",
    "RewardFunction",
    "SelfCritical",
    "Snapshot",
    "StepResult",
    "Task",
    "draw_gallery",
    "import_object",
    "make_task",
    "register_environments",
    "render",
    "resolve_accuracy",
    "resolve_reward",
]

_HOMES = {
    "accuracy": ("ACCURACY_TERMS", "AccuracyTerm", "resolve_accuracy"),
    "channel_mask": ("ChannelMaskEnv", "LayerwiseChannelMaskEnv"),
    "group_advantage": ("GroupAdvantage", "SelfCritical"),
    "mask_vec_env": ("MaskVecEnv",),
    "outcome": ("Outcome",),
    "registration": ("register_environments",),
    "rendering": ("draw_gallery", "render"),
    "rewards": ("REWARDS", "Reward", "RewardFunction", "resolve_reward"),
    "simulator": ("MaskSimulator", "Snapshot", "StepResult"),
    "task": ("Task", "make_task"),
    "user_functions": ("import_object",),
    "vector": ("ChannelMaskVectorEnv", "LayerwiseChannelMaskVectorEnv"),
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562), so that ``import prunegym`` does not load SB3."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
