"""A CNN as the few layers that the skipping paths run: norms folded, sums and ReLUs fused into what comes before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from torch import Tensor

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """What all layers have.

    Attributes:
        name: Of the step of the traced graph whose value this layer makes.
        label: What people call it: the path of its module, or the name of the step.
        inputs: Names of the values that it reads.
    """

    name: str
    label: str
    inputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Conv(Layer):
    """A convolution without groups, with its norm folded in; then the sum with ``inputs[1]``, if any, then ReLU.

    Attributes:
        weight: (out, in, height, width).
        bias: (out).
        stride: Rows, columns.
        padding: Zeros above and below, left and right.
        dilation: Rows, columns.
        relu: Whether negative numbers become 0.
        gate: The gate whose channels it makes; None if they are always there.
    """

    weight: Tensor
    bias: Tensor
    stride: Pair
    padding: Pair
    dilation: Pair
    relu: bool = False
    gate: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Norm(Layer):
    """What batch norm does in eval mode, until it is folded: ``x * scale + shift``, both (channels) float64."""

    scale: Tensor
    shift: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class MaxPool(Layer):
    """Max pooling, then ReLU."""

    kernel: Pair
    stride: Pair
    padding: Pair
    relu: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Add(Layer):
    """The sum of one or two values, then ReLU."""

    relu: bool = False


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
    """A linear layer on a vector or a flattened map: weight (out, features), bias (out); then ReLU."""

    weight: Tensor
    bias: Tensor
    relu: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Other(Layer):
    """Anything else that treats each image, and behind a gate each channel, by itself; torch runs it.

    Attributes:
        run: From the values by name to its own.
    """

    run: Callable[[dict[str, Tensor]], Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The layers in order, and what is known of their values.

    Attributes:
        input: Name of the images.
        output: Name of the value that the network returns.
        layers: In the order in which they run.
        shapes: Shape of each value for one image, all channels counted.
        gates: The gate behind which a value's channels are; values without one are left out.
        widths: Width of each gate.
        points: For each gate the value that a mask multiplies where all channels are computed.
        output_shape: Shape of what the network returns for one image; flattening is none of the layers.
        ending: For each layer the values that are not needed after it.
    """

    input: str
    output: str
    layers: tuple[Layer, ...]
    shapes: Mapping[str, tuple[int, ...]]
    gates: Mapping[str, int]
    widths: tuple[int, ...]
    points: Mapping[str, int]
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

    def shaped(self, value: Tensor) -> Tensor:
        """Return the output in the network's own shape, which flattening has been left out of."""
        return value.reshape(len(value), *self.output_shape)
