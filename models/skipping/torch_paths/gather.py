"""Running a program in plain torch with weights gathered for kept channels, so that smaller convolutions run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch
from torch import Tensor

from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.skipping.program.layers import Conv, Layer, Linear, Program
from prunegym.models.skipping.program.path import Decide, Executed
from prunegym.models.skipping.torch_paths.folded_heads import Deciding, joined
from prunegym.models.skipping.torch_paths.gathered_weights import Kept, Slices
from prunegym.models.skipping.torch_paths.torch_layers import conv, finish, linear, run_layer, shaped

CACHED_COPIES = 8
"""Gathered weights are kept up to this many times the network's own: of masks that keep half of each gate, 32."""


class GatherPath:
    """Removes masked channels: weights are gathered for images with equal masks, so that smaller convolutions run.

    It pays on large maps, where gathering weights is cheap beside convolving, and where few masks serve many images.

    Args:
        program: The network.
        policy: Decides gate by gate; None: masks are given.
        cached: Numbers of gathered weights that are kept for the next time that a mask comes; None: eight times the
            network's own.
    """

    def __init__(self, program: Program, policy: GatePolicy | None = None, cached: int | None = None) -> None:
        self.program, self.policy = program, policy
        self._deciding = Deciding(program, policy)
        own = sum(layer.weight.numel() for layer in program.layers if isinstance(layer, Conv | Linear))
        self._slices = Slices(CACHED_COPIES * own if cached is None else cached)

    @property
    def gathered(self) -> list[Tensor]:
        """The gathered weights that are kept for the next time that their masks come."""
        return self._slices.weights

    def forget(self) -> None:
        """Drop the gathered weights."""
        self._slices.clear()

    def run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        """See :class:`prunegym.models.skipping.program.path.Path`."""
        if mask is None:  # what an image reads after the first gate depends on its mask, so each one goes alone
            done = [self._group(images[i : i + 1], None, penalty) for i in range(len(images))]
            return Executed(torch.cat([one.output for one in done]), torch.cat([one.mask for one in done]))
        if len(images) == 1:
            return self._group(images, mask, penalty)
        distinct, group_of = torch.unique(mask, dim=0, return_inverse=True)
        if len(distinct) == 1:
            return Executed(self._group(images, mask[:1], penalty).output, mask)
        output: Tensor | None = None
        order = group_of.argsort()
        for rows in torch.split(order, torch.bincount(group_of).tolist()):
            done_rows = self._group(images[rows], mask[rows[:1]], penalty).output
            if output is None:
                output = done_rows.new_empty(len(images), *done_rows.shape[1:])
            output[rows] = done_rows
        assert output is not None
        return Executed(output, mask)

    def timed(self, images: Tensor, mask: Tensor, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
        """Run images that share one mask, and return the seconds of each layer by name.

        Args:
            images: As for :meth:`run`.
            mask: (1, mask_size) bool.
            clock: Returns seconds.
        """
        seconds: dict[str, float] = {}

        def timed(layer: Layer, state: _State) -> Tensor:
            start = clock()
            value = self._layer(layer, state)
            seconds[layer.name] = clock() - start
            return value

        self._group(images, mask, None, timed)
        return seconds

    def _group(
        self,
        images: Tensor,
        mask: Tensor | None,
        penalty: float | None,
        run: Callable[[Layer, _State], Tensor] | None = None,
    ) -> Executed:
        """Run images that share one mask (1, mask_size), or one image whose mask is decided on the way."""
        program, run = self.program, run or self._layer
        values = {program.input: images.contiguous(memory_format=torch.channels_last)}
        state = _State(values, self._deciding.start(mask, penalty), mask is not None)
        for layer, ending in zip(program.layers, program.ending, strict=True):
            values[layer.name] = run(layer, state)
            for name in ending:
                del values[name]
        return Executed(shaped(values[program.output], program), joined(state.bits, mask))

    def _layer(self, layer: Layer, state: _State) -> Tensor:
        program, values = self.program, state.values
        source = program.gates.get(layer.inputs[0])
        inside = None if source is None else state.kept[source]
        if isinstance(layer, Conv):
            return self._conv(layer, state, inside)
        if isinstance(layer, Linear) and inside is not None:
            return linear(layer, values, *self._slices.get(layer, inside, None))
        if inside is not None and inside.count == 0:  # torch's pooling takes no empty map
            x = values[layer.inputs[0]]
            return x.new_empty(len(x), 0, *program.shapes[layer.name][1:])
        return run_layer(layer, values)

    def _conv(self, layer: Conv, state: _State, inside: Kept | None) -> Tensor:
        gate, outside = layer.gate, None
        x = state.values[layer.inputs[0]]
        if gate is not None:
            state.bits[gate] = state.decide(gate, x if state.given else _spread(x, inside))
            outside = state.kept[gate] = Kept(state.bits[gate][0])
        weight, bias = self._slices.get(layer, inside, outside)
        if all(kept.count for kept in (inside, outside) if kept is not None):
            return conv(layer, state.values, weight, bias)
        # Torch refuses to make no channel, and of none it makes maps of the wrong shape.
        y = bias[None, :, None, None].expand(len(x), -1, *self.program.shapes[layer.name][1:])
        return finish(y.clone(), layer, state.values)


@dataclasses.dataclass
class _State:
    """A run on its way: values by name, and for each gate so far its bits and the channels that are left."""

    values: dict[str, Tensor]
    decide: Decide
    given: bool
    bits: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    kept: dict[int, Kept] = dataclasses.field(default_factory=dict)


def _spread(x: Tensor, kept: Kept | None) -> Tensor:
    """Return a map of all channels, zeros where they are masked."""
    if kept is None or kept.index is None:
        return x
    return x.new_zeros(len(x), len(kept.bits), *x.shape[2:]).index_copy_(1, kept.index, x)
