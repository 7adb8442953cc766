"""Running a program at full width: every channel computed, masked ones made 0."""

from __future__ import annotations

import torch
from torch import Tensor

from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.skipping.program.layers import Add, Conv, MaxPool, Norm, Program
from prunegym.models.skipping.program.path import Executed, ExecutionPath
from prunegym.models.skipping.torch_paths.folded_heads import Deciding, joined
from prunegym.models.skipping.torch_paths.torch_layers import conv, first_values, run_layer

GROUP = 16
"""Images that pass together where weights are few: maps of more leave the cache, and each layer gets fresh memory for
them. Many weights are read again for each group, which costs more than that."""
FEW_WEIGHTS = 1_000_000


class FullPath(ExecutionPath):
    """Computes every channel, norms folded, and masks them: the dense network's speed, never much less.

    Maps and weights lie channels last in memory. Of the networks that were timed in both layouts, only VGG-16 and
    ResNet-18 with 64 images of 32x32 were faster in the other, by a few per cent on an Intel Xeon.

    Args:
        program: The network.
        policy: Decides gate by gate; None: masks are given.
    """

    name = "full"

    def __init__(self, program: Program, policy: GatePolicy | None = None) -> None:
        super().__init__(program, policy)
        self._deciding = Deciding(program, policy)
        self._weights = {
            layer.name: layer.weight.contiguous(memory_format=torch.channels_last)
            for layer in program.layers
            if isinstance(layer, Conv)
        }
        self._in_groups = sum(weight.numel() for weight in self._weights.values()) <= FEW_WEIGHTS

    def run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        """See :class:`~prunegym.models.skipping.program.path.ExecutionPath`."""
        if len(images) <= GROUP or not self._in_groups or images.device.type != "cpu":
            return self._run(images, mask, penalty)
        groups = (slice(start, start + GROUP) for start in range(0, len(images), GROUP))
        return Executed.of(self._run(images[at], None if mask is None else mask[at], penalty) for at in groups)

    def _run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        """Run images together, layer by layer."""
        program, bits = self.program, dict[int, Tensor]()
        # All gates at once: a small network's layers take little longer than the operations for one gate would.
        decide = self._deciding.start(None if mask is None else mask.to(images.dtype), penalty)
        values = first_values(program, images)
        for layer, ending in zip(program.layers, program.ending, strict=True):
            for gate in layer.starts:
                bits[gate] = decide(gate, program.seen(gate, values[layer.inputs[0]]))
            if isinstance(layer, Conv):
                value = conv(layer, values, self._weights[layer.name], layer.bias)
            else:
                value = run_layer(layer, values)
            for gate, places in program.points.get(layer.name, ()):
                factors = places.factors(bits[gate].to(value.dtype), value)
                # For a large map new memory costs more than the multiplication, so it is in place where the layer has
                # made the memory: an operation of the network's own may return what it was given.
                value = value.mul_(factors) if isinstance(layer, Conv | MaxPool | Add | Norm) else value * factors
            values[layer.name] = value
            for name in ending:
                del values[name]
        return Executed(program.shaped(values[program.output]), joined(bits, mask))
