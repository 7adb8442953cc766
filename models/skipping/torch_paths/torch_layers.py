"""Layers of a program in plain torch, as all of the torch paths run them."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor

from prunegym.models.skipping.program.layers import Add, Average, Conv, Layer, Linear, MaxPool, Other, Subsample


def run_layer(layer: Layer, values: dict[str, Tensor]) -> Tensor:
    """Run a layer that has the same form whatever is kept."""
    x = values[layer.inputs[0]]
    if isinstance(layer, Linear):
        return linear(layer, values, layer.weight, layer.bias)
    if isinstance(layer, MaxPool):
        x = F.max_pool2d(x, layer.kernel, layer.stride, layer.padding)
        return x.relu_() if layer.relu else x
    if isinstance(layer, Add):
        if len(layer.inputs) == 1:
            return x.relu()
        x = x + values[layer.inputs[1]]
        return x.relu_() if layer.relu else x
    if isinstance(layer, Average):
        return x.mean((2, 3), keepdim=True)
    if isinstance(layer, Subsample):
        after = layer.channels - x.shape[1] - layer.offset
        return F.pad(x[..., :: layer.stride[0], :: layer.stride[1]], (0, 0, 0, 0, layer.offset, after))
    return cast(Other, layer).run(values)


def conv(layer: Conv, values: dict[str, Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """Run a convolution with other weights than its own, and what is fused into it."""
    y = F.conv2d(values[layer.inputs[0]], weight, bias, layer.stride, layer.padding, layer.dilation)
    return finish(y, layer, values)


def finish(y: Tensor, layer: Conv, values: dict[str, Tensor]) -> Tensor:
    """Run what is fused into a convolution, in place."""
    if len(layer.inputs) > 1:
        y += values[layer.inputs[1]]
    return y.relu_() if layer.relu else y


def linear(layer: Linear, values: dict[str, Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """Run a linear layer with other weights than its own."""
    y = F.linear(values[layer.inputs[0]].flatten(1), weight, bias)
    return y.relu_() if layer.relu else y
