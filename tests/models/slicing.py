"""The oracle: zoo networks with filters physically removed.

Written by hand for each family, from the weights alone. It shares no code with the mask path: nothing of
``prunegym.models.masking.masked_cnn``, ``discovery``, ``graph`` or ``cost`` is imported here.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from prunegym.models.zoo.networks import VGG, CifarResNet, MCifarNet, ResNet18, SimpleCNN


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms statistics and affine parameters that are not trivial, biases too, and return the net in eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, std: float) -> Tensor:
        return torch.randn(like.shape, generator=generator) * std

    def uniform(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator) + 0.5

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(uniform(module.weight))
                module.bias.copy_(normal(module.bias, 0.5))
                module.running_mean.copy_(normal(module.running_mean, 0.3))
                module.running_var.copy_(uniform(module.running_var))
            elif isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.copy_(normal(module.weight, (2 / module.weight[0].numel()) ** 0.5))
                if module.bias is not None:
                    module.bias.copy_(normal(module.bias, 0.3))
    return network.eval()


class NoInput(nn.Module):
    """A convolution none of whose input channels is left: its bias everywhere."""

    def __init__(self, conv: nn.Conv2d, out_channels: int, bias: Tensor | None) -> None:
        super().__init__()
        self.geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        self.out_channels = out_channels
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride, padding, dilation = self.geometry
        sizes = [
            (size + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
            for i, size in enumerate(x.shape[2:])
        ]
        output = x.new_zeros(len(x), self.out_channels, *sizes)
        return output if self.bias is None else output + self.bias[:, None, None]


class Empty(nn.Module):
    """A norm or pooling that is given no channel: torch's own refuse, so only the shape is worked out."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.pool = layer if isinstance(layer, nn.MaxPool2d) else None

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 0
        if self.pool is None:
            return x
        return x.new_zeros(len(x), 0, *self.pool(x.new_zeros(1, 1, *x.shape[2:])).shape[2:])


def conv(layer: nn.Conv2d, outputs: Tensor, inputs: Tensor) -> nn.Module:
    """Keep the filters ``outputs`` and of each the channels ``inputs`` (bool)."""
    weight = layer.weight.detach()[outputs][:, inputs].clone()
    bias = None if layer.bias is None else layer.bias.detach()[outputs].clone()
    if 0 in weight.shape:
        return NoInput(layer, len(weight), bias)
    sliced = nn.Conv2d(
        weight.shape[1], weight.shape[0], layer.kernel_size, layer.stride, layer.padding, bias=bias is not None
    )
    sliced.weight = nn.Parameter(weight)
    if bias is not None:
        sliced.bias = nn.Parameter(bias)
    return sliced


def norm(layer: nn.BatchNorm2d, channels: Tensor) -> nn.Module:
    """Keep the channels (bool) of a batch norm."""
    if not channels.any():
        return Empty(layer)
    sliced = nn.BatchNorm2d(int(channels.sum()), layer.eps)
    for name, value in layer.state_dict().items():
        sliced.state_dict()[name].copy_(value[channels] if value.ndim else value)
    return sliced


def linear(layer: nn.Linear, inputs: Tensor) -> nn.Linear:
    """Keep the input features (bool) of a linear layer."""
    sliced = nn.Linear(1, layer.out_features)
    sliced.weight = nn.Parameter(layer.weight.detach()[:, inputs].clone())
    sliced.bias = nn.Parameter(layer.bias.detach().clone())
    return sliced


class Plain(nn.Module):
    """Layers in a row, then (optionally pooled) features into one linear layer."""

    def __init__(self, layers: list[nn.Module], pooled: bool, last: nn.Linear) -> None:
        super().__init__()
        self.layers, self.pooled, self.linear = nn.Sequential(*layers), pooled, last

    def forward(self, images: Tensor) -> Tensor:
        x = self.layers(images)
        return self.linear(x.mean((2, 3)) if self.pooled else x.reshape(len(x), -1))


def sliced_plain(network: SimpleCNN | VGG | MCifarNet, keep: Tensor) -> nn.Module:
    layers: list[nn.Module] = []
    present = torch.ones(next(network.parameters()).shape[1], dtype=torch.bool)
    for layer in network.features:
        if isinstance(layer, nn.Conv2d):
            kept, keep = keep[: layer.out_channels], keep[layer.out_channels :]
            layers.append(conv(layer, kept, present))
            present = kept
        elif isinstance(layer, nn.BatchNorm2d):
            layers.append(norm(layer, present))
        elif isinstance(layer, nn.MaxPool2d):
            layers.append(layer if present.any() else Empty(layer))
        else:
            assert isinstance(layer, nn.ReLU)
            layers.append(layer)
    assert len(keep) == 0
    places = network.linear.in_features // len(present)
    last = linear(network.linear, present.repeat_interleave(places))
    return Plain(layers, not isinstance(network, SimpleCNN), last)


ResNet = CifarResNet | ResNet18


def stages(network: ResNet) -> list[str]:
    return ["layer1", "layer2", "layer3"] + (["layer4"] if isinstance(network, ResNet18) else [])


def sliced_resnet(network: ResNet, keep: Tensor) -> nn.Module:
    sliced = copy.deepcopy(network)
    for stage in stages(network):
        for block in getattr(sliced, stage):
            width = block.conv1.out_channels
            kept, keep = keep[:width], keep[width:]
            everything = torch.ones(width, dtype=torch.bool)
            block.conv1 = conv(block.conv1, kept, torch.ones(block.conv1.in_channels, dtype=torch.bool))
            block.bn1 = norm(block.bn1, kept)
            block.conv2 = conv(block.conv2, everything, kept)
    assert len(keep) == 0
    return sliced


def remove(network: nn.Module, keep: Tensor) -> nn.Module:
    """Return the network with the filters removed whose bit in ``keep`` (mask_size,) is 0, in eval mode."""
    bits = keep.bool()
    sliced = sliced_resnet(network, bits) if isinstance(network, ResNet) else sliced_plain(network, bits)
    return sliced.eval()


def gate_names(network: nn.Module) -> list[str]:
    """Return the names of the convolutions whose filters can be removed, in order."""
    if isinstance(network, ResNet):
        return [f"{stage}.{block}.conv1" for stage in stages(network) for block in range(len(getattr(network, stage)))]
    return [f"features.{i}" for i, layer in enumerate(network.features) if isinstance(layer, nn.Conv2d)]


def weights_alive(sliced: nn.Module) -> int:
    """Count the weights, without biases and norms, of the sliced network's convolutions and linears."""
    return sum(m.weight.numel() for m in sliced.modules() if isinstance(m, nn.Conv2d | nn.Linear))
