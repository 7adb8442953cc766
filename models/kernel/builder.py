"""The builder of a plan, to which the layers of a network are added one by one."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.kernel.plan import GateHead, Plan
from prunegym.models.kernel.shared_library import (
    ARRAYS,
    KINDS,
    MAX_CHANNELS,
    MAX_PIXELS,
    LayerRecord,
    Value,
    ValueRecord,
    assign_buffers,
)
from prunegym.validation import shape, whole_number

MAX_KERNEL, MAX_GRID = 7, 1024
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

    def __init__(self, channels: int, height: int, width: int, gates: list[int] | tuple[int, ...] = ()) -> None:
        self._values: list[Value] = []
        self._layers: list[LayerFields] = []
        self._widths = [whole_number(f"The width of gate {i}", width, 1, MAX_CHANNELS) for i, width in enumerate(gates)]
        self._decided: set[int] = set()
        sides = (whole_number(name, size, 1, MAX_PIXELS) for name, size in (("height", height), ("width", width)))
        self.images = self._value(channels, *sides)
        """The images, first of all values."""
        self._layer("load", None, self.images, {})

    def conv(
        self,
        x: Value,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: int = 1,
        padding: int = 0,
        relu: bool = False,
        gate: int | None = None,
        residual: Value | None = None,
    ) -> Value:
        """Add a convolution, optionally with a residual sum and ReLU after it.

        Args:
            x: A map.
            weight: (out, in, kernel, kernel), square, at most 7x7.
            bias: (out).
            stride: Stride of both axes, at least 1.
            padding: Zeros on each side, at most 3.
            relu: Whether negative numbers become 0.
            gate: The gate whose bits say which output channels are computed.
            residual: A map of the output's shape and gate, added before the ReLU.

        Raises:
            InvalidInputError: If shapes do not fit, or the kernel has no such convolution.
        """
        self._own(x, "conv()")
        out, _, rows, _ = _floats("The weight", weight, ("out", x.channels, "kernel", "kernel")).shape
        stride, padding = _stride(stride), whole_number("padding", padding, 0, MAX_KERNEL // 2)
        whole_number("The kernel's side", rows, 1, MAX_KERNEL)
        height, width = _window(x, rows, stride, padding)
        # With rows of the input's stride such a convolution reads the input map directly, without copies.
        in_place = stride == 1 and rows <= 3 and padding <= (rows - 1) // 2
        y = self._value(out, height, width, gate, stride=x.stride if in_place else None)
        if residual is not None and _shape(self._own(residual, "residual")) != _shape(y):
            raise InvalidInputError(
                f"The residual is {_shape(residual)}, but the convolution's output is {_shape(y)}; they must be equal."
            )
        fields: LayerFields = {"kernel": rows, "stride": stride, "padding": padding, "relu": relu}
        self._layer("conv", x, y, {**fields, "weight": weight, "bias": _bias(bias, out)}, second=residual)
        return y

    def max_pool(
        self, x: Value, kernel: int, stride: int | None = None, padding: int = 0, *, relu: bool = False
    ) -> Value:
        """Add max pooling as in torch, and ReLU after it if ``relu`` is True; 2x2 with stride 2 is fast."""
        self._own(x, "max_pool()")
        kernel = whole_number("kernel", kernel, 1, MAX_PIXELS)
        stride = kernel if stride is None else _stride(stride)
        padding = whole_number("padding", padding, 0, kernel // 2, "Pad by half of the kernel at most, as in torch.")
        height, width = _window(x, kernel, stride, padding)
        y = self._value(x.channels, height, width, x.gate)
        self._layer("max_pool", x, y, {"kernel": kernel, "stride": stride, "padding": padding, "relu": relu})
        return y

    def add(self, a: Value, b: Value | None = None, *, relu: bool = False) -> Value:
        """Add the sum of two maps of the same shape and gate, or ``a`` alone, with ReLU if ``relu`` is True."""
        self._own(a)
        if b is not None and _shape(a) != _shape(self._own(b)):
            raise InvalidInputError(
                f"Cannot add {_shape(a)} and {_shape(b)} (channels, height, width, gate); they must be equal."
            )
        y = self._value(a.channels, a.height, a.width, a.gate, stride=a.stride)
        self._layer("add", a, y, {"relu": relu}, second=b)
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
        self, x: Value, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False, gate: int | None = None
    ) -> Value:
        """Add a linear layer on a vector, or on a map flattened as in torch.

        Args:
            x: A vector or map.
            weight: (out, channels * height * width).
            bias: (out).
            relu: Whether negative numbers become 0.
            gate: The gate whose bits say which outputs are computed.
        """
        features = self._own(x).channels * x.height * x.width
        _floats("The weight", weight, ("outputs", features))
        y = self._value(len(weight), 1, 1, gate, stride=0)
        self._layer("linear", x, y, {"relu": relu, "weight": weight, "bias": _bias(bias, len(weight))})
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

    def build(self, output: Value, variant: str | None = None) -> Plan:
        """Copy all weights into a plan.

        Args:
            output: The vector that the plan returns, which no gate masks.
            variant: One of :func:`variants`; None for the best.

        Raises:
            InvalidInputError: If the output is a map or masked by a gate, or there is no such variant.
            MissingDependencyError: If the kernel is not available.
        """
        if self._own(output).stride != 0 or output.gate is not None:
            raise InvalidInputError("A plan returns a vector that no gate masks; add average() or linear().")
        store: LayerFields = {"kind": KINDS.index("store"), "input": output.index, "second": -1, "output": -1}
        layers = [*self._layers, store]
        buffers, places = assign_buffers(self._values, layers)
        gates = [-1 if value.gate is None else value.gate for value in self._values]
        arrays: list[Tensor] = []  # kept alive until the plan has copied them
        return Plan(
            variant,
            buffers,
            [ValueRecord(*fields) for fields in zip(places, (v.channels for v in self._values), gates, strict=True)],
            self._widths,
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

    def _gate(self, gate: int) -> int:
        if whole_number("gate", gate, 0) >= len(self._widths):
            raise InvalidInputError(f"There is no gate {gate}; the widths of the gates are {self._widths}.")
        return int(gate)

    def _features(self, x: Value, average: bool, grid: int) -> int:
        """Return the number of features of a decision."""
        per_channel = int(bool(average)) + whole_number("grid", grid, 0, MAX_GRID) ** 2
        features = self._own(x, "A decision").channels * per_channel
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
        if gate is not None and self._widths[gate := self._gate(gate)] != channels:
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


def _window(x: Value, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Return height and width of the output of a convolution or a pooling."""
    # As torch's Conv2d and MaxPool2d count: floor((size + 2 padding - kernel) / stride) + 1.
    height, width = ((size + 2 * padding - kernel) // stride + 1 for size in (x.height, x.width))
    return height, width


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
