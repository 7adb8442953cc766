"""The layers of a plan without weights: pooling, sums, products, concatenation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.kernel.buffers import Value
from prunegym.models.kernel.shared_library import MAX_CHANNELS, MAX_PIXELS
from prunegym.models.kernel.values import (
    LayerFields,
    Values,
    activation_number,
    bias_of,
    check_floats,
    check_stride,
    shape_of,
    window,
)
from prunegym.validation import whole_number


class MapLayers(Values):
    """Adds layers to a plan that treat each channel by itself.

    Raises:
        InvalidInputError: All methods, for a value of another builder, and for shapes or settings that do not fit.
    """

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
        fields: LayerFields = {"activation": activation_number(relu, activation)}
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
        stride = kernel if stride is None else check_stride(stride)
        padding = whole_number("padding", padding, 0, kernel // 2, "Pad by half of the kernel at most, as in torch.")
        height, width = window(x, (kernel, kernel), stride, (padding, padding), ceil)
        y = self._value(x.channels, height, width, x.gate, scale=x.scale, zero=x.zero)
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
            raise InvalidInputError(f"These sizes cannot be concatenated: {[shape_of(part) for part in parts]}.")
        bits = [bit for part in parts for bit in self._bits(part.gate, part.channels)]
        if self._bits(gate, channels) != bits:
            raise InvalidInputError("The channels of the parts have other mask bits than the gate of the result.")
        y = self._value(channels, first.height, first.width, gate, stride=first.stride if first.stride == 0 else None)
        fields: LayerFields = {"activation": activation_number(False, activation)}
        if scale is not None:
            fields["weight"] = check_floats("scale", scale, (channels,))
            fields["bias"] = bias_of(shift, channels)
        offset = 0
        for part in parts:
            self._layer("place", part, y, {**fields, "offset": offset})
            offset += part.channels
        return y

    def scale(self, x: Value, factors: Value) -> Value:
        """Add a map (or vector) times a factor for each channel, a vector of as many channels and the same gate."""
        self._own(x)
        if (factors.channels, factors.gate, self._own(factors).stride) != (x.channels, x.gate, 0):
            raise InvalidInputError(f"The factors are {shape_of(factors)}, a vector like {shape_of(x)} is needed.")
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
        if b is not None and shape_of(a) != shape_of(self._own(b)):
            raise InvalidInputError(
                f"Cannot add {shape_of(a)} and {shape_of(b)} (channels, height, width, gate); they must be equal."
            )
        y = self._value(a.channels, a.height, a.width, a.gate, stride=a.stride)
        self._layer("add", a, y, {"activation": activation_number(relu, activation)}, second=b)
        return y

    def subsample(self, x: Value, stride: int, channels: int, offset: int) -> Value:
        """Add ResNet's option A shortcut: every ``stride``-th pixel, channels up by ``offset``, zeros elsewhere."""
        if self._own(x, "subsample()").gate is not None:
            raise InvalidInputError("The shortcut's input must not be masked by a gate.")
        stride, offset = check_stride(stride), whole_number("offset", offset, 0, MAX_CHANNELS)
        size = (x.height - 1) // stride + 1, (x.width - 1) // stride + 1
        y = self._value(channels, *size, scale=x.scale, zero=x.zero)
        self._layer("subsample", x, y, {"stride": stride, "offset": offset})
        return y

    def average(self, x: Value) -> Value:
        """Add the average over all pixels: a map becomes a vector."""
        self._own(x, "average()")
        y = self._value(x.channels, 1, 1, x.gate, stride=0)
        self._layer("average", x, y, {})
        return y
