"""``validate``: whether results are what their saved agents give."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from prunegym.commands import options as opt
from prunegym.commands.output import Table, emit


@opt.grouped
def validate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or of whole benchmarks.")],
    machine: opt.AnyMachine,
    data_root: opt.DataRoot = None,
    trust_code: opt.TrustCode = False,
) -> None:
    """Evaluate the saved agents of runs again and compare with what the runs claim. RUN/validation.json if it holds.

    On the same machine and torch all masks must be equal. Elsewhere 0.5 % of the
    images may have another mask, accuracy may differ by as many, MACs by 0.002.
    """
    from prunegym.agents.benchmark.records import RESULTS
    from prunegym.agents.benchmark.validation import validate as validate_run
    from prunegym.errors import MissingDataError

    machine.settle(opt.Data(data_root=data_root))
    folders = dict.fromkeys(file.parent for run in runs for file in sorted(run.rglob(RESULTS)))
    if not folders:
        raise MissingDataError(f"There are no results in {', '.join(map(str, runs))}. Give the --out of a benchmark.")
    found = [one for folder in folders for one in validate_run(folder, trust_code=trust_code, device=machine.device)]
    words = {True: "valid", False: "NOT VALID"}, {True: "exact", False: "within bounds"}
    rows = [[one.file, words[0][one.valid], words[1][one.exact], "; ".join(one.problems)] for one in found]
    wrong = sum(not one.valid for one in found)
    document = {"valid": not wrong, "results": [dataclasses.asdict(one) for one in found]}
    table = Table("Evaluated again", ["result", "", "masks", "what differs"], rows)
    emit(document, machine.as_json, table, f"{len(found) - wrong} of {len(found)} results are valid.")
    if wrong:
        raise typer.Exit(1)
