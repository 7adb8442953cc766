"""Finding gates: groups of channels that a mask can zero, as if their filters were removed."""

from __future__ import annotations

import dataclasses
import functools
import reprlib
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from prunegym.errors import InvalidInputError, UnknownNameError, UntraceableModelError
from prunegym.models.masking.channels import HIDDEN, SUMMED, Channels, distinct
from prunegym.models.masking.graph import Graph, OutputOf, Step, leaves
from prunegym.models.masking.operators import MIXING, Kind


@dataclasses.dataclass(frozen=True)
class Gate:
    """A named group of channels with one mask bit each.

    Attributes:
        name: Path of the first layer that makes the channels, e.g. ``layer1.0.conv1``.
        width: Number of bits. A bit may be for several channels, for example one in each group of a convolution.
        producers: Steps with filters for the channels; those of a residual sum are one gate.
        points: Steps whose output the mask multiplies: the last norm or activation before something reads the channels.
        consumers: Layers that read the channels, and norms over channels.
        layers: Paths of the layers that make them.
        summed: Whether its channels are part of a sum with those of other layers.
        hidden: Whether its first layer is a linear one that reads vectors.
    """

    name: str
    width: int
    producers: tuple[str, ...]
    points: tuple[str, ...]
    consumers: tuple[str, ...]
    layers: tuple[str, ...] = ()
    summed: bool = False
    hidden: bool = False

    @property
    def point(self) -> str:
        """The first of the points."""
        return self.points[0]


@dataclasses.dataclass(frozen=True)
class Bits:
    """The mask bits of a value's channels.

    Attributes:
        axis: The dimension of the channels, the batch counted.
        index: (channels,) int64, positions in a mask; -1 for a channel that is never masked.
    """

    axis: int
    index: Tensor

    def factors(self, mask: Tensor, value: Tensor) -> Tensor:
        """Return the factors of a value: mask (batch, mask_size), value (batch, ...); both have the same dtype."""
        wide = mask
        if self._some_stay:
            wide = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)[:, self.index]  # -1 is the one at the end
        elif not self._in_order or mask.shape[1] != len(self.index):
            wide = mask.index_select(1, self.index)
        return wide.view(len(mask), *[len(self.index) if place == self.axis else 1 for place in range(1, value.ndim)])

    @functools.cached_property
    def _some_stay(self) -> bool:
        return bool((self.index < 0).any())

    @functools.cached_property
    def _in_order(self) -> bool:
        return self.index.tolist() == list(range(len(self.index)))


@dataclasses.dataclass(frozen=True)
class Found:
    """The gates of a network, and for each value with masked channels (and each layer's input) their bits."""

    gates: list[Gate]
    values: dict[str, Bits]
    reads: dict[str, Tensor]
    makes: dict[str, Tensor]

    def counts(self, index: Tensor) -> Tensor:
        """Return the number of channels for each kept bit of a gate, and as the last entry those that always run.

        Args:
            index: (channels,) positions in a mask; -1 for channels that are never masked.

        Returns:
            (gates + 1,) float64.
        """
        owners = torch.cat([torch.full((gate.width,), number) for number, gate in enumerate(self.gates)])
        gated = index[index >= 0]
        counts = torch.bincount(owners[gated], minlength=len(self.gates)).double()
        counts /= torch.tensor([gate.width for gate in self.gates])
        return torch.cat([counts, torch.tensor([float(len(index) - len(gated))], dtype=torch.float64)])

    def gates_of(self, name: str) -> set[int]:
        """Return the gates whose channels a value has."""
        bits = self.values.get(name)
        return set() if bits is None else set(self.counts(bits.index)[:-1].nonzero()[:, 0].tolist())


class GateFinder:
    """Finds all gates of a network, and the bits of each value for some of them.

    Args:
        graph: The network.
        network: Its parameters.

    Attributes:
        gates: All gates, in the order in which their producers run.
        rejected: For each convolution without a gate, the reason.
    """

    def __init__(self, graph: Graph, network: nn.Module) -> None:
        self.graph, self.network = graph, network
        self._channels = Channels(graph, network)
        self._layers = self._by_label(self._channels.makes), self._by_label(self._channels.reads)
        self._bits: dict[str, list[int]] = {}
        groups = self._groups()
        points = self._points({label for labels in groups.values() for label in labels})
        self.gates = [self._gate(key, labels, points) for key, labels in groups.items()]
        self.rejected = self._rejected()

    def _by_label(self, layers: dict[str, Tensor]) -> dict[int, dict[str, int]]:
        """Return for each label its layers and the number of its channels in each."""
        found: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for name, vector in layers.items():
            for label in vector.long().tolist():
                if label:
                    found[label][name] += 1
        return found

    def _groups(self) -> dict[tuple[object, ...], list[int]]:
        """Return the labels that can be masked, grouped by the layers that make and read them."""
        makers, readers = self._layers
        groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for label, made in makers.items():
            if self._channels.why_not(label) is None and self._is_read(label):
                groups[tuple(made.items()), tuple(readers[label].items())].append(label)
        order = {key: self.graph.index[next(iter(dict(key[0])))] for key in groups}  # type: ignore[call-overload]
        return {key: groups[key] for key in sorted(groups, key=lambda key: order[key])}

    def _is_read(self, label: int) -> bool:
        return any(self.graph[name].kind in MIXING for name in self._layers[1].get(label, ()))

    def _gate(self, key: tuple[object, ...], labels: list[int], points: dict[str, set[int]]) -> Gate:
        producers = tuple(dict(key[0]))  # type: ignore[call-overload]
        consumers = tuple(dict(key[1]))  # type: ignore[call-overload]
        name = self.graph[producers[0]].layer
        if name in self._bits:
            name = next(
                f"{name}:{count}" for count in range(2, len(self._bits) + 3) if f"{name}:{count}" not in self._bits
            )
        self._bits[name] = labels
        own = tuple(point for point, masked in points.items() if not masked.isdisjoint(labels))
        summed = not self._channels.summed.isdisjoint(labels)
        layers = tuple(dict.fromkeys(self.graph[producer].layer for producer in producers))
        first = self.graph[producers[0]]
        hidden = first.kind is Kind.LINEAR and len(first.shape) == 2
        return Gate(name, len(labels), producers, own, consumers, layers, summed, hidden)

    def _points(self, gated: set[int]) -> dict[str, set[int]]:
        """Return the values that masks multiply, each with the labels that are not yet zero there.

        A label is zero if the layers that make it are masked, and all steps since then map zero to zero.
        """
        wanted = {self._upward(self.graph[name].inputs[0]) for name in self._channels.reads}
        points: dict[str, set[int]] = {}
        carried: dict[str, set[int]] = {}
        loud: dict[str, set[int]] = {}
        for step in self.graph.steps:
            labels = self._channels.labels.get(step.name)
            if labels is None:
                continue
            carried[step.name] = distinct(labels) & gated
            loud[step.name] = self._loud(step, carried, loud)
            if step.name in wanted and loud[step.name]:
                points[step.name] = loud[step.name]
                loud[step.name] = set()
        return points

    def _loud(self, step: Step, carried: dict[str, set[int]], loud: dict[str, set[int]]) -> set[int]:
        """Return the labels of a step's output that are not zero there when their channels are masked."""
        here = carried[step.name]
        names = [part.name for part in leaves(step.arguments) if isinstance(part, OutputOf) and part.name in loud]
        new = step.kind in (*MIXING, Kind.CHANNELWISE, Kind.NORM)
        shifts = step.kind is Kind.DEPTHWISE and step.arguments.get("bias") is not None
        if new or shifts or (step.kind is Kind.ADD and len(names) < 2):
            return here
        if step.kind in (Kind.MULTIPLY, Kind.DIVIDE):  # zero if one operand with the label is zero
            names = names[:1] if step.kind is Kind.DIVIDE else names
            return here.difference(*[carried[name] - loud[name] for name in names])
        return here & set().union(*[loud[name] for name in names])

    def _upward(self, name: str) -> str:
        """Return the value to mask: the one before pooling and flattening."""
        step = self.graph[name]
        moves = step.kind in (Kind.POOL, Kind.REDUCE, Kind.LARGEST, Kind.RESHAPE, Kind.LAYOUT)
        while (moves or step.operation in _PASSING) and len(step.inputs) == 1:
            before = step.inputs[0]
            labels = self._channels.labels.get(before)
            if labels is None:
                break
            name, step = before, self.graph[before]
            moves = step.kind in (Kind.POOL, Kind.REDUCE, Kind.LARGEST, Kind.RESHAPE, Kind.LAYOUT)
        return name

    def _rejected(self) -> dict[str, str]:
        """Return for each convolution without a gate the reason."""
        with_gate = {self.graph[name].layer for gate in self.gates for name in gate.producers}
        found: dict[str, str] = {}
        for name, vector in self._channels.makes.items():
            step = self.graph[name]
            if step.layer in with_gate or step.layer in found:
                continue
            reasons = [self._channels.why_not(label) for label in sorted(distinct(vector))]
            why = next((reason for reason in reasons if reason), "no convolution or linear layer reads its channels")
            if step.kind is not Kind.LINEAR or "output of the network" not in why:
                found[step.layer] = why
        return found

    def bits(self, gates: list[Gate]) -> Found:
        """Return the bits of each value for a mask of some of the gates, one after the other."""
        table: dict[int, int] = {}
        for gate in gates:
            for label in self._bits[gate.name]:
                table[label] = len(table)

        def index(vector: Tensor) -> Tensor:
            return torch.tensor([table.get(int(label), -1) for label in vector.tolist()])

        values = {}
        for name, labels in self._channels.labels.items():
            axes = [place for place, size in enumerate(labels.shape) if size > 1]
            if len(axes) > 1:
                continue
            axis = axes[0] if axes else 0
            size = self.graph[name].shape[axis + 1]
            own = index(labels.flatten().expand(size))
            if (own >= 0).any():
                values[name] = Bits(axis + 1, own)
        reads, makes = (
            {name: index(vector) for name, vector in layers.items()}
            for layers in (self._channels.reads, self._channels.makes)
        )
        return Found(gates, values, reads, makes)


_PASSING = frozenset(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "contiguous", "alias"))


def wanted_names(gates: str | Iterable[str]) -> str | list[str]:
    """Return ``auto`` or ``all``, or the names of the requested gates.

    Raises:
        InvalidInputError: If these are not names, or there are none.
    """
    if isinstance(gates, str):
        return gates if gates in ("auto", "all") else [gates]
    names = list(gates) if isinstance(gates, Iterable) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise InvalidInputError(
            f"gates is {reprlib.repr(gates)}; 'auto', 'all' (also those of residual sums) or names of convolutions "
            "are needed, e.g. [gate.name for gate in masked.gates]."
        )
    return names


def choose_gates(found: list[Gate], wanted: str | list[str], rejected: dict[str, str], name: str) -> list[Gate]:
    """Select the requested gates from those found in a network.

    Args:
        found: All gates that passed verification.
        wanted: Names, ``auto`` or ``all``.
        rejected: For each convolution without a gate, the reason; ``auto`` adds those of sums.
        name: Name of the network.

    Raises:
        InvalidInputError: If one of them cannot be a gate.
        UnknownNameError: If there is no convolution with this name.
        UntraceableModelError: If the network has no gate.
    """
    if isinstance(wanted, str):
        chosen = [gate for gate in found if wanted == "all" or not (gate.summed or gate.hidden)]
        for other in found:
            if other not in chosen:
                rejected.update(dict.fromkeys(other.layers, SUMMED if other.summed else HIDDEN))
    else:
        owners = {layer: gate for gate in reversed(found) for layer in (*gate.layers, gate.name)}
        for gate in wanted:
            if gate not in owners and gate in rejected:
                raise InvalidInputError(f"{gate!r} of {name} cannot be a gate: {rejected[gate]}.")
            if gate not in owners:
                raise UnknownNameError("gate", gate, [other.name for other in found])
        chosen = [gate for gate in found if gate in [owners[one] for one in wanted]]
    if not chosen:
        reasons = "; ".join(f"{gate}: {reason}" for gate, reason in list(rejected.items())[:5])
        reasons = reasons or "it has no convolution or linear layer"
        raise UntraceableModelError(f"No gate was found in {name}, so nothing can be masked ({reasons}).")
    return chosen
