"""Finding gates: groups of channels that can be masked as if their filters were removed."""

from __future__ import annotations

import dataclasses

from torch import nn

from prunegym.models.graph import Graph, Step, Value
from prunegym.models.operators import Kind


@dataclasses.dataclass(frozen=True)
class Gate:
    """A named group of channels with one mask bit each.

    Attributes:
        name: Path of the convolution that makes the channels, e.g. ``layer1.0.conv1``.
        width: Number of channels.
        producers: Steps whose filters are the channels': the convolution, and depthwise ones behind it.
        point: Step whose output the mask multiplies: the last norm, activation or depthwise convolution in a row.
        consumers: Convolutions and linears that read the channels.
    """

    name: str
    width: int
    producers: tuple[str, ...]
    point: str
    consumers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Block:
    """Neighbouring channels of a value: those of a gate, or (``gate`` None) channels that are always there.

    ``repeat`` features stand for each channel where the value has been flattened.
    """

    gate: int | None
    width: int
    repeat: int = 1


Layout = tuple[Block, ...]

_CHAIN = {Kind.DEPTHWISE, Kind.CHANNELWISE, Kind.ACTIVATION, Kind.POOL}


def find_gates(graph: Graph, network: nn.Module) -> tuple[list[Gate], dict[str, str]]:
    """Find every convolution whose channels can be masked.

    Returns:
        The gates in the order in which their producers run, and for each other convolution the reason why it is none.
    """
    gates: list[Gate] = []
    rejected: dict[str, str] = {}
    layers = [step.target for step in graph.steps if step.kind in (Kind.CONV, Kind.DEPTHWISE, Kind.LINEAR)]
    shared = {target for target in layers if layers.count(target) > 1}
    for step in graph.steps:
        if step.kind is not Kind.CONV:
            continue
        producers, point = _point(graph, step)
        consumers, obstacle = _consumers(graph, point)
        if obstacle is None and not consumers:
            obstacle = "no convolution or linear layer reads its channels"
        if obstacle is None and {graph[name].target for name in (*producers, *consumers)} & shared:
            obstacle = "one of its layers is called twice, with other channels"
        if obstacle is not None:
            rejected[str(step.target)] = obstacle
            continue
        gates.append(Gate(str(step.target), step.shape[1], producers, point, consumers))
    return gates, rejected


def _point(graph: Graph, producer: Step) -> tuple[tuple[str, ...], str]:
    """Follow the channels while they are treated one by one, and stop behind the last step that is no pooling.

    A mask there zeroes what norms and depthwise biases have added, and pooling treats zero as a missing channel would.
    """
    path = [producer]
    while len(graph.users[path[-1].name]) == 1:
        following = graph[graph.users[path[-1].name][0]]
        if following.kind not in _CHAIN or len(following.inputs) != 1 or len(following.shape) != 4:
            break
        path.append(following)
    point = max(position for position, step in enumerate(path) if step.kind is not Kind.POOL)
    depthwise = [step.name for step in path[: point + 1] if step.kind is Kind.DEPTHWISE]
    return (producer.name, *depthwise), path[point].name


def _consumers(graph: Graph, point: str) -> tuple[tuple[str, ...], str | None]:
    """Return what reads the channels, or why some of it cannot do without them."""
    consumers: list[str] = []
    pending, seen = [point], {point}
    while pending:
        name = pending.pop()
        if name == graph.output:
            return (), "its channels are an output of the network"
        for user in graph.users[name]:
            step = graph[user]
            if step.kind in (Kind.CONV, Kind.LINEAR):
                consumers.append(user)
            elif step.kind in (Kind.ACTIVATION, Kind.POOL, Kind.CONCAT, Kind.MULTIPLY) or _keeps_batch(
                graph, name, step
            ):
                if user not in seen:
                    pending.append(user)
                    seen.add(user)
            else:
                target = getattr(step.target, "__name__", step.target)
                return (), f"its channels reach {target!r} ({step.kind.value})"
    return tuple(sorted(set(consumers), key=lambda consumer: graph.index[consumer])), None


def _keeps_batch(graph: Graph, name: str, step: Step) -> bool:
    before, after = graph[name].shape, step.shape
    return step.kind is Kind.RESHAPE and len(after) >= 2 and after[0] == before[0] and after[1] % before[1] == 0


def layouts(graph: Graph, gates: list[Gate]) -> dict[str, Layout]:
    """Return for each value with channels which of them belong to which gate."""
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
    inputs = [found[name] for name in step.inputs if name in found]
    if step.kind is Kind.CONCAT and isinstance(step.args[0], list | tuple):
        parts = [found[item.name] for item in step.args[0] if isinstance(item, Value)]
        return tuple(block for part in parts for block in part)
    if step.kind is Kind.MULTIPLY:
        gated = [layout for layout in inputs if any(block.gate is not None for block in layout)]
        return gated[0] if gated else (Block(None, step.shape[1]),)
    if step.kind in _CHAIN and inputs:
        return inputs[0]
    if step.kind is Kind.RESHAPE and inputs:
        repeat, rest = divmod(step.shape[1], graph[step.inputs[0]].shape[1])
        if rest == 0 and repeat >= 1:
            return tuple(dataclasses.replace(block, repeat=block.repeat * repeat) for block in inputs[0])
    return (Block(None, step.shape[1]),)
