"""A suite that takes seconds."""

from __future__ import annotations

from prunegym.agents.benchmark.suite import make_suite

TINY = {"agent": "digits", "name": "PPO", "set": {"n_envs": 32, "n_episodes": 64, "hyperparameters.n_epochs": 1}}
SETTINGS = {"seeds": 2, "agents": [TINY, "random", "start"], "tasks": {"digits": {"penalties": [0.2, 0.5]}}}
SUITE = make_suite("tiny", SETTINGS)
