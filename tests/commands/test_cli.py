"""The command line as a whole: version, completion, interruption, terminals, ``--set``."""

from __future__ import annotations

import importlib.metadata
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

import prunegym
from prunegym.models.skipping.skipping_cnn import EXECUTIONS
from tests.commands.command_line import fail, run, succeed

COMPLETE = """
import atexit, sys
atexit.register(lambda: print("torch" in sys.modules or "stable_baselines3" in sys.modules))
from prunegym.cli import main
main()
"""


def test_the_version_is_that_of_the_installed_package() -> None:
    assert prunegym.__version__ == importlib.metadata.version("prunegym")
    assert succeed("--version").stdout == f"prunegym {prunegym.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("prunegym fin", ["finetune"]),
        ("prunegym train --re", ["--resume", "--resize", "--recipe", "--reward"]),
        ("prunegym compare a b --target", ["--target-macs"]),
        ("prunegym evaluate digits --exec", ["--execution"]),
        ("prunegym prepare --s", ["--sparsity", "--static", "--set", "--seed"]),
        ("prunegym demo --q", ["--quiet"]),
    ],
)
def test_completion_loads_no_torch(typed: str, found: list[str]) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), "_PRUNEGYM_COMPLETE": "complete_bash"}
    ran = subprocess.run([sys.executable, "-c", COMPLETE], env={**os.environ, **words}, capture_output=True, text=True)
    assert ran.stdout.split() == [*found, "False"], ran.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_works_in_bash(tmp_path: Path) -> None:
    command = tmp_path / "prunegym"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m prunegym "$@"\n')
    command.chmod(0o755)
    script = """
eval "$(_PRUNEGYM_COMPLETE=source_bash prunegym)"
COMP_WORDS=(prunegym train --see) COMP_CWORD=2
_prunegym_completion prunegym
echo "${COMPREPLY[@]}"
"""
    path = f"{tmp_path}:{os.environ['PATH']}"
    ran = subprocess.run(["bash", "-c", script], env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert ran.stdout == "--seed\n", ran.stderr


def test_near_commands_and_options_are_suggested() -> None:
    assert "Did you mean 'train'" in run("trai").stderr
    assert "--episodes" in run("train", "digits", "--episods", "3").stderr


def test_help_names_every_execution() -> None:
    shown = succeed("predict", "-h").stdout
    assert all(name in shown for name in EXECUTIONS)


@pytest.mark.slow
def test_an_interrupted_training_says_how_to_resume(tmp_path: Path) -> None:
    # More episodes than can end before the signal comes.
    command = [
        "train",
        "digits",
        "--recipe",
        "digits",
        "--episodes",
        "9999872",
        "--quiet",
        "--out",
        str(tmp_path / "a run"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "prunegym", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not (tmp_path / "a run/monitor.json").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate()
    assert process.returncode == 130
    assert printed == ""
    assert said == (
        "Interrupted. Resume with: prunegym train digits --recipe digits --episodes 9999872 --quiet "
        f"--out '{tmp_path}/a run' --resume\n"
    )


def in_a_terminal(*arguments: object, **environment: str) -> str:
    """Return what a command writes to a terminal of 80 columns."""
    program, terminal = pty.fork()
    if program == 0:
        termios.tcsetwinsize(1, (40, 80))
        settings = {**os.environ, "TERM": "xterm-256color", **environment}
        os.execve(sys.executable, [sys.executable, "-m", "prunegym", *map(str, arguments)], settings)
    written = b""
    while True:
        try:
            read = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not read:
            break
        written += read
    os.waitpid(program, 0)
    return written.decode()


@pytest.mark.slow
def test_a_terminal_of_80_columns_without_colour(made: Path, tmp_path: Path) -> None:
    model = tmp_path / ("a-long-name-" * 6) / "model.safetensors"
    model.parent.mkdir()
    shutil.copy(made / "agent/model.safetensors", model)
    shown = in_a_terminal("evaluate", model, "--images", 100, "--baselines", NO_COLOR="1")
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "\x1b[1mdigits/test" in in_a_terminal("evaluate", model, "--images", 100)


@pytest.mark.slow
def test_a_quiet_comparison_says_nothing_before_its_table(made: Path, tmp_path: Path) -> None:
    command = ["compare", "digits", "--model", made / "prepared/prepared.safetensors", "--episodes", 64, "--seeds", 1]
    command += ["--set", "n_envs=32", "--images", 100, "--out"]
    shown = in_a_terminal(*command, tmp_path / "table")
    assert re.search(r"\d+%\|", shown)  # the bar
    assert "seed 0: accuracy" in shown
    quiet = in_a_terminal(*command, tmp_path / "quiet", "--quiet", NO_COLOR="1")
    assert quiet.startswith("digits/test, 1 seed")


def test_mistakes_in_settings_are_found_before_anything_is_trained(made: Path, tmp_path: Path) -> None:
    cnn, out = made / "cnn/cnn.safetensors", tmp_path / "out"
    train = ["train", cnn, "--out", out, "--set"]
    assert "Did you mean 'n_envs'?" in fail(*train, "n_env=32")
    assert "Did you mean 'steps'?" in fail(*train, "imitation.step=32")
    assert "n_envs is 'many'; a whole number" in fail(*train, "n_envs=many")
    assert "imitation.steps is 1.5; a whole number is needed" in fail(*train, "imitation.steps=1.5")
    assert "is not of the form KEY=VALUE" in fail(*train, "n_envs")
    prepare = ["prepare", cnn, "--out", out]
    assert "Did you mean 'hidden'?" in fail(*prepare, "--set", "hiden=8")
    assert "leaves out the stage imitation" in fail(*prepare, "--static", "--set", "imitation.steps=3")
    assert "Did you mean 'batch_size'?" in fail("train-cnn", "simple-cnn", "--set", "batch=8", "--out", out)
    model = made / "prepared/prepared.safetensors"
    assert "tune 'epoch'. Did you mean" in fail("finetune", model, "--set", "tune.epoch=8", "--out", out)
    assert not out.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_the_output(unbuffered: str) -> None:
    command = [sys.executable, "-m", "prunegym", "list", "--json"]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert ran.returncode == 2
    assert ran.stderr == "Error: The output cannot be written: No space left on device. Choose another path.\n"


def test_a_folder_that_was_deleted(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.mkdir(sys.argv[1]); os.chdir(sys.argv[1]); os.rmdir(sys.argv[1]); import prunegym.cli as c"
    )
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}; c.main()", tmp_path / "gone"], stderr=subprocess.PIPE, text=True
    )
    assert ran.returncode == 2
    assert ran.stderr == "Error: the current folder does not exist any more. Change to another folder.\n"


def test_a_terminal_of_one_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1")
    assert "digits" in succeed("list").stdout


def test_a_module_that_ends_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ending.py").write_text("raise SystemExit(0)")
    monkeypatch.chdir(tmp_path)
    assert "'ending' cannot be imported: SystemExit: 0" in fail("--import", "ending", "list")


def test_an_empty_folder_is_not_the_current_one() -> None:
    assert "--out is empty" in fail("train-cnn", "resnet20", "--out", "")
    assert "--out is empty" in fail("quantize", "digits", "--out=")
