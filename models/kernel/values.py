"""What a builder collects: values, layers, gates and spaces of channels; and checks of what is given to it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.kernel.buffers import Value
from prunegym.models.kernel.shared_library import (
    ACTIVATIONS,
    ARRAYS,
    FLOATS,
    KINDS,
    MAX_CHANNELS,
    MAX_PIXELS,
    LayerRecord,
)
from prunegym.validation import choice, shape, whole_number

MAX_GRID = 1024
PACKED = ("conv", "max_pool", "subsample", "average", "convert", "decide", "look")
"""Kinds of layers that may read bytes or bfloat16."""
LayerFields = dict[str, int | Tensor]


class Values:
    """Values and layers so far.

    Args:
        gates: Width of each gate, in the order of the mask bits.
    """

    def __init__(self, gates: Sequence[int]) -> None:
        self._values: list[Value] = []
        self._layers: list[LayerFields] = []
        self._widths = [whole_number(f"The width of gate {i}", width, 1, MAX_CHANNELS) for i, width in enumerate(gates)]
        self._decided: set[int] = set()
        self._spaces: list[tuple[int, ...]] = []
        self._inputs = 0

    def input(self, channels: int, height: int = 0, width: int = 0, gate: int | None = None) -> Value:
        """Add a value that is given with the images: a map, or a vector if it has no height and width.

        Args:
            channels: In all; of those of a gate or space the kept ones are read.
            height: Pixels.
            width: Pixels.
            gate: A gate or space.
        """
        y = self._value(channels, height, width, gate) if height else self._value(channels, 1, 1, gate, stride=0)
        self._layer("load", None, y, {"offset": self._inputs})
        self._inputs += 1
        return y

    @property
    def size(self) -> int:
        """Number of layers so far."""
        return len(self._layers)

    def space(self, index: Sequence[int]) -> int:
        """Return a number to use as ``gate`` for channels of several gates or of a part of one.

        Args:
            index: (channels) the place of each channel's bit in a mask, or -1 for a channel that is always there.
        """
        row = tuple(whole_number("The place of a mask bit", place, -1, sum(self._widths) - 1) for place in index)
        start = 0
        for gate, width in enumerate(self._widths):
            if row == tuple(range(start, start + width)):
                return gate
            start += width
        if row not in self._spaces:
            self._spaces.append(row)
        return len(self._widths) + self._spaces.index(row)

    def _own(self, x: Value, needs_map: str = "") -> Value:
        """Return a value if it is one of this builder, and a map if the layer ``needs_map``."""
        if not any(value is x for value in self._values):
            raise InvalidInputError(f"{x!r} is not a value of this builder; give what one of its methods returned.")
        if needs_map and x.stride == 0:
            raise InvalidInputError(f"{needs_map} needs a map, and {x!r} is a vector.")
        return x

    def _gate(self, gate: int, spaces: int = 0) -> int:
        if whole_number("gate", gate, 0) >= len(self._widths) + spaces:
            raise InvalidInputError(f"There is no gate {gate}; the widths of the gates are {self._widths}.")
        return int(gate)

    def _bits(self, gate: int | None, channels: int) -> list[int]:
        """Return the places of the mask bits of a value's channels."""
        if gate is None:
            return [-1] * channels
        if gate >= len(self._widths):
            return list(self._spaces[gate - len(self._widths)])
        start = sum(self._widths[:gate])
        return list(range(start, start + self._widths[gate]))

    def _biases(self, bias: Tensor | Value | None, outputs: int) -> tuple[Tensor, Value | None]:
        """Return a layer's own bias, and the value to take instead if one is given."""
        if not isinstance(bias, Value):
            return bias_of(bias, outputs), None
        if (self._own(bias).channels, bias.stride, bias.gate) != (outputs, 0, None):
            raise InvalidInputError(f"The biases are {shape_of(bias)}, a vector of {outputs} channels is needed.")
        return bias_of(None, outputs), bias

    def _features(self, x: Value, average: bool, grid: int) -> int:
        """Return the number of features that a decision is made from."""
        per_channel = int(bool(average)) + whole_number("grid", grid, 0, MAX_GRID) ** 2
        features = self._own(x).channels * per_channel
        return whole_number("The number of features", features, 1, MAX_PIXELS, "Use average=True or a smaller grid.")

    def _value(
        self,
        channels: int,
        height: int,
        width: int,
        gate: int | None = None,
        *,
        stride: int | None = None,
        scale: float = 0.0,
        zero: int = FLOATS,
    ) -> Value:
        channels = whole_number("The number of channels", channels, 1, MAX_CHANNELS)
        stride = width + 1 if stride is None else stride
        if height < 1 or width < 1:
            raise InvalidInputError(f"The map has {height}x{width} pixels: the image is too small for this layer.")
        if (height + 4) * stride > MAX_PIXELS:
            raise InvalidInputError(
                f"The map has {height}x{width} pixels; the kernel takes at most {MAX_PIXELS:,}. Use smaller images."
            )
        if gate is not None and len(self._bits(self._gate(gate, len(self._spaces)), 0)) != channels:
            raise InvalidInputError(
                f"Gate {gate} does not fit {channels} channels; the widths of the gates are {self._widths}."
            )
        value = Value(len(self._values), channels, height, width, stride, gate, scale, zero)
        self._values.append(value)
        return value

    def _layer(
        self,
        kind: str,
        x: Value | None,
        output: Value | None,
        fields: LayerFields,
        second: Value | None = None,
        biases: Value | None = None,
    ) -> None:
        if x is not None and x.is_packed and kind not in PACKED:
            raise InvalidInputError(f"{kind} does not read bytes or bfloat16; give what to_floats() makes of {x!r}.")
        places = {"input": x, "second": second, "biases": biases, "output": output}
        numbers = {name: -1 if value is None else value.index for name, value in places.items()}
        self._layers.append({"kind": KINDS.index(kind), **numbers, **fields})


def shape_of(value: Value) -> tuple[int, int, int, int | None]:
    """Return channels, height, width and gate."""
    return value.channels, value.height, value.width, value.gate


def check_stride(stride: int) -> int:
    """Return a stride if it is one."""
    return whole_number("stride", stride, 1, MAX_PIXELS)


def window(
    x: Value, reach: tuple[int, int], stride: int, padding: Sequence[int], ceil: bool = False
) -> tuple[int, int]:
    """Return height and width of what a convolution or a pooling makes of a map."""

    def windows(size: int, reach: int, padding: int) -> int:
        # As torch's Conv2d and MaxPool2d count: floor((size + 2 padding - reach) / stride) + 1.
        room = size + 2 * padding - reach
        count = (room + (stride - 1 if ceil else 0)) // stride + 1
        return count - 1 if ceil and (count - 1) * stride >= size + padding else count  # none begins in the padding

    if any(size + 2 * pad < one for size, one, pad in zip((x.height, x.width), reach, padding, strict=True)):
        raise InvalidInputError(f"A window of {reach} on a map of {x.height}x{x.width}: the image is too small.")
    return windows(x.height, reach[0], padding[0]), windows(x.width, reach[1], padding[1])


def activation_number(relu: bool, activation: str) -> int:
    """Return an activation's number in the kernel."""
    return ACTIVATIONS.index(choice("activation", activation or ("relu" if relu else ""), ACTIVATIONS))


def check_groups(groups: int, channels: int, weight: Tensor) -> int:
    """Return a number of groups if it divides inputs and outputs."""
    groups = whole_number("groups", groups, 1, MAX_CHANNELS)
    if channels % groups or (isinstance(weight, Tensor) and weight.ndim and len(weight) % groups):
        raise InvalidInputError(f"{groups} groups of {channels} channels; they must divide inputs and outputs.")
    return groups


def check_floats(name: str, values: Tensor, expected: tuple[int | str, ...]) -> Tensor:
    """Return numbers if they are a plain tensor of the expected shape."""
    dense = isinstance(values, Tensor) and values.layout == torch.strided and not values.is_meta
    if not dense or not values.is_floating_point():
        found = f"{values.dtype}, {values.layout} on {values.device}" if isinstance(values, Tensor) else repr(values)
        raise InvalidInputError(f"{name} is {found}; a dense tensor of floating-point numbers is needed.")
    return shape(name, values, expected)


def bias_of(bias: Tensor | None, outputs: int) -> Tensor:
    """Return a bias (outputs); zeros where there is none."""
    if bias is None:
        return torch.zeros(outputs, dtype=torch.float32, device="cpu")  # whatever torch's defaults are
    return check_floats("The bias", bias, (outputs,))


def record_of(layer: LayerFields, arrays: list[Tensor]) -> LayerRecord:
    """Return the record of a layer; the tensors that it points to are added to ``arrays``."""
    record = LayerRecord(**{name: int(value) for name, value in layer.items() if name not in ARRAYS})
    for name in ARRAYS:
        value = layer.get(name)
        if isinstance(value, Tensor):
            # A tensor's memory may hold the negative of its values, as that of x.conj().imag does.
            arrays.append(value.detach().to(device="cpu", dtype=torch.float32).resolve_neg().contiguous())
            setattr(record, name, ctypes.cast(arrays[-1].data_ptr(), ctypes.POINTER(ctypes.c_float)))
    return record
