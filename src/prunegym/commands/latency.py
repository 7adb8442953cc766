"""``latency``: how much time a model takes with different masks on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunegym.commands.options import AnyModel, Data, Machine, Network, grouped
from prunegym.commands.output import Facts, Table, emit
from prunegym.errors import InvalidInputError

if TYPE_CHECKING:
    from prunegym.models.timing.latency_table import LatencyTable


@grouped
def latency(
    model: AnyModel,
    out: Annotated[Path, typer.Option("--out", help="The table, a JSON file.")],
    machine: Machine,
    data: Data,
    network: Network,
    execution: Annotated[str, typer.Option(help="torch (smaller convolutions), or kernel (compiled).")] = "torch",
    rounds: Annotated[int, typer.Option(help="Runs of each pattern of kept widths; the median is used.", min=1)] = 15,
    clock: Annotated[str, typer.Option(help="wall, or cpu: processor time, for a busy machine.")] = "wall",
) -> None:
    """Measure, image by image, how long each part of a CNN takes at a few kept widths, and check it end to end."""
    import torch

    from prunegym.models.timing.latency_measurement import measure
    from prunegym.models.timing.latency_timers import make_timer

    machine.settle(data)
    if out.suffix == ".safetensors" or out.is_dir():
        raise InvalidInputError(f"--out is {out}, which cannot be a table. Give a name that ends in .json.")
    stored = network.open(model, data, trained=False)
    masked, policy = stored.masked, stored.policy
    timer = make_timer(execution, masked, clock)
    found = measure(masked, timer, policy, clock=clock, rounds=rounds)
    found.save(out)
    widths = torch.tensor([float(width) for _, width in found.gates])
    half, none = found.seconds_of_widths(torch.stack([widths / 2, 0 * widths])).tolist()
    document = {
        "model": model, "file": str(out), "execution": found.execution, "dense_seconds": found.dense_seconds,
        "half_seconds": half, "fixed_seconds": found.fixed,
        "policy_seconds": found.policy, "mean_error": found.validation["mean_error"],
        "max_error": found.validation["max_error"], "machine": dict(found.machine),
    }  # fmt: skip
    rows = {
        "file": str(out),
        "execution": f"{found.execution}, {found.machine['threads']} threads, {found.machine['processor']}",
        "all channels": _milliseconds(found.dense_seconds),
        "half of each gate": _milliseconds(half),
        "no channel": _milliseconds(none),
        "policy": _milliseconds(found.policy),
        "error end to end": f"mean {found.validation['mean_error']:.1%}, largest {found.validation['max_error']:.1%}",
    }
    emit(document, machine.as_json, Facts(f"Latency of {model}", rows), _gate_table(found))


def _gate_table(found: LatencyTable) -> Table:
    """Return for each gate the time that is saved when all its channels, or half of them, are masked."""
    import torch

    full = torch.tensor([float(width) for _, width in found.gates])
    alone = torch.eye(len(full)) * full
    saved = found.dense_seconds - found.seconds_of_widths(full - alone)
    half = found.dense_seconds - found.seconds_of_widths(full - alone / 2)
    rows = [
        [name, str(width), _milliseconds(float(half[gate])), _milliseconds(float(saved[gate]))]
        for gate, (name, width) in enumerate(found.gates)
    ]
    return Table("Time saved by masking one gate", ["gate", "channels", "half of them", "all of them"], rows)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3f} ms"
