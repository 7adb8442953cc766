"""Values between layers, and the buffers that hold them. A buffer is reused once its value is no longer needed."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from prunegym.models.kernel.shared_library import KINDS, BufferRecord

_CONV, _ADD, _LOOK = (KINDS.index(kind) for kind in ("conv", "add", "look"))


@dataclasses.dataclass(frozen=True)
class Value:
    """The output of a layer: a map (channels, height, width), or a vector (channels).

    Attributes:
        index: Number within its builder.
        channels: Channels in all, kept or not.
        height: Pixels; 1 for a vector.
        width: Pixels; 1 for a vector.
        stride: Floats from a row to the next in memory; 0 for a vector.
        gate: The gate that decides which channels are kept; None if all are.
    """

    index: int
    channels: int
    height: int
    width: int
    stride: int
    gate: int | None = None


def assign_buffers(
    values: Sequence[Value], layers: Sequence[Mapping[str, Any]]
) -> tuple[list[BufferRecord], list[int]]:
    """Give each value a buffer.

    A buffer keeps its frame of zeros, so all of its values have the same height, width and row stride. A sum may
    overwrite one of its operands, if that is not needed afterwards. Values that are needed after a stop get separate
    buffers, one for each image; for the others all images can share memory.

    Args:
        values: All values.
        layers: The layers in order, with the indices ``input``, ``second`` and ``output`` of values, or -1.

    Returns:
        The buffers, and for each value the index of its buffer.
    """
    uses = ("input", "second", "output")
    last_use = {layer[name]: position for position, layer in enumerate(layers) for name in uses}
    stops = [position for position, layer in enumerate(layers) if layer["kind"] == _LOOK]
    made = {layer["output"]: position for position, layer in enumerate(layers)}
    keys = [
        (value.height, value.width, value.stride, any(made[index] < stop < last_use[index] for stop in stops))
        for index, value in enumerate(values)
    ]
    buffers: list[BufferRecord] = []
    places = [0] * len(values)
    free: dict[tuple[int, int, int, bool], list[int]] = defaultdict(list)
    for position, layer in enumerate(layers):
        output = layer["output"]
        ending = {layer[name] for name in ("input", "second") if layer[name] >= 0 and last_use[layer[name]] == position}
        if output >= 0:
            value = values[output]
            key = keys[output]
            operands = {_CONV: ("second",), _ADD: ("second", "input")}.get(layer["kind"], ())
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
                buffers.append(BufferRecord(0, *key[:3]))
            buffer = buffers[places[output]]
            buffer.channels = max(buffer.channels, value.channels)
        for index in ending:
            free[keys[index]].append(places[index])
    return buffers, places
