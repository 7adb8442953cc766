"""Executions of a CNN with constants in place of masked channels, against MaskedCNN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from prunegym.models import (
    CNNInfo,
    DynamicCNN,
    GatePolicy,
    MaskedCNN,
    MaskFeatures,
    Normalisation,
    SkippingCNN,
    build,
    fixed_policy,
)
from prunegym.models.zoo.networks import SimpleCNN
from tests.models.network_parts import Inception
from tests.models.skipping.skipping_networks import WAYS
from tests.models.slicing import randomise

NETWORKS = {
    "plain": lambda: MaskedCNN(randomise(SimpleCNN(image_size=8, widths=(4, 6), batch_norm=True)), example(8)),
    "concatenated": lambda: MaskedCNN(randomise(Inception()), example(8)),
    "resnet20": lambda: MaskedCNN(randomise(build("resnet20")), example(32)),
    "resnet20, residual sums too": lambda: MaskedCNN(randomise(build("resnet20")), example(32), gates="all"),
}


def example(size: int) -> Tensor:
    return torch.zeros(1, 3, size, size)


@pytest.fixture(params=NETWORKS)
def masked(request: pytest.FixtureRequest) -> MaskedCNN:
    made = NETWORKS[request.param]()
    return made.compensate(torch.randn(made.mask_size, generator=torch.Generator().manual_seed(0)))


def policy_of(masked: MaskedCNN) -> GatePolicy:
    """Return gates whose decisions differ from image to image."""
    torch.manual_seed(1)
    policy = GatePolicy(MaskFeatures(masked), 8, bias=0.0)
    for head in policy.heads:
        nn.init.normal_(head[2].weight)
    return policy


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("execution", WAYS)
def test_executions_give_what_the_masked_cnn_gives(masked: MaskedCNN, execution: str) -> None:
    generator = torch.Generator().manual_seed(2)
    batch = torch.randn(5, *masked.image_shape, generator=generator)
    mask = torch.rand(5, masked.mask_size, generator=generator) < 0.5
    mask[0], mask[1], mask[4] = False, True, mask[3]
    with torch.no_grad():
        close(SkippingCNN(masked, None, execution)(batch, mask).output, masked(batch, mask.float()))
        done = SkippingCNN(masked, policy_of(masked), execution)(batch)
        assert len(done.mask.unique(dim=0)) > 1
        close(done.output, masked(batch, done.mask.float()))


def model_of(masked: MaskedCNN) -> DynamicCNN:
    norm = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    shape = (masked.image_shape[0], masked.image_shape[1], masked.image_shape[2])
    classes = tuple(map(str, range(masked.output_shape[0])))
    return DynamicCNN(masked, policy_of(masked), CNNInfo("own", len(classes), shape, norm, classes, "none"))


def test_onnx_gives_what_the_masked_cnn_gives(masked: MaskedCNN, tmp_path: Path) -> None:
    model, path = model_of(masked), tmp_path / "model.onnx"
    raw = torch.randint(0, 256, (3, *masked.image_shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    expected = model.predict(raw)
    model.export_onnx(path)
    running = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for image, logits, mask in zip(raw, expected.logits, expected.masks, strict=True):
        found = running.run(None, {"images": image[None].numpy()})
        assert np.array_equal(found[1][0], mask.numpy())
        close(torch.from_numpy(found[0])[0], logits)
    # A mask that is known at export is in the biases of the model.
    static = DynamicCNN(masked, fixed_policy(masked, expected.masks[0].float()), model.info)
    static.export_onnx(path)
    running = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = running.run(None, {"images": raw[1:2].numpy()})
    close(torch.from_numpy(found[0]), static.predict(raw[1:2]).logits)
