"""Every way of running, on networks of many shapes; and a way that is wrong is not taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models import MaskedCNN, MaskFeatures, kernel
from prunegym.models.kernel import Pass
from prunegym.models.skipping.kernel_path import KernelPath
from prunegym.models.skipping.program.path import Executed, ExecutionPath
from prunegym.models.skipping.skipping_cnn import SkippingCNN, prefer_kernel
from prunegym.models.skipping.stepwise import KernelPass, MaskedPass, stepwise_pass
from prunegym.models.skipping.torch_paths.gather import GatherPath
from prunegym.models.skipping.torch_paths.torch_layers import FullPath
from tests.models.many_networks import NETWORKS
from tests.models.skipping.skipping_networks import close, needs_kernel, policy_for, random_masks, zoo
from tests.models.slicing import randomise

GATED = [name for name, (_, gates) in NETWORKS.items() if gates]
IN_THE_KERNEL = {
    "bottleneck", "functional pooling", "module pooling", "pooling by strides", "mean over the map", "mean by keyword",
    "flatten", "flatten module", "view with the batch's size", "view with minus one", "two consumers",
    "in-place activation", "in-place method", "dropout", "functional dropout", "zero-started branch",
    "convolutional head", "wider map", "narrower map", "view with the shape's first", "in-place with a second user",
    "in place behind dropout",
}  # fmt: skip
# What the kernel does not run even in part: no row of known layers begins with a map and ends with a vector.


def masked_network(name: str, size: int = 8) -> MaskedCNN:
    torch.manual_seed(0)
    return MaskedCNN(randomise(NETWORKS[name][0]()), torch.zeros(1, 3, size, size))


@pytest.mark.parametrize("name", GATED)
def test_equals_the_masked_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is wrong must not be hidden by being left out.
    monkeypatch.setattr("prunegym.models.skipping.skipping_cnn.check_outputs", lambda *_: None)
    masked = masked_network(name)
    fast = SkippingCNN(masked)
    for batch in (6, 7):
        images, masks = torch.randn(batch, 3, 8, 8), random_masks(masked, batch)
        expected = masked(images, masks)
        for way in fast.available:
            close(fast.path(way).run(images, masks, None).output, expected)
            close(fast.path(way).run(images[:1], masks[:1], None).output, expected[:1])
    assert {"torch", "full"} <= set(fast.available)
    if name in IN_THE_KERNEL:
        assert ("kernel" in fast.available) == kernel.available()


@needs_kernel
@pytest.mark.parametrize("name", sorted(IN_THE_KERNEL))
def test_a_forward_pass_that_stops_at_decisions_gives_the_same(name: str) -> None:
    masked = masked_network(name)
    images, masks = torch.randn(6, 3, 8, 8), random_masks(masked)
    under_way = KernelPass(masked, MaskFeatures(masked, layerwise=True))
    under_way.begin(images)
    while under_way.logits is None:
        under_way.advance(masks)
    close(under_way.logits, masked(images, masks))


WRONG = {
    "numbers": (lambda output: output * 1.1, r"Its outputs differ from the masked CNN's by 0\.1"),
    "shape": (lambda output: output[..., None], r"It gives outputs of shape \(2, 10, 1\), the masked CNN \(2, 10\)"),
    "failure": (lambda output: output @ output, r"It fails on this network: mat1 and mat2 shapes cannot be"),
}


@pytest.mark.parametrize("policy", [False, True])
@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize(("way", "path"), [("full", FullPath), ("torch", GatherPath), ("kernel", KernelPath)])
def test_a_way_that_is_wrong_is_not_taken(
    way: str, path: type[ExecutionPath], kind: str, policy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "kernel" and not kernel.available():
        pytest.skip(f"no compiled kernel: {kernel.unavailable_reason()}")
    masked, run = zoo("simple-cnn"), path.run
    change, why = WRONG[kind]

    def wrong(self: ExecutionPath, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        output, used = run(self, images, mask, penalty)
        return Executed(change(output), used)

    monkeypatch.setattr(path, "run", wrong)
    own = policy_for(masked) if policy else None
    with pytest.raises(InvalidInputError, match=why):
        SkippingCNN(masked, own, way)
    fast = SkippingCNN(masked, own)
    assert way not in fast.available
    if way == "kernel":
        assert prefer_kernel(masked, own).execution == "masked"


@needs_kernel
@pytest.mark.parametrize("kind", ["numbers", "failure"])  # the pass itself sees to the shape
def test_a_pass_that_is_wrong_is_not_taken(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    masked, advance = zoo("simple-cnn"), Pass.advance
    features, change = MaskFeatures(masked, layerwise=True), WRONG[kind][0]
    assert type(stepwise_pass(masked, features)) is KernelPass

    def wrong(self: Pass, mask: Tensor, threads: int | None = None) -> Tensor:
        result = advance(self, mask, threads)
        return change(result) if result.shape[1] == 10 else result

    monkeypatch.setattr(Pass, "advance", wrong)
    assert type(stepwise_pass(masked, features)) is MaskedPass
    with pytest.raises(InvalidInputError, match=r"Execution 'kernel' cannot run this here"):
        stepwise_pass(masked, features, "kernel")
