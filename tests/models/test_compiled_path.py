"""The masked network as a graph that TorchInductor compiles to C++."""

from __future__ import annotations

import itertools
import shutil

import pytest
import torch
from skipping_networks import Mixed, UserNet, close, policy_for, random_masks, zoo
from slicing import randomise

from prunegym.models import MaskedCNN, SkippingCNN, rollout, shipped_model
from prunegym.models.errors import InvalidInputError
from prunegym.models.skipping.profiling import profile

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="TorchInductor needs g++, which is not installed")


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)


@pytest.mark.slow
def test_a_shipped_model_with_its_policy():
    model = shipped_model("digits")
    images = torch.randint(0, 256, (1, *model.info.image_shape), dtype=torch.uint8)
    expected = model.predict(images)
    found = model.skip("full-compiled").predict(images)
    assert torch.equal(found.masks, expected.masks)
    close(found.logits, expected.logits)


def test_it_is_compiled_only_where_it_is_asked_for():
    fast = SkippingCNN(zoo("simple-cnn"))
    assert "full-compiled" not in {*fast.available, *fast.unavailable}


def test_images_as_they_lie_in_memory():
    """The compiled code takes one layout only, and tensors that were made in inference mode are no others to it."""
    masked = zoo("simple-cnn")
    fast = SkippingCNN(masked, execution="full-compiled")
    for layout, inference in itertools.product((torch.contiguous_format, torch.channels_last), (False, True)):
        with torch.inference_mode(inference):
            images, masks = torch.randn(2, 3, 32, 32).contiguous(memory_format=layout), random_masks(masked)
            every_other = images.repeat_interleave(2, 0)[::2]
            for some in (images, every_other):
                close(fast(some[:1], masks[4:5]).output, masked(some[:1], masks[4:5]))


def test_without_a_compiler_it_says_why():
    import torch._inductor.config as config

    patched = config.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True})
    with patched, pytest.raises(InvalidInputError, match="torch cannot compile the network: "):
        SkippingCNN(zoo("simple-cnn"), execution="full-compiled")


def user() -> MaskedCNN:
    return MaskedCNN(randomise(UserNet()), torch.zeros(1, 3, 32, 32))


def mixed() -> MaskedCNN:
    return MaskedCNN(randomise(Mixed(depthwise=False)), torch.zeros(1, 3, 24, 24), gates=["a", "c"])


@pytest.mark.slow
@pytest.mark.parametrize("make", [user, mixed, lambda: zoo("resnet20")])
def test_single_images_and_batches_take_turns(make):
    """All-off gates included; other activations than ReLU, and layers that the program does not know."""
    masked = make()
    images, masks = torch.randn(6, *masked.graph[masked.graph.input].shape[1:]), random_masks(masked)
    expected = masked(images, masks)
    fast = SkippingCNN(masked, execution="full-compiled")
    for rows in ([0], [1], [2], [3, 4], [5, 1]):
        close(fast(images[rows], masks[rows]).output, expected[rows])


@pytest.mark.slow
def test_a_policy_that_is_told_lambda_and_groups_of_a_batch():
    masked = zoo("simple-cnn")
    policy = policy_for(masked, penalty_range=(0.1, 1.0))
    fast = SkippingCNN(masked, policy, "full-compiled")
    images = torch.randn(18, 3, 32, 32)
    for penalty, some in ((0.2, images), (0.9, images[:2])):
        with torch.no_grad():
            expected = rollout(masked, policy, some, penalty=penalty)
        output, used = fast(some, penalty=penalty)
        assert torch.equal(used, expected.mask.bool())
        close(output, expected.output)


@pytest.mark.slow
def test_a_profile_has_it_on_demand():
    masked = zoo("simple-cnn")
    found = profile(masked, [torch.randn(1, 3, 32, 32)], [random_masks(masked)[4:5]], rounds=1, compiled=True)
    assert {"compiled, frozen", "compiled, channels_last"} <= set(found.dense)
    assert found.skipping["full-compiled"] > 0
    assert found.reference["dense, ahead of time"] > 0
