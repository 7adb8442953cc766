"""Constants in place of masked channels, against networks whose readers' biases were changed by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.errors import InvalidInputError
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.zoo.network_registry import build
from prunegym.models.zoo.networks import SimpleCNN
from tests.models.network_parts import Functional, Inception, c, head, pooled
from tests.models.slicing import randomise
from tests.models.small_networks import images


def grouped() -> nn.Module:
    return Functional(
        lambda m, x: m.fc(pooled(F.relu(m.b(F.relu(m.a(x)))))), a=c(3, 8), b=c(8, 4, groups=2), fc=head(4)
    )


def tokens() -> nn.Module:
    """A linear layer that reads the channels of each pixel, in the last dimension."""
    return Functional(
        lambda m, x: m.fc(F.relu(m.b(F.relu(m.a(x)).flatten(2).transpose(1, 2))).mean(1)),
        a=c(3, 5), b=nn.Linear(5, 4), fc=head(4),
    )  # fmt: skip


def flattened() -> nn.Module:
    """Four features of each channel, one a pixel."""
    return Functional(lambda m, x: m.fc(F.max_pool2d(F.relu(m.a(x)), 4).flatten(1)), a=c(3, 5), fc=head(20))


# Each reader by its path, with (gate, its channels among the reader's inputs), written down by hand.
CASES = {
    "plain": (
        lambda: SimpleCNN(image_size=8, widths=(4, 6), batch_norm=True), "auto",
        {"features.4": [("features.0", range(4))], "linear": [("features.4", range(6))]},
    ),
    "resnet20": (
        lambda: build("resnet20"), "auto",
        {
            f"layer{stage}.{block}.conv2": [(f"layer{stage}.{block}.conv1", range(width))]
            for stage, width in ((1, 16), (2, 32), (3, 64)) for block in range(3)
        },
    ),
    "concatenated": (
        Inception, "auto",
        {
            "b2": [("b1", range(3))], "fc": [("last", range(4))],
            "last": [("a", range(4)), ("b2", range(4, 9)), ("p", range(9, 11))],
        },
    ),
    "a linear layer on tokens": (tokens, "all", {"b": [("a", range(5))], "fc": [("b", range(4))]}),
    "a flattened map": (flattened, "auto", {"fc": [("a", range(5))]}),
}  # fmt: skip


def changed_by_hand(
    network: nn.Module, masked: MaskedCNN, mask: Tensor, readers: dict[str, list[tuple[str, range]]]
) -> nn.Module:
    """Return a copy whose readers' biases have the constants of the channels that a mask (mask_size,) switches off."""
    network = copy.deepcopy(network)
    assert masked.constants is not None
    parts = {gate.name: part for gate, part in zip(masked.gates, masked.split(masked.constants), strict=True)}
    bits = {gate.name: part for gate, part in zip(masked.gates, masked.split(mask), strict=True)}
    for path, gates in readers.items():
        layer = network.get_submodule(path)
        bias = torch.zeros(len(layer.weight)).double() if layer.bias is None else layer.bias.detach().clone()
        inputs = sum(len(columns) for _, columns in gates)
        for gate, columns in gates:
            for channel, column in enumerate(columns):
                if bits[gate][channel] == 0:
                    kernels = layer.weight.detach().reshape(len(bias), inputs, -1)[:, column]
                    bias += parts[gate][channel].detach() * kernels.sum(1)
        layer.bias = nn.Parameter(bias)
    return network


@pytest.mark.parametrize("name", CASES)
def test_a_constant_is_a_change_of_its_readers_biases(name: str) -> None:
    make, gates, readers = CASES[name]
    network = randomise(make()).double()
    batch = images(2, 32 if name == "resnet20" else 8)
    masked = MaskedCNN(network, batch[:1], gates=gates)
    assert {masked.graph[step].layer for step in masked.readers} == set(readers)
    assert masked.without_constants == {}
    generator = torch.Generator().manual_seed(0)
    masked.compensate(torch.randn(masked.mask_size, generator=generator, dtype=torch.float64))
    mask = (torch.rand(2, masked.mask_size, generator=generator) < 0.5).double()
    found = masked(batch, mask)
    for image, row, output in zip(batch, mask, found, strict=True):
        zeros = MaskedCNN(changed_by_hand(network, masked, row, readers), batch[:1], gates=gates)
        torch.testing.assert_close(output, zeros(image[None], row[None])[0], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found, copy.deepcopy(masked).compensate(None)(batch, mask))


def test_each_group_of_a_convolution_sums_its_own_kernels() -> None:
    network = randomise(grouped()).double()
    masked = MaskedCNN(network, images(1), gates=["a"])
    # The groups stay alike: a bit stands for the same channel of both.
    assert masked.mask_size == 4
    masked.compensate(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    mask = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    by_hand = copy.deepcopy(network)
    with torch.no_grad():
        by_hand.b.bias += 2.0 * by_hand.b.weight[:, 1].sum((1, 2)) + 4.0 * by_hand.b.weight[:, 3].sum((1, 2))
    expected = MaskedCNN(by_hand, images(1), gates=["a"])(images(1), mask)
    torch.testing.assert_close(masked(images(1), mask), expected, rtol=1e-9, atol=1e-9)


def residual() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        x = F.relu(x + m.b(F.relu(m.a(x))))
        return m.fc(pooled(F.relu(x + m.d(F.relu(m.c(x))))))

    return Functional(forward, stem=c(3, 6), a=c(6, 4), b=c(4, 6), c=c(6, 4), d=c(4, 6), fc=head(6))


def test_channels_of_a_residual_sum_are_masked_at_each_of_their_points() -> None:
    """The sum between two points does not matter, since the channel is masked behind it again."""
    network = randomise(residual()).double()
    masked = MaskedCNN(network, images(1), gates=["stem"])
    assert masked.gates[0].summed
    assert masked.without_constants == {}
    masked.compensate(torch.tensor([0.0, 0.0, 0.0, 0.7, 0.0, -0.4], dtype=torch.float64))
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    by_hand = copy.deepcopy(network)
    with torch.no_grad():
        for layer in (by_hand.a, by_hand.c):
            layer.bias += 0.7 * layer.weight[:, 3].sum((1, 2))
        by_hand.fc.bias += 0.7 * by_hand.fc.weight[:, 3]
    expected = MaskedCNN(by_hand, images(1), gates=["stem"])(images(1), mask)
    torch.testing.assert_close(masked(images(1), mask), expected, rtol=1e-9, atol=1e-9)


BEHIND = {
    "a depthwise convolution": (lambda m, y: m.d(y), "filters each channel by itself"),
    "another nonlinearity": (lambda m, y: torch.tanh(y), "maps each value by itself"),
    "a product": (lambda m, y: y * torch.sigmoid(y), "zero where one operand is zero"),
}


@pytest.mark.parametrize("name", BEHIND)
def test_a_channel_stays_zero_for_a_layer_behind(name: str) -> None:
    """The first reader is directly behind the point, so it gets the constants that the second one does not."""
    between, why = BEHIND[name]

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = F.relu(m.a(x))
        return m.fc(pooled(m.b(y) + m.e(between(m, y))))

    network = randomise(
        Functional(forward, a=c(3, 6), b=c(6, 4), d=c(6, 6, groups=6, bias=False), e=c(6, 4), fc=head(4))
    ).double()
    masked = MaskedCNN(network, images(1), gates=["a"]).compensate(torch.arange(1.0, 7.0).double())
    assert list(masked.without_constants) == [("a", "e")]
    assert why in masked.without_constants["a", "e"]
    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    by_hand = copy.deepcopy(network)
    with torch.no_grad():
        by_hand.b.bias += by_hand.b.weight[:, 0].sum((1, 2)) + 4.0 * by_hand.b.weight[:, 3].sum((1, 2))
    expected = MaskedCNN(by_hand, images(1), gates=["a"])(images(1), mask)
    torch.testing.assert_close(masked(images(1), mask), expected, rtol=1e-9, atol=1e-9)


def test_gradients_reach_masks_and_constants() -> None:
    """Of a linear layer that reads pooled channels, output = W (m * x) + W ((1 - m) * c): known derivatives."""
    network = randomise(Functional(lambda m, x: m.fc(pooled(F.relu(m.a(x)))), a=c(3, 6), fc=head(6))).double()
    masked = MaskedCNN(network, images(1)).compensate(torch.linspace(-1, 1, 6).double())
    assert masked.constants is not None
    masked.constants.requires_grad_(True)
    mask = torch.tensor([[0.0, 1.0, 0.25, 0.5, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    masked(images(1), mask).sum().backward()
    columns = network.fc.weight.detach().sum(0)
    x = pooled(F.relu(network.a(images(1))))[0].detach()
    torch.testing.assert_close(mask.grad[0], columns * (x - masked.constants.detach()))
    torch.testing.assert_close(masked.constants.grad, columns * (1 - mask.detach()[0]))


def test_the_product_costs_a_mac_for_each_masked_channel_and_kept_output() -> None:
    masked = MaskedCNN(randomise(SimpleCNN(image_size=8, widths=(4, 6))), images(1).float())
    mask = torch.ones(1, 10)
    mask[0, [0, 2, 4, 5, 6]] = 0
    # features.3 reads 2 masked channels for its 3 kept outputs, the linear layer 3 for 10 classes.
    assert masked.cost.compensation_macs(mask).tolist() == [2 * 3 + 3 * 10]
    before = masked.spent_share(mask).item()
    assert before == masked.cost.mac_share(mask).item()
    masked.compensate(torch.zeros(10))
    assert masked.spent_share(mask).item() == pytest.approx(before + 36 / masked.cost.total_macs, rel=1e-12)


def test_constants_are_no_weights_of_the_network() -> None:
    network = randomise(SimpleCNN(image_size=8, widths=(4, 6)))
    masked = MaskedCNN(network, images(1).float()).compensate(torch.ones(10))
    assert masked.compensation == "constant"
    assert not masked.constants.requires_grad  # type: ignore[union-attr]
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, masked.network.state_dict()[name])
    torch.testing.assert_close(masked(images(2).float()), network(images(2).float()))
    assert masked.double().constants.dtype == torch.float64  # type: ignore[union-attr]
    assert masked.compensate(None).compensation == "zero"


def test_constants_that_do_not_fit_are_refused() -> None:
    masked = MaskedCNN(SimpleCNN(image_size=8, widths=(4, 6)), images(1).float())
    with pytest.raises(InvalidInputError, match=r"The constants .*\(9,\).*\(10,\)"):
        masked.compensate(torch.zeros(9))
    with pytest.raises(InvalidInputError, match=r"constants are NaN or infinite"):
        masked.compensate(torch.full((10,), float("nan")))
