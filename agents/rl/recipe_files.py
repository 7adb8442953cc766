"""Recipe files: YAML in the format of RL-Zoo, an environment id with its settings."""

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
from prunegym.validation import choice

FOLDER = Path(__file__).parents[1] / "recipes"
STAGES: dict[str, type[Any]] = {"imitation": ImitationConfig, "refine": TuneConfig, "budget": Budget}
GATE_POLICY = ("hidden", "grid", "feature_size", "kinds")
TO_ALGORITHMS = {
    "self", "policy", "env", "policy_kwargs", "seed", "device", "tensorboard_log", "n_steps", "batch_size", "verbose",
    "_init_setup_model",
}  # fmt: skip
"""Parameters of Stable-Baselines3's algorithms that a recipe cannot set, because training sets them."""
TO_ENVIRONMENTS = {"model", "dataset", "device", "features"}
"""The same for environments."""
MOST_CHARACTERS = 100_000


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys, of which YAML would silently take the last, and aliases, which can expand to billions."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            message = "A recipe must not have aliases (*name). Write out the value."
            raise yaml.composer.ComposerError(None, None, message, mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice.", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe.

    Args:
        name_or_path: The name of a recipe that comes with PruneGym, such as ``frozen``, or a YAML file.

    Raises:
        UnknownNameError: If there is no such recipe, or it has an unknown setting.
        MissingDataError: If there is no such file.
        InvalidInputError: If the file is not YAML of the right form, is too large, has a key twice or an alias, or if a
            value is out of range.

    Example:
        >>> load_recipe("digits").algo
        'ppo'
    """
    if not isinstance(name_or_path, str | Path):
        raise InvalidInputError(
            f"The recipe is a {type(name_or_path).__name__}; a name, a YAML file or a Recipe is needed."
        )
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{name_or_path}.yaml"
        if not path.exists():
            raise UnknownNameError("recipe", str(name_or_path), [file.stem for file in FOLDER.glob("*.yaml")])
    if not path.exists():
        raise MissingDataError(f"There is no recipe {path}. Check the path.")
    content = _read(path)
    if not isinstance(content, dict) or len(content) != 1 or not isinstance(next(iter(content.values())), dict):
        raise InvalidInputError(f"{path} must have one environment id at the top, and its settings below.")
    ((env, settings),) = content.items()
    return _recipe(path.stem, env, settings)


def _read(path: Path) -> Any:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
        content = None if len(text) > MOST_CHARACTERS else yaml.load(text, _Loader)  # noqa: S506  (a SafeLoader)
    # ValueError: no UTF-8, a date that does not exist, a number of thousands of digits.
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise InvalidInputError(f"{path} is not YAML: {error}") from error
    except RecursionError:
        raise InvalidInputError(f"{path} is nested too deeply for a recipe.") from None
    if len(text) > MOST_CHARACTERS:
        raise InvalidInputError(f"{path} has more than {MOST_CHARACTERS:,} characters, too many for a recipe.")
    return content


def as_recipe(recipe: Recipe | str | Path) -> Recipe:
    """Return a recipe, or read it by its name or file; see :func:`load_recipe` for the errors."""
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
    """Return the allowed names in each setting that is a mapping."""
    choice("algorithm that acts in MultiBinary spaces", algo, CLASSES)
    return {
        "env_kwargs": set(TaskArguments.__annotations__) - TO_ENVIRONMENTS,
        "gate_policy": GATE_POLICY,
        "hyperparameters": set(inspect.signature(CLASSES[algo]).parameters) - TO_ALGORITHMS,
        **{stage: {field.name for field in dataclasses.fields(config)} for stage, config in STAGES.items()},
    }


def _check_names(what: str, settings: Mapping[str, Any], allowed: Collection[str]) -> None:
    for key in settings:
        choice(what, key, allowed)


def _numbers(value: Any) -> Any:
    """Convert strings to numbers: YAML 1.1 reads ``6e-4`` and ``1e3`` as strings, because they have no dot."""
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
            f"Recipe {recipe!r}: {key} is {values}; one of its values has the wrong type."
        ) from error
