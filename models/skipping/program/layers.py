"""A CNN as the few layers that the skipping paths run: norms folded, sums and ReLUs fused into the layer before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from prunegym.models.masking.gates import Bits
from prunegym.models.masking.layouts import as_map

Pair = tuple[int, int]
ACTIVATIONS = ("", "relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu")
"""Functions of torch that a layer may end with; the first is none."""


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """The attributes that all layers have.

    Attributes:
        name: Name of the step of the traced graph whose value this layer computes.
        label: Name for users: the path of its module, or the name of the step.
        inputs: Names of the values that it reads.
        starts: Gates whose first filters are in this layer; they are decided before it runs.
    """

    name: str
    label: str
    inputs: tuple[str, ...]
    starts: tuple[int, ...] = dataclasses.field(default=(), kw_only=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Constants:
    """What a layer adds to its bias for the masked channels that it reads.

    Attributes:
        gates: The gates of these channels.
        table: (bits of these gates, out): for each bit the constant times the sum of its kernel.
    """

    gates: tuple[int, ...]
    table: Tensor

    def added(self, bits: Mapping[int, Tensor]) -> Tensor:
        """Return what is added, (images, out), from the bits of each gate (images, width), bool or numbers."""
        kept = torch.cat([bits[gate] for gate in self.gates], 1).to(self.table.dtype)
        return (1 - kept) @ self.table


@dataclasses.dataclass(frozen=True, eq=False)
class Conv(Layer):
    """A convolution, with its norm folded in; then the sum with ``inputs[1]``, if any, then an activation.

    Attributes:
        weight: (out, in / groups, height, width).
        bias: (out).
        stride: Rows, columns.
        padding: Zeros above and below, left and right.
        dilation: Rows, columns.
        activation: One of :data:`ACTIVATIONS`.
        groups: Groups of channels.
        constants: What the bias gets for masked channels; None for zeros.
    """

    weight: Tensor
    bias: Tensor
    stride: Pair
    padding: Pair
    dilation: Pair
    activation: str = ""
    groups: int = 1
    constants: Constants | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Norm(Layer):
    """What batch norm does in eval mode: ``x * scale + shift``, both (channels) float64; then an activation.

    Most are folded into a convolution.
    """

    scale: Tensor
    shift: Tensor
    activation: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class MaxPool(Layer):
    """Max pooling, then an activation."""

    kernel: Pair
    stride: Pair
    padding: Pair
    ceil: bool = False
    activation: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Add(Layer):
    """The sum of one or two values, then an activation."""

    activation: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Subsample(Layer):
    """Each ``stride``-th row and column; channels moved up by ``offset``, zeros in the others of ``channels``."""

    stride: Pair
    channels: int
    offset: int


@dataclasses.dataclass(frozen=True, eq=False)
class Average(Layer):
    """The average over all pixels."""


@dataclasses.dataclass(frozen=True, eq=False)
class Linear(Layer):
    """A linear layer on a vector or a flattened map: weight (out, features), bias (out); then an activation.

    ``constants`` are as those of a convolution.
    """

    weight: Tensor
    bias: Tensor
    activation: str = ""
    constants: Constants | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class AvgPool(Layer):
    """Averages over windows; ``padded``: zeros of the padding count."""

    kernel: Pair
    stride: Pair
    padding: Pair
    ceil: bool
    padded: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Scale(Layer):
    """A map times a factor for each channel, (channels, 1, 1): squeeze-and-excitation."""


@dataclasses.dataclass(frozen=True, eq=False)
class Concat(Layer):
    """Concatenation of values along the channels."""


@dataclasses.dataclass(frozen=True, eq=False)
class Other(Layer):
    """Any other layer; torch runs it.

    Attributes:
        run: Computes its value from the values by name.
        by_channel: Whether it treats each channel by itself, for any number of channels.
    """

    run: Callable[[dict[str, Tensor]], Tensor]
    by_channel: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The layers in order, and facts about their values.

    A space is a list of channels, each with or without a mask bit. The first spaces are those of the gates. A value in
    a space may be without its masked channels. Any other value is whole, and masks multiply it at the points.

    Attributes:
        input: Name of the images.
        output: Name of the value that the network returns.
        layers: The layers in the order in which they run.
        shapes: Shape of each value for one image, with all channels.
        spaces: The space of each value that may be without some channels.
        indices: For each space the positions in a mask, (channels,) int64; -1 for a channel that always exists.
        widths: Width of each gate.
        reads: For each gate the shape of its producer's input, as a policy gets it.
        points: For each value that masks multiply the gates, with their bits.
        output_shape: Shape of the network's output for one image; flattening is not a layer.
        ending: For each layer the values that are not needed after it.
    """

    input: str
    output: str
    layers: tuple[Layer, ...]
    shapes: Mapping[str, tuple[int, ...]]
    spaces: Mapping[str, int]
    indices: tuple[Tensor, ...]
    widths: tuple[int, ...]
    reads: tuple[tuple[int, ...], ...]
    points: Mapping[str, Sequence[tuple[int, Bits]]]
    output_shape: tuple[int, ...]
    ending: tuple[tuple[str, ...], ...] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        """Find the values that are not needed after each layer."""
        last = {name: index for index, layer in enumerate(self.layers) for name in layer.inputs}
        last.pop(self.output, None)
        ending: list[list[str]] = [[] for _ in self.layers]
        for name, index in last.items():
            ending[index].append(name)
        object.__setattr__(self, "ending", tuple(map(tuple, ending)))

    def seen(self, gate: int, value: Tensor) -> Tensor:
        """Return the input of a gate's producer as a policy gets it, (images, channels, height, width)."""
        shape = self.reads[gate]
        return value if value.shape[1:] == shape else as_map(value).reshape(len(value), *shape)

    def shaped(self, value: Tensor) -> Tensor:
        """Return the output in the network's own shape, because the program leaves out flattening."""
        return value.reshape(len(value), *self.output_shape)
