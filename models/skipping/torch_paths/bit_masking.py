"""Masking channels that were computed all the same: by a bias where that is free, else by a multiplication."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunegym.models.skipping.program.layers import Add, Conv, MaxPool, Program


class Masking:
    """What is known of a network's gates before any mask comes.

    A channel that a ReLU ends is exactly 0 if its convolution has a large negative bias. A bias serves all images of a
    call, so this holds for one image, or for images that share a mask; others are multiplied with their bits.

    Args:
        program: The network.

    Attributes:
        by_bias: Gates that a bias can mask.
        in_place: Gates at whose point a layer has made new memory, which nothing else reads before it is masked.
        widths: Width of each gate.
        biases: (mask_size), those of the producers in the order of the gates; 0 at the other gates.
        low: The bias that masks; finite, so that nothing becomes NaN.
    """

    def __init__(self, program: Program) -> None:
        producers = {layer.gate: layer for layer in program.layers if isinstance(layer, Conv)}
        self.by_bias = frozenset(gate for gate in range(len(program.widths)) if _ends_in_relu(program, producers[gate]))
        made = {layer.name for layer in program.layers if isinstance(layer, Conv | MaxPool | Add)}
        self.in_place = frozenset(gate for point, gate in program.points.items() if point in made)
        self.widths = list(program.widths)
        parts = [
            producers[gate].bias if gate in self.by_bias else torch.zeros_like(producers[gate].bias)
            for gate in range(len(program.widths))
        ]
        self.biases = torch.cat(parts)
        # Half of the lowest number leaves room for what the convolution adds to it.
        self.low = torch.tensor(torch.finfo(self.biases.dtype).min / 2, dtype=self.biases.dtype, device=parts[0].device)


def _ends_in_relu(program: Program, producer: Conv) -> bool:
    """Whether a gate's point is the ReLU right behind its producer, or behind pooling that a low number passes."""
    if len(producer.inputs) > 1:
        return False
    if producer.name in program.points:
        return producer.relu
    readers = [layer for layer in program.layers if producer.name in layer.inputs]
    if len(readers) != 1 or producer.name == program.output:
        return False
    (pool,) = readers
    return isinstance(pool, MaxPool) and pool.name in program.points and (pool.relu or producer.relu)


class BitMasks:
    """The masks of one call, as biases and factors.

    Args:
        masking: Of the network.
        mask: (batch, mask_size) bool; None: each gate is told by :meth:`tell`.
        shared: Whether all images have the same mask, the first one's; True where there is one image.
    """

    def __init__(self, masking: Masking, mask: Tensor | None, shared: bool) -> None:
        self._masking, self._shared = masking, shared
        self._told: dict[int, Tensor] = {}
        self._biases: Sequence[Tensor] = ()
        self._factors: Sequence[Tensor] = ()
        self._given = mask is not None
        if mask is None:
            return
        # All gates at once: a small network's layers take little longer than the operations for one gate would.
        if shared and masking.by_bias:
            self._biases = torch.split(torch.where(mask[0], masking.biases, masking.low), masking.widths)
        if not shared or len(masking.by_bias) < len(masking.widths):
            self._factors = torch.split(_factors(mask[:1] if shared else mask, masking), masking.widths, 1)

    def tell(self, gate: int, bits: Tensor) -> None:
        """Take a gate's bits (batch, width) bool from a policy."""
        self._told[gate] = bits

    def bias(self, gate: int, own: Tensor) -> Tensor:
        """Return the bias with which a gate's producer runs, instead of its own."""
        if not self._shared or gate not in self._masking.by_bias:
            return own
        return self._biases[gate] if self._given else torch.where(self._told[gate][0], own, self._masking.low)

    def apply(self, gate: int, value: Tensor) -> Tensor:
        """Mask the value at a gate's point, if the bias has not done so; in place where that changes nothing else."""
        if self._shared and gate in self._masking.by_bias:
            return value
        factors = self._factors[gate] if self._given else _factors(self._told[gate], self._masking)
        # In place: for a large map new memory costs more than the multiplication.
        return value.mul_(factors) if gate in self._masking.in_place else value * factors


def _factors(bits: Tensor, masking: Masking) -> Tensor:
    return bits.to(masking.biases.dtype)[:, :, None, None]
