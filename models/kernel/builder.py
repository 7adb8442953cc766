"""The builder of a plan, to which the layers of a network are added one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.kernel.buffers import Value, assign_buffers
from prunegym.models.kernel.byte_layers import ByteLayers, Pair
from prunegym.models.kernel.plan import GateHead, Plan
from prunegym.models.kernel.shared_library import KINDS, MAX_CHANNELS, MAX_PIXELS, ValueRecord
from prunegym.models.kernel.values import (
    LayerFields,
    Values,
    activation_number,
    bias_of,
    check_floats,
    check_groups,
    record_of,
)
from prunegym.validation import whole_number


class PlanBuilder(ByteLayers):
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
            x: A map; of floats, or of bfloat16, then without groups.
            weight: (out, in / groups, height, width), at most 7x7. It is rounded to bfloat16 if the map is.
            bias: (out); or a value of :meth:`compensate`.
            stride: Stride of both axes, at least 1.
            padding: Zeros on each side; or above and below, left and right.
            dilation: Dilation of both axes, at least 1.
            groups: Number of groups of channels.
            relu: Whether negative numbers become 0.
            activation: One of ``ACTIVATIONS``, in place of ``relu``.
            gate: The gate or space whose bits say which output channels are computed.
            residual: A map of the output's shape and gate, added before the activation.

        Returns:
            A map of the same numbers as ``x``. Sums of products of bfloat16 are floats, rounded at the end.

        Raises:
            InvalidInputError: If shapes do not fit, or the kernel has no such convolution.
        """
        if self._own(x, "conv()").is_bytes:
            raise InvalidInputError(f"conv() does not read bytes; give what to_floats() makes of {x!r}.")
        groups = check_groups(groups, x.channels, weight)
        if x.is_packed and groups > 1:
            raise InvalidInputError(f"conv() in bfloat16 has no groups; give what to_floats() makes of {x!r}.")
        expected = "out", x.channels // groups, "height", "width"
        out = len(check_floats("The weight", weight, expected))
        fields, sizes = self._kernel(x, weight, stride, padding, dilation)
        y = self._value(out, *sizes[:2], gate, stride=sizes[2], scale=x.scale, zero=x.zero)
        self._check_residual(residual, y)
        own, biases = self._biases(bias, out)
        depthwise = groups == x.channels == out and groups > 1 and residual is None and x.gate == gate and not biases
        fields |= {"groups": groups, "activation": activation_number(relu, activation), "weight": weight, "bias": own}
        self._layer("depthwise" if depthwise else "conv", x, y, fields, second=residual, biases=biases)
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

    def build(
        self,
        output: Value | Sequence[Value],
        variant: str | None = None,
        byte_variant: str | None = None,
        bfloat16_variant: str | None = None,
    ) -> Plan:
        """Copy all weights into a plan.

        Args:
            output: What the plan returns: a vector or map, all channels, zeros where they are masked; or several, one
                after the other.
            variant: One of :func:`variants`; None for the best.
            byte_variant: One of :func:`byte_variants`, for layers on bytes; None for the best.
            bfloat16_variant: One of :func:`bfloat16_variants`, for layers on bfloat16; None for the best.

        Raises:
            InvalidInputError: If an output is not a value of this builder, or there is no such variant.
            MissingDependencyError: If the kernel is not available.
        """
        layers, place = list(self._layers), 0
        outputs: Sequence[Any] = output if isinstance(output, list | tuple) else [output]
        for value in map(self._own, outputs):
            if value.is_packed:
                raise InvalidInputError("An output is bytes or bfloat16; give what to_floats() makes of it.")
            numbers: LayerFields = {"input": value.index, "second": -1, "biases": -1, "output": -1}
            layers.append({"kind": KINDS.index("store"), **numbers, "offset": place})
            place += value.channels * value.height * value.width
        whole_number("The number of outputs", place, 1, 2**31 - 1)
        buffers, places = assign_buffers(self._values, layers)
        records = [
            ValueRecord(place, value.channels, -1 if value.gate is None else value.gate, value.zero, value.scale)
            if place >= 0
            else ValueRecord(0, 1, -1, buffers[0].zero, 1.0)  # nothing makes it: its layer was refused
            for place, value in zip(places, self._values, strict=True)
        ]
        arrays: list[Tensor] = []  # kept alive until the plan has copied them
        return Plan(
            (variant, byte_variant, bfloat16_variant),
            buffers,
            records,
            self._widths,
            self._spaces,
            [record_of(layer, arrays) for layer in layers],
        )
