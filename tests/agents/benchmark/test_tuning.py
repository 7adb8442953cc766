"""Tuning by Optuna: trials are runs, the best recipe is written, and an interrupted search goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from prunegym import load_dataset, load_recipe, shipped_model
from prunegym.agents.benchmark import tuning
from prunegym.agents.benchmark.search_space import check_space
from prunegym.agents.benchmark.tuning import tune_recipe
from prunegym.errors import InvalidInputError, PruneGymError
from prunegym.models.storage.model_file import Bundle
from prunegym.settings import parse

optuna = pytest.importorskip("optuna")
pytestmark = pytest.mark.filterwarnings("ignore")  # of packages that Optuna imports
SMALL = tuple(parse(["n_envs=32", "n_episodes=64", "eval_every=1", "hyperparameters.n_epochs=1"]))
SPACE = {"hyperparameters.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "n_minibatches": [1, 2]}


@pytest.fixture
def model():
    dynamic = shipped_model("digits")
    data = {"train": load_dataset("digits"), "validation": load_dataset("digits", "validation")}
    return Bundle(masked=dynamic.masked, info=dynamic.info, policy=dynamic.policy, data=data)


@pytest.mark.slow
def test_trials_are_runs_and_an_interrupted_search_goes_on(model, tmp_path, monkeypatch):
    out, train, calls = tmp_path / "study", tuning.train_agent, []

    def stopped(*arguments, **options):
        calls.append(options["resume"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*arguments, **options)

    monkeypatch.setattr(tuning, "train_agent", stopped)
    with pytest.raises(KeyboardInterrupt):
        tune_recipe(model, "digits", out, space=SPACE, trials=3, settings=SMALL)
    study = optuna.load_study(study_name="prunegym", storage=f"sqlite:///{out / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL"]
    asked = study.trials[1].params
    found = tune_recipe(model, "digits", out, space=SPACE, trials=3, settings=SMALL, resume=True)
    assert len(found) == 3
    assert [dict(one.settings) for one in found].count(asked) == 1  # the trial in hand was tried with the same settings
    rewards = []
    for one in found:
        history = json.loads((out / one.folder.split("/")[-1] / "monitor.json").read_text())["history"]
        rewards.append(max(row["reward"] for row in history))
        assert one.reward == pytest.approx(rewards[-1])
    assert rewards == sorted(rewards, reverse=True)
    best = load_recipe(out / "best.yaml")
    assert best.hyperparameters["learning_rate"] == found[0].settings["hyperparameters.learning_rate"]
    assert (best.n_envs, best.n_minibatches) == (32, found[0].settings["n_minibatches"])
    with pytest.raises(InvalidInputError, match="other settings"):
        tune_recipe(model, "digits", out, space={"n_minibatches": [1, 2]}, trials=3, settings=SMALL, resume=True)


def test_a_space_is_checked_before_anything_runs(model, tmp_path):
    for space in (
        {},
        {"sharpen": 3},
        {"sharpen": {"low": 2, "high": 1}},
        {"sharpen": {"low": 0, "high": 1, "log": True}},
    ):
        with pytest.raises(InvalidInputError):
            check_space(space)
    with pytest.raises(PruneGymError, match="lo"):
        check_space({"sharpen": {"lo": 2, "high": 1}})
    with pytest.raises(PruneGymError, match="n_minibatch"):
        tune_recipe(model, "digits", tmp_path / "out", space={"n_minibatch": [1, 2]}, settings=SMALL)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_with_the_trial_in_hand(tmp_path):
    out = tmp_path / "study"
    small = [word for one in ("n_envs=32", "n_episodes=256", "eval_every=1") for word in ("--set", one)]
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "prunegym",
        "tune",
        "digits",
        "--recipe",
        "digits",
        "--trials",
        "3",
    ]
    command += [*small, "--out", str(out), "--quiet"]
    process = subprocess.Popen(command)
    while not (out / "trial-1/monitor.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    study = optuna.load_study(study_name="prunegym", storage=f"sqlite:///{out / 'study.db'}")
    asked = study.trials[1].params
    done = subprocess.run([*command, "--resume", "--json"], check=True, capture_output=True, text=True)
    trials = json.loads(done.stdout)["trials"]
    assert len(trials) == 3
    assert [one["settings"] for one in trials if one["folder"].endswith("trial-1")] == [asked]
    assert load_recipe(out / "best.yaml").n_envs == 32


def trained(recipe, folder):
    """Write what a training leaves, in no time: the search reads no more of it."""
    folder.mkdir()
    (folder / "monitor.json").write_text(json.dumps({"history": [{"reward": recipe.hyperparameters["learning_rate"]}]}))
    (folder / "model.safetensors").touch()


def test_a_resumed_search_tries_new_settings_and_the_same_ones_again_from_the_same_history(
    model, tmp_path, monkeypatch
):
    monkeypatch.setattr(tuning, "train_agent", lambda *given, **_options: trained(given[4], given[5]))
    for name in ("one", "two"):
        for trials in (3, 6):
            found = tune_recipe(
                model, "digits", tmp_path / name, space=SPACE, trials=trials, settings=SMALL, resume=trials > 3
            )
    rates = {one.number: one.settings["hyperparameters.learning_rate"] for one in found}
    assert len(set(rates.values())) == 6
    first = optuna.load_study(study_name="prunegym", storage=f"sqlite:///{tmp_path / 'one/study.db'}")
    assert [trial.params["hyperparameters.learning_rate"] for trial in first.trials] == [rates[k] for k in range(6)]


def test_a_trial_that_fails_keeps_its_error_and_the_search_goes_on(model, tmp_path, monkeypatch):
    told, calls = [], []

    def training(*given, **_options):
        calls.append(given[5].name)
        if len(calls) == 1:
            raise InvalidInputError("no such thing")
        if len(calls) == 3:
            raise ValueError("NaN in the logits")
        trained(given[4], given[5])

    monkeypatch.setattr(tuning, "train_agent", training)
    out = tmp_path / "out"
    found = tune_recipe(model, "digits", out, space=SPACE, trials=3, settings=SMALL, report=told.append)
    assert [one.state for one in found] == ["complete"] * 3 + ["fail"] * 2
    assert [one.state for one in told] == ["fail", "complete", "fail", "complete", "complete"]
    assert [one.number for one in found[3:]] == [0, 2]
    assert found[3].error == "InvalidInputError: no such thing"
    assert (out / "trial-0/error.txt").read_text() == "InvalidInputError: no such thing\n"
    assert (out / "trial-2/error.txt").read_text().startswith("ValueError: NaN in the logits\n")
    assert "Traceback" in found[4].error  # it is no error of ours, so its place is of use
    assert load_recipe(out / "best.yaml").hyperparameters["learning_rate"] == found[0].reward
    before = [one.number for one in found]
    again = tune_recipe(model, "digits", out, space=SPACE, trials=3, settings=SMALL, resume=True)
    assert ([one.number for one in again], len(calls)) == (before, 5)


@pytest.mark.parametrize(("good", "trials", "failures"), [(0, 20, 5), (0, 2, 5), (1, 2, 5), (1, 6, 7)])
def test_a_search_in_which_too_many_trials_fail_stops(model, tmp_path, monkeypatch, good, trials, failures):
    calls = []

    def training(*given, **_options):
        calls.append(given[5].name)
        if len(calls) > good:
            raise InvalidInputError(f"no number {len(calls)}")
        trained(given[4], given[5])

    monkeypatch.setattr(tuning, "train_agent", training)
    count = good + failures
    message = (
        rf"{failures} trials failed and {good} of {trials} ended.*trial-{count - 1}, .*no number {count}\n.*--resume"
    )
    with pytest.raises(PruneGymError, match=message):
        tune_recipe(model, "digits", tmp_path / "out", space=SPACE, trials=trials, settings=SMALL)
    assert (tmp_path / "out/best.yaml").exists() == bool(good)
    with pytest.raises(PruneGymError, match=f"{failures} trials failed"):  # those of the start before do not count
        tune_recipe(model, "digits", tmp_path / "out", space=SPACE, trials=trials, settings=SMALL, resume=True)
    assert len(calls) == count + failures


@pytest.mark.slow
def test_settings_that_no_check_of_the_space_foresees(model, tmp_path):
    # Both ends of the list are fine; a rollout has too few steps for what is between them.
    space = {"n_minibatches": [1, 90_001, 90_002, 2]}
    found = tune_recipe(model, "digits", tmp_path / "out", space=space, trials=2, settings=SMALL)
    assert {one.settings["n_minibatches"] for one in found[:2]} <= {1, 2}
    for one in found[2:]:
        assert f"n_minibatches is {one.settings['n_minibatches']}" in one.error
