"""Layouts of values for masks and policies: which gates are adjacent, and vectors as maps."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from prunegym.models.masking.gates import Bits, Found, Gate


@dataclasses.dataclass(frozen=True)
class Block:
    """Adjacent channels of a value: those of a gate, or (``gate`` None) channels that are never masked.

    In a flattened value each channel has ``repeat`` features.
    """

    gate: int | None
    width: int
    repeat: int = 1


Layout = tuple[Block, ...]


def layouts(found: Found) -> dict[str, Layout]:
    """Return the values whose channels are whole gates side by side, each with its gates."""
    starts, start = {}, 0
    for number, gate in enumerate(found.gates):
        starts[start] = number
        start += gate.width
    result = {}
    for name, bits in found.values.items():
        if bits.axis == 1 and (layout := _layout(bits.index.tolist(), starts, found.gates)):
            result[name] = layout
    return result


def _layout(index: list[int], starts: dict[int, int], gates: list[Gate]) -> Layout:
    blocks: list[Block] = []
    place = 0
    while place < len(index):
        first = index[place]
        if first < 0:
            end = next((p for p in range(place, len(index)) if index[p] >= 0), len(index))
            blocks.append(Block(None, end - place))
        elif first in starts:
            gate = starts[first]
            repeat = next((p for p in range(place, len(index)) if index[p] != first), len(index)) - place
            width = gates[gate].width
            end = place + width * repeat
            if index[place:end] != [first + bit for bit in range(width) for _ in range(repeat)]:
                return ()
            blocks.append(Block(gate, width, repeat))
        else:
            return ()
        place = end
    return tuple(blocks)


def as_map(value: Tensor) -> Tensor:
    """Return a layer's input as a map (batch, channels, height, width): a vector is one pixel, tokens are a column."""
    if value.ndim == 4:
        return value
    return value.flatten(1, -2).transpose(1, 2)[..., None] if value.ndim > 2 else value[..., None, None]


def gate_map(value: Tensor, bits: Bits, width: int) -> Tensor:
    """Return the channels of a gate at its point as a map (batch, width, height, width)."""
    moved = value.movedim(bits.axis, 1)
    order = [int((bits.index == bit).nonzero()[0]) for bit in range(width)]
    moved = moved if order == list(range(moved.shape[1])) else moved[:, order]
    return moved.flatten(2, -2) if moved.ndim > 3 else moved[(..., *[None] * (4 - moved.ndim))]


def places_of(gates: tuple[Gate, ...], values: dict[str, Bits]) -> dict[str, list[tuple[int, Bits]]]:
    """Return for each value that is masked the gates, each with its bits, counted within the gate."""
    places: dict[str, list[tuple[int, Bits]]] = {}
    start = 0
    for number, gate in enumerate(gates):
        for point in gate.points:
            index = values[point].index - start
            index[(index < 0) | (index >= gate.width)] = -1
            places.setdefault(point, []).append((number, Bits(values[point].axis, index)))
        start += gate.width
    return places
