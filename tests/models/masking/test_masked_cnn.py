"""MaskedCNN against networks whose filters are physically removed, and what a frozen CNN must endure unchanged."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.zoo.network_registry import ZOO, build
from prunegym.models.zoo.networks import SimpleCNN
from tests.models.slicing import gate_names, randomise, remove
from tests.models.small_networks import EXAMPLE, images, small


def rows_of_masks(masked: MaskedCNN) -> dict[str, Tensor]:
    """Return masks (mask_size,) float by what is special about them."""
    generator = torch.Generator().manual_seed(0)
    rows = {
        "random": (torch.rand(masked.mask_size, generator=generator) < 0.5).double(),
        "sparse": (torch.rand(masked.mask_size, generator=generator) < 0.05).double(),
        "all off": torch.zeros(masked.mask_size).double(),
        "first gate off": torch.ones(masked.mask_size).double(),
        "last gate off": torch.ones(masked.mask_size).double(),
        "one channel a gate": torch.zeros(masked.mask_size).double(),
    }
    masked.split(rows["first gate off"])[0].zero_()
    masked.split(rows["last gate off"])[-1].zero_()
    for part in masked.split(rows["one channel a gate"]):
        part[len(part) // 2] = 1
    return rows


SLOW = {"resnet18", "resnet32", "resnet44", "resnet56", "vgg11", "vgg16"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in ZOO])
def test_zoo_equals_the_network_with_filters_removed(name: str) -> None:
    network = randomise(build(name))
    masked = MaskedCNN(network, EXAMPLE)
    assert [gate.name for gate in masked.gates] == gate_names(network)
    batch = images(2, 32).float()
    with torch.no_grad():
        dense = network(batch)
        for kept in (masked(batch, torch.ones(2, masked.mask_size)), masked(batch)):
            assert (kept - dense).abs().max() <= 1e-6
        rows = rows_of_masks(masked)
        masked.double()
        pair = images(1, 32)
        outputs = masked(pair.expand(len(rows), -1, -1, -1), torch.stack(list(rows.values())))
        for output, (kind, row) in zip(outputs, rows.items(), strict=True):
            expected = remove(network, row).double()(pair)[0]
            torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9, msg=lambda m, k=kind: f"{k}: {m}")


def test_every_mask_of_a_small_network() -> None:
    network = randomise(SimpleCNN(image_size=8, widths=(3, 4))).double()
    masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8))
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 7)
    image = images(1)
    outputs = masked(image.expand(128, -1, -1, -1), masks)
    for row, output in zip(masks, outputs, strict=True):
        torch.testing.assert_close(output, remove(network, row)(image)[0])


def test_rows_do_not_influence_each_other() -> None:
    _, masked = small()
    batch, mask = images(4), (torch.rand(4, masked.mask_size) < 0.5).double()
    together = masked(batch, mask)
    for row in range(4):
        torch.testing.assert_close(together[row], masked(batch[row : row + 1], mask[row : row + 1])[0])
    altered, other = batch.clone(), mask.clone()
    altered[0], other[0] = 100.0, 1 - mask[0]
    torch.testing.assert_close(masked(altered, other)[1:], together[1:])


def test_the_given_module_is_untouched() -> None:
    network = SimpleCNN(image_size=8, widths=(4, 6), batch_norm=True).train()
    before = copy.deepcopy(network.state_dict())
    masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8))
    masked(torch.randn(2, 3, 8, 8), torch.rand(2, 10))
    assert network.training
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert list(network.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not {id(p) for p in network.parameters()} & {id(p) for p in masked.parameters()}
    assert list(masked.network.state_dict()) == list(before)


@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.1), torch.optim.Adam])
def test_frozen_endures_training(optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    network, masked = small()
    batch, mask = images(), torch.ones(3, masked.mask_size, dtype=torch.float64, requires_grad=True)
    before = masked(batch, mask).detach()
    state = copy.deepcopy(masked.state_dict())
    optimizing = optimizer([*masked.parameters(), mask])
    parent = nn.ModuleDict({"cnn": masked})
    parent.train()
    assert not any(module.training for module in masked.modules())
    for _ in range(3):
        optimizing.zero_grad()
        masked.train()(batch, mask).square().sum().backward()
        optimizing.step()
    assert mask.grad is not None
    assert not torch.equal(mask, torch.ones_like(mask))
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in masked.parameters())
    assert all(torch.equal(value, state[key]) for key, value in masked.state_dict().items())
    torch.testing.assert_close(masked(batch, torch.ones_like(mask)), before, rtol=0, atol=0)
    other = MaskedCNN(network, torch.zeros(1, 3, 8, 8), frozen=False).train()
    other(batch).sum().backward()
    torch.optim.SGD(other.parameters(), 0.1).step()
    torch.testing.assert_close(masked(batch, torch.ones_like(mask)), before, rtol=0, atol=0)


def test_not_frozen_trains_until_it_is_frozen() -> None:
    network, masked = small(frozen=False)
    masked.train()
    assert masked.network.training
    batch = images(8)
    optimizer = torch.optim.SGD(masked.parameters(), 0.01)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.cross_entropy(masked(batch, torch.ones(8, masked.mask_size)), torch.arange(8))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.equal(masked.network.features[1].running_mean, network.features[1].running_mean)
    masked.freeze()
    assert not masked.train().network.training
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in masked.parameters())
    masked.unfreeze()
    assert masked.network.training
    assert all(parameter.requires_grad for parameter in masked.parameters())


def test_gradients() -> None:
    network, masked = small()
    batch = images(2).requires_grad_()
    mask = torch.rand(2, masked.mask_size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(masked, (batch, mask))
    got = torch.autograd.grad(masked(batch, mask).square().sum(), (batch, mask))
    # The same by hooks on the plain network: each ReLU's output multiplied with its slice.
    handles = [
        network.features[place].register_forward_hook(lambda _m, _i, output, p=part: output * p[:, :, None, None])
        for place, part in zip((3, 7), masked.split(mask), strict=True)
    ]
    expected = torch.autograd.grad(network(batch).square().sum(), (batch, mask))
    for handle in handles:
        handle.remove()
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_masks_multiply() -> None:
    network, masked = small()
    batch = images()
    for value in (0.5, -1.0, 3.0):
        mask = torch.ones(3, masked.mask_size)
        masked.split(mask)[1][:, 2] = value
        scaled = copy.deepcopy(network)
        scaled.linear.weight.data[:, 2 * 4 : 3 * 4] *= value
        torch.testing.assert_close(masked(batch, mask), scaled(batch))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int64, torch.float32])
def test_masks_of_any_type(dtype: torch.dtype) -> None:
    _, masked = small()
    mask = torch.rand(3, masked.mask_size) < 0.5
    torch.testing.assert_close(masked(images(), mask.to(dtype)), masked(images(), mask.double()), rtol=0, atol=0)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda masked: pickle.loads(pickle.dumps(masked))])
@pytest.mark.parametrize("name", ["simple-cnn-wide", "resnet20"])
def test_copies_are_equal_and_independent(name: str, duplicate: Callable[[MaskedCNN], MaskedCNN]) -> None:
    masked = MaskedCNN(randomise(build(name)), EXAMPLE)
    clone = duplicate(masked)
    batch, mask = images(2, 32).float(), (torch.rand(2, masked.mask_size) < 0.5).float()
    before = masked(batch, mask)
    assert torch.equal(clone(batch, mask), before)
    assert clone.gates == masked.gates
    assert clone.frozen
    assert torch.equal(clone.cost.macs(mask), masked.cost.macs(mask))
    clone.register_forward_hook(lambda *_: pytest.fail("a hook on the copy runs in the original"))
    for parameter in clone.parameters():
        parameter.data.zero_()
    assert torch.equal(masked(batch, mask), before)


def test_gates_by_name() -> None:
    network = randomise(build("resnet20"))
    masked = MaskedCNN(network, EXAMPLE, gates=["layer2.0.conv1", "layer1.0.conv1"])
    assert [(gate.name, gate.width) for gate in masked.gates] == [("layer1.0.conv1", 16), ("layer2.0.conv1", 32)]
    everything = torch.ones(336)
    everything[:16] = masked_row = torch.tensor([0.0, 1.0]).repeat(8)
    row = torch.cat([masked_row, torch.ones(32)])[None]
    batch = images(1, 32).float()
    torch.testing.assert_close(masked(batch, row), remove(network, everything)(batch), rtol=1e-4, atol=1e-4)
    assert [gate.name for gate in MaskedCNN(network, EXAMPLE, gates="layer3.1.conv1").gates] == ["layer3.1.conv1"]
    with pytest.raises(UnknownNameError, match=r"Unknown gate 'layer1\.0\.conv'\. Did you mean 'layer1\.0\.conv1'\?"):
        MaskedCNN(network, EXAMPLE, gates="layer1.0.conv")
    summed = MaskedCNN(network, EXAMPLE, gates=["layer1.0.conv2"]).gates
    assert [(gate.name, gate.layers[:2]) for gate in summed] == [("conv1", ("conv1", "layer1.0.conv2"))]
    with pytest.raises(InvalidInputError, match=r"'2' of Sequential cannot be a gate: its channels are an output"):
        MaskedCNN(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), EXAMPLE, gates=["2"])


@pytest.mark.parametrize(
    ("gates", "given"),
    [
        (None, "None"),
        (5, "5"),
        ([], r"\[\]"),
        ([0, 1], r"\[0, 1\]"),
        (MaskedCNN(SimpleCNN(), EXAMPLE).gates, r"\(Gate\(name=.*\)"),
    ],
)
def test_gates_that_are_no_names(gates: Any, given: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"gates is {given}; 'auto', 'all' "):
        MaskedCNN(SimpleCNN(), EXAMPLE, gates=gates)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("resnet20", r"module is a str; a torch module is needed, e\.g\. prunegym\.build\(name\)"),
        (SimpleCNN, "module is a type; a torch module is needed"),
        (SimpleCNN().state_dict(), "module is a OrderedDict; a torch module is needed"),
        (MaskedCNN(SimpleCNN(), EXAMPLE), "module is a MaskedCNN, which is masked already"),
        (nn.Sequential(MaskedCNN(SimpleCNN(), EXAMPLE)), "module is a Sequential, which is masked already"),
    ],
)
def test_modules_that_are_none_or_masked_already(module: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        MaskedCNN(module, EXAMPLE)


@pytest.mark.parametrize("example", [None, (1, 3, 32, 32), EXAMPLE.numpy()])
def test_an_example_that_is_no_tensor(example: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"input is not a tensor; \(batch, channels, height, width\) is needed"):
        MaskedCNN(SimpleCNN(), example)
