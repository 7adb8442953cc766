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
    """A convolution with its ReLU for one image, its weight packed, its bias given with the image.

    Args:
        layer: The convolution.
        shape: Of the map that it reads: (channels, height, width).
    """

    def __init__(self, layer: Conv, shape: tuple[int, ...]) -> None:
        self._layer = layer
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            layer.weight, layer.padding, layer.stride, layer.dilation, 1, [1, *shape]
        )
        self._ending = "relu" if layer.relu and len(layer.inputs) == 1 else "none"

    def __call__(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return the map (1, out, height, width), behind the ReLU if nothing is to be added before it.

        Args:
            x: (1, in, height, width) float32, channels last.
            bias: (out).
        """
        layer = self._layer
        made: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, bias, layer.padding, layer.stride, layer.dilation, 1, self._ending, [], ""
        )
        return made


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
