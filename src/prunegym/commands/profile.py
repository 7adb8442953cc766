"""``profile``: how long each execution and each layer of a masked CNN takes on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from prunegym.commands.options import AnyModel, Data, Machine, Network, Seed, ShownPenalty, grouped
from prunegym.commands.output import Table, emit, percent

if TYPE_CHECKING:
    from torch import Tensor

    from prunegym.models.timing.profiler import Profile

BATCHES = 8


@grouped
def profile(
    data: Data,
    network: Network,
    machine: Machine,
    model: AnyModel = "digits",
    batch: Annotated[int, typer.Option(help="Images in a batch.", min=1)] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds; each times all forms in turn. At most a minute.", min=1)] = 20,
    penalty: ShownPenalty = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Also time torch.compile of the dense network.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Also time execution int8.")] = False,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Also time execution bfloat16.")] = False,
    seed: Seed = 0,
) -> None:
    """Time a CNN dense, masked and skipping, as a whole and layer by layer, and show which execution auto takes.

    A model with a policy runs test images under its own masks. Otherwise images and masks are random, and each gate
    keeps a share between 0.3 and 0.7. A network of the zoo is built for --dataset, or else for 3x32x32 images.
    """
    import torch

    from prunegym.models.catalog import open_split
    from prunegym.models.timing.latency_measurement import random_masks
    from prunegym.models.timing.profiler import profile as measure_profile

    machine.settle(data)
    stored = network.open(model, data, trained=False)
    masked, policy, info = stored.masked, stored.policy, stored.info
    generator = torch.Generator().manual_seed(seed)
    masks: list[Tensor] | None = None
    if policy is None:
        widths = [gate.width for gate in masked.gates]
        masks = [random_masks(batch, widths, generator) for _ in range(BATCHES)]
        batches = [torch.randn(batch, *info.image_shape, generator=generator) for _ in range(BATCHES)]
    else:
        test = open_split(info, data.dataset, "test")
        indices = torch.randint(len(test), (BATCHES, batch), generator=generator)
        batches = [test.batch(rows) for rows in indices]
    also = [name for name, wanted in (("int8", int8), ("bfloat16", bfloat16)) if wanted]
    found = measure_profile(
        masked, batches, masks, policy, penalty=penalty, rounds=rounds, compiled=compiled, also=also
    )
    document = {"model": model, "image_shape": list(info.image_shape), "seed": seed, **found.as_json()}
    emit(document, machine.as_json, *_forms(model, found), *([_layers(found)] if found.layers else []))


def _forms(model: str, found: Profile) -> list[Table | str]:
    rows = [[name, f"{1e3 * seconds:.3f}", f"{found.ratio(seconds):.3f}"] for name, seconds in found.times.items()]
    title = (
        f"{model}, batch {found.batch}, {found.machine['threads']} threads, masks {found.masks}: "
        f"{percent(found.kept_share)} of the channels, {percent(found.mac_share)} of the MACs"
    )
    where = f"{found.machine['processor']}, kernel {found.machine['kernel']}"
    caption = f"ratio: to the fastest dense form, {found.fastest_dense!r}. {where}"
    shown: list[Table | str] = [Table(title, ["form", "ms", "ratio"], rows, caption), f"auto: {found.reason}"]
    shown += [f"Little is skipped: {found.shortfall}"] if found.shortfall else []
    shown += [f"{name} cannot be run: {reason}" for name, reason in found.failed.items()]
    return shown


def _layers(found: Profile) -> Table:
    rows = [
        [
            row.layer, "" if row.kept is None else percent(row.kept), f"{1e6 * row.seconds:.1f}",
            "" if row.seconds_full is None else f"{1e6 * row.seconds_full:.1f}",
        ]
        for row in found.layers
    ]  # fmt: skip
    columns = ["layer", "channels kept", "us per image", "all channels"]
    caption = "The times of norms, sums and ReLUs are included in the layer before them."
    return Table(f"Layer by layer, execution {found.layers_of!r}", columns, rows, caption)
