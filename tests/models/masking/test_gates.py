"""Gates on other people's shapes: every gate that is accepted equals removal, and those that should be found are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from prunegym.errors import UntraceableModelError
from prunegym.models.masking.masked_cnn import MaskedCNN
from tests.models.many_networks import NETWORKS
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
    depthwise = {masked.graph[step].layer for gate in masked.gates for step in gate.producers}
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
        path = masked.graph[step].layer
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
