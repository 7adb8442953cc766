"""Execution of a program in plain torch, with weights gathered for kept channels, so that convolutions are smaller."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.skipping.program.layers import Conv, Layer, Linear, Norm, Program
from prunegym.models.skipping.program.path import DECIDE, Clock, Decide, Executed, ExecutionPath
from prunegym.models.skipping.torch_paths.gathered_weights import KeptChannels, Slices, gathered
from prunegym.models.skipping.torch_paths.recorded import Examples, Recorded
from prunegym.models.skipping.torch_paths.torch_layers import (
    Deciding,
    conv,
    finish,
    first_values,
    joined,
    linear,
    norm,
    run_layer,
)

Result = TypeVar("Result")

CACHED_COPIES = 8
"""Gathered weights are stored up to this many times the network's own, which is enough for 32 masks that keep half of
each gate."""


class GatherPath(ExecutionPath):
    """Removes masked channels: weights are gathered for images with equal masks, so that smaller convolutions run.

    It is faster for large maps, where gathering weights is cheap compared with convolutions, and if many images share
    few masks. The pass of one image with a given mask is recorded, if each gate keeps a channel.

    Args:
        program: The network.
        policy: Decides gate by gate; None: masks are given.
        cached: Largest number of gathered weights that are stored in case a mask comes again; None: eight times the
            network's own.
    """

    name = "torch"
    skips = True

    def __init__(self, program: Program, policy: GatePolicy | None = None, cached: int | None = None) -> None:
        super().__init__(program, policy)
        self._deciding = Deciding(program, policy)
        layers = [layer for layer in program.layers if isinstance(layer, Conv | Linear)]
        own = sum(layer.weight.numel() for layer in layers)
        self._slices = Slices(layers, CACHED_COPIES * own if cached is None else cached)
        # Those that have masked channels.
        self._cut = [layer for layer in layers if {layer.name, layer.inputs[0]} & program.spaces.keys()]
        self._first_bits = np.cumsum((0, *program.widths[:-1]))
        examples = Examples(program)

        def example() -> tuple[Tensor, ...]:
            image, mask = examples()
            return image, mask, *self._gather(mask)

        self._gathering = Recorded(self._gather, lambda: examples()[1:])
        self._one = Recorded(self._with_weights, example)

    @property
    def gathered(self) -> list[Tensor]:
        """The gathered weights and biases that are stored in case their masks come again."""
        return self._slices.weights

    def forget(self) -> None:
        """Drop the gathered weights."""
        self._slices.clear()

    def run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        """See :class:`~prunegym.models.skipping.program.path.ExecutionPath`."""
        return self._run(images, mask, penalty, _Watch())

    def timed(
        self, images: Tensor, mask: Tensor | None, penalty: float | None = None, clock: Clock = time.perf_counter
    ) -> dict[str, float]:
        """See :class:`~prunegym.models.skipping.program.path.ExecutionPath`."""
        watch = _Watch(clock)
        self._run(images, mask, penalty, watch)
        return dict(watch.seconds)

    def _run(self, images: Tensor, mask: Tensor | None, penalty: float | None, watch: _Watch) -> Executed:
        if mask is None:  # after the first gate, values depend on the image's mask, so images run one by one
            return Executed.of(self._group(images[i : i + 1], None, penalty, watch) for i in range(len(images)))
        groups: tuple[Tensor, ...] = ()
        if len(images) > 1:
            _, group_of, sizes = torch.unique(mask, dim=0, return_inverse=True, return_counts=True)
            groups = torch.split(group_of.argsort(), sizes.tolist())
        if len(groups) < 2:
            return Executed(self._group(images, mask[:1], penalty, watch).output, mask)
        outputs = torch.cat([self._group(images[rows], mask[rows[:1]], penalty, watch).output for rows in groups])
        return Executed(outputs[torch.cat(groups).argsort()], mask)

    def _group(self, images: Tensor, mask: Tensor | None, penalty: float | None, watch: _Watch) -> Executed:
        """Run images that share one mask (1, mask_size), or one image whose mask is decided during the pass."""
        if mask is not None and len(images) == 1 and not watch.on and self._keeps_some(mask):
            bits = mask.numpy().tobytes()
            weights = self._slices.stored(bits, lambda: self._gathering(mask))
            return Executed(self._one(images, mask, *weights), mask)
        values = first_values(self.program, images)
        state = _State(values, self._deciding.start(mask, penalty), mask is not None)
        state.wide = torch.ones(sum(self.program.widths) + 1, dtype=torch.bool, device=images.device)
        return Executed(self._whole_pass(state, watch), joined(state.bits, mask))

    def _whole_pass(self, state: _State, watch: _Watch) -> Tensor:
        program, values = self.program, state.values
        for layer, ending in zip(program.layers, program.ending, strict=True):
            for gate in layer.starts:
                if state.given:
                    self._decide(gate, layer, state)
                else:
                    watch.time(f"{DECIDE}{gate}", functools.partial(self._decide, gate), layer, state)
            values[layer.name] = watch.time(layer.name, self._layer, layer, state)
            for name in ending:
                del values[name]
        return program.shaped(self._whole(program.output, state))

    def _keeps_some(self, mask: Tensor) -> bool:
        """Whether the mask (1, mask_size) is on the CPU and keeps a channel of each gate."""
        return mask.device.type == "cpu" and bool(np.logical_or.reduceat(mask[0].numpy(), self._first_bits).all())

    def _recording(self, mask: Tensor) -> _State:
        """Return the state of a pass whose operations do not depend on the mask (1, mask_size)."""
        state = _State({}, self._deciding.start(mask, None), True, recorded=True)
        state.wide = torch.cat((mask[0], mask.new_ones(1)))
        return state

    def _gather(self, mask: Tensor) -> tuple[Tensor, ...]:
        """Return what depends on a mask (1, mask_size): weights, and biases where output channels are masked."""
        state, found = self._recording(mask), list[Tensor]()
        for layer in self._cut:
            both = gathered(layer, self._kept(layer.inputs[0], state), self._kept(layer.name, state))
            found += both if layer.name in self.program.spaces else both[:1]
        return tuple(found)

    def _with_weights(self, image: Tensor, mask: Tensor, *weights: Tensor) -> Tensor:
        """Run one image with what :meth:`_gather` returns for its mask (1, mask_size)."""
        state = self._recording(mask)
        state.values = first_values(self.program, image)
        left = iter(weights)
        state.weights = {
            layer.name: (next(left), next(left) if layer.name in self.program.spaces else layer.bias)
            for layer in self._cut
        }
        return self._whole_pass(state, _Watch())

    def _layer(self, layer: Layer, state: _State) -> Tensor:
        program, values = self.program, state.values
        inside, outside = self._kept(layer.inputs[0], state), self._kept(layer.name, state)
        if isinstance(layer, Conv | Linear):
            if isinstance(layer, Conv) and len(layer.inputs) > 1 and outside is None:
                values = values | {name: self._whole(name, state) for name in layer.inputs[1:]}
            return self._mask(layer, self._weighted(layer, values, inside, outside, state), state, outside)
        if outside is None:  # whole maps, with zeros where channels are masked
            values = values | {name: self._whole(name, state) for name in layer.inputs}
            return self._mask(layer, run_layer(layer, values), state, None)
        if outside.count == 0:  # torch's pooling refuses an empty map
            x: Tensor = values[layer.inputs[0]]
            return x.new_empty(len(x), 0, *program.shapes[layer.name][1:])
        if isinstance(layer, Norm) and outside.index is not None:
            x, index = values[layer.inputs[0]], outside.index
            return norm(layer, x, layer.scale[index], layer.shift[index])
        return run_layer(layer, values)

    def _kept(self, name: str, state: _State) -> KeptChannels | None:
        """Return the kept channels of a value; None if it is whole."""
        space = self.program.spaces.get(name)
        if space is None:
            return None
        if space not in state.kept:
            bits = state.wide[self.program.indices[space].to(state.wide.device)]
            state.kept[space] = KeptChannels(bits, state.recorded)
        return state.kept[space]

    def _whole(self, name: str, state: _State) -> Tensor:
        kept = self._kept(name, state)
        value: Tensor = state.values[name]
        return value if kept is None else _spread(value, kept)

    def _mask(self, layer: Layer, value: Tensor, state: _State, outside: KeptChannels | None) -> Tensor:
        """Multiply a whole value by the bits of the gates that are masked there."""
        if outside is None:
            for gate, places in self.program.points.get(layer.name, ()):
                value = value * places.factors(state.bits[gate][:1].to(value.dtype), value)
        return value

    def _decide(self, gate: int, layer: Layer, state: _State) -> None:
        """Store which channels of a gate are kept."""
        name = layer.inputs[0]
        seen = state.values[name] if state.given else self.program.seen(gate, self._whole(name, state))
        bits = state.decide(gate, seen)
        start = sum(self.program.widths[:gate])
        state.wide[start : start + self.program.widths[gate]] = bits[0]
        state.bits[gate], state.kept[gate] = bits, KeptChannels(bits[0], state.recorded)

    def _weighted(
        self,
        layer: Conv | Linear,
        values: dict[str, Tensor],
        inside: KeptChannels | None,
        outside: KeptChannels | None,
        state: _State,
    ) -> Tensor:
        weight, bias = state.weights.get(layer.name) or self._slices.get(layer, inside, outside)
        if layer.constants is not None:
            added = layer.constants.added({gate: state.bits[gate][:1] for gate in layer.constants.gates})[0]
            bias = bias + (added if outside is None or outside.index is None else added[outside.index])
        if isinstance(layer, Linear):
            return linear(layer, values, weight, bias)
        if all(kept.count for kept in (inside, outside) if kept is not None):
            return conv(layer, values, weight, bias)
        # Torch refuses convolutions without output channels, and without input channels the shape would be wrong.
        x = values[layer.inputs[0]]
        y = bias[None, :, None, None].expand(len(x), -1, *self.program.shapes[layer.name][1:])
        return finish(y.clone(), layer, values)


@dataclasses.dataclass
class _State:
    """State of a run: values by name, the bits of each gate so far, and the kept channels of each space.

    ``wide`` has all bits so far, and a last one for channels that always exist. A recorded run has its weights and
    biases by layer.
    """

    values: dict[str, Any]
    decide: Decide
    given: bool
    recorded: bool = False
    weights: dict[str, tuple[Tensor, Tensor]] = dataclasses.field(default_factory=dict)
    bits: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    kept: dict[int, KeptChannels] = dataclasses.field(default_factory=dict)
    wide: Tensor = dataclasses.field(default_factory=lambda: torch.ones(1, dtype=torch.bool))


class _Watch:
    """Seconds for each part of the work; 0 without a clock."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.on = clock is not None
        self.seconds: dict[str, float] = defaultdict(float)
        self._clock = clock or (lambda: 0.0)

    def time(self, part: str, work: Callable[[Any, _State], Result], layer: Layer, state: _State) -> Result:
        start = self._clock()
        result = work(layer, state)
        self.seconds[part] += self._clock() - start
        return result


def _spread(x: Tensor, kept: KeptChannels) -> Tensor:
    """Return a map of all channels, zeros where they are masked."""
    if kept.index is None:
        return x
    return x.new_zeros(len(x), len(kept.bits), *x.shape[2:]).index_copy_(1, kept.index, x)
