"""Recipe files: YAML in RL-Zoo's form, an environment id, then its settings."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from prunegym.agents.rl.lagrangian import Budget
from prunegym.agents.rl.recipe import CLASSES, Recipe
from prunegym.envs.task import TaskArguments
from prunegym.errors import InvalidInputError, MissingDataError, UnknownNameError
from prunegym.models.training.imitation import ImitationConfig
from prunegym.models.training.tuning import TuneConfig

FOLDER = Path(__file__).parents[1] / "recipes"
STAGES: dict[str, type[Any]] = {"imitation": ImitationConfig, "refine": TuneConfig, "budget": Budget}
GATE_POLICY = ("hidden", "grid", "feature_size")
TO_ALGORITHMS = {
    "self", "policy", "env", "policy_kwargs", "seed", "device", "tensorboard_log", "n_steps", "batch_size", "verbose",
    "_init_setup_model",
}  # fmt: skip
"""Parameters of Stable-Baselines3's algorithms that training gives itself, so that a recipe cannot."""
TO_ENVIRONMENTS = {"model", "dataset", "device", "features"}
"""The same of environments."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for (key, _), name in zip(node.value, keys, strict=True):
            if keys.count(name) > 1 and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} stands twice.", key.start_mark)
        return super().construct_mapping(node, deep)


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe.

    Args:
        name_or_path: A recipe that comes with PruneGym (``frozen``), or a YAML file.

    Raises:
        UnknownNameError: If there is no such recipe, or it has an unknown setting.
        MissingDataError: If there is no such file.
        InvalidInputError: If the file is not YAML of the right form, a key stands twice, or a value is out of range.

    Example:
        >>> load_recipe("digits").algo
        'ppo'
    """
    if not isinstance(name_or_path, str | Path):
        raise InvalidInputError(
            f"The recipe is a {type(name_or_path).__name__}; a name or a YAML file is needed, or a Recipe."
        )
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{name_or_path}.yaml"
        if not path.exists():
            raise UnknownNameError("recipe", str(name_or_path), [file.stem for file in FOLDER.glob("*.yaml")])
    if not path.exists():
        raise MissingDataError(f"There is no recipe {path}. Check the path.")
    try:
        content = yaml.load(path.read_text(), _Loader)  # noqa: S506  (a SafeLoader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict) or len(content) != 1 or not isinstance(next(iter(content.values())), dict):
        raise InvalidInputError(f"{path} must have one environment id at the top, and its settings below.")
    ((env, settings),) = content.items()
    return _recipe(path.stem, env, settings)


def as_recipe(recipe: Recipe | str | Path) -> Recipe:
    """Return a recipe as it is, or read it; see :func:`load_recipe` for the errors."""
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def _recipe(name: str, env: str, settings: dict[str, Any]) -> Recipe:
    fields = {field.name for field in dataclasses.fields(Recipe)} - {"name", "env"}
    _check_names(f"setting in recipe {name!r}:", settings, fields)
    values = {key: _numbers(value) for key, value in settings.items()}
    for key, names in _names_within(str(values.get("algo", "ppo"))).items():
        if key in values and not (values[key] is None and key in STAGES):  # a stage may be left out by ``null``
            if not isinstance(values[key], Mapping):
                raise InvalidInputError(f"Recipe {name!r}: {key} is {values[key]!r}; settings by name are needed.")
            _check_names(f"setting of {key} in recipe {name!r}:", values[key], names)
    for key, config in STAGES.items():
        if values.get(key) is not None:
            fixed = {"train_cnn": False} if key == "refine" else {}
            values[key] = _made(name, key, config, {**values[key], **fixed})
    return Recipe(name=name, env=env, **values)


def _names_within(algo: str) -> dict[str, Collection[str]]:
    """Return the names that are allowed within each setting that is a mapping."""
    if algo not in CLASSES:
        raise UnknownNameError("algorithm that acts in MultiBinary spaces", algo, CLASSES)
    return {
        "env_kwargs": set(TaskArguments.__annotations__) - TO_ENVIRONMENTS,
        "gate_policy": GATE_POLICY,
        "hyperparameters": set(inspect.signature(CLASSES[algo]).parameters) - TO_ALGORITHMS,
        **{stage: {field.name for field in dataclasses.fields(config)} for stage, config in STAGES.items()},
    }


def _check_names(what: str, settings: Mapping[str, Any], allowed: Collection[str]) -> None:
    for key in settings:
        if key not in allowed:
            raise UnknownNameError(what, str(key), allowed)


def _numbers(value: Any) -> Any:
    """Return settings with numbers where YAML 1.1 reads a string: ``6e-4`` and ``1e3`` have no dot."""
    if isinstance(value, Mapping):
        return {key: _numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_numbers(one) for one in value]
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if number.is_integer() else number


def _made(recipe: str, key: str, config: type[Any], values: dict[str, Any]) -> Any:
    try:
        return config(**values)
    except TypeError as error:
        raise InvalidInputError(
            f"Recipe {recipe!r}: {key} is {values}, of which a value has another type than it should."
        ) from error
