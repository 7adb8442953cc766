"""A pass that stops at each gate: what it reads, what it costs, and what is left at its end."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prunegym.errors import InvalidInputError
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.zoo.network_registry import build
from tests.models.slicing import randomise
from tests.models.small_networks import EXAMPLE, images, small


def test_a_pass_in_segments_reads_what_the_producers_read_and_costs_one_pass() -> None:
    network = randomise(build("resnet20"))
    masked = MaskedCNN(network, EXAMPLE)
    batch, mask = images(2, 32).float(), (torch.rand(2, masked.mask_size) < 0.5).float()
    whole = masked(batch, mask)
    # The oracle: hooks of the plain network that zero channels behind each first activation of a block, and see inputs.
    inputs: dict[str, Tensor] = {}
    for gate, part in zip(masked.gates, masked.split(mask), strict=True):
        block = network.get_submodule(gate.name.rpartition(".")[0])
        block.conv1.register_forward_pre_hook(lambda _m, given, n=gate.name: inputs.update({n: given[0].clone()}))
        block.conv2.register_forward_pre_hook(lambda _m, given, part=part: (given[0] * part[:, :, None, None],))
    expected = network(batch)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        state = masked.begin(batch, record=True)
        for index, (gate, part) in enumerate(zip(masked.gates, masked.split(mask), strict=True)):
            assert state.gate == index
            assert state.logits is None
            torch.testing.assert_close(inputs[gate.name], state.reads)
            masked.advance(state, part)
    assert counter.get_total_flops() == 2 * 2 * masked.cost.total_macs
    assert state.gate == len(masked.gates)
    assert state.reads is None
    assert torch.equal(state.logits, whole)
    torch.testing.assert_close(state.logits, expected)
    assert {index: point.shape[1] for index, point in state.points.items()} == dict(
        enumerate(gate.width for gate in masked.gates)
    )
    with pytest.raises(InvalidInputError, match="The pass is over: all gates are done"):
        masked.advance(state, part)


def test_segments_of_branches_that_read_the_same_value() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3), nn.Conv2d(9, 6, 1)
            self.act, self.fc = nn.ReLU(inplace=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            both = torch.cat([self.act(self.a(x)), self.act(self.b(x))], 1)
            return self.fc(self.act(self.c(both)).mean((2, 3)))

    network = randomise(Branches())
    masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8))
    batch, mask = images().float(), (torch.rand(3, 15) < 0.5).float()
    state = masked.begin(batch)
    assert torch.equal(state.reads, batch)
    parts = masked.split(mask)
    masked.advance(state, parts[0])
    assert torch.equal(state.reads, batch)
    masked.advance(state, parts[1])
    expected = torch.cat([F.relu(network.a(batch)), F.relu(network.b(batch))], 1) * mask[:, :9, None, None]
    torch.testing.assert_close(state.reads, expected)
    masked.advance(state, parts[2])
    torch.testing.assert_close(state.logits, masked(batch, mask))


def test_finish_keeps_what_is_left() -> None:
    network, masked = small()
    state = masked.begin(images(), record=True)
    torch.testing.assert_close(masked.finish(state), network(images()))
    mask = torch.ones(3, masked.mask_size)
    mask[:, :4] = torch.tensor([0.0, 1, 0, 1])
    torch.testing.assert_close(
        masked.finish(masked.advance(masked.begin(images()), mask[:, :4])), masked(images(), mask)
    )


def test_recorded_points_are_not_overwritten() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            before = self.b(x)
            return before + self.c(F.relu_(x))

    network = randomise(InPlace())
    masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8))
    state = masked.begin(images().float(), record=True)
    masked.finish(state)
    torch.testing.assert_close(state.points[0], network.a(images().float()))
