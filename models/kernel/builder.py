"""The builder of a plan, to which the layers of a network are added one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.kernel.plan import GateHead, Plan
from prunegym.models.kernel.shared_library import (
    KINDS,
    MAX_CHANNELS,
    MAX_PIXELS,
    Value,
    ValueRecord,
    assign_buffers,
)
from prunegym.models.kernel.values import (
    LayerFields,
    Values,
    activation_number,
    bias_of,
    check_floats,
    check_groups,
    check_stride,
    record_of,
    shape_of,
    window,
)
from prunegym.validation import whole_number

MAX_KERNEL, MAX_REACH = 7, 1024
Pair = int | tuple[int, int]


class PlanBuilder(Values):
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
        >>> import torch
        >>> from prunegym.models import kernel
        >>> builder = kernel.PlanBuilder(3, 8, 8, gates=[4])
        >>> x = builder.conv(builder.images, torch.ones(4, 3, 3, 3), padding=1, relu=True, gate=0)
        >>> x = builder.linear(builder.average(x), torch.ones(2, 4))
        >>> if kernel.available():
        ...     outputs, masks = builder.build(x)(torch.ones(1, 3, 8, 8), torch.tensor([[1, 0, 0, 1]]))
    """

    def __init__(self, channels: int, height: int, width: int, gates: Sequence[int] = ()) -> None:
        super().__init__(gates)
        sides = (whole_number(name, size, 1, MAX_PIXELS) for name, size in (("height", height), ("width", width)))
        self.images = self.input(channels, *sides)
        """The images, first of all values."""

    @classmethod
    def without_images(cls, gates: Sequence[int]) -> PlanBuilder:
        """Return a builder that has no value yet; :meth:`input` adds the first, of any shape."""
        builder = cls.__new__(cls)
        Values.__init__(builder, gates)
        return builder

    def conv(
        self,
        x: Value,
        weight: Tensor,
        bias: Tensor | Value | None = None,
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
            bias: (out); or a value of :meth:`compensate`.
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
        groups = check_groups(groups, x.channels, weight)
        expected = "out", x.channels // groups, "height", "width"
        out, _, rows, columns = check_floats("The weight", weight, expected).shape
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
        y = self._value(out, height, width, gate, stride=x.stride if in_place else None)
        if (height + reach[0] + 4) * (width + reach[1] + 4) > MAX_PIXELS:
            raise InvalidInputError(f"The kernel reaches over {reach} pixels; that is too much for such a map.")
        if residual is not None and shape_of(self._own(residual, "residual")) != shape_of(y):
            raise InvalidInputError(
                f"The residual is {shape_of(residual)}, but the convolution's output is {shape_of(y)}; they must be "
                "equal."
            )
        own, biases = self._biases(bias, out)
        depthwise = groups == x.channels == out and groups > 1 and residual is None and x.gate == gate and not biases
        fields: LayerFields = {"kernel": rows, "kernel_width": columns, "stride": stride, "padding": pads[0]}
        fields |= {"padding_width": pads[1], "dilation": dilation, "groups": groups}
        fields |= {"activation": activation_number(relu, activation), "weight": weight, "bias": own}
        self._layer("depthwise" if depthwise else "conv", x, y, fields, second=residual, biases=biases)
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
        bias: Tensor | Value | None = None,
        *,
        relu: bool = False,
        activation: str = "",
        gate: int | None = None,
    ) -> Value:
        """Add a linear layer on a vector, or on a map flattened as in torch.

        Args:
            x: A vector or map.
            weight: (out, channels * height * width).
            bias: (out); or a value of :meth:`compensate`.
            relu: Whether negative numbers become 0.
            activation: One of ``ACTIVATIONS``, in place of ``relu``.
            gate: The gate or space whose bits say which outputs are computed.
        """
        features = self._own(x).channels * x.height * x.width
        check_floats("The weight", weight, ("outputs", features))
        y = self._value(len(weight), 1, 1, gate, stride=0)
        fields: LayerFields = {"activation": activation_number(relu, activation)}
        own, biases = self._biases(bias, len(weight))
        self._layer("linear", x, y, {**fields, "weight": weight, "bias": own}, second=biases)
        return y

    def _biases(self, bias: Tensor | Value | None, outputs: int) -> tuple[Tensor, Value | None]:
        """Return a layer's own bias, and the value to take instead if one is given."""
        if not isinstance(bias, Value):
            return bias_of(bias, outputs), None
        if (self._own(bias).channels, bias.stride, bias.gate) != (outputs, 0, None):
            raise InvalidInputError(f"The biases are {shape_of(bias)}, a vector of {outputs} channels is needed.")
        return bias_of(None, outputs), bias

    def compensate(self, bias: Tensor | None, table: Tensor, gate: int) -> Value:
        """Add biases that depend on the mask, to be given as ``bias`` to a convolution or linear layer.

        Args:
            bias: (out), that of the layer.
            table: (channels, out): for each masked channel a row is added.
            gate: The gate or space of these channels. Add this layer after the gates are decided.

        Returns:
            A vector of ``out`` channels.
        """
        bits = self._bits(self._gate(gate, len(self._spaces)), 0)
        if min(bits) < 0:
            raise InvalidInputError("Some channels of the gate are always there, so nothing can replace them.")
        outputs = check_floats("The table", table, (len(bits), "outputs")).shape[1]
        y = self._value(outputs, 1, 1, stride=0)
        self._layer("compensate", None, y, {"gate": gate, "weight": table, "bias": bias_of(bias, outputs)})
        return y

    def decide(self, gate: int, x: Value, head: GateHead) -> None:
        """Let a policy decide a gate from the map ``x``. Call it before you add the layers with this gate.

        Raises:
            InvalidInputError: If the head does not fit, or the gate is already in use.
        """
        gate, features = self._gate(gate), self._features(x, head.average, head.grid)
        hidden = len(check_floats("bias1", head.bias1, ("hidden",)))
        whole_number(f"The hidden size of the policy of gate {gate}", hidden, 1, MAX_CHANNELS)
        if any(value.gate == gate for value in self._values) or gate in self._decided:
            raise InvalidInputError(f"Gate {gate} is already in use; decide it once, before its convolution.")

        def part(name: str, *expected: int) -> Tensor:
            return check_floats(f"{name} of the policy of gate {gate}", getattr(head, name), expected)

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
        fields: LayerFields = {"average": bool(average), "grid": grid, "mean": check_floats("mean", mean, (size,))}
        self._layer("look", x, None, {**fields, "scale": 1 / check_floats("std", std, (size,))})

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
        outputs: Sequence[Any] = output if isinstance(output, list | tuple) else [output]
        for value in map(self._own, outputs):
            numbers: LayerFields = {"input": value.index, "second": -1, "biases": -1, "output": -1}
            layers.append({"kind": KINDS.index("store"), **numbers, "offset": place})
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
            [record_of(layer, arrays) for layer in layers],
        )
