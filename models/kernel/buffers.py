"""Values between layers, and the buffers that they share."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from prunegym.models.kernel.shared_library import FLOATS, KINDS, PAIRS, BufferRecord

_CONV, _ADD, _LOOK, _SCALE = (KINDS.index(kind) for kind in ("conv", "add", "look", "scale"))


@dataclasses.dataclass(frozen=True)
class Value:
    """The output of a layer: a map (channels, height, width), or a vector (channels).

    Attributes:
        index: Number within its builder.
        channels: Number of all channels, kept or not.
        height: Pixels; 1 for a vector.
        width: Pixels; 1 for a vector.
        stride: Floats from a row to the next in memory; 0 for a vector.
        gate: The gate, or the space of :meth:`PlanBuilder.space`, that says which channels are kept; None if all are.
        scale: Of bytes; 1 of bfloat16.
        zero: Of bytes: the one that means 0; else :data:`FLOATS` or :data:`PAIRS`.
    """

    index: int
    channels: int
    height: int
    width: int
    stride: int
    gate: int | None = None
    scale: float = 0.0
    zero: int = FLOATS

    @property
    def is_bytes(self) -> bool:
        """Whether its numbers are bytes; then they mean ``scale * (byte - zero)``."""
        return self.zero >= 0

    @property
    def is_packed(self) -> bool:
        """Whether its numbers are bytes or bfloat16."""
        return self.zero != FLOATS

    @property
    def stored(self) -> int:
        """Numbers of 32 bits that a pixel takes in memory: four channels of bytes are one, or two of bfloat16."""
        return -(-self.channels // {FLOATS: 1, PAIRS: 2}.get(self.zero, 4))


def assign_buffers(
    values: Sequence[Value], layers: Sequence[Mapping[str, Any]]
) -> tuple[list[BufferRecord], list[int]]:
    """Give each value a buffer.

    A buffer keeps its frame of zeros, so all of its values have the same height, width and row stride. A sum may
    overwrite one of its operands, if that is not needed afterwards. Values that are needed after a stop get separate
    buffers, one for each image; for the others all images can share memory.

    Args:
        values: All values.
        layers: The layers in order, with the indices ``input``, ``second``, ``biases`` and ``output`` of values, or -1.

    Returns:
        The buffers, and for each value the index of its buffer; -1 if no layer makes it.
    """
    reads = ("input", "second", "biases")
    uses = (*reads, "output")
    last_use = {layer[name]: position for position, layer in enumerate(layers) for name in uses}
    stops = [position for position, layer in enumerate(layers) if layer["kind"] == _LOOK]
    made = {layer["output"]: position for position, layer in reversed(list(enumerate(layers)))}
    keys = [
        (
            value.height,
            value.width,
            value.stride,
            value.zero,
            any(made[index] < stop < last_use[index] for stop in stops),
        )
        for index, value in enumerate(values)
    ]
    buffers: list[BufferRecord] = []
    places = [-1] * len(values)
    free: dict[tuple[int, int, int, int, bool], list[int]] = defaultdict(list)
    for position, layer in enumerate(layers):
        output = layer["output"]
        ending = {layer[name] for name in reads if layer[name] >= 0 and last_use[layer[name]] == position}
        if output >= 0 and places[output] < 0:  # else an earlier layer has made a part of it
            value = values[output]
            key = keys[output]
            may = {_CONV: ("second",), _ADD: ("second", "input"), _SCALE: ("input",)}
            operands = may.get(layer["kind"], ())
            if layer["second"] == layer["input"]:  # a layer must not overwrite what it still reads
                operands = ()
            taken = [layer[n] for n in operands if layer[n] in ending and keys[layer[n]] == key]
            if taken:
                places[output] = places[taken[0]]
                ending.remove(taken[0])
            elif free[key]:
                places[output] = free[key].pop()
            else:
                places[output] = len(buffers)
                buffers.append(BufferRecord(0, *key[:4]))
            buffer = buffers[places[output]]
            buffer.channels = max(buffer.channels, value.stored)
        for index in ending:
            free[keys[index]].append(places[index])
    return buffers, places
