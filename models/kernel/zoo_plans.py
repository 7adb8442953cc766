"""Plans of the zoo's networks, and the same networks masked in plain torch: for tests and benchmarks.

Every convolution of a plain network, and the inner one of every residual block, is a gate. Batch norm is folded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.models.kernel.builder import PlanBuilder, Value
from prunegym.models.kernel.plan import GateHead, Plan
from prunegym.models.networks import VGG, CifarResNet, MCifarNet, SimpleCNN

PlainNetwork = VGG | MCifarNet | SimpleCNN
FoldedConv = tuple[nn.Conv2d, Tensor, Tensor]


def fold(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the batch norm after it, in eval mode, folded in."""
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
    if not isinstance(norm, nn.BatchNorm2d):
        return conv.weight.detach(), bias
    if norm.running_mean is None or norm.running_var is None:
        raise TypeError("Batch norm without running statistics cannot be folded.")
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias.detach() - norm.running_mean * scale
    return conv.weight.detach() * scale[:, None, None, None], bias * scale + shift


def folded_convs(network: PlainNetwork | CifarResNet) -> list[FoldedConv]:
    """Convolutions in order of execution, with folded weights and biases."""
    modules = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    pairs = zip(modules, [*modules[1:], None], strict=True)
    return [(conv, *fold(conv, norm)) for conv, norm in pairs if isinstance(conv, nn.Conv2d)]


def gate_widths(network: PlainNetwork | CifarResNet) -> list[int]:
    """Width of each gate."""
    widths = [conv.out_channels for conv, _, _ in folded_convs(network)]
    return widths[1::2] if isinstance(network, CifarResNet) else widths


def make_plan(
    network: PlainNetwork | CifarResNet,
    image_size: int,
    heads: Sequence[GateHead] | None = None,
    variant: str | None = None,
) -> Plan:
    """Build the plan of a zoo network; with ``heads``, one a gate, they decide."""
    convs = folded_convs(network)
    builder = PlanBuilder(convs[0][0].in_channels, image_size, image_size, gate_widths(network))
    add = _add_resnet if isinstance(network, CifarResNet) else _add_plain
    x = add(builder, network, convs, heads)
    return builder.build(builder.linear(x, network.linear.weight, network.linear.bias), variant)


def _add_plain(
    builder: PlanBuilder, network: nn.Module, convs: list[FoldedConv], heads: Sequence[GateHead] | None
) -> Value:
    x, gate = builder.images, 0
    features = network.get_submodule("features")
    for module in features.children():
        if isinstance(module, nn.Conv2d):
            if heads is not None:
                builder.decide(gate, x, heads[gate])
            _, weight, bias = convs[gate]
            # A ReLU that comes after pooling may as well come before it.
            x = builder.conv(
                x, weight, bias, stride=module.stride[0], padding=int(module.padding[0]), relu=True, gate=gate
            )
            gate += 1
        elif isinstance(module, nn.MaxPool2d):
            x = builder.max_pool(x, 2)
    return x if isinstance(network, SimpleCNN) else builder.average(x)


def _add_resnet(
    builder: PlanBuilder, _network: nn.Module, convs: list[FoldedConv], heads: Sequence[GateHead] | None
) -> Value:
    _, weight, bias = convs[0]
    x = builder.conv(builder.images, weight, bias, padding=1, relu=True)
    for gate, (first, second) in enumerate(zip(convs[1::2], convs[2::2], strict=True)):
        if heads is not None:
            builder.decide(gate, x, heads[gate])
        stride, channels = first[0].stride[0], first[0].out_channels
        inner = builder.conv(x, first[1], first[2], stride=stride, padding=1, relu=True, gate=gate)
        if channels != x.channels:
            x = builder.subsample(x, stride, channels, (channels - x.channels) // 2)
        x = builder.conv(inner, second[1], second[2], padding=1, relu=True, residual=x)
    return builder.average(x)


class _Masks:
    """Deals out masks gate by gate: given ones, or what heads decide; and remembers them."""

    def __init__(
        self, network: PlainNetwork | CifarResNet, masks: Tensor | None, heads: Sequence[GateHead] | None
    ) -> None:
        self.given = None if masks is None else torch.split(masks.float(), gate_widths(network), 1)
        self.heads = heads
        self.used: list[Tensor] = []

    def next(self, x: Tensor) -> Tensor:
        gate = len(self.used)
        if self.heads is not None:
            self.used.append(torch_decision(self.heads[gate], x).float())
        elif self.given is not None:
            self.used.append(self.given[gate])
        return self.used[-1][:, :, None, None]


def torch_decision(head: GateHead, x: Tensor) -> Tensor:
    """What a policy decides on maps (batch, channels, height, width), in plain torch: (batch, width) bool."""
    features = [x.mean((2, 3))] if head.average else []
    if head.grid:
        features.append(F.adaptive_avg_pool2d(x, head.grid).flatten(1))
    z = ((torch.cat(features, 1) - head.mean) / head.std).clamp(-10, 10)
    return F.linear(F.relu(F.linear(z, head.weight1, head.bias1)), head.weight2, head.bias2) > 0


def torch_masked(
    network: PlainNetwork | CifarResNet,
    images: Tensor,
    masks: Tensor | None = None,
    heads: Sequence[GateHead] | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits and masks of a zoo network in eval mode, masked channels multiplied by zero."""
    dealer = _Masks(network, masks, heads)
    if isinstance(network, CifarResNet):
        x = F.relu(network.bn1(network.conv1(images)))
        for block in [*network.layer1, *network.layer2, *network.layer3]:
            mask = dealer.next(x)
            inner = F.relu(block.bn1(block.conv1(x))) * mask
            x = F.relu(block.bn2(block.conv2(inner)) + block.shortcut(x))
    else:
        x, mask = images, torch.ones(())
        for module in network.features:
            if isinstance(module, nn.Conv2d):
                mask = dealer.next(x)
            x = module(x)
            if isinstance(module, nn.ReLU):
                x = x * mask
    x = x if isinstance(network, SimpleCNN) else F.adaptive_avg_pool2d(x, 1)
    return network.linear(x.flatten(1)), torch.cat(dealer.used, 1).bool()
