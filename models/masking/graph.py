"""A recorded network: a list of ATen operations, each with its arguments by name, its kind and its output shape."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.models.masking.operators import Kind

INPUT, ITEM = "input", "getitem"


@dataclasses.dataclass(frozen=True)
class OutputOf:
    """In a step's arguments: the output of the step with this name."""

    name: str


@dataclasses.dataclass(frozen=True)
class Attribute:
    """In a step's arguments: a parameter or buffer of the network."""

    path: str


@dataclasses.dataclass(frozen=True)
class Batch:
    """In a step's arguments: a whole number that depends on the size of the batch, ``times * batch + plus``."""

    times: int
    plus: int


@dataclasses.dataclass(frozen=True)
class ModeOf:
    """In a step's arguments: whether a module of the network is in training mode."""

    path: str


class Own(enum.Enum):
    """In a step's arguments: the device or the dtype of the network, which may be moved."""

    DEVICE = "device"
    DTYPE = "dtype"


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation of the network.

    Attributes:
        name: Unique name of its output.
        target: Operator and overload, e.g. ``aten::conv2d``; :data:`INPUT`, or :data:`ITEM` for one of several outputs.
        arguments: All arguments by name, with an :class:`OutputOf`, :class:`Attribute`, ... for those that vary.
        layer: Path of the module that owns its weight, or of the innermost module that runs it.
        place: File and line of the user's code.
        shape: Shape of its output for one image; empty if the output is not a tensor.
        kind: What it does to channels.
    """

    name: str
    target: str
    arguments: dict[str, Any]
    layer: str = ""
    place: str = ""
    shape: tuple[int, ...] = ()
    kind: Kind = Kind.OTHER

    @functools.cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the steps whose outputs it reads, each once."""
        return tuple(dict.fromkeys(part.name for part in leaves(self.arguments) if isinstance(part, OutputOf)))

    @property
    def operation(self) -> str:
        """Name of the operator without namespace and overload, e.g. ``add``."""
        return operation_of(self.target)

    @property
    def weight(self) -> str:
        """Path of its weight, a parameter; empty if it has no weight or a computed one."""
        weight = self.arguments.get("weight")
        return weight.path if isinstance(weight, Attribute) else ""

    def __str__(self) -> str:
        """Return the step's name and place, for messages."""
        return f"{self.name!r} ({self.place})" if self.place else repr(self.name)


@dataclasses.dataclass(frozen=True)
class Graph:
    """The steps in the order in which they run, and the name of the step that gives the network's output."""

    steps: tuple[Step, ...]
    output: str

    def __post_init__(self) -> None:
        """Index the steps by name, and their users."""
        users: dict[str, list[str]] = {step.name: [] for step in self.steps}
        for step in self.steps:
            for name in step.inputs:
                users[name].append(step.name)
        object.__setattr__(self, "index", {step.name: position for position, step in enumerate(self.steps)})
        object.__setattr__(self, "users", {name: tuple(names) for name, names in users.items()})

    index: dict[str, int] = dataclasses.field(init=False, repr=False)
    users: dict[str, tuple[str, ...]] = dataclasses.field(init=False, repr=False)

    @property
    def input(self) -> str:
        """Name of the step that is the network's input."""
        return self.steps[0].name

    def __getitem__(self, name: str) -> Step:
        """Return the step with that name."""
        return self.steps[self.index[name]]


def operation_of(target: str) -> str:
    """Return the name of an operator without namespace and overload."""
    return target.rpartition("::")[2].partition(".")[0]


def leaves(argument: Any) -> Iterator[Any]:
    """Return the parts of an argument, with lists and dicts flattened."""
    if isinstance(argument, dict):
        argument = argument.values()
    elif not isinstance(argument, list | tuple):
        yield argument
        return
    for item in argument:
        yield from leaves(item)


def attribute_of(network: nn.Module, path: str) -> Tensor:
    """Return a parameter or buffer of a network by its path."""
    parent, _, leaf = path.rpartition(".")
    value: Tensor = getattr(network.get_submodule(parent), leaf)
    return value


Runner = Callable[[dict[str, Any]], Any]
_Getter = Callable[[dict[str, Any]], Any]

# Called as torch's own functions, which take many arguments faster than the operators do.
_FAST: dict[str, Callable[..., Any]] = {
    "aten::conv2d": torch.conv2d,
    "aten::batch_norm": torch.batch_norm,
    # A view, or a copy where the memory layout allows none, since channels_last is this package's choice.
    "aten::view": torch.ops.aten.reshape.default,
}


def runner(step: Step, network: nn.Module) -> Runner:
    """Return a function that computes a step's output from the values so far, which begin with the network's input."""
    if step.target == INPUT:
        return lambda values: values[step.name]
    if step.target == ITEM:
        source, place = step.arguments["self"].name, step.arguments["index"]
        return lambda values: values[source][place]
    packet, _, overload = step.target.partition(".")
    space, _, name = packet.partition("::")
    operator = getattr(getattr(getattr(torch.ops, space), name), overload or "default")
    named = {a.name for a in operator._schema.arguments if a.kwarg_only}
    getters = [_getter(value, network) for key, value in step.arguments.items() if key not in named]
    options = {key: _getter(step.arguments[key], network) for key in step.arguments if key in named}
    function: Callable[..., Any] = _FAST.get(step.target, operator)
    if step.operation == "batch_norm" and isinstance(step.arguments["training"], ModeOf):
        function = _batch_norm(network.get_submodule(step.arguments["training"].path))
    if not options:
        return lambda values: function(*[get(values) for get in getters])
    return lambda values: function(
        *[get(values) for get in getters], **{key: get(values) for key, get in options.items()}
    )


def _getter(argument: Any, network: nn.Module) -> _Getter:
    """Return a function that computes an argument's value."""
    if isinstance(argument, OutputOf):
        name = argument.name
        return lambda values: values[name]
    if isinstance(argument, Attribute):
        parent, _, leaf = argument.path.rpartition(".")
        module = network.get_submodule(parent)
        store: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers
        return lambda _values: store[leaf]
    if isinstance(argument, Batch):
        times, plus = argument.times, argument.plus
        return lambda values: times * values[BATCH] + plus
    if isinstance(argument, ModeOf):
        layer = network.get_submodule(argument.path)
        return lambda _values: layer.training
    if isinstance(argument, Own):
        field = argument.value
        return lambda values: getattr(values[LIKE], field)
    if isinstance(argument, list | tuple) and any(isinstance(part, _VARYING) for part in leaves(argument)):
        parts = [_getter(part, network) for part in argument]
        return lambda values: [get(values) for get in parts]
    return lambda _values: argument


_VARYING = (OutputOf, Attribute, Batch, ModeOf, Own)

BATCH, LIKE = " batch", " like"
"""Among the values of a pass: the number of images, and a tensor that has the network's device and dtype."""


def first_values(graph: Graph, images: Tensor) -> dict[str, Any]:
    """Return the values with which a pass begins."""
    return {graph.input: images, BATCH: len(images), LIKE: images[:0]}


def _batch_norm(module: nn.Module) -> Callable[..., Tensor]:
    """Return the function of a batch norm, which in training mode counts the batches as torch's modules do."""

    def run(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, *rest: Any) -> Any:
        count = module._buffers.get("num_batches_tracked")
        if training and count is not None:
            count.add_(1)
            if getattr(module, "momentum", momentum) is None:  # a running average over all batches
                momentum = 1.0 / float(count)
        return torch.batch_norm(x, weight, bias, mean, var, training, momentum, *rest)

    return run
