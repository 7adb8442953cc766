"""Settings by name: read from ``key=value`` or YAML, put into nested mappings, and made into configs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml

from prunegym.errors import InvalidInputError
from prunegym.validation import choice

Config = TypeVar("Config")
Change = tuple[tuple[str, ...], Any]
"""A key, cut at its dots, and its value."""
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}


ABSTRACT: dict[Any, type] = {int: Integral, float: Real}
"""What numpy's numbers are too."""


class Loader(yaml.SafeLoader):
    """Refuses duplicate keys, because YAML silently uses the last one, and aliases, which can expand to billions.

    What has a colon is text: YAML 1.1 reads ``4:7`` as a number in base 60, 247.
    """

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        """Return the tag of a node."""
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        number = kind is yaml.ScalarNode and tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        return self.DEFAULT_SCALAR_TAG if number and ":" in value else tag

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            message = "A recipe must not have aliases (*name). Write out the value."
            raise yaml.composer.ComposerError(None, None, message, mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping."""
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice.", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def numbers(value: Any) -> Any:
    """Return settings with numbers where YAML 1.1 reads a string: ``6e-4`` and ``1e3`` have no dot."""
    if isinstance(value, Mapping):
        return {key: numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [numbers(one) for one in value]
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if number.is_integer() else number


def parse(texts: Iterable[str]) -> list[Change]:
    """Read settings of the form ``key=value``; a dot in the key separates nested settings, values are YAML.

    Raises:
        InvalidInputError: If a text has another form.

    Example:
        >>> parse(["imitation.steps=100", "budget=null"])
        [(('imitation', 'steps'), 100), (('budget',), None)]
    """
    changes = []
    for text in texts:
        key, equals, value = text.partition("=")
        keys = tuple(key.strip().split("."))
        if not equals or not all(keys):
            raise InvalidInputError(f"--set {text!r} is not of the form KEY=VALUE, for example --set n_envs=64.")
        try:
            changes.append((keys, numbers(yaml.load(value, Loader))))  # noqa: S506  (a SafeLoader)
        except yaml.YAMLError as error:
            reason = str(error).replace("\n", " ")
            raise InvalidInputError(f"--set {text!r}: the value is not YAML ({reason}).") from error
    return changes


def changed(settings: Mapping[str, Any], changes: Iterable[Change]) -> dict[str, Any]:
    """Return nested settings with changes; a group that is missing or None is empty before them.

    Raises:
        InvalidInputError: If a key with a dot names a setting that is not a group.

    Example:
        >>> changed({"n_envs": 512, "imitation": {"steps": 600}}, parse(["imitation.steps=100", "budget.rate=0.2"]))
        {'n_envs': 512, 'imitation': {'steps': 100}, 'budget': {'rate': 0.2}}
    """
    made = dict(settings)
    for (first, *rest), value in changes:
        inner = made.get(first)
        if rest and not isinstance(inner, Mapping | None):
            key = ".".join([first, *rest])
            raise InvalidInputError(f"{key} cannot be set: {first} is {inner!r}, which has no settings inside.")
        made[first] = changed(inner or {}, [(tuple(rest), value)]) if rest else value
    return made


def make_config(config: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """Make a config, a dataclass whose fields may be configs too.

    Args:
        config: The class.
        values: Its fields by name; those of a config within it as a mapping.
        where: Prefix of names in messages, e.g. ``"tune."``.

    Raises:
        UnknownNameError: If there is no such field; the message suggests the nearest.
        InvalidInputError: If a value has another type than its field, or the config itself refuses it.
    """
    hints = get_type_hints(config)
    made = {}
    for key, value in values.items():
        choice(f"setting of {where[:-1]}" if where else "setting", key, hints)
        inner: Any = next((one for one in get_args(hints[key]) or (hints[key],) if dataclasses.is_dataclass(one)), None)
        if inner is not None and isinstance(value, Mapping):
            made[key] = make_config(cast(Any, inner), value, f"{where}{key}.")
        elif not _fits(value, hints[key]):
            raise InvalidInputError(f"{where}{key} is {value!r}; {_needed(hints[key])} is needed.")
        else:
            made[key] = value
    for field in dataclasses.fields(config):  # type: ignore[arg-type]  # the class is a dataclass
        if field.name not in made and field.default is field.default_factory is dataclasses.MISSING:
            raise InvalidInputError(f"{where}{field.name} is missing and has no default. Set it too.")
    return config(**made)


def check_types(config: Any) -> None:
    """Check that the fields of a config, a dataclass, have the types of their hints.

    Raises:
        InvalidInputError: If a value has another type.
    """
    for name, hint in get_type_hints(type(config)).items():
        if not _fits(getattr(config, name), hint):
            raise InvalidInputError(f"{name} is {getattr(config, name)!r}; {_needed(hint)} is needed.")


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Sequence, tuple, list):
        fine = isinstance(value, Sequence) and not isinstance(value, str)
        return fine and all(_fits(one, get_args(hint)[0]) for one in value)
    if get_origin(hint) is dict:
        return isinstance(value, Mapping)
    if get_args(hint):
        return any(_fits(value, one) for one in get_args(hint))
    if isinstance(value, bool):  # a bool is an int for Python, but not for a reader
        return hint in (bool, Any)
    return hint is Any or isinstance(value, ABSTRACT.get(hint, hint))


def _needed(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (Sequence, tuple, list):
        return {str: "a list of names", Any: "a list"}.get(get_args(hint)[0], "a list of numbers")
    if get_args(hint):
        return ", or ".join(map(_needed, get_args(hint)))
    return WORDS.get(hint, "a group of settings")
