"""Small networks of many shapes, and the gates that must be found in each."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from tests.models.network_parts import (
    Attention,
    Bottleneck,
    DenseBlock,
    Functional,
    Inception,
    InvertedResidual,
    SqueezeExcite,
    c,
    flattened,
    head,
    mobile,
    pooled,
    shuffle,
    summed,
    through,
    tied,
    transformer_like,
    twice,
    two,
    unused,
    zeroed,
)

# For each network the gates that must be found; every other convolution must be rejected, with a reason.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "bottleneck": (
        lambda: nn.Sequential(
            c(3, 4), Bottleneck(4, 5, 8), Bottleneck(8, 6, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head(8)
        ),
        {"0", "1.conv1", "1.conv2", "2.conv1", "2.conv2"},
    ),
    "inception": (Inception, {"a", "b1", "b2", "p", "last"}),
    "densenet": (DenseBlock, {"stem", "c1", "d1", "c2", "d2"}),
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
    "linear over the width": (lambda: flattened(lambda s, x: s.w(x).flatten(1), 8 * 8 * 3, w=nn.Linear(8, 3)), {"w"}),
    "linear over flat maps": (
        lambda: flattened(lambda s, x: s.w(x.flatten(2)).flatten(1), 24, w=nn.Linear(64, 3)),
        {"w"},
    ),
    "pooling across channels": (lambda: flattened(lambda _, x: F.max_pool2d(x.flatten(2), 2).flatten(1), 128), set()),
    "channels doubled by a view": (lambda: through(lambda _, x: F.relu(x).view(-1, 16, 4, 8), reads=16), {"a", "b"}),
    "channels halved by a view": (lambda: through(lambda _, x: F.relu(x).view(-1, 4, 16, 8), reads=4), {"b"}),
    "batch mixed by a view": (lambda: flattened(lambda _, x: x.view(-1, 1, 8, 8).flatten(1).view(-1, 512), 512), set()),
    "permute": (lambda: through(lambda _, x: F.relu(x).permute(0, 1, 3, 2)), {"a", "b"}),
    "channels to the height": (lambda: through(lambda _, x: F.relu(x).transpose(1, 2)), {"b"}),
    "chunk": (lambda: through(lambda _, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1], reads=4), {"a", "b"}),
    "chunks together again": (lambda: through(lambda _, x: torch.cat(F.relu(x).chunk(2, 1), 1)), {"a", "b"}),
    "slice": (lambda: through(lambda _, x: F.relu(x)[:, :4], reads=4), {"a", "b"}),
    "shuffle": (lambda: through(shuffle), {"a", "b"}),
    "concatenated along the height": (lambda: through(lambda _, x: torch.cat([F.relu(x), F.relu(x)], 2)), {"a", "b"}),
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
        {"a", "b"},
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
        {"a", "b"},
    ),
    "two activations on one convolution": (lambda: through(lambda _, x: F.relu(x) * torch.tanh(x)), {"a", "b"}),
    "one convolution twice": (lambda: Functional(twice, a=c(3, 8), b=c(8, 8), fc=head(8)), set()),
    "tied weights": (tied, set()),
    "output": (lambda: nn.Sequential(c(3, 4), nn.ReLU(), c(4, 5)), {"0"}),
    "output in the middle": (
        lambda: nn.Sequential(c(3, 4), nn.ReLU(), Functional(unused, a=c(4, 4), b=c(4, 4))),
        {"0"},
    ),
    "grouped": (lambda: through(lambda s, x: F.relu(s.g(F.relu(x))), g=c(8, 8, groups=2)), {"a", "g", "b"}),
    "depthwise multiplier": (
        lambda: through(lambda s, x: F.relu(s.g(F.relu(x))), g=c(8, 16, groups=8), reads=16),
        {"a", "b"},
    ),
    "depthwise with two users": (
        lambda: through(
            lambda s, x: (lambda y: torch.cat([y, F.relu(s.g(y))], 1))(F.relu(x)), g=c(8, 8, groups=8), reads=16
        ),
        {"a", "b"},
    ),
    "transposed": (
        lambda: through(lambda s, x: F.relu(s.t(F.relu(x))), t=nn.ConvTranspose2d(8, 8, 2, 2)),
        {"a", "t", "b"},
    ),
    "group norm": (lambda: through(lambda s, x: F.relu(s.n(x)), n=nn.GroupNorm(2, 8)), {"a", "b"}),
    "layer norm": (lambda: through(lambda s, x: F.relu(s.n(x)), n=nn.LayerNorm([8, 8, 8])), {"a", "b"}),
    "instance norm": (lambda: through(lambda s, x: F.relu(s.n(x)), n=nn.InstanceNorm2d(8, affine=True)), {"a", "b"}),
    "in-place activation": (lambda: through(lambda _, x: F.relu(x, inplace=True)), {"a", "b"}),
    "in-place method": (lambda: through(lambda _, x: x.relu_()), {"a", "b"}),
    "in-place with a second user": (lambda: through(lambda _, x: x + F.relu_(x)), {"a", "b"}),
    "clamped": (lambda: through(lambda _, x: x.clamp(0, 6)), {"a", "b"}),
    "hardtanh away from zero": (lambda: through(lambda _, x: F.hardtanh(F.relu(x), 1.0, 2.0)), {"a", "b"}),
    "zero to one behind a second user": (
        lambda: through(lambda _, x: torch.cat([F.hardtanh(x, 1.0, 2.0), F.relu(x)], 1), reads=16),
        {"a", "b"},
    ),
    "swish by hand": (
        lambda: through(lambda s, x: (lambda y: y * torch.sigmoid(y))(s.n(x)), n=nn.BatchNorm2d(8)),
        {"a", "b"},
    ),
    "sigmoid to a sum": (lambda: through(lambda s, x: torch.sigmoid(x) + F.relu(x)), {"a", "b"}),
    "prelu": (lambda: through(lambda s, x: s.p(x), p=nn.PReLU(8)), {"a", "b"}),
    "dropout": (lambda: through(lambda s, x: s.d(F.relu(x)), d=nn.Dropout2d(0.5)), {"a", "b"}),
    "functional dropout": (lambda: through(lambda s, x: F.dropout(F.relu(x), 0.5, s.training)), {"a", "b"}),
    "upsampled": (lambda: through(lambda s, x: F.interpolate(F.relu(x), scale_factor=2)), {"a", "b"}),
    "padded": (lambda: through(lambda s, x: s.p(F.relu(x)), p=nn.ZeroPad2d(1)), {"a", "b"}),
    "scaled": (lambda: through(lambda _, x: F.relu(x) * 0.5), {"a", "b"}),
    "shifted": (lambda: through(lambda _, x: F.relu(x) + 0.5), {"a", "b"}),
    "multiplied by another gate": (
        lambda: through(lambda s, x: F.relu(x) * F.relu(s.d(F.relu(x))), d=c(8, 8)),
        {"a", "b"},
    ),
    "zero-started branch": (zeroed, {"a", "b"}),
    "reflected borders": (
        lambda: through(lambda s, x: F.relu(s.r(F.relu(x))), r=c(8, 8, padding_mode="reflect")),
        {"a", "r", "b"},
    ),
    "convolutional head": (
        lambda: nn.Sequential(
            c(3, 8), nn.ReLU(), c(8, 6), nn.ReLU(), c(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
        {"0", "2"},
    ),
    "output of flattened maps": (lambda: nn.Sequential(c(3, 8), nn.ReLU(), c(8, 2), nn.Flatten()), {"0"}),
    "wider map": (lambda: through(lambda s, x: s.w(F.relu(x)), w=nn.Conv2d(8, 8, 2, padding=1)), {"a", "w", "b"}),
    "narrower map": (lambda: through(lambda s, x: s.w(F.relu(x)), w=nn.Conv2d(8, 8, 4, padding=1)), {"a", "w", "b"}),
    "sum of vectors": (
        lambda: flattened(lambda s, x: (lambda y: y + s.f(y))(pooled(s.b(x))), 6, b=c(8, 6), f=nn.Linear(6, 6)),
        {"a"},
    ),
    "sum of vectors in place": (lambda: flattened(summed, 6, b=c(8, 6), f=nn.Linear(6, 6)), {"a"}),
    "linear over rows": (
        lambda: two(lambda s, x: s.fc(F.relu(s.b(F.relu(s.a(x)))).view(-1, 6)).view(x.size(0), -1)),
        {"a"},
    ),
    "in place behind dropout": (
        lambda: two(
            lambda s, x: (lambda y: s.fc(pooled(s.b(s.r(s.a(s.r(s.d(y))))) + y)))(s.o(x)),
            o=c(3, 3),
            d=nn.Dropout(0.1),
            r=nn.ReLU(inplace=True),
            **{"a": c(3, 8), "b": c(8, 3), "fc": head(3)},
        ),
        {"a"},
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
        {"outer"},
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
        {"0", "2.outer"},
    ),
}
