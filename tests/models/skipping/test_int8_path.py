"""Execution ``int8``: whole networks on bytes beside float32, calibration, files and commands."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from prunegym.errors import InvalidInputError
from prunegym.models import DynamicCNN, MaskedCNN, SkippingCNN, build, fixed_policy, load_dataset, shipped_model
from prunegym.models.skipping.int8_path import Int8Path, calibrate, scale_of
from prunegym.models.skipping.program.lowering import UnsupportedError, lower
from tests.models.skipping.skipping_networks import needs_kernel, random_masks, zoo
from tests.models.slicing import randomise

pytestmark = [needs_kernel, pytest.mark.usefixtures("one_thread")]


def smooth(batch: int, channels: int = 3, side: int = 32) -> Tensor:
    """Images with few details, as photographs are."""
    return nn.functional.interpolate(torch.randn(batch, channels, 6, 6), side, mode="bilinear")


def error(masked: MaskedCNN, images: Tensor, masks: Tensor) -> float:
    """The mean error of int8 over the mean distance of outputs from their mean."""
    masked.ranges = calibrate(masked, None, [images])
    found = SkippingCNN(masked, None, "int8")(images, masks).output
    meant = masked(images, masks).detach()
    return float((found - meant).abs().mean() / (meant - meant.mean(0)).abs().mean())


class Mixed(nn.Module):
    """Layers that the kernel has on bytes, and such that it has not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Hardswish())
        self.point = nn.Conv2d(12, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.last = nn.Sequential(nn.Conv2d(16, 10, 3, stride=2), nn.SiLU())
        self.head = nn.Linear(10 * 15 * 15, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.depthwise(self.first(x)))
        x = torch.cat([x, torch.relu(self.grouped(x))], 1)
        return self.head(self.last(x).flatten(1))


@pytest.mark.parametrize("name", ["simple-cnn", "resnet20", "m-cifarnet", "vgg11"])
def test_zoo_networks_are_close_to_float32(name):
    torch.manual_seed(0)
    masked = zoo(name)
    assert error(masked, smooth(6), random_masks(masked)) < 0.06


def test_layers_without_a_form_on_bytes_run_in_float32():
    torch.manual_seed(0)
    masked = MaskedCNN(randomise(Mixed()).eval(), torch.zeros(1, 3, 32, 32), gates="all")
    assert error(masked, smooth(6), random_masks(masked)) < 0.06


def test_bytes_become_floats_only_where_a_layer_needs_floats():
    program = lower(zoo("resnet20"))
    ranges = dict.fromkeys([program.input, *(layer.name for layer in program.layers)], (-1.0, 1.0))
    (plan,) = Int8Path(program, None, ranges)._plans(False, None)
    assert [layer.split()[1] for layer in plan.plan.layers].count("convert") == 1  # of the images


def test_constants_are_added_in_int8_too():
    torch.manual_seed(0)
    masked = zoo("resnet20")
    masked.compensate(torch.randn(masked.mask_size) * 0.3)
    assert error(masked, smooth(6), random_masks(masked)) < 0.06


def test_ranges_go_when_the_network_changes_and_stay_in_its_file(tmp_path):
    torch.manual_seed(0)
    model = shipped_model()
    constants = torch.randn(model.masked.mask_size) * 0.1
    model.masked.compensate(constants)
    model.calibrate(model.info.adapt(load_dataset("digits", "train")), images=16).save(tmp_path / "model.safetensors")
    again = DynamicCNN.load(tmp_path / "model.safetensors").masked
    assert [*again.ranges] == [*model.masked.ranges]
    torch.testing.assert_close(torch.tensor([*again.ranges.values()]), torch.tensor([*model.masked.ranges.values()]))
    for change in (lambda one: one.compensate(None), lambda one: one.unfreeze()):
        again.ranges = model.masked.ranges
        change(again)
        assert again.ranges is None


def test_scales_by_hand():
    assert scale_of(0.0, 2.55) == pytest.approx(0.01)
    assert scale_of(-2.54, 1.0) == pytest.approx(0.02)


def test_ranges_by_hand():
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1))
    with torch.no_grad():
        for layer in (network[0], network[2]):
            layer.weight.fill_(2.0)
            layer.bias.fill_(-1.0)
    masked = MaskedCNN(network, torch.zeros(1, 1, 2, 2))
    images = torch.tensor([[[[1.0, -3.0], [0.0, 2.0]]], [[[4.0, -1.0], [0.0, 0.0]]]])
    ranges = calibrate(masked, None, [images])
    # Smallest numbers -3 and -1, largest 2 and 4: means -2 and 3, standard deviations 1 and 1.
    assert ranges[lower(masked).input] == pytest.approx((-4.0, 5.0))
    # After 2x - 1 and ReLU: largest 3 and 7, mean 5, standard deviation 2.
    assert pytest.approx((0.0, 9.0)) in list(ranges.values())


def test_digits_keep_their_accuracy_and_their_file(tmp_path):
    model, train, test = shipped_model(), load_dataset("digits", "train"), load_dataset("digits", "test")
    before = model.predict(test.images)
    model.calibrate(model.info.adapt(train)).skip("int8")
    after = model.predict(test.images)
    right = [(found.labels == test.labels).double().mean() for found in (before, after)]
    assert abs(right[0] - right[1]) <= 0.003
    assert (before.masks == after.masks).double().mean() > 0.99
    model.save(tmp_path / "model.safetensors")
    again = DynamicCNN.load(tmp_path / "model.safetensors").skip("int8").predict(test.images)
    assert torch.equal(again.logits, after.logits)
    assert torch.equal(again.masks, after.masks)


def test_int8_is_never_chosen_silently():
    masked = zoo("simple-cnn")
    masked.ranges = calibrate(masked, None, [torch.randn(2, 3, 32, 32)])
    fast = SkippingCNN(masked)
    assert "int8" not in fast.available
    fast(torch.randn(2, 3, 32, 32), random_masks(masked, 6)[:2])
    assert all("int8" not in choice.seconds for choice in fast.choices)


def test_without_ranges_the_error_says_how_to_get_them():
    with pytest.raises(InvalidInputError, match=r"quantize MODEL --calibrate"):
        SkippingCNN(zoo("simple-cnn"), None, "int8")
    with pytest.raises(InvalidInputError, match="no image"):
        calibrate(zoo("simple-cnn"), None, [])


def test_ranges_of_another_network_are_refused():
    masked = zoo("resnet20")
    masked.ranges = {"other": (0.0, 1.0)}
    with pytest.raises(UnsupportedError, match=r"no range for the value of step .* Calibrate the network again"):
        Int8Path.make(masked, lambda: lower(masked), None)


def test_a_damaged_range_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    shipped_model().calibrate(shipped_model().info.adapt(load_dataset("digits", "train")), images=8).save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    for damage in (torch.full_like(tensors["int8.ranges"], torch.nan), tensors["int8.ranges"][1:]):
        safetensors.torch.save_file({**tensors, "int8.ranges": damage.contiguous()}, path, metadata)
        with pytest.raises(InvalidInputError, match="ranges of values for int8"):
            DynamicCNN.load(path)


def test_a_static_policy_is_calibrated_under_its_mask():
    torch.manual_seed(0)
    model = shipped_model()
    masked = MaskedCNN(build("simple-cnn", 10, 1, 8), torch.zeros(1, 1, 8, 8))
    mask = torch.rand(masked.mask_size) < 0.5
    fixed = DynamicCNN(masked, fixed_policy(masked, mask), model.info)
    fixed.calibrate(model.info.adapt(load_dataset("digits", "train")), images=64).skip("int8")
    found = fixed.predict(load_dataset("digits", "test").images[:50])
    meant = fixed.skip("masked").predict(load_dataset("digits", "test").images[:50])
    assert torch.equal(found.masks, meant.masks)
    assert (found.logits - meant.logits).abs().max() < 0.1 * meant.logits.abs().max()
