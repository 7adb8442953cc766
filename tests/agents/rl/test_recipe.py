from __future__ import annotations

import functools
import importlib
import json
import linecache
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from prunegym.agents.rl.lagrangian import Budget
from prunegym.agents.rl.recipe import Recipe, linear_start
from prunegym.agents.rl.recipe_files import FOLDER, load_recipe
from prunegym.commands.options import RecipeOptions
from prunegym.envs import Outcome, make_task
from prunegym.errors import InvalidInputError, MissingDataError, UnknownNameError
from prunegym.models import TuneConfig


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_that_comes_along_is_read(path: Path) -> None:
    recipe = load_recipe(path.stem)
    assert recipe == load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.env.startswith("prunegym/")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_stages_become_their_configurations(tmp_path: Path) -> None:
    text = "prunegym/ChannelMask-v0:\n  imitation: {steps: 5}\n  refine: {target_macs: 0.7}\n  n_envs: 16\n  group: 4\n"
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.imitation is not None
    assert recipe.refine is not None
    assert (recipe.imitation.steps, recipe.refine.target_macs, recipe.refine.train_cnn) == (5, 0.7, False)
    assert recipe.as_dict()["imitation"]["steps"] == 5


def test_constants_need_a_stage_that_learns_them(tmp_path: Path) -> None:
    text = "prunegym/ChannelMask-v0:\n  compensation: constant\n"
    with pytest.raises(InvalidInputError, match=r"no refine stage learns constants\. Add refine, or use zero"):
        load_recipe(write(tmp_path, text))
    recipe = load_recipe(write(tmp_path, text + "  refine: {target_macs: 0.7}\n"))
    assert recipe.as_dict()["compensation"] == "constant"
    # Stored runs and results of recipes without constants are found again.
    assert "compensation" not in load_recipe("refined").as_dict()
    with pytest.raises(UnknownNameError, match=r"compensation 'constants'\. Did you mean 'constant'"):
        load_recipe(write(tmp_path, text.replace("constant\n", "constants\n")))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "env:\n  n_env: 3\n",
            UnknownNameError,
            r"Unknown setting in recipe 'mine': 'n_env'\. Did you mean 'n_envs'\?",
        ),
        ("env:\n  imitation: {step: 3}\n", UnknownNameError, r"Unknown setting of imitation .* Did you mean 'steps'\?"),
        ("env:\n  algo: dqn\n", UnknownNameError, r"Unknown algorithm that acts in MultiBinary spaces 'dqn'.*a2c, ppo"),
        ("env:\n  n_envs: 10\n  group: 4\n", InvalidInputError, r"n_envs \(10\) must be a multiple of it"),
        ("env:\n  eval_every: 0\n", InvalidInputError, r"eval_every is 0; a whole number of at least 1"),
        ("env:\n  n_episodes: 5\n", InvalidInputError, r"n_episodes is 5; one rollout alone has 512"),
        ("a: 1\nb: 2\n", InvalidInputError, r"must have one environment id at the top"),
        ("a: [1\n", InvalidInputError, r"mine\.yaml is not YAML"),
        ("a:\n  group: 4\n  group: 8\n", InvalidInputError, r"'group' is given twice"),
    ],
)
def test_wrong_recipes(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_recipe(write(tmp_path, text))


def test_recipes_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown recipe 'frosen'\. Did you mean 'frozen'\?"):
        load_recipe("frosen")
    with pytest.raises(MissingDataError, match=r"There is no recipe .*none\.yaml\. Check the path\."):
        load_recipe(tmp_path / "none.yaml")


def test_reinforcement_learning_may_be_left_out() -> None:
    assert Recipe("imitation only", n_episodes=0).n_episodes == 0


@pytest.mark.parametrize(("text", "start"), [("lin_6.0e-4", 6e-4), ("0.01", 0.01)])
def test_a_learning_rate_that_falls(text: str, start: float) -> None:
    assert linear_start(text) == start


def test_a_learning_rate_that_is_none() -> None:
    with pytest.raises(InvalidInputError, match=r"learning_rate is 'cos_1'; a number is needed, or lin_ and a number"):
        linear_start("cos_1")


def test_a_budget_in_a_file_and_on_the_command_line(tmp_path: Path) -> None:
    text = (FOLDER / "frozen.yaml").read_text().replace("  target_macs: 0.7\n", "  budget: {target_macs: 0.6}\n")
    (tmp_path / "mine.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe.budget == Budget(0.6)
    overridden = RecipeOptions("frozen").read(0.6)
    assert (overridden.budget, overridden.target_macs) == (Budget(0.6), None)
    refined = RecipeOptions("refined").read(0.8)
    assert (refined.imitation.mac_share, refined.refine.target_macs, refined.budget) == (0.8, 0.8, Budget(0.8))
    assert overridden.imitation.mac_share == 0.6
    (tmp_path / "mine.yaml").write_text(text.replace("target_macs: 0.6}", "target: 0.6}"))
    with pytest.raises(UnknownNameError, match=r"Unknown setting of budget in recipe 'mine': 'target'\. Did you mean"):
        load_recipe(tmp_path / "mine.yaml")


@pytest.mark.parametrize("target", [0, 1.5, "cheapest", True])
def test_a_place_to_begin_that_cannot_be(target: Any) -> None:
    with pytest.raises(InvalidInputError, match=rf"target_macs is {target!r}; a finite number above 0 .* or 'best'"):
        Recipe("mine", target_macs=target)


def test_baselines_take_as_many_passes_as_all_stages() -> None:
    recipe = load_recipe("refined")
    assert recipe.passes(45_000) == pytest.approx((600 * 128 + 76_800) / 45_000 + 5)
    assert load_recipe("digits").passes(1000) == load_recipe("digits").n_episodes / 1000


def test_what_a_range_of_lambdas_excludes() -> None:
    ranged = {"penalty": [0.2, 1.0]}
    with pytest.raises(
        InvalidInputError, match=r"a budget adapts one penalty, but penalty is a range.* Give one number"
    ):
        Recipe("mine", env_kwargs=ranged, budget=Budget(0.5))
    refine = TuneConfig((0.8, 0.4), train_cnn=False)
    with pytest.raises(InvalidInputError, match=r"target_macs of refine is \(0\.8, 0\.4\), for a range of lambdas"):
        Recipe("mine", refine=refine)
    assert Recipe("mine", env_kwargs=ranged, refine=refine).refine is refine


def test_a_range_of_penalties_counts_as_its_middle() -> None:
    ranged = {"reward": "macs", "penalty": [0.2, 1.0]}
    assert Recipe("mine", env_kwargs=ranged, target_macs="best").middle_penalty == 0.6


@pytest.mark.parametrize("reward", ["blockdrop", "mine:squared_macs"])
def test_a_whole_reward_takes_no_accuracy_term_of_the_recipe(reward):
    assert load_recipe("frozen").env_kwargs["accuracy"] == "probability"
    assert "accuracy" not in RecipeOptions("frozen", reward=reward).read().env_kwargs
    assert RecipeOptions("frozen", reward="l0").read().env_kwargs["accuracy"] == "probability"


def test_lambda_of_a_share_is_no_price_of_a_channel(tmp_path: Path) -> None:
    frozen = load_recipe("frozen")
    assert frozen.env_kwargs["penalty"] == 0.5
    assert (
        "penalty" not in RecipeOptions("frozen", reward="l0").read().env_kwargs
    )  # the default: the full mask costs 0.5
    assert RecipeOptions("frozen", reward="l0", penalty=0.003).read().env_kwargs["penalty"] == 0.003
    assert RecipeOptions("frozen", reward="macs").read().env_kwargs["penalty"] == 0.5
    priced = write(tmp_path, "prunegym/ChannelMask-v0:\n  env_kwargs: {reward: l0, penalty: 0.002}\n")
    assert RecipeOptions(str(priced), reward="l0").read().env_kwargs["penalty"] == 0.002


def test_numbers_without_a_dot_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 reads 6e-4 as a string, which once made a learning rate that falls to 0."""
    text = "prunegym/ChannelMask-v0:\n  n_episodes: 1e3\n  n_envs: 100\n  hyperparameters: {learning_rate: 6e-4}\n"
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.hyperparameters["learning_rate"] == 6e-4
    assert recipe.n_episodes == 1000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hyperparameters: {learning_rat: 0.1}", "setting of hyperparameters in recipe 'mine': 'learning_rat'"),
        ("hyperparameters: {batch_size: 7}", "'batch_size'"),
        ("hyperparameters: [1]", r"hyperparameters is \[1\]; a mapping of settings is needed"),
        ("env_kwargs:", "env_kwargs is None; a mapping of settings is needed"),
        ("env_kwargs: {rewrd: macs}", "'rewrd'.*Did you mean 'reward'"),
        ("gate_policy: {hiden: 64}", "'hiden'.*Did you mean 'hidden'"),
        ("gate_policy: {hidden: 0}", "hidden is 0; a whole number from 1"),
        ("gate_policy: {grid: x}", r"gate_policy\.grid is 'x'"),
        ("imitation: 5", "imitation is 5; a mapping of settings is needed"),
        ("imitation: {steps: -5}", "steps of imitation is -5"),
        ("refine: {epochs: .nan}", "epochs is nan"),
        ("budget: {target_macs: half}", "budget.target_macs is 'half'; a number is needed"),
        ("budget: {rate: 0.1}", "budget.target_macs is missing"),
        ("n_envs: many", "n_envs is 'many'; a whole number of at least 1 is needed"),
        ("n_minibatches: 0", "n_minibatches is 0"),
        ("eval_every: 0", "eval_every is 0"),
        ("n_episodes: -5", "n_episodes is -5; a whole number of at least 0"),
        ("sharpen: two", "sharpen is 'two'; a finite number above 0"),
    ],
)
def test_mistakes_are_told_when_the_file_is_read(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises((InvalidInputError, UnknownNameError), match=message):
        load_recipe(write(tmp_path, f"prunegym/ChannelMask-v0:\n  {line}\n"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("gamma: 5", "gamma is 5; a finite number of at least 0 and at most 1 is needed"),
        ("gae_lambda: -0.1", "gae_lambda is -0.1; a finite number of at least 0 and at most 1"),
        ("n_epochs: 0", "n_epochs is 0; a whole number of at least 1"),
        ("n_epochs: 1.5", "n_epochs is 1.5; a whole number of at least 1"),
        ("learning_rate: .nan", "learning_rate is nan; a finite number above 0 is needed. The prefix lin_"),
        ("learning_rate: 0", "learning_rate is 0; a finite number above 0"),
        ("learning_rate: lin_-1", "learning_rate is -1.0; a finite number above 0"),
        ("learning_rate: cos_1", "learning_rate is 'cos_1'; a number is needed, or lin_ and a number"),
        ("clip_range: .inf", "clip_range is inf; a finite number above 0"),
        ("clip_range: lin_x", "clip_range is 'lin_x'; a number is needed"),
        ("clip_range_vf: 0", "clip_range_vf is 0; a finite number above 0"),
        ("ent_coef: -1", "ent_coef is -1; a finite number of at least 0"),
        ("vf_coef: half", "vf_coef is 'half'; a finite number of at least 0"),
        ("max_grad_norm: 0", "max_grad_norm is 0; a finite number above 0"),
        ("target_kl: 0", "target_kl is 0; a finite number above 0"),
    ],
)
def test_wrong_hyperparameters_are_found_before_imitation(tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(f"Recipe 'mine': {message}")):
        load_recipe(write(tmp_path, f"prunegym/ChannelMask-v0:\n  hyperparameters: {{{setting}}}\n"))


def test_hyperparameters_that_are_allowed() -> None:
    fine = {"target_kl": None, "clip_range_vf": None, "clip_range": "lin_0.2", "learning_rate": lambda _left: 1e-3}
    assert (
        Recipe("mine", hyperparameters={**fine, "gamma": 1, "ent_coef": 0}).hyperparameters["clip_range"] == "lin_0.2"
    )


def test_a_lambda_is_one_number_or_a_range_of_two() -> None:
    for wrong in ([0.4], (0.4,), [0.1, 0.2, 0.3], [0.4, 0.4], True, [True, 2], "0.4"):
        with pytest.raises(InvalidInputError, match=r"a finite number of at least 0|a range is \(low, high\)"):
            make_task("digits", reward="macs", penalty=wrong)
    assert Recipe("mine", env_kwargs={"reward": "macs", "penalty": None}).middle_penalty == 0.5


def test_a_reward_that_is_edited_is_another_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def written(text: str) -> dict[str, Any]:
        monkeypatch.delitem(sys.modules, "edited", raising=False)
        Path("edited.py").write_text(text)
        importlib.invalidate_caches()
        linecache.clearcache()
        return Recipe("mine", env_kwargs={"reward": "edited:mine"}).as_dict()

    first = written("def mine(outcome):\n    return outcome.kept\n")
    assert first == written("def mine(outcome):\n    return outcome.kept\n\n\nother = 1\n")
    assert first != written("def mine(outcome):\n    return 10 * outcome.kept\n")
    assert first["env_kwargs"]["reward"].startswith("edited:mine#")


class Priced:
    def __init__(self, price: float) -> None:
        self.price = price

    def __call__(self, outcome: Outcome) -> torch.Tensor:
        return -self.price * outcome.kept


def test_functions_paths_and_tables_are_plain_json() -> None:
    rewards = [Priced(0.1), Priced(0.1), Priced(0.2), functools.partial(math.fsum), lambda outcome: outcome.kept]
    first, same, *others = (Recipe("mine", env_kwargs={"reward": reward}).as_dict() for reward in rewards)
    assert first == same
    assert all(json.loads(json.dumps(other)) == other != first for other in others)
    kwargs = {"reward": "latency", "latency_table": Path("table.json"), "features": torch.ones(2)}
    assert Recipe("mine", env_kwargs=kwargs).as_dict()["env_kwargs"]["latency_table"] == "table.json"


def test_a_latency_table_that_was_measured_anew_is_another_setting(tmp_path):
    table, settings = tmp_path / "table.json", []
    for content in ("1", "1", "2"):
        table.write_text(content)
        settings.append(Recipe("mine", env_kwargs={"reward": "latency", "latency_table": table}).as_dict())
    assert settings[0] == settings[1] != settings[2]
    assert str(table) in settings[0]["env_kwargs"]["latency_table"]
