"""Callbacks and loggers that recipes name, and gates that decide at other steps than the recipe."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest

from prunegym import load_dataset, load_recipe, shipped_model, train_agent
from prunegym.agents.rl.recipe import Recipe
from prunegym.agents.rl.trainer import NewGatesWarning
from prunegym.errors import InvalidInputError, UnknownNameError

MINE = """
import pathlib

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

class Count(BaseCallback):
    def __init__(self, file, start=0):
        super().__init__()
        self.file, self.count = file, start

    def _on_step(self):
        self.count += 1
        pathlib.Path(self.file).write_text(str(self.count))
        return True

class Write(KVWriter):
    def write(self, key_values, key_excluded, step=0):
        pathlib.Path("written").write_text(" ".join(key_values))

    def close(self):
        pass
"""
SHORT = dataclasses.replace(
    load_recipe("digits"), n_envs=16, n_episodes=64, eval_images=50, n_minibatches=2, loggers=["csv"]
)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tracked.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(recipe: Recipe, out: Path) -> object:
    model = shipped_model("digits")
    data = [load_dataset("digits", split) for split in ("train", "validation")]
    return train_agent(model.masked, model.info, *data, recipe, out, policy=model.policy, progress=False)


@pytest.mark.filterwarnings("ignore::prunegym.agents.rl.monitor.CollapseWarning")
def test_a_recipe_names_callbacks_and_loggers(mine: Path) -> None:
    callbacks = [{"tracked:Count": {"file": "count", "start": 100}}]
    train(dataclasses.replace(SHORT, callbacks=callbacks, loggers=["csv", "tracked:Write"]), mine / "out")
    steps = 64 // 16 * len(shipped_model("digits").policy.decisions)
    assert (mine / "count").read_text() == str(100 + steps)
    with (mine / "out/progress.csv").open() as file:
        assert "eval/accuracy" in next(csv.reader(file))
    assert "eval/accuracy" in (mine / "written").read_text()
    assert list((mine / "out/tensorboard/ppo_1").glob("events.*"))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"callbacks": ["absent:Thing"]}, InvalidInputError, "The callback 'absent:Thing' cannot be imported"),
        ({"callbacks": ["tracked:Write"]}, InvalidInputError, "not a subclass of Stable-Baselines3's BaseCallback"),
        ({"loggers": ["cvs"]}, UnknownNameError, r"Unknown logger 'cvs'\. Did you mean 'csv'\?"),
        ({"callbacks": [{"tracked:Count": 3}]}, InvalidInputError, r"A callback is {'tracked:Count': 3}; module:Class"),
    ],
)
def test_mistakes_in_them_are_found_before_anything_is_written(mine, settings, error, message) -> None:
    with pytest.raises(error, match=message):
        train(dataclasses.replace(SHORT, **settings), mine / "out")
    assert not (mine / "out").exists()
    with pytest.raises(InvalidInputError, match=r"Recipe 'digits': callbacks is 'a:B'; a list is needed"):
        dataclasses.replace(SHORT, callbacks="a:B")


def test_without_them_a_recipe_is_stored_as_before() -> None:
    assert not {"callbacks", "loggers"} & set(load_recipe("digits").as_dict())
    assert SHORT.as_dict()["loggers"] == ["csv"]


@pytest.mark.filterwarnings("ignore::prunegym.agents.rl.monitor.CollapseWarning")
def test_one_step_recipes_train_new_gates_for_a_model_that_decides_layer_by_layer(tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        load_recipe("one-step"), n_envs=16, n_episodes=32, eval_images=50,
        imitation=dataclasses.replace(load_recipe("one-step").imitation, steps=2),
    )  # fmt: skip
    with pytest.warns(NewGatesWarning, match="Recipe 'one-step' decides all in one step, and the model's gates do not"):
        trained = train(recipe, tmp_path / "out")
    assert len(trained.policy.decisions) == 1
