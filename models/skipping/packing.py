"""Large weights in the blocked layout of oneDNN, torch's library of CPU layers, which else copies them at each call."""

from __future__ import annotations

import weakref

import torch
import torch.nn.functional as F
from torch import Tensor

from prunegym.models.skipping.program import Conv, Program

SMALLEST = 100_000
"""Numbers of a convolution's weight from which packing pays; for smaller ones the operator costs more than a copy."""


class PackedConv:
    """A convolution with its ReLU, its weight packed, its bias given with the images.

    oneDNN's layout depends on the number of images and of threads, and from one such layout to another it
    copies far more slowly than it convolves. So the weight is packed for each number that comes, and kept once for each
    layout.

    Args:
        layer: The convolution.
        shape: Of the map that it reads: (channels, height, width).
        weight: Taken instead of the layer's own: (out, in, kernel, kernel) float32, of some of its channels.

    Attributes:
        weight: The weight as it is without packing, channels last.
    """

    def __init__(self, layer: Conv, shape: tuple[int, ...], weight: Tensor | None = None) -> None:
        weight = layer.weight if weight is None else weight
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self._layer, self._pixels = layer, shape[1:]
        self._ending = "relu" if layer.relu and len(layer.inputs) == 1 else "none"
        self._by_layout: dict[bytes, Tensor] = {}
        self._by_number: dict[tuple[int, int], Tensor] = {}

    def __call__(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return the map (batch, out, height, width), behind the ReLU if nothing is to be added before it.

        Args:
            x: (batch, in, height, width) float32, channels last.
            bias: (out).
        """
        layer, number = self._layer, (len(x), torch.get_num_threads())
        weight = self._by_number.get(number)
        if weight is None:
            weight = self._by_number[number] = self._pack(len(x))
        made: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, layer.padding, layer.stride, layer.dilation, 1, self._ending, [], ""
        )
        return made

    def _pack(self, images: int) -> Tensor:
        layer = self._layer
        made: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
            self.weight, layer.padding, layer.stride, layer.dilation, 1, [images, self.weight.shape[1], *self._pixels]
        )
        layout = torch.ops.mkldnn._get_mkldnn_serialized_md(made).numpy().tobytes()
        return self._by_layout.setdefault(layout, made)

    def with_weight(self, weight: Tensor) -> PackedConv:
        """Return the same convolution between some of its channels: weight (out, in, kernel, kernel) float32."""
        return PackedConv(self._layer, (weight.shape[1], *self._pixels), weight)

    def numel(self) -> int:
        """Return how many numbers are kept, in all layouts together."""
        return (1 + len(self._by_layout)) * self.weight.numel()


_PACKED: weakref.WeakKeyDictionary[Program, dict[str, PackedConv]] = weakref.WeakKeyDictionary()


def packed(program: Program) -> dict[str, PackedConv]:
    """Return a program's large convolutions, packed, by name; all paths share them.

    Empty where torch has no oneDNN, or other operators for it than those known here: they are not public.
    """
    if program not in _PACKED:
        try:
            _PACKED[program] = _pack(program)
        except (AttributeError, RuntimeError, TypeError):
            _PACKED[program] = {}
    return _PACKED[program]


def _pack(program: Program) -> dict[str, PackedConv]:
    made = {}
    for layer in program.layers:
        if isinstance(layer, Conv) and layer.weight.numel() >= SMALLEST and _is_plain(layer.weight):
            made[layer.name] = PackedConv(layer, program.shapes[layer.inputs[0]])
            _check(made[layer.name], layer, program.shapes[layer.inputs[0]])
    return made


@torch.no_grad()
def _check(made: PackedConv, layer: Conv, shape: tuple[int, ...]) -> None:
    """Compare with the public convolution, so that operators which came to mean something else are not used."""
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    expected = F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation)
    expected = expected.relu() if layer.relu and len(layer.inputs) == 1 else expected
    if not torch.allclose(made(x, layer.bias), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
        raise RuntimeError(f"packed weights of {layer.label} give other results")


def _is_plain(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32
