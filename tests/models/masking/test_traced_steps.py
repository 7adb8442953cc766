"""The traced steps are the network: compared with the module itself, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.errors import UntraceableModelError
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.skipping_cnn import SkippingCNN
from tests.models.slicing import randomise


class Net(nn.Module):
    def __init__(self, body: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.linear = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3), nn.Linear(5, 4)
        self.body, self.calls = body, 0

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)

    def tail(self, x: Tensor) -> Tensor:
        return self.linear(self.b(F.relu(x)).relu().mean((2, 3)))


def augmented(net: Net, x: Tensor) -> Tensor:
    x = net.a(x)
    keep = x
    x += 1.0
    x *= 2
    return net.tail(x) + keep.mean((1, 2, 3))[:, None]


def sizes(net: Net, x: Tensor) -> Tensor:
    rows = x.shape[2]
    whole = rows
    rows //= 2
    return net.tail(net.a(x)[:, :, :rows]) * whole


def on_the_input(net: Net, x: Tensor) -> Tensor:
    x.mul_(4).add_(-1)
    return net.tail(net.a(x))


def augmented_input(net: Net, x: Tensor) -> Tensor:
    x -= 0.5
    return net.tail(net.a(x))


def view_of_the_input(net: Net, x: Tensor) -> Tensor:
    x[:, :1].relu_()
    return net.tail(net.a(x))


def by_type(net: Net, x: Tensor) -> Tensor:
    if isinstance(x, Tensor):
        x = 3 * x + 1
    return net.tail(net.a(x))


def by_type_later(net: Net, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.tail(x * 2 if isinstance(x, Tensor) else x)


def view(net: Net, x: Tensor) -> Tensor:
    x = net.a(x)
    flat = x.flatten(1)
    x += 1.0
    return net.tail(x) + flat.mean(1, keepdim=True)


def part(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    first, last = y.chunk(2, 1)
    turned = y.permute(0, 2, 3, 1)
    first.relu_()
    turned[..., -1] = 0.5
    return net.tail(y * 2) + last.mean((1, 2, 3))[:, None] + turned[:, 0, 0, :4]


def size_of_the_batch(net: Net, x: Tensor) -> Tensor:
    return net.tail(net.a(x).view(x.shape[0], 2, -1).reshape(x.shape[0], 6, 8, 8)) + torch.zeros(len(x), 4)


IN_PLACE = [augmented, sizes, on_the_input, augmented_input, view_of_the_input, view, part]


@pytest.mark.parametrize("body", [*IN_PLACE, by_type, by_type_later, size_of_the_batch])
def test_in_place_steps_are_traced_right(body: Callable[[Net, Tensor], Tensor]) -> None:
    network = randomise(Net(body))
    example = torch.randn(1, 3, 8, 8)
    before = example.clone()
    masked = MaskedCNN(network, example)
    batch = torch.randn(3, 3, 8, 8)
    given = batch.clone()
    mask = torch.ones(3, masked.mask_size)
    with torch.no_grad():
        expected = network(batch.clone())
        for _ in range(2):
            torch.testing.assert_close(masked(given, mask), expected)
    assert torch.equal(given, batch)
    assert torch.equal(example, before)


def counter(net: Net, x: Tensor) -> Tensor:
    net.calls += 1
    return net.tail(net.a(x)) * net.calls


def by_number(net: Net, x: Tensor) -> Tensor:
    return net.tail(net.a(x) * 2 if float(x.mean()) > 0 else net.a(x))


def outside(net: Net, x: Tensor) -> Tensor:
    return net.tail(net.a(x) + torch.from_numpy(x.mean((0, 2, 3)).numpy().copy())[0])


def by_batch(net: Net, x: Tensor) -> Tensor:
    return net.tail(net.a(x).abs() if len(x) > 2 else net.a(x))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            counter,
            "The recorded steps of Net differ from those that it runs on a batch of 1: step 'mul' .*test_traced_steps",
        ),
        (
            by_number,
            r"cannot be recorded: .*test_traced_steps\.py:\d+ turns a value that depends on the images into a P",
        ),
        (
            outside,
            r"computes step 'select' \(.*test_traced_steps\.py:\d+\) from numbers that are made outside of torch",
        ),
        (by_batch, r"runs other steps for a batch of 3 than for one of 2, from 'abs' .*|'relu' .*on\."),
    ],
)
def test_what_cannot_be_recorded_is_refused(body: Callable[[Net, Tensor], Tensor], why: str) -> None:
    with pytest.raises(UntraceableModelError, match=why):
        MaskedCNN(randomise(Net(body)), torch.zeros(1, 3, 8, 8))


class SameConv(nn.Conv2d):
    """Inherits all that computes."""


class Rewritten(nn.Conv2d):
    """Has its own forward, which does the same."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    """Computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class NormAct(nn.BatchNorm2d):
    """A norm, then dropout and an activation, all in one module."""

    def __init__(self, width: int, act: nn.Module) -> None:
        super().__init__(width)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return self.act(self.drop(x))


class SameLinear(nn.Linear):
    """Inherits all that computes."""


def chain(conv: type[nn.Conv2d], norm: Callable[[int], nn.Module]) -> nn.Module:
    layers = [conv(3, 6, 3), norm(6), conv(6, 5, 3), norm(5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), SameLinear(5, 4)]
    return randomise(nn.Sequential(*layers))


@pytest.mark.parametrize("conv", [SameConv, Rewritten])
@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU()])
def test_subclasses_are_what_they_do(conv: type[nn.Conv2d], act: nn.Module) -> None:
    network = chain(conv, lambda width: NormAct(width, act))
    masked = MaskedCNN(network, torch.zeros(1, 3, 12, 12))
    assert [gate.name for gate in masked.gates] == ["0", "2"]
    assert all("act" in gate.point for gate in masked.gates)
    assert list(masked.network.state_dict()) == list(network.state_dict())
    batch, mask = torch.randn(3, 3, 12, 12), (torch.rand(3, 11) < 0.5).float()
    # The oracle: hooks of the network's own modules, which zero the channels.
    parts = masked.split(mask)
    handles = [
        network[place].register_forward_hook(lambda _m, _i, y, part=part: y * part[:, :, None, None])
        for place, part in zip((1, 3), parts, strict=True)
    ]
    with torch.no_grad():
        expected = network(batch)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(masked(batch, mask), expected)
    torch.testing.assert_close(SkippingCNN(masked, execution="full")(batch, mask).output, expected)


def test_weights_that_are_computed() -> None:
    network = chain(Standardised, nn.BatchNorm2d)
    masked = MaskedCNN(network, torch.zeros(1, 3, 12, 12))
    assert [gate.name for gate in masked.gates] == ["0", "2"]
    batch, mask = torch.randn(3, 3, 12, 12), (torch.rand(3, 11) < 0.5).float()
    for place, part in zip((1, 3), masked.split(mask), strict=True):
        network[place].register_forward_hook(lambda _m, _i, y, part=part: y * part[:, :, None, None])
    torch.testing.assert_close(masked(batch, mask), network(batch))
