"""The command line: ``prunegym`` and ``python -m prunegym``."""

from __future__ import annotations

import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from prunegym.commands import (
    compare,
    demo,
    evaluate,
    export,
    finetune,
    inspect,
    latency,
    list_names,
    predict,
    prepare,
    profile,
    quantize,
    train,
    train_cnn,
)  # fmt: skip
from prunegym.errors import PruneGymError
from prunegym.user_code import import_module

USAGE_ERROR = 2


class Group(TyperGroup):
    """Commands whose mistakes of input end in one line on standard error, not in a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; errors of PruneGym, and files that cannot be read or written, exit with 2."""
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except PruneGymError as error:
                typer.echo(f"Error: {error}", err=True)
                raise typer.Exit(USAGE_ERROR) from error
            except OSError as error:
                if error.filename is None:
                    raise
                typer.echo(f"Error: {error.filename}: {error.strerror}. Give another place.", err=True)
                raise typer.Exit(USAGE_ERROR) from error


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    typer.echo(f"{category.__name__}: {message}", err=True)


app = typer.Typer(
    name="prunegym",
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Agents learn, image by image, which channels of a frozen CNN to run. Each command prints tables, or one JSON "
    "document with --json; errors go to standard error, with exit code 2.",
)


@app.callback()
def import_own(
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE",
            envvar="PRUNEGYM_IMPORT",
            help="A module of yours, imported first: one that calls prunegym.models.register_network.",
        ),
    ] = None,
) -> None:
    """Import modules of the user's, whatever the command."""
    for module in modules or ():
        import_module(module, f"module {module!r}")


app.command("list")(list_names.list_names)
app.command("inspect")(inspect.inspect)
app.command("train-cnn")(train_cnn.train_cnn)
app.command("prepare")(prepare.prepare)
app.command("train")(train.train)
app.command("finetune")(finetune.finetune)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("quantize")(quantize.quantize)
app.command("latency")(latency.latency)
app.command("profile")(profile.profile)
app.command("demo")(demo.demo)


def main() -> None:
    """Run the command that the arguments name."""
    app(prog_name="prunegym")
