"""Write the tables of settings in the docs: ``python results/settings.py``.

Names and defaults come from the code, what each is for from ``settings.yaml``. A test checks that none is missing.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import yaml

from prunegym import Recipe, make_task
from prunegym.agents import Budget
from prunegym.models import ImitationConfig, PrepareConfig, TrainConfig, TuneConfig

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
CONFIGS: dict[str, Any] = {
    "Recipe": Recipe,
    "ImitationConfig": ImitationConfig,
    "TuneConfig": TuneConfig,
    "Budget": Budget,
    "PrepareConfig": PrepareConfig,
    "TrainConfig": TrainConfig,
}
PAGES = {
    **dict.fromkeys(CONFIGS, "docs/recipes.md"),
    "environment": "docs/environments.md",
}


def main() -> None:
    """Replace the text between the markers of each table."""
    for name, path in PAGES.items():
        page = ROOT / path
        before, rest = page.read_text().split(f"<!-- settings of {name} -->\n")
        _, after = rest.split(f"<!-- {name}: end -->")
        page.write_text(f"{before}<!-- settings of {name} -->\n{table(name)}<!-- {name}: end -->{after}")


def purposes(name: str) -> dict[str, str]:
    """Return what each setting of a group is for, by its name."""
    found: dict[str, str] = yaml.safe_load((FOLDER / "settings.yaml").read_text())[name]
    return found


def defaults(name: str) -> dict[str, str]:
    """Return each setting of a group with its default, as Markdown."""
    if name == "environment":
        parameters = inspect.signature(make_task).parameters.values()
        return {one.name: shown(one.default) for one in parameters if one.name != "layerwise"}
    fields = dataclasses.fields(CONFIGS[name])
    return {field.name: _default(field) for field in fields if field.name not in ("name", "env")}


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return shown(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return shown(field.default_factory())
    return "needed"


def shown(value: Any) -> str:
    """Return a default as YAML has it."""
    if value is None or value in ({}, ()):
        return "none"
    if dataclasses.is_dataclass(value):
        return f"`{type(value).__name__}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def table(name: str) -> str:
    """Return the table of a group in Markdown."""
    words = purposes(name)
    rows = [f"| `{key}` | {default} | {' '.join(words[key].split())} |\n" for key, default in defaults(name).items()]
    return "".join(["| setting | default | what it does, and when to change it |\n| --- | --- | --- |\n", *rows])


def written(name: str) -> str:
    """Return the table in its page."""
    (found,) = re.findall(
        rf"<!-- settings of {name} -->\n(.*?)<!-- {name}: end -->", (ROOT / PAGES[name]).read_text(), re.DOTALL
    )
    return str(found)


if __name__ == "__main__":
    main()
