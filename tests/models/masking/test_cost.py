"""The price of masks against torch's own counter on networks whose filters are physically removed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.zoo.network_registry import ZOO, build
from prunegym.models.zoo.networks import SimpleCNN
from tests.models.slicing import randomise, remove, weights_alive


def counted_macs(network: nn.Module, size: int = 32) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, size, size))
    return counter.get_total_flops() / 2


def rows(masked: MaskedCNN) -> Tensor:
    """Return masks (count, mask_size): dense to empty, random, and each of the outer gates off."""
    generator = torch.Generator().manual_seed(1)
    shares = torch.tensor([1.0, 0.9, 0.5, 0.1, 0.02, 0.0])[:, None]
    masks = (torch.rand(len(shares), masked.mask_size, generator=generator) < shares).float()
    ends = torch.ones(3, masked.mask_size)
    for row, gate in ((0, 0), (1, len(masked.gates) // 2), (2, -1)):
        masked.split(ends[row])[gate].zero_()
    return torch.cat([masks, ends])


SLOW = {"resnet18", "resnet32", "resnet44", "resnet56", "vgg11", "vgg16"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in ZOO])
def test_zoo_equals_the_counter_on_the_sliced_network(name: str) -> None:
    network = build(name).eval()
    masked = MaskedCNN(network, torch.zeros(1, 3, 32, 32), gates="auto")
    masks = rows(masked)
    macs, weights = masked.cost.macs(masks), masked.cost.weights(masks)
    assert macs.dtype == weights.dtype == torch.float64
    for mask, got_macs, got_weights in zip(masks, macs.tolist(), weights.tolist(), strict=True):
        sliced = remove(network, mask)
        assert got_macs == counted_macs(sliced)
        assert got_weights == weights_alive(sliced)
    assert masked.cost.total_macs == macs[0].item() == counted_macs(network)
    assert masked.cost.total_weights == weights[0].item() == weights_alive(network)
    assert masked.cost.fixed_macs == macs[5].item() == counted_macs(remove(network, torch.zeros(masked.mask_size)))
    assert torch.equal(masked.cost.mac_share(masks), macs / masked.cost.total_macs)


def test_known_values() -> None:
    """The document's 3-16-32 network, by hand; of ResNet-20 nothing but the stem, shortcuts' sums and head is fixed."""
    cost = MaskedCNN(build("simple-cnn"), torch.zeros(1, 3, 32, 32)).cost
    assert cost.total_macs == 3 * 16 * 9 * 1024 + 16 * 32 * 9 * 256 + 2048 * 10
    assert cost.total_weights == 3 * 16 * 9 + 16 * 32 * 9 + 2048 * 10
    assert cost.fixed_macs == 0
    resnet = MaskedCNN(build("resnet20"), torch.zeros(1, 3, 32, 32)).cost
    assert resnet.total_macs == 40_551_040
    assert resnet.fixed_macs == 3 * 16 * 9 * 1024 + 640


@pytest.mark.parametrize("name", ["simple-cnn", "resnet20"])
def test_channel_price_is_what_one_channel_less_saves(name: str) -> None:
    network = build(name).eval()
    masked = MaskedCNN(network, torch.zeros(1, 3, 32, 32))
    prices = masked.cost.channel_price()
    assert prices.shape == (len(masked.gates),)
    for index, price in enumerate(prices.tolist()):
        mask = torch.ones(masked.mask_size)
        masked.split(mask)[index][1] = 0
        assert price == counted_macs(network) - counted_macs(remove(network, mask))


def test_a_gate_left_alone_is_always_paid() -> None:
    network = build("simple-cnn").eval()
    masked = MaskedCNN(network, torch.zeros(1, 3, 32, 32), gates=["features.3"])
    everything = torch.cat([torch.ones(16), torch.zeros(32)])
    assert masked.cost.fixed_macs == counted_macs(remove(network, everything))


def test_widths_and_soft_masks() -> None:
    masked = MaskedCNN(SimpleCNN(image_size=8, widths=(4, 6)), torch.zeros(1, 3, 8, 8))
    mask = torch.tensor([[1, 0, 1, 0, 1, 1, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0, 0, 0, 0, 0]])
    assert masked.cost.kept(mask).tolist() == [[2, 3], [2, 0]]
    assert torch.equal(masked.cost.macs_of_widths(torch.tensor([[2, 3], [2, 0]])), masked.cost.macs(mask))
    soft = torch.full((1, 10), 0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(masked.cost.macs, (soft,))


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_masks_of_any_type(kind: torch.dtype) -> None:
    masked = MaskedCNN(SimpleCNN(image_size=8, widths=(4, 6)), torch.zeros(1, 3, 8, 8))
    mask = torch.rand(5, 10) < 0.5
    assert torch.equal(masked.cost.macs(mask.to(kind)), masked.cost.macs(mask.double()))


class Other(nn.Module):
    """Depthwise, grouped, shared, squeeze-excite, concatenated and token layers in one network, sliceable by width."""

    def __init__(self, a: int = 6, d: int = 4, e: int = 3, g: int = 2, t: int = 5) -> None:
        super().__init__()
        self.a, self.depth = nn.Conv2d(3, a, 3, padding=1), nn.Conv2d(a, a, 3, 2, 1, groups=a)
        self.norm = nn.BatchNorm2d(a)
        self.down, self.up = nn.Conv2d(a, e, 1), nn.Conv2d(e, a, 1)
        self.d, self.mix = nn.Conv2d(3, d, 3, 2, 1), nn.Conv2d(a + 2 * d, 8, 1)
        self.shared, self.grouped = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4 * g, 3, padding=1, groups=4)
        self.tokens, self.fc = nn.Linear(4 * g, t), nn.Linear(t, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.norm(self.depth(self.a(x))))
        a = a * torch.sigmoid(self.up(torch.relu(self.down(a.mean((2, 3), keepdim=True)))))
        d = torch.relu(self.d(x))
        y = self.mix(torch.cat([d, a, torch.tanh(d)], 1))
        y = self.grouped(self.shared(self.shared(y)))
        return self.fc(self.tokens(y.flatten(2).transpose(1, 2)).mean(1))


def test_shapes_that_are_no_rows_of_convolutions() -> None:
    network = Other().eval()
    masked = MaskedCNN(randomise(network), torch.zeros(1, 3, 8, 8))
    widths = {"a": 6, "down": 3, "d": 4, "grouped": 2, "tokens": 5}
    assert {gate.name: gate.width for gate in masked.gates} == widths
    names = [gate.name for gate in masked.gates]
    for a, d, e, g, t in ((6, 4, 3, 2, 5), (1, 4, 2, 1, 2), (5, 1, 1, 2, 1)):
        kept = dict(zip(("a", "d", "down", "grouped", "tokens"), (a, d, e, g, t), strict=True))
        sliced = Other(a, d, e, g, t).eval()
        mask = torch.cat([(torch.arange(widths[name]) < kept[name]).float() for name in names])[None]
        macs = masked.cost.macs_of_widths(torch.tensor([[kept[name] for name in names]])).item()
        assert macs == masked.cost.macs(mask).item() == counted_macs(sliced, 8)
        assert masked.cost.weights(mask).item() == weights_alive(sliced)


@pytest.mark.parametrize("make", [lambda: build("simple-cnn"), lambda: build("resnet20")])
def test_masked_cnn_itself_costs_the_whole(make: Callable[[], nn.Module]) -> None:
    """Masking alone saves nothing: the masked pass runs every layer, each once."""
    masked = MaskedCNN(make(), torch.zeros(1, 3, 32, 32))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        masked(torch.zeros(2, 3, 32, 32), torch.zeros(2, masked.mask_size))
    assert counter.get_total_flops() == 2 * 2 * masked.cost.total_macs
