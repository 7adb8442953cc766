"""Layers of a program in plain torch, as all of the torch paths run them."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from prunegym.models.masking.graph import BATCH, LIKE
from prunegym.models.skipping.program.layers import (
    Add,
    Average,
    Concat,
    Conv,
    Layer,
    Linear,
    MaxPool,
    Norm,
    Other,
    Program,
    Subsample,
)


def first_values(program: Program, images: Tensor) -> dict[str, Any]:
    """Return the values with which a pass begins; maps lie channels last."""
    images = images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images
    return {program.input: images, BATCH: len(images), LIKE: images[:0]}


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
    if isinstance(layer, Concat):
        return torch.cat([values[name] for name in layer.inputs], 1)
    if isinstance(layer, Norm):
        return norm(layer, x, layer.scale, layer.shift)
    if isinstance(layer, Conv):
        return conv(layer, values, layer.weight, layer.bias)
    return cast(Other, layer).run(values)


def norm(layer: Norm, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Run a norm that could not be folded, with the factors (channels,) and offsets of the channels that are there."""
    y = torch.addcmul(shift.to(x.dtype)[:, None, None], x, scale.to(x.dtype)[:, None, None])
    return y.relu_() if layer.relu else y


def conv(layer: Conv, values: dict[str, Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """Run a convolution with other weights than its own, and what is fused into it."""
    x = values[layer.inputs[0]]
    # Of a grouped convolution's groups each keeps as many channels; of a depthwise one whole groups are left out.
    groups = x.shape[1] if layer.groups > 1 and layer.weight.shape[1] == 1 else layer.groups
    y = F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, groups)
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
