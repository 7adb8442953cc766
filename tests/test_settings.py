"""Settings by name: ``key=value``, nested mappings, configs with their types checked."""

from __future__ import annotations

from typing import Any

import pytest

from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models.training.preparation import PrepareConfig
from prunegym.models.training.tuning import TuneConfig
from prunegym.settings import changed, make_config, parse


def test_values_are_yaml() -> None:
    found = dict(parse(["a=1e-3", "b=true", "c=[0.8, 0.4]", "d=mine:reward", "e=null", "f.g=lin_6e-4"]))
    expected = {("a",): 1e-3, ("b",): True, ("c",): [0.8, 0.4], ("d",): "mine:reward", ("e",): None}
    assert found == {**expected, ("f", "g"): "lin_6e-4"}


@pytest.mark.parametrize("text", ["n_envs", "=3", "a..b=3", "a.=3"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="is not of the form KEY=VALUE"):
        parse([text])


def test_a_value_that_is_not_yaml() -> None:
    with pytest.raises(InvalidInputError, match=r"--set 'a=\[1': the value is not YAML"):
        parse(["a=[1"])


def test_later_changes_win_and_a_number_has_no_parts() -> None:
    assert changed({"a": {"b": 1}}, parse(["a.b=2", "a.b=3", "c.d.e=4"])) == {"a": {"b": 3}, "c": {"d": {"e": 4}}}
    with pytest.raises(InvalidInputError, match=r"n_envs\.x cannot be set: n_envs is 512"):
        changed({"n_envs": 512}, parse(["n_envs.x=1"]))


def test_configs_within_a_config() -> None:
    made = make_config(PrepareConfig, changed({"tune": None}, parse(["tune.epochs=3", "hidden=8", "imitation=null"])))
    assert made == PrepareConfig(imitation=None, tune=TuneConfig(epochs=3), hidden=8)
    ranged = make_config(PrepareConfig, {"penalty_range": [0.2, 0.8], "tune": {"target_macs": [0.8, 0.4]}})
    assert ranged.penalty_range == [0.2, 0.8]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden": "wide"}, "hidden is 'wide'; a whole number is needed"),
        ({"hidden": 1.5}, "hidden is 1.5"),
        ({"hidden": True}, "hidden is True"),
        ({"tune": {"train_cnn": 1}}, "tune.train_cnn is 1; true or false is needed"),
        ({"tune": {"precision": "half"}}, "tune.precision is 'half'; 'auto' or 'float32' or 'bfloat16' is needed"),
        ({"tune": {"augment": "flipp"}}, "tune.augment is 'flipp'; true or false, or 'flip' is needed"),
        ({"tune": {"target_macs": "half"}}, "a number, or a list of numbers, or null is needed"),
        ({"penalty_range": [0.2, "much"]}, "penalty_range is"),
        ({"tune": 3}, "tune is 3; a group of settings, or null is needed"),
        ({"tune": {"epochs": -1}}, "epochs is -1"),
    ],
)
def test_a_value_of_another_type(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        make_config(PrepareConfig, values)
    assert message in str(raised.value)


def test_near_names_are_suggested() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown setting of tune 'batchsize'\. Did you mean 'batch_size'\?"):
        make_config(PrepareConfig, {"tune": {"batchsize": 3}})
    with pytest.raises(UnknownNameError, match=r"Unknown setting 'hiden'\. Did you mean 'hidden'\?"):
        make_config(PrepareConfig, {"hiden": 3})
