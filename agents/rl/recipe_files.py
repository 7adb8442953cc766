"""Recipe files: YAML in the format of RL-Zoo, with an environment id and its settings."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from prunegym.agents.rl.lagrangian import Budget
from prunegym.agents.rl.recipe import CLASSES, Recipe
from prunegym.envs.rewards.reward import REWARDS, NamedReward
from prunegym.envs.task import TaskArguments
from prunegym.errors import InvalidInputError, MissingDataError, UnknownNameError
from prunegym.models.data.files.bounded_files import check_regular
from prunegym.models.training.preparation import ImitationConfig
from prunegym.models.training.tuning import TuneConfig
from prunegym.settings import Change, Loader, changed, make_config, numbers
from prunegym.validation import choice

FOLDER = Path(__file__).parents[1] / "recipes"
STAGES: dict[str, type[Any]] = {"imitation": ImitationConfig, "refine": TuneConfig, "budget": Budget}
GATE_POLICY = ("hidden", "grid", "feature_size", "kinds")
TO_ALGORITHMS = {
    "self", "policy", "env", "policy_kwargs", "seed", "device", "tensorboard_log", "n_steps", "batch_size", "verbose",
    "_init_setup_model", "use_sde", "sde_sample_freq", "rollout_buffer_class", "rollout_buffer_kwargs",
    "stats_window_size",
}  # fmt: skip
"""Parameters of Stable-Baselines3's algorithms that a recipe cannot set: training sets them, or they have no effect."""
TO_ENVIRONMENTS = {"model", "dataset", "split", "device", "features"}
"""The same for environments."""
MOST_CHARACTERS = 100_000


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe; see :func:`read_recipe` and :func:`make_recipe` for the errors.

    Args:
        name_or_path: A recipe that comes with PruneGym (``frozen``), or a YAML file.

    Example:
        >>> load_recipe("digits").algo
        'ppo'
    """
    return make_recipe(*read_recipe(name_or_path))


def read_recipe(name_or_path: str | Path) -> tuple[str, str, dict[str, Any]]:
    """Read a recipe's name, environment id and settings, not checked yet.

    Args:
        name_or_path: The name of a recipe that comes with PruneGym, such as ``frozen``, or a YAML file.

    Raises:
        UnknownNameError: If there is no such recipe.
        MissingDataError: If there is no such file.
        InvalidInputError: If the file is not YAML of the right form, is too large, or has a key twice or an alias.
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
    check_regular(path, "recipe")
    content = read_yaml(path)
    if not isinstance(content, dict) or len(content) != 1 or not isinstance(next(iter(content.values())), dict):
        raise InvalidInputError(f"{path} must have one environment id at the top, and its settings below.")
    ((env, settings),) = content.items()
    return path.stem, env, numbers(settings)


def read_yaml(path: Path) -> Any:
    """Read a YAML file, without aliases and duplicate keys; raises as :func:`read_recipe`."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
        if len(text) <= MOST_CHARACTERS:
            return yaml.load(text, Loader)  # noqa: S506  (a SafeLoader)
    # ValueError: not UTF-8, a date that does not exist, a number with thousands of digits.
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise InvalidInputError(f"{path} is not YAML: {error}") from error
    except RecursionError:
        raise InvalidInputError(f"{path} is nested too deeply for a recipe.") from None
    raise InvalidInputError(f"{path} has more than {MOST_CHARACTERS:,} characters, too many for a recipe.")


def as_recipe(recipe: Recipe | str | Path) -> Recipe:
    """Return a recipe, or read it by its name or file; see :func:`load_recipe` for the errors."""
    if not isinstance(recipe, Recipe):
        return load_recipe(recipe)
    names = _names_within(recipe.algo)
    for key in ("env_kwargs", "gate_policy", "hyperparameters"):
        _check_names(f"setting of {key} in recipe {recipe.name!r}:", getattr(recipe, key), names[key])
    return recipe


def adjusted_recipe(
    name_or_path: str | Path,
    *,
    env: str | None = None,
    episodes: int | None = None,
    reward: object = None,
    accuracy: str | None = None,
    penalty: float | None = None,
    target_macs: float | None = None,
    settings: Iterable[Change] = (),
) -> Recipe:
    """Read a recipe and change it; see :func:`read_recipe` and :func:`make_recipe` for the errors.

    Args:
        name_or_path: See :func:`read_recipe`.
        env: Another environment id.
        episodes: Another number of episodes.
        reward: Another reward, by name or as a function. What belongs to the recipe's own reward only is left out.
        accuracy: Another accuracy term.
        penalty: Another lambda.
        target_macs: A budget, instead of the recipe's MAC target or its budget.
        settings: Any other settings; they come last.
    """
    stem, own_env, own = read_recipe(name_or_path)
    options = {"n_episodes": episodes, "env_kwargs.reward": reward, "env_kwargs.accuracy": accuracy}
    options["env_kwargs.penalty"] = penalty
    changes: list[Change] = [(tuple(key.split(".")), value) for key, value in options.items() if value is not None]
    if target_macs is not None:
        changes += [(("budget", "target_macs"), target_macs), (("target_macs",), None)]
        if (own.get("imitation") or {}).get("mac_share") is not None:
            # What the teacher spends is part of the budget: gates that imitated another share would start off it.
            changes.append((("imitation", "mac_share"), target_macs))
        if own.get("refine") is not None:
            changes.append((("refine", "target_macs"), target_macs))
    changes += settings
    made = changed(own, changes)
    before, now = ((one.get("env_kwargs") or {}).get("reward", "l0") for one in (own, made))
    given = {key[-1] for key, _ in changes if key[0] == "env_kwargs"}
    dropped, named = set(), REWARDS.get(now, NamedReward()) if isinstance(now, str) else NamedReward()
    if now != before and (callable(now) or ":" in str(now) or named.whole):
        dropped.add("accuracy")  # the function returns the whole reward
    if now != before and named.unit:
        # The recipe's lambda is the price of all MACs; as the price of one channel it would be far too high.
        dropped.add("penalty")
    if dropped - given:
        made["env_kwargs"] = {key: value for key, value in made["env_kwargs"].items() if key not in dropped - given}
    return make_recipe(stem, own_env if env is None else env, made)


def make_recipe(name: str, env: str, settings: Mapping[str, Any]) -> Recipe:
    """Make a recipe from its settings, as a file has them.

    Raises:
        UnknownNameError: If a setting is unknown; the message suggests the nearest.
        InvalidInputError: If a value has another type than it should, or is out of range.
    """
    values = dict(settings)
    fields = {field.name for field in dataclasses.fields(Recipe)} - {"name", "env"}
    _check_names(f"setting in recipe {name!r}:", values, fields)
    for key, names in _names_within(str(values.get("algo", "ppo"))).items():
        if key in values and not (values[key] is None and key in STAGES):  # a stage may be left out by ``null``
            if not isinstance(values[key], Mapping):
                raise InvalidInputError(f"Recipe {name!r}: {key} is {values[key]!r}; a mapping of settings is needed.")
            _check_names(f"setting of {key} in recipe {name!r}:", values[key], names)
    for key, config in STAGES.items():
        if values.get(key) is not None:
            fixed = {"train_cnn": False} if key == "refine" else {}
            values[key] = make_config(config, {**values[key], **fixed}, f"Recipe {name!r}: {key}.")
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
