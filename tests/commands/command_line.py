"""Commands as a user calls them, and settings with which they take seconds."""

from __future__ import annotations

import json

from torch import nn
from typer.testing import CliRunner, Result

from prunegym.cli import app

KEYS = [
    "accuracy", "dense_accuracy", "prepared_accuracy", "kept_share", "mac_share", "policy_mac_share",
    "total_mac_share", "mac_share_std", "distinct_masks", "static_accuracy", "shuffled_accuracy", "reward", "images",
]  # fmt: skip
CNN = ["--dataset", "digits", "--epochs", "12", "--quiet"]
GATES = ["--epochs", "1", "--set", "hidden=8", "--set", "grid=2", "--set", "feature_size=160", "--quiet"]
PREPARE = [*GATES, "--set", "imitation.steps=20"]
RL = ["--recipe", "digits", "--episodes", "64", "--set", "n_envs=32", "--quiet"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def as_json(*arguments: object) -> dict:
    return json.loads(succeed(*arguments, "--json").stdout)


def fail(*arguments: object) -> str:
    """Return the message of a command that fails: one line, nothing on standard output, exit code 2."""
    result = run(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def first_filter(network: nn.Module) -> list[float]:
    return network.state_dict()["features.0.weight"][0].flatten().tolist()
