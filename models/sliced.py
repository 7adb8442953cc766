"""A CNN from which the filters that a mask removes are really gone: how fast a mask is where it is known beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.models.errors import InvalidInputError
from prunegym.models.folding import folded, norm_behind, scale_and_shift
from prunegym.models.graph import Step, runner
from prunegym.models.masked import MaskedCNN
from prunegym.models.operators import Kind

_PASSED_ON = (Kind.ACTIVATION, Kind.CHANNELWISE, Kind.POOL, Kind.CONCAT)


class SlicedCNN:
    """The network of a masked CNN with sliced weights and folded norms; equal to it under the mask.

    torch takes no convolution without channels, so a gate of which nothing is kept runs one, which is then read with
    weights of zero.

    Args:
        masked: The CNN.
        mask: (mask_size,) bool.

    Attributes:
        steps: Names of the steps that are run, in order.

    Raises:
        InvalidInputError: If channels pass a layer that cannot be sliced, or the mask has the wrong shape.

    Example:
        >>> from prunegym.models import MaskedCNN, build
        >>> masked = MaskedCNN(build("simple-cnn"), torch.zeros(1, 3, 32, 32))
        >>> mask = torch.arange(48) % 2 == 0
        >>> image = torch.rand(1, 3, 32, 32)
        >>> bool(torch.allclose(SlicedCNN(masked, mask)(image), masked(image, mask[None]), atol=1e-5))
        True
    """

    def __init__(self, masked: MaskedCNN, mask: Tensor) -> None:
        masked.check_mask(mask[None], 1)
        self._masked, self._graph, self._network = masked, masked.graph, masked.network
        self._device = next(masked.parameters()).device
        self._points = {gate.point for gate in masked.gates}
        parts = [part.bool().nonzero()[:, 0] for part in masked.split(mask.cpu())]
        self._empty = [len(part) == 0 for part in parts]
        self._kept = [part if len(part) else torch.zeros(1, dtype=torch.int64) for part in parts]
        self._folded: set[str] = set()
        self._runners: list[tuple[str, Callable[[dict[str, Any]], Any]]] = []
        for step in self._graph.steps:
            if step.op != "input":
                self._runners.append((step.name, self._runner(step)))
        self.steps = [name for name, _ in self._runners]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the output (batch, ...) for images (batch, channels, height, width) float, normalised."""
        values: dict[str, Any] = {self._graph.input: images}
        for name, run in self._runners:
            values[name] = run(values)
        output: Tensor = values[self._graph.output]
        return output

    @torch.inference_mode()
    def timed(self, images: Tensor, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
        """Return the seconds that each step takes, by a clock."""
        values: dict[str, Any] = {self._graph.input: images}
        seconds = {}
        for name, run in self._runners:
            start = clock()
            values[name] = run(values)
            seconds[name] = clock() - start
        return seconds

    def _runner(self, step: Step) -> Callable[[dict[str, Any]], Any]:
        module = self._network.get_submodule(step.target) if step.op == "module" else None
        if isinstance(module, nn.Conv2d):
            return self._convolution(step, module)
        if isinstance(module, nn.Linear) and len(self._graph[step.inputs[0]].shape) == 2:
            return self._linear(step, module)
        if isinstance(module, nn.BatchNorm2d):
            return self._norm(step, module)
        if step.kind is Kind.SIZE:
            return self._size(step)
        if step.target == "view" and not self._is_sliced(step.inputs[0]):
            return self._view(step)
        if not any(self._is_sliced(name) for name in step.inputs):
            return runner(step, self._network)
        if step.kind is Kind.MULTIPLY:
            return self._multiply(step)
        if step.kind is Kind.RESHAPE and len(step.shape) == 2:
            (name,) = step.inputs[:1]
            return lambda values: values[name].flatten(1)
        if step.kind in _PASSED_ON and not (module is not None and any(True for _ in module.parameters())):
            return runner(step, self._network)
        raise InvalidInputError(
            f"Masked channels pass {step.name!r} ({step.kind.value}), which cannot be sliced. Leave their gate out "
            "with MaskedCNN(..., gates=[...])."
        )

    def _is_sliced(self, name: str) -> bool:
        return any(block.gate is not None for block in self._masked.layouts.get(name, ()))

    def _columns(self, name: str) -> tuple[Tensor, Tensor]:
        """Return which channels of a value there are, (kept,) int64, and 0 for each that counts as missing, else 1."""
        index, real, start = [], [], 0
        for block in self._masked.layouts[name]:
            own = torch.arange(block.width) if block.gate is None else self._kept[block.gate]
            features = own[:, None] * block.repeat + torch.arange(block.repeat)
            index.append(start + features.flatten())
            there = block.gate is None or not self._empty[block.gate]
            real.append(torch.full((features.numel(),), float(there)))
            start += block.width * block.repeat
        return torch.cat(index).to(self._device), torch.cat(real).to(self._device)

    def _convolution(self, step: Step, conv: nn.Conv2d) -> Callable[[dict[str, Any]], Any]:
        (name,) = step.inputs
        norm = norm_behind(self._graph, self._network, step, self._points)
        if norm is not None:
            self._folded.add(self._graph.users[step.name][0])
        weight, bias = folded(conv, norm)
        groups = conv.groups
        made, _ = self._columns(step.name)
        weight, bias = weight[made], bias[made]
        if groups == 1:
            index, real = self._columns(name)
            weight = weight[:, index] * real[:, None, None]
        elif step.kind is Kind.DEPTHWISE:
            groups = len(made)
        weight = weight.contiguous(memory_format=torch.channels_last)
        options: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        if conv.padding_mode != "zeros":
            raise InvalidInputError(
                f"Convolution {step.target!r} pads with {conv.padding_mode!r}; only zeros are known."
            )
        return lambda values: F.conv2d(values[name], weight, bias, groups=groups, **options)

    def _linear(self, step: Step, linear: nn.Linear) -> Callable[[dict[str, Any]], Any]:
        (name,) = step.inputs
        index, real = self._columns(name)
        weight = (linear.weight.detach()[:, index] * real).contiguous()
        return lambda values: F.linear(values[name], weight, linear.bias)

    def _norm(self, step: Step, norm: nn.BatchNorm2d) -> Callable[[dict[str, Any]], Any]:
        (name,) = step.inputs
        if step.name in self._folded:
            return lambda values: values[name]
        index, _ = self._columns(name)
        scale, shift = (side[index].view(-1, 1, 1) for side in scale_and_shift(norm))
        return lambda values: values[name] * scale + shift

    def _size(self, step: Step) -> Callable[[dict[str, Any]], Any]:
        """Tell the size of a value with all its channels, which is what the network's own code counts on."""
        name, run = step.inputs[0], runner(step, self._network)
        if not self._is_sliced(name):
            return run
        shape = self._graph[name].shape[1:]
        return lambda values: run({name: torch.empty(len(values[name]), *shape, device="meta")})

    def _view(self, step: Step) -> Callable[[dict[str, Any]], Any]:
        """Maps are channels_last here, of which torch makes no views of other dimensions."""
        name, run = step.inputs[0], runner(step, self._network)
        return lambda values: run({**values, name: values[name].contiguous()})

    def _multiply(self, step: Step) -> Callable[[dict[str, Any]], Any]:
        """Scale the channels that are there; what scales them may have been made for all."""
        index, _ = self._columns(step.name)
        whole = {name for name in step.inputs if not self._is_sliced(name) and self._graph[name].shape[1:2] != (1,)}
        run = runner(step, self._network)
        return lambda values: run(
            {name: values[name][:, index] if name in whole else values[name] for name in step.inputs}
        )
