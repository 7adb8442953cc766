"""Blocks of well-known networks, small, and short ways of writing others down."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Functional(nn.Module):
    """Modules by letter and a forward function: short enough to write many shapes of network down."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def c(inputs: int, outputs: int, kernel: int = 3, **more: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **more)


def head(channels: int) -> nn.Linear:
    return nn.Linear(channels, 5)


def pooled(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, 2, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += self.downsample(x)
        return self.relu(out)


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b1, self.b2, self.p = c(3, 4, 1), c(3, 3, 1), c(3, 5), c(3, 2, 1)
        self.last, self.fc = c(11, 4), head(4)

    def forward(self, x: Tensor) -> Tensor:
        branches = [F.relu(self.a(x)), F.relu(self.b2(F.relu(self.b1(x)))), F.relu(self.p(F.avg_pool2d(x, 3, 1, 1)))]
        return self.fc(pooled(F.relu(self.last(torch.cat(branches, 1)))))


class DenseBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = c(3, 4)
        self.n1, self.c1, self.m1, self.d1 = nn.BatchNorm2d(4), c(4, 6, 1), nn.BatchNorm2d(6), c(6, 3)
        self.n2, self.c2, self.m2, self.d2 = nn.BatchNorm2d(7), c(7, 6, 1), nn.BatchNorm2d(6), c(6, 3)
        self.norm, self.fc = nn.BatchNorm2d(10), head(10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.d1(F.relu(self.m1(self.c1(F.relu(self.n1(x))))))], 1)
        x = torch.cat([x, self.d2(F.relu(self.m2(self.c2(F.relu(self.n2(x))))))], 1)
        return self.fc(pooled(F.relu(self.norm(x))))


def mobile() -> nn.Module:
    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs), nn.ReLU6(),
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True),
        ]  # fmt: skip

    stem = [nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU6(inplace=True)]
    return nn.Sequential(
        *stem, *block(6, 8, 1), *block(8, 4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), head(4)
    )


class InvertedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = c(3, 4)
        self.expand, self.n1, self.depth, self.n2 = (
            c(4, 12, 1),
            nn.BatchNorm2d(12),
            c(12, 12, groups=12),
            nn.BatchNorm2d(12),
        )
        self.project, self.fc = c(12, 4, 1), head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inner = F.hardswish(self.n2(self.depth(F.relu6(self.n1(self.expand(x))))))
        return self.fc(pooled(x + self.project(inner)))


class SqueezeExcite(nn.Module):
    """With 1x1 convolutions, or with linears and the sizes read off the value, as the original code has it."""

    def __init__(self, linears: bool, swapped: bool) -> None:
        super().__init__()
        self.linears, self.swapped = linears, swapped
        self.first, self.norm, self.last, self.fc = c(3, 8), nn.BatchNorm2d(8), c(8, 4), head(4)
        self.down = nn.Linear(8, 4) if linears else nn.Conv2d(8, 4, 1)
        self.up = nn.Linear(4, 8) if linears else nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        if self.linears:
            batch, channels, _, _ = x.size()
            scale = F.adaptive_avg_pool2d(x, 1).view(batch, channels)
            scale = torch.sigmoid(self.up(F.relu(self.down(scale)))).view(batch, channels, 1, 1)
        else:
            scale = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        x = torch.mul(scale, x) if self.swapped else x * scale
        return self.fc(pooled(F.relu(self.last(x))))


class Attention(nn.Module):
    """CBAM's spatial part: maximum and mean over channels make a map that multiplies all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.map, self.last, self.fc = c(3, 6), c(2, 1), c(6, 4), head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return self.fc(pooled(F.relu(self.last(x * torch.sigmoid(self.map(both))))))


def two(forward: Callable[..., Tensor], channels: int = 8, reads: int | None = None, **layers: nn.Module) -> nn.Module:
    """``a`` -> what ``forward`` does -> ``b`` -> linear."""
    return Functional(forward, **{"a": c(3, channels), "b": c(reads or channels, 6), "fc": head(6), **layers})


def through(operation: Callable[[Functional, Tensor], Tensor], **more: object) -> nn.Module:
    return two(lambda self, x: self.fc(pooled(F.relu(self.b(operation(self, self.a(x)))))), **more)


def flattened(operation: Callable[[Functional, Tensor], Tensor], features: int, **layers: nn.Module) -> nn.Module:
    return Functional(
        lambda self, x: self.fc(operation(self, F.relu(self.a(x)))), a=c(3, 8), fc=nn.Linear(features, 5), **layers
    )


def twice(self: Functional, x: Tensor) -> Tensor:
    return self.fc(pooled(F.relu(self.b(F.relu(self.b(F.relu(self.a(x))))))))


def summed(self: Functional, x: Tensor) -> Tensor:
    y = pooled(self.b(x))
    y += self.f(y)
    return y


def tied() -> nn.Module:
    network = Functional(
        lambda self, x: self.fc(pooled(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))),
        a=c(3, 8), b=c(8, 8), c=c(8, 8), fc=head(8),
    )  # fmt: skip
    network.c.weight = network.b.weight
    return network


def zeroed() -> nn.Module:
    """As ResNets are often started: the last norm of the branch is zero, and nothing in it changes the output."""
    return two(
        lambda self, x: self.fc(pooled(self.b(F.relu(self.s(x) + self.n(self.d(F.relu(self.a(x)))))))),
        s=c(3, 8), d=c(8, 8), n=nn.BatchNorm2d(8),
    )  # fmt: skip


def transformer_like(self: Functional, x: Tensor) -> Tensor:
    tokens = self.a(x).flatten(2).transpose(1, 2)
    return self.fc((tokens + self.inner(F.gelu(self.outer(self.norm(tokens))))).mean(1))


def shuffle(_: Functional, x: Tensor) -> Tensor:
    batch, channels, height, width = x.size()
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


def unused(self: Functional, x: Tensor) -> Tensor:
    y = self.a(x)
    self.b(F.relu(y))
    return y
