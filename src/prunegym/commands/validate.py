"""``validate``: whether results are what their saved agents give."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunegym.commands import options as opt
from prunegym.commands.output import Table, emit

if TYPE_CHECKING:
    from prunegym.agents.benchmark.validation.validating import Validation


@opt.grouped
def validate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or of whole benchmarks.")],
    machine: opt.AnyMachine,
    data_root: opt.DataRoot = None,
    trust_code: opt.TrustCode = False,
) -> None:
    """Evaluate the saved agents of runs again and compare with what the runs claim. RUN/validation.json if it holds.

    On the same machine and torch all must be equal. Elsewhere 0.5 % of the images
    may have another mask, and as many another answer; MACs may differ by 0.002.
    """
    from prunegym.agents.benchmark.records import RESULTS
    from prunegym.agents.benchmark.validation.validating import validate_all
    from prunegym.errors import MissingDataError

    machine.settle(opt.Data(data_root=data_root))
    for run in runs:
        if not run.is_dir():
            raise MissingDataError(f"There is no folder {run}. Give the --out of a benchmark, or the folder of a run.")
    folders = dict.fromkeys(file.parent for run in runs for file in sorted(run.rglob(RESULTS)))
    if not folders:
        raise MissingDataError(f"There are no results in {', '.join(map(str, runs))}. Give the --out of a benchmark.")
    found = validate_all(folders, trust_code=trust_code, device=machine.device)
    rows = [[one.file, "valid" if one.valid else "NOT VALID", _masks(one), "; ".join(one.problems)] for one in found]
    wrong = sum(not one.valid for one in found)
    document = {"valid": not wrong, "results": [dataclasses.asdict(one) for one in found]}
    table = Table("Evaluated again", ["result", "", "masks", "what differs"], rows)
    emit(document, machine.as_json, table, f"{len(found) - wrong} of {len(found)} results are valid.")
    if wrong:
        raise typer.Exit(1)


def _masks(one: Validation) -> str:
    if one.other_masks is None:
        return "not opened"
    return "exact" if one.exact else "within bounds"
