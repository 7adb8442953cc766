"""One folder from several, in which parts of a suite ran on several machines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunegym.agents.benchmark.records import RESULTS, Record, grouped, read_record
from prunegym.errors import InvalidInputError, MissingDataError
from prunegym.models.data.files.bounded_files import read_json
from prunegym.models.storage.run_folder import begin_run, finish_run
from prunegym.models.storage.weights import save_text
from prunegym.validation import typed

SUITE = "suite.json"


@typed
def merge(folders: Sequence[Path | str], out: Path | str) -> int:
    """Copy the finished cells of several folders of one suite into another folder, where the suite can continue.

    Args:
        folders: Folders of ``prunegym benchmark``, with the same suite. Their seeds may differ.
        out: The new folder.

    Returns:
        Number of cells.

    Raises:
        MissingDataError: If a folder is no benchmark.
        InvalidInputError: If ``out`` has a run already, if the suites differ, if a cell is in two folders with
            other results, or if cells of a task are of another model, other images or another reward.
    """
    out, roots = Path(out), [Path(folder) for folder in folders]
    if out.exists() and any(out.iterdir()):
        raise InvalidInputError(f"{out} is not empty. Give a new folder as --out.")
    suites = [_suite(root) for root in roots]
    first = suites[0]
    for root, suite in zip(roots, suites, strict=True):
        other = sorted(key for key in {*first, *suite} - {"seeds"} if first.get(key) != suite.get(key))
        if other:
            raise InvalidInputError(f"{roots[0]} and {root} have suites with other {', '.join(other)}. Give one suite.")
    cells: dict[Path, Record] = {}
    for root in roots:
        for file in sorted(root.rglob(RESULTS)):
            record, place = read_record(file), file.relative_to(root)
            known = cells.setdefault(place, record)
            if known.configuration != record.configuration or known.content != record.content:
                raise InvalidInputError(
                    f"{known.file} and {file} are of the same cell, with other results. Remove one of the two runs."
                )
    grouped(cells.values())  # all that will be in one table must have the same model, images and reward
    begin_run(out, {"suite": _name(roots[0])}, resume=False)
    for place, record in cells.items():
        shutil.copytree(record.folder, out / place.parent, dirs_exist_ok=True)
    seeds = sorted({seed for suite in suites for seed in suite["seeds"]})
    save_text(out / SUITE, json.dumps({**first, "seeds": seeds}, indent=1) + "\n")
    finish_run(out, 0.0, {"merged": [str(root) for root in roots]})
    return len(cells)


def _suite(root: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_json(root / SUITE, "suite")
        _ = found["seeds"], found["tasks"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MissingDataError(
            f"{root} is no folder of prunegym benchmark: it has no {SUITE} that can be read."
        ) from error
    return found


def _name(root: Path) -> str:
    try:
        return str(read_json(root / "run.json", "record of a run")["settings"]["suite"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MissingDataError(f"{root} is no folder of prunegym benchmark: it has no run.json.") from error
