"""The builder of a plan, to which the layers of a network are added one by one."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.kernel.plan import GateHead, Plan
from prunegym.models.kernel.shared_library import (
    ACTIVATIONS,
    ARRAYS,
    KINDS,
    MAX_CHANNELS,
    MAX_PIXELS,
    LayerRecord,
    Value,
    ValueRecord,
    assign_buffers,
)
from prunegym.validation import choice, shape, whole_number

MAX_KERNEL, MAX_GRID, MAX_REACH = 7, 1024, 1024
Pair = int | tuple[int, int]
LayerFields = dict[str, int | Tensor]


class PlanBuilder:
    """Collects the layers of a network and builds a :class:`Plan`.

    Args:
        channels: Channels of the images.
        height: Their pixels.
        width: Their pixels.
        gates: Width of each gate, in the order of the mask bits.

    Raises:
        InvalidInputError: If a size or width is not a whole number of at least 1, or too large. All methods raise it
            too, for a value of another builder, and for shapes, gates or settings that do not fit.

    Example:
        >>> from prunegym.models import kernel
        >>> builder = kernel.PlanBuilder(3, 8, 8, gates=[4])
        >>> x = builder.conv(builder.images, torch.ones(4, 3, 3, 3), padding=1, relu=True, gate=0)
        >>> x = builder.linear(builder.average(x), torch.ones(2, 4))
        >>> if kernel.available():
        ...     outputs, masks = builder.build(x)(torch.ones(1, 3, 8, 8), torch.tensor([[1, 0, 0, 1]]))
    """

    def __init__(self, channels: int, height: int, width: int, gates: Sequence[int] = ()) -> None:
        self._values: list[Value] = []
        self._layers: list[LayerFields] = []
        self._widths = [whole_number(f"The width of gate {i}", width, 1, MAX_CHANNELS) for i, width in enumerate(gates)]
        self._decided: set[int] = set()
        sides = (whole_number(name, size, 1, MAX_PIXELS) for name, size in (("height", height), ("width", width)))
        self._spaces: list[tuple[int, ...]] = []
        self._inputs = 0
        self.images = self.input(channels, *sides)
        """The images, first of all values."""

    @classmethod
    def without_images(cls, gates: Sequence[int]) -> PlanBuilder:
        """Return a builder that has no value yet; :meth:`input` adds the first, of any shape."""
        builder = cls(1, 1, 1, gates)
        del builder._values[:], builder._layers[:]
        builder._inputs = 0
        return builder

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

    def conv(
        self,
        x: Value,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: int = 1,
        padding: Pair = 0,
        dilation: int = 1,
        groups: int = 1,
        relu: bool = False,
        activation: str = "",
        gate: int | None = None,
        residual: Value | None = None,
    ) -> Value:
        """Add a convolution, and what follows it at once: a residual sum, then an activation.

        A depthwise convolution, one filter a channel, keeps the channels that its input keeps.

        Args:
            x: A map.
            weight: (out, in / groups, height, width), at most 7x7.
            bias: (out).
            stride: Stride of both axes, at least 1.
            padding: Zeros on each side; or above and below, left and right.
            dilation: Dilation of both axes, at least 1.
            groups: Number of groups of channels.
            relu: Whether negative numbers become 0.
            activation: One of ``ACTIVATIONS``, in place of ``relu``.
            gate: The gate or space whose bits say which output channels are computed.
            residual: A map of the output's shape and gate, added before the activation.

        Raises:
            InvalidInputError: If shapes do not fit, or the kernel has no such convolution.
        """
        self._own(x, "conv()")
        groups = _groups(groups, x.channels, weight)
        expected = "out", x.channels // groups, "height", "width"
        out, _, rows, columns = _floats("The weight", weight, expected).shape
        stride, dilation = _stride(stride), whole_number("dilation", dilation, 1, MAX_REACH)
        down, right = (padding, padding) if isinstance(padding, int) else padding
        pads = [whole_number("padding", one, 0, MAX_REACH) for one in (down, right)]
        for side in (rows, columns):
            whole_number("The kernel's side", side, 1, MAX_KERNEL)
        reach = (rows - 1) * dilation + 1, (columns - 1) * dilation + 1
        height, width = _window(x, reach, stride, pads)
        # With rows of the input's stride such a convolution reads the input map directly, without copies.
        small = stride == dilation == 1 and max(rows, columns) <= 3
        in_place = small and pads[0] <= (rows - 1) // 2 and pads[1] <= (columns - 1) // 2
        y = self._value(out, height, width, gate, stride=x.stride if in_place else None)
        if (height + reach[0] + 4) * (width + reach[1] + 4) > MAX_PIXELS:
            raise InvalidInputError(f"The kernel reaches over {reach} pixels; that is too much for such a map.")
        if residual is not None and _shape(self._own(residual, "residual")) != _shape(y):
            raise InvalidInputError(
                f"The residual is {_shape(residual)}, but the convolution's output is {_shape(y)}; they must be equal."
            )
        depthwise = groups == x.channels == out and groups > 1 and residual is None and x.gate == gate
        fields: LayerFields = {"kernel": rows, "kernel_width": columns, "stride": stride, "padding": pads[0]}
        fields |= {"padding_width": pads[1], "dilation": dilation, "groups": groups}
        fields |= {"activation": _activation(relu, activation), "weight": weight, "bias": _bias(bias, out)}
        self._layer("depthwise" if depthwise else "conv", x, y, fields, second=residual)
        return y

    def max_pool(
        self,
        x: Value,
        kernel: int,
        stride: int | None = None,
        padding: int = 0,
        *,
        ceil_mode: bool = False,
        relu: bool = False,
        activation: str = "",
    ) -> Value:
        """Add max pooling as in torch, and an activation after it if one is given; 2x2 with stride 2 is fast."""
        fields: LayerFields = {"activation": _activation(relu, activation)}
        return self._pool("max_pool", x, kernel, stride, padding, ceil_mode, fields)

    def avg_pool(
        self,
        x: Value,
        kernel: int,
        stride: int | None = None,
        padding: int = 0,
        *,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> Value:
        """Add the averages over windows, as in torch."""
        return self._pool("avg_pool", x, kernel, stride, padding, ceil_mode, {"average": bool(count_include_pad)})

    def _pool(
        self, kind: str, x: Value, kernel: int, stride: int | None, padding: int, ceil: bool, fields: LayerFields
    ) -> Value:
        self._own(x, f"{kind}()")
        kernel = whole_number("kernel", kernel, 1, MAX_PIXELS)
        stride = kernel if stride is None else _stride(stride)
        padding = whole_number("padding", padding, 0, kernel // 2, "Pad by half of the kernel at most, as in torch.")
        height, width = _window(x, (kernel, kernel), stride, (padding, padding), ceil)
        y = self._value(x.channels, height, width, x.gate)
        fields = {**fields, "kernel": kernel, "kernel_width": kernel, "ceil": bool(ceil)}
        self._layer(kind, x, y, {**fields, "stride": stride, "padding": padding, "padding_width": padding})
        return y

    def concat(
        self,
        parts: Sequence[Value],
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        *,
        activation: str = "",
        gate: int | None = None,
    ) -> Value:
        """Concatenate values by channels; then ``x * scale + shift`` if given, and an activation.

        Args:
            parts: Maps of one size, or vectors; at least one.
            scale: (channels).
            shift: (channels).
            activation: One of ``ACTIVATIONS``.
            gate: The gate or space of the channels together; its mask bits must be those of the parts.
        """
        first, channels = self._own(parts[0]), sum(self._own(part).channels for part in parts)
        sizes = {(part.height, part.width, part.stride > 0) for part in parts}
        if len(sizes) > 1:
            raise InvalidInputError(f"These sizes cannot be concatenated: {[_shape(part) for part in parts]}.")
        bits = [bit for part in parts for bit in self._bits(part.gate, part.channels)]
        if self._bits(gate, channels) != bits:
            raise InvalidInputError("The channels of the parts have other mask bits than the gate of the result.")
        y = self._value(channels, first.height, first.width, gate, stride=first.stride if first.stride == 0 else None)
        fields: LayerFields = {"activation": _activation(False, activation)}
        if scale is not None:
            fields["weight"] = _floats("scale", scale, (channels,))
            fields["bias"] = _bias(shift, channels)
        offset = 0
        for part in parts:
            self._layer("place", part, y, {**fields, "offset": offset})
            offset += part.channels
        return y

    def scale(self, x: Value, factors: Value) -> Value:
        """Add a map (or vector) times a factor for each channel, a vector of as many channels and the same gate."""
        self._own(x)
        if (factors.channels, factors.gate, self._own(factors).stride) != (x.channels, x.gate, 0):
            raise InvalidInputError(f"The factors are {_shape(factors)}, a vector like {_shape(x)} is needed.")
        y = self._value(x.channels, x.height, x.width, x.gate, stride=x.stride)
        self._layer("scale", x, y, {}, second=factors)
        return y

    def expand(self, x: Value) -> Value:
        """Add a value with all of its channels, zeros where they are masked."""
        y = self._value(self._own(x).channels, x.height, x.width, stride=x.stride)
        self._layer("expand", x, y, {})
        return y

    def add(self, a: Value, b: Value | None = None, *, relu: bool = False, activation: str = "") -> Value:
        """Add the sum of two values of the same shape and gate, or ``a`` alone, with an activation if one is given."""
        self._own(a)
        if b is not None and _shape(a) != _shape(self._own(b)):
            raise InvalidInputError(
                f"Cannot add {_shape(a)} and {_shape(b)} (channels, height, width, gate); they must be equal."
            )
        y = self._value(a.channels, a.height, a.width, a.gate, stride=a.stride)
        self._layer("add", a, y, {"activation": _activation(relu, activation)}, second=b)
        return y

    def subsample(self, x: Value, stride: int, channels: int, offset: int) -> Value:
        """Add ResNet's option A shortcut: every ``stride``-th pixel, channels up by ``offset``, zeros elsewhere."""
        if self._own(x, "subsample()").gate is not None:
            raise InvalidInputError("The shortcut's input must not be masked by a gate.")
        stride, offset = _stride(stride), whole_number("offset", offset, 0, MAX_CHANNELS)
        y = self._value(channels, (x.height - 1) // stride + 1, (x.width - 1) // stride + 1)
        self._layer("subsample", x, y, {"stride": stride, "offset": offset})
        return y

    def average(self, x: Value) -> Value:
        """Add the average over all pixels: a map becomes a vector."""
        self._own(x, "average()")
        y = self._value(x.channels, 1, 1, x.gate, stride=0)
        self._layer("average", x, y, {})
        return y

    def linear(
        self,
        x: Value,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        relu: bool = False,
        activation: str = "",
        gate: int | None = None,
    ) -> Value:
        """Add a linear layer on a vector, or on a map flattened as in torch.

        Args:
            x: A vector or map.
            weight: (out, channels * height * width).
            bias: (out).
            relu: Whether negative numbers become 0.
            activation: One of ``ACTIVATIONS``, in place of ``relu``.
            gate: The gate or space whose bits say which outputs are computed.
        """
        features = self._own(x).channels * x.height * x.width
        _floats("The weight", weight, ("outputs", features))
        y = self._value(len(weight), 1, 1, gate, stride=0)
        fields: LayerFields = {"activation": _activation(relu, activation)}
        self._layer("linear", x, y, {**fields, "weight": weight, "bias": _bias(bias, len(weight))})
        return y

    def decide(self, gate: int, x: Value, head: GateHead) -> None:
        """Let a policy decide a gate from the map ``x``. Call it before you add the layers with this gate.

        Raises:
            InvalidInputError: If the head does not fit, or the gate is already in use.
        """
        gate, features = self._gate(gate), self._features(x, head.average, head.grid)
        hidden = len(_floats("bias1", head.bias1, ("hidden",)))
        whole_number(f"The hidden size of the policy of gate {gate}", hidden, 1, MAX_CHANNELS)
        if any(value.gate == gate for value in self._values) or gate in self._decided:
            raise InvalidInputError(f"Gate {gate} is already in use; decide it once, before its convolution.")

        def part(name: str, *expected: int) -> Tensor:
            return _floats(f"{name} of the policy of gate {gate}", getattr(head, name), expected)

        width = self._widths[gate]
        fields: LayerFields = {"gate": gate, "average": bool(head.average), "grid": head.grid, "hidden": hidden}
        fields |= {"mean": part("mean", features), "scale": 1 / part("std", features)}
        fields |= {"weight": part("weight1", hidden, features), "bias": head.bias1}
        fields |= {"weight2": part("weight2", width, hidden), "bias2": part("bias2", width)}
        self._decided.add(gate)
        self._layer("decide", x, None, fields)

    def look(self, x: Value, mean: Tensor, std: Tensor, *, average: bool = True, grid: int = 0) -> None:
        """Add a stop at which an external agent sees the standardised features of the map ``x`` (:class:`GateHead`).

        A :class:`~prunegym.models.kernel.Pass` stops there; calling the plan ignores it.
        """
        size = self._features(x, average, grid)
        fields: LayerFields = {"average": bool(average), "grid": grid, "mean": _floats("mean", mean, (size,))}
        self._layer("look", x, None, {**fields, "scale": 1 / _floats("std", std, (size,))})

    def build(self, output: Value | Sequence[Value], variant: str | None = None) -> Plan:
        """Copy all weights into a plan.

        Args:
            output: What the plan returns: a vector or map, all channels, zeros where they are masked; or several, one
                after the other.
            variant: One of :func:`variants`; None for the best.

        Raises:
            InvalidInputError: If an output is not a value of this builder, or there is no such variant.
            MissingDependencyError: If the kernel is not available.
        """
        layers, place = list(self._layers), 0
        for value in output if isinstance(output, list | tuple) else [output]:
            self._own(value)
            store: LayerFields = {"kind": KINDS.index("store"), "input": value.index, "second": -1, "output": -1}
            layers.append({**store, "offset": place})
            place += value.channels * value.height * value.width
        whole_number("The number of outputs", place, 1, 2**31 - 1)
        buffers, places = assign_buffers(self._values, layers)
        records = [
            ValueRecord(place, value.channels, -1 if value.gate is None else value.gate)
            if place >= 0
            else ValueRecord(0, 1, -1)  # nothing makes it: its layer was refused
            for place, value in zip(places, self._values, strict=True)
        ]
        arrays: list[Tensor] = []  # kept alive until the plan has copied them
        return Plan(
            variant,
            buffers,
            records,
            self._widths,
            self._spaces,
            [_record(layer, arrays) for layer in layers],
        )

    def _own(self, x: Value, needs_map: str = "") -> Value:
        """Return a value after checking that it is from this builder, and a map if the layer ``needs_map``."""
        if not any(value is x for value in self._values):
            raise InvalidInputError(
                f"{x!r} is not a value of this builder; give a value that one of its methods returned."
            )
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

    def _features(self, x: Value, average: bool, grid: int) -> int:
        """Return the number of features of a decision."""
        per_channel = int(bool(average)) + whole_number("grid", grid, 0, MAX_GRID) ** 2
        features = self._own(x).channels * per_channel
        return whole_number("The number of features", features, 1, MAX_PIXELS, "Use average=True or a smaller grid.")

    def _value(
        self, channels: int, height: int, width: int, gate: int | None = None, *, stride: int | None = None
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
        value = Value(len(self._values), channels, height, width, stride, gate)
        self._values.append(value)
        return value

    def _layer(
        self, kind: str, x: Value | None, output: Value | None, fields: LayerFields, second: Value | None = None
    ) -> None:
        places = {"input": x, "second": second, "output": output}
        numbers = {name: -1 if value is None else value.index for name, value in places.items()}
        self._layers.append({"kind": KINDS.index(kind), **numbers, **fields})


def _shape(value: Value) -> tuple[int, int, int, int | None]:
    return value.channels, value.height, value.width, value.gate


def _stride(stride: int) -> int:
    return whole_number("stride", stride, 1, MAX_PIXELS)


def _window(
    x: Value, reach: tuple[int, int], stride: int, padding: Sequence[int], ceil: bool = False
) -> tuple[int, int]:
    """Return height and width of the output of a convolution or a pooling."""

    def windows(size: int, reach: int, padding: int) -> int:
        # As torch's Conv2d and MaxPool2d count: floor((size + 2 padding - reach) / stride) + 1.
        room = size + 2 * padding - reach
        count = (room + (stride - 1 if ceil else 0)) // stride + 1
        return count - 1 if ceil and (count - 1) * stride >= size + padding else count  # none begins in the padding

    if any(size + 2 * pad < one for size, one, pad in zip((x.height, x.width), reach, padding, strict=True)):
        raise InvalidInputError(f"A window of {reach} on a map of {x.height}x{x.width}: the image is too small.")
    return windows(x.height, reach[0], padding[0]), windows(x.width, reach[1], padding[1])


def _activation(relu: bool, activation: str) -> int:
    return ACTIVATIONS.index(choice("activation", activation or ("relu" if relu else ""), ACTIVATIONS))


def _groups(groups: int, channels: int, weight: Tensor) -> int:
    groups = whole_number("groups", groups, 1, MAX_CHANNELS)
    if channels % groups or (isinstance(weight, Tensor) and weight.ndim and len(weight) % groups):
        raise InvalidInputError(f"{groups} groups of {channels} channels; they must divide inputs and outputs.")
    return groups


def _floats(name: str, values: Tensor, expected: tuple[int | str, ...]) -> Tensor:
    dense = isinstance(values, Tensor) and values.layout == torch.strided and not values.is_meta
    if not dense or not values.is_floating_point():
        found = f"{values.dtype}, {values.layout} on {values.device}" if isinstance(values, Tensor) else repr(values)
        raise InvalidInputError(f"{name} is {found}; a dense tensor of floating-point numbers is needed.")
    return shape(name, values, expected)


def _bias(bias: Tensor | None, outputs: int) -> Tensor:
    if bias is None:
        return torch.zeros(outputs, dtype=torch.float32, device="cpu")  # whatever torch's defaults are
    return _floats("The bias", bias, (outputs,))


def _record(layer: LayerFields, arrays: list[Tensor]) -> LayerRecord:
    record = LayerRecord(**{name: int(value) for name, value in layer.items() if name not in ARRAYS})
    for name in ARRAYS:
        value = layer.get(name)
        if isinstance(value, Tensor):
            # A tensor's memory may hold the negative of its values, as that of x.conj().imag does.
            arrays.append(value.detach().to(device="cpu", dtype=torch.float32).resolve_neg().contiguous())
            setattr(record, name, ctypes.cast(arrays[-1].data_ptr(), ctypes.POINTER(ctypes.c_float)))
    return record
