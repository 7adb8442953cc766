"""Tensors and modules of unusual kinds: they work exactly, or get an error of ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from prunegym.errors import InvalidInputError, UntraceableModelError
from prunegym.models import MaskedCNN, shipped_model
from prunegym.models.checks import check_device
from prunegym.models.skipping.skipping_cnn import SkippingCNN

ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": lambda x: x.to_sparse(),
    "complex": lambda x: x.to(torch.complex64),
    "meta": lambda x: x.to("meta"),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
    "mkldnn": lambda x: x.to_mkldnn(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
def test_tensors(kind: str) -> None:
    model = shipped_model()
    images = ODD[kind](torch.rand(2, 1, 8, 8))
    with pytest.raises(InvalidInputError, match="a dense array or tensor of real numbers is needed"):
        model.predict(images)
    with pytest.raises(InvalidInputError, match="The image tensor is"):
        model.masked(images)
    with pytest.raises(InvalidInputError, match="The example input is"):
        MaskedCNN(model.masked.network, ODD[kind](torch.rand(1, 1, 8, 8)))
    mask = ODD[kind](torch.ones(2, model.masked.mask_size)) if kind != "mkldnn" else torch.ones(2, 3)
    with pytest.raises(InvalidInputError, match="The mask is"):
        model.masked(torch.rand(2, 1, 8, 8), mask)
    with pytest.raises(InvalidInputError, match="The mask is"):
        model.masked.cost.mac_share(mask)


@pytest.mark.parametrize("execution", ["masked", "full", "torch", "kernel"])
def test_nothing_that_is_given_is_written_on(execution: str) -> None:
    net = nn.Sequential(nn.ReLU(inplace=True), *_plain())
    net[2] = nn.ReLU(inplace=True)
    masked = MaskedCNN(net.eval(), torch.zeros(1, 1, 8, 8))
    images, mask = torch.randn(4, 1, 8, 8), (torch.rand(4, masked.mask_size) < 0.5).float()
    before = images.clone(), mask.clone()
    if execution in SkippingCNN(masked, None).available:
        SkippingCNN(masked, None, execution)(images, mask)
    masked(images, mask)
    assert torch.equal(images, before[0])
    assert torch.equal(mask, before[1])


@pytest.mark.parametrize("value", [2.0, 0.5, -1.0, float("nan"), float("inf")])
def test_costs_are_of_masks(value: float) -> None:
    cost = shipped_model().masked.cost
    with pytest.raises(InvalidInputError, match="only 0 and 1 are allowed"):
        cost.mac_share(torch.full((1, 160), value))
    assert cost.mac_share(torch.full((1, 160), value, requires_grad=True)).shape == (1,)  # soft masks of training


@pytest.mark.parametrize("macs", [-1, float("nan"), float("inf"), 10**400])
def test_macs_of_a_policy(macs: Any) -> None:
    with pytest.raises(InvalidInputError, match="policy_macs is"):
        shipped_model().masked.cost.total_share(torch.ones(1, 160), macs)


@pytest.mark.parametrize("device", ["meta", "cuda:99", "gpu", 3.5])
def test_devices_that_are_not_there(device: Any) -> None:
    with pytest.raises(InvalidInputError, match="device is"):
        check_device(device)


def _plain() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()


def _pruned(net: nn.Sequential) -> None:
    prune.random_unstructured(net[2], "weight", 0.5)


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "weight norm": lambda net: parametrizations.weight_norm(net[2]),
    "weight norm, older": lambda net: nn.utils.weight_norm(net[2]),
    "spectral norm": lambda net: nn.utils.spectral_norm(net[2]),
    "pruned": _pruned,
    "hook": lambda net: net[2].register_forward_hook(lambda _module, _inputs, output: output * 2),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", CHANGES)
def test_modules_that_compute_their_weights(change: str) -> None:
    net = _plain()
    CHANGES[change](net)
    net.eval()
    masked = MaskedCNN(net, torch.zeros(1, 1, 8, 8))
    images, mask = torch.rand(3, 1, 8, 8), torch.ones(3, masked.mask_size)
    hidden = net[1](net[0](images))
    if masked.gates[0].name == "0":
        mask[:, 2] = hidden[:, 2] = 0
    with torch.no_grad():
        expected = net[3:](net[2](hidden))
    torch.testing.assert_close(masked(images, mask), expected)
    for execution in ("kernel", "torch"):
        skipping = SkippingCNN(masked, None)
        if execution in skipping.available:
            torch.testing.assert_close(SkippingCNN(masked, None, execution)(images, mask).output, expected)


def test_lazy_and_empty_modules() -> None:
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(UntraceableModelError, match="lazy layers, whose sizes are not known yet"):
        MaskedCNN(lazy, torch.zeros(1, 1, 8, 8))
    lazy(torch.zeros(1, 1, 8, 8))
    assert MaskedCNN(lazy, torch.zeros(1, 1, 8, 8)).mask_size == 8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.ao.quantization.quantize_dynamic(_plain(), {nn.Linear})
    with pytest.raises(UntraceableModelError, match="packed weights, as quantised layers have"):
        MaskedCNN(packed, torch.zeros(1, 1, 8, 8))
    with pytest.raises(InvalidInputError, match="'meta'"):
        MaskedCNN(_plain().to("meta"), torch.zeros(1, 1, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InvalidInputError, match="complex"):
            MaskedCNN(_plain().to(torch.complex64), torch.zeros(1, 1, 8, 8))


def test_negative_variances() -> None:
    first = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
    net = nn.Sequential(*first, nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    net[1].get_buffer("running_var").fill_(-1.0)
    with pytest.raises(InvalidInputError, match=r"'1\.running_var' has negative variances"):
        MaskedCNN(net.eval(), torch.zeros(1, 1, 8, 8))


def test_outputs_that_are_not_finite() -> None:
    model = shipped_model()
    with torch.no_grad():
        for parameter in model.masked.parameters():
            parameter.fill_(3e38)
    with pytest.raises(InvalidInputError, match="output is NaN or infinite for some image"):
        model.predict(torch.ones(2, 1, 8, 8))
