"""Execution ``bfloat16``: whole networks beside float32, and commands."""

from __future__ import annotations

import pytest
import torch

from prunegym.models import MaskedCNN, SkippingCNN, load_dataset, shipped_model
from prunegym.models.skipping.bfloat16_path import Bfloat16Path
from prunegym.models.skipping.program.lowering import lower
from tests.models.skipping.skipping_networks import needs_kernel, random_masks, zoo
from tests.models.skipping.test_int8_path import Mixed, smooth
from tests.models.slicing import randomise

pytestmark = [needs_kernel, pytest.mark.usefixtures("one_thread")]


def error(masked: MaskedCNN) -> float:
    """The mean error of bfloat16 over the mean distance of outputs from their mean."""
    images, masks = smooth(6), random_masks(masked)
    found = SkippingCNN(masked, None, "bfloat16")(images, masks).output
    meant = masked(images, masks).detach()
    return float((found - meant).abs().mean() / (meant - meant.mean(0)).abs().mean())


@pytest.mark.parametrize("name", ["simple-cnn", "resnet20", "m-cifarnet", "vgg11"])
def test_zoo_networks_are_close_to_float32(name):
    torch.manual_seed(0)
    assert 1e-5 < error(zoo(name)) < 0.03


def test_layers_without_a_form_on_bfloat16_run_in_float32():
    torch.manual_seed(0)
    assert error(MaskedCNN(randomise(Mixed()).eval(), torch.zeros(1, 3, 32, 32), gates="all")) < 0.03


def test_constants_are_added_in_bfloat16_too():
    torch.manual_seed(0)
    masked = zoo("resnet20")
    masked.compensate(torch.randn(masked.mask_size) * 0.3)
    assert error(masked) < 0.03


def test_images_become_bfloat16_once():
    (plan,) = Bfloat16Path(lower(zoo("resnet20")), None)._plans(False, None)
    assert [layer.split()[1] for layer in plan.plan.layers].count("convert") == 1


def test_digits_keep_their_accuracy():
    model, test = shipped_model(), load_dataset("digits", "test")
    before, after = model.predict(test.images), model.skip("bfloat16").predict(test.images)
    right = [(found.labels == test.labels).double().mean() for found in (before, after)]
    assert abs(right[0] - right[1]) <= 0.003
    assert (before.masks == after.masks).double().mean() > 0.99
    assert not torch.equal(before.logits, after.logits)


def test_bfloat16_is_never_chosen_silently():
    masked = zoo("simple-cnn")
    fast = SkippingCNN(masked)
    assert "bfloat16" not in fast.available
    fast(torch.randn(2, 3, 32, 32), random_masks(masked, 6)[:2])
    assert all("bfloat16" not in choice.seconds for choice in fast.choices)
