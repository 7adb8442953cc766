"""Environments pickle and deepcopy at any moment: the copy goes on as the original does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from prunegym.envs import MaskVecEnv
from tests.envs.mask_oracle import IDS, LAYERWISE

COPIES = {"copy": copy.deepcopy, "pickle": lambda env: pickle.loads(pickle.dumps(env))}
FORMS: dict[str, Callable[..., Any]] = {
    "scalar": lambda name, **options: gym.make(name, **options),
    "vector": lambda name, **options: gym.make_vec(name, 3, **options),
    "sb3": lambda name, **options: MaskVecEnv(name, 3, seed=0, **options),
}


def flat(thing: Any) -> list[Any]:
    """Return all arrays and numbers in what a step gave, but for the seconds that an episode took."""
    if isinstance(thing, dict):
        return [one for key in sorted(thing) if key != "t" for one in flat(thing[key])]
    if isinstance(thing, (list, tuple)) or (isinstance(thing, np.ndarray) and thing.dtype == object):
        return [one for part in thing for one in flat(part)]
    return [thing]


def moved(form: str, env: Any, move: int | None) -> list[Any]:
    """Reset an environment (None), or step with an action that a number stands for."""
    if move is None:
        return flat(env.reset() if form == "sb3" else env.reset(seed=7))
    width = (env.single_action_space if form == "vector" else env.action_space).shape
    action = np.random.default_rng(move).integers(0, 2, width if form == "scalar" else (3, *width))
    return flat(env.step(action))


@pytest.mark.parametrize("execution", ["kernel", "masked"])
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("name", sorted(IDS))
@pytest.mark.parametrize("form", FORMS)
def test_at_any_moment(form: str, name: str, copied: Callable[[Any], Any], execution: str) -> None:
    """New, just begun, in the middle, at the end, and in the second episode."""
    options = {"model": "digits", "execution": execution, "accuracy": "fidelity"}
    original = FORMS[form](name, **options)
    decisions = len(FORMS["sb3"](name, **options).task.decisions)
    episode = [None, *range(decisions)]
    moves = [*episode, *episode]
    for position, move in enumerate(moves):
        other = copied(original)
        expected = moved(form, original, move)
        for own, right in zip(moved(form, other, move), expected, strict=True):
            np.testing.assert_array_equal(own, right)
        if position == decisions:  # the copy of a finished episode goes on too
            ended = copied(original)
            np.testing.assert_array_equal(moved(form, ended, None)[0], moved(form, copied(original), None)[0])


def test_with_pictures_and_layers() -> None:
    env = gym.make(LAYERWISE, model="digits", render_mode="rgb_array", observation="image")
    env.reset(seed=0)
    env.render()
    env.step(np.ones(env.action_space.shape, int))
    np.testing.assert_array_equal(COPIES["pickle"](env).render(), env.render())
