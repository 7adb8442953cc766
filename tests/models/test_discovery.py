"""Gates on other people's shapes: every gate that is accepted equals removal, and those that should be found are."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from slicing import randomise
from torch import Tensor, nn

from prunegym.models.errors import UntraceableModelError
from prunegym.models.masked import MaskedCNN


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
    return Functional(forward, a=c(3, channels), b=c(reads or channels, 6), fc=head(6), **layers)


def through(operation: Callable[[Functional, Tensor], Tensor], **more: object) -> nn.Module:
    return two(lambda self, x: self.fc(pooled(F.relu(self.b(operation(self, self.a(x)))))), **more)


def flattened(operation: Callable[[Functional, Tensor], Tensor], features: int, **layers: nn.Module) -> nn.Module:
    return Functional(
        lambda self, x: self.fc(operation(self, F.relu(self.a(x)))), a=c(3, 8), fc=nn.Linear(features, 5), **layers
    )


def twice(self: Functional, x: Tensor) -> Tensor:
    return self.fc(pooled(F.relu(self.b(F.relu(self.b(F.relu(self.a(x))))))))


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


# For each network the gates that must be found; every other convolution must be rejected, with a reason.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "bottleneck": (
        lambda: nn.Sequential(
            c(3, 4), Bottleneck(4, 5, 8), Bottleneck(8, 6, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head(8)
        ),
        {"0", "1.conv1", "1.conv2", "2.conv1", "2.conv2"},
    ),
    "inception": (Inception, {"a", "b1", "b2", "p", "last"}),
    "densenet": (DenseBlock, {"c1", "c2"}),
    "mobilenet": (mobile, {"0", "6", "12"}),
    "inverted residual": (InvertedResidual, {"expand"}),
    "squeeze-excite convolutions": (lambda: SqueezeExcite(False, False), {"first", "down", "last"}),
    "squeeze-excite linears": (lambda: SqueezeExcite(True, False), {"first", "last"}),
    "squeeze-excite swapped": (lambda: SqueezeExcite(False, True), {"first", "down", "last"}),
    "spatial attention": (Attention, {"last"}),
    "functional pooling": (lambda: through(lambda _, x: F.relu(F.max_pool2d(x, 2))), {"a", "b"}),
    "module pooling": (lambda: through(lambda s, x: s.r(s.p(x)), p=nn.MaxPool2d(2), r=nn.ReLU()), {"a", "b"}),
    "pooling before norm": (
        lambda: through(lambda s, x: F.relu(s.n(F.avg_pool2d(x, 2))), n=nn.BatchNorm2d(8)),
        {"a", "b"},
    ),
    "pooling by strides": (lambda: through(lambda s, x: s.p(F.relu(x)), p=nn.MaxPool2d(3, 2, 1)), {"a", "b"}),
    "mean over the map": (lambda: flattened(lambda _, x: x.mean([2, 3]), 8), {"a"}),
    "mean in two steps": (lambda: flattened(lambda _, x: x.mean(-1).mean(-1), 8), {"a"}),
    "mean by keyword": (lambda: flattened(lambda _, x: torch.mean(x, dim=(-2, -1)), 8), {"a"}),
    "mean of flat maps": (lambda: flattened(lambda _, x: x.flatten(2).mean(2), 8), {"a"}),
    "mean over channels": (lambda: flattened(lambda _, x: x.mean(1).flatten(1), 64), set()),
    "mean over channels, convolved": (lambda: through(lambda _, x: x.mean(1, keepdim=True), reads=1), {"b"}),
    "mean over channels in front of a norm": (
        lambda: through(lambda s, x: F.relu(s.n(torch.mean(x, 1, True))), reads=1, n=nn.BatchNorm2d(1)),
        {"b"},
    ),
    "maximum over channels": (lambda: through(lambda _, x: torch.max(x, 1, keepdim=True)[0], reads=1), {"b"}),
    "sum over channels": (lambda: through(lambda _, x: x.sum(1, keepdim=True), reads=1), {"b"}),
    "softmax": (lambda: through(lambda _, x: torch.softmax(x, 1)), {"b"}),
    "flatten": (lambda: flattened(lambda _, x: torch.flatten(x, 1), 512), {"a"}),
    "flatten module": (lambda: flattened(lambda s, x: s.f(x), 512, f=nn.Flatten()), {"a"}),
    "view with the batch's size": (lambda: flattened(lambda _, x: x.view(x.size(0), -1), 512), {"a"}),
    "view with the shape's first": (lambda: flattened(lambda _, x: x.reshape(x.shape[0], -1), 512), {"a"}),
    "view with minus one": (lambda: flattened(lambda _, x: x.view(-1, 512), 512), {"a"}),
    "squeeze": (lambda: flattened(lambda _, x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1), 8), {"a"}),
    "linear over the width": (lambda: flattened(lambda s, x: s.w(x).flatten(1), 8 * 8 * 3, w=nn.Linear(8, 3)), set()),
    "linear over flat maps": (
        lambda: flattened(lambda s, x: s.w(x.flatten(2)).flatten(1), 24, w=nn.Linear(64, 3)),
        set(),
    ),
    "pooling across channels": (lambda: flattened(lambda _, x: F.max_pool2d(x.flatten(2), 2).flatten(1), 128), set()),
    "channels doubled by a view": (lambda: through(lambda _, x: F.relu(x).view(-1, 16, 4, 8), reads=16), {"a", "b"}),
    "channels halved by a view": (lambda: through(lambda _, x: F.relu(x).view(-1, 4, 16, 8), reads=4), {"b"}),
    "batch mixed by a view": (lambda: flattened(lambda _, x: x.view(-1, 1, 8, 8).flatten(1).view(-1, 512), 512), set()),
    "permute": (lambda: through(lambda _, x: F.relu(x).permute(0, 1, 3, 2)), {"b"}),
    "channels to the height": (lambda: through(lambda _, x: F.relu(x).transpose(1, 2)), {"b"}),
    "chunk": (lambda: through(lambda _, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1], reads=4), {"b"}),
    "slice": (lambda: through(lambda _, x: F.relu(x)[:, :4], reads=4), {"b"}),
    "shuffle": (lambda: through(shuffle), {"b"}),
    "concatenated along the height": (lambda: through(lambda _, x: torch.cat([F.relu(x), F.relu(x)], 2)), {"b"}),
    "concatenated with itself": (
        lambda: through(lambda _, x: torch.cat([F.relu(x), F.leaky_relu(x)], dim=1), reads=16),
        {"a", "b"},
    ),
    "concatenated by keyword": (
        lambda: through(lambda s, x: torch.cat(tensors=(F.relu(x), F.relu(x)), dim=-3), reads=16),
        {"a", "b"},
    ),
    "norm behind a concatenation": (
        lambda: through(lambda s, x: s.n(torch.cat([F.relu(x), x], 1)), reads=16, n=nn.BatchNorm2d(16)),
        {"b"},
    ),
    "two consumers": (
        lambda: two(lambda s, x: (lambda y: s.fc(pooled(s.b(y) + s.d(y))))(F.relu(s.a(x))), d=c(8, 6)),
        {"a"},
    ),
    "two norms on one convolution": (
        lambda: two(
            lambda s, x: (lambda y: s.fc(pooled(F.relu(s.b(s.n(y) * s.m(y))))))(s.a(x)),
            n=nn.BatchNorm2d(8),
            m=nn.BatchNorm2d(8),
        ),
        {"b"},
    ),
    "two activations on one convolution": (lambda: through(lambda _, x: F.relu(x) * torch.tanh(x)), {"a", "b"}),
    "one convolution twice": (lambda: Functional(twice, a=c(3, 8), b=c(8, 8), fc=head(8)), set()),
    "tied weights": (tied, set()),
    "output": (lambda: nn.Sequential(c(3, 4), nn.ReLU(), c(4, 5)), {"0"}),
    "output in the middle": (
        lambda: nn.Sequential(c(3, 4), nn.ReLU(), Functional(unused, a=c(4, 4), b=c(4, 4))),
        {"0"},
    ),
    "grouped": (lambda: through(lambda s, x: F.relu(s.g(F.relu(x))), g=c(8, 8, groups=2)), {"b"}),
    "depthwise multiplier": (
        lambda: through(lambda s, x: F.relu(s.g(F.relu(x))), g=c(8, 16, groups=8), reads=16),
        {"b"},
    ),
    "depthwise with two users": (
        lambda: through(
            lambda s, x: (lambda y: torch.cat([y, F.relu(s.g(y))], 1))(F.relu(x)), g=c(8, 8, groups=8), reads=16
        ),
        {"b"},
    ),
    "transposed": (lambda: through(lambda s, x: F.relu(s.t(F.relu(x))), t=nn.ConvTranspose2d(8, 8, 2, 2)), {"b"}),
    "group norm": (lambda: through(lambda s, x: F.relu(s.n(x)), n=nn.GroupNorm(2, 8)), {"b"}),
    "layer norm": (lambda: through(lambda s, x: F.relu(s.n(x)), n=nn.LayerNorm([8, 8, 8])), {"b"}),
    "instance norm": (lambda: through(lambda s, x: F.relu(s.n(x)), n=nn.InstanceNorm2d(8, affine=True)), {"a", "b"}),
    "in-place activation": (lambda: through(lambda _, x: F.relu(x, inplace=True)), {"a", "b"}),
    "in-place method": (lambda: through(lambda _, x: x.relu_()), {"a", "b"}),
    "in-place with a second user": (lambda: through(lambda _, x: x + F.relu_(x)), {"b"}),
    "clamped": (lambda: through(lambda _, x: x.clamp(0, 6)), {"a", "b"}),
    "hardtanh away from zero": (lambda: through(lambda _, x: F.hardtanh(F.relu(x), 1.0, 2.0)), {"a", "b"}),
    "zero to one behind a second user": (
        lambda: through(lambda _, x: torch.cat([F.hardtanh(x, 1.0, 2.0), F.relu(x)], 1), reads=16),
        {"b"},
    ),
    "swish by hand": (
        lambda: through(lambda s, x: (lambda y: y * torch.sigmoid(y))(s.n(x)), n=nn.BatchNorm2d(8)),
        {"a", "b"},
    ),
    "sigmoid to a sum": (lambda: through(lambda s, x: torch.sigmoid(x) + F.relu(x)), {"b"}),
    "prelu": (lambda: through(lambda s, x: s.p(x), p=nn.PReLU(8)), {"a", "b"}),
    "dropout": (lambda: through(lambda s, x: s.d(F.relu(x)), d=nn.Dropout2d(0.5)), {"a", "b"}),
    "functional dropout": (lambda: through(lambda s, x: F.dropout(F.relu(x), 0.5, s.training)), {"a", "b"}),
    "upsampled": (lambda: through(lambda s, x: F.interpolate(F.relu(x), scale_factor=2)), {"a", "b"}),
    "padded": (lambda: through(lambda s, x: s.p(F.relu(x)), p=nn.ZeroPad2d(1)), {"a", "b"}),
    "scaled": (lambda: through(lambda _, x: F.relu(x) * 0.5), {"a", "b"}),
    "shifted": (lambda: through(lambda _, x: F.relu(x) + 0.5), {"b"}),
    "multiplied by another gate": (
        lambda: through(lambda s, x: F.relu(x) * F.relu(s.d(F.relu(x))), d=c(8, 8)),
        {"a", "b"},
    ),
    "zero-started branch": (zeroed, {"a", "b"}),
    "reflected borders": (
        lambda: through(lambda s, x: F.relu(s.r(F.relu(x))), r=c(8, 8, padding_mode="reflect")),
        {"a", "r", "b"},
    ),
    "tokens": (
        lambda: Functional(
            transformer_like,
            a=c(3, 8),
            norm=nn.LayerNorm(8),
            outer=nn.Linear(8, 16),
            inner=nn.Linear(16, 8),
            fc=head(8),
        ),
        set(),
    ),
    "gate in front of tokens": (
        lambda: nn.Sequential(
            c(3, 6),
            nn.ReLU(),
            Functional(
                transformer_like,
                a=c(6, 8),
                norm=nn.LayerNorm(8),
                outer=nn.Linear(8, 16),
                inner=nn.Linear(16, 8),
                fc=head(8),
            ),
        ),
        {"0"},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_gates_equal_removal(name: str) -> None:
    make, expected = NETWORKS[name]
    torch.manual_seed(0)
    network = randomise(make())
    example = torch.zeros(1, 3, 8, 8)
    if not expected:
        with pytest.raises(UntraceableModelError, match="No gate was found"):
            MaskedCNN(network, example)
        return
    masked = MaskedCNN(network, example)
    assert {gate.name for gate in masked.gates} == expected
    convolutions = {
        path for path, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    }
    depthwise = {str(masked.graph[step].target) for gate in masked.gates for step in gate.producers}
    assert set(masked.rejected) == convolutions - expected - depthwise
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(masked.double()(images, torch.ones(2, masked.mask_size)), network.double()(images))
    for index in range(len(masked.gates)):
        check_removal(network, masked, index, images)


def check_removal(network: nn.Module, masked: MaskedCNN, index: int, images: Tensor) -> None:
    """Compare a masked channel with a filter that nobody reads, in the plain network.

    The weights that read it are found by experiment: those input features of a consumer that change when the filter is
    replaced. Once they are zero the filter must not matter to the output any more, and the output must be the masked.
    """
    gate = masked.gates[index]
    channel = index % gate.width
    mask = torch.ones(len(images), masked.mask_size)
    masked.split(mask)[index][:, channel] = 0
    plain = copy.deepcopy(network)
    other = copy.deepcopy(network)
    filters = other.get_submodule(gate.name)
    filters.weight.data[channel] = torch.randn_like(filters.weight.data[channel])
    if filters.bias is not None:
        filters.bias.data[channel] = 1.5
    for step in gate.consumers:
        path = str(masked.graph[step].target)
        seen = [recorded_input(net, path, images) for net in (plain, other)]
        places = (seen[0] - seen[1]).abs().movedim(1, 0).flatten(1).amax(1) > 1e-12
        for net in (plain, other):
            net.get_submodule(path).weight.data[:, places] = 0
    torch.testing.assert_close(plain(images), other(images))
    torch.testing.assert_close(masked(images, mask), plain(images))


def recorded_input(network: nn.Module, path: str, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = network.get_submodule(path).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    network(images)
    hook.remove()
    return seen[0].detach()
