"""Tables of README and docs are what ``results/tables.py`` writes from the JSON beside it: nothing typed in by hand."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


NAMES = [
    "frozen", "prepared",
    "cifar10-jpeg-frozen", "cifar10-jpeg-vgg11", "cifar10-jpeg-prepared", "cifar10-jpeg-prepared-five",
    "fashion-mnist-frozen", "fashion-mnist-prepared", "digits", "speed", "skipping", "skipping-intel", "skipping-avx2",
    "onnx", "int8", "dial", "ablation", "features", "learners",
]  # fmt: skip


@pytest.fixture
def load_script(monkeypatch):
    """Import a script as ``python results/NAME.py`` does, with its neighbours on the path."""
    monkeypatch.syspath_prepend(ROOT / "results")
    yield importlib.import_module
    for name in ("tables", "picture", "speed_tables", "summary_tables", "documents"):
        sys.modules.pop(name, None)


def test_the_picture_shows_what_the_documents_say(load_script) -> None:
    picture = load_script("picture")
    assert picture.PICTURE.is_file()
    (rival, *_) = picture.points((("refined", "learned-static"),))
    rows = json.loads((ROOT / "results/cifar10-jpeg/refined/test.json").read_text())["rows"]
    (row,) = [row for row in rows if row["name"] == "learned-static"]
    figures = {key: value["mean"] for key, value in row["figures"].items()}
    assert rival == (figures["total_mac_share"], figures["accuracy"], 0.0)
    seeds = picture.points((("refined", "refined"), ("not run", "refined")))
    assert len(seeds) == 1
    assert seeds[0].half_width > 0
    for track in (picture.FROZEN, picture.PREPARED):
        assert all(picture.points(method) for method in track.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_what_its_documents_say(name: str, load_script) -> None:
    script = load_script("tables")
    page = script.PAGES.get(name, script.README)
    between = page.read_text().split(f"<!-- {name} -->\n")[1].split(f"<!-- end of {name} -->")[0]
    assert between == script.tables()[name], "run `python results/tables.py`"
