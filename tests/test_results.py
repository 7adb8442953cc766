"""The README's tables are what ``results/tables.py`` writes from the JSON beside it: no figure is typed in by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


NAMES = [
    "cifar10-jpeg-frozen", "cifar10-jpeg-prepared", "cifar10-jpeg-seeds", "fashion-mnist-frozen",
    "fashion-mnist-prepared", "digits", "speed", "skipping",
]  # fmt: skip
PAGES = {"skipping": "docs/skipping.md"}


def load_tables():
    specification = importlib.util.spec_from_file_location("tables", ROOT / "results" / "tables.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return {**module.tables(), "skipping": module.skipped()}


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_what_its_documents_say(name: str) -> None:
    page = PAGES.get(name, "README.md")
    between = (ROOT / page).read_text().split(f"<!-- {name} -->\n")[1].split(f"<!-- end of {name} -->")[0]
    assert between == load_tables()[name], "run `python results/tables.py`"
