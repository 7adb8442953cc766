"""What README and docs show works: Python runs, and every command line is one that the commands accept."""

from __future__ import annotations

import io
import itertools
import re
import shlex
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
import typer.main

from prunegym import load_recipe
from prunegym.cli import app
from tests import ROOT
from tests.test_results import load_script

SETTINGS = load_script("settings")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
NOT_EVERYDAY = re.compile(
    r"\b(?:rivals?|anew|afresh|dear|beside|stands?|tells?|tracks?|one's own|of yours|by heart|seldom|mend(?:s|ed)?"
    r"|lacks?|for good|under way|at hand|go(?:es)? on|went on|of (?:its|their|your) own(?!\s+\w)"
    r"|(?:one|number|numbers|class|row|bit|bits|scale|labels?) an? (?:image|channel|class|gate|pixel|position|epoch)"
    r"|(?<!there )(?:is|are) no (?:name|numbers?|images?|array|tensor|slice|whole|plain|regular|entry|agent|device)"
    r"|once an? (?:image|epoch|task)|behind (?:an? |the |its |their )?(?:norm|gate|map|activation)s?)\b",
    re.IGNORECASE,
)
"""Old words, figures of speech, and "a" for "per". Words in backticks, as names in code, are not read."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHER_PAGES = [ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("prunegym ")]


COMMANDS = [line for page in PAGES for line in commands(page)]


def with_python():
    """Pages that show Python; those of docs/ take over a minute in all, so `make test` runs the README's alone."""
    for page in PAGES:
        if blocks(page, "python"):
            yield pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.parent.name == "docs" else [])


def printed(code: str) -> list[str]:
    """The comments at the end of a block: what it prints."""
    lines = code.splitlines()
    return [line.removeprefix("# ") for line in itertools.takewhile(lambda line: line.startswith("# "), lines[::-1])][
        ::-1
    ]


@pytest.mark.slow
@pytest.mark.parametrize("page", list(with_python()))
def test_python_runs(page: Path, tmp_path: Path) -> None:
    """And prints what the comments at its end say; numbers differ a little between machines."""
    for code in blocks(page, "python"):
        ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout
        for line, said in zip(ran.stdout.splitlines(), printed(code), strict=False):
            assert NUMBER.sub("#", line) == NUMBER.sub("#", said)
            assert [float(one) for one in NUMBER.findall(line)] == pytest.approx(
                [float(one) for one in NUMBER.findall(said)], abs=0.05
            )


def test_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    lines = text.splitlines()
    assert len(lines) <= 120
    assert len(text.split()) <= 1200
    assert all(len(line) <= 130 for line in lines if not line.startswith("|"))
    loop, agent = blocks(ROOT / "README.md", "python")
    assert len(loop.replace("\n\n", "\n").splitlines()) <= 10
    assert printed(agent)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_short(page: Path) -> None:
    assert sum(not line.startswith("|") for line in page.read_text().splitlines()) <= 200


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES], ids=lambda page: page.name)
def test_words_are_everyday_ones(page: Path) -> None:
    prose = re.sub(r"^```.*?^```|`[^`]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert NOT_EVERYDAY.findall(prose) == []


@pytest.mark.parametrize("folder", ["models", "envs", "agents", "src/prunegym/commands", "src/prunegym", "examples"])
def test_words_in_code_are_everyday_ones(folder: str) -> None:
    """In docstrings, comments, help texts and messages; single words in quotes are keys."""
    files = (ROOT / folder).glob("*.py") if folder == "src/prunegym" else (ROOT / folder).rglob("*.py")
    found = {}
    for file in files:
        for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
            text = re.sub(r"`[^`]*`", "", token.string)
            if token.type in (tokenize.COMMENT, tokenize.STRING) and " " in text and NOT_EVERYDAY.search(text):
                found[f"{file.relative_to(ROOT)}:{token.start[0]}"] = NOT_EVERYDAY.findall(text)
    assert found == {}


def test_words_in_the_kernel_are_everyday_ones() -> None:
    files = sorted((ROOT / "models/kernel/csrc").rglob("*.[ch]*"))
    comments = {file.name: " ".join(re.findall(r"//(.*)", file.read_text())) for file in files}
    assert sum(map(len, comments.values())) > 10_000
    found = {name: NOT_EVERYDAY.findall(re.sub(r"`[^`]*`", "", text)) for name, text in comments.items()}
    assert not any(found.values()), found


def test_recipes_in_the_docs_load(tmp_path: Path) -> None:
    (block,) = blocks(ROOT / "docs/recipes.md", "yaml")
    (tmp_path / "mine.yaml").write_text(block)
    assert load_recipe(tmp_path / "mine.yaml").group == 8


@pytest.mark.parametrize("name", SETTINGS.PAGES)
def test_tables_of_settings_are_complete(name: str) -> None:
    assert SETTINGS.purposes(name).keys() == SETTINGS.defaults(name).keys(), "describe it in results/settings.yaml"
    assert SETTINGS.written(name) == SETTINGS.table(name), "run `python results/settings.py`"


def test_other_commands_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        for block in blocks(page, "bash"):
            assert set(re.findall(r"^make (\w\S*)", block, flags=re.MULTILINE)) <= targets
            for script in re.findall(r"^python (\S+\.py)", block, flags=re.MULTILINE):
                assert (ROOT / script).is_file()


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_command_lines_are_accepted(arguments: list[str]) -> None:
    name, *options = arguments[1:]
    typer.main.get_command(app).get_command(None, name).make_context(name, options)


def test_all_steps_are_shown() -> None:
    shown = {arguments[1] for arguments in COMMANDS}
    assert shown >= {"train-cnn", "inspect", "prepare", "train", "evaluate", "predict", "finetune", "compare", "list"}


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
