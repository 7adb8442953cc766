"""What README and docs show works: Python runs, and every command line is one that the commands accept."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from prunegym.cli import app
from tests import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


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


@pytest.mark.parametrize("page", list(with_python()))
def test_python_runs(page: Path, tmp_path: Path) -> None:
    for code in blocks(page, "python"):
        ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout


def test_quick_start_is_short() -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    statements = [line for line in code.splitlines() if line and not line.startswith(("import", "from", "#"))]
    assert len(statements) <= 10


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


DIGITS = [line for line in COMMANDS if line[1] in ("train", "evaluate") and line[2] == "digits"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", DIGITS, ids=" ".join)
def test_commands_on_the_shipped_model_run(arguments: list[str], tmp_path: Path) -> None:
    """With fewer episodes, beside the example's file."""
    (tmp_path / "mine.py").write_text((ROOT / "examples/mine.py").read_text())
    line = [argument.replace("../runs", "runs") for argument in arguments[1:]]
    if "--episodes" in line:
        line[line.index("--episodes") + 1] = "256"
    if "table.json" in line:  # what the line before it in the page makes
        table = ["latency", "digits", "--rounds", "1", "--masks", "1", "--out", "table.json"]
        subprocess.run([sys.executable, "-m", "prunegym", *table], cwd=tmp_path, capture_output=True, check=True)
    ran = subprocess.run([sys.executable, "-m", "prunegym", *line], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout
