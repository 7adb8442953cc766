"""Recipes with random damage: each is refused with a reason, or one that training can take."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, strategies as st

from prunegym.agents.rl.recipe_files import FOLDER, load_recipe
from prunegym.agents.rl.trainer import try_recipe
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
