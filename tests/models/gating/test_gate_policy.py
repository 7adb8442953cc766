"""Gate policies: what they cost, how logits become bits, and that they decide before the producer runs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from prunegym.errors import InvalidInputError
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.gating.gate_policy import GatePolicy, check_penalty
from prunegym.models.gating.static_policy import StaticPolicy, StraightThrough, greedy, rollout
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.zoo.networks import SimpleCNN
from tests.models.slicing import randomise


def cnn() -> MaskedCNN:
    network = SimpleCNN(image_size=8, widths=(4, 6, 5), batch_norm=True)
    return MaskedCNN(randomise(network), torch.zeros(1, 3, 8, 8))


def policy_of(masked: MaskedCNN, layerwise: bool = True, **more: object) -> GatePolicy:
    torch.manual_seed(0)
    policy = GatePolicy(MaskFeatures(masked, layerwise), hidden=8, **more)
    for head in policy.heads:
        nn.init.normal_(head[2].weight)
        nn.init.normal_(head[2].bias)
    return policy


def images(batch: int = 5) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layerwise", [True, False])
@pytest.mark.parametrize("penalty_range", [None, (0.1, 0.9)])
def test_macs_equal_the_counter(layerwise: bool, penalty_range: tuple[float, float] | None) -> None:
    masked = cnn()
    policy = policy_of(masked, layerwise, penalty_range=penalty_range)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        rollout(masked, policy, images(1))
    assert policy.macs == counter.get_total_flops() / 2 - masked.cost.total_macs


def test_greedy_keeps_positive_logits() -> None:
    logits = torch.tensor([[-2.0, -1e-9, 0.0, 1e-9, 40.0]])
    assert greedy(logits).tolist() == [[0, 0, 0, 1, 1]]
    random = torch.randn(100, 7)
    assert torch.equal(greedy(random), (torch.sigmoid(random) > 0.5).float())


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_straight_through_has_the_gradient_of_the_sigmoid(temperature: float) -> None:
    logits = torch.linspace(-6, 6, 241, dtype=torch.float32)[None].requires_grad_()
    bits = StraightThrough(temperature=temperature)(logits)
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(bits, greedy(logits))
    weights = torch.randn_like(logits)
    (got,) = torch.autograd.grad((bits * weights).sum(), logits)
    (expected,) = torch.autograd.grad((torch.sigmoid(logits / temperature) * weights).sum(), logits)
    torch.testing.assert_close(got, expected)


def test_straight_through_bits_are_exact_and_have_the_right_frequency() -> None:
    logits = torch.tensor([-2.0, -0.5, 0.0, 1.0, 3.0]).expand(40_000, -1)
    bits = StraightThrough(torch.Generator().manual_seed(0), temperature=0.7)(logits)
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(bits.mean(0), torch.sigmoid(logits[0]), atol=0.01, rtol=0)
    again = StraightThrough(torch.Generator().manual_seed(0), temperature=0.7)(logits)
    assert torch.equal(bits, again)


@pytest.mark.parametrize("layerwise", [True, False])
def test_rollout_equals_deciding_by_hand(layerwise: bool) -> None:
    masked = cnn()
    policy = policy_of(masked, layerwise)
    batch = images()
    result = rollout(masked, policy, batch)
    assert result.mask.shape == result.gate_logits.shape == (5, 15)
    assert torch.equal(result.mask, greedy(result.gate_logits))
    torch.testing.assert_close(result.output, masked(batch, result.mask))
    features = policy.features
    torch.testing.assert_close(policy.logits(0, features(0, batch)), result.gate_logits[:, : 4 if layerwise else 15])
    if layerwise:
        layers = masked.network.features
        first = torch.relu(layers[2](layers[1](layers[0](batch)))) * result.mask[:, :4, None, None]
        torch.testing.assert_close(policy.logits(1, features(1, first)), result.gate_logits[:, 4:10])


class ConvolutionsByName(TorchDispatchMode):
    """Notes the names of convolutions as they run, by their weights."""

    def __init__(self, network: nn.Module, order: list[str]) -> None:
        super().__init__()
        self.order = order
        self.names = {m.weight.data_ptr(): n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "conv" in str(function):
            self.order.append(self.names[args[1].data_ptr()])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("layerwise", "expected"),
    [
        (True, ["decide", "features.0", "decide", "features.4", "decide", "features.8"]),
        (False, ["decide", "features.0", "features.4", "features.8"]),
    ],
)
def test_decisions_come_before_the_producer_runs(layerwise: bool, expected: list[str]) -> None:
    masked = cnn()
    policy, batch, order = policy_of(masked, layerwise=layerwise), images(), list[str]()
    with ConvolutionsByName(masked.network, order):
        rollout(masked, policy, batch, choose=lambda logits: (order.append("decide"), greedy(logits))[1])
    assert order == expected


def test_gradients_reach_the_policy_through_the_frozen_cnn() -> None:
    masked = cnn()
    policy = policy_of(masked)
    before = copy.deepcopy(masked.state_dict())
    result = rollout(masked, policy, images(), StraightThrough(torch.Generator().manual_seed(0)))
    result.output.square().sum().backward()
    for head in policy.heads:
        assert head[0].weight.grad.abs().sum() > 0
    assert all(torch.equal(value, before[key]) for key, value in masked.state_dict().items())
    assert all(parameter.grad is None for parameter in masked.parameters())


def test_a_fresh_policy_keeps_nearly_everything() -> None:
    masked = cnn()
    policy = GatePolicy(MaskFeatures(masked))
    result = rollout(masked, policy, images())
    assert torch.equal(result.mask, torch.ones(5, 15))
    torch.testing.assert_close(result.gate_logits, torch.full((5, 15), 2.0), atol=0.6, rtol=0)


def test_static_policy() -> None:
    masked = cnn()
    policy = StaticPolicy(MaskFeatures(masked), bias=0.5)
    with torch.no_grad():
        policy.channels[1][2] = -1.0
    result = rollout(masked, policy, images())
    expected = torch.ones(5, 15)
    expected[:, 6] = 0
    assert torch.equal(result.mask, expected)
    assert policy.macs == 0
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        rollout(masked, policy, images(1))
    assert counter.get_total_flops() == 2 * masked.cost.total_macs
    rollout(masked, policy, images(), StraightThrough()).output.sum().backward()
    assert all(channels.grad is not None for channels in policy.channels)


def test_penalty_is_an_input() -> None:
    masked = cnn()
    policy = policy_of(masked, penalty_range=(0.2, 0.6))
    features = torch.randn(3, policy.features.sizes[0])
    low, middle, high = (policy.logits(0, features, value) for value in (0.2, 0.4, 0.6))
    assert torch.equal(policy.logits(0, features), middle)
    torch.testing.assert_close(policy.logits(0, features, torch.tensor([0.2, 0.4, 0.6]))[0], low[0])
    torch.testing.assert_close(policy.logits(0, features, torch.tensor([0.2, 0.4, 0.6]))[2], high[2])
    by_hand = policy.heads[0](torch.cat([features, torch.full((3, 1), -1.0)], 1))
    torch.testing.assert_close(low, by_hand)
    mask = rollout(masked, policy, images(), penalty=torch.linspace(0.2, 0.6, 5)).mask
    assert mask.shape == (5, 15)


def test_errors() -> None:
    with pytest.raises(InvalidInputError, match="hidden is 0; a whole number of at least 1 is needed"):
        GatePolicy(MaskFeatures(cnn()), hidden=0)


def test_a_lambda_that_a_policy_is_not_for() -> None:
    masked = cnn()
    for policy in (policy_of(masked), StaticPolicy(MaskFeatures(masked))):
        with pytest.raises(
            InvalidInputError,
            match=r"penalty is 0\.3, but the policy was trained for one lambda, which is not an input",
        ):
            rollout(masked, policy, images(), penalty=0.3)
    with pytest.raises(
        InvalidInputError, match=r"penalty is 0\.7; the policy was trained for lambdas from 0\.2 to 0\.6"
    ):
        check_penalty((0.2, 0.6), 0.7)
    check_penalty((0.2, 0.6), 0.6)
    check_penalty(None, None)
