"""Networks that MaskedCNN refuses, each with a reason, and unusual ones that it takes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.errors import InvalidInputError, UntraceableModelError
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.zoo.networks import SimpleCNN
from tests.models.slicing import randomise
from tests.models.small_networks import images, small


class Wrapped(nn.Module):
    """A small CNN, its output handed to a function, for forward passes that we cannot take."""

    def __init__(self, after: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.body, self.after = SimpleCNN(image_size=8, widths=(4,)), after

    def forward(self, x: Tensor) -> object:
        return self.after(self.body(x))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = SimpleCNN(image_size=8, widths=(4,))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.body(x) + y


class OptionalInputs(TwoInputs):
    def forward(self, x: Tensor, y: Tensor | None = None, double: bool = False, **_: object) -> Tensor:
        out = self.body(x)
        if y is not None:
            out = out + y
        return 2 * out if double else out


class BatchOfOne(TwoInputs):
    def forward(self, x: Tensor) -> Tensor:
        return self.body.linear(self.body.features(x).view(1, -1))


def test_errors() -> None:
    _, masked = small()
    example = torch.zeros(1, 3, 8, 8)
    with pytest.raises(
        InvalidInputError, match=r"The mask is of shape \(3, 9\); \(3, 10\) is needed\. Give one row per im"
    ):
        masked(images(), torch.ones(3, 9))
    with pytest.raises(InvalidInputError, match=r"The mask is of shape \(2, 10\); \(3, 10\) is needed"):
        masked(images(), torch.ones(2, 10))
    with pytest.raises(InvalidInputError, match=r"The mask is a list; a tensor is needed"):
        masked(images(), [[1] * 10] * 3)
    with pytest.raises(InvalidInputError, match=r"The images are torch\.uint8; a float tensor, normalised"):
        masked(images().byte(), torch.ones(3, 10))
    with pytest.raises(InvalidInputError, match=r"The images are a ndarray"):
        masked(images().numpy())
    with pytest.raises(InvalidInputError, match=r"The mask of gate 'features\.0' is of shape \(4,\); \(3, 4\) is"):
        masked.advance(masked.begin(images()), torch.ones(4))
    broken = SimpleCNN(image_size=8, widths=(4,))
    broken.linear.bias.data[0] = float("nan")
    with pytest.raises(InvalidInputError, match=r"SimpleCNN: 'linear\.bias' has NaN or infinite values"):
        MaskedCNN(broken, example)
    with pytest.raises(InvalidInputError, match=r"shape \(3, 8, 8\); \(batch, channels, height, width\) is needed"):
        MaskedCNN(SimpleCNN(image_size=8), example[0])
    with pytest.raises(UntraceableModelError, match=r"SimpleCNN does not take the example input \(1, 3, 9, 20\): mat1"):
        MaskedCNN(SimpleCNN(image_size=8), torch.zeros(1, 3, 9, 20))
    with pytest.raises(
        UntraceableModelError, match=r"Wrapped cannot be recorded: .*\.py:\d+ turns a value that depends on the images"
    ):
        MaskedCNN(Wrapped(lambda out: out if out.sum() > 0 else -out), example)
    with pytest.raises(UntraceableModelError, match=r"Sequential has lazy layers.* Run one batch through it first"):
        MaskedCNN(nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), example)
    with pytest.raises(
        UntraceableModelError, match=r"TwoInputs takes several inputs \(x, y\); a network that takes one"
    ):
        MaskedCNN(TwoInputs(), example)
    with pytest.raises(
        UntraceableModelError, match=r"Wrapped returns tuple; one tensor .*Choose it with output=0; there are 0, 1\."
    ):
        MaskedCNN(Wrapped(lambda out: (out, out)), example)
    with pytest.raises(UntraceableModelError, match=r"Wrapped returns dict; one tensor .* output='logits'"):
        MaskedCNN(Wrapped(lambda out: {"logits": out}), example)
    with pytest.raises(UntraceableModelError, match=r"Wrapped returns a tensor \(\); one tensor"):
        MaskedCNN(Wrapped(lambda out: out.sum()), example)
    with pytest.raises(
        UntraceableModelError, match=r"No gate was found in Sequential, .*\(it has no convolution or linear layer\)"
    ):
        MaskedCNN(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), example)
    with pytest.raises(UntraceableModelError, match=r"No gate was found in Conv2d, .*are an output of the network\)"):
        MaskedCNN(nn.Conv2d(3, 2, 3), example)
    with pytest.raises(UntraceableModelError, match=r"BatchOfOne takes one image but not a batch of two .*Fixed sizes"):
        MaskedCNN(BatchOfOne(), example)
    with pytest.raises(UntraceableModelError, match="Wrapped gives different outputs for the same images in eval mode"):
        MaskedCNN(Wrapped(lambda out: F.dropout(out, 0.5)), example)
    with pytest.raises(UntraceableModelError, match="Wrapped's output for an image depends on the other images"):
        MaskedCNN(Wrapped(lambda out: out - out.mean(0, keepdim=True)), example)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused() -> None:
    traced = torch.jit.trace(SimpleCNN(image_size=8).eval(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(UntraceableModelError, match=r"is TorchScript\. Give the plain module"):
        MaskedCNN(traced, torch.zeros(1, 3, 8, 8))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("wrapper", [nn.DataParallel, lambda network: torch.compile(network, backend="eager")])
def test_wrappers_are_taken_off(wrapper: Callable[[nn.Module], nn.Module]) -> None:
    network = randomise(SimpleCNN(image_size=8, widths=(4,)))
    masked = MaskedCNN(wrapper(network), torch.zeros(1, 3, 8, 8))
    assert list(masked.network.state_dict()) == list(network.state_dict())
    batch = images().float()
    torch.testing.assert_close(masked(batch), network(batch), rtol=0, atol=0)


class Result:
    """As the outputs of Hugging Face's networks are."""

    def __init__(self, **parts: Tensor) -> None:
        vars(self).update(parts)


@pytest.mark.parametrize(
    ("after", "output"),
    [
        (lambda out: {"logits": out, "more": out + 1}, "logits"),
        (lambda out: (out + 1, out), 1),
        (lambda out: Result(more=out + 1, logits=out), "logits"),
    ],
)
def test_one_output_of_several(after: Callable[[Tensor], object], output: str | int) -> None:
    network = randomise(Wrapped(after))
    masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8), output=output)
    batch = images().float()
    torch.testing.assert_close(masked(batch, torch.ones(3, 4)), network.body(batch), rtol=0, atol=0)
    with pytest.raises(UntraceableModelError, match="output='nothing' is none of "):
        MaskedCNN(network, torch.zeros(1, 3, 8, 8), output="nothing")


def test_optional_inputs_have_their_defaults() -> None:
    network = randomise(OptionalInputs())
    masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8))
    assert [gate.name for gate in masked.gates] == ["body.features.0"]
    batch = images().float()
    torch.testing.assert_close(masked(batch, torch.ones(3, 4)), network(batch))


def test_tensors_made_in_forward() -> None:
    network = randomise(Wrapped(lambda out: out * torch.tensor([2.0]) + torch.full((10,), 3.0)))
    masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8))
    batch = images().float()
    torch.testing.assert_close(masked(batch), network(batch))
    assert list(masked.network.state_dict()) == list(network.state_dict())
    torch.testing.assert_close(copy.deepcopy(masked)(batch), network(batch))


def test_images_are_untouched_by_a_network_that_begins_in_place() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
    masked = MaskedCNN(randomise(network), torch.zeros(1, 3, 8, 8))
    batch = images().float()
    before = batch.clone()
    masked(batch, torch.rand(3, 4))
    assert torch.equal(batch, before)


def test_deep_networks_whose_signal_fades() -> None:
    """In torch's own initialisation each layer shrinks its signal; the gates still hold, and are found."""
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()]
    for _ in range(14):
        layers += [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    masked = MaskedCNN(nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 3)), torch.zeros(1, 3, 8, 8))
    assert len(masked.gates) == 15


@pytest.mark.parametrize("output", [lambda x: torch.softmax(x, 1), torch.sigmoid, lambda x: F.log_softmax(x, dim=1)])
def test_outputs_that_saturate(output: Callable[[Tensor], Tensor]) -> None:
    network = Wrapped(output)
    masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8))
    assert [gate.name for gate in masked.gates] == ["body.features.0"]


def test_float64_and_bfloat16_modules() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        network = randomise(SimpleCNN(image_size=8, widths=(4, 6))).to(dtype)
        masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8))
        batch = images().to(dtype)
        output = masked(batch, torch.ones(3, 10))
        assert output.dtype == dtype
        assert torch.equal(output, network(batch))


class Viewing(nn.Module):
    """Flattens by a view, which needs the memory to be laid out channel after channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(8 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.conv(x)).view(x.size(0), -1))


def test_a_view_of_images_that_lie_channels_last() -> None:
    network = randomise(Viewing())
    masked = MaskedCNN(network, torch.zeros(1, 3, 6, 6))
    images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    expected = network(images)
    torch.testing.assert_close(masked(images.contiguous(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(masked.to(memory_format=torch.channels_last)(images), expected)
