"""A CNN as the few layers that the skipping paths run: norms folded, sums and ReLUs fused into what comes before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from prunegym.models.masking.gates import Bits
from prunegym.models.masking.layouts import as_map

Pair = tuple[int, int]
ACTIVATIONS = ("", "relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu")
"""Functions of torch that a layer may end with; the first is none."""


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """What all layers have.

    Attributes:
        name: Of the step of the traced graph whose value this layer makes.
        label: What people call it: the path of its module, or the name of the step.
        inputs: Names of the values that it reads.
        starts: Gates whose first filters it has; they are decided before it runs.
    """

    name: str
    label: str
    inputs: tuple[str, ...]
    starts: tuple[int, ...] = dataclasses.field(default=(), kw_only=True)


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
    """

    weight: Tensor
    bias: Tensor
    stride: Pair
    padding: Pair
    dilation: Pair
    activation: str = ""
    groups: int = 1


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
    """A linear layer on a vector or a flattened map: weight (out, features), bias (out); then an activation."""

    weight: Tensor
    bias: Tensor
    activation: str = ""


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
    """Values side by side, by channels."""


@dataclasses.dataclass(frozen=True, eq=False)
class Other(Layer):
    """Anything else; torch runs it.

    Attributes:
        run: From the values by name to its own.
        by_channel: Whether it treats each channel by itself, whatever their number.
    """

    run: Callable[[dict[str, Tensor]], Tensor]
    by_channel: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The layers in order, and what is known of their values.

    A space is a row of channels, each with its mask bit or none. The first spaces are those of the gates. A value in a
    space may lack the channels that are masked; any other value is whole, and masks multiply it at the points.

    Attributes:
        input: Name of the images.
        output: Name of the value that the network returns.
        layers: In the order in which they run.
        shapes: Shape of each value for one image, all channels counted.
        spaces: The space of each value that may lack channels.
        indices: For each space the positions in a mask, (channels,) int64; -1 for a channel that is always there.
        widths: Width of each gate.
        reads: For each gate the shape in which a policy sees what its producer reads.
        points: For each value that masks multiply the gates, with their bits.
        output_shape: Shape of what the network returns for one image; flattening is none of the layers.
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
        """Find out which values end where."""
        last = {name: index for index, layer in enumerate(self.layers) for name in layer.inputs}
        last.pop(self.output, None)
        ending: list[list[str]] = [[] for _ in self.layers]
        for name, index in last.items():
            ending[index].append(name)
        object.__setattr__(self, "ending", tuple(map(tuple, ending)))

    def seen(self, gate: int, value: Tensor) -> Tensor:
        """Return what a gate's producer reads as a policy sees it, (images, channels, height, width)."""
        shape = self.reads[gate]
        return value if value.shape[1:] == shape else as_map(value).reshape(len(value), *shape)

    def shaped(self, value: Tensor) -> Tensor:
        """Return the output in the network's own shape, which flattening has been left out of."""
        return value.reshape(len(value), *self.output_shape)
