"""Passes that stop before each decision: the kernel's against MaskedCNN and its features."""

from __future__ import annotations

import copy
import os
import pickle

import pytest
import torch

from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models import MaskedCNN, MaskFeatures
from prunegym.models.kernel import Pass, PlanBuilder
from prunegym.models.kernel.shared_library import library, openmp
from prunegym.models.skipping.program.lowering import lower
from prunegym.models.skipping.stepwise import CHUNK, KernelPass, MaskedPass, stepwise_pass
from prunegym.models.skipping.translation import translate
from tests.models.skipping.skipping_networks import NETWORKS, Mixed, UserNet, close, needs_kernel, random_masks, zoo

pytestmark = pytest.mark.usefixtures("one_thread")


def features_of(masked: MaskedCNN, **options) -> MaskFeatures:
    """Features that are standardised by a few images, so tightly that some are clipped."""
    features = MaskFeatures(masked, **options)
    state = masked.begin(torch.randn(8, 3, 32, 32))
    starts = [decision.gates[0] for decision in features.decisions]
    while state.reads is not None:
        if state.gate in starts:
            index = starts.index(state.gate)
            values = features.raw(index, state.reads)
            features.get_buffer(f"mean{index}").copy_(values.mean(0))
            features.get_buffer(f"std{index}").copy_(values.std(0) / 4 + values.abs().max() / 1000 + 1e-6)
        masked.advance(state, None)
    return features


def equal_passes(masked: MaskedCNN, features: MaskFeatures, images: torch.Tensor, masks: torch.Tensor) -> None:
    one, other = KernelPass(masked, features), MaskedPass(masked, features)
    for _ in range(2):  # a pass can be begun again, over what was there before
        seen, expected = one.begin(images), other.begin(images)
        for index in range(len(features.decisions)):
            assert other.logits is None
            close(seen, expected)
            assert expected.abs().max() <= 10
            seen, expected = one.advance(masks), other.advance(masks.float())
            assert (seen is None) == (expected is None) == (index == len(features.decisions) - 1)
        close(one.logits, masked(images, masks.float()))
        close(other.logits, masked(images, masks.float()))
        masks = masks.roll(1, 0)


@needs_kernel
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("layerwise", [True, False])
def test_the_kernel_sees_and_answers_what_the_masked_network_does(name, layerwise):
    masked = zoo(name)
    equal_passes(masked, features_of(masked, layerwise=layerwise), torch.randn(6, 3, 32, 32), random_masks(masked))


@needs_kernel
@pytest.mark.parametrize("options", [{"grid": 1}, {"grid": 3}, {"feature_size": 70}], ids=str)
def test_features_of_every_form(options):
    masked = MaskedCNN(UserNet().eval(), torch.zeros(1, 3, 32, 32))
    equal_passes(masked, features_of(masked, **options), torch.randn(6, 3, 32, 32), random_masks(masked))


@needs_kernel
@pytest.mark.parametrize("batch", [1, 31, 33, pytest.param(2 * CHUNK + 1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("ours", [True, False])
def test_any_number_of_images_on_either_kind_of_threads(batch, ours):
    masked = zoo("resnet20")
    features, images = features_of(masked), torch.randn(batch, 3, 32, 32)
    masks = torch.rand(batch, masked.mask_size) < 0.5
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    if ours:
        library().prunegym_use_openmp(None)
    try:
        equal_passes(masked, features, images, masks)
    finally:
        torch.set_num_threads(threads)
        library().prunegym_use_openmp(openmp())


@needs_kernel
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process_does_not_wait_for_threads_that_it_lacks():
    masked = zoo("simple-cnn")
    features, images, masks = features_of(masked), torch.randn(40, 3, 32, 32), torch.ones(40, masked.mask_size)
    ours = Pass(translate(lower(masked), looks=features).plan, len(images))

    def answer() -> torch.Tensor:
        assert len(ours.begin(images, threads=2)) == 40
        ours.advance(masks, threads=2)
        return ours.advance(masks, threads=2)

    expected = answer()
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(answer(), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


@needs_kernel
def test_weights_that_change_are_seen():
    with torch.inference_mode(False):
        masked = zoo("simple-cnn")
    features, images, masks = features_of(masked), torch.randn(6, 3, 32, 32), random_masks(masked)
    ours = KernelPass(masked, features)

    def answer() -> torch.Tensor:
        ours.begin(images)
        while ours.advance(masks) is not None:
            pass
        return ours.logits

    before = answer()
    with torch.inference_mode(False), torch.no_grad():
        next(masked.network.parameters()).mul_(2)
    assert not torch.allclose(answer(), before)
    close(answer(), masked(images, masks.float()))


@needs_kernel
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_a_copy_goes_on_where_the_original_was(copied):
    masked = zoo("resnet20")
    original, masks = KernelPass(masked, features_of(masked)), torch.rand(3, masked.mask_size) < 0.5
    original.begin(torch.randn(3, 3, 32, 32))
    for _ in range(4):
        original.advance(masks)
    other = copied(original)
    for _ in range(4):
        assert torch.equal(other.advance(masks), original.advance(masks))
    assert other.advance(masks) is original.advance(masks) is None
    assert torch.equal(other.logits, original.logits)
    assert torch.equal(copied(original).begin(torch.ones(3, 3, 32, 32)), original.begin(torch.ones(3, 3, 32, 32)))


class Louder(MaskFeatures):
    """Features of a user's own, which the kernel does not know."""

    def raw(self, decision, reads):
        return 2 * super().raw(decision, reads)


@needs_kernel
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda masked: MaskFeatures(masked, feature_size=5),
            r"Layer .* is not in the kernel: .* more than feature_size=5",
        ),
        (Louder, r"the kernel may not support all features of Louder"),
    ],
)
def test_what_the_kernel_does_not_know_is_run_by_torch(make, reason):
    masked = zoo("simple-cnn")
    assert isinstance(stepwise_pass(masked, make(masked)), MaskedPass)
    assert isinstance(stepwise_pass(masked, MaskFeatures(masked)), KernelPass)
    with pytest.raises(InvalidInputError, match=rf"Execution 'kernel' cannot run this here: {reason}.* Use 'auto'"):
        stepwise_pass(masked, make(masked), "kernel")


def test_networks_that_the_kernel_cannot_run():
    masked = MaskedCNN(Mixed(depthwise=True).eval(), torch.zeros(1, 3, 32, 32))
    assert isinstance(stepwise_pass(masked, MaskFeatures(masked)), MaskedPass)
    with pytest.raises(UnknownNameError, match=r"Unknown execution 'kernle'\. Did you mean 'kernel'\?"):
        stepwise_pass(masked, MaskFeatures(masked), "kernle")


def test_without_the_kernel_torch_runs(monkeypatch):
    monkeypatch.setattr("prunegym.models.kernel.shared_library.load", lambda: (None, "it was not built"))
    masked = zoo("simple-cnn")
    assert isinstance(stepwise_pass(masked, MaskFeatures(masked)), MaskedPass)


@needs_kernel
def test_a_pass_that_is_used_wrongly():
    builder = PlanBuilder(3, 8, 8, gates=[4])
    builder.look(builder.images, torch.zeros(3), torch.ones(3))
    x = builder.conv(builder.images, torch.ones(4, 3, 3, 3), gate=0)
    plan = builder.build(builder.linear(builder.average(x), torch.ones(2, 4)))
    stepwise = Pass(plan, 2)
    masks = torch.ones(2, 4)
    with pytest.raises(InvalidInputError, match=r"The pass is over, or has not begun\. Call begin"):
        stepwise.advance(masks)
    with pytest.raises(InvalidInputError, match=r"3 images; this pass is for 2"):
        stepwise.begin(torch.zeros(3, 3, 8, 8))
    with pytest.raises(InvalidInputError, match=r"Images is of shape \(2, 3, 8, 9\); \(batch, 3, 8, 8\) is needed"):
        stepwise.begin(torch.zeros(2, 3, 8, 9))
    stepwise.begin(torch.zeros(2, 3, 8, 8))
    with pytest.raises(InvalidInputError, match=r"The mask is of shape \(1, 4\); \(2, 4\) is needed"):
        stepwise.advance(masks[:1])
    with pytest.raises(InvalidInputError, match=r"The mask has the value 0\.5; only 0 and 1 are allowed"):
        stepwise.advance(masks / 2)
    assert stepwise.advance(masks).shape == (2, 2)  # what was refused has not moved it
    with pytest.raises(InvalidInputError, match=r"The pass is over"):
        stepwise.advance(masks)
    with pytest.raises(InvalidInputError, match=r"batch is 0; a whole number from 1"):
        Pass(plan, 0)
    other = PlanBuilder(3, 8, 8)
    with pytest.raises(InvalidInputError, match=r"A pass needs a plan without a policy"):
        Pass(other.build(other.average(other.images)), 2)
    with pytest.raises(InvalidInputError, match=r"std is of shape \(2,\); \(3,\) is needed"):
        other.look(other.images, torch.zeros(3), torch.ones(2))
