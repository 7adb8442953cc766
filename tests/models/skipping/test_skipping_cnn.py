"""Skipping execution against the masked CNN: every way, every zoo network, networks of users, every kind of policy."""

from __future__ import annotations

import copy
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models import (
    DynamicCNN,
    MaskedCNN,
    MaskFeatures,
    SkippingCNN,
    StaticPolicy,
    kernel,
    rollout,
    shipped_model,
)
from prunegym.models.skipping.program.lowering import lower
from prunegym.models.skipping.torch_paths.gather import GatherPath
from prunegym.models.timing.profiler import profile
from tests.models.skipping.skipping_networks import (
    NAMED,
    NETWORKS,
    WAYS,
    Mixed,
    UserNet,
    close,
    needs_kernel,
    policy_for,
    random_masks,
    zoo,
)
from tests.models.slicing import randomise, remove


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("way", WAYS)
def test_zoo_equals_the_masked_network(way, name):
    masked = zoo(name)
    images, masks = torch.randn(6, 3, 32, 32), random_masks(masked)
    fast = SkippingCNN(masked, execution=way)
    output, used = fast(images, masks)
    assert torch.equal(used, masks)
    close(output, masked(images, masks))
    alone = fast(images[4:5], masks[4:5].float()).output
    close(alone[0], output[4])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["m-cifarnet", "resnet20", "simple-cnn"])
def test_equals_the_network_with_filters_removed(way, name):
    masked = zoo(name)
    images, masks = torch.randn(6, 3, 32, 32), random_masks(masked)
    output = SkippingCNN(masked, execution=way)(images, masks).output
    with torch.no_grad():
        for i in range(6):
            close(output[i : i + 1], remove(masked.network, masks[i])(images[i : i + 1]))


@pytest.mark.parametrize("way", WAYS)
def test_a_residual_network_of_a_user(way):
    masked = MaskedCNN(randomise(UserNet()), torch.zeros(1, 3, 32, 32))
    assert len(masked.gates) >= 2
    images, masks = torch.randn(6, 3, 32, 32), random_masks(masked)
    close(SkippingCNN(masked, execution=way)(images, masks).output, masked(images, masks))
    policy = policy_for(masked)
    with torch.no_grad():
        expected = rollout(masked, policy, images)
    output, used = SkippingCNN(masked, policy, way)(images)
    assert torch.equal(used, expected.mask.bool())
    close(output, expected.output)


@pytest.mark.parametrize("way", WAYS)
def test_what_the_kernel_lacks_runs_in_torch(way):
    masked = MaskedCNN(randomise(Mixed(depthwise=False)), torch.zeros(1, 3, 24, 24), gates=["a", "c"])
    images, masks = torch.randn(6, 3, 24, 24), random_masks(masked)
    close(SkippingCNN(masked, execution=way)(images, masks).output, masked(images, masks))


def test_a_network_that_still_trains():
    masked = MaskedCNN(randomise(Mixed(depthwise=False)), torch.zeros(1, 3, 24, 24), gates=["a", "c"], frozen=False)
    fast = SkippingCNN(masked.eval())
    images, masks = torch.randn(6, 3, 24, 24), random_masks(masked)
    output = fast(images, masks).output
    assert not output.requires_grad
    close(output, masked(images, masks).detach())


def test_a_network_with_steps_that_are_unknown_is_run_all_the_same():
    masked = MaskedCNN(randomise(Mixed(depthwise=True)), torch.zeros(1, 3, 24, 24), gates="all")
    fast = SkippingCNN(masked)
    assert {"torch", "full"} <= set(fast.available)
    images, masks = torch.randn(6, 3, 24, 24), random_masks(masked)
    for way in fast.available:
        close(fast.path(way).run(images, masks, None).output, masked(images, masks))


class Tricky(nn.Module):
    """One step that must not be taken for another."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.GELU()  # named like another activation
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.relu(self.a(x)))
        if self.form == "overwritten":
            z = torch.relu_(y)
            y = y * 2.0 + z
        elif self.form == "overwritten through a view":
            z = F.relu(y.flatten(1), inplace=True)
            y = y * 2.0 + z.view(-1, 6, 9, 9)
        elif self.form == "scalar sum":
            y = y + 1.0
        elif self.form == "scaled sum":
            y = torch.add(y, y, alpha=2)
        elif self.form == "sum with itself":
            y = y + y
        elif self.form == "ceil":
            y = F.max_pool2d(y, 2, ceil_mode=True)
        elif self.form == "odd slices":
            y = y[:, :, 1::2, ::2]
        elif self.form == "padded":
            y = F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 0, 2))[:, :6]
        return self.last(F.adaptive_avg_pool2d(y, 1).flatten(1))


FORMS = [
    "none", "overwritten", "overwritten through a view", "scalar sum", "scaled sum", "sum with itself",
    "ceil", "odd slices", "padded",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_steps_that_look_like_others(form):
    """Whatever way is available gives the masked network's numbers."""
    masked = MaskedCNN(Tricky(form), torch.zeros(1, 3, 9, 9), gates=["a"])
    images, masks = torch.randn(6, 3, 9, 9), random_masks(masked)
    fast = SkippingCNN(masked)
    for way in fast.available:
        output = fast.path(way).run(images, masks, None).output
        close(output, masked(images, masks))
    if form in ("none", "sum with itself", "ceil"):
        assert "torch" in fast.available


BIG = ("resnet20", "m-cifarnet")
POLICIES = {
    "gate by gate": {},
    "averages alone": {"grid": 1},
    "small grid": {"feature_size": 200},
    "all at once": {"layerwise": False},
    "a range of lambdas": {"penalty_range": (0.1, 0.9)},
}


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("name", ["simple-cnn-wide", *(pytest.param(n, marks=pytest.mark.slow) for n in BIG)])
@pytest.mark.parametrize("way", WAYS)
def test_policies_decide_as_in_a_rollout(way, name, kind):
    masked = zoo(name)
    policy = policy_for(masked, **POLICIES[kind])
    for index in range(len(policy.decisions)):
        policy.features.get_buffer(f"mean{index}").normal_(0, 0.1)
        policy.features.get_buffer(f"std{index}").uniform_(0.2, 1.0)
    images = torch.randn(5, 3, 32, 32)
    fast = SkippingCNN(masked, policy, way)
    for penalty in (None, 0.2) if policy.penalty_range else (None,):
        with torch.no_grad():
            expected = rollout(masked, policy, images, penalty=penalty)
        output, used = fast(images, penalty=penalty)
        assert torch.equal(used, expected.mask.bool())
        close(output, expected.output)
    assert 0.1 < used.float().mean() < 0.9


@pytest.mark.parametrize("way", WAYS)
def test_a_static_policy(way):
    masked = zoo("m-cifarnet")
    policy = StaticPolicy(MaskFeatures(masked))
    for channels in policy.channels:
        nn.init.normal_(channels)
    images = torch.randn(3, 3, 32, 32)
    output, used = SkippingCNN(masked, policy, way)(images)
    with torch.no_grad():
        expected = rollout(masked, policy, images)
    assert torch.equal(used, expected.mask.bool())
    close(output, expected.output)


@pytest.mark.parametrize("way", WAYS)
def test_masks_that_are_given_go_before_the_policy(way):
    masked = zoo("simple-cnn")
    images, masks = torch.randn(6, 3, 32, 32), random_masks(masked)
    output, used = SkippingCNN(masked, policy_for(masked), way)(images, masks)
    assert torch.equal(used, masks)
    close(output, masked(images, masks))


@needs_kernel
def test_features_that_the_kernel_lacks():
    masked = zoo("simple-cnn-wide")
    policy = policy_for(masked, feature_size=40)
    fast = SkippingCNN(masked, policy)
    assert "kernel" not in fast.available
    assert "feature_size=40" in fast.unavailable["kernel"]
    images = torch.randn(2, 3, 32, 32)
    for way in fast.available:
        output, used = SkippingCNN(masked, policy, way)(images)
        with torch.no_grad():
            expected = rollout(masked, policy, images)
        assert torch.equal(used, expected.mask.bool())
        close(output, expected.output)


def test_auto_measures_once_for_each_size_of_batch():
    masked = zoo("simple-cnn")
    fast = SkippingCNN(masked)
    masks = random_masks(masked)
    for batch in (1, 1, 5, 6):
        images = torch.randn(batch, 3, 32, 32)
        close(fast(images, masks[:batch]).output, masked(images, masks[:batch]))
    assert [choice.images for choice in fast.choices] == [1, 5]
    for choice in fast.choices:
        assert set(choice.seconds) == set(fast.available) - {"masked"}
        assert choice.seconds[choice.execution] == min(choice.seconds.values())
        assert choice.reason.startswith(f"{choice.execution} is the fastest of: {choice.execution} ")


@pytest.mark.parametrize("way", ["torch", "full"])
def test_lambda_for_a_policy_that_was_trained_for_one(way):
    masked = zoo("simple-cnn")
    with pytest.raises(InvalidInputError, match="trained for one lambda"):
        SkippingCNN(masked, policy_for(masked), way)(torch.randn(1, 3, 32, 32), penalty=0.3)


def test_gathered_weights_are_kept_up_to_a_size():
    masked = zoo("m-cifarnet")
    path = GatherPath(lower(masked), cached=1_500_000)
    for _ in range(3):
        images, masks = torch.randn(6, 3, 32, 32), random_masks(masked)
        for _ in range(2):
            close(path.run(images, masks, None).output, masked(images, masks))
    assert 0 < sum(weight.numel() for weight in path.gathered) <= 1_500_000
    path.forget()
    assert not path.gathered


def test_a_dynamic_cnn_skips_on_demand():
    model = shipped_model("digits")
    images = torch.randint(0, 256, (9, *model.info.image_shape), dtype=torch.uint8)
    expected = model.predict(images)
    assert model.execution == "masked"
    assert torch.equal(model(images), expected.logits)
    for execution in ("auto", *NAMED):
        if execution == "kernel" and not kernel.available():
            continue
        found = model.skip(execution).predict(images)
        assert model.execution == execution
        assert torch.equal(found.masks, expected.masks)
        assert torch.equal(found.macs, expected.macs)
        close(found.logits, expected.logits)
        close(model(images), expected.logits)
    assert torch.equal(model.skip("masked").predict(images).logits, expected.logits)


def test_a_dynamic_cnn_that_skips_is_copied_saved_and_changed(tmp_path):
    model = shipped_model("digits").skip()
    images = torch.rand(3, *model.info.image_shape)
    logits = model.predict(images).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.execution == "auto"
        close(other.predict(images).logits, logits)
    model.save(tmp_path / "model.safetensors")
    close(DynamicCNN.load(tmp_path / "model.safetensors").skip("torch").predict(images).logits, logits)
    changed = {name: value * 1.5 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    model.load_state_dict(changed)
    new = model.predict(images).logits
    assert not torch.allclose(new, logits)
    close(new, model.skip("masked").predict(images).logits)


def test_errors():
    masked = zoo("simple-cnn")
    with pytest.raises(UnknownNameError, match=r"'kernle'.*Did you mean 'kernel'"):
        SkippingCNN(masked, execution="kernle")
    fast = SkippingCNN(masked)
    assert fast(torch.zeros(0, 3, 32, 32), torch.zeros(0, 48)).output.shape == (0, 10)
    assert torch.equal(fast(torch.zeros(2, 3, 32, 32)).mask, torch.ones(2, 48, dtype=torch.bool))
    images = torch.zeros(2, 3, 32, 32)
    for wrong, given in ((images.double(), "torch.float64"), (images.numpy(), "a ndarray"), (None, "a NoneType")):
        with pytest.raises(InvalidInputError, match=rf"Images are {given}; a tensor of normalised torch\.float32 is"):
            fast(wrong)
    with pytest.raises(InvalidInputError, match=r"shape \(2, 3, 32, 16\); \(batch, 3, 32, 32\) is needed\. That is"):
        fast(images[..., :16])
    decided = SkippingCNN(masked, policy_for(masked))
    with pytest.raises(InvalidInputError, match="trained for one lambda"):
        decided(images, penalty=0.5)
    with pytest.raises(InvalidInputError, match=r"0\.95.*0\.1.*0\.9"):
        SkippingCNN(masked, policy_for(masked, penalty_range=(0.1, 0.9)))(images, penalty=0.95)
    with pytest.raises(InvalidInputError, match=r"\(2, 48\) is needed"):
        fast(torch.zeros(2, 3, 32, 32), torch.zeros(2, 47))
    with pytest.raises(InvalidInputError, match="only 0 and 1 are allowed"):
        fast(torch.zeros(2, 3, 32, 32), torch.full((2, 48), 0.5))


def test_auto_measures_anew_for_masks_that_more_images_share():
    masked = zoo("simple-cnn")
    fast, images, masks = SkippingCNN(masked), torch.randn(8, 3, 32, 32), random_masks(masked)[:2]
    for mask in (masks[:1].repeat(8, 1), masks.repeat(4, 1), masks[1:].repeat(8, 1)):
        close(fast(images, mask).output, masked(images, mask))
    assert [choice.masks for choice in fast.choices] == [1, 2]


def test_made_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        model = shipped_model("digits").skip()
        assert model.skipping.available == shipped_model("digits").skip().skipping.available
    assert "full" in model.skipping.available


def test_threads_of_python_share_gathered_weights():
    masked = zoo("m-cifarnet")
    path = GatherPath(lower(masked), cached=100_000)
    images, masks = torch.randn(6, 3, 32, 32), random_masks(masked)
    expected = masked(images, masks)

    def run(_):
        with torch.no_grad():
            return [path.run(images, masks, None).output for _ in range(10)]

    with ThreadPoolExecutor(4) as pool:
        for outputs in pool.map(run, range(4)):
            for output in outputs:
                close(output, expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="TorchInductor needs g++, which is not installed")
def test_a_profile_times_torch_compile_on_demand():
    masked = zoo("simple-cnn")
    found = profile(masked, [torch.randn(1, 3, 32, 32)], [random_masks(masked)[4:5]], rounds=1, compiled=True)
    assert {"compiled, frozen", "compiled, channels_last"} <= set(found.dense)
    assert set(found.skipping) == set(SkippingCNN(masked).available)
