"""The document's modules: its signatures without its bugs, and one and the same model in the end."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models import (
    Dataset,
    DynamicCNN,
    DynamicPrunedConv2d,
    GateNetwork,
    SimpleDynamicCNN,
    accuracy,
    as_dynamic_cnn,
    build,
    check_pruning,
    l1_norm,
    load_dataset,
)
from prunegym.models.gating.gated_layers import gated_layers
from tests.models import slicing


def with_busy_gates(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give gates large random heads: about half of the channels are off, others for each image."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in gated_layers(network).values():
            for linear in (layer.gate.head[0], layer.gate.head[2]):
                linear.weight.normal_(std=3.0, generator=generator)
                linear.bias.normal_(generator=generator)
    return network.eval()


def fit(network: nn.Module, digits: Dataset, penalty: float, steps: int = 300) -> nn.Module:
    """The document's loop: Adam, cross-entropy, lambda ||M(x)||_1."""
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 1e-2)
    generator = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(steps):
        indices = torch.randint(len(digits), (128,), generator=generator)
        loss = F.cross_entropy(network(digits.batch(indices)), digits.labels[indices]) + penalty * l1_norm(network)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def test_the_gate_is_what_the_document_draws() -> None:
    gate = GateNetwork(32, reduction=4, out_channels=5)
    x = torch.rand(3, 32, 7, 6)
    first, _, last = gate.head
    expected = torch.sigmoid(last(F.relu(first(F.adaptive_avg_pool2d(x, 1).flatten(1)))))
    torch.testing.assert_close(gate(x)[:, :, 0, 0], expected)
    assert first.out_features == 8
    assert GateNetwork(3)(torch.rand(2, 3, 4, 4)).shape == (2, 3, 1, 1), "3 // 16 is 0"


def test_a_convolution_s_output_times_its_mask() -> None:
    layer = DynamicPrunedConv2d(3, 8, 3, 2, 1).eval()
    with_busy_gates(layer)
    x = torch.randn(6, 3, 9, 9)
    y = layer(x)
    kept = layer.gate(x)[:, :, 0, 0] > 0.5
    assert 0 < kept.float().mean() < 1
    assert torch.equal(layer.mask.bool(), kept)
    torch.testing.assert_close(y, layer.conv(x) * kept[:, :, None, None])


@pytest.mark.parametrize("estimator", ["straight-through", "gumbel"])
def test_gradients_reach_the_gate_through_the_threshold(estimator: str) -> None:
    torch.manual_seed(0)
    layer = DynamicPrunedConv2d(3, 8, 3, estimator=estimator)
    x = torch.randn(4, 3, 5, 5)
    layer(x).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.gate.parameters())
    if estimator == "straight-through":
        # autograd on the output as a function of a mask that is free, times the sigmoid's slope
        bits = layer.mask.clone().requires_grad_()
        output = layer.conv(x) * bits[:, :, None, None]
        (slope,) = torch.autograd.grad(output.square().sum(), bits)
        chance = layer.probabilities.detach()
        expected = (slope * chance * (1 - chance)).sum(0)
        torch.testing.assert_close(layer.gate.head[2].bias.grad, expected, rtol=1e-4, atol=1e-4)


def test_gumbel_masks_are_drawn_with_the_gate_s_probability() -> None:
    torch.manual_seed(0)
    layer = DynamicPrunedConv2d(1, 4, 1, estimator="gumbel")
    x = torch.zeros(20000, 1, 1, 1)
    layer(x)
    torch.testing.assert_close(layer.mask.mean(0), layer.probabilities[0].detach(), atol=0.01, rtol=0)
    first = layer.mask
    torch.manual_seed(0)
    again = copy.deepcopy(layer)
    again(x)
    assert not torch.equal(again.mask, first), "the seed above also drew the weights"
    layer.eval()(x)
    assert layer.mask.all(), "without noise in eval mode"


def test_l1_is_the_sum_of_probabilities() -> None:
    network = with_busy_gates(SimpleDynamicCNN())
    x = torch.rand(5, 3, 32, 32)
    network(x)
    first, second = gated_layers(network).values()
    inner = network.features[2](network.features[1](first(x)))
    expected = (first.gate(x).sum() + second.gate(inner).sum()) / 5
    torch.testing.assert_close(l1_norm(network), expected)


def test_l1_of_gates_that_have_seen_nothing() -> None:
    with pytest.raises(InvalidInputError, match=r"has seen no image yet\. Run the network first"):
        l1_norm(SimpleDynamicCNN())


def test_other_outputs_than_classes_are_no_network_of_the_zoo(digits: Dataset) -> None:
    made = as_dynamic_cnn(SimpleDynamicCNN(in_channels=1, image_size=8, num_classes=12), digits)
    assert made.info.architecture == "SimpleDynamicCNN"
    assert as_dynamic_cnn(SimpleDynamicCNN(in_channels=1, image_size=8), digits).info.architecture == "simple-cnn"


@pytest.mark.slow
def test_joint_training_prunes_and_exports_to_the_same_model(digits: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = SimpleDynamicCNN(in_channels=1, image_size=8, estimator="gumbel")
    fit(network, digits, 0.02)
    test = load_dataset("digits", "test")
    right = accuracy(network, test)
    assert right > 0.85
    with torch.no_grad():
        logits = network(test.batch(torch.arange(len(test))))
    mask = torch.cat([layer.mask for layer in gated_layers(network).values()], 1)
    assert mask.mean() < 0.8
    model = as_dynamic_cnn(network, digits)
    prediction = model.predict(test.images)
    torch.testing.assert_close(prediction.logits, logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(prediction.masks, mask.bool())
    assert float((prediction.labels == test.labels).float().mean()) == pytest.approx(right)
    model.save(tmp_path / "model.safetensors")
    loaded = DynamicCNN.load(tmp_path / "model.safetensors").predict(test.images)
    assert torch.equal(loaded.logits, prediction.logits)
    gates = 1 * 1 + 1 * 16 + 16 * 1 + 1 * 32
    assert loaded.macs[0] == model.masked.cost.macs(mask[:1])[0] + gates


@pytest.mark.parametrize("estimator", ["straight-through", "gumbel"])
def test_gates_around_a_frozen_cnn_leave_its_weights(digits_cnn: nn.Module, digits: Dataset, estimator: str) -> None:
    torch.manual_seed(0)
    network = SimpleDynamicCNN.around(digits_cnn, reduction=4, estimator=estimator)
    x = digits.batch(torch.arange(50))
    torch.testing.assert_close(network.eval()(x), digits_cnn(x))
    fit(network, digits, 0.03, steps=150)
    masked = as_dynamic_cnn(network, digits).masked.network.state_dict()
    assert all(torch.equal(value, masked[name]) for name, value in digits_cnn.state_dict().items())
    network(x)
    assert any((layer.mask == 0).any() for layer in gated_layers(network).values())


def test_a_pruned_channel_equals_a_removed_filter() -> None:
    network = with_busy_gates(SimpleDynamicCNN())
    plain = build("simple-cnn").eval()
    weights = {name.replace(".conv.", "."): value for name, value in network.state_dict().items() if "gate" not in name}
    plain.load_state_dict(weights)
    x = torch.randn(8, 3, 32, 32)
    logits = network(x)
    mask = torch.cat([layer.mask for layer in gated_layers(network).values()], 1)
    assert len(torch.unique(mask, dim=0)) > 1
    for row in range(8):
        torch.testing.assert_close(slicing.remove(plain, mask[row])(x[row : row + 1]), logits[row : row + 1])


def test_the_check_counts_pruned_channels_and_finds_no_influence() -> None:
    network = with_busy_gates(SimpleDynamicCNN())
    x = torch.randn(6, 3, 32, 32)
    network(x)
    masks = {name: layer.mask for name, layer in gated_layers(network).items()}
    before = copy.deepcopy(network.state_dict())
    found = check_pruning(network, x)
    assert {name: row.pruned.sum() for name, row in found.items()} == {n: (m == 0).sum() for n, m in masks.items()}
    assert all(row.influence < 1e-5 for row in found.values())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Leaking(DynamicPrunedConv2d):
    """Says that channels are off, and lets a hundredth of them through."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 0.01 * self.conv(x)


def test_the_check_finds_an_influence_where_there_is_one() -> None:
    network = SimpleDynamicCNN()
    network.features[0] = Leaking(3, 16, 3, padding=1)
    with_busy_gates(network)
    found = check_pruning(network, torch.randn(6, 3, 32, 32))
    assert found["features.0"].influence > 1e-3
    assert found["features.3"].influence < 1e-5


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = DynamicPrunedConv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 10)
        nn.init.ones_(self.norm.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(F.relu(self.norm(self.conv(images))).mean((2, 3)))


def test_a_norm_behind_a_gate_cannot_be_exported(digits: Dataset) -> None:
    with pytest.raises(InvalidInputError, match=r"outputs differ by .* must not be followed by a norm with a bias"):
        as_dynamic_cnn(Normed(), digits)
    with pytest.raises(InvalidInputError, match=r"The network has batch norm, which would add its bias to a masked"):
        SimpleDynamicCNN.around(build("simple-cnn-wide"))


def test_bad_arguments(digits_cnn: nn.Module, digits: Dataset) -> None:
    with pytest.raises(InvalidInputError, match=r"reduction is 0; a whole number of at least 1 is needed\."):
        GateNetwork(4, 0)
    with pytest.raises(UnknownNameError, match=r"Unknown estimator 'gumble'\. Did you mean 'gumbel'\?"):
        DynamicPrunedConv2d(3, 4, 3, estimator="gumble")
    with pytest.raises(InvalidInputError, match=r"SimpleCNN has no DynamicPrunedConv2d, so nothing in it is gated"):
        as_dynamic_cnn(digits_cnn, digits)
