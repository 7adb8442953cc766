from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from prunegym.agents.evaluation.evaluator import evaluate
from prunegym.agents.evaluation.predictors import AgentError, CheckedAgent, load_agent
from prunegym.errors import InvalidInputError

SOURCE = """
import numpy as np

class Keeper:
    def predict(self, observation):
        return np.ones((len(observation["features"]), 48))

keeper = Keeper()
number = 3

def first_half(observation):
    return np.tile(np.arange(48) < 24, (len(observation["features"]), 1))

class NeedsMore:
    def __init__(self, path):
        pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, request):
    """A current folder with a module of a name that no other test uses."""
    name = f"agents_of_{request.node.name.translate(str.maketrans('[]-', '___'))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize(("attribute", "kept"), [("Keeper", 48), ("keeper", 48), ("first_half", 24)])
def test_class_object_and_function_work_by_import_path(folder, attribute, kept, masked, few):
    result = evaluate(load_agent(f"{folder}:{attribute}"), masked, few)
    assert result.masks.sum(1).tolist() == [kept] * 40


def test_missing_module(folder):
    message = (
        "The agent 'no_such_module_here:Agent' cannot be imported: ModuleNotFoundError: No module named "
        "'no_such_module_here'."
    )
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        load_agent("no_such_module_here:Agent")


def test_missing_attribute(folder):
    with pytest.raises(
        InvalidInputError, match=f"The agent '{folder}:Kepper': {folder} has no 'Kepper'. It has: .*Keeper"
    ):
        load_agent(f"{folder}:Kepper")


@pytest.mark.parametrize("path", ["agents", "agents:", ":Agent", ""])
def test_path_without_module_or_name(path):
    with pytest.raises(InvalidInputError, match=re.escape(f"The agent {path!r} is not of the form 'module:name'")):
        load_agent(path)


def test_no_predict(folder):
    message = f"The agent '{folder}:number' is a int without a method `predict`."
    with pytest.raises(AgentError, match=re.escape(message)):
        load_agent(f"{folder}:number")


def test_class_that_needs_arguments(folder):
    message = f"'{folder}:NeedsMore' is a class that cannot be instantiated without arguments: TypeError: "
    with pytest.raises(AgentError, match=re.escape(message)):
        load_agent(f"{folder}:NeedsMore")


def broken(returned):
    class Broken:
        def predict(self, observation):
            if isinstance(returned, Exception):
                raise returned
            return returned

    return CheckedAgent(Broken())


OBSERVATION = {"features": np.zeros((5, 17), np.float32)}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            RuntimeError("boom"),
            "The agent 'Broken' raised RuntimeError: boom. Its predict is called with a dict of arrays (features (5, "
            "17)) and has to return actions of shape (5, 48).",
        ),
        (
            np.ones(48),
            "The agent 'Broken' returned actions of shape (48,); (5, 48) is needed: a row for each image and a "
            "number for each mask bit.",
        ),
        (np.ones((5, 47)), "returned actions of shape (5, 47); (5, 48) is needed"),
        (
            np.full((5, 48), 0.25),
            "The agent 'Broken' returned 0.25 for bit 0 of image 0; only 0 (channel off) and 1 (on) are allowed. "
            "Threshold probabilities, e.g. `probability > 0.5`.",
        ),
        (np.where(np.eye(5, 48) == 1, np.nan, 1), "returned nan for bit 0 of image 0"),
        ("keep", "The agent 'Broken' raised ValueError: could not convert string to float"),
        (None, "returned actions of shape (); (5, 48) is needed"),
    ],
)
def test_wrong_predictions(returned, message):
    with pytest.raises(AgentError, match=re.escape(message)):
        broken(returned)(OBSERVATION, None, True, 48)


def test_the_place_of_a_wrong_value_is_named():
    actions = np.ones((5, 48))
    actions[3, 7] = 2
    with pytest.raises(AgentError, match="returned 2 for bit 7 of image 3"):
        broken(actions)(OBSERVATION, None, True, 48)


def test_tensors_and_states_are_taken():
    caller = broken((torch.ones(5, 48, requires_grad=True), "state"))
    actions, state = caller(OBSERVATION, None, True, 48)
    assert actions.dtype == np.float32
    assert actions.tolist() == np.ones((5, 48)).tolist()
    assert state == "state"
