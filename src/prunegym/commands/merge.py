"""``merge``: one benchmark from folders that were made on several machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunegym.commands.options import JsonFlag
from prunegym.commands.output import emit


def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders of the same suite.")],
    out: Annotated[Path, typer.Option(help="The new folder.")],
    as_json: JsonFlag = False,
) -> None:
    """Copy the finished cells of several folders of one suite into a new one; a cell must not have two results."""
    from prunegym.agents.benchmark.merging import merge as merge_folders

    count = merge_folders(folders, out)
    emit({"out": str(out), "cells": count}, as_json, f"{out} has {count} finished cells.")
