"""The channel of each number of each value of a network, found by following channels from step to step."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from prunegym.models.masking.graph import BATCH, INPUT, LIKE, Attribute, Graph, OutputOf, Step, leaves, runner
from prunegym.models.masking.operators import MIXING, Kind

_BY_ITSELF = (Kind.CHANNELWISE, Kind.ACTIVATION)
SUMMED = "its channels are part of a sum with those of other layers; gates='all' opens it, or its name"
HIDDEN = "it is a hidden linear layer; gates='all' opens it, or its name"


class Channels:
    """Labels of the channels of each value: numbers have the same label if they must have the same mask bit.

    A value's labels are a tensor that can be expanded to its shape without the batch; 0 means no channel. Each output
    channel of a convolution or linear layer starts with a new label. Steps pass labels on, and a sum merges the labels
    of its operands. A label whose channel cannot be masked is blocked, with the reason.

    Args:
        graph: The network.
        network: Its parameters.

    Attributes:
        labels: Labels of each value that has some.
        reads: Labels of the input channels of each layer and norm over channels.
        makes: Labels of the output channels of each layer.
        summed: Labels that were merged in a sum.
    """

    def __init__(self, graph: Graph, network: nn.Module) -> None:
        self.graph, self.network = graph, network
        self.labels: dict[str, Tensor] = {}
        self.reads: dict[str, Tensor] = {}
        self.makes: dict[str, Tensor] = {}
        self.summed: set[int] = set()
        self._parents = [0]
        self._blocked: dict[int, str] = {}
        self._live = {graph.input}
        shared = _shared(graph)
        for step in graph.steps:
            if step.target == INPUT:
                continue
            if self._live.intersection(step.inputs):
                self._live.add(step.name)
                self._follow(step)
            if step.weight in shared:
                for vector in (self.reads.get(step.name), self.makes.get(step.name)):
                    self._block(vector, "one of its layers is called twice, or shares its weights with another")
        self._block(self.labels.get(graph.output), "its channels are an output of the network")
        for kept in (self.labels, self.reads, self.makes):
            kept.update({name: self._roots(labels) for name, labels in kept.items()})
        self.summed = {self._find(label) for label in self.summed}
        self._blocked = {self._find(label): why for label, why in reversed(self._blocked.items())}

    def why_not(self, label: int) -> str | None:
        """Return why a label's channel cannot be masked; None if it can."""
        return self._blocked.get(label)

    def _follow(self, step: Step) -> None:
        inputs = [self.labels[name] for name in step.inputs if name in self.labels]
        if step.shape[:1] != (1,) or any(
            self.graph[name].shape[:1] != (1,) for name in self._live.intersection(step.inputs)
        ):
            self._block_all(inputs, step)  # the batch is not the first dimension, or there are several values
        elif step.kind in (*MIXING, Kind.DEPTHWISE):
            self._mix(step)
        elif not inputs:
            return
        elif step.kind in _BY_ITSELF and len(inputs) == 1:
            self.labels[step.name] = inputs[0]
        elif step.kind is Kind.POOL:
            found = re.search(r"(\d)d$", step.operation)
            count = int(found.group(1)) if found else 2
            if set(inputs[0].shape[-count:]) == {1}:
                self.labels[step.name] = inputs[0]
            else:
                self._block_all(inputs, step)
        elif step.kind in (Kind.REDUCE, Kind.LARGEST):
            self._reduce(step, inputs[0])
        elif step.kind is Kind.NORM:
            self._norm(step, inputs[0])
        elif step.kind is Kind.CONCAT and step.operation != "stack":
            self._concat(step)
        elif step.kind in (Kind.RESHAPE, Kind.LAYOUT, Kind.CONCAT):
            self._move(step)
        elif step.kind in (Kind.ADD, Kind.MULTIPLY, Kind.DIVIDE):
            self._meet(step)
        else:
            self._block_all(inputs, step)

    # --- layers
    def _mix(self, step: Step) -> None:
        x = step.arguments["input"].name
        axis = len(step.shape) - 2 if step.kind is Kind.LINEAR else 0
        for part in leaves({key: value for key, value in step.arguments.items() if key != "input"}):
            if isinstance(part, OutputOf) and part.name in self.labels:
                self._block(self.labels[part.name], f"its channels become the weight of {step}")
        reads = self._vector(x, axis, step)
        count = step.shape[axis + 1]
        groups = step.arguments.get("groups", 1)
        if step.kind is Kind.DEPTHWISE:
            makes = reads.repeat_interleave(count // len(reads))
            if not reads.any():
                makes = self._new(count)
                self._block(makes, f"{step} filters each channel of a value that has no gate")
        else:
            makes = self._new(count)
            if groups > 1:  # a channel that is masked in one group is masked in all, so that the groups stay equal
                for vector in (reads, makes):
                    rows = vector.view(groups, -1)
                    self._join(rows[:1].expand_as(rows), rows)
            self.reads[step.name] = reads
        self.makes[step.name] = makes
        self.labels[step.name] = makes.view(*[-1 if place == axis else 1 for place in range(len(step.shape) - 1)])

    def _norm(self, step: Step, labels: Tensor) -> None:
        axis = 0 if step.operation == "group_norm" else len(step.shape) - 2
        shape = step.arguments.get("normalized_shape", [1])
        if len(shape) == 1 and _axis(labels) == axis:
            self.reads[step.name] = self._vector(step.inputs[0], axis, step)
        elif step.operation == "layer_norm" and _axis(labels) is not None:
            if (_axis(labels) or 0) >= len(step.shape) - 1 - len(shape):
                self.reads[step.name] = labels.flatten()
        else:
            self._block_all([labels], step)
            return
        self.labels[step.name] = labels

    def _reduce(self, step: Step, labels: Tensor) -> None:
        dims = step.arguments.get("dim")
        count = len(self.graph[step.inputs[0]].shape)
        places = {dim % count for dim in ([*dims] if isinstance(dims, list) else [dims])} if dims else set(range(count))
        over = [place - 1 for place in sorted(places, reverse=True) if place]
        if any(labels.shape[place] > 1 for place in over):
            if step.kind is Kind.REDUCE and step.operation != "mean":  # zeros add nothing
                self.reads[step.name] = labels.flatten()
            else:
                self._block_all([labels], step)
            return
        if 0 in places:
            self._block_all([labels], step)
            return
        if not step.arguments.get("keepdim", False):
            for place in over:
                labels = labels.squeeze(place)
        self.labels[step.name] = labels

    # --- values that are moved
    def _concat(self, step: Step) -> None:
        axis = step.arguments["dim"] % len(step.shape) - 1
        parts = []
        for part in step.arguments["tensors"]:
            name = part.name if isinstance(part, OutputOf) else ""
            if axis < 0 or not name:
                self._block_all([self.labels[one] for one in step.inputs if one in self.labels], step)
                return
            shape = self.graph[name].shape[1:]
            labels = self.labels.get(name, torch.zeros([1] * len(shape), dtype=torch.float64))
            parts.append(labels.expand(*[shape[axis] if place == axis else -1 for place in range(len(shape))]))
        sizes = [max(part.shape[place] for part in parts) for place in range(len(parts[0].shape))]
        parts = [part.expand(*[-1 if place == axis else size for place, size in enumerate(sizes)]) for part in parts]
        self.labels[step.name] = _compact(torch.cat(parts, axis))

    def _move(self, step: Step) -> None:
        """Apply a step that only moves values to their labels."""
        values: dict[str, object] = {BATCH: 1, LIKE: torch.zeros(0, dtype=torch.float64)}
        for name in step.inputs:
            shape = self.graph[name].shape
            labels = self.labels.get(name)
            values[name] = torch.zeros(shape) if labels is None else labels.expand(shape[1:])[None]
        if any(isinstance(part, Attribute) for part in leaves(step.arguments)) and step.operation != "index_select":
            moved = None
        else:
            moved = runner(step, self.network)(values)
        if moved is None or not step.shape or step.shape[0] != 1 or moved.shape != step.shape:
            self._block_all([self.labels[name] for name in step.inputs if name in self.labels], step)
        elif moved.any():
            self.labels[step.name] = _compact(moved[0])

    # --- values that meet
    def _meet(self, step: Step) -> None:
        """Follow a sum or product of two values."""
        operands = [step.arguments.get("self"), step.arguments.get("other")]
        names = [part.name for part in operands if isinstance(part, OutputOf) and part.name in self._live]
        found = [self._aligned(name, step) for name in names]
        if len(found) == 1 or names[0] == names[-1]:
            constant_first = not isinstance(operands[0], OutputOf) or operands[0].name not in self._live
            if step.kind is Kind.DIVIDE and constant_first:
                self._block_all(found[:1], step)
            else:
                self.labels[step.name] = found[0]
            return
        one, other = found
        spread = [self._is_spread(name, labels, step) for name, labels in zip(names, (other, one), strict=True)]
        if step.kind is Kind.ADD:
            for mine, theirs in ((one, other), (other, one)):
                alone = torch.where(theirs == 0, mine, torch.zeros(1, dtype=torch.float64))
                self._block(alone, f"in {step} something is added to its channels that has no gate")
            if any(spread):
                self._block(torch.cat([one.flatten(), other.flatten()]), f"in {step} one channel is added to several")
        elif any(spread):
            self._block(one if spread[0] else other, f"in {step} it scales several channels")
            self.labels[step.name] = other if spread[0] else one
            return
        elif step.kind is Kind.DIVIDE and not one.any():
            self._block_all([other], step)
        self._join(one, other, step.kind is Kind.ADD)
        self.labels[step.name] = torch.where(one > 0, one, other)

    def _is_spread(self, name: str, others: Tensor, step: Step) -> bool:
        """Whether one channel of a value meets several channels of the other operand."""
        shape = self.graph[name].shape[1:]
        shape = (*[1] * (len(step.shape) - 1 - len(shape)), *shape)
        own = name in self.labels
        return own and any(size == 1 and count > 1 for size, count in zip(shape, others.shape, strict=True))

    def _aligned(self, name: str, step: Step) -> Tensor:
        """Return a value's labels with as many dimensions as the step's output; zeros if it has none."""
        labels = self.labels.get(name, torch.zeros(1, dtype=torch.float64))
        missing = len(step.shape) - 1 - labels.ndim
        return labels.reshape(*[1] * missing, *labels.shape) if missing > 0 else labels

    # --- labels
    def _new(self, count: int) -> Tensor:
        start = len(self._parents)
        self._parents += range(start, start + count)
        return torch.arange(start, start + count, dtype=torch.float64)

    def _vector(self, name: str, axis: int, step: Step) -> Tensor:
        """Return the labels along an axis (channels,); zeros, and blocks them, where they vary along another."""
        size = self.graph[name].shape[axis + 1]
        labels = self.labels.get(name)
        if labels is not None and any(count > 1 and place != axis for place, count in enumerate(labels.shape)):
            self._block_all([labels], step)
            labels = None
        return torch.zeros(size, dtype=torch.float64) if labels is None else labels.flatten().expand(size)

    def _block_all(self, found: Iterable[Tensor], step: Step) -> None:
        for labels in found:
            self._block(labels, f"its channels reach {step}, which {step.kind.value}")

    def _block(self, labels: Tensor | None, why: str) -> None:
        if labels is not None:
            for label in distinct(labels):
                self._blocked.setdefault(label, why)

    def _join(self, one: Tensor, other: Tensor, summed: bool = False) -> None:
        """Merge labels that meet."""
        shape = torch.broadcast_shapes(one.shape, other.shape)  # type: ignore[no-untyped-call, unused-ignore]
        pairs = zip(one.expand(shape).flatten().tolist(), other.expand(shape).flatten().tolist(), strict=True)
        for first, second in {(int(first), int(second)) for first, second in pairs}:
            a, b = self._find(first), self._find(second)
            if first and second and a != b:
                self._parents[max(a, b)] = min(a, b)
                if summed:
                    self.summed.add(a)

    def _find(self, label: int) -> int:
        while self._parents[label] != label:
            self._parents[label] = label = self._parents[self._parents[label]]
        return label

    def _roots(self, labels: Tensor) -> Tensor:
        roots = torch.zeros(len(self._parents), dtype=torch.float64)
        for label in distinct(labels):
            roots[label] = self._find(label)
        return roots[labels.long()]


def distinct(labels: Tensor) -> set[int]:
    """Return the labels in a tensor."""
    return {int(label) for label in labels.flatten().tolist()} - {0}


def _shared(graph: Graph) -> set[str]:
    """Return the weights that are read by more than one layer, or twice by one."""
    weights = [step.weight for step in graph.steps if step.kind in (*MIXING, Kind.DEPTHWISE) and step.weight]
    return {weight for weight in weights if weights.count(weight) > 1}


def _axis(labels: Tensor) -> int | None:
    """Return the dimension along which labels vary; None if there are several."""
    axes = [place for place, size in enumerate(labels.shape) if size > 1]
    return axes[0] if len(axes) == 1 else 0 if not axes else None


def _compact(labels: Tensor) -> Tensor:
    """Return labels with size 1 along dimensions in which they are constant."""
    for place, size in enumerate(labels.shape):
        first = labels.narrow(place, 0, 1) if size else labels
        if size > 1 and (labels.stride(place) == 0 or torch.equal(first.expand_as(labels), labels)):
            labels = first
    return labels
