"""Translation of a program to a plan whose convolutions read and write bytes or bfloat16."""

from __future__ import annotations

import abc

from prunegym.models.gating.features import MaskFeatures
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.kernel import Value
from prunegym.models.skipping.layer_translation import Translation, square
from prunegym.models.skipping.program import layers as kinds


class PackedTranslation(Translation):
    """A plan whose values are bytes or bfloat16 (packed) between the layers that can read them, else floats.

    Args:
        program: The network.
        policy: Decides gate by gate in the plan; None: masks are given.
        penalty: lambda of the policy.
        looks: Features at the stops of an agent.
    """

    per_pack: int
    """Channels in 32 bits."""

    def __init__(
        self,
        program: kinds.Program,
        policy: GatePolicy | None,
        penalty: float | None,
        looks: MaskFeatures | None = None,
    ) -> None:
        super().__init__(program, policy, penalty, looks)
        self._floats: dict[Value, Value] = {}
        self._packs: dict[Value, Value] = {}

    @abc.abstractmethod
    def _pack(self, name: str, x: Value) -> Value:
        """Add the packed form of a step's value, which is floats."""

    @abc.abstractmethod
    def _conv(self, layer: kinds.Conv, x: Value, second: Value | None) -> Value:
        """Add a convolution of packed values, and perhaps a residual."""

    def value(self, name: str) -> Value:
        """Return a value as floats."""
        x = super().value(name)
        if not x.is_packed:
            return x
        if x not in self._floats:
            self._floats[x] = self.builder.to_floats(x)
        return self._floats[x]

    def _seen(self, name: str) -> Value:
        return super().value(name)

    def _packed(self, name: str, reader: str) -> Value:
        """Return a packed value, with all of its channels if what is made of it has all."""
        x = super().value(name)
        if self._is_expanded(reader, x):
            x = self._like(reader, self.value(name))
        if x.is_packed:
            return x
        if x not in self._packs:
            self._packs[x] = self._pack(name, x)
        return self._packs[x]

    def _is_expanded(self, reader: str, x: Value) -> bool:
        """Whether a reader gets all channels of a value, as :meth:`_like` makes them."""
        return reader not in self.program.spaces and x.gate is not None

    def _weighted(self, layer: kinds.Conv | kinds.Linear) -> Value:
        if not is_packed(layer) or self._seen(layer.inputs[0]).stride == 0:
            return super()._weighted(layer)
        assert isinstance(layer, kinds.Conv)
        x = self._packed(layer.inputs[0], layer.inputs[0])
        second = None if len(layer.inputs) == 1 else self._packed(layer.inputs[1], layer.name)
        return self._conv(layer, x, second)

    def _other(self, layer: kinds.Layer) -> Value:
        x = self._seen(layer.inputs[0]) if layer.inputs[0] not in self._concats else None
        if x is None or not x.is_packed or self._is_expanded(layer.name, x):
            return super()._other(layer)
        if isinstance(layer, kinds.Average):
            return self.builder.average(x)
        if isinstance(layer, kinds.MaxPool) and layer.activation in ("", "relu"):
            window = [square(pair) for pair in (layer.kernel, layer.stride, layer.padding)]
            return self.builder.max_pool(x, *window, ceil_mode=layer.ceil, activation=layer.activation)
        if isinstance(layer, kinds.Subsample) and not (layer.offset % self.per_pack or x.channels % self.per_pack):
            return self.builder.subsample(x, square(layer.stride), layer.channels, layer.offset)
        return super()._other(layer)


def is_packed(layer: kinds.Layer) -> bool:
    """Whether a layer is a convolution that the kernel runs on packed values, if it reads a map."""
    return isinstance(layer, kinds.Conv) and layer.groups == 1
