"""The layers of a plan that make bytes or bfloat16 of floats, and the reverse, and the convolution on bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.kernel.buffers import Value
from prunegym.models.kernel.map_layers import MapLayers
from prunegym.models.kernel.shared_library import MAX_PIXELS, PAIRS
from prunegym.models.kernel.values import (
    LayerFields,
    activation_number,
    check_floats,
    check_stride,
    shape_of,
    window,
)
from prunegym.validation import finite, shape, whole_number

MAX_KERNEL, MAX_REACH = 7, 1024
Pair = int | tuple[int, int]
SIGNED_ZERO = 128
"""The byte that means 0 where numbers may be negative; elsewhere it is 0."""
LARGEST_CODE = 127


class ByteLayers(MapLayers):
    """Adds layers to a plan whose numbers are bytes or bfloat16.

    A byte ``q`` means ``scale * (q - zero)``. Zero is 0, or 128 where numbers may be negative. Results are the
    same bit for bit on all processors. Those of bfloat16 are not: processors add products in another order.

    Raises:
        InvalidInputError: All methods, for a value of another builder, and for shapes or settings that do not fit.
    """

    def to_bytes(self, x: Value, scale: float, signed: bool) -> Value:
        """Add a map's numbers as bytes, ``q = round(x / scale) + zero``, cut off at 0 and 255; ties to even.

        Args:
            x: A map of floats.
            scale: What one step of a byte means, above 0.
            signed: Whether numbers may be negative.
        """
        self._check_floats(x, "to_bytes()")
        y = self._value(
            x.channels, x.height, x.width, x.gate, stride=x.stride, scale=_positive(scale), zero=SIGNED_ZERO * signed
        )
        self._layer("convert", x, y, {})
        return y

    def to_bfloat16(self, x: Value) -> Value:
        """Add a map's numbers as bfloat16, the nearest; ties to even."""
        self._check_floats(x, "to_bfloat16()")
        y = self._value(x.channels, x.height, x.width, x.gate, stride=x.stride, scale=1.0, zero=PAIRS)
        self._layer("convert", x, y, {})
        return y

    def to_floats(self, x: Value) -> Value:
        """Add what the bytes of a map mean, or its numbers of bfloat16."""
        if not self._own(x, "to_floats()").is_packed:
            raise InvalidInputError(f"{x!r} is floats already.")
        y = self._value(x.channels, x.height, x.width, x.gate, stride=x.stride)
        self._layer("convert", x, y, {})
        return y

    def _check_floats(self, x: Value, maker: str) -> None:
        if self._own(x, maker).is_packed:
            raise InvalidInputError(f"{x!r} is {'bytes' if x.is_bytes else 'bfloat16'} already.")

    def byte_conv(
        self,
        x: Value,
        codes: Tensor,
        scales: Tensor,
        bias: Tensor | Value | None = None,
        *,
        scale: float,
        signed: bool,
        stride: int = 1,
        padding: Pair = 0,
        dilation: int = 1,
        relu: bool = False,
        activation: str = "",
        gate: int | None = None,
        residual: Value | None = None,
    ) -> Value:
        """Add a convolution of bytes, then a residual sum, then an activation, as :meth:`PlanBuilder.conv` does.

        With sums of products in 32 bits, ``y = (sum - zero * sum of codes) * scales * x.scale + bias + residual``.

        Args:
            x: A map of bytes.
            codes: (out, in, height, width), int8 from -127 to 127.
            scales: (out), what one step of a code means.
            bias: (out); or a value of :meth:`compensate`.
            scale: What one step of the output's bytes means.
            signed: Whether the output may be negative.
            stride: Stride of both axes, at least 1.
            padding: Zeros on each side; or above and below, left and right.
            dilation: Dilation of both axes, at least 1.
            relu: Whether negative numbers become 0.
            activation: One of ``ACTIVATIONS``, in place of ``relu``.
            gate: The gate or space whose bits say which output channels are computed.
            residual: A map of bytes of the output's shape and gate, added before the activation.
        """
        if not self._own(x, "byte_conv()").is_bytes or (residual is not None and not self._own(residual).is_bytes):
            raise InvalidInputError("byte_conv() needs bytes; give what to_bytes() makes of a map.")
        if not isinstance(codes, Tensor) or codes.dtype != torch.int8 or (codes < -LARGEST_CODE).any():
            raise InvalidInputError(f"The codes must be int8 from {-LARGEST_CODE} to {LARGEST_CODE}.")
        out = len(shape("The codes", codes, ("out", x.channels, "height", "width")))
        scales = check_floats("The scales", scales, (out,))
        fields, sizes = self._kernel(x, codes, stride, padding, dilation)
        y = self._value(out, *sizes[:2], gate, stride=sizes[2], scale=_positive(scale), zero=SIGNED_ZERO * signed)
        self._check_residual(residual, y)
        own, biases = self._biases(bias, out)
        fields |= {"groups": 1, "activation": activation_number(relu, activation), "weight": codes.float(), "bias": own}
        fields["scale"] = (scales.double() * x.scale / y.scale).float()
        self._layer("conv", x, y, fields, second=residual, biases=biases)
        return y

    def _kernel(
        self, x: Value, weight: Tensor, stride: int, padding: Pair, dilation: int
    ) -> tuple[LayerFields, tuple[int, int, int | None]]:
        """Return a convolution's settings, and height, width and row stride of what it makes."""
        rows, columns = weight.shape[2:]
        stride, dilation = check_stride(stride), whole_number("dilation", dilation, 1, MAX_REACH)
        down, right = (padding, padding) if isinstance(padding, int) else padding
        pads = [whole_number("padding", one, 0, MAX_REACH) for one in (down, right)]
        for side in (rows, columns):
            whole_number("The kernel's side", side, 1, MAX_KERNEL)
        reach = (rows - 1) * dilation + 1, (columns - 1) * dilation + 1
        height, width = window(x, reach, stride, pads)
        # With rows of the input's stride such a convolution reads the input map directly, without copies.
        small = stride == dilation == 1 and max(rows, columns) <= 3
        in_place = small and pads[0] <= (rows - 1) // 2 and pads[1] <= (columns - 1) // 2
        if (height + reach[0] + 4) * (width + reach[1] + 4) > MAX_PIXELS:
            raise InvalidInputError(f"The kernel reaches over {reach} pixels; that is too much for such a map.")
        fields: LayerFields = {"kernel": rows, "kernel_width": columns, "stride": stride, "padding": pads[0]}
        fields |= {"padding_width": pads[1], "dilation": dilation}
        return fields, (height, width, x.stride if in_place else None)

    def _check_residual(self, residual: Value | None, y: Value) -> None:
        if residual is not None and self._own(residual, "residual").is_packed != y.is_packed:
            raise InvalidInputError(
                f"The residual is {residual!r} and the output {y!r}; give both as floats, or neither."
            )
        if residual is not None and shape_of(residual) != shape_of(y):
            raise InvalidInputError(
                f"The residual is {shape_of(residual)}, but the convolution's output is {shape_of(y)}; they must be "
                "equal."
            )


def _positive(scale: float) -> float:
    return finite("scale", scale, above=0)
