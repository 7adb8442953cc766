"""Gates on other people's shapes: every gate that is accepted equals removal, and those that should be found are."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prunegym.errors import UntraceableModelError
from prunegym.models.masking.gates import GateFinder
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.masking.recording.tracing import trace
from prunegym.models.masking.verification import failing_gates
from tests.models.many_networks import NETWORKS
from tests.models.network_parts import c
from tests.models.slicing import randomise


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
    with_gate = {layer for gate in masked.gates for layer in gate.layers}
    assert set(masked.rejected) & convolutions == convolutions - with_gate
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(masked.double()(images, torch.ones(2, masked.mask_size)), network.double()(images))
    for index, gate in enumerate(masked.gates):
        if not any(masked.graph[name].operation.endswith("_norm") for name in gate.consumers):  # see test_norms
            check_removal(network, masked, index, images)


def check_removal(network: nn.Module, masked: MaskedCNN, index: int, images: Tensor) -> None:
    """Compare a masked channel with a filter that nobody reads, in the plain network.

    The weights that read it are found by experiment: those input features of a consumer that change when the filter is
    replaced. Once they are zero the filter must not matter to the output any more, and the output must be the masked.
    """
    gate = masked.gates[index]
    bit = sum(other.width for other in masked.gates[:index]) + index % gate.width
    mask = torch.ones(len(images), masked.mask_size)
    mask[:, bit] = 0
    plain, other = copy.deepcopy(network), copy.deepcopy(network)
    for step in gate.producers:
        layer = other.get_submodule(masked.graph[step].layer)
        rows = masked.found.makes[step] == bit
        assert rows.any()
        filters = layer.weight.data.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight.data
        filters[rows] = torch.randn_like(filters[rows])
        if layer.bias is not None:
            layer.bias.data[rows] = 1.5
    for step in gate.consumers:
        path = masked.graph[step].layer
        seen = [recorded_input(net, path, images) for net in (plain, other)]
        axis = -1 if isinstance(plain.get_submodule(path), nn.Linear) else 1
        places = (seen[0] - seen[1]).abs().movedim(axis, 0).flatten(1).amax(1) > 1e-12
        for net in (plain, other):
            silence(net.get_submodule(path), places)
    torch.testing.assert_close(plain(images), other(images))
    torch.testing.assert_close(masked(images, mask), plain(images))


def silence(layer: nn.Module, places: Tensor) -> None:
    """Set the weights that read some channels to zero."""
    if isinstance(layer, nn.ConvTranspose2d):
        layer.weight.data[places] = 0
        return
    groups = getattr(layer, "groups", 1)
    for filters, own in zip(layer.weight.data.chunk(groups), places.chunk(groups), strict=True):
        filters[:, own] = 0


def recorded_input(network: nn.Module, path: str, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = network.get_submodule(path).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    network(images)
    hook.remove()
    return seen[0].detach()


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 8), nn.LayerNorm([8, 8, 8]), nn.GroupNorm(1, 8)])
def test_norms_over_channels_count_a_masked_channel_as_zeros(norm: nn.Module) -> None:
    """The oracle: hooks that zero what the norm reads, and what the next convolution reads."""
    torch.manual_seed(0)
    network = randomise(nn.Sequential(c(3, 8), norm, nn.ReLU(), c(8, 5), nn.Flatten(), nn.Linear(320, 3)))
    with torch.no_grad():
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8))
    assert [(gate.name, len(gate.points)) for gate in masked.gates] == [("0", 2), ("3", 1)]
    images, mask = torch.randn(4, 3, 8, 8), (torch.rand(4, masked.mask_size) < 0.5).float()
    for place, bits in zip((0, 2, 3), (0, 0, 1), strict=True):
        part = masked.split(mask)[bits][:, :, None, None]
        network[place].register_forward_hook(lambda _m, _i, y, part=part: y * part)
    torch.testing.assert_close(masked(images, mask), network(images))


class Block(nn.Module):
    """A residual block, its norms before or behind the convolutions."""

    def __init__(self, width: int, first: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = c(width, 6), c(6, width)
        self.bn1, self.bn2, self.first = (
            nn.BatchNorm2d(width if first else 6),
            nn.BatchNorm2d(6 if first else width),
            first,
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


@pytest.mark.parametrize("first", [True, False])
def test_one_gate_on_all_producers_of_a_residual_stream(first: bool) -> None:
    """The oracle: the network with the stream's channels cut out of every layer by hand."""
    torch.manual_seed(0)

    def make(width: int) -> nn.Module:
        return nn.Sequential(
            c(3, width), nn.BatchNorm2d(width), nn.ReLU(), Block(width, first), Block(width, first),
            nn.BatchNorm2d(width), nn.ReLU(), c(width, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
        )  # fmt: skip

    network = randomise(make(8))
    assert {gate.name for gate in MaskedCNN(network, torch.zeros(1, 3, 8, 8)).gates} == {"3.conv1", "4.conv1", "7"}
    masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8), gates="all")
    stream = masked.gates[0]
    assert stream.layers == ("0", "3.conv2", "4.conv2")
    kept = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0]).bool()
    small, whole = make(4), network.state_dict()
    for name, value in small.state_dict().items():
        given = whole[name]
        for axis in range(value.ndim):
            if given.shape[axis] == 8:
                given = given.index_select(axis, kept.nonzero()[:, 0])
        value.copy_(given)
    mask = torch.ones(2, masked.mask_size)
    mask[:, :8] = kept.float()
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(masked(images, mask), small.eval()(images))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        small(images[:1])
    assert masked.cost.macs(mask)[0].item() == counter.get_total_flops() / 2
    assert {gate.name for gate in MaskedCNN(network, torch.zeros(1, 3, 8, 8), gates=["0"]).gates} == {"0"}


def test_a_gate_whose_mask_works_at_another_step_fails() -> None:
    """In front of a norm, whose shift would be left; also in a branch that a norm of zeros hides."""
    network = randomise(Block(8, first=False))
    network = nn.Sequential(c(3, 8), network, c(8, 3))
    for norm in (1.0, 0.0):
        nn.init.constant_(network[1].bn2.weight, norm)
        graph = trace(network.eval(), torch.zeros(1, 3, 8, 8))
        finder = GateFinder(graph, network)
        inner = next(gate for gate in finder.gates if gate.name == "1.conv1")
        assert failing_gates(graph, network, finder.bits([inner])) == {}
        wrong = dataclasses.replace(inner, points=("1.conv1/conv2d",))
        found = finder.bits([wrong])
        assert failing_gates(graph, network, found) == {0: "something besides its consumers depends on its channels"}


def test_groups_of_a_grouped_convolution_keep_the_same_channels() -> None:
    """The oracle: grouped convolutions of fewer channels a group."""
    torch.manual_seed(0)

    def make(a: int, b: int) -> nn.Module:
        return nn.Sequential(
            c(3, 3 * a, 1), nn.BatchNorm2d(3 * a), nn.ReLU(), c(3 * a, 3 * b, groups=3), nn.BatchNorm2d(3 * b),
            nn.ReLU(), c(3 * b, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip

    network = randomise(make(4, 6))
    masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8))
    assert [(gate.name, gate.width) for gate in masked.gates] == [("0", 4), ("3", 6)]
    mask = torch.tensor([[1, 0, 0, 1, 0, 1, 1, 0, 1, 0.0]])
    one, other = (part[0].bool().nonzero()[:, 0] for part in masked.split(mask))
    outer = torch.cat([one + 4 * group for group in range(3)])
    inner = torch.cat([other + 6 * group for group in range(3)])
    small = make(2, 3)
    places = {12: outer, 18: inner, 4: one}
    for name, value in small.state_dict().items():
        given = network.state_dict()[name]
        for axis in range(value.ndim):
            if given.shape[axis] != value.shape[axis]:
                given = given.index_select(axis, places[given.shape[axis]])
        value.copy_(given)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(masked(images, mask.expand(2, -1)), small.eval()(images))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        small(images[:1])
    assert masked.cost.macs(mask)[0].item() == counter.get_total_flops() / 2
