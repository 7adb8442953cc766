"""MaskedCNN against networks whose filters are physically removed, and what a frozen CNN must endure unchanged."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from slicing import gate_names, randomise, remove
from torch import Tensor, nn

from prunegym.models.errors import InvalidInputError, UnknownNameError, UntraceableModelError
from prunegym.models.masked import MaskedCNN
from prunegym.models.networks import SimpleCNN
from prunegym.models.zoo import ZOO, build

EXAMPLE = torch.zeros(1, 3, 32, 32)


def small(**more: object) -> tuple[nn.Module, MaskedCNN]:
    """Return a network of widths 4 and 6 on 8x8 images, its norms not trivial, and its MaskedCNN, in float64."""
    network = randomise(SimpleCNN(image_size=8, widths=(4, 6), batch_norm=True)).double()
    return network, MaskedCNN(network, torch.zeros(1, 3, 8, 8), **more)


def images(batch: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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


def test_a_pass_in_segments_reads_what_the_producers_read_and_costs_one_pass() -> None:
    masked = MaskedCNN(randomise(build("resnet20")), EXAMPLE)
    batch, mask = images(2, 32).float(), (torch.rand(2, masked.mask_size) < 0.5).float()
    whole = masked(batch, mask)
    calls: list[str] = []
    inputs: dict[str, Tensor] = {}

    def watch(module: nn.Module, given: tuple[Tensor, ...], name: str) -> None:
        calls.append(name)
        inputs[name] = given[0].clone()

    layers = [(n, m) for n, m in masked.network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_pre_hook(lambda m, i, n=name: watch(m, i, n)) for name, layer in layers]
    state = masked.begin(batch, record=True)
    for index, (gate, part) in enumerate(zip(masked.gates, masked.split(mask), strict=True)):
        assert state.gate == index
        assert state.logits is None
        assert gate.name not in calls
        reads = state.reads.clone()
        masked.advance(state, part)
        assert torch.equal(inputs[gate.name], reads)
    assert state.gate == len(masked.gates)
    assert state.reads is None
    assert torch.equal(state.logits, whole)
    assert sorted(calls) == sorted(name for name, _ in layers)
    assert {index: point.shape[1] for index, point in state.points.items()} == dict(
        enumerate(gate.width for gate in masked.gates)
    )
    for handle in handles:
        handle.remove()
    with pytest.raises(InvalidInputError, match="The pass is over: every gate has been decided"):
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
    with pytest.raises(
        InvalidInputError, match=r"'layer1\.0\.conv2' of CifarResNet cannot be a gate: its channels reach"
    ):
        MaskedCNN(network, EXAMPLE, gates=["layer1.0.conv2"])


class Wrapped(nn.Module):
    """A small CNN, its output handed to a function, for forward passes that we cannot take."""

    def __init__(self, after: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.body, self.after = SimpleCNN(image_size=8, widths=(4,)), after

    def forward(self, x: Tensor) -> object:
        return self.after(self.body(x))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = SimpleCNN(image_size=8, widths=(4,))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.body(x) + y


class OptionalInputs(TwoInputs):
    def forward(self, x: Tensor, y: Tensor | None = None, double: bool = False, **_: object) -> Tensor:
        out = self.body(x)
        if y is not None:
            out = out + y
        return 2 * out if double else out


class BatchOfOne(TwoInputs):
    def forward(self, x: Tensor) -> Tensor:
        return self.body.linear(self.body.features(x).view(1, -1))


def test_errors() -> None:
    _, masked = small()
    example = torch.zeros(1, 3, 8, 8)
    with pytest.raises(InvalidInputError, match=r"The mask has shape \(3, 9\); \(3, 10\) is needed: one row an image"):
        masked(images(), torch.ones(3, 9))
    with pytest.raises(InvalidInputError, match=r"The mask has shape \(2, 10\); \(3, 10\) is needed"):
        masked(images(), torch.ones(2, 10))
    with pytest.raises(InvalidInputError, match=r"The mask of gate 'features\.0' has shape \(4,\); \(3, 4\) is needed"):
        masked.advance(masked.begin(images()), torch.ones(4))
    broken = SimpleCNN(image_size=8, widths=(4,))
    broken.linear.bias.data[0] = float("nan")
    with pytest.raises(InvalidInputError, match=r"SimpleCNN: 'linear\.bias' has NaN or infinite values"):
        MaskedCNN(broken, example)
    with pytest.raises(InvalidInputError, match=r"shape \(3, 8, 8\); \(batch, channels, height, width\) is needed"):
        MaskedCNN(SimpleCNN(image_size=8), example[0])
    with pytest.raises(UntraceableModelError, match=r"SimpleCNN does not take the example input \(1, 3, 9, 20\): mat1"):
        MaskedCNN(SimpleCNN(image_size=8), torch.zeros(1, 3, 9, 20))
    with pytest.raises(
        UntraceableModelError, match=r"torch\.fx cannot trace Wrapped .*Control flow that depends on the"
    ):
        MaskedCNN(Wrapped(lambda out: out if out.sum() > 0 else -out), example)
    with pytest.raises(UntraceableModelError, match=r"TwoInputs takes several inputs \(x, y\); a network of one image"):
        MaskedCNN(TwoInputs(), example)
    with pytest.raises(UntraceableModelError, match=r"Wrapped returns tuple; one tensor \(batch, \.\.\.\) is needed"):
        MaskedCNN(Wrapped(lambda out: (out, out)), example)
    with pytest.raises(UntraceableModelError, match="Wrapped returns dict; one tensor"):
        MaskedCNN(Wrapped(lambda out: {"logits": out}), example)
    with pytest.raises(UntraceableModelError, match=r"Wrapped returns a tensor \(\); one tensor"):
        MaskedCNN(Wrapped(lambda out: out.sum()), example)
    with pytest.raises(UntraceableModelError, match=r"No gate was found in Sequential, .*\(it has no Conv2d\)"):
        MaskedCNN(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), example)
    with pytest.raises(UntraceableModelError, match=r"No gate was found in Conv2d, .*are an output of the network\)"):
        MaskedCNN(nn.Conv2d(3, 2, 3), example)
    with pytest.raises(UntraceableModelError, match=r"BatchOfOne takes one image but no batch of two .*written into"):
        MaskedCNN(BatchOfOne(), example)
    with pytest.raises(UntraceableModelError, match="Wrapped gives different outputs for the same images in eval mode"):
        MaskedCNN(Wrapped(lambda out: F.dropout(out, 0.5)), example)
    with pytest.raises(UntraceableModelError, match="Wrapped gives an image another output when another image is besi"):
        MaskedCNN(Wrapped(lambda out: out - out.mean(0, keepdim=True)), example)


def test_optional_inputs_have_their_defaults() -> None:
    network = randomise(OptionalInputs())
    masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8))
    assert [gate.name for gate in masked.gates] == ["body.features.0"]
    batch = images().float()
    torch.testing.assert_close(masked(batch, torch.ones(3, 4)), network(batch))


def test_tensors_made_in_forward() -> None:
    network = randomise(Wrapped(lambda out: out * torch.tensor([2.0]) + torch.full((10,), 3.0)))
    masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8))
    batch = images().float()
    torch.testing.assert_close(masked(batch), network(batch))
    assert list(masked.network.state_dict()) == list(network.state_dict())
    torch.testing.assert_close(copy.deepcopy(masked)(batch), network(batch))


def test_images_are_untouched_by_a_network_that_begins_in_place() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
    masked = MaskedCNN(randomise(network), torch.zeros(1, 3, 8, 8))
    batch = images().float()
    before = batch.clone()
    masked(batch, torch.rand(3, 4))
    assert torch.equal(batch, before)


def test_what_a_norm_that_starts_at_zero_hides() -> None:
    """In the zeroed branch a gate that does not hold has no effect, and must be found out all the same."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(8, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            inner = self.a(x)
            return x + self.last(self.b(torch.cat([F.hardtanh(inner, 1.0, 2.0), F.relu(inner)], 1)))

    network = randomise(Residual())
    nn.init.zeros_(network.last.weight)
    with pytest.raises(UntraceableModelError, match="a: something besides its consumers depends on its channels"):
        MaskedCNN(network, torch.zeros(1, 3, 8, 8))


def test_deep_networks_whose_signal_fades() -> None:
    """In torch's own initialisation each layer shrinks its signal; the gates still hold, and are found."""
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()]
    for _ in range(14):
        layers += [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    masked = MaskedCNN(nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 3)), torch.zeros(1, 3, 8, 8))
    assert len(masked.gates) == 15


@pytest.mark.parametrize("output", [lambda x: torch.softmax(x, 1), torch.sigmoid, lambda x: F.log_softmax(x, dim=1)])
def test_outputs_that_saturate(output: Callable[[Tensor], Tensor]) -> None:
    network = Wrapped(output)
    masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8))
    assert [gate.name for gate in masked.gates] == ["body.features.0"]


def test_float64_and_bfloat16_modules() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        network = randomise(SimpleCNN(image_size=8, widths=(4, 6))).to(dtype)
        masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8))
        batch = images().to(dtype)
        output = masked(batch, torch.ones(3, 10))
        assert output.dtype == dtype
        assert torch.equal(output, network(batch))


class Viewing(nn.Module):
    """Flattens by a view, which needs the memory to be laid out channel after channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(8 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.conv(x)).view(x.size(0), -1))


def test_a_view_of_images_that_lie_channels_last() -> None:
    network = randomise(Viewing())
    masked = MaskedCNN(network, torch.zeros(1, 3, 6, 6))
    images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    expected = network(images)
    torch.testing.assert_close(masked(images.contiguous(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(masked.to(memory_format=torch.channels_last)(images), expected)
