"""Recipes with random damage, or that would take long to read: refused with a reason, or one that training can take."""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, strategies as st

from prunegym.agents.rl.recipe_files import FOLDER, load_recipe
from prunegym.agents.rl.trainer import try_recipe
from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.dynamic_cnn import shipped_model
from tests.damage import Change, altered, bounded, changes, damaged, refused

RECIPES = sorted(FOLDER.glob("*.yaml"))


@functools.cache
def _model() -> Any:
    train = load_dataset("digits", "train")
    return shipped_model().masked, train, train, None


def _use(path: Path) -> None:
    recipe = refused(lambda: load_recipe(path))
    if recipe is not None:
        refused(lambda: try_recipe(recipe, *_model()))
        refused(recipe.as_dict)


@bounded
@given(which=st.sampled_from(RECIPES), made=changes)
def test_bytes_of_a_recipe(tmp_path: Path, which: Path, made: list[Change]) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(damaged(which.read_bytes(), made))
    _use(path)


@bounded
@given(which=st.sampled_from(RECIPES), data=st.data())
def test_fields_of_a_recipe(tmp_path: Path, which: Path, data: st.DataObject) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(data.draw(altered(yaml.safe_load(which.read_text())))))
    _use(path)


BILLIONS = "a: &a [x, x]\n" + "".join(
    f"{key}: &{key} [{', '.join([f'*{last}'] * 9)}]\n" for last, key in itertools.pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BILLIONS, "must not have aliases (*name). Write out the value."),
        ("env: &env\n  env_kwargs: *env\n", "must not have aliases (*name). Write out the value."),
        ("env:\n  <<: &a {group: 4}\n  env_kwargs: {<<: *a}\n", "must not have aliases (*name)"),
        ("[" * 10_000, "is nested too deeply for a recipe"),
        ("env: {}\n" + "#" * 100_000, "has more than 100,000 characters, too many for a recipe"),
        ("env: {n_envs: 2001-99-99}\n", "is not YAML"),
        ("env: {n_envs: " + "9" * 5000 + "}\n", "is not YAML"),
        ("env:\n" + "".join(f"  key{number % 999}: 1\n" for number in range(1000)), "'key0' is given twice"),
    ],
)
def test_files_that_would_take_long_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        load_recipe(path)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").mkdir()
    with pytest.raises(InvalidInputError, match="is not a regular file"):
        load_recipe(tmp_path / "x.yaml")
