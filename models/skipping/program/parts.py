"""Parts of a program that are run one after the other."""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor

from prunegym.models.skipping.program.layers import Program


def part_of(program: Program, start: int, end: int) -> Program | None:
    """Return some of the layers as a separate program, if they have one input and one output."""
    layers = program.layers[start:end]
    made = {layer.name for layer in layers}
    given = {name for layer in layers for name in layer.inputs} - made
    later = {name for layer in program.layers[end:] for name in layer.inputs} | {program.output}
    results = made & later
    if len(given) != 1 or len(results) != 1 or later & given:
        return None
    (source,), (result,) = given, results
    shape = program.output_shape if result == program.output else program.shapes[result]
    return dataclasses.replace(program, input=source, output=result, layers=layers, output_shape=shape)


def gates_of(program: Program) -> list[int]:
    """Return the gates that begin in a program."""
    return sorted(gate for layer in program.layers for gate in layer.starts)


def columns_of(program: Program) -> Tensor:
    """Return the positions in a mask of the gates that begin in a program."""
    starts = [0, *itertools.accumulate(program.widths)]
    ranges = [torch.arange(*starts[gate : gate + 2]) for gate in gates_of(program)]
    return torch.cat([torch.zeros(0, dtype=torch.int64), *ranges])
