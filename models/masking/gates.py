"""Finding gates: groups of channels whose masking equals the removal of their filters."""

from __future__ import annotations

import dataclasses
import reprlib
from collections import Counter
from collections.abc import Iterable

import torch

from prunegym.errors import InvalidInputError, UnknownNameError, UntraceableModelError
from prunegym.models.masking.graph import Graph, OutputOf, Step
from prunegym.models.masking.operators import Kind


@dataclasses.dataclass(frozen=True)
class Gate:
    """A named group of channels with one mask bit each.

    Attributes:
        name: Path of the convolution that makes the channels, e.g. ``layer1.0.conv1``.
        width: Number of channels.
        producers: Steps with a filter for each channel: the convolution, and depthwise ones behind it.
        point: Step whose output the mask multiplies: the last norm, activation or depthwise convolution behind it.
        consumers: Convolutions and linears that read the channels.
    """

    name: str
    width: int
    producers: tuple[str, ...]
    point: str
    consumers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Block:
    """Adjacent channels of a value: those of a gate, or (``gate`` None) channels that are never masked.

    In a flattened value each channel has ``repeat`` features.
    """

    gate: int | None
    width: int
    repeat: int = 1


Layout = tuple[Block, ...]


def channel_counts(layout: Layout, gates: int) -> torch.Tensor:
    """Return (gates + 1,): a value's channels for each kept channel of a gate, and last those that are always there."""
    counts = torch.zeros(gates + 1, dtype=torch.float64)
    for block in layout:
        counts[-1 if block.gate is None else block.gate] += block.repeat * (block.width if block.gate is None else 1)
    return counts


_CHAIN = {Kind.DEPTHWISE, Kind.CHANNELWISE, Kind.ACTIVATION, Kind.POOL}
_LAYERS = {Kind.CONV, Kind.DEPTHWISE, Kind.LINEAR}


def find_gates(graph: Graph) -> tuple[list[Gate], dict[str, str]]:
    """Find every convolution whose channels can be masked.

    Returns:
        The gates in the order in which their producers run, and for each other convolution the reason why it has none.
    """
    gates: list[Gate] = []
    rejected: dict[str, str] = {}
    shared = _shared_layers(graph)
    for step in graph.steps:
        if step.kind is not Kind.CONV or not step.weight:
            continue
        producers, point = _point(graph, step)
        consumers, obstacle = _consumers(graph, point)
        if obstacle is None and not consumers:
            obstacle = "no convolution or linear layer reads its channels"
        if obstacle is None and {graph[name].weight for name in (*producers, *consumers)} & shared:
            obstacle = "one of its layers is called twice, or shares its weights with another"
        if obstacle is not None:
            rejected[step.layer] = obstacle
            continue
        gates.append(Gate(step.layer, step.shape[1], producers, point, consumers))
    followers = {graph[name].layer for gate in gates for name in gate.producers}
    for step in graph.steps:
        if step.kind is Kind.DEPTHWISE and step.layer not in followers:
            rejected[step.layer] = "it is depthwise, and no gate can be found for the channels that it reads"
        elif step.kind is Kind.GROUPED:
            rejected[step.layer] = f"{step.operation} is grouped or transposed, no plain convolution"
        elif step.kind is Kind.CONV and not step.weight:
            rejected[step.layer] = "its weight is computed"
    return gates, rejected


def _shared_layers(graph: Graph) -> set[str]:
    """Return the weights that are read more than once."""
    calls = Counter(step.weight for step in graph.steps if step.kind in _LAYERS)
    return {weight for weight, count in calls.items() if count > 1}


def _readers(graph: Graph, name: str) -> list[Step]:
    """Return the steps that read a value."""
    return [graph[user] for user in graph.users[name]]


def _point(graph: Graph, producer: Step) -> tuple[tuple[str, ...], str]:
    """Follow the channels through steps that treat each by itself, and return the last one that is not pooling.

    A mask at that step also zeroes what norms and depthwise biases add. Pooling maps zero to zero, so it may follow.
    """
    path = [producer]
    while path[-1].name != graph.output and len(readers := _readers(graph, path[-1].name)) == 1:
        (following,) = readers
        if following.kind not in _CHAIN or len(following.inputs) != 1 or len(following.shape) != 4:
            break
        if not _keeps_channels(path[-1], following):
            break
        path.append(following)
    point = max(position for position, step in enumerate(path) if step.kind is not Kind.POOL)
    depthwise = [step.name for step in path[: point + 1] if step.kind is Kind.DEPTHWISE]
    return (producer.name, *depthwise), path[point].name


def _consumers(graph: Graph, point: str) -> tuple[tuple[str, ...], str | None]:
    """Return the layers that read the channels, or the reason why they cannot be masked."""
    consumers: list[str] = []
    pending, seen = [point], {point}
    while pending:
        name = pending.pop()
        if name == graph.output:
            return (), "its channels are an output of the network"
        for step in _readers(graph, name):
            if _mixes_channels(graph[name], step):
                consumers.append(step.name)
            elif _passes_zero(graph, step) and _keeps_channels(graph[name], step):
                if step.name not in seen:
                    pending.append(step.name)
                    seen.add(step.name)
            else:
                return (), f"its channels reach {step} ({step.kind.value})"
    return tuple(sorted(set(consumers), key=lambda consumer: graph.index[consumer])), None


def _mixes_channels(before: Step, step: Step) -> bool:
    """Whether a layer reads the second dimension of a value, the channels."""
    dimensions = {Kind.CONV: 4, Kind.LINEAR: 2}
    return dimensions.get(step.kind) == len(before.shape)


def _passes_zero(graph: Graph, step: Step) -> bool:
    """Whether a zero channel stays zero, also when it is multiplied by a function of itself (swish)."""
    if step.kind is Kind.CHANNELWISE:
        return all(reader.kind is Kind.MULTIPLY for reader in _readers(graph, step.name))
    return step.kind in (Kind.ACTIVATION, Kind.POOL, Kind.CONCAT, Kind.MULTIPLY, Kind.RESHAPE)


def _keeps_channels(before: Step, step: Step) -> bool:
    """Whether a step keeps each channel of a value separate, and in the second dimension."""
    if len(before.shape) < 2 or len(step.shape) < 2 or step.shape[0] != before.shape[0]:
        return False
    if step.kind is Kind.CONCAT:
        return _dimensions(step, len(step.shape)) == {1}
    if step.kind is Kind.RESHAPE:
        return step.shape[1] % before.shape[1] == 0
    if step.shape[1] != before.shape[1]:
        return False
    if step.kind is Kind.MULTIPLY:
        return len(step.shape) == len(before.shape)
    if step.kind is Kind.POOL and step.shape != before.shape:
        if step.operation in ("mean", "amax", "sum"):
            return _dimensions(step, len(before.shape)).isdisjoint({0, 1})
        return len(before.shape) == len(step.shape) == 4
    return True


def _dimensions(step: Step, count: int) -> set[int]:
    """Return the dimensions that a step's arguments name; all if they name none."""
    named = step.arguments.get("dim")
    dimensions = range(count) if named is None else named if isinstance(named, list) else [named]
    return {dimension % count for dimension in dimensions}


def layouts(graph: Graph, gates: list[Gate]) -> dict[str, Layout]:
    """Return for each value which of its channels belong to which gate."""
    owners = {name: index for index, gate in enumerate(gates) for name in gate.producers}
    found: dict[str, Layout] = {}
    for step in graph.steps:
        if len(step.shape) < 2:
            continue
        if step.name in owners:
            gate = owners[step.name]
            found[step.name] = (Block(gate, gates[gate].width),)
            continue
        found[step.name] = _layout(graph, step, found)
    return found


def _layout(graph: Graph, step: Step, found: dict[str, Layout]) -> Layout:
    inputs = [name for name in step.inputs if name in found]
    layout: Layout = ()
    if step.kind is Kind.CONCAT and _dimensions(step, len(step.shape)) == {1}:
        parts = step.arguments["tensors"]
        layout = tuple(block for part in parts if isinstance(part, OutputOf) for block in found[part.name])
    elif step.kind is Kind.MULTIPLY:
        # Of two operands with gates the full map counts, not the one that scales it; of two full maps, the earlier one.
        gated = [graph[name] for name in inputs if any(block.gate is not None for block in found[name])]
        gated = [other for other in gated if _keeps_channels(other, step)]
        gated.sort(key=lambda other: (other.shape != step.shape, graph.index[other.name]))
        layout = found[gated[0].name] if gated else ()
    elif inputs and _keeps_channels(graph[inputs[0]], step):
        if step.kind in _CHAIN:
            layout = found[inputs[0]]
        elif step.kind is Kind.RESHAPE:
            repeat = step.shape[1] // graph[inputs[0]].shape[1]
            layout = tuple(dataclasses.replace(block, repeat=block.repeat * repeat) for block in found[inputs[0]])
    complete = sum(block.width * block.repeat for block in layout) == step.shape[1]
    return layout if complete else (Block(None, step.shape[1]),)


def wanted_names(gates: str | Iterable[str]) -> list[str] | None:
    """Return the names of the requested gates; None for all that are found.

    Raises:
        InvalidInputError: If these are not names, or there are none.
    """
    if isinstance(gates, str):
        return None if gates == "auto" else [gates]
    names = list(gates) if isinstance(gates, Iterable) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise InvalidInputError(
            f"gates is {reprlib.repr(gates)}; 'auto' for all gates, or names of convolutions are needed, "
            "e.g. [gate.name for gate in masked.gates]."
        )
    return names


def choose_gates(found: list[Gate], wanted: list[str] | None, rejected: dict[str, str], name: str) -> list[Gate]:
    """Select the requested gates from those found in a network.

    Args:
        found: All gates that passed verification.
        wanted: Names, or None for all.
        rejected: For each convolution without a gate, the reason.
        name: Name of the network.

    Raises:
        InvalidInputError: If one of them cannot be a gate.
        UnknownNameError: If there is no convolution of that name.
        UntraceableModelError: If the network has no gate.
    """
    for gate in wanted or ():
        if gate in rejected:
            raise InvalidInputError(f"{gate!r} of {name} cannot be a gate: {rejected[gate]}.")
        if gate not in {other.name for other in found}:
            raise UnknownNameError("gate", gate, [other.name for other in found])
    chosen = [gate for gate in found if wanted is None or gate.name in wanted]
    if not chosen:
        reasons = "; ".join(f"{gate}: {reason}" for gate, reason in list(rejected.items())[:5]) or "it has no Conv2d"
        raise UntraceableModelError(f"No gate was found in {name}, so nothing can be masked ({reasons}).")
    return chosen
