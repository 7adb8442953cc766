"""The command line: ``prunegym`` and ``python -m prunegym``. A command is imported when it runs, not before."""

from __future__ import annotations

import ast
import contextlib
import errno
import importlib
import itertools
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

import prunegym
from prunegym.commands.output import note
from prunegym.errors import InvalidInputError, PruneGymError
from prunegym.user_code import import_module

USAGE_ERROR, INTERRUPTED = 2, 130
RESUMABLE = "prunegym.resumable"
COMMANDS = {
    "list": "list_names",
    "inspect": "inspect",
    "train-cnn": "train_cnn",
    "prepare": "prepare",
    "train": "train",
    "finetune": "finetune",
    "evaluate": "evaluate",
    "compare": "compare",
    "benchmark": "benchmark",
    "validate": "validate",
    "leaderboard": "leaderboard",
    "report": "report",
    "merge": "merge",
    "tune": "tune",
    "predict": "predict",
    "export": "export",
    "quantize": "quantize",
    "latency": "latency",
    "profile": "profile",
    "demo": "demo",
}
"""Each command, and the module in ``prunegym.commands`` that has it as a function of the same name."""


class _Command(TyperCommand):
    """A command that is imported when it is called: help for all of them needs neither torch nor SB3."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Import the command, and let it read its arguments."""
        if ("--out", "") in itertools.pairwise(args) or "--out=" in args:  # a path would be the current folder
            raise InvalidInputError("--out is empty. Give a name; '.' is the current folder.")
        name = COMMANDS[str(self.name)]
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(self.name)(getattr(importlib.import_module(f"prunegym.commands.{name}"), name))
        context = typer.main.get_command(app).make_context(info_name, args, parent, **extra)
        context.find_root().meta[RESUMABLE] = "resume" in context.params
        return context


def _help(name: str) -> str:
    """Return the first line of a command's docstring, read without importing it."""
    tree = ast.parse((Path(__file__).parent / "commands" / f"{name}.py").read_text())
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    return (ast.get_docstring(function) or "").split("\n", maxsplit=1)[0]


class Group(TyperGroup):
    """Commands that answer wrong input and Ctrl-C with one line on standard error, not with a traceback."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = cast(Any, dict.fromkeys(COMMANDS))  # for "did you mean"

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """Return a command by name, not imported yet; None if there is none."""
        return _Command(cmd_name, help=_help(COMMANDS[cmd_name])) if cmd_name in COMMANDS else None

    def invoke(self, ctx: Any) -> Any:
        """Run a command; errors of PruneGym, and files that cannot be read or written, exit with 2, Ctrl-C with 130."""
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except PruneGymError as error:
                note(f"Error: {error}")
                raise typer.Exit(USAGE_ERROR) from error
            except OSError as error:
                if error.filename is None and error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EIO):
                    raise
                where = f"{error.filename}: " if error.filename else "The output cannot be written: "
                note(f"Error: {where}{error.strerror}. Choose another path.")
                if error.filename is None:
                    _drop_output()
                raise typer.Exit(USAGE_ERROR) from error
            except KeyboardInterrupt as error:
                _end_progress()
                again = shlex.join(["prunegym", *(word for word in sys.argv[1:] if word != "--resume"), "--resume"])
                how = f" Resume with: {again}" if ctx.find_root().meta.get(RESUMABLE) else ""
                typer.echo(f"Interrupted.{how}", err=True)
                raise typer.Exit(INTERRUPTED) from error


def _drop_output() -> None:
    """Empty the buffer into nothing: Python writes it once more when it ends, which fails with exit status 120."""
    with contextlib.suppress(OSError), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _end_progress() -> None:
    """Close progress bars, so that the next output starts on a new line."""
    from tqdm import tqdm

    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    note(f"{category.__name__}: {message}")


app = typer.Typer(
    name="prunegym",
    cls=Group,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Train agents that decide, for each image, which channels of a frozen CNN to run. Commands print tables, or "
    "JSON with --json. Errors go to standard error, with exit code 2.",
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"prunegym {prunegym.__version__}")
        raise typer.Exit


@app.callback()
def import_own(
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE",
            envvar="PRUNEGYM_IMPORT",
            help="Import this Python module first: one that calls prunegym.models.register_network, or that has the "
            "function of a network that a model file names as module:function.",
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Import your modules before the command runs."""
    if modules:
        os.environ["PRUNEGYM_IMPORT"] = " ".join(modules)  # for processes that a command starts
    for module in modules or ():
        if ":" in module:
            from prunegym.models.zoo.network_registry import network_constructor

            network_constructor(module)
        else:
            import_module(module, f"module {module!r}")


def main() -> None:
    """Run the command that is named by the arguments."""
    try:
        Path.cwd()
    except FileNotFoundError:  # torch cannot be loaded there
        note("Error: the current folder does not exist any more. Change to another folder.")
        sys.exit(USAGE_ERROR)
    app(prog_name="prunegym")
